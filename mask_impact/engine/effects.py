"""Effect on the answer: what hiding a token from the last query, in one layer or a window of layers, does to the output.

A layer's update can change much and the answer not at all; here the changed state goes on through the later layers to the
logits (`replay`). Knows no files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor

from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.replay import Masks, Variants, replay, unmasked_logits
from mask_impact.errors import ExactnessError, UsageError

SAMPLE = 8  # variants that are replayed once more to see what rounding does
LARGE = 20.0  # of a logit's growth
OTHER_SCALE = 1.37  # no power of two: every difference is rounded at other digits
# How far the logits of the unmasked row may be off the model's own, relative to their spread, before no numbers are given.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class StepEffects:
    """What each of n variants does to the token that the unmasked model produced at a step.

    logit_change, logprob_change (nats, negative: less likely), kl_divergence (nats, KL of the unmasked to the masked
    distribution over the vocabulary): float32 [n]; top1: int64 [n], the token that is the most probable then. produced:
    id of the produced token; probability: of it, with nothing hidden; likeliest: the most probable token then, which
    generation need not have taken. floor: the largest of the first three, absolute, for a variant that hides nothing and
    takes the same path. rounding: how far logprob_change is from itself in other rounding, in a sample of the variants: the
    median, relative to it, and the largest difference, in nats.
    """

    logit_change: np.ndarray
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    produced: int
    floor: tuple[float, float, float]
    probability: float
    likeliest: int
    rounding: tuple[float, float]


def windows(n_layers: int, width: int | str) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last layer, int64 [W] each: of the window of `width` layers around each layer, cut at the ends (W = L), or
    of the only window with `all` layers (W = 1)."""
    if width == "all":
        return torch.tensor([0]), torch.tensor([n_layers - 1])
    if type(width) is not int or not 1 <= width <= n_layers:
        raise UsageError(f"a window of {width} layers does not fit: the model has {n_layers}")
    centre = torch.arange(n_layers)
    return (centre - (width - 1) // 2).clamp_min(0), (centre + width // 2).clamp_max(n_layers - 1)


def each_window_and_group(
    groups: Sequence[Sequence[int]],
    n_positions: int,
    n_layers: int,
    width: int | str = 1,
    queries: str = "last",
    ablation: str = "mask",
) -> Variants:
    """Variant w * G + g hides the positions groups[g] in the w-th of `windows`, from the last query or from all."""
    keys = torch.zeros(len(groups), n_positions, dtype=torch.bool)
    for place, positions in enumerate(groups):
        keys[place, list(positions)] = True
    everyone = torch.ones_like(keys) if queries == "all" else None
    return in_each(Masks(keys, everyone, ablation=ablation), windows(n_layers, width))


def in_each(masks: Masks, layers: tuple[torch.Tensor, torch.Tensor]) -> Variants:
    """Variant w * m + i is mask i in the w-th of the layers' windows (first and last layer, int64 [W])."""
    first, last = (part.repeat_interleave(len(masks)) for part in layers)
    return Variants(masks, torch.arange(len(masks)).repeat(len(layers[0])), first, last)


def check_cost(variants: Variants, n_layers: int, n_steps: int, max_cost: int) -> None:
    """UsageError where the variants, at each of n_steps, take more than max_cost rows through layers."""
    cost = variants.row_layers(n_layers) * n_steps
    if cost > max_cost:
        forwards = cost / (variants.masks.n_positions * n_layers)
        raise UsageError(
            f"this takes {cost:,} rows through layers, as many as {forwards:,.0f} forward passes of this prompt, and "
            f"{max_cost:,} are allowed: hide fewer tokens or larger groups of them, produce fewer tokens, or allow it with "
            f"`max_cost` {cost}"
        )


class AtEachStep(LogitsProcessor):
    """Measures effects at every step of a `generate()` of a single sequence, when the produced token is known: as the last
    of its logits processors, which changes nothing.

    variants_of: what to hide at a step, asked when the model's forward is done. on_begin(step, number of variants) and
    on_rows(how many more are done) are told how it gets on.
    """

    def __init__(
        self,
        engine: MaskingEngine,
        variants_of: Callable[[], Variants],
        on_begin: Callable[[int, int], None],
        on_rows: Callable[[int], None],
    ) -> None:
        self.engine, self.variants_of, self.on_begin, self.on_rows = engine, variants_of, on_begin, on_rows
        self.steps: list[StepEffects] = []
        self._logits: torch.Tensor | None = None  # as the model gives them, [vocabulary]

    @contextmanager
    def attached(self) -> Iterator["AtEachStep"]:
        """While the block is open the model's logits are seen."""

        def keep(module, args, output) -> None:
            self._logits = output.logits[0, -1]

        handle = self.engine.model.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        variants = self.variants_of()
        self.on_begin(len(self.steps), len(variants))
        self.steps.append(measure_effects(self.engine, variants, self._logits, int(scores[0].argmax()), self.on_rows))
        return scores


@torch.no_grad()
def measure_effects(
    engine: MaskingEngine,
    variants: Variants,
    logits: torch.Tensor,
    produced: int | None = None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> StepEffects:
    """The effects of `variants` at the step that `engine` measured last; logits: [vocabulary], the model's own there.
    produced: the token that it produced (None: the most probable one).

    A variant that hides nothing which the query sees has exactly none, without being run. on_rows: told how many variants
    are done. Raises ExactnessError where the replayed model is not the model.
    """
    own = torch.log_softmax(logits.double(), dim=-1)
    likeliest = int(logits.argmax())
    produced = likeliest if produced is None else produced
    n = len(variants)
    logit_change, logprob_change, kl_divergence = (np.zeros(n, dtype=np.float32) for _ in range(3))
    top1 = np.full(n, likeliest, dtype=np.int64)
    seen = sees(engine, variants)
    places = np.flatnonzero(seen.numpy())
    seen_ones = variants[seen]
    _check(engine, seen_ones, logits)
    floor = _floor(engine, seen_ones, logits, own, produced)
    on_rows(n - len(places))
    for which, differences in replay(engine, seen_ones):
        here = places[which.numpy()]
        changes = changes_of(differences, logits, own, produced)
        logit_change[here], logprob_change[here], kl_divergence[here] = (one.cpu().numpy() for one in changes[:3])
        top1[here] = changes[3].cpu().numpy()
        on_rows(len(here))
    probability = float(own[produced].exp())
    rounding = _rounding(engine, seen_ones, logprob_change[places], logits, own, produced)
    return StepEffects(
        logit_change, logprob_change, kl_divergence, top1, produced, floor, probability, likeliest, rounding
    )


def sees(engine: MaskingEngine, variants: Variants) -> torch.Tensor:
    """bool [n]: whether a query sees anything of what a variant hides from it, in any of its layers."""
    masks = variants.masks
    inside = variants.first <= variants.last
    if masks.heads is not None:
        inside = inside & masks.heads.flatten(1).any(dim=1)[variants.mask]
    if masks.queries is not None:  # causality alone; what a window hides anyway changes nothing when it is run
        return (variants.starts < masks.n_positions) & inside
    visible = torch.zeros(len(engine.states), masks.n_positions, dtype=torch.bool)
    for index, state in enumerate(engine.states):
        n_keys = state.keys.shape[1]
        seen = state.seen_by(1)
        visible[index, masks.n_positions - n_keys :] = True if seen is None else seen[0].cpu()
    sees_in = masks.keys.float() @ visible.t().float() > 0  # [m, L]
    layers = torch.arange(len(engine.states))
    within = (variants.first[:, None] <= layers) & (layers <= variants.last[:, None])
    return (sees_in[variants.mask] & within).any(dim=1) & inside


def changes_of(
    differences: torch.Tensor, logits: torch.Tensor, own: torch.Tensor, produced: int
) -> tuple[torch.Tensor, ...]:
    """The effects of logits that differ by [k, vocabulary] from the model's own, logits and own (their log-probabilities)
    [vocabulary]: changes of the produced token's logit and of its log-probability, KL divergence, most probable token; [k]."""
    differences = differences.to(own.device)
    probabilities = own.exp().to(differences.dtype)
    # log p'(t) - log p(t) = d(t) - log(1 + sum p expm1(d)), and KL = log(1 + sum p expm1(d)) - sum p d: nothing is
    # subtracted that is large.
    grown = (probabilities * differences.expm1()).sum(-1, dtype=torch.float64).log1p()
    # Of tokens as improbable as float32 has no number for, expm1 would have none either; there no digits are short.
    large = differences.amax(-1) > LARGE
    grown[large] = torch.logsumexp(own + differences[large].double(), dim=-1)
    mean = (probabilities * differences).sum(-1, dtype=torch.float64)
    at_token = differences[:, produced].double()
    return (
        at_token.float(),
        (at_token - grown).float(),
        (grown - mean).clamp_min(0.0).float(),
        (logits.to(differences.dtype) + differences).argmax(dim=-1),
    )


def _check(engine: MaskingEngine, variants: Variants, logits: torch.Tensor) -> None:
    """ExactnessError where what hides nothing, in as many rows as any variant has, does not give the model's own logits."""
    start = int(variants.starts.min()) if len(variants) else engine.n_positions - 1
    check_replayed(engine, unmasked_logits(engine, start), logits.unsqueeze(0))


def check_replayed(engine: MaskingEngine, replayed: torch.Tensor, logits: torch.Tensor) -> None:
    """ExactnessError where the replayed logits are not the model's own, both [R, vocabulary]."""
    logits = logits.double()
    errors = (replayed.to(logits) - logits).abs().amax(-1) / logits.std(dim=-1).clamp_min(1e-12)
    error, tolerance = float(errors.max()), TOLERANCE[engine.states[0].entered.dtype]
    if not error <= tolerance:
        raise ExactnessError(
            f"the replayed model differs from the model by {error:.1e} of its logits' spread ({tolerance:.0e} allowed): no "
            "effects are given; the model's output is not formed as its architecture says"
        )


def _floor(
    engine: MaskingEngine, variants: Variants, logits: torch.Tensor, own: torch.Tensor, produced: int
) -> tuple[float, float, float]:
    """What variants that hide nothing show, where they go the longest way that one of `variants` goes."""
    if not len(variants):
        return 0.0, 0.0, 0.0
    start = int(variants.starts.min())
    nothing = torch.zeros(1, engine.n_positions, dtype=torch.bool)
    zeros = torch.zeros(SAMPLE, dtype=torch.int64)
    none = Variants(Masks(nothing, None if variants.masks.queries is None else nothing), zeros, zeros, zeros)
    differences = torch.cat([part for _, part in replay(engine, none, start)])
    changes = changes_of(differences, logits, own, produced)
    return tuple(float(one.abs().max()) for one in changes[:3])


def _rounding(
    engine: MaskingEngine,
    variants: Variants,
    logprob_change: np.ndarray,
    logits: torch.Tensor,
    own: torch.Tensor,
    produced: int,
) -> tuple[float, float]:
    """How far a sample of the variants is from its logprob_change when all that is rounded is rounded elsewhere."""
    if not len(variants):
        return 0.0, 0.0
    sample = np.unique(np.linspace(0, len(variants) - 1, SAMPLE).astype(np.int64))
    again = np.zeros(len(sample))
    for which, differences in replay(engine, variants[torch.from_numpy(sample)], scale=OTHER_SCALE):
        again[which.numpy()] = changes_of(differences, logits, own, produced)[1].cpu().numpy()
    first = logprob_change[sample]
    apart, size = np.abs(again - first), np.maximum(np.abs(first), np.abs(again))
    relative = np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)
    return float(np.median(relative)), float(apart.max())
