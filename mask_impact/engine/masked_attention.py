"""Attention of sequences that hide some keys from some queries, each in its own way.

Shapes: V sequences that begin at the same position, R rows of each, of which r are looked at together; S positions; N keys; H
heads in K key/value groups; D head dimension, E that of values.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from mask_impact.engine.packing import Run
from mask_impact.engine.states import LayerState
from mask_impact.engine.taps import up_to_own
from mask_impact.engine.variants import Variants

ATTENTION_BYTES = 2**27  # of the logits and weights of all rows' attention at once


class Edges:
    """What the V sequences of a run hide. variants: of all sequences, in their order; device: of the attention."""

    def __init__(self, variants: Variants, run: Run, device: torch.device) -> None:
        masks, some = variants.masks, variants[torch.arange(run.which.start, run.which.stop)]
        self.ablation, self._last = masks.ablation, some.last
        self._keys = masks.keys[some.mask].to(device)  # [V, S]
        self._heads = None if masks.heads is None else masks.heads[some.mask].to(device)  # [V, H] or [V, L, H]
        if masks.queries is None:
            self._queries = torch.zeros(1, run.n_rows, dtype=torch.bool, device=device)
            self._queries[:, -1] = True
        else:
            self._queries = masks.queries[some.mask, masks.n_positions - run.n_rows :].to(device)  # [V, R]

    def hidden(self, layer: int, rows: slice, n_keys: int, grouped: tuple[int, ...]) -> torch.Tensor | None:
        """bool [V, 1, 1, r, N], the edges that are hidden in a layer, from some of the rows to the last N positions; [V, K, H/K,
        r, N] where not in all heads, whose shape is `grouped`; None for none."""
        open_here = self._last >= layer
        if not open_here.any():
            return None
        edges = self._keys[:, self._keys.shape[1] - n_keys :].unsqueeze(1) & self._queries[:, rows].unsqueeze(2)
        edges = edges[:, None, None]
        if self._heads is not None:
            heads = self._heads if self._heads.dim() == 2 else self._heads[:, layer]
            edges = edges & heads.view(*grouped, 1, 1)
        return edges if open_here.all() else edges & open_here.to(edges.device).view(-1, 1, 1, 1, 1)


def attend_packed(query, key, value, state: LayerState, layer: int, runs: Sequence[tuple[Run, Edges | None]]):
    """[1, P, H, E] of all rows; query: [1, H, P, D]; key: [1, K, P, D]; value: [1, K, P, E]. state: the keys and values of all
    positions with nothing hidden, of which a sequence sees those before its rows; runs: with what each hides, None for nothing.
    """
    parts = [
        _attend(run.of(query), run.of(key), run.of(value), state, layer, edges).flatten(0, 1) for run, edges in runs
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous().unsqueeze(0)


def attend_whole(query, key, value, state: LayerState, layer: int, edges: Edges | None) -> torch.Tensor:
    """[V, S, H, E] of V whole sequences; query: [V, H, S, D]; key: [V, K, S, D]; value: [V, K, S, E]; see `attend_packed`."""
    return _attend(query, key, value, state, layer, edges)


def _attend(query, key, value, state: LayerState, layer: int, edges: Edges | None) -> torch.Tensor:
    """[V, R, H, E] for V variants of R rows, over the keys of the positions before the rows and the variant's own.

    query: [V, H, R, D]; key: [V, K, R, D]; value: [V, K, R, E].
    """
    n_variants, n_heads, n_rows, head_dim = query.shape
    n_groups, n_keys = key.shape[1], state.keys.shape[1]
    visible = state.seen_by(n_rows)
    earlier = tuple(part[:, : n_keys - n_rows].to(query.dtype) for part in (state.keys, state.values))
    grouped = (n_variants, n_groups, n_heads // n_groups)
    ablation = "mask" if edges is None else edges.ablation
    plain = ablation == "mask" and state.softcap is None and state.sinks is None
    if plain and n_rows * n_heads >= n_groups * head_dim:  # then keys of all are less than their logits
        hidden = None if edges is None else edges.hidden(layer, slice(None), n_keys, grouped)
        return _attend_fused(query, key, value, earlier, visible, hidden, state.scaling)
    at_once = max(1, ATTENTION_BYTES // (8 * n_variants * n_heads * n_keys))
    wide = torch.promote_types(query.dtype, torch.float32)
    own, others = ([part.to(wide) for part in pair] for pair in ((key, value), earlier))
    parts = []
    for first in range(0, n_rows, at_once):
        rows = slice(first, min(first + at_once, n_rows))
        hidden = None if edges is None else edges.hidden(layer, rows, n_keys, grouped)
        seen = None if visible is None else visible[rows]
        asked = query[:, :, rows].to(wide).reshape(*grouped, -1, head_dim)
        parts.append(_attend_rows(asked, *own, others, seen, hidden, state, ablation))
    output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return output.to(query.dtype)


def _attend_fused(query, key, value, earlier, visible, hidden, scaling: float) -> torch.Tensor:
    """The same by torch's own function, each variant with all keys of its own."""
    n_variants, _, n_rows, _ = query.shape
    keys, values = (
        torch.cat([before.expand(n_variants, -1, -1, -1), own], dim=2)
        for before, own in zip(earlier, (key, value), strict=True)
    )
    n_keys = keys.shape[2]
    seen = up_to_own(n_rows, n_keys, query.device) if visible is None else visible
    if hidden is not None:
        seen = (seen & ~hidden).flatten(1, 2)  # [V, 1 or H, R, N]
    output = scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scaling, enable_gqa=True)
    if hidden is not None or visible is not None:
        output = output.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)  # nothing is left to see
    return output.transpose(1, 2)


