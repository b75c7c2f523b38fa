"""Pictures of a result: `NAME.layers.png` (layers x tokens) and `NAME.patches.png` (images under their patches' impact).

Knows records, summary and files; no models. matplotlib is imported where it is used, and only its object interface: no
display, no global state. Everything is laid out in inches around measured texts, because tokens, their number and the
shape of images are data, and any of them must fit. Texts are escaped and never taken for formulas; a character that no
font has is written as its code. The same result gives the same bytes.
"""

import io
import logging
import os
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.files import check_output, write_files
from mask_impact.records import ImageRecord, Result
from mask_impact.summary import escape, percent, token_importance

DPI = 180
MAX_IMAGES = 8  # in one picture
MAX_ALL_LABELS, MAX_LABELS = 60, 40  # up to 60 columns each has its label, of more the 40 most important

# Lengths are in inches, sizes of text in points.
MARGIN, HEAD, TITLE, TEXT, SMALL = 0.15, 0.68, 11, 8, 7
LABEL_STEP, LABEL_ROOM, FAN = 0.155, 1.8, 0.4  # distance of two labels, length of the longest, height of leader lines
MIN_MAP, MAX_MAP, MAX_LONG_MAP = 3.9, 20.0, 70.0  # width; the last for columns of one pixel
COLUMN, BLOCK = 2.5 / DPI, 0.42  # widths of one of many tokens, and of an image
PANEL, MIN_PANEL, MAX_PANEL_HEIGHT, GAP, ROW_HEAD = 2.0, 0.4, 2.6, 0.1, 0.36
INK, GREY, SINK_GREY = "0.1", "0.45", "0.78"

# What systems usually have; colour fonts of emoji are left out, since they can't be drawn.
FONTS = (
    "DejaVu Sans", "Noto Sans", "Segoe UI", "Arial Unicode MS", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC",
    "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Noto Sans Symbols",
    "Noto Sans Symbols 2", "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji", "Apple Symbols", "Unifont",
)  # fmt: skip


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


def write_png(figure, file: BinaryIO) -> None:
    """The same bytes for the same figure."""
    figure.canvas.print_png(file, metadata={"Software": None})  # else the version of matplotlib


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps off stderr what matplotlib has to say of its folder and fonts (that it lists them, to a new user)."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # from a font that has less than it says
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# Text


@cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """The families of FONTS that are installed, and the code points that they have."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    installed = {font.name for font in fontManager.ttflist}
    families = [family for family in FONTS if family in installed]
    files = [findfont(FontProperties(family=[family])) for family in families]
    return families, frozenset().union(*(get_font(file).get_charmap() for file in files))


def _piece(char: str) -> str:
    """The character escaped, as its code where no font has it."""
    shown = escape(char).replace('"', '\\"')
    if all(ord(part) in _fonts()[1] for part in shown):
        return shown
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _inches(text: str, size: float) -> float:
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=_fonts()[0], weight="normal", size=size)
    return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, ismath=False)[0] / DPI


def fitted(before: str, data: str, after: str, size: float, room: float) -> str:
    """`before`, as much of the data as fits into `room` inches, `after`."""
    most = int(room * 72 / size * 5)  # characters, more than can fit
    pieces = [_piece(char) for char in data[:most]]
    if len(data) <= most and _inches(whole := f"{before}{''.join(pieces)}{after}", size) <= room:
        return whole
    cuts = [f"{before}{''.join(pieces[:n])}…{after}" for n in range(len(pieces) + 1)]
    n_fitting = bisect_left(cuts, True, key=lambda cut: _inches(cut, size) > room)
    return cuts[max(n_fitting - 1, 0)]


# ---------------------------------------------------------------------------------------------------------------------
# What both pictures have


@dataclass(frozen=True)
class _Impact:
    """percent: float64 [L, S], share of each layer's impact, 0 at sinks and where not masked; masked, sink: bool [S]."""

    percent: np.ndarray
    masked: np.ndarray
    sink: np.ndarray
    measure: str


