"""What is asked about: produced tokens, and what hiding does to their probability, in one sequence that holds them all.

The sequence is the prompt with what was produced behind it, run once; the output at a position gives the token that follows.
Several targets are taken together: their log-probabilities (or log-odds) are added. Shapes: T targets, n variants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mask_impact.engine.effects import changes_of, check_replayed, sees
from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.replay import Variants, logit_differences, logits_of, outputs


@dataclass(frozen=True)
class Target:
    """A produced token. row: the position whose output it was taken from; token: its id; instead: id of the token that it is
    held against, None for all others."""

    row: int
    token: int
    instead: int | None = None


@dataclass(frozen=True)
class TargetEffects:
    """What each of n variants does to the targets together.

    logprob_change: float32 [n], nats, added over the targets; of a target with `instead` the change of the ratio of both
    probabilities. kl_divergence: float32 [n], nats, added. top1: int64 [n], the most probable token at the first target where
    that is another than with nothing hidden, or at the first target where there is none; differs: int64 [n], the number of that
    target, -1 where there is none. probability: of all targets in a row, with nothing hidden.
    """

    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    differs: np.ndarray
    probability: float


def value_of(logits: torch.Tensor, targets: Sequence[Target], measure: str = "log-odds") -> torch.Tensor:
    """[T], of each target its log-odds or log-probability, of logits [T, vocabulary]; held against one other token, the
    logarithm of the ratio of both, which is the same by either measure."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.stack([_value(row, one, measure) for row, one in zip(wide, targets, strict=True)])


def _value(logits: torch.Tensor, target: Target, measure: str) -> torch.Tensor:
    own = logits[target.token]
    if target.instead is not None:
        return own - logits[target.instead]
    if measure == "log-prob":
        return own - torch.logsumexp(logits, dim=0)
    others = logits.index_fill(0, torch.tensor([target.token], device=logits.device), float("-inf"))
    return own - torch.logsumexp(others, dim=0)


@torch.no_grad()
def measure_targets(
    engine: MaskingEngine,
    variants: Variants,
    targets: Sequence[Target],
    logits: torch.Tensor,
    on_rows: Callable[[int], None] = lambda n: None,
) -> TargetEffects:
    """What the variants do to the targets, in the sequence that the engine measured last. logits: [T, vocabulary], the model's
    own at the targets' rows. on_rows: told how many variants are done. Raises ExactnessError where the replayed model is not
    the model."""
    n, rows = len(variants), [one.row for one in targets]
    own = torch.log_softmax(logits.double(), dim=-1)
    likeliest = logits.argmax(dim=-1).cpu().numpy()
    change, kl = np.zeros(n), np.zeros(n)
    top1, differs = np.full(n, likeliest[0], dtype=np.int64), np.full(n, -1, dtype=np.int64)
    seen = sees(engine, variants)
    places = np.flatnonzero(seen.cpu().numpy())
    some = variants[seen]
    on_rows(n - len(places))
    for which, states in outputs(engine, some, rows=rows):
        check_replayed(engine, logits_of(engine, states[0]), logits)
        here = places[which.numpy()]
        for number, target in enumerate(targets):
            differences = logit_differences(engine, states[:, number], 1.0).to(own.device)
            at_token, of_token, divergence, first = changes_of(differences, logits[number], own[number], target.token)
            if target.instead is not None:
                of_token = at_token - differences[:, target.instead]
            change[here] += of_token.double().cpu().numpy()
            kl[here] += divergence.double().cpu().numpy()
            first = first.cpu().numpy()
            new = (first != likeliest[number]) & (differs[here] < 0)
            top1[here[new]], differs[here[new]] = first[new], number
        on_rows(len(here))
    tokens = torch.tensor([one.token for one in targets], device=own.device)
    probability = float(own.gather(1, tokens.unsqueeze(1)).sum().exp())
    return TargetEffects(change.astype(np.float32), kl.astype(np.float32), top1, differs, probability)
