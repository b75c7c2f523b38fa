"""What an answer used: of each token (or group of tokens) what hiding it does to a produced token, estimated and measured. Data.

Dimensions: G groups of tokens, each a single token unless asked for otherwise.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask_impact.results.records import ImageRecord, TokenTable


@dataclass(frozen=True)
class Agreement:
    """How far a step's estimates agree with what was measured. n: groups that were measured; rho: Spearman's correlation of
    contributions with measured changes; same_sign: share of them with the same sign; ratio: median of contribution over measured;
    strongest_control: the largest measured change, absolute, among groups that were drawn at random, NaN without any."""

    n: int
    rho: float
    same_sign: float
    ratio: float
    strongest_control: float


@dataclass(frozen=True)
class ExplainedStep:
    """One produced token. names, positions: of the groups.

    Changes of its log-probability where a group is hidden from every query in all layers (nats, negative: the group speaks for
    the token), float32 [G]: contribution: estimated with norms, gates and attention weights as constants; estimate_local: by
    the plain gradient; logprob_change, kl_divergence: measured, NaN where it was not. top1: int64 [G], the most probable token
    then, -1 where it was not measured; top1_texts: by id. control: bool [G], drawn at random to hold the estimates against.
    forwards: what measuring took, in forward passes of the sequence. reliable: whether this run's estimates hold by the rule of
    `analyses.explain`; None where all groups were measured.
    """

    step: int
    token_id: int
    token_text: str
    probability: float
    names: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    contribution: np.ndarray
    estimate_local: np.ndarray
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    control: np.ndarray
    agreement: Agreement
    reliable: bool | None
    forwards: float

    def __post_init__(self) -> None:
        for name in ("contribution", "estimate_local", "logprob_change", "kl_divergence", "top1", "control"):
            if getattr(self, name).shape != (len(self.names),):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected ({len(self.names)},)")

    @property
    def measured(self) -> np.ndarray:
        """bool [G], which groups were really hidden."""
        return np.isfinite(self.logprob_change)

    def ranked(self, k: int | None = None) -> list[int]:
        """The groups that speak most for the token, strongest first: those that were measured, by what was measured; behind
        them the others, by contribution."""
        measured = [place for place in np.argsort(self.logprob_change, kind="stable").tolist() if self.measured[place]]
        others = [place for place in np.argsort(self.contribution, kind="stable").tolist() if not self.measured[place]]
        return [*measured, *others][:k]


@dataclass(frozen=True)
class Explanation:
    """An answer, and what each of its tokens used. tokens: the prompt's and the produced ones; meta: JSON types only."""

    steps: tuple[ExplainedStep, ...]
    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    meta: dict[str, Any] = field(default_factory=dict)