def _impact(result: Result, step: int | None) -> _Impact:
    importance = token_importance(result, step)
    masked = np.zeros(importance.shares.shape[1], dtype=bool)
    for record in result.steps if step is None else (result.steps[step],):
        masked[record.positions] = True
    sink = masked & np.isin(np.arange(len(masked)), result.sinks)
    return _Impact(100 * importance.shares, masked, sink, importance.measure.replace("mean of heads", "mean head"))


def _about(result: Result, step: int | None, impact: _Impact) -> str:
    """What was measured and how, without the model."""
    n_steps = len(result.steps)
    parts = [f"{result.n_layers} layer{'s' * (result.n_layers > 1)}"]
    if n_steps > 1:
        one = step is not None and f"produced token {result.steps[step].step + 1} of {n_steps}"
        parts.append(one or f"mean over {n_steps} produced tokens")
    if not impact.masked.all():
        are_images = result.tokens.image[np.flatnonzero(impact.masked)] >= 0
        parts.append(f"only {'image' if are_images.all() else 'text'} tokens masked")
    return " · ".join(parts)


def _norm(values: np.ndarray):
    """The colours' scale, from 0 to the largest value; a square root, since a few tokens have most of the impact."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=float(values.max(initial=0)) or 1)


def _colour_map(opacity: tuple[float, float] = (1, 1)):
    """magma, dark for large values, its yellow and black ends cut to white and violet; `opacity` at both ends."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    level = np.linspace(0, 1, 256)
    colours = matplotlib.colormaps["magma_r"](0.9 * level)
    colours[:, :3] += (1 - colours[:, :3]) * np.clip(1 - level / 0.2, 0, 1)[:, None]
    colours[:, 3] = np.linspace(*opacity, 256)
    return ListedColormap(colours)


class _Page:
    """A figure with a heading, and places in inches from its upper left corner."""

    def __init__(self, width: float, height: float, result: Result, step: int | None, impact: _Impact):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        answer = result.generated_text or "".join(record.token_text for record in result.steps)
        what, told = ("answer", answer) if step is None else ("token", result.steps[step].token_text)
        room, model, about = width - 2 * MARGIN, result.meta.get("model"), _about(result, step, impact)
        self.text(MARGIN, MARGIN, fitted(f'Impact on the {what} "', told, '"', TITLE, room), size=TITLE)
        if isinstance(model, str):
            about = fitted("model ", model, f" · {about}", TEXT, room)
        self.text(MARGIN, MARGIN + 0.24, about, color=GREY)

    def text(self, x: float, y: float, text: str, size: float = TEXT, **style: Any) -> None:
        style = {"ha": "left", "va": "top", "color": INK} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **style)

    def axes(self, x: float, y: float, width: float, height: float):
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.grid(False)  # whatever the user's matplotlibrc says
        axes.tick_params(labelsize=SMALL, width=0.5, length=2.5, color=GREY, labelcolor=INK)
        axes.spines[:].set(linewidth=0.5, edgecolor=GREY)
        return axes

    def colour_bar(self, axes, colours, measure: str, orientation: str) -> None:
        ticks = colours.norm.inverse(np.linspace(0, 1, 5))  # evenly spread, the largest value among them
        bar = self.figure.colorbar(
            colours, cax=axes, ticks=ticks, format=lambda value, _: f"{value:.3g}", orientation=orientation
        )
        bar.set_label(f"share of a layer's {measure} impact, %\n(square-root scale)", fontsize=TEXT, color=INK)
        bar.outline.set(linewidth=0.5, edgecolor=GREY)

    def sink_note(self, x: float, y: float) -> None:
        self.text(x + 0.03, y, " \u00d7 ", bbox={"facecolor": SINK_GREY, "edgecolor": "none", "pad": 1})
        self.text(x + 0.25, y, "attention sink, left out of the scale")

    def finished(self):
        return drawn_as_text(self.figure)


