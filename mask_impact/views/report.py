"""An interactive page of a result: one HTML file that opens from disk, with all of its numbers and no network.

Knows results, and how large a page may become; not how anything was measured, how the page is put together (`page`), nor what
its script gets (`report_data`, `report_blocks`). Where a file would become larger than `max_megabytes`, the distances of heads
are rounded, and the page says so.
"""

import base64
import gzip
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from mask_impact.errors import UsageError
from mask_impact.results.answers import WhatIf
from mask_impact.results.deepstack import DeepstackEffects
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import write_files
from mask_impact.results.flows import Knockouts
from mask_impact.results.foreign_tables import Grid
from mask_impact.results.patches import PatchEffects
from mask_impact.results.records import Result
from mask_impact.results.stored import AllStored, Stored, read_stored, stem_of, without_distances
from mask_impact.results.tower import TowerEffects
from mask_impact.views.blocks import EXACT, encode
from mask_impact.views.card_html import cards_html, images_html
from mask_impact.views.deepstack_html import deepstack_html
from mask_impact.views.matrix_html import matrix_html
from mask_impact.views.overview import overview_row
from mask_impact.views.page import clean, render_page, rendered
from mask_impact.views.patches_html import patches_html
from mask_impact.views.report_blocks import effect_values, estimate_values, fitting_blocks, norm_values
from mask_impact.views.report_data import notices_of, prompt_entry
from mask_impact.views.routes_html import knockouts_html, routes_html
from mask_impact.views.tower_html import readings_html, tower_html

# Of one prompt.
One = Result | Explanation | Knockouts | WhatIf | PatchEffects | DeepstackEffects | TowerEffects | Stored
MAX_MEGABYTES = 15.0
MAX_PROMPTS = 64  # in one page
SPARE = 500  # bytes that are left for the remark that heads are rounded
MOST_CARDS = 2000  # prompts in one page without distances
AROUND = 400  # bytes of markup around a prompt
NO_BLOCKS = {"blocks": [], "notes": [], "digits": EXACT, "plotly": ""}


@dataclass(frozen=True)
class Report:
    """html: the page, UTF-8. digits: how many binary digits the heads have (EXACT: all of them). notes: remarks for
    whoever asked for the page, one line each."""

    html: bytes
    digits: int
    notes: tuple[str, ...]


class Prompt:
    """A prompt of a page: its data for the script, what stands in the page of it as it is, and its row among others.

    number: its place; distances: whether the page has them.
    """

    def __init__(self, number: int, name: str, stored: Stored, distances: bool = True) -> None:
        self.number, self.stored = number, stored
        self.entry = prompt_entry(name, stored, distances)
        self.parts = _card(stored)
        self.row = overview_row(name, stored)
        self.images = _images(stored)

    @cached_property
    def packed(self) -> str:
        """The parts as base64 of gzip, which the script unpacks when the prompt is opened."""
        html = rendered("report_packed.html", {"one": self.parts | {"images": ""}, "number": self.number})
        return base64.b64encode(gzip.compress(html.encode(), 6, mtime=0)).decode()

    @property
    def size(self) -> int:
        """About how many bytes of a page it takes, without its images."""
        return len(self.packed) + len(json.dumps(self.entry)) + len(json.dumps(self.row)) + AROUND


def write_report(
    source: One | Mapping[str, One] | str | os.PathLike,
    path: str | os.PathLike | None = None,
    *,
    grids: Sequence[Grid] | None = None,
    prompt_name: str | None = None,
    max_megabytes: float = MAX_MEGABYTES,
) -> Path:
    """Writes the page of a result, of several by name, or of what `read_stored` finds at a path; returns its path.

    path: the HTML file (None: beside the source, which must be a path then); grids, prompt_name: see `read_stored`.
    max_megabytes: heads are rounded where the file would be larger. Raises OutputError for what cannot be read or written,
    UsageError for a grid or prompt name that does not fit.
    """
    if isinstance(source, str | os.PathLike):
        path = default_path(source) if path is None else path
        source = read_stored(source, grids, prompt_name)
    if path is None:
        raise UsageError("a report of a result in memory needs a path to be written to")
    return save_report(build_report(source, max_megabytes), Path(path))


def default_path(source: str | os.PathLike) -> Path:
    """Where the page of a source goes: NAME.html for all files of NAME, or its folder."""
    stem = stem_of(source)
    return Path(source).parent / f"{stem.name or 'report'}.html"


def save_report(report: Report, path: Path) -> Path:
    """Writes the page, whole or not at all; returns its path."""
    write_files({path: lambda file: file.write(report.html)})
    return path


def build_report(source: One | Mapping[str, One], max_megabytes: float = MAX_MEGABYTES) -> Report:
    """The page of a result, or of several by name; see `write_report`."""
    named = {_name_of(source): source} if isinstance(source, One) else source
    if len(named) <= MAX_PROMPTS:
        report = _with_distances(named, source, max_megabytes)
        if len(named) == 1 or len(report.html) <= max_megabytes * 1e6:
            return report
    lean = _lean_prompts(named, max_megabytes)
    if lean:
        return _without_distances(lean, len(named), source, max_megabytes)
    return _with_distances(named, source, max_megabytes)


