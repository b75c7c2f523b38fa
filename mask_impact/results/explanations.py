"""What an answer used: of each word, cell or group what hiding it does to some produced tokens, estimated and measured. Data.

Dimensions: G units, which are hidden together each: words, tokens, cells, regions of cells, groups of a file; N positions of the
prompt, T produced tokens, L layers, H heads.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask_impact.results.tokens import ImageRecord, TokenTable

FINE_ENOUGH = 0.8  # of a unit's effect: one within it that has as much is named in its place


@dataclass(frozen=True)
class Agreement:
    """How far a target's estimates agree with what was measured. n: units that were measured; rho: Spearman's correlation of
    contributions with measured changes; same_sign: share of them with the same sign; ratio: median of contribution over measured;
    strongest_control: the largest measured change, absolute, among units that were drawn at random, NaN without any."""

    n: int
    rho: float
    same_sign: float
    ratio: float
    strongest_control: float


@dataclass(frozen=True)
class TokenSet:
    """A set of units that decides the answer. places: of the units; minimal: whether each of them was tried to be left out;
    text: the answer that the model's own generate() gives; confirmed: whether that answer is another (or the same) as the set
    was found to make it."""

    places: tuple[int, ...]
    minimal: bool
    text: str
    confirmed: bool


@dataclass(frozen=True)
class Evidence:
    """The smallest sets that were found among the units of one kind, `image` or `text`.

    matters: whether the answer changes where all units of the kind are hidden; hiding some can change it where hiding all does
    not. necessary: without it the answer is another; sufficient: the answer stays where all others of the kind are hidden. None:
    there is none, or none was found within the budget (exhausted: whether the search ended for that reason). forwards: what it
    took, in forward passes of the sequence. each: places of the units that were found to change the answer each by itself, the
    strongest first; a necessary set of one unit is the first of them.
    """

    kind: str
    matters: bool
    necessary: TokenSet | None
    sufficient: TokenSet | None
    exhausted: bool
    forwards: float
    each: tuple[int, ...] = ()


@dataclass(frozen=True)
class Route:
    """A flow from some tokens to others. source, target: as asked for. estimate, contribution: float32 [L, H], what cutting it in
    one head of one layer does, by the plain gradient, and with norms, gates and attention weights as constants; 0 for heads that
    the flow is not about.

    whole_change: what really cutting it did, in all layers; layers: first and last of few layers in a row, and
    logprob_change: what cutting it in these alone did; None where it was not cut.
    """

    name: str
    source: str
    target: str
    estimate: np.ndarray
    contribution: np.ndarray
    whole_change: float | None = None
    layers: tuple[int, int] | None = None
    logprob_change: float | None = None


@dataclass(frozen=True)
class HeadCut:
    """What becomes of the target where some heads read nothing but their own position. heads: (layer, head), the ones that carry
    most by estimate first; logprob_change, top1_text: measured; random_change: the same of as many heads drawn at random."""

    heads: tuple[tuple[int, int], ...]
    logprob_change: float
    top1_text: str
    random_change: float


@dataclass(frozen=True)
class LayerEstimates:
    """Of each layer and position, float32 [L, N'] with N' the positions up to the target. contribution: what hiding it from every
    query in this layer does, with norms, gates and attention weights as constants; its sum over layers is the position's whole
    contribution. estimate: what hiding it from the target's own queries in this layer does, by the plain gradient. Both are
    changes of what the target's `measure` was estimated by, negative where the position speaks for the target."""

    contribution: np.ndarray
    estimate: np.ndarray


@dataclass(frozen=True)
class ExplainedTarget:
    """Produced tokens that are asked about together. steps, token_ids: theirs; text: theirs; probability: of all in a row.
    instead: (id, text) of the token that a single one is held against.

    names, positions, kinds: of the units; a kind is `word`, `region`, `group`, or that of a single token (text, special, image).
    Changes where a unit is hidden from every query in all layers (nats, negative: the unit speaks for the target), float32 [G]:
    contribution: estimated with norms, gates and attention weights as constants; estimate_local: by the plain gradient;
    logprob_change, kl_divergence: measured, NaN where it was not. `measure` says of what the estimates are changes: log-prob or,
    for several tokens together, mostly log-odds. top1: int64 [G], the most probable token then where the first of the targets
    changes, -1 where it was not measured; top1_texts: by id; differs: bool [G], whether another token than with nothing hidden
    becomes the most probable. control: bool [G], drawn at random to hold the estimates against; content: bool [G], neither part
    of the template nor an attention sink. forwards: what measuring took, in forward passes of the sequence. reliable: whether
    these estimates hold by the rule of `analyses.candidates`; None where all units were measured. by_layer: None where it was
    not stored.
    """

    steps: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    probability: float
    instead: tuple[int, str] | None
    measure: str
    names: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    contribution: np.ndarray
    estimate_local: np.ndarray
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    differs: np.ndarray
    control: np.ndarray
    content: np.ndarray
    agreement: Agreement
    reliable: bool | None
    forwards: float
    evidence: tuple[Evidence, ...] = ()
    routes: tuple[Route, ...] = ()
    heads: HeadCut | None = None
    by_layer: LayerEstimates | None = None

    def __post_init__(self) -> None:
        for name in (
            "kinds", "positions", "contribution", "estimate_local", "logprob_change", "kl_divergence", "top1", "differs",
            "control", "content",
        ):  # fmt: skip
            if len(getattr(self, name)) != len(self.names):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, expected {len(self.names)}")

    @property
    def step(self) -> int:
        """The first produced token of the target."""
        return self.steps[0]

    @property
    def changes_of(self) -> str:
        """What the estimates are changes of, in words."""
        return "log-odds" if self.measure == "log-odds" else "log-probability"

    @property
    def measured(self) -> np.ndarray:
        """bool [G], which units were really hidden."""
        return np.isfinite(self.logprob_change)

    def change(self, place: int) -> float:
        """What hiding a unit changes, nats: measured, or estimated where it was not."""
        return float((self.logprob_change if self.measured[place] else self.contribution)[place])

    def ranked(self, k: int | None = None, content_only: bool = False) -> list[int]:
        """The units that speak most for the target, strongest first: those that were measured, by what was measured; behind
        them the others, by contribution. content_only: without template and sinks."""
        counts = self.content if content_only and self.content.any() else np.ones(len(self.names), dtype=bool)
        measured = [place for place in np.argsort(self.logprob_change, kind="stable").tolist() if self.measured[place]]
        others = [place for place in np.argsort(self.contribution, kind="stable").tolist() if not self.measured[place]]
        return [place for place in (*measured, *others) if counts[place]][:k]

    def used(self, k: int = 5) -> list[int]:
        """What the first screen names: of content, disjoint, in the order of `ranked`; of regions that lie within each other the
        smallest that has at least FINE_ENOUGH of the effect of the larger one."""
        chosen: list[int] = []
        ranked = self.ranked(content_only=True)
        taken: set[int] = set()
        for place in ranked:
            if len(chosen) == k:
                break
            if taken & {*self.positions[place]}:
                continue
            place = self._finest(place)
            chosen.append(place)
            taken |= {*self.positions[place]}
        return chosen

    def _finest(self, place: int) -> int:
        """The smallest measured unit within a unit that has nearly all of its effect."""
        if not self.measured[place] or len(self.positions[place]) == 1 or self.logprob_change[place] >= 0:
            return place
        enough = FINE_ENOUGH * self.logprob_change[place]
        within = [
            other
            for other in np.flatnonzero(self.measured & (self.logprob_change <= enough)).tolist()
            if {*self.positions[other]} < {*self.positions[place]}
        ]
        return min(within, key=lambda other: len(self.positions[other]), default=place)


@dataclass(frozen=True)
class Explanation:
    """An answer, and what it used. tokens: the prompt's and the produced ones; matrix: float32 [T, N], the contribution of each
    position of the prompt to each produced token by itself (change of its log-odds), None where it was not asked for; meta: JSON
    types only."""

    targets: tuple[ExplainedTarget, ...]
    tokens: TokenTable
    images: tuple[ImageRecord, ...]
    n_prompt: int
    generated_text: str
    matrix: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.tokens) - self.n_prompt, self.n_prompt)
        if self.matrix is not None and self.matrix.shape != shape:
            raise ValueError(f"matrix has shape {self.matrix.shape}, expected {shape}")

    def said(self, target: ExplainedTarget) -> str:
        """The target's text without spaces around it; all that was said where it has no other."""
        return target.text.strip() or self.generated_text.strip()

    def is_all(self, target: ExplainedTarget) -> bool:
        """Whether a target is all that was said."""
        return target.text.strip() == self.generated_text.strip()
