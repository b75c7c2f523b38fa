"""Rules for operations that move numbers and change none: shapes, parts, casts, devices, copies."""

import math
from typing import Any

import torch

from mask_impact.engine.riding.tensor import (
    QUESTIONS,
    NoRule,
    Riding,
    facing,
    functions_named,
    refuse_dropout,
    rule_for,
    written,
)

ASKING = (
    "dim", "size", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "stride",
    "element_size", "get_device", "is_inference", "isnan", "isinf", "isfinite", "__len__", "__hash__", "__repr__", "is_same_size",
    "is_set_to", "storage_offset", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
    "new_empty",
)  # fmt: skip
QUESTIONS.update(functions_named(*ASKING))

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@rule_for("contiguous", "clone", "detach", "alias")
def _same(function, x: Riding, **how) -> Riding:
    return x.like(function(x, **how), x.z, x.pending or x.held, update=x.update, values=x.values)


@rule_for("to", "float", "half", "bfloat16", "double", "type_as", "cuda", "cpu")
def _cast(function, x: Riding, *args, **how) -> Riding:
    """y is rounded or moved; z and d are moved only. A plain tensor that becomes like a riding one stays plain."""
    y = function(x, *(arg.plain if isinstance(arg, Riding) else arg for arg in args), **how)
    if not isinstance(x, Riding):
        return y
    if y.dtype not in FLOATS:
        raise NoRule(f"a cast to {y.dtype}")
    update = None if x.update is None else x.update.to(y.device)
    moved = (x.pending if y.device == x.z.device else None) or x.held.to(y.device)
    return x.like(y, x.z.to(y.device), moved, update=update, values=x.values)


@rule_for("dropout")
def _dropout(function, x: Riding, p: float = 0.5, training: bool = True, inplace: bool = False) -> Riding:
    if training and p > 0:
        refuse_dropout(x.ride.name)
    return x


def _lead_of(shape: torch.Size, x: Riding) -> int:
    """How many dimensions of a new shape stand before the row: the most that are the same rows."""
    n, numel = math.prod(x.shape[: x.lead]), x.z[0].numel()
    fits = [
        lead for lead in range(1, len(shape) + 1) if math.prod(shape[:lead]) == n and math.prod(shape[lead:]) == numel
    ]
    if not fits:
        raise NoRule(f"a shape {tuple(shape)} that joins rows of {tuple(x.shape)}")
    return fits[-1]


@rule_for("reshape", "view", "flatten", "unflatten", "reshape_as", "view_as")
def _reshape(function, x: Riding, *args, **how) -> Riding:
    if args and isinstance(args[0], torch.dtype):
        raise NoRule("not a shape")
    y = function(x, *args, **how)
    if not isinstance(x, Riding):  # it takes a riding tensor's shape
        return y
    lead = _lead_of(y.shape, x)
    row = y.shape[lead:]
    update = None if x.update is None else x.update.reshape(-1, *row)
    return x.like(y, x.z.reshape(-1, *row), x.held.reshape(-1, *row), lead, update=update)


def in_row(x: Riding, dim: int) -> int:
    """A dimension of y as one of z and d; NoRule where it is not one of the row's."""
    place = dim + x.dim() if dim < 0 else dim
    if place < x.lead:
        raise NoRule(f"dimension {dim} of {tuple(x.shape)}, which is not within a row")
    return place - x.lead + 1


@rule_for("chunk", "split", "tensor_split", "split_with_sizes")
def _parts(function, x: Riding, size: Any, dim: int = 0) -> tuple[Riding, ...]:
    at = in_row(x, dim)
    parts = zip(function(x, size, dim), function(x.z, size, at), function(x.held, size, at), strict=True)
    return tuple(x.like(*part) for part in parts)


@rule_for("unbind")
def _unbind(function, x: Riding, dim: int = 0) -> tuple[Riding, ...]:
    at = in_row(x, dim)
    return tuple(x.like(*part) for part in zip(x.unbind(dim), x.z.unbind(at), x.d.unbind(at), strict=True))


@rule_for("narrow")
def _narrow(function, x: Riding, dim: int, start: int, length: int) -> Riding:
    at = in_row(x, dim)
    return x.like(x.narrow(dim, start, length), x.z.narrow(at, start, length), x.d.narrow(at, start, length))


@rule_for("select")
def _select(function, x: Riding, dim: int, index: int) -> Riding:
    at = in_row(x, dim)
    return x.like(x.select(dim, index), x.z.select(at, index), x.d.select(at, index))