def _with_distances(named: Mapping[str, One], source: Any, max_megabytes: float) -> Report:
    shown = {name: Stored.of(named[name]) for name in islice(named, MAX_PROMPTS)}
    page_notes = []
    if len(named) > len(shown):
        page_notes.append(f"The first {len(shown)} of {len(named):,} prompts; --prompt-name chooses another one")
    page = _page_of({name: Prompt(number, name, one) for number, (name, one) in enumerate(shown.items())}, source)
    results = {number: one.result for number, one in enumerate(shown.values()) if one.result is not None}
    answers = {number: one.answer for number, one in enumerate(shown.values()) if one.answer is not None}
    values = (*norm_values(results), *effect_values(results), *estimate_values(answers))
    exact = [(name, encode(one)) for name, one in values]
    without_distances = _render(page | {"blocks": exact, "notes": page_notes, "digits": EXACT})
    room = max_megabytes * 1e6 - len(without_distances) - SPARE
    digits, blocks = fitting_blocks(results, room)
    if digits < EXACT:
        page_notes.append(
            f"To keep this file below {max_megabytes:g} MB, the distances of the heads are rounded to {digits + 1} binary "
            f"digits (relative error at most {_error(digits)}); Full and Attn are exact. --max-megabytes 1000 keeps all, as do "
            "the result's own files"
        )
    html = _render(page | {"blocks": blocks + exact, "notes": page_notes, "digits": digits})
    if len(html) > max_megabytes * 1e6:
        page_notes.append(f"The page has {len(html) / 1e6:.1f} MB; fewer do not hold this result")
    return Report(html, digits, (*page_notes, *_notices(shown)))


def _lean_prompts(named: Mapping[str, One], max_megabytes: float) -> dict[str, Prompt]:
    """The first prompts without their distances, as many as there is room for; none where distances are all that the first
    one has."""
    lean = named.lean if isinstance(named, AllStored) else lambda name: without_distances(Stored.of(named[name]))
    found: dict[str, Prompt] = {}
    room, images = 0.0, set()
    for number, name in enumerate(islice(named, MOST_CARDS)):
        one = Prompt(number, name, lean(name), distances=False)
        if not found and one.stored.result is not None:
            return {}
        if not found:
            room = max_megabytes * 1e6 - len(_render(_page_of({name: one}, named) | NO_BLOCKS)) - SPARE
        else:
            room -= one.size + sum(len(html) + AROUND for key, html in one.images.items() if key not in images)
        if room < 0 and found:
            break
        images |= one.images.keys()
        found[name] = one
    return found


def _without_distances(prompts: Mapping[str, Prompt], n: int, source: Any, max_megabytes: float) -> Report:
    """The page of many prompts: what the answers used, and no distances."""
    notes = ["Distances of many prompts are left out; --prompt-name NAME opens one prompt with all of its numbers"]
    if len(prompts) < n:
        why = (
            f"a page has at most {max_megabytes:g} MB" if len(prompts) < MOST_CARDS else "more are hard to look through"
        )
        notes.insert(0, f"The first {len(prompts):,} of {n:,} prompts: {why}")
    html = _render(_page_of(prompts, source) | NO_BLOCKS | {"notes": notes})
    shown = {name: one.stored for name, one in prompts.items()}
    return Report(html, EXACT, (*notes, *_notices(shown)))


def _notices(shown: Mapping[str, Stored]) -> list[str]:
    """What a reader should know of the results; what many prompts have in common is said once."""
    of: dict[str, list[str]] = {}
    for name, one in shown.items():
        for note in notices_of(one):
            of.setdefault(note, []).append(name)
    return [note if len(names) == len(shown) else f"{', '.join(names[:3])}: {note}" for note, names in of.items()]


def _page_of(prompts: Mapping[str, Prompt], source: Any) -> dict[str, Any]:
    """What the template needs of the prompts, beside their blocks."""
    every = list(prompts.values())
    return {
        "source": _source_name(prompts, source),
        "prompts": [one.entry for one in every],
        "first": every[0].parts,
        "packed": [(f"c-{one.number}", one.packed) for one in every[1:]],
        "images": {key: html for one in every[1:] for key, html in one.images.items() if key not in every[0].images},
        "overview": [one.row for one in every] if len(every) > 1 else [],
    }


def _name_of(one: One) -> str:
    return str(one.meta.get("name") or "result")


def _source_name(shown: Mapping[str, Any], source: Any) -> str:
    if isinstance(source, AllStored):
        return clean(stem_of(source.source).name or source.source)
    return clean(next(iter(shown), "result"))


def _images(one: Stored) -> dict[str, str]:
    """The images of a prompt by the ids of their elements, each once."""
    found: dict[str, str] = {}
    for part in (one.answer, one.patches, one.tower):
        found |= {} if part is None else images_html(part.images)
    return found


def _card(one: Stored) -> dict[str, Any]:
    """What stands in the page as it is: images; of each target its card, routes, regions, parts of features, and what matters in
    the vision tower; what the tower reads; of each step its cut flows; the answers without something."""
    targets = [] if one.answer is None else cards_html(one.answer)[1]
    return {
        "images": "".join(_images(one).values()),
        "targets": targets,
        "routes": [] if one.answer is None else routes_html(one.answer)[: len(targets)],
        "matrix": "" if one.answer is None else matrix_html(one.answer),
        "knockouts": [] if one.flows is None else knockouts_html(one.flows),
        "whatif": "" if one.whatif is None else rendered("whatif.html", {"found": one.whatif}),
        "patches": [] if one.patches is None else patches_html(one.patches),
        "deepstack": [] if one.deepstack is None else deepstack_html(one.deepstack),
        "tower_reads": "" if one.tower is None else readings_html(one.tower),
        "tower": [] if one.tower is None else tower_html(one.tower),
    }


def _error(digits: int) -> str:
    return f"{100 * 2.0 ** -(digits + 1):.1g} %"


def _render(values: dict[str, Any]) -> bytes:
    return render_page("report", values, ["report.css", "card.css"])
