"""Closed-form masked attention and distances: pure tensor functions that know no model.

Notation (VL_IMPLEMENTATION.md, Definitions): one query at the last position, H heads in K key/value groups, N keys in the
cache, head dimension D. What is small ([H, N], [H, D]) is computed in float64 where the device has it; the differences of
all keys, [N, H, D], are formed in float32, or float64 where the inputs are float64.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class QueryAttention:
    """Attention of one query, with what is needed to remove any single key from it.

    weights: [H, N]; output: [H, D], the attention output o_h; remainder: [H, D], what rounding took from `output`;
    values: [K, N, D]; dominant: int64 [H], the key with the largest weight of each head; dominant_difference: [H, D],
    o' - o for that key, recomputed from the logits with -inf (-o where no other key is visible). replacement: [K, D], the
    value that a removed key has then, its weight being kept; None where its logit becomes -inf.
    """

    weights: torch.Tensor
    output: torch.Tensor
    remainder: torch.Tensor
    values: torch.Tensor
    dominant: torch.Tensor
    dominant_difference: torch.Tensor
    replacement: torch.Tensor | None = None

    @property
    def n_keys(self) -> int:
        """Number of keys (visible or not)."""
        return self.weights.shape[1]

    def of_keys(self, keys: torch.Tensor) -> "QueryAttention":
        """The same attention, with only some of its keys to be removed; keys: int64 [n], ascending.

        The output stays that over all keys. A dominant key that is not among them is -1.
        """
        place = torch.full((self.n_keys,), -1, device=keys.device)
        place[keys] = torch.arange(len(keys), device=keys.device)
        return replace(self, weights=self.weights[:, keys], values=self.values[:, keys], dominant=place[self.dominant])


def query_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    visible: torch.Tensor | None = None,
    ablation: str = "mask",
    *,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> QueryAttention:
    """Attention of the query [H, D] over keys [K, N, D] and values [K, N, E] of any dtype; visible: bool [N], None for all.

    softcap: c where the logits are c tanh(logits / c). sinks: [H], a logit of each head for a key without a value, which takes
    its part of the weight and can't be removed. ablation: what removing a key means, one of settings.ABLATIONS: its logit is
    -inf, its value is 0, or its value is the mean of the visible keys' values.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    wide = dtype if values.device.type == "mps" else torch.float64
    n_heads, head_dim = query.shape
    n_groups, n_keys, _ = keys.shape
    values = values.to(dtype)
    wide_values, value_dim = values.to(wide), values.shape[-1]
    grouped = query.view(n_groups, n_heads // n_groups, head_dim).to(wide)
    logits = torch.matmul(grouped, keys.to(wide).transpose(1, 2)) * scaling  # [K, H/K, N]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    sinks = None if sinks is None else sinks.to(wide).view(n_groups, -1, 1)
    weights = _softmax(logits, sinks)
    output = torch.matmul(weights, wide_values)  # [K, H/K, E]

    # o' - o = p (o' - v) with o' from the logits: needs no 1 - p.
    dominant = weights.argmax(dim=-1, keepdim=True)
    others = _softmax(logits.scatter(-1, dominant, float("-inf")), sinks)
    value = wide_values.gather(1, dominant.expand(-1, -1, value_dim))
    difference = weights.gather(-1, dominant) * (torch.matmul(others, wide_values) - value)
    # Where no other key is visible all logits are -inf and softmax gives NaN: nothing is attended to, o' = 0.
    if n_keys == 1 or visible is not None:
        difference = torch.where(torch.isfinite(others).all(-1, keepdim=True), difference, -output)

    replacement = None
    if ablation != "mask":
        seen = wide_values if visible is None else wide_values[:, visible]
        replacement = (torch.zeros_like(seen[:, 0]) if ablation == "zero-value" else seen.mean(dim=1)).to(dtype)

    rounded = output.to(dtype)
    return QueryAttention(
        weights=weights.to(dtype).view(n_heads, n_keys),
        output=rounded.view(n_heads, value_dim),
        remainder=(output - rounded).to(dtype).view(n_heads, value_dim),
        values=values,
        dominant=dominant.view(n_heads),
        dominant_difference=difference.to(dtype).view(n_heads, value_dim),
        replacement=replacement,
    )


def _softmax(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """The keys' weights [K, H/K, N]; sinks: [K, H/K, 1], which take the rest."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]


N_ASKED, FEWEST_SEEING = 128, 32  # queries


def attention_received(query: torch.Tensor, keys: torch.Tensor, scaling: float, visible: torch.Tensor) -> torch.Tensor:
    """float32 [N], the mean weight that each key gets from the queries behind it, over them and over heads; NaN where so few of
    them see it that they do not speak for all: fewer than FEWEST_SEEING, and than half of what any key has. query: [H, n, D], of
    the last n positions; keys: [K, N, D]; visible: bool [n, N]. Of more than N_ASKED queries so many are asked, evenly spread."""
    (n_heads, n_rows, head_dim), (n_groups, n_keys, _) = query.shape, keys.shape
    rows = torch.linspace(0, n_rows - 1, min(n_rows, N_ASKED)).long().unique().to(query.device)
    visible = visible[rows]
    grouped = query[:, rows].float().reshape(n_groups, -1, head_dim)
    logits = (grouped @ keys.float().transpose(1, 2) * scaling).view(n_heads, len(rows), n_keys)
    weights = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1).nan_to_num(0.0).mean(dim=0)
    own = rows + (n_keys - n_rows)
    others = visible & (torch.arange(n_keys, device=keys.device) != own[:, None])
    n_seeing = others.sum(dim=0)
    received = (weights * others).sum(dim=0) / n_seeing.clamp_min(1)
    enough = (n_seeing >= FEWEST_SEEING) | (2 * n_seeing >= n_seeing.max())
    return received.masked_fill(~enough | (n_seeing == 0), float("nan"))


def masking_differences(
    attention: QueryAttention, start: int, stop: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """o' - o of every head for each masked key in start..stop-1: [stop - start, H, D], written to `out` where it is given.

    With p the weight of the masked key, o' - o = p / (1 - p) * (o - v): exact, and well conditioned for p <= 1/2. At most
    one key of a head can have more than that; its difference has been recomputed from the logits. Where the value is
    replaced by r instead, it is p * (r - v).
    """
    n_heads, head_dim = attention.output.shape
    n_groups = attention.values.shape[0]
    weights = attention.weights[:, start:stop]  # [H, n]
    if attention.replacement is not None:
        changes = (attention.replacement.unsqueeze(1) - attention.values[:, start:stop]).transpose(0, 1)  # [n, K, D]
        grouped = weights.t().reshape(-1, n_groups, n_heads // n_groups, 1)
        replaced = (grouped * changes.unsqueeze(2)).view(-1, n_heads, head_dim)
        return replaced if out is None else out.copy_(replaced)
    # The dominant key is replaced below; clamping keeps its factor finite.
    factors = (weights / (1 - weights).clamp_min(0.25)).t().reshape(-1, n_groups, n_heads // n_groups, 1)
    values = attention.values[:, start:stop].transpose(0, 1).unsqueeze(2)  # [n, K, 1, D]
    out = values.new_empty(stop - start, n_heads, head_dim) if out is None else out
    differences = out.view(-1, n_groups, n_heads // n_groups, head_dim)
    # Where v is close to o (repeated tokens) their float32 difference is exact, and what rounding took from o counts.
    torch.sub(attention.output.view(n_groups, -1, head_dim), values, out=differences)
    differences.add_(attention.remainder.view(n_groups, -1, head_dim)).mul_(factors)
    differences = differences.view(-1, n_heads, head_dim)

    heads = torch.arange(n_heads, device=differences.device)
    inside = (attention.dominant >= start) & (attention.dominant < stop)
    row = (attention.dominant - start).clamp(0, stop - start - 1)
    recomputed = inside & (weights[heads, row] > 0.5)
    kept = differences[row, heads]
    differences[row, heads] = torch.where(recomputed.unsqueeze(-1), attention.dominant_difference, kept)
    return differences


# Elements of a tensor [n, width] of differences to work on at once on a CPU: what is made of them stays in its cache.
CPU_BLOCK_ELEMENTS = 2**18


def blocks(differences: torch.Tensor) -> list[slice]:
    """The rows [n, ...] to work on at once."""
    n_rows = differences.shape[0]
    step = n_rows
    if differences.device.type == "cpu" and n_rows:
        step = max(1, CPU_BLOCK_ELEMENTS // (differences.numel() // n_rows))
    return [slice(start, start + step) for start in range(0, n_rows, max(1, step))]


@dataclass(frozen=True)
class Lengths:
    """What L2 and cosine distance between y and y + d follow from.

    l2: |d|; along: y.d / |y|; across: |e| with e the part of d across y, all three of one shape; norm: |y|, broadcastable
    to it.
    """

    l2: torch.Tensor
    along: torch.Tensor
    across: torch.Tensor
    norm: torch.Tensor


def lengths(baseline: torch.Tensor, differences: torch.Tensor) -> Lengths:
    """The lengths over the last dimension: y [..., D] and d [n, ..., D] give l2, along, across [n, ...] and norm [...].

    Where d takes away all of y, to the last bit, along is -|y| and across 0 exactly.
    """
    norm = torch.linalg.vector_norm(baseline, dim=-1)
    direction = baseline / norm.unsqueeze(-1).clamp_min(torch.finfo(norm.dtype).tiny)
    parts = blocks(differences)
    if len(parts) < 2:
        return _lengths(baseline, differences, norm, direction)
    return joined([_lengths(baseline, differences[rows], norm, direction) for rows in parts])


def joined(parts: list[Lengths]) -> Lengths:
    """The lengths of all rows; parts: one at least, of rows that follow each other."""
    if len(parts) == 1:
        return parts[0]
    of_rows = (torch.cat([getattr(part, name) for part in parts]) for name in ("l2", "along", "across"))
    return Lengths(*of_rows, parts[0].norm)


def _lengths(baseline: torch.Tensor, differences: torch.Tensor, norm: torch.Tensor, direction: torch.Tensor) -> Lengths:
    l2 = torch.linalg.vector_norm(differences, dim=-1)
    along = (differences * direction).sum(-1)
    across = torch.linalg.vector_norm(torch.addcmul(differences, along.unsqueeze(-1), direction, value=-1), dim=-1)
    # On a GPU asking whether it may be so would stall the queue: there all rows are compared.
    if differences.device.type != "cpu" or (along <= (1e-5 - 1) * norm).any():
        nothing_left = (differences == -baseline).all(-1)
        along = torch.where(nothing_left, -norm, along)
        across = across.masked_fill(nothing_left, 0.0)
    return Lengths(l2, along, across, norm)


def cosine_distance(of: Lengths) -> torch.Tensor:
    """1 - cos(y, y + d), with its digits however small it is: |y|^2 |e|^2 / (|y||y+d| (|y||y+d| + y.(y+d))).

    Where y.(y+d) < 0 nothing cancels in 1 - cos itself. One vector zero: 1; both: 0.
    """
    parallel = of.along + of.norm  # y.(y+d) / |y|
    masked = torch.hypot(parallel, of.across)  # |y+d|
    acute = of.across * (of.across / masked) / (masked + parallel)
    cosine = torch.where(parallel >= 0, acute, 1 - parallel / masked)
    return torch.where(masked == 0, (of.norm > 0).to(cosine.dtype), cosine)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which differences and distances are formed: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
