"""Effect on the answer: what hiding a token from the last query, in one layer or a window of layers, does to the output.

A layer's update can change much and the answer not at all; here the changed state goes on through the later layers to the
logits (`replay`). Knows no files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from mask_impact.engine.kept import Kept
from mask_impact.engine.logits import logit_differences, logits_of
from mask_impact.engine.ownership import joined
from mask_impact.engine.replay import outputs, prove
from mask_impact.engine.sight import starts_of
from mask_impact.engine.tail import check_logits
from mask_impact.engine.variants import Masks, Variants
from mask_impact.errors import ExactnessError

SAMPLE = 8  # variants that are replayed once more to see what rounding does
LARGE = 20.0  # of a logit's growth
OTHER_SCALE = 1.37  # no power of two: every difference is rounded at other digits
# How far the logits of the unmasked row may be off the model's own, root mean square relative to their spread, before no numbers
# are given. What rounding alone makes: .035 in bfloat16 after 36 layers of random weights.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


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


class AtEachStep(LogitsProcessor):
    """Measures effects at every step of a `generate()` of a single sequence, when the produced token is known: as the last
    of its logits processors, which changes nothing.

    variants_of(logits, produced): what to hide at a step, asked when the model's forward is done; it is told the model's logits,
    [vocabulary], and the produced token's id. on_begin(step, number of variants) and on_rows(how many more are done) are told
    how it gets on.
    """

    def __init__(
        self,
        kept: Kept,
        variants_of: Callable[[torch.Tensor, int], Variants],
        on_begin: Callable[[int, int], None],
        on_rows: Callable[[int], None],
    ) -> None:
        self.kept, self.variants_of, self.on_begin, self.on_rows = kept, variants_of, on_begin, on_rows
        self.steps: list[StepEffects] = []
        self._logits: torch.Tensor | None = None  # as the model gives them, [vocabulary]

    @contextmanager
    def attached(self) -> Iterator["AtEachStep"]:
        """While the block is open the model's logits are seen."""

        def keep(module, args, output) -> None:
            self._logits = output.logits[0, -1]

        with joined(self.kept.decoder) as block, block.after(self.kept.model, keep):
            yield self

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        produced = int(scores[0].argmax())
        variants = self.variants_of(self._logits, produced)
        self.on_begin(len(self.steps), len(variants))
        share = n_told = 0

        def tell(more: float) -> None:
            nonlocal share, n_told
            share += more
            n_done = round(share * len(variants))
            self.on_rows(n_done - n_told)
            n_told = n_done

        self.steps.append(measure_effects(self.kept, variants, self._logits, produced, tell))
        return scores


@torch.no_grad()
def measure_effects(
    kept: Kept,
    variants: Variants,
    logits: torch.Tensor,
    produced: int | None = None,
    on_share: Callable[[float], None] = lambda share: None,
) -> StepEffects:
    """The effects of `variants` at the step that was measured last; logits: [vocabulary], the model's own there.
    produced: the token that it produced (None: the most probable one). on_share: told which share of all is done, part by part.
    Raises ExactnessError where the replayed model is not the model.
    """
    likeliest = int(logits.argmax())
    produced = likeliest if produced is None else produced
    asked = [(kept.n_positions - 1, produced)]
    logits = logits.unsqueeze(0)
    found = changes(kept, variants, asked, logits, on_share=on_share)
    seen = sees(kept, variants).cpu()
    floor = _floor(kept, variants[seen], asked, logits)
    rounding = _rounding(kept, variants[seen], found.logprob[0, seen.numpy()], asked, logits)
    probability = float(torch.log_softmax(logits[0].double(), dim=-1)[produced].exp())
    effects = (one[0].astype(np.float32) for one in (found.logit, found.logprob, found.kl))
    return StepEffects(*effects, found.top1[0], produced, floor, probability, likeliest, rounding)


@dataclass(frozen=True)
class Changes:
    """What n variants do at T rows. logit, logprob, kl: float64 [T, n], of the rows' tokens and of the whole distribution; other:
    float64 [T, n], of a second token's logit, where one was given; top1: int64 [T, n], the most probable token then."""

    logit: np.ndarray
    logprob: np.ndarray
    kl: np.ndarray
    other: np.ndarray
    top1: np.ndarray

    @classmethod
    def none(cls, logits: torch.Tensor, n: int) -> "Changes":
        """Of variants that do nothing."""
        zeros = (np.zeros((len(logits), n)) for _ in range(4))
        return cls(*zeros, np.repeat(logits.argmax(dim=-1).cpu().numpy()[:, None], n, axis=1))


