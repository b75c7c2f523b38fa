"""What runs of pixels, parts of features and the vision tower have in common, as data: targets, the change that each measurement
makes, and what was run. Knows records only."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.results.tokens import ImageRecord, TokenTable, check_shape


@dataclass(frozen=True, kw_only=True)
class LookedTarget:
    """What was measured of one target: produced tokens, by their steps. Changes are added over the target's tokens.

    probability: of all of them in a row, with nothing changed. Of n measurements: logprob_change (nats; negative: less likely),
    kl_divergence (nats): float32 [n]; top1: int64 [n], the most probable token then at the first of the target's tokens where
    that is another one; differs: bool [n], whether there is one. top1_texts: by id.
    """

    steps: tuple[int, ...]
    text: str
    probability: float
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    differs: np.ndarray

    def check_measurements(self, n: int) -> None:
        """ValueError where there are not n of each."""
        for name in ("logprob_change", "kl_divergence", "top1", "differs"):
            check_shape(name, getattr(self, name), (n,))


@dataclass(frozen=True, kw_only=True)
class LookedEffects:
    """What was run. floor: nats, by how much log-probabilities differ where nothing is changed; forwards: passes of the prompt
    that the measurements took, beside the answer's own."""

    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    floor: float
    forwards: float
    meta: dict[str, Any]
