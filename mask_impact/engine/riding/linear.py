"""Rules for linear maps: differences are appended to the model's own rows, so that the weights are read once.

A bias is taken off the mapped differences again, to the last bit that counts. What half precision took from the own row rides
along as one more difference, and corrects z.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from mask_impact.engine.propagation import scale_of_rows
from mask_impact.engine.riding.tensor import HALF, NoRule, Riding, rule_for


def mapped(
    x: Riding, apply: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None
) -> Riding:
    """x after a linear map of its last dimension. apply: rows [m, in] in the weight's dtype to [m, out], bias included."""
    ride, wide = x.ride, x.z.dtype
    if x.lead == x.dim() or isinstance(weight, Riding) or isinstance(bias, Riding):
        raise NoRule("a linear map that differs in each variant")
    own, z, d = x.plain.flatten(0, -2), x.z.flatten(0, -2), x.d.flatten(0, -2)
    last = x.last
    ride.check(last, x.z)
    groups, rounded = [d], ride.half or own.dtype in HALF
    if rounded:
        groups.append(z - last.flatten(0, -2).to(wide))
    scales = [scale_of_rows(rows, weight.dtype, bias is not None) for rows in groups]
    riders = [rows if scale is None else rows * scale for rows, scale in zip(groups, scales, strict=True)]
    out = apply(torch.cat([own, *(rows.to(own) for rows in riders)]))
    y = out[: len(own)].reshape(*x.shape[:-1], -1)
    row = (*x.shape[x.lead : -1], out.shape[-1])
    differences = out[len(own) :].to(wide)
    if bias is not None:
        differences -= bias.to(differences)
    if scales[0] is not None:
        differences /= torch.cat(scales).to(differences.device)
    moved = differences[: len(d)].reshape(-1, *row)
    new = x.like(y, y.reshape(-1, x.n_rows, *row)[:, -1].to(wide), moved)
    if rounded:
        new.z = new.z + differences[len(d) :].reshape(-1, *row)
    if ride.shortcut:
        _of_nothing(x, new, bias)
    return new


def _of_nothing(x: Riding, new: Riding, bias: torch.Tensor | None) -> None:
    """A variant of which nothing is left is mapped to the bias, exactly, and not to what rounding leaves."""
    gone = (x.d == -x.base).flatten(1).all(1)
    gone = gone.view(-1, *(1,) * (new.d.dim() - 1)).to(new.d.device)
    nothing = -new.base if bias is None else bias.to(new.d) - new.base
    new.d = torch.where(gone, nothing, new.d)


@rule_for("linear")
def _linear(function, input: Riding, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Riding:
    if not isinstance(input, Riding):
        raise NoRule("weights that differ in each variant")
    return mapped(input, lambda rows: functional.linear(rows, weight, bias), weight, bias)


@rule_for("addmm")
def _addmm(function, bias: torch.Tensor, x: Riding, weight: torch.Tensor) -> Riding:
    if not isinstance(x, Riding) or bias.dim() != 1:
        raise NoRule("not a linear map with a bias")
    return mapped(x, lambda rows: torch.addmm(bias, rows, weight), weight, bias)


@rule_for("matmul", "mm", "__matmul__")
def _matmul(function, x: Riding, weight: torch.Tensor) -> Riding:
    if not isinstance(x, Riding) or weight.dim() != 2:
        raise NoRule("not a linear map")
    return mapped(x, lambda rows: torch.matmul(rows, weight), weight, None)
