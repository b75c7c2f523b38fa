"""What all drawn pictures share: fonts, sizes, texts that fit, and a page of measured parts.

Only matplotlib's object interface is used: no display, no global state. Everything is laid out in inches around measured texts,
because tokens, their number and the shape of images are data, and any of them must fit. Texts are escaped and never taken for
formulas; a character that no font has is written as its code. The same result gives the same bytes.
"""

import io
import logging
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, BinaryIO

import numpy as np

from mask_impact.findings.ranking import token_importance
from mask_impact.results.records import Result
from mask_impact.views.text import escape, layers_counted

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
CAPTION, CAPTION_STEP = 6, 0.11  # of the line at the bottom
FOR, AGAINST = "#e69f00", "#0072b2"  # Okabe and Ito's: what speaks for the answer, as on the page, and against it

# What systems usually have; colour fonts of emoji are left out, since they can't be drawn.
FONTS = (
    "DejaVu Sans", "Noto Sans", "Segoe UI", "Arial Unicode MS", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC",
    "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Noto Sans Symbols",
    "Noto Sans Symbols 2", "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji", "Apple Symbols", "Unifont",
)  # fmt: skip


def write_png(figure, file: BinaryIO) -> None:
    """The same bytes for the same figure."""
    figure.canvas.print_png(file, metadata={"Software": None})  # else the version of matplotlib


def png_of(draw: Callable[[], Any]) -> bytes:
    """A figure as a PNG file. draw: makes it."""
    file = io.BytesIO()
    with quiet():
        write_png(draw(), file)
    return file.getvalue()


def writer_of(picture: bytes) -> Callable[[BinaryIO], None]:
    """What writes a picture that is drawn already, so that what fails does so before any file is written."""
    return lambda file: file.write(picture)


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
def fonts() -> tuple[list[str], frozenset[int]]:
    """The families of FONTS that are installed, and the code points that they have."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    installed = {font.name for font in fontManager.ttflist}
    families = [family for family in FONTS if family in installed]
    files = [findfont(FontProperties(family=[family])) for family in families]
    return families, frozenset().union(*(get_font(file).get_charmap() for file in files))


def glyphs(text: str) -> str:
    """The text escaped, each character as its code where no font has it."""
    return "".join(map(_glyph, text))


def piece(char: str) -> str:
    """The character as in `glyphs`, and as it stands between double quotes."""
    return '\\"' if char == '"' else _glyph(char)


def _glyph(char: str) -> str:
    shown = escape(char)
    if all(ord(part) in fonts()[1] for part in shown):
        return shown
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


@lru_cache(maxsize=1 << 14)
def inches(text: str, size: float) -> float:
    """The width of a text of a size in points, in the font that the pictures have."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=fonts()[0], weight="normal", size=size)
    return _renderer().get_text_width_height_descent(text, font, ismath=False)[0] / DPI


