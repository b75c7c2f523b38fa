"""From which position on a variant can differ, where some queries see keys behind them: image tokens that see each other both
ways, a prompt that sees all of itself. What is visible is what the model's masks said.

Dimensions: S positions, m masks, n variants.
"""

import torch

from mask_impact.engine.kept import Kept
from mask_impact.engine.variants import Masks, Variants


def starts_of(kept: Kept, variants: Variants) -> torch.Tensor:
    """int64 [n], the first position that each variant can change; S where it changes none."""
    seen = _seen_ahead(kept)
    if seen is None:
        return variants.starts
    return with_seers(kept, _reached(variants.masks, seen)[variants.mask])


def with_seers(kept: Kept, starts: torch.Tensor) -> torch.Tensor:
    """int64 [n], the first positions that change where everything from `starts` on does: what sees a position that changes in
    some layer changes in the next one."""
    seen = _seen_ahead(kept)
    if seen is None:
        return starts
    n = len(seen)
    first = torch.cat([seen.int().argmax(dim=0), torch.tensor([n])])  # of each key the first query that sees it
    of_all_behind = first.flip(0).cummin(0).values.flip(0)
    while not torch.equal(starts, further := of_all_behind[starts]):
        starts = further
    return starts


def looks_ahead_at_the_last(kept: Kept) -> bool:
    """Whether an earlier query sees the last position."""
    n = kept.n_positions
    return int(with_seers(kept, torch.tensor([n - 1]))[0]) < n - 1


def _reached(masks: Masks, seen: torch.Tensor) -> torch.Tensor:
    """int64 [m], the first query that sees a key which is hidden from it; S where none does."""
    n = masks.n_positions
    if masks.queries is None:
        return torch.where(masks.keys.any(dim=1), n - 1, n)
    reached = masks.queries & (masks.keys.float() @ seen.t().float() > 0)
    return torch.where(reached.any(dim=1), reached.int().argmax(dim=1), n)


def _seen_ahead(kept: Kept) -> torch.Tensor | None:
    """bool [S, S], which keys a query sees in any layer, those up to its own at least; None where none sees a later one."""
    masks = {id(state.visible): state.visible for state in kept.states if state.looks_ahead}
    if not masks:
        return None
    seen = torch.ones(kept.n_positions, kept.n_positions, dtype=torch.bool).tril()
    for visible in masks.values():
        seen |= visible.cpu()
    return seen