def drawn_as_text(figure):
    """The figure, with every text in it in our fonts and none taken for a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # those of the ticks as well
        text.set(parse_math=False, usetex=False, fontfamily=_fonts()[0], fontweight="normal")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Layers x tokens


@dataclass(frozen=True)
class _Column:
    """A token, or all masked patches of an image (its number): their positions, and whether all are sinks."""

    positions: list[int]
    image: int | None
    is_sink: bool


def _columns(result: Result, impact: _Impact) -> list[_Column]:
    """In the order of first positions: an image's tokens need not stand in one piece."""
    groups: dict[tuple[int | None, int], list[int]] = {}
    for position in np.flatnonzero(impact.masked).tolist():
        image = int(result.tokens.image[position])
        groups.setdefault((image, 0) if image >= 0 else (None, position), []).append(position)
    return [_Column(places, image, bool(impact.sink[places].all())) for (image, _), places in groups.items()]


def _label(result: Result, impact: _Impact, column: _Column) -> tuple[str, str]:
    """Where the column's tokens stand, and their name."""
    first, last = column.positions[0], column.positions[-1]
    if column.image is None:
        return str(first), fitted('"', result.tokens.texts[first], '"', SMALL, LABEL_ROOM)
    (rows, columns), n_sinks = result.images[column.image].grid, int(impact.sink[column.positions].sum())
    left_out = f" without {n_sinks} sink{'s' * (n_sinks > 1)}" if n_sinks and not column.is_sink else ""
    return f"{first}-{last}", f"image {column.image}: {rows} x {columns} patches{left_out}"


def layers_figure(result: Result, step: int | None = None):
    """Heat map of layers x tokens, a matplotlib Figure: the share of each layer's impact on the token produced at `step`,
    or with None on the whole answer (`token_importance(...).shares`: the mean over steps, 0 where a token was not there).

    Each image is one column, the sum of its patches. Sinks are grey; tokens that were not masked are left out. Columns
    are as wide as labels where there are few, and at least a pixel up to 12,600 of them.
    """
    impact = _impact(result, step)
    columns = _columns(result, impact)
    if not columns:
        page = _Page(6, HEAD + 0.4, result, step, impact)
        page.text(MARGIN, HEAD, "No token was masked.")
        return page.finished()
    values = np.stack([impact.percent[:, column.positions].sum(axis=1) for column in columns], axis=1)  # [L, columns]
    is_sink = np.array([column.is_sink for column in columns])
    edges, labelled = _edges(columns), _labelled(columns, values)
    middles = (edges[:-1] + edges[1:]) / 2
    places = _spread(middles[labelled], LABEL_STEP, edges[-1])
    fan = 0.07 if np.allclose(places, middles[labelled]) else FAN
    labels = [_label(result, impact, columns[index]) for index in labelled]
    below = fan + 0.15 + max(_inches(position + name, SMALL) for position, name in labels)
    left, height, note = 0.5, min(max(0.105 * result.n_layers, 2.2), 5.0), 0.22 * is_sink.any()
    page = _Page(left + edges[-1] + 1.1, HEAD + height + below + note + MARGIN, result, step, impact)

    axes = page.axes(left, HEAD, edges[-1], height)
    shown = np.ma.array(values, mask=np.broadcast_to(is_sink, values.shape))
    heat = axes.pcolormesh(
        edges, np.arange(result.n_layers + 1) - 0.5, shown, cmap=_colour_map(), norm=_norm(shown.compressed())
    )
    axes.set_facecolor(SINK_GREY)  # what is not covered
    cross = {"transform": axes.get_xaxis_transform(), "color": INK, "markersize": 3.5, "mew": 0.7, "clip_on": False}
    axes.plot(middles[is_sink], np.full(is_sink.sum(), 0.97), "x", **cross)
    every = next(every for every in (1, 2, 5, 10, 20, 50, 100, 1000) if result.n_layers <= 13 * every)
    axes.set(xticks=[], xlim=(0, edges[-1]))
    layers = range(0, result.n_layers, every)
    axes.set_yticks(layers, [str(layer) for layer in layers])  # not formatted, perhaps as a formula, by matplotlibrc
    axes.set_ylabel("layer", fontsize=TEXT, color=INK, labelpad=2)
    n_prompt = sum(column.positions[0] < result.n_prompt for column in columns)
    if 0 < n_prompt < len(columns):
        axes.axvline(edges[n_prompt], color=INK, linewidth=0.7, ymax=1.03, clip_on=False)
        style = {"size": SMALL, "va": "bottom", "color": GREY}
        page.text(left + edges[n_prompt] - 0.04, HEAD - 0.03, "prompt", ha="right", **style)
        page.text(left + edges[n_prompt] + 0.04, HEAD - 0.03, "answer", **style)

    under = HEAD + height
    lines = page.axes(left, under, edges[-1], fan)
    lines.set(xlim=(0, edges[-1]), ylim=(fan, 0))
    lines.axis("off")
    for index, place, (position, name) in zip(labelled, places, labels, strict=True):
        lines.plot([middles[index]] * 2 + [place] * 2, [0, 0.05, fan - 0.05, fan], color=GREY, linewidth=0.4)
        style = {"rotation": 90, "ha": "center", "size": SMALL}
        page.text(left + place, under + fan + 0.04, position, color=GREY, **style)
        y = under + fan + 0.1 + _inches(position, SMALL)
        page.text(left + place, y, name, color=GREY if is_sink[index] else INK, **style)
    page.colour_bar(page.axes(left + edges[-1] + 0.15, HEAD, 0.11, 2.2), heat, impact.measure, "vertical")
    if note:
        page.sink_note(left, page.height - MARGIN - 0.12)
    return page.finished()


