"""What a run produces, as frozen dataclasses with shapes and units, checked when they are made.

Knows numpy only: no models, no files. Dimensions: L layers, S_t sequence length at step t (prompt length + t), V
variants in the order of `Result.variants` (`Full`, `Attn`, `Head_0` ..), T steps, P_t positions that were masked at step t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mask_impact.results.explanations import Agreement, Explanation
from mask_impact.results.patches import PatchEffects
from mask_impact.results.tokens import ImageRecord, TokenTable, check_shape


def variant_names(n_heads: int, groups: tuple[str, ...] = ("full", "attn", "heads")) -> tuple[str, ...]:
    """The measured quantities in file order; `groups` is any non-empty choice of full, attn, heads."""
    names: list[str] = []
    if "full" in groups:
        names.append("Full")
    if "attn" in groups:
        names.append("Attn")
    if "heads" in groups:
        names.extend(f"Head_{head}" for head in range(n_heads))
    return tuple(names)


@dataclass(frozen=True)
class Candidate:
    """One candidate for the next token; probability is over the whole vocabulary, temperature 1."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Estimated:
    """Where only some of a step's effects were measured: what is said of all of them, and how that compares.

    change: float32 [L, G], the change of the produced token's log-probability to first order, nats. control: bool [L, G], what
    was measured because it was drawn at random. agreement: of the estimates with what was measured; reliable: whether they agree
    well enough to trust that the strongest were measured. forwards, all_forwards: what measuring took and what measuring all
    takes, in forward passes of the sequence.
    """

    change: np.ndarray
    control: np.ndarray
    agreement: Agreement
    reliable: bool
    forwards: float
    all_forwards: float


@dataclass(frozen=True)
class EffectRecord:
    """What hiding a position in the layers around a layer does to the produced token, for the positions of its step or for
    groups of positions, G in number (P_t without groups).

    logit_change, logprob_change (nats, negative: less likely), kl_divergence (nats, KL(unmasked || masked) over the whole
    vocabulary): float32 [L, G]. top1: int64 [L, G], the most probable token then; top1_texts: their texts by id.
    floor: the largest logit_change, logprob_change and kl_divergence, as absolute values, where nothing was hidden.
    groups: the (name, positions) that were hidden together; None for each position of the step by itself. likeliest: the
    most probable token with nothing hidden (None: the produced one, which generation need not have taken for that).
    rounding: how far logprob_change is from itself in other rounding, in a sample: the median, relative to it, and the
    largest difference, in nats (None: not known). estimated: None where all were measured; else the numbers of those that were
    not are NaN, and their top1 is -1.
    """

    logit_change: np.ndarray
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    floor: tuple[float, float, float]
    groups: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    likeliest: int | None = None
    rounding: tuple[float, float] | None = None
    estimated: Estimated | None = None

    def __post_init__(self) -> None:
        for name in ("logprob_change", "kl_divergence", "top1"):
            check_shape(name, getattr(self, name), self.logit_change.shape)

    @property
    def measured(self) -> np.ndarray:
        """bool [L, G]"""
        return self.top1 >= 0

    @property
    def below_floor(self) -> np.ndarray:
        """bool [L, G], where the log-probability changes by no more than it does where nothing is hidden."""
        return np.abs(self.logprob_change) <= self.floor[1]

    def top1_changed(self, produced: int) -> np.ndarray:
        """bool [L, G], where another token than with nothing hidden is the most probable one."""
        return self.measured & (self.top1 != (produced if self.likeliest is None else self.likeliest))


