"""What replacing the pixels of regions of an image does to an answer, as data. Knows records only.

Dimensions: n measurements of a target.
"""

from dataclasses import dataclass

import numpy as np

from mask_impact.results.looked import LookedEffects, LookedTarget

TOTAL, OWN, OTHERS, HIDDEN = "total", "own tokens", "other tokens", "keys hidden"


@dataclass(frozen=True)
class PictureRegion:
    """Pixels of one image, or of several pairs of a video's frames. level: `region`, `frames` (all of a pair), `block`, `token`
    or `patch`; name: as it is called; row, column: of a token in the grid of tokens or of a patch in the grid of patches, of a
    block those of its first token, -1 of other regions; box: (left, top, right, bottom) around it, in pixels of the original
    image; size: (width, height) of that box in pixels of the resized one; positions: of its image tokens in the prompt, all that
    have a pixel of it; images: all that have pixels of it, the first of them `image`; empty where it is the only one."""

    level: str
    name: str
    image: int
    row: int
    column: int
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    positions: tuple[int, ...]
    images: tuple[int, ...] = ()

    @property
    def every_image(self) -> tuple[int, ...]:
        """Those that have pixels of it."""
        return self.images or (self.image,)

    @property
    def called(self) -> str:
        """As a sentence names it."""
        return f"{self.level} {self.name}" if self.level in ("token", "block") else self.name

    @property
    def area(self) -> float:
        """Of the box, in pixels of the original image."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class PatchTarget(LookedTarget):
    """What was measured of one target. place: int64 [n], which of the regions; fill: n names, "" where keys are hidden; route: n
    of TOTAL, OWN, OTHERS, HIDDEN. found: the region that was found to matter most, or the strongest that was asked about."""

    place: np.ndarray
    fill: tuple[str, ...]
    route: tuple[str, ...]
    found: int

    def __post_init__(self) -> None:
        self.check_measurements(len(self.place))

    def rows(self, place: int | None = None, fill: str | None = None, route: str | None = None) -> list[int]:
        """The measurements of a region, fill, route (None: of any)."""
        return [
            number
            for number in range(len(self.place))
            if place in (None, self.place[number])
            and fill in (None, self.fill[number])
            and route in (None, self.route[number])
        ]


@dataclass(frozen=True)
class PatchEffects(LookedEffects):
    """A whole run. fills: in the order in which they were asked for, the first for all regions."""

    regions: tuple[PictureRegion, ...]
    targets: tuple[PatchTarget, ...]
    fills: tuple[str, ...]
