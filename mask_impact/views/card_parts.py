"""The two pictures in a card's figure: the question with its words shaded, the images with their cells tinted, by effect."""

import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.results.tokens import ImageRecord, image_title
from mask_impact.views.card import LITTLE, Card, Cell, Word
from mask_impact.views.figure_blocks import Block, line_height, lines_block, tint
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GREY,
    INK,
    MAX_IMAGES,
    SMALL,
    Sheet,
    fitted,
    glyphs,
    inches,
    wrapped,
)

QUESTION, MAX_LINES, AROUND = (
    10,
    6,
    6,
)  # size; most lines; words shown on either side of a strong one in a long question
PAD = 0.02  # inches around a shaded word
LIGHT = 0.88  # of the largest effect: from there on white is easier to read on blue than black
SHARP = 300  # pixels of an image for an inch
HIGHEST, GAP, TITLE_ROOM = 2.4, 0.08, 0.17  # of an image, in inches
MAX_OF_FILMS = 4  # images where a strip shows all of a video
VEIL = 0.7  # opacity of the strongest effect's colour over an image; what does nothing covers nothing


# --- the question -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A piece of a line. x, width: in inches from the line's left end; apart: whether a space stands before it."""

    text: str
    change: float
    x: float
    width: float
    place: int | None
    apart: bool = True


def question_block(card: Card, room: float) -> Block:
    """The words of the question in lines, each on the colour of its effect; of a long one the strongest and those around them."""
    words = [word for word in card.words if word.text]
    if not any(word.text.strip() for word in words):
        return lines_block(wrapped(card.question, QUESTION, room, MAX_LINES) or ["(no text)"], QUESTION)
    lines = _lines(_shortened(words, room), room)
    step, is_rtl = line_height(QUESTION) * 1.08, _is_rtl("".join(word.text for word in words))

    def draw(sheet: Sheet, x: float, y: float) -> None:
        for number, line in enumerate(lines):
            for one, following in zip(line, [*line[1:], None], strict=True):
                left = x + (room - one.x - one.width if is_rtl else one.x)
                pads = [PAD * one.apart, PAD * (following is None or following.apart)]
                _draw_word(sheet, one, left, y + number * step, card.largest, pads[::-1] if is_rtl else pads)

    return Block(step * len(lines), draw)


def _draw_word(sheet: Sheet, one: _Piece, x: float, y: float, largest: float, pads: Sequence[float]) -> None:
    """pads: room of the colour on the left and on the right."""
    from matplotlib.patches import Rectangle

    strength = abs(one.change) / largest
    if strength > 0.005:
        high, top = line_height(QUESTION), y - 0.01
        place = ((x - pads[0]) / sheet.width, 1 - (top + high) / sheet.height)
        size = ((one.width + sum(pads)) / sheet.width, high / sheet.height)
        style = {"facecolor": tint(one.change, largest), "linewidth": 0, "gid": f"word-{one.place}"}
        sheet.figure.add_artist(Rectangle(place, *size, transform=sheet.figure.transFigure, zorder=0, **style))
    colour = "white" if strength > LIGHT and one.change > 0 else INK
    sheet.text(x, y + QUESTION / 72, one.text, QUESTION, color=colour, va="baseline")


def _shortened(words: Sequence[Word], room: float) -> list[Word]:
    """The words as they are, or of too many the strongest with those around them, and an ellipsis for each gap."""
    most = MAX_LINES * room * 72 / QUESTION * 1.7  # characters that fit, somewhat fewer than can
    if sum(len(glyphs(word.text)) for word in words) <= most:
        return list(words)
    kept: set[int] = set()
    length = 0
    for place in sorted(range(len(words)), key=lambda place: -abs(words[place].change)):
        around = [
            near for near in range(place - AROUND, place + AROUND + 1) if 0 <= near < len(words) and near not in kept
        ]
        more = sum(min(len(glyphs(words[near].text)), 40) for near in around) + 4
        if length + more > 0.85 * most:
            break
        kept |= {*around}
        length += more
    kept = kept or {max(range(len(words)), key=lambda place: abs(words[place].change))}
    gap, found = Word(" …", None, 0.0, False), []
    for place in sorted(kept):
        found += [gap] if place > 0 and place - 1 not in kept else []
        found.append(words[place])
    return [*found, gap] if max(kept) < len(words) - 1 else found


def _lines(words: Sequence[Word], room: float) -> list[list[_Piece]]:
    """The words placed in lines, at most MAX_LINES: the rest is an ellipsis."""
    space = inches("n n", QUESTION) - inches("nn", QUESTION)
    lines: list[list[_Piece]] = [[]]
    for before, text, word in _runs(words):
        line = lines[-1]
        x = line[-1].x + line[-1].width + space * before if line else 0.0
        text = fitted("", text, "", QUESTION, room).replace('\\"', '"')
        width = inches(text, QUESTION)
        if line and x + width > room:
            lines.append([])
            x = 0.0
        lines[-1].append(_Piece(text, word.change, x, width, word.place, before or not x))
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1]
        while last and last[-1].x + last[-1].width + space + inches("…", QUESTION) > room:
            last.pop()
        end = last[-1].x + last[-1].width + space if last else 0.0
        last.append(_Piece("…", 0.0, end, inches("…", QUESTION), None))
    return lines[:MAX_LINES]


