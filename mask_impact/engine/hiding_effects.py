"""What hiding a key from one layer's attention does along a gradient at the attention's output: each by itself, and sums of them
as matrix products, which take a fraction of the time.

With p the weight of a key, o the output, v the key's value and g the gradient, hiding it does p / (1 - p) (o - v) . g; see
`engine.backward`. Shapes: H heads in K groups, r queries, N keys, D head dimension.
"""

from dataclasses import dataclass

import torch


def hiding_effects(weights: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """(o' - o) . g of hiding each key, [..., N], for weights p and along = v . g, both [..., N].

    p_j / (1 - p_j) (o.g - v_j.g), and for a key with more than half of the weight p_j (sum of the others' p v.g / sum of the
    others' p - v_j.g), where 1 - p_j would have no digits. A query that sees one key only loses all of it.
    """
    mean = (weights * along).sum(-1, keepdim=True)
    effects = weights / (1 - weights).clamp_min(0.25) * (mean - along)
    largest, dominant = weights.max(-1, keepdim=True)
    others = weights.scatter(-1, dominant, 0.0)
    rest = others.sum(-1, keepdim=True)
    tiny = torch.finfo(weights.dtype).tiny
    of_others = torch.where(
        rest > 0, (others * along).sum(-1, keepdim=True) / rest.clamp_min(tiny), torch.zeros_like(rest)
    )
    recomputed = largest * (of_others - along.gather(-1, dominant))
    return torch.where(largest > 0.5, effects.scatter(-1, dominant, recomputed), effects)


def values_along(gradient: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """v_j . g_i, [H, r, N]; gradient: [H, r, D]; values: [K, N, D]."""
    n_heads, n_rows, head_dim = gradient.shape
    grouped = gradient.reshape(len(values), -1, head_dim)
    return (grouped @ values.transpose(1, 2)).view(n_heads, n_rows, values.shape[1])


@dataclass(frozen=True)
class Factored:
    """The effects of hiding keys before it is said along which gradient: sums of them are matrix products then.

    Of all keys but each query's dominant one the effect is factor * (o - v) . g; of that one as in `hiding_effects`. values:
    [K, N, D], less their mean, which takes no part in o - v; mean: [K, 1, D]. factors: [H, r, N], p / (1 - p), 0 at the dominant
    key. output: [H, r, D], o less the mean. dominant: int64 [H, r]; share: [H, r], its weight; of_others: [H, r, D], the output
    without it, less the mean; alone: bool [H, r], where nothing else is seen.
    """

    values: torch.Tensor
    mean: torch.Tensor
    factors: torch.Tensor
    output: torch.Tensor
    dominant: torch.Tensor
    share: torch.Tensor
    of_others: torch.Tensor
    alone: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, values: torch.Tensor) -> "Factored":
        """weights: [H, r, N], which are used up; values: [K, N, D]."""
        (n_heads, n_rows, n_keys), (n_groups, _, head_dim) = weights.shape, values.shape
        mean = values.mean(dim=1, keepdim=True)
        values = values - mean
        share, dominant = weights.max(dim=-1)
        others = weights.scatter_(-1, dominant.unsqueeze(-1), 0.0)
        rest = others.sum(dim=-1, keepdim=True)
        of_others = (others.view(n_groups, -1, n_keys) @ values).view(n_heads, n_rows, head_dim)
        at_dominant = values.repeat_interleave(n_heads // n_groups, dim=0).gather(
            1, dominant.unsqueeze(-1).expand(-1, -1, head_dim)
        )
        output = of_others + share.unsqueeze(-1) * at_dominant
        factors = others.div_((1 - others).clamp_min_(0.25))
        of_others = of_others / rest.clamp_min(torch.finfo(rest.dtype).tiny)
        return cls(values, mean, factors, output, dominant, share, of_others, rest.squeeze(-1) == 0)

    def of_keys(self, some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `by_query` needs of some keys, bool [N]: [H, r, D + 1] and bool [H, r], whether the dominant one is among them."""
        n_heads, n_rows, _ = self.factors.shape
        chosen = torch.cat([self.values, torch.ones_like(self.values[..., :1])], dim=-1)[:, some]
        factors = self.factors[..., some].reshape(len(self.values), -1, int(some.sum()))
        return (factors @ chosen).view(n_heads, n_rows, -1), some[self.dominant]

    def along(self, gradient: torch.Tensor) -> "AlongGradient":
        """gradient: [H, r, D]."""
        n_heads, _, head_dim = gradient.shape
        share, groups = self.share, n_heads // len(self.values)
        values = self.values.repeat_interleave(groups, dim=0)
        own = (self.output * gradient).sum(dim=-1)
        at_dominant = values.gather(1, self.dominant.unsqueeze(-1).expand(-1, -1, head_dim))
        at_dominant = (at_dominant * gradient).sum(dim=-1)
        others = (self.of_others * gradient).sum(dim=-1)
        nothing = -(self.mean.repeat_interleave(groups, dim=0) * gradient).sum(dim=-1)  # an output of 0, less the mean
        recomputed = share * (torch.where(self.alone, nothing, others) - at_dominant)
        plain = share / (1 - share).clamp_min(0.25) * (own - at_dominant)
        return AlongGradient(self, gradient, own, torch.where(share > 0.5, recomputed, plain))


@dataclass(frozen=True)
class AlongGradient:
    """The same along a gradient [H, r, D]. own: [H, r], o . g less that of the mean; at_dominant: [H, r], the effect of hiding
    the dominant key."""

    factored: Factored
    gradient: torch.Tensor
    own: torch.Tensor
    at_dominant: torch.Tensor

    def by_key(self) -> torch.Tensor:
        """[H, N], summed over the queries."""
        factors, values = self.factored.factors, self.factored.values
        n_heads, _, n_keys = factors.shape
        joined = torch.cat([self.gradient, self.own.unsqueeze(-1)], dim=-1)
        summed = factors.transpose(1, 2) @ joined  # [H, N, D + 1]
        along = (summed[..., :-1].reshape(len(values), -1, n_keys, values.shape[-1]) * values.unsqueeze(1)).sum(dim=-1)
        found = summed[..., -1] - along.view(n_heads, n_keys)
        return found.scatter_add_(1, self.factored.dominant, self.at_dominant)

    def by_query(self, source: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[H, r], summed over the keys that `of_keys` was asked for."""
        summed, has_dominant = source
        along = (summed[..., :-1] * self.gradient).sum(dim=-1)
        return self.own * summed[..., -1] - along + torch.where(has_dominant, self.at_dominant, 0.0)