@dataclass(frozen=True)
class StepRecord:
    """All measurements of one generation step, that is, of one produced token. A layer without a softmax attention is not
    measured: all of its numbers are NaN.

    positions: int64 [P_t], those that were masked, ascending; l2, cosine: float32 [L, P_t, V] (float64 from a float64
    model), distance between the quantity with and without the mask; attention: float32 [S_t], the weight each token gets
    from the query, mean over all layers and heads (kept to tell attention sinks, not a measure of impact); baseline_norm:
    float32 [L, V], the L2 norm of the unmasked quantity; self_check: float64 [L], largest relative difference between the
    model's own row and its recomputation; noise_floor: float64 [L], the Full L2 distance that rounding alone makes where
    full states had to ride (mixture of experts), NaN elsewhere. effect: None where it was not measured.
    """

    step: int
    token_id: int
    token_text: str
    candidates: tuple[Candidate, ...]
    positions: np.ndarray
    l2: np.ndarray
    cosine: np.ndarray
    attention: np.ndarray
    baseline_norm: np.ndarray
    self_check: np.ndarray
    noise_floor: np.ndarray
    seconds: float
    effect: EffectRecord | None = None

    def __post_init__(self) -> None:
        if self.l2.ndim != 3:
            raise ValueError(f"l2 has shape {self.l2.shape}, expected [layers, positions, variants]")
        n_layers, n_masked, n_variants = self.l2.shape
        check_shape("cosine", self.cosine, self.l2.shape)
        check_shape("positions", self.positions, (n_masked,))
        if n_masked and (self.positions[0] < 0 or self.positions[-1] >= self.n_positions):
            raise ValueError(f"positions {self.positions} are not within the sequence's {self.n_positions}")
        if not (np.diff(self.positions) > 0).all():
            raise ValueError(f"positions {self.positions} are not ascending")
        check_shape("baseline_norm", self.baseline_norm, (n_layers, n_variants))
        check_shape("self_check", self.self_check, (n_layers,))
        check_shape("noise_floor", self.noise_floor, (n_layers,))
        if self.effect is not None:
            groups = self.effect.groups
            check_shape("effect", self.effect.logit_change, (n_layers, n_masked if groups is None else len(groups)))

    @property
    def n_positions(self) -> int:
        """S_t, the length of the sequence at this step."""
        return len(self.attention)

    def of_layers(self, layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """l2 and cosine of some layers, ascending; without a copy where these are all."""
        if len(layers) == len(self.l2):
            return self.l2, self.cosine
        return self.l2[list(layers)], self.cosine[list(layers)]

    @cached_property
    def has_numbers(self) -> np.ndarray:
        """bool [L], the layers of which there is a distance or a norm."""
        found = np.isfinite(self.baseline_norm).any(axis=1)
        if not found.all():  # results of other tools have no norms
            found[~found] = np.isfinite(self.l2[~found]).any(axis=(1, 2))
        found.flags.writeable = False
        return found


def placed(values: np.ndarray, layers: Sequence[int] | None, n_layers: int) -> np.ndarray:
    """[L, ...], NaN in layers that are not among these (None: all are). values: of each of the layers, in their order."""
    if layers is None:
        return values
    found = np.full((n_layers, *values.shape[1:]), np.nan, dtype=values.dtype)
    found[list(layers)] = values
    return found


@dataclass(frozen=True)
class Result:
    """A whole run: one StepRecord for each produced token.

    tokens covers the prompt and every produced token (n_prompt + T entries; the last produced one was never masked).
    images are those of the prompt, in its order; TokenTable.image numbers them. sinks are positions that most attention
    collapses onto, excluded from rankings and named in summaries. meta is what
    goes into `NAME.meta.json` beside the records (model, dtype, versions, prompt, timings): JSON types only. answer: what the
    answer used; patches: what replacing pixels does; None where it was not asked for.
    """

    variants: tuple[str, ...]
    n_prompt: int
    tokens: TokenTable
    steps: tuple[StepRecord, ...]
    generated_text: str
    sinks: tuple[int, ...] = ()
    images: tuple[ImageRecord, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    answer: Explanation | None = None
    patches: PatchEffects | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a result needs at least one step")
        if len(self.tokens) != self.n_prompt + len(self.steps):
            raise ValueError(f"{len(self.tokens)} tokens, expected {self.n_prompt} + {len(self.steps)}")
        n_layers = self.steps[0].l2.shape[0]
        for index, step in enumerate(self.steps):
            if step.step != index:
                raise ValueError(f"step {step.step} stands at place {index}")
            check_shape(f"l2 of step {index}", step.l2, (n_layers, len(step.positions), len(self.variants)))
            check_shape(f"attention of step {index}", step.attention, (self.n_prompt + index,))
        n_cells, n_tokens = sum(image.n_tokens for image in self.images), int((self.tokens.image >= 0).sum())
        if n_cells != n_tokens:
            raise ValueError(f"the images have {n_cells} cells, the token table has {n_tokens} image tokens")

    @property
    def n_layers(self) -> int:
        """L, the number of decoder layers."""
        return self.steps[0].l2.shape[0]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were measured, ascending: all but those without a softmax attention. Tables have rows of these."""
        measured = np.any([step.has_numbers for step in self.steps], axis=0)
        return tuple(np.flatnonzero(measured).tolist())

    @property
    def has_effects(self) -> bool:
        """Whether the effect on the produced tokens was measured."""
        return all(step.effect is not None for step in self.steps)

    @property
    def n_rows(self) -> int:
        """Number of rows of the result's table: one for each step, measured layer, position and variant."""
        return len(self.layers) * sum(len(step.positions) for step in self.steps) * len(self.variants)

    def __repr__(self) -> str:
        return (
            f"Result({self.generated_text!r}: {len(self.steps)} steps x {len(self.layers)} layers x "
            f"{self.n_prompt}+ tokens x {len(self.variants)} variants = {self.n_rows:,} rows)"
        )
