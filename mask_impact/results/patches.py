"""What replacing the pixels of regions of an image does to an answer, as data. Knows records only.

Dimensions: n measurements of a target.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.results.tokens import ImageRecord, TokenTable, check_shape

TOTAL, OWN, OTHERS, HIDDEN = "total", "own tokens", "other tokens", "keys hidden"


@dataclass(frozen=True)
class PictureRegion:
    """Pixels of one image. level: `region`, `block`, `token` or `patch`; name: as it is called; row, column: of a token in the
    grid of tokens or of a patch in the grid of patches, of a block those of its first token, -1 of other regions; box: (left,
    top, right, bottom) around it, in pixels of the original image; size: (width, height) of that box in pixels of the resized
    one; positions: of its image tokens in the prompt, all that have a pixel of it."""

    level: str
    name: str
    image: int
    row: int
    column: int
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class PatchTarget:
    """What was measured of one target: produced tokens, by their steps.

    probability: of all of them in a row, with nothing replaced. place: int64 [n], which of the regions; fill: n names, "" where
    keys are hidden; route: n of TOTAL, OWN, OTHERS, HIDDEN; logprob_change (nats; negative: less likely), kl_divergence (nats):
    float32 [n]; top1: int64 [n], the most probable token then at the first of the target's tokens where that is another one;
    top1_texts: by id; differs: bool [n], whether there is one. found: the region that was found to matter most, or the strongest
    that was asked about; changes are added over the target's tokens.
    """

    steps: tuple[int, ...]
    text: str
    probability: float
    place: np.ndarray
    fill: tuple[str, ...]
    route: tuple[str, ...]
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    differs: np.ndarray
    found: int

    def __post_init__(self) -> None:
        for name in ("logprob_change", "kl_divergence", "top1", "differs"):
            check_shape(name, getattr(self, name), self.place.shape)

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
class PatchEffects:
    """A whole run. fills: in the order in which they were asked for, the first for all regions; floor: nats, by how much
    log-probabilities differ where nothing is replaced; forwards: passes of the prompt that it took beside the answer's own."""

    regions: tuple[PictureRegion, ...]
    targets: tuple[PatchTarget, ...]
    fills: tuple[str, ...]
    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    floor: float
    forwards: float
    meta: dict[str, Any]
