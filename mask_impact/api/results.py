"""Results with what one does with them: a frame, files, a picture, text, what a notebook shows.

The rooms below know results as plain data; the classes here are these data with their conveniences. No torch.
"""

from base64 import b64encode
from collections.abc import Iterable
from html import escape as escape_html
from os import PathLike
from pathlib import Path
from typing import Any

from mask_impact.errors import need
from mask_impact.results import (
    answer_files,
    answers,
    deepstack,
    deepstack_files,
    explanation_files,
    explanation_tables,
    explanations,
    flow_files,
    flows,
    patch_files,
    patches,
    records,
    store,
    tables,
    tower,
    tower_files,
)


def _in_notebook(picture: bytes, what: str, summary: str) -> str:
    """What a notebook shows of a result: a picture, which needs no script, and the summary folded under it."""
    return (
        f'<img src="data:image/png;base64,{b64encode(picture).decode()}" alt="{what}" style="max-width: 100%">'
        f"<details><summary>Summary</summary><pre>{escape_html(summary)}</pre></details>"
    )


class Page:
    """The page of a result as a notebook shows it: in a frame of its own, with everything in it that one can click."""

    def __init__(self, one: Any, height: int) -> None:
        self._one, self._height = one, height

    def _repr_html_(self) -> str:
        from mask_impact.views.report import build_report

        page = escape_html(build_report(self._one).html.decode())
        look = f"width: 100%; height: {int(self._height)}px; border: 0"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" style="{look}"></iframe>'


class Showable:
    """What has a page."""

    def show(self, height: int = 760) -> Page:
        """The page for a notebook, `height` pixels high; nothing is written."""
        return Page(self, height)


class Result(Showable, records.Result):
    """A run's maps and what its answer used (see records.Result for its fields and their shapes); print() shows the summary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer is not None and not isinstance(self.answer, Explanation):
            object.__setattr__(self, "answer", Explanation(**vars(self.answer)))
        if self.patches is not None and not isinstance(self.patches, PatchEffects):
            object.__setattr__(self, "patches", PatchEffects(**vars(self.patches)))

    def to_frame(self):
        """The result as a pandas DataFrame with the columns and the order of the CSV file."""
        return tables.to_table(self).to_pandas()

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> store.Saved:
        """Write `path`.csv, .json, .meta.json (and so on), all or none; returns a store.Saved (paths, notes)."""
        return store.save(self, path, formats=formats)

    def plot(self, *, step: int = 0, variant: str | None = None, metric: str = "l2", sinks: bool = False):
        """Layers x tokens as an interactive plotly Figure; see `views.figures.layers_figure`."""
        from mask_impact.views.figures import layers_figure

        return layers_figure(self, step=step, variant=variant, metric=metric, sinks=sinks)

    def __str__(self) -> str:
        from mask_impact.views.summary import render_summary

        return render_summary(self)

    def _repr_html_(self) -> str:
        if self.answer is not None:
            return self.answer._repr_html_()
        from mask_impact.views.pictures import layers_png

        return _in_notebook(layers_png(self), "Impact of each token in each layer", str(self))


class Knockouts(Showable, flows.Knockouts):
    """Cut flows (see flows.Knockouts for its fields and their shapes); print() shows the summary."""

    def to_frame(self):
        """A pandas DataFrame with a row for each step, flow and layer; its columns are those of the files."""
        return flow_files.flow_table(self).to_pandas()

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> tuple[Path, ...]:
        """Write `path`.flows.*: the table in these formats, a meta file and the picture; returns their paths."""
        from mask_impact.views.flows import picture_of

        return flow_files.save_flows(self, path, formats or flow_files.DEFAULT_FORMATS, picture=picture_of(self))

    def __str__(self) -> str:
        from mask_impact.views.flows import render_flows

        return render_flows(self)

    def _repr_html_(self) -> str:
        from mask_impact.views.flows import flows_png

        return _in_notebook(flows_png(self), "Change of each produced token's probability", str(self))


class Explanation(Showable, explanations.Explanation):
    """What an answer used (see explanations.Explanation for its fields); print() shows the strongest words and cells."""

    def to_frame(self):
        """A pandas DataFrame with a row for each target and word or cell; its columns are those of the files."""
        return explanation_tables.explanation_table(self).to_pandas()

    def top(self, k: int = 5, target: int = 0) -> list[str]:
        """The names of the k words, cells or groups that a target used most, without those of the template."""
        chosen = self.targets[target]
        return [chosen.names[place] for place in chosen.used(k)]

    @property
    def evidence(self) -> tuple[explanations.Evidence, ...]:
        """What decides the first target: of each kind of tokens the smallest sets that were found."""
        return self.targets[0].evidence

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> tuple[Path, ...]:
        """Write `path`.answer.csv, .json and a meta file (and so on); returns their paths."""
        return explanation_files.save_explanation(self, path, formats or explanation_files.DEFAULT_FORMATS)

    def __str__(self) -> str:
        from mask_impact.views.explanation import render_explanation

        return render_explanation(self)

    def _repr_html_(self) -> str:
        from mask_impact.views.card_html import card_document

        return card_document(self)


class PatchEffects(patches.PatchEffects):
    """What replacing pixels does (see patches.PatchEffects for its fields); print() shows the regions."""

    def to_frame(self):
        """A pandas DataFrame with a row for each target, region, fill and route; its columns are those of the files."""
        return patch_files.patch_table(self).to_pandas()

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> tuple[Path, ...]:
        """Write `path`.patches.*: the table in these formats, a meta file and the picture; returns their paths."""
        from mask_impact.views.pixels import picture_of

        return patch_files.save_patches(self, path, formats or patch_files.DEFAULT_FORMATS, picture=picture_of(self))

    def __str__(self) -> str:
        from mask_impact.views.pixels import render_patches

        return render_patches(self)

    def _repr_html_(self) -> str:
        from mask_impact.views.pixels import pixels_png

        return _in_notebook(pixels_png(self), "Regions of the image by what replacing them does", str(self))


class DeepstackEffects(deepstack.DeepstackEffects):
    """What each part of an image's features does (see deepstack.DeepstackEffects for its fields); print() shows it."""

    def to_frame(self):
        """A pandas DataFrame with a row for each target and set of parts; its columns are those of the files."""
        return deepstack_files.deepstack_table(self).to_pandas()

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> tuple[Path, ...]:
        """Write `path`.deepstack.*: the table in these formats and a meta file; returns their paths."""
        return deepstack_files.save_deepstack(self, path, formats or deepstack_files.DEFAULT_FORMATS)

    def __str__(self) -> str:
        from mask_impact.views.deepstack import render_deepstack

        return render_deepstack(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape_html(str(self))}</pre>"


