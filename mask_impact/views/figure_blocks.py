"""Parts of a figure that stand under each other, each with its height: lines of text, a legend, whatever draws itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.views.plots import AGAINST, FOR, INK, MARGIN, SMALL, Sheet, caption_lines, foot_height, inches

WIDTH = 6.9  # inches, of a figure unless another is asked for
BESIDE = 4.6  # from this width on two parts stand beside each other
GAP = 0.14  # between blocks
SIDES = (FOR, AGAINST, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "0.1", "0.55")  # of several things side by side


@dataclass(frozen=True)
class Block:
    """A part of a figure: its height in inches, and what draws it with its upper left corner at a place of the sheet."""

    height: float
    draw: Callable[[Sheet, float, float], None]


def line_height(size: float) -> float:
    """From one line of text to the next, in inches."""
    return 1.36 * size / 72


def lines_block(lines: Sequence[str], size: float, colour: str = INK) -> Block:
    """Lines of text."""
    step = line_height(size)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        for number, line in enumerate(lines):
            sheet.text(x, y + number * step + size / 72, line, size, color=colour, va="baseline")

    return Block(step * len(lines), draw)


def stacked(blocks: Sequence[Block], gap: float) -> Block:
    """The blocks under each other."""
    tops = np.cumsum([0.0, *(block.height + gap for block in blocks)])

    def draw(sheet: Sheet, x: float, y: float) -> None:
        for block, top in zip(blocks, tops, strict=False):
            block.draw(sheet, x, y + top)

    return Block(float(tops[-1]) - gap * bool(blocks), draw)


def figure_of(blocks: Sequence[Block], caption: str, width: float, gap: float = GAP):
    """A matplotlib Figure of a width in inches, as high as its blocks under each other and its caption take."""
    whole, lines = stacked(blocks, gap), caption_lines(caption, width)
    sheet = Sheet(width, MARGIN + whole.height + 0.05 + foot_height(lines) + MARGIN)
    whole.draw(sheet, MARGIN, MARGIN)
    sheet.foot(lines)
    return sheet.finished()


Key = tuple[str, dict[str, Any]]  # what a legend says, and the style of the small box before it
KEY_STEP, KEY_ROOM = 0.16, 0.22


def keys_block(keys: Sequence[Key], room: float) -> Block:
    """The legend: as many keys in a row as fit."""
    rows: list[list[tuple[float, Key]]] = []
    at = room + 1
    for key in keys:
        width = KEY_ROOM + inches(key[0], SMALL)
        if at + width > room:
            rows, at = [*rows, []], 0.0
        rows[-1].append((at, key))
        at += width + 0.18

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.patches import Rectangle

        for number, row in enumerate(rows):
            for left, (text, style) in row:
                middle = y + (number + 0.5) * KEY_STEP
                place, size = (
                    ((x + left) / sheet.width, 1 - (middle + 0.045) / sheet.height),
                    (0.16 / sheet.width, 0.09 / sheet.height),
                )
                sheet.figure.add_artist(Rectangle(place, *size, transform=sheet.figure.transFigure, **style))
                sheet.text(x + left + KEY_ROOM, middle, text, SMALL, va="center_baseline")

    return Block(KEY_STEP * len(rows), draw)


def nats(change: float) -> str:
    """A change of a log-probability with its sign, a minus as long as a plus, and at least two figures of a small one."""
    if abs(change) < 0.0005:
        return "0"
    return f"{change:+.{2 if abs(change) >= 0.095 else 3}f}".replace("-", "\u2212")


def tint(change: float, largest: float) -> tuple[float, float, float]:
    """The colour of a change on white, from white to that of the largest one: orange speaks for the answer, blue against."""
    from matplotlib.colors import to_rgb

    strength = min(abs(change) / largest, 1.0)
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(FOR if change < 0 else AGAINST))
    return red, green, blue
