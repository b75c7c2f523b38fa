"""`NAME.patches.png`: each image under its patches' impact, in bands of layers."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.findings.impact import mean_over
from mask_impact.results.records import Result
from mask_impact.results.tokens import ImageRecord, films, image_name
from mask_impact.views.figure_blocks import Block, stacked
from mask_impact.views.film_strip import Frame, strip, title_of
from mask_impact.views.plots import (
    DPI,
    GAP,
    GREY,
    HEAD,
    INK,
    MARGIN,
    MAX_IMAGES,
    MAX_PANEL_HEIGHT,
    MIN_PANEL,
    PANEL,
    ROW_HEAD,
    SINK_GREY,
    SMALL,
    Page,
    ShownImpact,
    colour_map,
    fitted,
    heading_of,
    impact_of,
    inches,
    norm,
    share_label,
)
from mask_impact.views.text import percent

STRIP_GAP, STRIP_BAR, MOST_OF_FILMS = 0.2, "#812581", 3  # below a strip, of its bars, and pairs of frames with panels
NARROW_PANEL = 0.9  # inches: panels of a narrow figure stand in several rows rather than be narrower


@dataclass(frozen=True)
class _Layout:
    """How the panels of an image stand: their width in inches, how many are in each row, and how many lines a title has."""

    panel: float
    rows: tuple[int, ...]
    title_lines: int = 1

    @property
    def titles(self) -> float:
        """The height of the titles above a row."""
        return 0.2 if self.title_lines == 1 else 0.36

    def draw_title(self, page: Page, x: float, y: float, title: str) -> None:
        """The title of a panel whose upper left corner with it is there."""
        if self.title_lines == 1:
            page.text(x + self.panel / 2, y, title, ha="center")
        else:
            lines = title.replace(" (", "\n").rstrip(")")
            page.text(x + self.panel / 2, y + self.titles - 0.05, lines, SMALL, ha="center", va="bottom")

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, place in it) of each panel."""
        return [(row, place) for row, n in enumerate(self.rows) for place in range(n)]

    @classmethod
    def within(cls, width: float | None, n_panels: int) -> "_Layout":
        """That of a figure of a width in inches, None for panels of their usual size beside each other."""
        if width is None:
            return cls(PANEL, (n_panels,))
        room = width - 2 * MARGIN + GAP
        most = int(np.clip(room / (NARROW_PANEL + GAP), 1, n_panels))
        n_rows = -(-n_panels // most)
        rows = tuple(len(part) for part in np.array_split(np.arange(n_panels), n_rows))[::-1]  # the shorter ones first
        return cls(min(room / max(rows) - GAP, PANEL), rows, 2)


def patches_figure(
    result: Result,
    step: int | None = None,
    *,
    variant: str | None = None,
    metric: str = "l2",
    width: float | None = None,
    caption: str = "",
):
    """Each image under the impact of its patches, a matplotlib Figure: all layers, and the thirds of their depth; the mean
    over these layers of the share of the layer's impact on the token produced at `step`, or with None on the answer. A video has
    a strip over time above them, of all layers.

    One colour scale for all; sinks are crossed out and not part of it. At most MAX_IMAGES images have panels. variant, metric:
    the distances (None: Full where it was measured). width: of the figure in inches; caption: at its foot.
    """
    impact, bands = impact_of(result, step, variant, metric), layer_bands(result.n_layers, result.layers)
    numbers, layout = _shown(result, impact), _Layout.within(width, 1 + len(bands))
    grids = {number: [_grid(result, impact, number, band) for band in bands.values()] for number in numbers}
    whole = max((1 + len(bands)) * (PANEL + GAP) - GAP + 2 * MARGIN, 6) if width is None else width
    over_time = _strips(result, impact, whole - 2 * MARGIN)
    colours = _colours([*grids.values(), *(found for _, found in over_time)])
    strips = stacked([make(colours) for make, _ in over_time], STRIP_GAP)
    images = [result.images[number] for number in numbers]
    sizes, n_rows = [_panel(image, layout.panel) for image in images], len(layout.rows)
    titles, titled = layout.titles, 1 if n_rows == 1 else len(images)  # their height, and how many images have them
    more = _left_out(result, numbers)
    narrow = whole < 5  # no room beside the scale
    height = HEAD + n_rows * (titles * titled + sum(high for _, high in sizes)) + ROW_HEAD * len(sizes)
    height += 0.2 * bool(more) + 0.8 + 0.3 * narrow + strips.height + STRIP_GAP * bool(over_time)
    page = Page(whole, height, heading_of(result, step, impact, whole), caption)
    strips.draw(page, MARGIN, HEAD - 0.1)
    y, has_sinks = HEAD - 0.1 + strips.height + STRIP_GAP * bool(over_time), False
    for place_of, (number, image, (wide, high)) in enumerate(zip(numbers, images, sizes, strict=True)):
        row = grids[number]
        page.text(MARGIN, y + 0.17, _image_title(result, number, row[0], wide / high, page.width), SMALL, color=GREY)
        y += ROW_HEAD
        picture, (_, *sinks) = _picture(image, wide, high), _cells(result, impact.sink, number)
        has_sinks |= len(sinks[0]) > 0
        for (line, place), title, grid in zip(layout.places, ["picture", *bands], [None, *row], strict=True):
            left, top = MARGIN + place * (layout.panel + GAP), y + line * (high + titles)
            if place_of < titled:
                layout.draw_title(page, left, top, title)
                top += titles
            panel = page.axes(left + (layout.panel - wide) / 2, top, wide, high)
            _draw_panel(panel, image, picture, grid, sinks, colours)
        y += n_rows * (high + titles * (place_of < titled))
    page.text(MARGIN, y + 0.1, more)
    y += 0.2 + 0.2 * bool(more)
    bar = page.axes(MARGIN, y, 2.3, 0.11)
    bar.set_facecolor("0.8")  # the middle of a faded picture
    page.colour_bar(bar, colours, share_label(impact), "horizontal")
    if has_sinks:
        page.sink_note(*((MARGIN, y + 0.66) if narrow else (MARGIN + 2.6, y - 0.03)))
    return page.finished()


def _colours(rows: Sequence[Sequence[np.ma.MaskedArray]]):
    """The scale of all grids that are drawn."""
    from matplotlib.cm import ScalarMappable

    values = [np.zeros(0), *(grid.compressed() for row in rows for grid in row)]
    return ScalarMappable(norm(np.concatenate(values)), colour_map((0, 0.8)))


def _shown(result: Result, impact: ShownImpact) -> list[int]:
    """The images that have panels: the first MAX_IMAGES; where a strip shows all of a video, of it the MOST_OF_FILMS pairs that
    are read most."""
    pairs = [number for one in films(result.images) for number in one]
    if not pairs:
        return list(range(len(result.images[:MAX_IMAGES])))
    stills = [number for number in range(len(result.images)) if number not in pairs]
    most = sorted(pairs, key=lambda number: -_total(result, impact, number))[:MOST_OF_FILMS]
    return sorted([*stills[: MAX_IMAGES - len(most)], *most])


def _left_out(result: Result, numbers: Sequence[int]) -> str:
    """Which images have panels, where not all do."""
    if len(numbers) == len(result.images):
        return ""
    if films(result.images):
        return f"In large {len(numbers)} of {len(result.images)} images and pairs of frames; of a video those that are read most."
    return f"The first {len(numbers)} of {len(result.images)} images."


def _total(result: Result, impact: ShownImpact, number: int) -> float:
    """What all layers read of an image, percent."""
    return float(_grid(result, impact, number, slice(None)).sum() or 0)


def _strips(
    result: Result, impact: ShownImpact, room: float
) -> list[tuple[Callable[[Any], Block], list[np.ma.MaskedArray]]]:
    """Of each video what makes its strip over time, given the colours, and the numbers that these are of."""
    return [_strip(result, impact, pairs, room) for pairs in films(result.images)]


def _strip(result: Result, impact: ShownImpact, pairs: Sequence[int], room: float):
    grids = {number: _grid(result, impact, number, slice(None)) for number in pairs}
    said = f"{title_of(result.images, pairs)}: the share of the impact of each pair of frames, all layers"

    def frame(number: int, colours) -> Frame:
        image, (_, *sinks) = result.images[number], _cells(result, impact.sink, number)
        total = float(grids[number].sum() or 0)

        def paint(axes, size: tuple[float, float]) -> None:
            _draw_panel(axes, image, _picture(image, *size), grids[number], sinks, colours)

        return Frame(image, paint, total, percent(total / 100), STRIP_BAR)

    return lambda colours: strip([frame(number, colours) for number in pairs], said, room), list(grids.values())


def layer_bands(n_layers: int, measured: Sequence[int]) -> dict[str, slice]:
    """Title and layers of each panel: all, and those thirds of the depth that are neither empty nor all, and have a layer that
    was measured."""
    edges = [round(third * n_layers / 3) for third in range(4)]
    bands = {}
    for name, first, end in (("all", 0, n_layers), *zip(("early", "middle", "late"), edges, edges[1:], strict=False)):
        if name == "all" or (0 < end - first < n_layers and any(first <= layer < end for layer in measured)):
            layers = f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
            bands[f"{name} ({layers})"] = slice(first, end)
    return bands


def _cells(result: Result, wanted: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those positions of an image that are wanted (bool [S]), with their rows and columns."""
    positions = np.flatnonzero((result.tokens.image[: len(wanted)] == number) & wanted)
    return positions, result.tokens.row[positions], result.tokens.column[positions]


def _grid(result: Result, impact: ShownImpact, number: int, band: slice) -> np.ma.MaskedArray:
    """float64 [rows, columns], percent; masked where there is no value."""
    positions, rows, columns = _cells(result, impact.masked & ~impact.sink, number)
    grid = np.ma.masked_all(result.images[number].grid)
    grid[rows, columns] = mean_over(impact.percent[band, positions], axis=0)
    return grid


def _panel(image: ImageRecord, room: float) -> tuple[float, float]:
    """Width and height of a panel in inches: the image's aspect, as far as that can be looked at. room: its most width."""
    aspect = image.size[0] / image.size[1]
    high = min(room / aspect, MAX_PANEL_HEIGHT)
    return max(high * aspect, MIN_PANEL), max(high, MIN_PANEL)


def _image_title(result: Result, number: int, grid: np.ma.MaskedArray, aspect: float, width: float) -> str:
    image, name = result.images[number], image_name(result.images, number)
    (wide, high), (rows, columns) = image.size, image.grid
    scale = "" if np.isclose(aspect, wide / high) else ", not to scale"
    share = percent(float(grid.sum() or 0) / 100)
    cells, room = f"{rows} x {columns} patches", width - 2 * MARGIN
    about = f" · {wide} x {high} pixels{scale} · {cells} (rows x columns), together {share} of the impact"
    if inches(about, SMALL) > 0.8 * room:  # in a narrow figure
        return fitted("", f"{name} · {cells}{scale} · {share} of the impact", "", SMALL, room)
    return fitted(f"{name}: ", image.source, about, SMALL, room)


def _picture(image: ImageRecord, wide: float, high: float) -> np.ndarray:
    """float64 [height, width, 3] with as many pixels as the panel has; one grey pixel where there is no preview."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image.preview)) as preview:
            pixels = preview.convert("RGB").resize((round(wide * DPI), round(high * DPI)), Image.Resampling.LANCZOS)
    except OSError:
        pixels = Image.new("RGB", (1, 1), (200, 200, 200))
    return np.asarray(pixels) / 255


def _draw_panel(axes, image: ImageRecord, picture, grid, sinks, colours) -> None:
    """The picture, or with a grid its faded luminance under the grid, in pixels of the original image."""
    left, top, _, _ = image.box(0, 0)
    _, _, right, bottom = image.box(image.grid[0] - 1, image.grid[1] - 1)
    place = {"extent": (left, right, bottom, top), "aspect": "auto", "interpolation": "nearest", "origin": "upper"}
    axes.set(xticks=[], yticks=[])
    if grid is None:
        axes.imshow(picture, **place)
        return
    axes.imshow(0.65 + 0.35 * picture @ [0.299, 0.587, 0.114], cmap="gray", vmin=0, vmax=1, **place)
    axes.imshow(_pooled(grid, axes.get_window_extent()), cmap=colours.cmap, norm=colours.norm, **place)
    for x0, y0, x1, y1 in (image.box(int(row), int(column)) for row, column in zip(*sinks, strict=True)):
        axes.fill([x0, x1, x1, x0], [y0, y0, y1, y1], color=SINK_GREY, linewidth=0)
        axes.plot((x0 + x1) / 2, (y0 + y1) / 2, "x", color=INK, markersize=5, mew=0.8)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _pooled(grid: np.ma.MaskedArray, frame) -> np.ma.MaskedArray:
    """The grid, or where it has more cells than the frame has pixels, the largest of those that share one: none is lost."""
    for axis, n_pixels in enumerate((int(frame.height) - 1, int(frame.width) - 1)):
        if grid.shape[axis] > n_pixels:
            starts = np.arange(n_pixels) * grid.shape[axis] // n_pixels
            grid = np.ma.masked_invalid(np.fmax.reduceat(grid.filled(np.nan), starts, axis=axis))
    return grid