@cache
def _renderer():
    """What measures texts."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)


def fitted(before: str, data: str, after: str, size: float, room: float) -> str:
    """`before`, as much of the data as fits into `room` inches, `after`."""
    most = int(room * 72 / size * 5)  # characters, more than can fit
    pieces = [piece(char) for char in data[:most]]
    if len(data) <= most and inches(whole := f"{before}{''.join(pieces)}{after}", size) <= room:
        return whole
    cuts = [f"{before}{''.join(pieces[:n])}…{after}" for n in range(len(pieces) + 1)]
    n_fitting = bisect_left(cuts, True, key=lambda cut: inches(cut, size) > room)
    return cuts[max(n_fitting - 1, 0)]


def wrapped(text: str, size: float, room: float, most: int) -> list[str]:
    """The text as at most `most` lines of at most `room` inches, as in `glyphs`: broken at spaces, within a word where that is
    wider than a line; an ellipsis ends what does not fit."""
    within = int(room * 72 / size * 5) * (most + 1)  # characters, more than can fit
    lines, line = [], ""
    for word in glyphs(" ".join(text[:within].split(" "))).split(" "):
        line, before = (f"{line} {word}", line) if line else (word, "")
        if inches(line, size) <= room:
            continue
        lines += [before] if before else []
        line = word
        while len(lines) <= most and len(line) > 1 and inches(line, size) > room:
            n = max(1, bisect_left(range(1, len(line)), True, key=lambda n: inches(line[:n], size) > room))
            lines, line = [*lines, line[:n]], line[n:]
        if len(lines) > most:
            break
    lines = [*lines, line] if line else lines
    if len(lines) <= most and len(text) <= within:
        return lines
    last = lines[most - 1] if len(lines) >= most else lines[-1]
    while last and inches(f"{last}…", size) > room:
        last = last[:-1]
    return [*lines[: min(most, len(lines)) - 1], f"{last.rstrip()}…"]


# ---------------------------------------------------------------------------------------------------------------------
# What both pictures have


@dataclass(frozen=True)
class ShownImpact:
    """percent: float64 [L, S], share of each layer's impact, 0 at sinks and where not masked, NaN in layers that were not
    measured; masked, sink: bool [S]."""

    percent: np.ndarray
    masked: np.ndarray
    sink: np.ndarray
    measure: str


def impact_of(result: Result, step: int | None, variant: str | None = None, metric: str = "l2") -> ShownImpact:
    """What a picture shows of the token produced at a step, or of the whole answer (None). variant: of the result's, None for the
    first of Full, Attn and the mean of heads that there is."""
    importance = token_importance(result, step, variant, metric)
    masked = np.zeros(importance.shares.shape[1], dtype=bool)
    for record in result.steps if step is None else (result.steps[step],):
        masked[record.positions] = True
    sink = masked & np.isin(np.arange(len(masked)), result.sinks)
    measure = importance.measure.replace("mean of heads", "mean head" if variant is None else variant)
    return ShownImpact(100 * importance.shares, masked, sink, f"{measure}{' cosine' * (metric == 'cosine')}")


def heading_of(result: Result, step: int | None, impact: ShownImpact, width: float) -> tuple[str, str]:
    """The two lines above a picture of impact: on what, and what was measured of which model."""
    answer = result.generated_text or "".join(record.token_text for record in result.steps)
    what, told = ("answer", answer) if step is None else ("token", result.steps[step].token_text)
    room = width - 2 * MARGIN
    title = fitted(f'Impact on the {what} "', told, '"', TITLE, room)
    return title, with_model(result.meta.get("model"), about_line(result, step, impact), room)


def with_model(model: Any, about: str, room: float) -> str:
    """The line below a title, with the model before it, as far as there is room."""
    if not isinstance(model, str):
        return about
    whole = fitted("model ", model, f" · {about}", TEXT, room)
    return whole if inches(whole, TEXT) <= room else fitted("", f"model {model} · {about}", "", TEXT, room)


def share_label(impact: ShownImpact) -> str:
    """What the colours of a picture of impact are."""
    return f"share of a layer's {impact.measure} impact, %"


def about_line(result: Result, step: int | None, impact: ShownImpact) -> str:
    """What was measured and how, without the model."""
    n_steps = len(result.steps)
    parts = [layers_counted(result)]
    if n_steps > 1:
        one = step is not None and f"produced token {result.steps[step].step + 1} of {n_steps}"
        parts.append(one or f"mean over {n_steps} produced tokens")
    if not impact.masked.all():
        are_images = result.tokens.image[np.flatnonzero(impact.masked)] >= 0
        parts.append(f"only {'image' if are_images.all() else 'text'} tokens masked")
    return " · ".join(parts)


def norm(values: np.ndarray):
    """The colours' scale, from 0 to the largest value; a square root, since a few tokens have most of the impact."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=float(values.max(initial=0)) or 1)


