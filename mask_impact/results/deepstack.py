"""What each part of an image's features does to an answer, as data: main features and DeepStack's levels. Knows records only.

Dimensions: n parts, 2^n sets of them (part k is in set s where bit k of s is set).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.results.tokens import ImageRecord, TokenTable, check_shape

NONE, WITH = "none", " + "  # how a set of parts is told


@dataclass(frozen=True)
class FeaturePart:
    """A part. vision_layer: of the tower, from which it comes (None: its end); decoder_layer: behind which it is added (None: it
    stands where the tokens' embeddings would)."""

    name: str
    vision_layer: int | None
    decoder_layer: int | None


@dataclass(frozen=True)
class DeepstackTarget:
    """What was measured of one target: produced tokens, by their steps.

    probability: of all of them in a row, with all parts kept. logprob_change (nats, negative: less likely), kl_divergence (nats):
    float32 [2^n], where the parts of a set are kept and all others are the baseline's; top1: int64 [2^n], the most probable token
    then at the first of the target's tokens where that is another one; top1_texts: by id; differs: bool [2^n], whether there is
    one. shapley: float64 [n], nats, what each part adds; interaction: float64 [n, n], nats, how much more two add together.
    """

    steps: tuple[int, ...]
    text: str
    probability: float
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    differs: np.ndarray
    shapley: np.ndarray
    interaction: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.shapley)
        for name in ("logprob_change", "kl_divergence", "top1", "differs"):
            check_shape(name, getattr(self, name), (2**n,))
        check_shape("interaction", self.interaction, (n, n))


@dataclass(frozen=True)
class DeepstackEffects:
    """A whole run. region: how it was named; positions: its image tokens; baseline: `blank`, `mean`, `zero` or `picture`;
    norm_share: float64 [n], of each part the mean L2 norm of its features at these tokens, as a share of all parts' together;
    answers: of some sets, by number, the answer generated with their parts kept; floor: nats, by how much log-probabilities
    differ where nothing is replaced; forwards: passes of the prompt that the sets took, beside the answers."""

    parts: tuple[FeaturePart, ...]
    region: str
    positions: tuple[int, ...]
    baseline: str
    targets: tuple[DeepstackTarget, ...]
    norm_share: np.ndarray
    answers: dict[int, str]
    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    floor: float
    forwards: float
    meta: dict[str, Any]

    def kept(self, number: int) -> str:
        """A set in words."""
        names = [part.name for place, part in enumerate(self.parts) if number >> place & 1]
        return WITH.join(names) or NONE