def changes(
    kept: Kept,
    variants: Variants,
    asked: Sequence[tuple[int, int]],
    logits: torch.Tensor,
    others: Sequence[int | None] | None = None,
    directly: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> Changes:
    """What the variants do at some rows of the sequence that was run last. asked: (row, token) of each; logits: [T,
    vocabulary], the model's own there; others: of each row a second token, or None; directly: see `replay`; on_share: told which
    share of all is done, part by part.

    A variant that hides nothing which the query sees has exactly no effect, without being run. Raises ExactnessError where the
    replayed model is not the model.
    """
    prove(kept)
    if directly:  # else what hides nothing is held against the model
        check_logits(logits_of(kept, kept.final[0, [row for row, _ in asked]]), logits)
    seen = sees(kept, variants).cpu()
    found, n, n_seen = Changes.none(logits, len(variants)), len(variants), int(seen.sum())
    on_share((n - n_seen) / max(1, n))
    of_seen = _of_all(
        kept, variants[seen], asked, logits, others, directly, on_layers=lambda share: on_share(share * n_seen / n)
    )
    for field in fields(found):
        getattr(found, field.name)[:, seen.numpy()] = getattr(of_seen, field.name)
    return found


@torch.no_grad()
def _of_all(
    kept: Kept,
    variants: Variants,
    asked: Sequence[tuple[int, int]],
    logits: torch.Tensor,
    others: Sequence[int | None] | None = None,
    directly: bool = False,
    scale: float = 1.0,
    **how: Any,
) -> Changes:
    """The changes of variants that are all run. scale, how: of replay.outputs."""
    own = torch.log_softmax(logits.double(), dim=-1)
    found = Changes.none(logits, len(variants))
    rows = [row for row, _ in asked]
    others = [None] * len(asked) if others is None else others
    for which, states in outputs(kept, variants, rows, scale=scale, directly=directly, **how):
        here = which.numpy()
        for number, ((_, token), other) in enumerate(zip(asked, others, strict=True)):
            if directly:
                differences = _subtracted(kept, states[1:, number], logits[number])
            else:
                differences = _checked(kept, states[:, number], logits[number], scale)
            changed = changes_of(differences, logits[number], own[number], token)
            for values, one in zip((found.logit, found.logprob, found.kl, found.top1), changed, strict=True):
                values[number, here] = one.cpu().numpy()
            if other is not None:
                found.other[number, here] = differences[:, other].double().cpu().numpy()
    return found


def _checked(kept: Kept, states: torch.Tensor, logits: torch.Tensor, scale: float) -> torch.Tensor:
    """[k, vocabulary], how far the logits of variants are from those of what hides nothing, which have to be the model's own
    [vocabulary]. states: [1 + k, hidden], those of what hides nothing first."""
    replayed, differences = logit_differences(kept, states, scale)
    check_replayed(kept, replayed.to(logits.device), logits)
    return differences.to(logits.device)


def _subtracted(kept: Kept, states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The same of variants that were run directly; states: [k, hidden]."""
    found = logits_of(kept, states.to(kept.states[-1].entered.dtype)).to(logits.device)
    return found.to(states.dtype) - logits.to(states.dtype)


def sees(kept: Kept, variants: Variants) -> torch.Tensor:
    """bool [n]: whether a query sees anything of what a variant hides from it, in any of its layers."""
    masks = variants.masks
    attending = torch.tensor([0, *(state.keys is not None for state in kept.states)]).cumsum(0)
    inside = attending[variants.last + 1] > attending[variants.first]  # some layer with an attention is among its own
    if masks.heads is not None:
        inside = inside & masks.heads.flatten(1).any(dim=1)[variants.mask]
    if masks.queries is not None:  # order alone; what a window hides anyway changes nothing when it is run
        return (starts_of(kept, variants) < masks.n_positions) & inside
    visible = torch.zeros(len(kept.states), masks.n_positions, dtype=torch.bool)
    for index, state in enumerate(kept.states):
        if state.keys is None:
            continue
        n_keys = state.keys.shape[1]
        seen = state.seen_by(1)
        visible[index, masks.n_positions - n_keys :] = True if seen is None else seen[0].cpu()
    sees_in = masks.keys.float() @ visible.t().float() > 0  # [m, L]
    layers = torch.arange(len(kept.states))
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


def apart(found: torch.Tensor, logits: torch.Tensor) -> float:
    """How far logits are from the model's own, both [..., vocabulary]: root mean square relative to their spread, the largest."""
    logits = logits.double()
    errors = (found.to(logits) - logits).square().mean(-1).sqrt() / logits.std(dim=-1).clamp_min(1e-12)
    return float(errors.max())


def check_replayed(kept: Kept, replayed: torch.Tensor, logits: torch.Tensor) -> None:
    """ExactnessError where the replayed logits are not the model's own, both [..., vocabulary]."""
    error, tolerance = apart(replayed, logits), TOLERANCE[kept.states[0].entered.dtype]
    if not error <= tolerance:
        raise ExactnessError(
            f"the replayed model differs from the model by {error:.1e} of its logits' spread ({tolerance:.0e} allowed): no "
            "effects are given; the model's output is not formed as its architecture says"
        )


def _floor(
    kept: Kept, variants: Variants, asked: Sequence[tuple[int, int]], logits: torch.Tensor
) -> tuple[float, float, float]:
    """What variants that hide nothing show, whose rows begin where those of some of `variants` do, the longest among them."""
    if not len(variants):
        return 0.0, 0.0, 0.0
    starts = starts_of(kept, variants).sort().values[_spread(len(variants))]
    nothing = torch.zeros(1, kept.n_positions, dtype=torch.bool)
    zeros = torch.zeros(len(starts), dtype=torch.int64)
    none = Variants(Masks(nothing, None if variants.masks.queries is None else nothing), zeros, zeros, zeros)
    found = _of_all(kept, none, asked, logits, starts=starts)
    return tuple(float(np.abs(one).max()) for one in (found.logit, found.logprob, found.kl))


def _rounding(
    kept: Kept,
    variants: Variants,
    logprob_change: np.ndarray,
    asked: Sequence[tuple[int, int]],
    logits: torch.Tensor,
) -> tuple[float, float]:
    """How far a sample of the variants is from its logprob_change when all that is rounded is rounded elsewhere."""
    if not len(variants):
        return 0.0, 0.0
    sample = _spread(len(variants))
    again = _of_all(kept, variants[sample], asked, logits, scale=OTHER_SCALE).logprob[0]
    first = logprob_change[sample.numpy()]
    apart, size = np.abs(again - first), np.maximum(np.abs(first), np.abs(again))
    relative = np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)
    return float(np.median(relative)), float(apart.max())


def _spread(n: int) -> torch.Tensor:
    """int64 [k], at most SAMPLE numbers from 0 to n - 1, both of them included."""
    return torch.linspace(0, n - 1, SAMPLE).long().unique()
