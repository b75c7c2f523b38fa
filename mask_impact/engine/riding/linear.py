"""Rules for linear maps: differences are appended to the model's own rows, so that the weights are read once.

A bias is taken off the mapped differences again, to the last bit that counts. What half precision took from the own row rides
along as one more difference, and corrects z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from mask_impact.engine.riding.pending import Mapped
from mask_impact.engine.riding.tensor import HALF, NoRule, Riding, rule_for
from mask_impact.models.architectures import parameter

# Rows this many times narrower than a layer's, such as those within an adapter, are not held against the model's own: a few
# numbers may happen to be small, and rounding is large beside them. What is made of them is.
NARROW = 4


def mapped(
    x: Riding, apply: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, bias: torch.Tensor | None
) -> Riding:
    """x after a linear map of its last dimension. apply: rows [m, in] to [m, out], bias included, computed in the dtype."""
    ride, wide = x.ride, x.z.dtype
    if x.lead == x.dim() or isinstance(bias, Riding):
        raise NoRule("a linear map that differs in each variant")
    entering, has_bias = x.boarded, bias is not None  # gate and up are given the same tensor
    if entering is None or entering.key != (dtype, has_bias):
        entering = x.boarded = _entering(x, dtype, has_bias)
    out, n_own = apply(entering.rows), entering.n_own
    y = out[:n_own].reshape(*x.shape[:-1], -1)
    row = (*x.shape[x.lead : -1], out.shape[-1])
    differences = _without(out[n_own:], bias, entering.scale, wide)
    z = y.reshape(-1, x.n_rows, *row)[:, -1].to(wide)
    if entering.n_lost:
        n_moved = differences.shape[0] - entering.n_lost
        z = z + differences[n_moved:].reshape(-1, *row).to(wide)
        differences = differences[:n_moved]
    if x.in_pieces:

        def of_piece(rows: torch.Tensor) -> torch.Tensor:
            scale = scale_of_rows(rows.to(wide), dtype, has_bias)
            rows = (rows if scale is None else rows * scale).to(y)
            return _without(apply(rows), bias, scale, wide)

        moved = Mapped(x.pending or x.held, of_piece, y, torch.Size((x.moved_shape[0], *row)), ride.pieces)
    else:
        moved = differences.reshape(-1, *row)
    new = x.like(y, z, moved)
    if ride.shortcut:
        _of_nothing(x, new, bias)
    return new


def scale_of_rows(rows: torch.Tensor, dtype: torch.dtype, has_bias: bool) -> torch.Tensor | None:
    """A power of two [n, 1] for each of some differences [n, width] that go through a linear map in the dtype, or None where
    none is needed.

    float16 would lose small differences below its smallest numbers, and a bias would drown them: scaled up, the mapped
    difference outweighs the bias, and taking the bias off again costs nothing of its digits.
    """
    if dtype != torch.float16 and not has_bias:
        return None
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    target = (4 if dtype == torch.float16 else 24) if has_bias else 0
    return torch.exp2((target - torch.log2(largest).floor()).clamp(-100, 100))


def _without(
    mapped: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None, wide: torch.dtype
) -> torch.Tensor:
    """What a map made of scaled rows, without its bias and their scale [., 1]; as it is where they have none."""
    if scale is None:
        return mapped
    mapped = mapped.to(wide)
    if bias is not None:
        mapped -= bias.to(mapped)
    return mapped.div_(scale.to(mapped.device))


@dataclass(frozen=True)
class _Entering:
    """What enters a linear map. rows: [m, in], the model's own n_own, the differences, and n_lost that were lost by rounding;
    scale: of the last two, [., 1], or None; key: for which weights they are."""

    rows: torch.Tensor
    n_own: int
    n_lost: int
    scale: torch.Tensor | None
    key: tuple[torch.dtype, bool]


def _entering(x: Riding, dtype: torch.dtype, has_bias: bool) -> _Entering:
    own, z, last = x.plain.flatten(0, -2), x.z.flatten(0, -2), x.last
    if NARROW * last[0].numel() >= x.ride.entered.shape[-1]:
        x.ride.check(last, x.z)
    n_moved, width = 0 if x.in_pieces else math.prod(x.moved_shape[:-1]), own.shape[-1]
    rounded = x.ride.half or own.dtype in HALF
    lost = z - last.flatten(0, -2).to(z) if rounded else z[:0]
    n_own, n_lost, scale = own.shape[0], lost.shape[0], None
    rows = own.new_empty(n_own + n_moved + n_lost, width)
    rows[:n_own] = own
    if dtype == torch.float16 or has_bias:
        riders = torch.cat([x.d.flatten(0, -2), lost]) if n_moved else lost
        if riders.shape[0]:
            scale = scale_of_rows(riders, dtype, has_bias)
            rows[n_own:] = riders * scale
    else:
        if n_moved:
            x.put(rows[n_own : n_own + n_moved].view(x.moved_shape))
        if n_lost:
            rows[n_own + n_moved :] = lost
    return _Entering(rows, n_own, n_lost, scale, (dtype, has_bias))


def _of_nothing(x: Riding, new: Riding, bias: torch.Tensor | None) -> None:
    """A variant of which nothing is left is mapped to the bias, exactly, and not to what rounding leaves."""
    if x.pending is not None or x.ride.attn is not None:  # behind the residual stream there is always something left
        return
    # On a GPU asking whether there may be one would stall the queue.
    if x.z.device.type == "cpu" and not (x.held.flatten(1)[:, 0] == -x.base.flatten(1)[:, 0]).any():
        return
    gone = (x.d == -x.base).flatten(1).all(1)
    gone = gone.view(-1, *(1,) * (new.d.dim() - 1)).to(new.d.device)
    nothing = -new.base if bias is None else bias.to(new.d) - new.base
    new.d = torch.where(gone, nothing, new.d)


def through_module(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], x: Riding) -> Riding:
    """x after a module that is a linear map (`models.linearity`), whatever its code is made of. forward: its own."""
    return mapped(x, forward, x.dtype, parameter(module, "bias"))


def _check_shared(weight: torch.Tensor) -> None:
    if isinstance(weight, Riding):
        raise NoRule("a linear map that differs in each variant")


@rule_for("linear")
def _linear(function, input: Riding, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Riding:
    if not isinstance(input, Riding):
        raise NoRule("weights that differ in each variant")
    _check_shared(weight)
    return mapped(input, lambda rows: functional.linear(rows, weight, bias), weight.dtype, bias)


@rule_for("addmm")
def _addmm(function, bias: torch.Tensor, x: Riding, weight: torch.Tensor) -> Riding:
    if not isinstance(x, Riding) or bias.dim() != 1:
        raise NoRule("not a linear map with a bias")
    _check_shared(weight)
    return mapped(x, lambda rows: torch.addmm(bias, rows, weight), weight.dtype, bias)


@rule_for("matmul", "mm", "__matmul__")
def _matmul(function, x: Riding, weight: torch.Tensor) -> Riding:
    if not isinstance(x, Riding) or weight.dim() != 2:
        raise NoRule("not a linear map")
    _check_shared(weight)
    return mapped(x, lambda rows: torch.matmul(rows, weight), weight.dtype, None)