def _attend_rows(query, key, value, earlier, visible, hidden, state: LayerState, ablation: str) -> torch.Tensor:
    """[V, r, H, E] for some rows. query: [V, K, H/K, r, D]; earlier: keys and values of the positions before all rows;
    visible: bool [r, N] or None for all; hidden: as Edges.hidden gives it."""
    n_earlier = earlier[0].shape[1]
    n_variants, n_groups, _, r, _ = query.shape

    def over_earlier(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """[V, K, H/K, r, a] x [K, a, b]: one product for all variants."""
        flat = left.transpose(0, 1).flatten(1, 3)
        return (flat @ right).view(n_groups, n_variants, *query.shape[2:4], right.shape[-1]).transpose(0, 1)

    def over_own(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """[V, K, H/K, r, a] x [V, K, a, b]"""
        return (left.flatten(2, 3) @ right).view(*query.shape[:4], right.shape[-1])

    query = query * state.scaling
    logits = torch.cat([over_earlier(query, earlier[0].transpose(1, 2)), over_own(query, key.transpose(2, 3))], dim=-1)
    if state.softcap is not None:
        logits.div_(state.softcap).tanh_().mul_(state.softcap)
    unseen = None if visible is None else ~visible
    if ablation == "mask" and hidden is not None:
        unseen = hidden if unseen is None else hidden | unseen
    if unseen is not None:
        logits.masked_fill_(unseen, float("-inf"))
    weights = softmax_beside(logits, state.sinks)
    if unseen is not None:
        weights.nan_to_num_(0.0)  # where nothing is left to see, nothing is attended to
    kept = weights if hidden is None or ablation == "mask" else weights.masked_fill(hidden, 0.0)
    output = over_earlier(kept[..., :n_earlier], earlier[1]) + over_own(kept[..., n_earlier:], value)
    if kept is not weights and ablation == "mean-value":
        n_keys = logits.shape[-1]
        seen = torch.ones(r, n_keys, device=query.device) if visible is None else visible
        seen = seen.to(query.dtype)
        total = (seen[:, :n_earlier] @ earlier[1]) + (seen[:, n_earlier:] @ value)  # [V, K, r, D]
        mean = total / seen.sum(dim=-1, keepdim=True)
        output = output + (weights - kept).sum(-1, keepdim=True) * mean.unsqueeze(2)
    return output.flatten(1, 2).transpose(1, 2)


def softmax_beside(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """The keys' weights of logits [..., K, H/K, r, N]; sinks: [H], logits of each head that take their part and bring nothing."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    beside = sinks.to(logits).view(*logits.shape[-4:-2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, beside], dim=-1), dim=-1)[..., :-1]
