"""The evidence card as a matplotlib Figure: what an answer used, on one page to print.

Blocks of a measured height are put under and beside each other, so that any text, any number of images and any width fit.
Knows the card's view-model and plots; writes no files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.results.explanations import Explanation
from mask_impact.views.card import LITTLE, Card, Row, Verdict
from mask_impact.views.card_parts import images_block, question_block
from mask_impact.views.figure_blocks import (
    BESIDE,
    GAP,
    WIDTH,
    Block,
    Key,
    figure_of,
    keys_block,
    lines_block,
    nats,
    stacked,
    tint,
)
from mask_impact.views.film_strip import strips
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GREY,
    INK,
    MARGIN,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    caption_of,
    fitted,
    glyphs,
    inches,
    wrapped,
)
from mask_impact.views.text import percent

IMAGES, IMAGES_GAP = 0.33, 0.25  # their part of the width, and the room behind them
ANSWER, NARROW_TITLE = 15, 9.5
BAR = 0.1  # height of a bar
ONE_LINE, MOST_BEHIND = (
    3.6,
    1.2,
)  # from this width on a row is one line, if what is said behind its bar has that much room


def card_figure(found: Explanation, number: int = 0, width: float = WIDTH):
    """What the answer used, a matplotlib Figure: in a sentence, in the question's words and the images' cells by their effect,
    in the strongest of them, and in the sets that decide the answer.

    number: of the target, from 0. width: in inches; the height is what the content takes. Bars are filled where the effect was
    measured and hollow where it is estimated; evidence in images is outlined.
    """
    card = Card(found, number)
    room, title = width - 2 * MARGIN, TITLE if width >= BESIDE else NARROW_TITLE
    blocks = [
        lines_block(wrapped(card.sentence, title, room, 4), title),
        _heading("question", question_block(card, room)),
        *strips(card, room),
        *_body(card, room),
        _scale(card, room),
        lines_block(wrapped(card.note, SMALL, room, 3), SMALL, GREY),
    ]
    return figure_of(blocks, caption_of(found.meta), width)


def _body(card: Card, room: float) -> list[Block]:
    """The images, the answer, what was used and the evidence: side by side where there is room."""
    if not card.found.images:
        return [_answer(card, room), _rows(card, room), *_verdicts(card, room)]
    if room + 2 * MARGIN < BESIDE:
        return [images_block(card, room, 3), _answer(card, room), _rows(card, room), *_verdicts(card, room)]
    left = IMAGES * room
    right = room - left - IMAGES_GAP
    images = images_block(card, left, 2)
    told = stacked([_answer(card, right), _rows(card, right), *_verdicts(card, right)], GAP)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        images.draw(sheet, x, y)
        told.draw(sheet, x + left + IMAGES_GAP, y)

    return [Block(max(images.height, told.height), draw)]


def _heading(text: str, block: Block) -> Block:
    """The block under a small grey word."""
    return stacked([lines_block([text], SMALL, GREY), block], 0.03)


# --- the answer -------------------------------------------------------------------------------------------------------------


def _answer(card: Card, room: float) -> Block:
    """What was said, large, with its probability; below it, of which answer it is a part."""
    target, about = card.target, percent(card.target.probability)
    if target.instead:
        about += fitted(" · rather than ", target.instead[1].strip(), "", TEXT, room / 3)
    said = fitted("", card.found.said(target), "", ANSWER, room - inches(about, TEXT) - 0.15)
    if not said:
        said = "(nothing)"

    def draw(sheet: Sheet, x: float, y: float) -> None:
        base = y + 0.2
        sheet.text(x, base, said, ANSWER, va="baseline")
        sheet.text(x + inches(said, ANSWER) + 0.12, base, about, color=GREY, va="baseline")

    blocks = [Block(0.26, draw)]
    if not card.whole and card.found.generated_text.strip():
        of = wrapped(f"of the answer “{card.found.generated_text.strip()}”", SMALL, room, 2)
        blocks.append(lines_block(of, SMALL, GREY))
    return _heading("answer", stacked(blocks, 0.03))


# --- what was used ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where the parts of a row stand, in inches from its left: the bars and how long the longest is, the value's right end, and
    what becomes of the answer; step: from row to row; drop: of the bar below the name."""

    bar: float
    length: float
    value: float
    becomes: float
    step: float
    drop: float


def _places(rows: Sequence[Row], room: float) -> _Places:
    number = max(inches(nats(row.change), TEXT) for row in rows)
    name = max(inches(glyphs(row.name[:100]), TEXT) for row in rows) + 0.12
    length = 0.26 * room
    value = name + length + 0.06 + number
    behind = max(inches("".join(_said(row)), TEXT) for row in rows) + 0.12
    if room >= ONE_LINE and value + min(behind, MOST_BEHIND) <= room:
        return _Places(name, length, value, value + 0.12, 0.21, 0.0)
    length = 0.4 * room
    value = length + 0.06 + number
    return _Places(0.0, length, value, value + 0.1, 0.37, 0.16)


