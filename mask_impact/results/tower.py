"""What the vision tower's layers read of an image, and what hiding parts of it in these layers does to an answer, as data.

Two questions: a layer can read much of a patch, and the answer may not need it. Knows records only. Dimensions: L layers of the
tower, n measurements of a target.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mask_impact.results.looked import LookedEffects, LookedTarget
from mask_impact.results.patches import PictureRegion
from mask_impact.results.tokens import check_shape

ANSWERS_WHAT = (
    "attn_relative and full_first_order say what each layer reads of a patch; whether the answer needs it, logprob_change of "
    "the effects says"
)


@dataclass(frozen=True)
class TowerReading:
    """What each layer reads of each unit (a patch, or an image token) of one image, float32 [L, rows, columns].

    attention: L2 norm, over all patches outside of the unit, of the change of the layer's attention output where the unit is
    hidden from them, relative to the norm of that output over all patches. full: the same for the layer's whole update, to first
    order, from random probes, and error: its standard error; both None without probes, and error without a second one.
    """

    attention: np.ndarray
    full: np.ndarray | None = None
    error: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("full", "error"):
            if getattr(self, name) is not None:
                check_shape(name, getattr(self, name), self.attention.shape)


@dataclass(frozen=True)
class TowerTarget(LookedTarget):
    """What hiding regions in the tower did to one target. place: int64 [n], which of the regions; layers: n times those in which
    it was hidden; found: the region that matters most of those that were asked about, -1 without any."""

    place: np.ndarray
    layers: tuple[tuple[int, ...], ...]
    found: int

    def __post_init__(self) -> None:
        self.check_measurements(len(self.place))

    def row(self, place: int, layers: tuple[int, ...]) -> int:
        """The measurement of a region hidden in these layers; ValueError where there is none."""
        return [*zip(self.place.tolist(), self.layers, strict=True)].index((place, layers))


@dataclass(frozen=True)
class TowerEffects(LookedEffects):
    """A whole run. readings: of the images that were asked about, by number; unit: `patch` or `token`; probes: random ones that
    `full` is from; layers: in which regions were hidden; most_read: the region that is the unit with the largest mean of
    attention over the layers, -1 where no effects were measured. patches: of each region that is not all of the box around it,
    by its number, bool [rows, columns], the patches that it has in each of its images."""

    readings: dict[int, TowerReading]
    unit: str
    probes: int
    n_layers: int
    layers: tuple[int, ...]
    regions: tuple[PictureRegion, ...]
    targets: tuple[TowerTarget, ...]
    most_read: int
    patches: Mapping[int, np.ndarray] = field(default_factory=dict)