def _edges(columns: Sequence[_Column]) -> np.ndarray:
    """Where columns begin and end, in inches."""
    n, n_images = len(columns), sum(column.image is not None for column in columns)
    few = max(MIN_MAP, min(n, MAX_ALL_LABELS) * LABEL_STEP) / n
    each = max(few, min(COLUMN, MAX_MAP / n), min(1 / DPI, MAX_LONG_MAP / n))
    block = max(each, min(BLOCK, MAX_MAP / 2 / max(n_images, 1)))
    return np.cumsum([0.0, *(block if column.image is not None else each for column in columns)])


def _labelled(columns: Sequence[_Column], values: np.ndarray) -> list[int]:
    """Which columns get a label: all of a few, else images, sinks, and those with the largest values."""
    if len(columns) <= MAX_ALL_LABELS:
        return list(range(len(columns)))
    is_plain = [column.image is None and not column.is_sink for column in columns]
    return sorted(np.lexsort((-values.sum(axis=0), is_plain))[:MAX_LABELS].tolist())


def _spread(wanted: np.ndarray, distance: float, room: float) -> np.ndarray:
    """Places in the order of the wanted ones, at least `distance` apart, within 0..room, as near to them as can be: the
    least squares of an isotonic regression, found by pooling neighbours that are too near (Ayer et al. 1955)."""
    offsets = np.arange(len(wanted)) * distance
    pools: list[tuple[float, int]] = []  # mean, number
    for mean in (wanted - offsets).tolist():
        n = 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (mean * n + before * m) / (n + m), n + m
        pools.append((mean, n))
    free = np.repeat([mean for mean, _ in pools], [n for _, n in pools])
    return np.clip(free, distance / 2, max(room - offsets[-1] - distance / 2, distance / 2)) + offsets


# ---------------------------------------------------------------------------------------------------------------------
# Patches


