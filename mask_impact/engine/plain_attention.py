"""Softmax attention as it is defined, in float64, with a key that can be taken away: what verification holds the engine against.

Shapes: H heads in K key/value groups, n queries, N keys, D head dimension, E that of values.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from mask_impact.engine.self_check import SELF_CHECK_TOLERANCE


@dataclass(frozen=True)
class PlainAttention:
    """One call of a model's attention, of one sequence: the last n queries [H, n, D]; key [K, N, D]; value [K, N, E]; mask:
    [.., 1 or H, n, N] or [.., N], bool or what is added to the logits, None for causal; options: what else the model gives it;
    with_all: whether it has a softcap and sinks, which not every backend knows."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: dict[str, Any]
    with_all: bool = True

    @property
    def wide(self) -> torch.dtype:
        """In which everything is computed."""
        return torch.float32 if self.query.device.type == "mps" else torch.float64

    def _spread(self, part: torch.Tensor) -> torch.Tensor:
        """Of key/value groups, for each head."""
        return part.to(self.wide).repeat_interleave(len(self.query) // len(part), dim=0)

    def logits(self) -> torch.Tensor:
        """[H, n, N], -inf where a query does not see a key."""
        scaling, softcap = self.options.get("scaling"), self.options.get("softcap")
        scaling = self.query.shape[-1] ** -0.5 if scaling is None else scaling
        logits = self.query.to(self.wide) @ self._spread(self.key).transpose(1, 2) * scaling
        if self.with_all and softcap:
            logits = softcap * torch.tanh(logits / softcap)
        n, n_keys = logits.shape[1:]
        if self.mask is not None and self.mask.dim() == 4 and self.mask.dtype != torch.bool:
            row = self.mask[0, :, -n:, :n_keys]
            there = row > torch.finfo(row.dtype).min / 2
            return (logits + row.masked_fill(~there, 0.0)).masked_fill(~there, -math.inf)
        if self.mask is not None and self.mask.dim() == 4:
            return logits.masked_fill(~self.mask[0, :, -n:, :n_keys], -math.inf)
        # A kernel that is told its window; where there are masks, none means that nothing is out of it.
        behind = torch.arange(n_keys - n, n_keys, device=logits.device)[:, None] - torch.arange(
            n_keys, device=logits.device
        )
        there = (behind >= 0) & (behind < (self.options.get("sliding_window") or n_keys))
        if self.mask is not None:
            there = there & self.mask[:1, -n_keys:].bool()
        return logits.masked_fill(~there, -math.inf)

    def output(self, hidden: int | None = None, ablation: str = "mask") -> torch.Tensor:
        """[H, n, E], with the key `hidden` taken away from all of the queries. ablation: other than mask for one query only."""
        logits, value, sinks = self.logits(), self._spread(self.value), self.options.get("s_aux")
        if hidden is not None and ablation == "mask":
            logits[..., hidden] = -math.inf
        elif hidden is not None:
            seen = torch.isfinite(logits[0, -1])
            value[:, hidden] = 0.0 if ablation == "zero-value" else value[:, seen].mean(dim=1)
        if self.with_all and sinks is not None:
            logits = torch.cat([logits, sinks.to(logits).reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)], dim=-1)
        # Without any key the output is zero by definition.
        return torch.softmax(logits, dim=-1).nan_to_num(0.0)[..., : value.shape[1]] @ value

    def like(self, own: torch.Tensor) -> "PlainAttention | None":
        """The same as the model's own backend knows it, with a softcap and sinks or without; None where it gives something else.
        own: what it gives, [H, n, E]."""
        tolerance = max(SELF_CHECK_TOLERANCE[torch.float32], SELF_CHECK_TOLERANCE[own.dtype])  # norms work in float32
        for with_all in (True, False):
            plain = replace(self, with_all=with_all)
            found = plain.output()
            if bool(torch.linalg.vector_norm(found - own) <= tolerance * torch.linalg.vector_norm(found)):
                return plain
        return None