@rule_for("__getitem__")
def _part(function, x: Riding, key: Any) -> Riding:
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(not (one is None or one is Ellipsis or isinstance(one, slice | int)) for one in keys):
        raise NoRule("an index that is neither a number nor a slice")
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        n_given = sum(one is not None for one in keys) - 1
        keys[at : at + 1] = [slice(None)] * (x.dim() - n_given)
    keys += [slice(None)] * (x.lead - len(keys))
    if any(not isinstance(one, slice) for one in keys[: x.lead]):
        raise NoRule("an index among rows")
    n_rows = _rows_left(x, keys[: x.lead])
    y, of_row = x.plain[tuple(keys)], (slice(None), *keys[x.lead :])
    update = None if x.update is None else x.update[of_row]
    return x.like(y, x.z[of_row], x.d[of_row], n_rows=n_rows, update=update)


def _rows_left(x: Riding, slices: list[slice]) -> int:
    """How many positions are left of each sequence; NoRule where the last one is not."""
    spans = [range(size)[one] for one, size in zip(slices, x.shape, strict=False)]
    if all(len(span) == size for span, size in zip(spans, x.shape, strict=False)):
        return x.n_rows
    whole_sequences = x.lead == 2 and len(spans[0]) == x.shape[0] and x.shape[1] == x.n_rows
    if not whole_sequences or not spans[1] or spans[1].step != 1 or spans[1][-1] != x.n_rows - 1:
        raise NoRule("a part of the rows without the last one")
    return len(spans[1])


@rule_for("unsqueeze")
def _unsqueeze(function, x: Riding, dim: int) -> Riding:
    place = dim + x.dim() + 1 if dim < 0 else dim
    y = x.unsqueeze(place)
    if place < x.lead:
        return x.like(y, x.z, x.d, x.lead + 1)
    at = place - x.lead + 1
    return x.like(y, x.z.unsqueeze(at), x.d.unsqueeze(at))


@rule_for("squeeze")
def _squeeze(function, x: Riding, dim: int) -> Riding:
    place = dim + x.dim() if dim < 0 else dim
    y = x.squeeze(place)
    if place < x.lead:
        return x.like(y, x.z, x.d, x.lead - 1 if x.shape[place] == 1 else x.lead)
    at = in_row(x, place)
    return x.like(y, x.z.squeeze(at), x.d.squeeze(at))


@rule_for("transpose", "swapaxes")
def _transpose(function, x: Riding, one: int, other: int) -> Riding:
    at = in_row(x, one), in_row(x, other)
    return x.like(x.transpose(one, other), x.z.transpose(*at), x.d.transpose(*at))


@rule_for("cat", "concat")
def _cat(function, tensors: Any, dim: int = 0) -> Riding:
    first = next(part for part in tensors if isinstance(part, Riding))
    at, n = in_row(first, dim), len(first.d)
    rows, differences = [], []
    for part in tensors:
        if isinstance(part, Riding):
            rows.append(part.z)
            differences.append(part.d)
        elif part.dim() != first.dim():
            raise NoRule("a part of other dimensions")
        else:
            rows.append(facing(first, part).expand(len(first.z), *part.shape[first.lead :]))
            differences.append(rows[-1].new_zeros(n, *rows[-1].shape[1:]))
    return first.like(torch.cat(tensors, dim), torch.cat(rows, at), torch.cat(differences, at))


@rule_for("where")
def _where(function, condition: torch.Tensor, one: Any, other: Any) -> Riding:
    """Which of two by a plain condition."""
    x = one if isinstance(one, Riding) else other
    if isinstance(condition, Riding) or not isinstance(x, Riding):
        raise NoRule("the condition is a riding tensor")
    chosen = facing(x, condition).bool()

    def rows(value: Any) -> tuple[Any, Any]:
        return (value.z, value.d) if isinstance(value, Riding) else (facing(x, value), torch.zeros_like(x.d))

    (z, d), (other_z, other_d) = rows(one), rows(other)
    y = torch.where(condition, one, other)
    return x.like(y, torch.where(chosen, z, other_z), torch.where(x.ride.spread(chosen), d, other_d))


@rule_for("masked_fill")
def _masked_fill(function, x: Riding, mask: torch.Tensor, value: Any) -> Riding:
    chosen = facing(x, mask).bool()
    y = x.plain.masked_fill(mask, value)
    return x.like(y, x.z.masked_fill(chosen, value), x.d.masked_fill(x.ride.spread(chosen), 0.0))


@rule_for("masked_fill_")
def _masked_fill_in_place(function, x: Riding, mask: torch.Tensor, value: Any) -> Riding:
    return written(x, _masked_fill(function, x, mask, value))
