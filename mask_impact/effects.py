"""Effect on the answer: what hiding a token from the last query, in one layer or a window of layers, does to the output.

A layer's update can change much and the answer not at all; here the changed state goes on through the later layers to the
logits (`replay`). Knows no files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from mask_impact.engine import MaskingEngine
from mask_impact.errors import ExactnessError, UsageError
from mask_impact.replay import ROWS_OF_LOGITS, Variants, replay, unmasked_logits

# How far the logits of the unmasked row may be off the model's own, relative to their spread, before no numbers are given.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class StepEffects:
    """What each of n variants does to the token that the unmasked model produced at a step.

    logit_change, logprob_change (nats, negative: less likely), kl_divergence (nats, KL of the unmasked to the masked
    distribution over the vocabulary): float32 [n]; top1: int64 [n], the token that is the most probable then. produced:
    id of the produced token. floor: the same three, absolute, for a variant that hides nothing and takes the same path.
    """

    logit_change: np.ndarray
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    produced: int
    floor: tuple[float, float, float]


def windows(n_layers: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last layer, int64 [L] each, of the window of `width` layers around each layer, cut at the ends."""
    if not 1 <= width <= n_layers:
        raise UsageError(f"a window of {width} layers does not fit: the model has {n_layers}")
    centre = torch.arange(n_layers)
    return (centre - (width - 1) // 2).clamp_min(0), (centre + width // 2).clamp_max(n_layers - 1)


def each_layer_and_token(positions: torch.Tensor, n_positions: int, n_layers: int, width: int = 1) -> Variants:
    """Variant l * P + i hides positions[i] in the window around layer l; positions: int64 [P]."""
    n = len(positions)
    hidden = torch.zeros(n, n_positions, dtype=torch.bool)
    hidden[torch.arange(n), positions] = True
    first, last = windows(n_layers, width)
    return Variants(hidden.repeat(n_layers, 1), first.repeat_interleave(n), last.repeat_interleave(n))


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
    _check(engine, logits)
    n = len(variants)
    logit_change, logprob_change, kl_divergence = (np.zeros(n, dtype=np.float32) for _ in range(3))
    top1 = np.full(n, likeliest, dtype=np.int64)
    seen = sees(engine, variants)
    places = np.flatnonzero(seen.numpy())
    floor = _floor(engine, len(places), logits, own, produced)
    to_run = replace(variants, hidden=variants.hidden[seen], first=variants.first[seen], last=variants.last[seen])
    on_rows(n - len(places))
    for rows, differences in replay(engine, to_run):
        here = places[rows]
        changes = _changes(differences, logits, own, produced)
        logit_change[here], logprob_change[here], kl_divergence[here] = (one.cpu().numpy() for one in changes[:3])
        top1[here] = changes[3].cpu().numpy()
        on_rows(len(here))
    return StepEffects(logit_change, logprob_change, kl_divergence, top1, produced, floor)


def sees(engine: MaskingEngine, variants: Variants) -> torch.Tensor:
    """bool [n]: whether the last query sees anything of what a variant hides, in any of its layers."""
    n_positions = variants.hidden.shape[1]
    visible = torch.zeros(len(engine.states), n_positions, dtype=torch.bool)
    for index, state in enumerate(engine.states):
        n_keys = state.keys.shape[1]
        visible[index, n_positions - n_keys :] = True if state.visible is None else state.visible.cpu()
    sees_in = variants.hidden.float() @ visible.t().float() > 0  # [n, L]
    layers = torch.arange(len(engine.states))
    inside = (variants.first[:, None] <= layers) & (layers <= variants.last[:, None])
    some_head = variants.heads is None or bool(variants.heads.any())
    return (sees_in & inside).any(dim=1) & some_head


def _changes(
    differences: torch.Tensor, logits: torch.Tensor, own: torch.Tensor, produced: int
) -> tuple[torch.Tensor, ...]:
    """The effects of logits that differ by [k, vocabulary] from the model's own."""
    differences = differences.to(own.device, torch.float64)
    changed = logits.double() + differences
    masked = torch.log_softmax(changed, dim=-1)
    kl = (own.exp() * (own - masked)).nan_to_num(0.0).sum(-1).clamp_min(0.0)  # 0 log 0 = 0
    return (
        differences[:, produced].float(),
        (masked[:, produced] - own[produced]).float(),
        kl.float(),
        changed.argmax(dim=-1),
    )


def _check(engine: MaskingEngine, logits: torch.Tensor) -> None:
    """ExactnessError where the row that hides nothing does not give the model's own logits."""
    replayed = unmasked_logits(engine).to(logits.device, torch.float64)
    error = float((replayed - logits).abs().max() / logits.double().std().clamp_min(1e-12))
    tolerance = TOLERANCE[engine.states[0].entered.dtype]
    if not error <= tolerance:
        raise ExactnessError(
            f"the replayed model differs from the model by {error:.1e} of its logits' spread ({tolerance:.0e} allowed): no "
            "effects are given; the model's output is not formed as its architecture says"
        )


def _floor(
    engine: MaskingEngine, n: int, logits: torch.Tensor, own: torch.Tensor, produced: int
) -> tuple[float, float, float]:
    """What variants that hide nothing show, among as many rows as the others go with."""
    n = min(n, ROWS_OF_LOGITS)
    if n == 0:
        return 0.0, 0.0, 0.0
    start = torch.zeros(n, dtype=torch.int64)
    nothing = torch.zeros(n, engine.n_positions, dtype=torch.bool)
    differences = torch.cat([part for _, part in replay(engine, Variants(nothing, start, start))])
    changes = _changes(differences, logits, own, produced)
    return tuple(float(one.abs().max()) for one in changes[:3])
