"""A video over time, in a card's figure: a thumbnail of each pair of frames, below it what the pair did to the answer.

A bar is the sum of its cells' changes, as the card has them: orange speaks for the answer, blue against. Knows a card; draws
cells as `card_parts` does.
"""

from collections.abc import Sequence

from mask_impact.results.tokens import Moment
from mask_impact.views.card import Card, Cell
from mask_impact.views.card_parts import by_image, draw_image
from mask_impact.views.figure_blocks import Block, lines_block, nats, stacked
from mask_impact.views.plots import AGAINST, FOR, GREY, SMALL, Sheet, inches, wrapped

PER_LINE, MOST = 8, 32  # pairs of frames; of more the first ones are drawn
WIDEST, GAP, BAR, TEXT_ROOM = 1.1, 0.06, 0.09, 0.16  # of a thumbnail, and of what is around it, in inches


def strips(card: Card, room: float) -> list[Block]:
    """A block for each video of the prompt, in the order of time; none for a video that is a single pair."""
    films: dict[int, list[int]] = {}
    for number, image in enumerate(card.found.images):
        if image.moment is not None:
            films.setdefault(image.moment.video, []).append(number)
    cells, several = by_image(card), len(films) > 1
    return [_strip(card, pairs, cells, room, several) for pairs in films.values() if len(pairs) > 1]


def totals(cells: Sequence[Sequence[Cell]], pairs: Sequence[int]) -> list[float]:
    """Of each pair the sum of its cells' changes, in nats."""
    return [sum(cell.change for cell in cells[pair]) for pair in pairs]


def _strip(card: Card, pairs: list[int], cells: list[list[Cell]], room: float, several: bool) -> Block:
    shown = pairs[:MOST]
    sums = totals(cells, shown)
    largest = max(map(abs, sums)) or 1.0
    per_line = min(PER_LINE, len(shown))
    wide = min(WIDEST, (room - GAP * (per_line - 1)) / per_line)
    image = card.found.images[shown[0]]
    high = min(max(wide * image.size[1] / image.size[0], 0.2), 1.5 * WIDEST)
    step = high + BAR + 2 * TEXT_ROOM + GAP

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.patches import Rectangle

        for place, (number, total) in enumerate(zip(shown, sums, strict=True)):
            left, top = x + place % per_line * (wide + GAP), y + place // per_line * step
            axes = sheet.axes(left, top, wide, high)
            draw_image(axes, card.found.images[number], cells[number], card.largest, (wide, high))
            bar = sheet.axes(left, top + high + 0.03, wide, BAR)
            bar.set(xlim=(0, 1), ylim=(0, 1))
            bar.axis("off")
            bar.add_patch(Rectangle((0, 0), abs(total) / largest, 1, color=FOR if total < 0 else AGAINST, linewidth=0))
            sheet.text(left, top + high + BAR + TEXT_ROOM, nats(total), SMALL, va="baseline")
            time = _time_of(card.found.images[number].moment, wide)
            sheet.text(left, top + high + BAR + 2 * TEXT_ROOM - 0.02, time, SMALL, color=GREY, va="baseline")

    name = f"video {card.found.images[shown[0]].moment.video} over time" if several else "over time"
    left_out = f", the first {len(shown)} of {len(pairs)} pairs of frames" if len(shown) < len(pairs) else ""
    said = f"{name}: what the cells of a pair of frames do, added, in nats{left_out}"
    heading = lines_block(wrapped(said, SMALL, room, 2), SMALL, GREY)
    return stacked([heading, Block(step * (1 + (len(shown) - 1) // per_line) - GAP, draw)], 0.05)


def _time_of(moment: Moment, room: float) -> str:
    """Its time and frames, as far as there is room."""
    time = f"{moment.time_s:.1f} s"
    longer = f"{time} · {moment.named}"
    return longer if inches(longer, SMALL) <= room else time
