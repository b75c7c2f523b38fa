"""The pictures of a result as files, or as bytes for who shows them instead of keeping them."""

import io
import os
from pathlib import Path

from mask_impact.results.files import check_output, write_files
from mask_impact.results.records import Result
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.patches_plot import patches_figure
from mask_impact.views.plots import quiet, write_png


def save_plots(result: Result, path: str | os.PathLike) -> tuple[Path, ...]:
    """Writes `path`.layers.png, and `path`.patches.png where image tokens were masked, all or none; returns the paths.

    Raises UsageError for a name that cannot be right, OutputError for a place that cannot be written.
    """
    path = Path(path)
    stem = check_output(path.parent, path.name)
    pictures = {"layers": layers_figure}
    if any((result.tokens.image[record.positions] >= 0).any() for record in result.steps):
        pictures["patches"] = patches_figure
    writers = {
        stem.with_name(f"{stem.name}.{kind}.png"): lambda file, draw=draw: write_png(draw(result), file)
        for kind, draw in pictures.items()
    }
    with quiet():
        write_files(writers)
    return tuple(writers)


def layers_png(result: Result) -> bytes:
    """The picture of layers x tokens as PNG, for who shows it instead of keeping it."""
    file = io.BytesIO()
    with quiet():
        write_png(layers_figure(result), file)
    return file.getvalue()
