"""A video over time, in the figure of pixels: a thumbnail of each pair of frames, and what replacing pixels of it does.

The number is of the whole pair where that was asked about, else of the strongest of its regions. Knows records and a figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mask_impact.findings.looked import weakest_change
from mask_impact.results.patches import PatchEffects, PatchTarget
from mask_impact.results.tokens import image_title
from mask_impact.views.figure_blocks import nats
from mask_impact.views.plots import GREY, SMALL, Sheet, fitted

PER_LINE, MOST = 8, 32  # pairs of frames; of more the first ones are drawn
WIDEST, GAP, LINE = 1.3, 0.08, 0.16  # inches: of a thumbnail, between two, and of a line of text


@dataclass(frozen=True)
class Strip:
    """pairs: numbers of images; wide, high: of a thumbnail, in inches."""

    pairs: tuple[int, ...]
    wide: float
    high: float

    @property
    def height(self) -> float:
        """Of all lines."""
        n_lines = -(-len(self.pairs) // PER_LINE)
        return n_lines * (self.high + 2 * LINE + GAP) + LINE if self.pairs else 0.0

    def draw(
        self,
        sheet: Sheet,
        x: float,
        y: float,
        found: PatchEffects,
        target: PatchTarget,
        show: Callable[[Any, int], None],
    ) -> None:
        """Below a place. show: an image and its regions on axes, by its number."""
        sheet.text(x, y, "over time: what replacing pixels of a pair of frames does, in nats", SMALL, color=GREY)
        for place, number in enumerate(self.pairs):
            left = x + place % PER_LINE * (self.wide + GAP)
            top = y + LINE + place // PER_LINE * (self.high + 2 * LINE + GAP)
            show(sheet.axes(left, top, self.wide, self.high), number)
            change = change_of(found, target, number)
            sheet.text(left, top + self.high + 0.02, "" if change is None else nats(change), SMALL)
            title = fitted("", image_title(found.images, number), "", SMALL, self.wide)
            sheet.text(left, top + self.high + LINE, title, SMALL, color=GREY)


def strip_of(found: PatchEffects, pairs: Sequence[int], room: float) -> Strip:
    """The strip of these pairs of frames. room: its width in inches."""
    pairs = tuple(pairs[:MOST])
    if not pairs:
        return Strip((), 0.0, 0.0)
    per_line = min(PER_LINE, len(pairs))
    wide = min(WIDEST, (room - GAP * (per_line - 1)) / per_line)
    width, height = found.images[pairs[0]].size
    return Strip(pairs, wide, min(max(wide * height / width, 0.2), 1.5 * WIDEST))


def change_of(found: PatchEffects, target: PatchTarget, number: int) -> float | None:
    """What is said of a pair of frames; None where nothing of it was replaced."""
    places = [place for place in {*target.place.tolist()} if number in found.regions[place].every_image]
    whole = [place for place in places if found.regions[place].level == "frames"]
    return min((weakest_change(target, place) for place in whole or places), default=None)