class TowerEffects(tower.TowerEffects):
    """What the vision tower's layers read, and what matters (see tower.TowerEffects for its fields); print() shows both."""

    def to_frame(self):
        """A pandas DataFrame with a row for each image, layer and unit: what is read."""
        return tower_files.reading_table(self).to_pandas()

    def effects_frame(self):
        """A pandas DataFrame with a row for each target, hidden region and set of layers: what matters."""
        return tower_files.effect_table(self).to_pandas()

    def save(self, path: str | PathLike, formats: str | Iterable[str] | None = None) -> tuple[Path, ...]:
        """Write `path`.tower.*, `path`.tower_effects.*: the tables in these formats, a meta file, the picture; returns paths."""
        from mask_impact.views.tower_plot import picture_of

        return tower_files.save_tower(self, path, formats or tower_files.DEFAULT_FORMATS, picture=picture_of(self))

    def __str__(self) -> str:
        from mask_impact.views.tower import render_tower

        return render_tower(self)

    def _repr_html_(self) -> str:
        from mask_impact.views.tower_plot import tower_png

        return _in_notebook(tower_png(self), "What the vision tower's layers read, and what matters", str(self))


class WhatIf(Showable, answers.WhatIf):
    """Answers with tokens hidden (see answers.WhatIf for its fields); print() shows them side by side."""

    def to_frame(self):
        """A pandas DataFrame with a row for each produced token of each answer."""
        return answer_files.answer_table(self).to_pandas()

    def save(self, path: str | PathLike) -> Path:
        """Write `path`.whatif.json; returns its path."""
        return answer_files.save_whatif(self, path)

    def __str__(self) -> str:
        from mask_impact.views.answers import render_whatif

        return render_whatif(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape_html(str(self))}</pre>"


def load_result(path: str | PathLike) -> Result:
    """Reads what `Result.save` or a run wrote; `path` is the name, with or without the suffix of any of its files.

    OutputError where a file is missing, cannot be read, or does not belong to the others.
    """
    need("the path of a result", path, (str, PathLike), "text or a path")
    return Result(**vars(store.load_result(path)))
