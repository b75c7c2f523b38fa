"""What cutting flows between groups of tokens does to each produced token, as data. Knows records only.

Dimensions: F flows, L layers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.results.tokens import TokenTable


@dataclass(frozen=True)
class Flow:
    """What is hidden from what: the tokens of `source` from the queries of `target`, both of them specs. heads: ascending,
    None for all. The target `last` is the query that produces a step's token."""

    name: str
    source: str
    target: str
    heads: tuple[int, ...] | None = None

    @classmethod
    def parsed(cls, text: str) -> "Flow":
        """The flow that "source -> target" says; ValueError where an end is missing."""
        source, arrow, target = (part.strip() for part in text.partition("->"))
        if not (source and arrow and target):
            raise ValueError(f"a flow is 'source -> target', such as 'image -> last', not {text!r}")
        return cls(f"{source} -> {target}", source, target)


@dataclass(frozen=True)
class FlowPositions:
    """A flow in one prompt. source, target: positions; the target None stands for the query of each step."""

    flow: Flow
    source: tuple[int, ...]
    target: tuple[int, ...] | None


@dataclass(frozen=True)
class FlowStep:
    """What cutting each flow around each layer does to the token produced at a step.

    probability: of that token, with nothing hidden. logprob_change (nats), kl_divergence (nats): float32 [F, L]; top1: int64
    [F, L], the token that is the most probable then; top1_texts: by id. floor, likeliest: see records.EffectRecord.
    """

    step: int
    token_id: int
    token_text: str
    probability: float
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    floor: tuple[float, float, float]
    likeliest: int

    @property
    def top1_changed(self) -> np.ndarray:
        """bool [F, L], where another token than with nothing hidden is the most probable one."""
        return self.top1 != self.likeliest

    @property
    def relative_change(self) -> np.ndarray:
        """float64 [F, L], of the produced token's probability: (p' - p) / p."""
        return np.expm1(self.logprob_change.astype(np.float64))


@dataclass(frozen=True)
class Knockouts:
    """A whole run. first, last: int64 [L], the window around each layer; tokens: the prompt's."""

    flows: tuple[FlowPositions, ...]
    steps: tuple[FlowStep, ...]
    first: np.ndarray
    last: np.ndarray
    generated_text: str
    tokens: TokenTable
    meta: dict[str, Any]

    @property
    def n_layers(self) -> int:
        return len(self.first)