def patches_figure(result: Result, step: int | None = None):
    """Each image under the impact of its patches, a matplotlib Figure: all layers, and the thirds of their depth; the mean
    over these layers of the share of the layer's impact on the token produced at `step`, or with None on the answer.

    One colour scale for all; sinks are crossed out and not part of it. The first MAX_IMAGES images are shown.
    """
    from matplotlib.cm import ScalarMappable

    impact, bands, images = _impact(result, step), _bands(result.n_layers), result.images[:MAX_IMAGES]
    grids = [[_grid(result, impact, number, band) for band in bands.values()] for number in range(len(images))]
    drawn = np.concatenate([np.zeros(0), *(grid.compressed() for row in grids for grid in row)])
    colours = ScalarMappable(_norm(drawn), _colour_map((0, 0.8)))
    more = f"The first {len(images)} of {len(result.images)} images." if len(images) < len(result.images) else ""
    sizes, lefts = [_panel(image) for image in images], MARGIN + np.arange(1 + len(bands)) * (PANEL + GAP)
    height = HEAD + 0.2 + sum(high + ROW_HEAD for _, high in sizes) + 0.2 * bool(more) + 0.8
    page = _Page(max(lefts[-1] + PANEL + MARGIN, 6), height, result, step, impact)
    y, has_sinks = HEAD - 0.1, False
    for number, (image, (wide, high), row) in enumerate(zip(images, sizes, grids, strict=True)):
        page.text(MARGIN, y + 0.17, _image_title(number, image, row[0], wide / high, page.width), SMALL, color=GREY)
        y += ROW_HEAD
        if number == 0:
            for left, title in zip(lefts, ["picture", *bands], strict=True):
                page.text(left + PANEL / 2, y, title, ha="center")
            y += 0.2
        picture, (_, *sinks) = _picture(image, wide, high), _cells(result, impact.sink, number)
        has_sinks |= len(sinks[0]) > 0
        for left, grid in zip(lefts, [None, *row], strict=True):
            _draw_panel(page.axes(left + (PANEL - wide) / 2, y, wide, high), image, picture, grid, sinks, colours)
        y += high
    page.text(MARGIN, y + 0.1, more)
    y += 0.2 + 0.2 * bool(more)
    bar = page.axes(MARGIN, y, 2.3, 0.11)
    bar.set_facecolor("0.8")  # the middle of a faded picture
    page.colour_bar(bar, colours, impact.measure, "horizontal")
    if has_sinks:
        page.sink_note(MARGIN + 2.6, y - 0.03)
    return page.finished()


def _bands(n_layers: int) -> dict[str, slice]:
    """Title and layers of each panel: all, and those thirds of the depth that are neither empty nor all."""
    edges = [round(third * n_layers / 3) for third in range(4)]
    bands = {}
    for name, first, end in (("all", 0, n_layers), *zip(("early", "middle", "late"), edges, edges[1:], strict=False)):
        if name == "all" or 0 < end - first < n_layers:
            layers = f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
            bands[f"{name} ({layers})"] = slice(first, end)
    return bands


def _cells(result: Result, wanted: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those positions of an image that are wanted (bool [S]), with their rows and columns."""
    positions = np.flatnonzero((result.tokens.image[: len(wanted)] == number) & wanted)
    return positions, result.tokens.row[positions], result.tokens.column[positions]


def _grid(result: Result, impact: _Impact, number: int, band: slice) -> np.ma.MaskedArray:
    """float64 [rows, columns], percent; masked where there is no value."""
    positions, rows, columns = _cells(result, impact.masked & ~impact.sink, number)
    grid = np.ma.masked_all(result.images[number].grid)
    grid[rows, columns] = impact.percent[band, positions].mean(axis=0)
    return grid


def _panel(image: ImageRecord) -> tuple[float, float]:
    """Width and height of a panel in inches: the image's aspect, as far as that can be looked at."""
    aspect = image.size[0] / image.size[1]
    high = min(PANEL / aspect, MAX_PANEL_HEIGHT)
    return max(high * aspect, MIN_PANEL), max(high, MIN_PANEL)


def _image_title(number: int, image: ImageRecord, grid: np.ma.MaskedArray, aspect: float, width: float) -> str:
    (wide, high), (rows, columns) = image.size, image.grid
    scale = "" if np.isclose(aspect, wide / high) else ", not to scale"
    share = percent(float(grid.sum() or 0) / 100)
    about = f" · {wide} x {high} pixels{scale} · {rows} x {columns} patches (rows x columns), together {share} of the impact"
    return fitted(f"image {number}: ", image.source, about, SMALL, width - 2 * MARGIN)


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