def _rows(card: Card, room: float) -> Block:
    """The strongest, each with a bar as long as its effect."""
    rows = card.rows
    if not rows:
        return _heading("used for this answer", lines_block(["nothing that can be hidden"], TEXT))
    at = _places(rows, room)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        bars = sheet.axes(x + at.bar, y, at.length, at.step * len(rows))
        bars.set(xlim=(0, 1), ylim=(at.step * len(rows), 0))
        bars.axis("off")
        for number, row in enumerate(rows):
            top = number * at.step
            middle = y + top + 0.105
            _draw_bar(bars, row, abs(row.change) / card.largest, top + 0.105 - BAR / 2 + at.drop)
            names = at.bar - 0.08 if at.drop == 0 else room
            sheet.text(x, middle, fitted("", row.name, "", TEXT, names), va="center_baseline")
            middle += at.drop
            sheet.text(x + at.value, middle, nats(row.change), ha="right", va="center_baseline")
            text, colour = _becomes(row, room - at.becomes)
            sheet.text(x + at.becomes, middle, text, color=colour, va="center_baseline")

    return _heading("used for this answer", Block(at.step * len(rows), draw))


def _draw_bar(axes, row: Row, part: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    colour = FOR if row.change < 0 else AGAINST
    style = {"facecolor": colour if row.measured else "white", "edgecolor": colour, "linewidth": 0.8}
    axes.add_patch(Rectangle((0, y), part, BAR, **style, clip_on=False, gid=f"bar-{row.place}"))


def _becomes(row: Row, room: float) -> tuple[str, str]:
    """What is said behind a bar, and its colour."""
    before, becomes = _said(row)
    return fitted(before if becomes else "", becomes or before, "", TEXT, room), INK if becomes else GREY


def _said(row: Row) -> tuple[str, str]:
    """The same in words: what stands before the token that the answer becomes, and that token."""
    if not row.measured:
        return "estimated", ""
    if row.becomes is None:
        return "answer stays", ""
    return "without it: ", row.becomes.strip() or row.becomes


# --- evidence ---------------------------------------------------------------------------------------------------------------


def _verdicts(card: Card, room: float) -> list[Block]:
    """The sets that decide the answer, each in a sentence; no block where there are none."""
    told = [_verdict(card, one) for one in card.verdicts]
    for one in card.target.evidence:
        if not one.matters:
            told.append(f"With all {card.several(one.kind)} hidden it still says “{card.target.text.strip()}”.")
    if not told:
        return []
    lines = [line for text in told for line in wrapped(text, TEXT, room, 3)]
    return [_heading("evidence", lines_block(lines, TEXT))]


def _verdict(card: Card, one: Verdict) -> str:
    said = f"“{text}”" if (text := one.text.strip()) else "nothing"
    if one.role == "without":
        return f"Without {one.name} the model says {said}.{card.doubt(one)}"
    others = "cells" if one.kind == "image" else "words"
    return f"With {one.name} alone, all other {others} hidden, it says {said}.{card.doubt(one)}"


# --- the scale --------------------------------------------------------------------------------------------------------------


def _scale(card: Card, room: float) -> Block:
    """The colours of words and cells, and what hollow bars and outlines mean."""
    against = max([0.0, *(one.change for one in (*card.words, *card.cells, *card.rows))])
    ends = (-card.largest, against if against > max(LITTLE, 0.05 * card.largest) else 0.0)
    inset, length = inches(nats(ends[0]), SMALL) / 2, min(1.5, room / 2)
    beside = length + 2 * inset + 0.25
    x_told, y_told = (beside, 0.0) if room - beside > 2.4 else (0.0, 0.3)
    about = wrapped(_meaning(card), SMALL, room - x_told, 3)
    told = stacked([lines_block(about, SMALL), keys_block(list(_keys(card, ends[1] > 0)), room - x_told)], 0.02)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        axes = sheet.axes(x + inset, y, length, 0.09)
        colours = [tint(change, card.largest) for change in np.linspace(*ends, 256)]
        axes.imshow([colours], extent=(*ends, 0, 1), aspect="auto", interpolation="nearest")
        near = 0 < ends[1] < 0.4 * (ends[1] - ends[0]) / length  # no room for both labels
        ticks = sorted({ends[0], ends[0] / 2, ends[1]} | (set() if near else {0.0}))
        axes.set(yticks=[], xlim=ends)
        axes.set_xticks(ticks, [nats(tick) for tick in ticks])
        axes.tick_params(pad=1.5)
        told.draw(sheet, x + x_told, y + y_told - 0.02)

    return Block(max(0.26, y_told + told.height), draw)


def _meaning(card: Card) -> str:
    """Of what the changes are."""
    of = "the answer's log-probability"
    if card.target.instead:
        of = f"the answer's log-probability over that of “{card.target.instead[1].strip()}”"
    return f"change of {of} where a word or cell is hidden, nats"


def _keys(card: Card, against: bool) -> Iterator[Key]:
    """What the legend says besides the colours."""
    if against:
        yield "speaks against the answer", {"facecolor": AGAINST, "edgecolor": AGAINST, "linewidth": 0.8}
    if any(row.measured for row in card.rows) and not all(row.measured for row in card.rows):
        yield "measured", {"facecolor": FOR, "edgecolor": FOR, "linewidth": 0.8}
    if not all(row.measured for row in card.rows):
        yield "estimated", {"facecolor": "white", "edgecolor": FOR, "linewidth": 0.8}
    if any(cell.evidence for cell in card.cells):
        yield "evidence", {"facecolor": "none", "edgecolor": INK, "linewidth": 1.3}
