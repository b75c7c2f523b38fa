"""Regions of images by what was done to them, as HTML without a script: each image under its regions, and the strongest of them.

Knows what was measured and the card's classes; not how it was.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mask_impact.findings.outlines import outline
from mask_impact.results.looked import LookedEffects, LookedTarget
from mask_impact.results.patches import PictureRegion
from mask_impact.results.tokens import image_title
from mask_impact.views.card_html import FAINT, image_source, picture_key
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import shown
from mask_impact.views.text import percent, percent_after

MOST_ROWS = 12  # regions that are named


def becomes(target: LookedTarget, row: int) -> str:
    """The most probable token then."""
    return target.top1_texts[int(target.top1[row])].strip()


@dataclass(frozen=True)
class Shape:
    """A region on its image. path: what of it is seen, without those that lie in it; faint: whether it has no tint; row: its
    measurement."""

    row: int
    path: str
    faint: bool


class RegionsView:
    """Some measurements of regions, in the order of their changes, as the pictures and the list of them take them.

    largest: nats, whose colour is full; framed: the region that has a frame, -1 for none.
    """

    def __init__(
        self, found: LookedEffects, target: LookedTarget, rows: Iterable[int], largest: float, framed: int = -1
    ) -> None:
        self.found, self.target, self.framed = found, target, framed
        self._largest = largest
        self.rows = sorted(rows, key=lambda row: float(target.logprob_change[row]))

    @property
    def strongest(self) -> list[int]:
        """The measurements that are listed."""
        return self.rows[:MOST_ROWS]

    def region(self, row: int) -> PictureRegion:
        """Of a measurement."""
        return self.found.regions[self.target.place[row]]

    def name(self, row: int) -> str:
        """Its region's name."""
        return shown(self.region(row).called)

    def number(self, row: int) -> str:
        """Its change, nats."""
        return nats(float(self.target.logprob_change[row]), True)

    def tone(self, row: int) -> str:
        """`for` where the region speaks for the answer."""
        return "for" if self.target.logprob_change[row] <= 0 else "against"

    def strength(self, row: int) -> float:
        """0 to 1, on one scale for all that was measured of the target."""
        return round(min(abs(float(self.target.logprob_change[row])) / self._largest, 1.0), 4)

    def then(self, row: int) -> str | None:
        """The most probable token then, None where it stays."""
        return shown(becomes(self.target, row)) if self.target.differs[row] else None

    def left(self, row: int) -> str:
        """The probability before and then."""
        before = self.target.probability
        if before <= 0:
            return ""
        return f"{percent(before)} → {percent_after(before, float(self.target.logprob_change[row]))}"

    def tip(self, row: int) -> str:
        """What is said of a region under the pointer."""
        then = self.then(row)
        said = "the answer stays" if then is None else f"then “{then}”"
        return f"{self.name(row)}: {self.number(row)} nats, KL {float(self.target.kl_divergence[row]):.3g}, {said}"

    def part(self, row: int) -> tuple[float, float, float, float]:
        """left, top, width, height of a region."""
        left, top, right, bottom = self.region(row).box
        return left, top, right - left, bottom - top

    @cached_property
    def images(self) -> list["ImageView"]:
        """The images that have some of the regions."""
        numbers = sorted({number for row in self.rows for number in self.region(row).every_image})
        return [ImageView(self, number) for number in numbers]

    def around(self, place: int) -> str:
        """The path around a region that is no rectangle, in pixels of its image; empty for one that is."""
        return ""

    def path_around(self, place: int, mask: np.ndarray) -> str:
        """The path around what of a region's image is set. mask: bool [rows, columns], of pixels or patches."""
        wide, high = self.found.images[self.found.regions[place].image].size
        x, y = wide / mask.shape[1], high / mask.shape[0]
        lines = (" ".join(f"{corner[0] * x:.6g} {corner[1] * y:.6g}" for corner in line) for line in outline(mask))
        return "".join(f"M{line}z" for line in lines)

    def outline(self, row: int) -> str:
        """The same of a measurement's region."""
        return self.around(int(self.target.place[row]))

    def path(self, row: int) -> str:
        """All of a region, as a path that is filled by the even-odd rule."""
        return self.outline(row) or _rectangle(self.part(row))


class ImageView:
    """An image under its regions."""

    def __init__(self, of: RegionsView, number: int) -> None:
        self.view, self.number, self.image = of, number, of.found.images[number]
        self.key, self.source = picture_key(self.image, number), image_source(self.image)

    @property
    def shapes(self) -> list[Shape]:
        """The regions, larger ones first; where one lies in another, the smaller is seen. Patches have no tint beside others."""
        of = self.view
        mine = [row for row in of.rows if self.number in of.region(row).every_image]
        alone = all(of.region(row).level == "patch" for row in mine)
        tinted = [row for row in mine if alone or of.region(row).level != "patch"]
        tinted.sort(key=lambda row: -of.region(row).area)
        shapes = [
            Shape(row, self._path(row, tinted[place + 1 :]), of.strength(row) < FAINT)
            for place, row in enumerate(tinted)
        ]
        return [*shapes, *(Shape(row, of.path(row), True) for row in mine if row not in tinted)]

    def _path(self, row: int, smaller: list[int]) -> str:
        """A region without the smaller ones in it."""
        holes = []
        if outline := self.view.outline(row):
            return outline
        if self.view.region(row).level in ("block", "region", "frames"):
            for other in smaller:
                part = self.view.part(other)
                if _holds(self.view.part(row), part) and not any(_holds(hole, part) for hole in holes):
                    holes.append(part)
        return "".join(map(_rectangle, [self.view.part(row), *holes]))

    @property
    def frame(self) -> str:
        """The path around the region that has a frame; empty where that is in another image."""
        if self.view.framed < 0:
            return ""
        best = self.view.found.regions[self.view.framed]
        if self.number not in best.every_image:
            return ""
        left, top, right, bottom = best.box
        return self.view.around(self.view.framed) or _rectangle((left, top, right - left, bottom - top))

    @property
    def title(self) -> str:
        """What it is called, a pair of frames with its time, and what the strongest of its regions does."""
        name = image_title(self.view.found.images, self.number)
        mine = [row for row in self.view.rows if self.number in self.view.region(row).every_image]
        whole = [row for row in mine if self.view.region(row).level == "frames"]
        return f"{name}: {self.view.number((whole or mine)[0])} nats" if self.image.moment is not None else name


def _holds(part: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Whether another part lies in it."""
    (x, y, wide, high), (left, top, width, height) = part, other
    edge = 1e-6 * (wide + high)
    return x - edge <= left and y - edge <= top and left + width <= x + wide + edge and top + height <= y + high + edge


def _rectangle(part: tuple[float, float, float, float]) -> str:
    x, y, wide, high = (f"{one:.10g}" for one in part)
    return f"M{x} {y}h{wide}v{high}h-{wide}z"
