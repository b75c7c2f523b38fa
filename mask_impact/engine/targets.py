"""What is asked about: produced tokens, and what hiding does to their probability, in one sequence that holds them all.

The sequence is the prompt with what was produced behind it, run once; the output at a position gives the token that follows.
Several targets are taken together: their log-probabilities (or log-odds) are added. Shapes: T targets, n variants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mask_impact.engine.effects import Changes, changes, changes_of
from mask_impact.engine.kept import Kept
from mask_impact.engine.variants import Variants


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


def measure_targets(
    kept: Kept,
    variants: Variants,
    targets: Sequence[Target],
    logits: torch.Tensor,
    directly: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> TargetEffects:
    """What the variants do to the targets, in the sequence that was run last. logits: [T, vocabulary], the model's
    own at the targets' rows; the rest, and the errors, are those of effects.changes."""
    asked = [(one.row, one.token) for one in targets]
    others = [one.instead for one in targets]
    return _together(changes(kept, variants, asked, logits, others, directly, on_share), targets, logits)


def effects_of_logits(logits: torch.Tensor, changed: torch.Tensor, targets: Sequence[Target]) -> TargetEffects:
    """The same of a model that was run again as a whole. logits: [T, vocabulary], with nothing changed; changed: [n, T,
    vocabulary]."""
    own, found = torch.log_softmax(logits.double(), dim=-1), Changes.none(logits, len(changed))
    for number, one in enumerate(targets):
        wide = torch.promote_types(changed.dtype, torch.float32)
        differences = changed[:, number].to(wide) - logits[number].to(wide)
        parts = changes_of(differences, logits[number], own[number], one.token)
        for values, part in zip((found.logit, found.logprob, found.kl, found.top1), parts, strict=True):
            values[number] = part.cpu().numpy()
        if one.instead is not None:
            found.other[number] = differences[:, one.instead].double().cpu().numpy()
    return _together(found, targets, logits)


def _together(found: Changes, targets: Sequence[Target], logits: torch.Tensor) -> TargetEffects:
    """The effects on all targets, added."""
    against = np.array([one.instead is not None for one in targets])[:, None]
    change = np.where(against, found.logit - found.other, found.logprob).sum(axis=0)
    likeliest = logits.argmax(dim=-1).cpu().numpy()
    differs = found.top1 != likeliest[:, None]
    first = np.where(differs.any(axis=0), differs.argmax(axis=0), -1)
    top1 = found.top1[np.maximum(first, 0), np.arange(found.top1.shape[1])]
    own = torch.log_softmax(logits.double(), dim=-1)
    tokens = torch.tensor([one.token for one in targets], device=own.device)
    probability = float(own.gather(1, tokens.unsqueeze(1)).sum().exp())
    return TargetEffects(change.astype(np.float32), found.kl.sum(axis=0).astype(np.float32), top1, first, probability)