def _runs(words: Sequence[Word]) -> Iterator[tuple[bool, str, Word]]:
    """(whether a space stands before it, what is written, the word). Line breaks are spaces, and are shown where they matter."""
    space = False
    for word in words:
        text = word.text.strip()
        if not text and abs(word.change) > LITTLE:
            yield True, word.text.replace("\n", "↵"), word
            space = True
            continue
        if text:
            yield space or word.text[:1].isspace(), " ".join(text.split()), word
        space = (space and not text) or word.text[-1:].isspace()


def _is_rtl(text: str) -> bool:
    """Whether most letters are written from right to left."""
    kinds = [unicodedata.bidirectional(char) for char in text[:2000]]
    return sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L")


# --- images -----------------------------------------------------------------------------------------------------------------


def images_block(card: Card, room: float, columns: int) -> Block:
    """The images in at most `columns` columns, the cells tinted by their effect and evidence outlined; of more than MAX_IMAGES
    those with the largest effects."""
    images, cells = card.found.images, by_image(card)
    most = MAX_OF_FILMS if any(one.moment is not None for one in images) else MAX_IMAGES
    order = sorted(range(len(images)), key=lambda number: -_weight(cells[number]))[:most]
    shown = sorted(order)
    columns = min(columns, len(shown))
    cell = (room - GAP * (columns - 1)) / columns
    sizes = [_size(images[number], cell) for number in shown]
    named = TITLE_ROOM if len(images) > 1 else 0.0
    tops, y = [], 0.0
    for first in range(0, len(shown), columns):
        tops += [y] * len(shown[first : first + columns])
        y += max(high for _, high in sizes[first : first + columns]) + named + GAP
    more = f"the {len(shown)} of {len(images)} images with the largest effects" if len(shown) < len(images) else ""
    note = lines_block(wrapped(more, SMALL, room, 2) if more else [], SMALL, GREY)

    def draw(sheet: Sheet, x: float, top: float) -> None:
        for place, (number, (wide, high)) in enumerate(zip(shown, sizes, strict=True)):
            left, upper = x + place % columns * (cell + GAP), top + tops[place]
            if named:
                sheet.text(left, upper + 0.11, image_title(images, number), SMALL, color=GREY, va="baseline")
            axes = sheet.axes(left, upper + named, wide, high)
            draw_image(axes, images[number], cells[number], card.largest, (wide, high))
        note.draw(sheet, x, top + y)

    return Block(y - GAP + (GAP + note.height if more else 0.0), draw)


def by_image(card: Card) -> list[list[Cell]]:
    """The cells of each image."""
    found: list[list[Cell]] = [[] for _ in card.found.images]
    for cell in card.cells:
        found[cell.image].append(cell)
    return found


def _weight(cells: Sequence[Cell]) -> tuple[bool, float]:
    return any(cell.evidence for cell in cells) * 1e9 + max((abs(cell.change) for cell in cells), default=0.0)


def _size(image: ImageRecord, room: float) -> tuple[float, float]:
    """Width and height in inches: the image's shape, as far as that can be looked at."""
    aspect = image.size[0] / image.size[1]
    wide = min(room, HIGHEST * aspect)
    return max(wide, 0.3), min(max(wide / aspect, 0.3), HIGHEST)


def draw_image(axes, image: ImageRecord, cells: Sequence[Cell], largest: float, size: tuple[float, float]) -> None:
    """The picture under a veil of its cells' colours, in pixels of the original image."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    (width, height), (rows, columns) = image.size, image.grid
    place = {"extent": (0, width, height, 0), "aspect": "auto", "interpolation": "nearest", "origin": "upper"}
    axes.imshow(_pixels(image, *size), **place)
    overlay, evidence = np.zeros((rows, columns, 4)), np.zeros((rows + 2, columns + 2), dtype=bool)
    for cell in cells:
        strength = 0.0 if cell.evidence else min(abs(cell.change) / largest, 1.0)
        overlay[cell.row, cell.column] = (*to_rgb(FOR if cell.change < 0 else AGAINST), VEIL * strength)
        evidence[cell.row + 1, cell.column + 1] = cell.evidence
    axes.imshow(overlay, **place)
    lines = _outline(evidence, width / columns, height / rows)
    for colour, linewidth in (("white", 3.0), (INK, 1.4)):
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=linewidth, capstyle="projecting", clip_on=False)
        )
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))


def _outline(evidence: np.ndarray, wide: float, high: float) -> list[list[tuple[float, float]]]:
    """The edges between evidence and the rest, as lines. evidence: bool [rows + 2, columns + 2], with an empty frame."""
    upright = [
        [(column * wide, (first - 1) * high), (column * wide, (end - 1) * high)]
        for column, changes in enumerate((evidence[:, 1:] != evidence[:, :-1]).T)
        for first, end in _stretches(changes)
    ]
    level = [
        [((first - 1) * wide, row * high), ((end - 1) * wide, row * high)]
        for row, changes in enumerate(evidence[1:] != evidence[:-1])
        for first, end in _stretches(changes)
    ]
    return upright + level


def _stretches(flags: np.ndarray) -> np.ndarray:
    """int64 [n, 2], where each stretch of flags that are set begins and ends."""
    return np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))).reshape(-1, 2)


def _pixels(image: ImageRecord, wide: float, high: float) -> np.ndarray:
    """float64 [height, width, 3], the preview as large as it is shown; one pixel of a light grey where there is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image.preview)) as preview:
            size = (max(round(wide * SHARP), 1), max(round(high * SHARP), 1))
            return np.asarray(preview.convert("RGB").resize(size, Image.Resampling.LANCZOS)) / 255
    except OSError:
        return np.full((1, 1, 3), 0.8)
