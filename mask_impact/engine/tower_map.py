"""What hiding a key from all other queries changes in an attention, exactly: sums over queries of all keys at once.

Every query sees every key, as in a vision tower. Of each key j the sum over queries i of |W_o d_ij|^2, where in each head
d_ij = p / (1 - p) (o_i - v_j) is the closed form's change (`engine.attention`). With G = W_o^T W_o it is a sum over pairs of
heads, for which products of [queries, keys] with [queries, D] are enough: nothing of [queries, keys, hidden] is formed. Where a
key has more than half of a query's weight, o - v is small beside o, and the products cancel: these are few, one for each query
and head at most, and their d is formed itself and meets the other heads' by G. Where so little is left of the weight that 1 - p
and o - v have lost too many digits, the output is recomputed without the key. Keys may be hidden in units of several. Pure tensor
functions that know no model. Shapes: H heads of D, N keys, each also a query, in M units of u.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

Unit = int  # u: so many keys in a row are hidden together
AT_ONCE = 2**24  # numbers of an array
KEYS_AT_ONCE = 128  # so that a product of two heads' weights stays in a processor's cache
CANCELLED = 0.01  # of the terms' absolute values: a sum below has lost two digits
MOST = 0.5  # of a query's weight: above, the change is formed itself
# What has to be left of a weight for 1 - p and o - v to keep five digits, or ten: it is a hundred thousand roundings, or more.
# With less the output is recomputed.
LEFT = {torch.float32: 0.05, torch.float64: 1e-5}


@dataclass(frozen=True)
class Sums:
    """attention: [M], of each unit the sum of |W_o d|^2 over the queries outside of it; full: [probes, M], the same of (g . d)^2
    with each probe's gradients g, None without; output: [H, N, D], the attention's output."""

    attention: torch.Tensor
    full: torch.Tensor | None
    output: torch.Tensor


@torch.no_grad()
def reading(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    weight: torch.Tensor,
    unit: Unit = 1,
    gradients: torch.Tensor | None = None,
) -> Sums:
    """The sums, in float64. query: [H, N, D]; key, value: [K, N, D]; weight: W_o [hidden, H * D]; gradients: [probes, N, H, D]. N
    must be a multiple of the unit.

    On a CPU, where float64 takes eight times as long, sums are formed in float32 first (unless the inputs are wider), and in
    float64 again for units whose terms cancel to less than CANCELLED of them, as values that are nearly equal do.
    """
    repeats = query.shape[0] // key.shape[0]
    inputs = (query, *(one.repeat_interleave(repeats, dim=0) if repeats > 1 else one for one in (key, value)), weight)
    quick = value.device.type == "mps" or (value.device.type == "cpu" and value.dtype != torch.float64)
    one = _Attention(*inputs, scaling, unit, torch.float32 if quick else torch.float64)
    units = torch.arange(query.shape[1] // unit, device=query.device)
    attention, full, terms = _sums(one, units, gradients)
    cancelled = units[attention <= CANCELLED * terms]
    if quick and len(cancelled) and value.device.type == "cpu":
        attention[cancelled], again, _ = _sums(_Attention(*inputs, scaling, unit, torch.float64), cancelled, gradients)
        if full is not None:
            full[:, cancelled] = again
    return Sums(attention, full, one.output + one.middle)


def _sums(
    one: "_Attention", units: torch.Tensor, gradients: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Those of some units, and the sum of the absolute values of the terms that are added for it [m], float64 where there is
    one."""
    kept = torch.float32 if units.device.type == "mps" else torch.float64
    gradients = None if gradients is None else gradients.to(one.value)
    found: list[tuple[torch.Tensor, ...]] = []
    step = max(1, min(KEYS_AT_ONCE, AT_ONCE // (len(one.value) * one.value.shape[1])) // one.unit)
    for part in units.split(step):
        block = _Block(one, part)
        attention, terms = (sums.to(kept) for sums in block.squares())
        full = None if gradients is None else block.projected(gradients).to(kept)
        for places, squares, absolute in block.dominant():
            attention.index_add_(0, places, squares.to(kept))
            terms.index_add_(0, places, absolute.to(kept))
        if full is not None:
            for rows, places, d in block.recomputed():
                full.index_add_(1, places, (gradients[:, rows] * d).sum((-1, -2)).square().to(kept))
        found.append((attention, attention[None] if full is None else full, terms))
    joined, full, terms = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return joined, None if gradients is None else full, terms


class _Attention:
    """middle: [H, 1, D], the mean value; values and output [H, N, D] are from there, which changes no o - v and keeps digits;
    total: [H, 1, N], log of the sum of a query's exp(logits); gram: [H, D, H, D], W_o^T W_o; between: [H, H, N], o_h G o_g;
    counted: [H, N, D + 1], output with a 1 behind it."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        weight: torch.Tensor,
        scaling: float,
        unit: Unit,
        dtype: torch.dtype,
    ) -> None:
        query, key, value, weight = (tensor.to(dtype) for tensor in (query, key, value, weight))
        query = query * scaling
        heads, n, depth = value.shape
        self.query, self.key, self.weight, self.unit = query, key, weight, unit
        self.middle = value.mean(dim=1, keepdim=True)
        self.value = value - self.middle
        self.output = torch.empty_like(self.value)
        self.total = query.new_empty(heads, 1, n)
        self._kept: torch.Tensor | None = None
        step = max(1, AT_ONCE // (heads * n))
        for first in range(0, n, step):
            rows = slice(first, first + step)
            logits = key @ query[:, rows].transpose(1, 2)
            largest = logits.amax(dim=1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            sums = weights.sum(dim=1, keepdim=True)
            self.total[:, :, rows] = largest + sums.log()
            weights.div_(sums)
            self.output[:, rows] = weights.transpose(1, 2) @ self.value
            if step >= n:
                self._kept = weights
        self.counted = torch.cat([self.output, torch.ones_like(self.output[..., :1])], dim=-1)
        self.by_query = self.output.transpose(0, 1).contiguous()  # [N, H, D]
        self.gram = (weight.T @ weight).view(heads, depth, heads, depth)
        each = self.by_query
        moved = (each[:, head] @ self.gram[head].flatten(1) for head in range(heads))  # [N, H * D]
        self.between = torch.stack([(one.view_as(each) * each).sum(dim=-1).T for one in moved])

    def weights(self, keys: torch.Tensor) -> torch.Tensor:
        """[H, n, N], those of n keys."""
        if self._kept is not None:
            return self._kept[:, keys]
        return (self.key[:, keys] @ self.query.transpose(1, 2)).sub_(self.total).exp_()


class _Block:
    """Some of the units, m of them. chosen: [H, m, u, N], the weight that each query gives their keys; together: [H, m, N], the
    units; strong: bool [H, m, N], where that is most of a head's weight; factors: [H, m, u, N], weight / (1 - the unit's), 0
    where it is strong and of a unit's own queries; sums: [H, m, N], the factors of a unit."""

    def __init__(self, one: _Attention, units: torch.Tensor) -> None:
        self.one = one
        heads, n, _ = one.value.shape
        self.keys = units[:, None] * one.unit + torch.arange(one.unit, device=units.device)  # [m, u]
        self.values = one.value[:, self.keys.flatten()]  # [H, m * u, D]
        self.chosen = one.weights(self.keys.flatten()).view(heads, -1, one.unit, n)
        self.together = self.chosen.sum(dim=2) if one.unit > 1 else self.chosen[:, :, 0]
        numbers = torch.arange(n // one.unit, device=units.device)
        own = units[:, None] == numbers.repeat_interleave(one.unit)
        self.strong = (self.together > MOST) & ~own
        kept = ~(self.strong | own)
        self.factors = self.chosen * (kept / (1 - self.together).clamp_min(MOST / 2)).unsqueeze(2)
        self.sums = self.factors.sum(dim=2) if one.unit > 1 else self.factors[:, :, 0]

    def squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[m], the sum over queries of |W_o d|^2, d without the heads that are strong; and its terms' absolute values' sum."""
        of_pair = self._single if self.one.unit == 1 else self._several
        moved = torch.stack([self.values @ gram.permute(1, 2, 0) for gram in self.one.gram])  # [h, g, m * u, D]: G v_g
        heads = range(len(self.values))
        pairs = [(h, g) for h in heads for g in heads if h <= g]
        terms = torch.stack([torch.stack(of_pair(h, g, moved[h, g], moved[g, h])) for h, g in pairs])
        times = terms.new_tensor([1 if h == g else 2 for h, g in pairs])
        return tuple(torch.einsum("p,pnm->m", times, one) for one in (terms, terms.abs()))

    def _single(self, h: int, g: int, to_g: torch.Tensor, to_h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Terms [m], of two heads, of the sum over queries of c_h c_g (o_h - v_h) G (o_g - v_g); units of one key. to_g: G v_g,
        for o_h or v_h to meet; to_h: the same the other way round; both [m * u, D]."""
        both = self.sums[h] * self.sums[g]
        of_g = both @ self.one.counted[h]  # [m, D + 1]
        of_h = of_g if h == g else both @ self.one.counted[g]
        crossed = (of_g[:, :-1] * to_g).sum(-1) + (of_h[:, :-1] * to_h).sum(-1)
        return both @ self.one.between[h, g], -crossed, of_g[:, -1] * (self.values[h] * to_g).sum(-1)

    def _several(self, h: int, g: int, to_g: torch.Tensor, to_h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same for units of several keys, whose changes add up."""
        one, unit = self.one, self.one.unit
        first = (self.sums[h] * self.sums[g]) @ one.between[h, g]
        of_g = (self.sums[h].unsqueeze(1) * self.factors[g]).flatten(0, 1) @ one.output[h]  # [m * u, D]
        of_h = of_g if h == g else (self.factors[h] * self.sums[g].unsqueeze(1)).flatten(0, 1) @ one.output[g]
        crossed = (of_g * to_g + of_h * to_h).sum(-1).view(-1, unit).sum(-1)
        weights = self.factors[h] @ self.factors[g].transpose(1, 2)  # [m, u, u]
        values, others = (part.view(-1, unit, part.shape[-1]) for part in (self.values[h], to_g))
        return first, -crossed, (weights * (values @ others.transpose(1, 2))).sum((-1, -2))

    def projected(self, gradients: torch.Tensor) -> torch.Tensor:
        """[probes, m], the sum over queries of (g . d)^2, but for the pairs in which a head is strong."""
        found, weak = [], ~self.strong.any(dim=0)
        for probe in gradients.transpose(1, 2):  # [H, N, D]
            along = self.sums * (probe * self.one.output).sum(-1).unsqueeze(1)
            of_values = (self.values @ probe.transpose(1, 2)).view_as(self.factors)
            along = along - (self.factors * of_values).sum(dim=2)
            found.append((along.sum(dim=0) * weak).square().sum(dim=-1))
        return torch.stack(found)

    def dominant(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What the heads in which a unit has most of a query's weight add to |W_o d|^2, by themselves and with all other heads:
        which of the m units [c], that, and its terms' absolute values."""
        heads, _, depth = self.one.value.shape
        step = max(1, AT_ONCE // max(4 * heads * depth * self.one.unit, self.one.value.shape[1]))
        for head, strong in enumerate(self.strong):
            gram = self.one.gram[head].flatten(1)  # [D, H * D]
            for pairs in strong.nonzero().split(step) if strong.any() else ():
                places, rows = pairs.unbind(1)
                change, others = self._changes(rows, places)
                met = ((change[:, head] @ gram).view_as(change) * change).sum(dim=-1)  # [c, H]: d_h G d_g
                times = 2.0 - others.to(met)  # two that are strong meet twice
                times[:, head] = 1.0
                yield places, (met * times).sum(dim=-1), (met.abs() * times).sum(dim=-1)

    def recomputed(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of the pairs in which a unit has most of a query's weight in any head: the queries [c], which of the m units
        [c], and d [c, H, D]."""
        heads, _, depth = self.one.value.shape
        step = max(1, AT_ONCE // max(4 * heads * depth * self.one.unit, self.one.value.shape[1]))
        for pairs in self.strong.any(dim=0).nonzero().split(step):
            places, rows = pairs.unbind(1)
            yield rows, places, self._changes(rows, places)[0]

    def _changes(self, rows: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """d [c, H, D] of some pairs, and in which heads the unit is strong [c, H]."""
        weight = self.together[:, places, rows].T  # [c, H]
        middle = self._by_key[places]
        if self.one.unit > 1:  # of the unit's values, by their weights
            least = torch.finfo(weight.dtype).tiny  # a head may give the unit nothing
            shares = self.chosen[:, places, :, rows] / weight.clamp_min(least).unsqueeze(-1)
            middle = torch.einsum("chu,cuhd->chd", shares, middle)
        else:
            middle = middle[:, 0]
        left = 1 - weight
        little = left < LEFT[weight.dtype]
        if not little.any():
            change = self.one.by_query[rows].sub_(middle)
            return change.mul_((weight / left).unsqueeze(-1)), weight > MOST
        output = self.one.by_query[rows]
        for head in little.any(dim=0).nonzero().flatten().tolist():
            which = little[:, head].nonzero().flatten()
            output[which, head] = self._without(head, rows[which], places[which])
        # Without the unit: p (o' - v), without 1 - p; else p / (1 - p) (o - v).
        factors = weight / torch.where(little, 1.0, left)
        return output.sub_(middle).mul_(factors.unsqueeze(-1)), weight > MOST

    def _without(self, head: int, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[c, D], a head's output with the unit hidden, recomputed."""
        logits = self.one.query[head, rows] @ self.one.key[head].T
        others = torch.softmax(logits.scatter_(1, self.keys[places], -torch.inf), dim=-1)
        return others @ self.one.value[head]

    @cached_property
    def _by_key(self) -> torch.Tensor:
        """[m, u, H, D], the values."""
        return self.values.view(len(self.values), *self.keys.shape, -1).permute(1, 2, 0, 3).contiguous()
