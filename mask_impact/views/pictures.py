"""The pictures of a result as files, or as bytes for who shows them instead of keeping them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mask_impact.results.explanations import Explanation
from mask_impact.results.files import check_output, write_files
from mask_impact.results.names import ANSWER, PATCHES, RESULT
from mask_impact.results.records import Result
from mask_impact.results.table_files import beside
from mask_impact.views.card_figure import card_figure
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.patches_plot import patches_figure
from mask_impact.views.pixels import pixels_figure
from mask_impact.views.plots import png_of, quiet, write_png


def save_plots(result: Result, path: str | os.PathLike) -> tuple[Path, ...]:
    """Writes `path`.layers.png, `path`.patches.png where image tokens were masked, and `path`.card.png where it is known what the
    answer used, `path`.pixels.png where pixels were replaced, all or none; returns the paths.

    Raises UsageError for a name that cannot be right, OutputError for a place that cannot be written.
    """
    (layers, patches), (card,) = RESULT.pictures, ANSWER.pictures
    pictures: dict[str, Callable[[], Any]] = {layers: lambda: layers_figure(result)}
    if any((result.tokens.image[record.positions] >= 0).any() for record in result.steps):
        pictures[patches] = lambda: patches_figure(result)
    if (answer := result.answer) is not None:
        answer = replace(answer, meta=answer.meta | {"command": result.meta.get("command")})
        pictures[card] = lambda: card_figure(answer)
    if (patches := result.patches) is not None:
        pictures[PATCHES.others[0]] = lambda: pixels_figure(patches)
    return _save(pictures, path)


def save_card(found: Explanation, path: str | os.PathLike) -> tuple[Path, ...]:
    """Writes `path`.card.png, of the first target; returns the path. Errors as in `save_plots`."""
    return _save({ANSWER.pictures[0]: lambda: card_figure(found)}, path)


def _save(pictures: Mapping[str, Callable[[], Any]], path: str | os.PathLike) -> tuple[Path, ...]:
    path = Path(path)
    stem = check_output(path.parent, path.name, pictures)
    writers = {
        beside(stem, suffix): lambda file, draw=draw: write_png(draw(), file) for suffix, draw in pictures.items()
    }
    with quiet():
        write_files(writers)
    return tuple(writers)


def layers_png(result: Result) -> bytes:
    """The picture of layers x tokens as PNG, for who shows it instead of keeping it."""
    return png_of(lambda: layers_figure(result))
