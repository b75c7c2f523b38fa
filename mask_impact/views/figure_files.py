"""Figures as PDF, SVG or PNG files to publish: vectors with their fonts, as wide as a paper asks, the same bytes each time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from mask_impact.errors import UsageError
from mask_impact.results.files import check_file, write_files
from mask_impact.views.plots import quiet

WIDTHS = {"column": 3.35, "text": 5.5, "page": 6.9}  # inches
NARROWEST, WIDEST = 3.0, 20.0
FORMATS = ("pdf", "svg", "png")
PNG_DPI = 300
# Fonts as TrueType in a PDF, so that its texts can be found and edited, and as shapes in an SVG, which looks the same everywhere.
SETTINGS = {
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "pdf.use14corefonts": False,
    "pdf.inheritcolor": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mask-impact",
    "svg.image_inline": True,
    "savefig.bbox": None,
    "savefig.facecolor": "auto",
    "savefig.edgecolor": "auto",
    "savefig.transparent": False,
    "path.simplify": True,
    "path.effects": [],
    "path.sketch": None,
    "agg.path.chunksize": 0,
}
# No dates, and no versions of who drew it.
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": "mask-impact", "Producer": None, "CreationDate": None},
    "svg": {"Creator": "mask-impact", "Date": None},
    "png": {"Software": None},
}


def figure_width(text: str) -> float:
    """A name of WIDTHS, or inches; ValueError for anything else."""
    if text in WIDTHS:
        return WIDTHS[text]
    try:
        inches = float(text)
    except ValueError:
        inches = math.nan
    if not NARROWEST <= inches <= WIDEST:
        names = ", ".join(WIDTHS)
        raise ValueError(f"must be {names} or inches from {NARROWEST:g} to {WIDEST:g}, not {text!r}")
    return inches


def figure_path(text: str) -> Path:
    """The file of a figure; UsageError where its name says none of FORMATS."""
    path = Path(text)
    if _form(path) not in FORMATS:
        raise UsageError(f"{path} is no figure: its name must end in .pdf, .svg or .png")
    return path


def save_figure(draw: Callable[[], Any], path: Path) -> int:
    """Writes the matplotlib Figure that `draw` makes as the path's suffix says, whole or not at all; returns its bytes' number.

    UsageError for a name that cannot be right, OutputError for a place that cannot be written.
    """
    check_file(path)
    with quiet():
        figure = draw()
        write_files({path: lambda file: write_figure(figure, file, _form(path))})
    return path.stat().st_size


def write_figure(figure: Any, file: BinaryIO, form: str) -> None:
    """Writes the figure in one of FORMATS, whatever the user's matplotlibrc says."""
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        figure.canvas.print_figure(
            file, format=form, dpi=PNG_DPI if form == "png" else figure.dpi, metadata=METADATA[form], facecolor="white"
        )


def _form(path: Path) -> str:
    return path.suffix.lower()[1:]
