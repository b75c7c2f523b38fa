"""What the vision tower's layers read of an image, and what hiding parts of it in these layers does to an answer, as data.

Two questions: a layer can read much of a patch, and the answer may not need it. Knows records only. Dimensions: L layers of the
tower, n measurements of a target.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.results.patches import PictureRegion
from mask_impact.results.tokens import ImageRecord, TokenTable, check_shape

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
class TowerTarget:
    """What hiding regions in the tower did to one target: produced tokens, by their steps.

    probability: of all of them in a row, with nothing hidden. place: int64 [n], which of the regions; layers: n times those in
    which it was hidden; logprob_change (nats; negative: less likely), kl_divergence (nats): float32 [n]; top1: int64 [n], the
    most probable token then at the first of the target's tokens where that is another one; top1_texts: by id; differs: bool [n],
    whether there is one. found: the region that matters most of those that were asked about, -1 without any. Changes are added
    over the target's tokens.
    """

    steps: tuple[int, ...]
    text: str
    probability: float
    place: np.ndarray
    layers: tuple[tuple[int, ...], ...]
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    differs: np.ndarray
    found: int

    def __post_init__(self) -> None:
        for name in ("logprob_change", "kl_divergence", "top1", "differs"):
            check_shape(name, getattr(self, name), self.place.shape)

    def row(self, place: int, layers: tuple[int, ...]) -> int:
        """The measurement of a region hidden in these layers; ValueError where there is none."""
        return [*zip(self.place.tolist(), self.layers, strict=True)].index((place, layers))


@dataclass(frozen=True)
class TowerEffects:
    """A whole run. readings: of the images that were asked about, by number; unit: `patch` or `token`; probes: random ones that
    `full` is from; layers: in which regions were hidden; most_read: the region that is the unit with the largest mean of
    attention over the layers, -1 where no effects were measured; floor: nats, by how much log-probabilities differ where a mask
    hides nothing; forwards: passes of the prompt that it took beside the answer's own."""

    readings: dict[int, TowerReading]
    unit: str
    probes: int
    n_layers: int
    layers: tuple[int, ...]
    regions: tuple[PictureRegion, ...]
    targets: tuple[TowerTarget, ...]
    most_read: int
    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    floor: float
    forwards: float
    meta: dict[str, Any]
