"""What each part of an image's features does to an answer, as data: main features and DeepStack's levels. Knows records only.

Dimensions: n parts, 2^n sets of them (part k is in set s where bit k of s is set).
"""

from dataclasses import dataclass

import numpy as np

from mask_impact.results.looked import LookedEffects, LookedTarget
from mask_impact.results.tokens import check_shape

NONE, WITH = "none", " + "  # how a set of parts is told


@dataclass(frozen=True)
class FeaturePart:
    """A part. vision_layer: of the tower, from which it comes (None: its end); decoder_layer: behind which it is added (None: it
    stands where the tokens' embeddings would)."""

    name: str
    vision_layer: int | None
    decoder_layer: int | None


@dataclass(frozen=True)
class DeepstackTarget(LookedTarget):
    """What was measured of one target: of each of the 2^n sets, in their order, where its parts are kept and all others are the
    baseline's. shapley: float64 [n], nats, what each part adds; interaction: float64 [n, n], nats, how much more two add
    together."""

    shapley: np.ndarray
    interaction: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.shapley)
        self.check_measurements(2**n)
        check_shape("interaction", self.interaction, (n, n))


@dataclass(frozen=True)
class DeepstackEffects(LookedEffects):
    """A whole run. region: how it was named; positions: its image tokens; baseline: `blank`, `mean`, `zero` or `picture`;
    norm_share: float64 [n], of each part the mean L2 norm of its features at these tokens, as a share of all parts' together;
    answers: of some sets, by number, the answer generated with their parts kept; `forwards` are without these."""

    parts: tuple[FeaturePart, ...]
    region: str
    positions: tuple[int, ...]
    baseline: str
    targets: tuple[DeepstackTarget, ...]
    norm_share: np.ndarray
    answers: dict[int, str]

    def kept(self, number: int) -> str:
        """A set in words."""
        names = [part.name for place, part in enumerate(self.parts) if number >> place & 1]
        return WITH.join(names) or NONE