def colour_map(opacity: tuple[float, float] = (1, 1)):
    """magma, dark for large values, its yellow and black ends cut to white and violet; `opacity` at both ends."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    level = np.linspace(0, 1, 256)
    colours = matplotlib.colormaps["magma_r"](0.9 * level)
    colours[:, :3] += (1 - colours[:, :3]) * np.clip(1 - level / 0.2, 0, 1)[:, None]
    colours[:, 3] = np.linspace(*opacity, 256)
    return ListedColormap(colours)


def tick_text(value: float, form: str = "g") -> str:
    """A number at an axis, with a minus as long as a plus."""
    return f"{value:{form}}".replace("-", "\u2212")


def ticks_between(ticks: Sequence[float], low: float, high: float) -> tuple[list[float], list[str]]:
    """Of matplotlib's ticks, which may lie outside of the axis, those that it has, and their labels."""
    within = [tick for tick in ticks if low <= tick <= high]
    return within, list(map(tick_text, within))


class Sheet:
    """A figure with places in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

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

    def foot(self, lines: Sequence[str]) -> None:
        """The caption, at the bottom."""
        for number, line in enumerate(reversed(lines)):
            self.text(MARGIN, self.height - MARGIN - number * CAPTION_STEP, line, CAPTION, color=GREY, va="bottom")

    def finished(self):
        return drawn_as_text(self.figure)


class Page(Sheet):
    """A figure with a heading, two lines, and a caption where there is one."""

    def __init__(self, width: float, height: float, heading: tuple[str, str], caption: str = "") -> None:
        lines = caption_lines(caption, width)
        super().__init__(width, height + foot_height(lines))
        self.bottom = height  # where the caption begins
        self.foot(lines)
        title, about = heading
        self.text(MARGIN, MARGIN, title, size=TITLE)
        self.text(MARGIN, MARGIN + 0.24, about, color=GREY)

    def colour_bar(self, axes, colours, label: str, orientation: str) -> None:
        ticks = colours.norm.inverse(np.linspace(0, 1, 5))  # evenly spread, the largest value among them
        bar = self.figure.colorbar(
            colours, cax=axes, ticks=ticks, format=lambda value, _: tick_text(value, ".3g"), orientation=orientation
        )
        bar.set_label(f"{label}\n(square-root scale)", fontsize=TEXT, color=INK)
        bar.outline.set(linewidth=0.5, edgecolor=GREY)

    def sink_note(self, x: float, y: float) -> None:
        self.text(x + 0.03, y, " \u00d7 ", bbox={"facecolor": SINK_GREY, "edgecolor": "none", "pad": 1})
        self.text(x + 0.25, y, "attention sink, left out of the scale")


def layers_named(n_layers: int, most: int) -> range:
    """The layers that an axis names, at most so many, evenly from the first on."""
    return range(0, n_layers, next(every for every in (1, 2, 5, 10, 20, 50, 100, 1000) if n_layers <= most * every))


def caption_of(meta: Mapping[str, Any]) -> str:
    """What a published figure says of its origin: the model, and the command that measured it."""
    command = meta.get("command") or ""
    command = command if isinstance(command, str) else " ".join(map(str, command))
    return " · ".join(part for part in (str(meta.get("model") or ""), command) if part)


def caption_lines(caption: str, width: float) -> list[str]:
    """A caption as it stands under a figure of that width, no lines where there is none."""
    return wrapped(caption, CAPTION, width - 2 * MARGIN, 2 if width >= 4.6 else 4) if caption else []


def foot_height(lines: Sequence[str]) -> float:
    """The room that a caption takes."""
    return CAPTION_STEP * len(lines) + 0.12 if lines else 0.0


def drawn_as_text(figure):
    """The figure, with every text in it in our fonts and none taken for a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # those of the ticks as well
        text.set(parse_math=False, usetex=False, fontfamily=fonts()[0], fontweight="normal")
    return figure
