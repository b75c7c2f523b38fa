"""A video over time, in a figure: a thumbnail of each pair of frames, below it a bar of what the pair did, and its time.

In a card's figure a bar is the sum of its cells' changes, as the card has them: orange speaks for the answer, blue against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mask_impact.results.tokens import ImageRecord, Moment, films
from mask_impact.views.card import Card, Cell
from mask_impact.views.card_parts import by_image, draw_image
from mask_impact.views.figure_blocks import Block, lines_block, nats, stacked
from mask_impact.views.plots import AGAINST, FOR, GREY, SMALL, Sheet, inches, wrapped

PER_LINE, MOST = 8, 32  # pairs of frames; of more the first ones are drawn
WIDEST, GAP, BAR, TEXT_ROOM = 1.1, 0.06, 0.09, 0.16  # of a thumbnail, and of what is around it, in inches


@dataclass(frozen=True)
class Frame:
    """A pair of frames. paint(axes, (width, height) in inches) draws its thumbnail; size: of its bar, any unit; text: the size in
    words; colour: of the bar."""

    image: ImageRecord
    paint: Callable[[Any, tuple[float, float]], None]
    size: float
    text: str
    colour: Any


def strips(card: Card, room: float) -> list[Block]:
    """A block for each video of the prompt, in the order of time; none for a video that is a single pair."""
    images, cells = card.found.images, by_image(card)

    def frame(number: int, total: float) -> Frame:
        def paint(axes, size: tuple[float, float]) -> None:
            draw_image(axes, images[number], cells[number], card.largest, size)

        return Frame(images[number], paint, abs(total), nats(total), FOR if total < 0 else AGAINST)

    return [
        strip(
            [frame(number, total) for number, total in zip(pairs, totals(cells, pairs), strict=True)],
            f"{title_of(images, pairs)}: what the cells of a pair of frames do, added, in nats",
            room,
        )
        for pairs in films(images)
    ]


def totals(cells: Sequence[Sequence[Cell]], pairs: Sequence[int]) -> list[float]:
    """Of each pair the sum of its cells' changes, in nats."""
    return [sum(cell.change for cell in cells[pair]) for pair in pairs]


def title_of(images: Sequence[ImageRecord], pairs: Sequence[int]) -> str:
    """What a strip is called: its video's number stands in it where there are several."""
    return f"video {images[pairs[0]].moment.video} over time" if len(films(images)) > 1 else "over time"


def strip(frames: Sequence[Frame], said: str, room: float) -> Block:
    """Thumbnails in lines of PER_LINE, bars on one scale. said: what they are, above them."""
    shown = frames[:MOST]
    largest = max(one.size for one in shown) or 1.0
    per_line = min(PER_LINE, len(shown))
    wide = min(WIDEST, (room - GAP * (per_line - 1)) / per_line)
    image = shown[0].image
    high = min(max(wide * image.size[1] / image.size[0], 0.2), 1.5 * WIDEST)
    step = high + BAR + 2 * TEXT_ROOM + GAP

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.patches import Rectangle

        for place, one in enumerate(shown):
            left, top = x + place % per_line * (wide + GAP), y + place // per_line * step
            one.paint(sheet.axes(left, top, wide, high), (wide, high))
            bar = sheet.axes(left, top + high + 0.03, wide, BAR)
            bar.set(xlim=(0, 1), ylim=(0, 1))
            bar.axis("off")
            bar.add_patch(Rectangle((0, 0), one.size / largest, 1, color=one.colour, linewidth=0, gid=f"frame-{place}"))
            sheet.text(left, top + high + BAR + TEXT_ROOM, one.text, SMALL, va="baseline")
            time = _time_of(one.image.moment, wide)
            sheet.text(left, top + high + BAR + 2 * TEXT_ROOM - 0.02, time, SMALL, color=GREY, va="baseline")

    left_out = f", the first {len(shown)} of {len(frames)} pairs of frames" if len(shown) < len(frames) else ""
    heading = lines_block(wrapped(f"{said}{left_out}", SMALL, room, 2), SMALL, GREY)
    return stacked([heading, Block(step * (1 + (len(shown) - 1) // per_line) - GAP, draw)], 0.05)


def _time_of(moment: Moment, room: float) -> str:
    """Its time and frames, as far as there is room."""
    time = f"{moment.time_s:.1f} s"
    longer = f"{time} · {moment.named}"
    return longer if inches(longer, SMALL) <= room else time
