"""Rules for activations and norms."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from mask_impact.engine.riding import differences
from mask_impact.engine.riding.norms_and_gates import ACTIVATIONS, Activation, rms_difference
from mask_impact.engine.riding.pending import Activated
from mask_impact.engine.riding.tensor import NoRule, Riding, facing, in_place_rule_for, rule_for, written

Difference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _pointwise(x: Riding, value: Callable[[torch.Tensor], torch.Tensor], difference: Difference) -> Riding:
    return x.like(value(x.plain), value(x.z), difference(x.base, x.d))


def _simple(value: Callable[[torch.Tensor], torch.Tensor], difference: Difference, *names: str) -> None:
    """Rules of a function of one number, and of what writes it in place."""

    def rule(function, x: Riding, inplace: bool = False) -> Riding:
        result = _pointwise(x, value, difference)
        return written(x, result) if inplace else result

    rule_for(*names)(rule)
    in_place_rule_for(rule, value, *(f"{name}_" for name in names))


_simple(functional.relu, lambda a, d: differences.clamp_difference(a, d, low=0.0), "relu")
_simple(functional.relu6, lambda a, d: differences.clamp_difference(a, d, 0.0, 6.0), "relu6")
_simple(torch.tanh, differences.tanh_difference, "tanh")
_simple(torch.sigmoid, differences.sigmoid_difference, "sigmoid")
_simple(torch.exp, differences.exp_difference, "exp")
_simple(torch.erf, differences.erf_difference, "erf")
_simple(torch.abs, differences.abs_difference, "abs", "absolute")


def _activated(x: Riding, activation: Activation) -> Riding:
    """The differences are formed when it is known what they are multiplied by."""
    if x.z.dim() != 2:
        return _pointwise(x, activation.value, activation.difference)
    gate = x.z.clone()  # it may be a part of y, which others may write to
    moved = Activated(activation, gate, x.pending or x.held, x.plain, x.ride.pieces)
    return x.like(activation.value(x.plain), activation.value(gate), moved)


@rule_for("silu")
def _silu(function, x: Riding, inplace: bool = False) -> Riding:
    result = _activated(x, ACTIVATIONS["silu"])
    return written(x, result) if inplace else result


in_place_rule_for(_silu, functional.silu, "silu_")


@rule_for("gelu")
def _gelu(function, x: Riding, approximate: str = "none") -> Riding:
    if approximate == "tanh":
        return _activated(x, ACTIVATIONS["gelu_tanh"])
    return _pointwise(x, lambda value: functional.gelu(value, approximate=approximate), differences.gelu_difference)


@rule_for("softplus")
def _softplus(function, x: Riding, beta: float = 1, threshold: float = 20) -> Riding:
    def difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return differences.softplus_difference(beta * a, beta * d) / beta

    return _pointwise(x, lambda value: functional.softplus(value, beta, threshold), difference)


@rule_for("clamp", "clip")
def _clamp(function, x: Riding, min: Any = None, max: Any = None) -> Riding:
    if not all(limit is None or isinstance(limit, int | float) for limit in (min, max)):
        raise NoRule("limits that are tensors")
    low, high = (default if limit is None else limit for limit, default in ((min, -torch.inf), (max, torch.inf)))
    return _pointwise(
        x, lambda value: torch.clamp(value, min, max), lambda a, d: differences.clamp_difference(a, d, low, high)
    )


@rule_for("clamp_min")
def _clamp_min(function, x: Riding, min: float) -> Riding:
    return _clamp(torch.clamp, x, min=min)


@rule_for("clamp_max")
def _clamp_max(function, x: Riding, max: float) -> Riding:
    return _clamp(torch.clamp, x, max=max)


in_place_rule_for(_clamp, torch.clamp, "clamp_", "clip_")


# --- norms ----------------------------------------------------------------------------------------------------------------


def normed(y: torch.Tensor, x: Riding, z: torch.Tensor, d: torch.Tensor, eps: float, weight, bias) -> Riding:
    """x normed over its last dimension; z, d: what is divided by its root mean square."""
    base = x.ride.spread(z)
    weight = None if weight is None else weight.to(z)
    moved = rms_difference(base[0] if base.dim() == 2 and len(base) == 1 else base, d, eps, weight)
    # As rms_difference has it: where nothing is left, the difference is -z to the last bit.
    z = z * (1 / (z.square().mean(-1, keepdim=True) + eps).sqrt())
    z = z if weight is None else z * weight
    return x.like(y, z if bias is None else z + bias.to(z), moved)


def _of_last(x: Riding, shape: Any) -> None:
    if len(shape) != 1 or x.lead == x.dim():
        raise NoRule("over more than the last dimension")


@rule_for("layer_norm")
def _layer_norm(function, input: Riding, normalized_shape, weight=None, bias=None, eps: float = 1e-5, *_) -> Riding:
    _of_last(input, normalized_shape)
    y = functional.layer_norm(input, normalized_shape, weight, bias, eps)
    z, d = (rows - rows.mean(-1, keepdim=True) for rows in (input.z, input.d))
    return normed(y, input, z, d, eps, weight, bias)


@rule_for("rms_norm")
def _rms_norm(function, input: Riding, normalized_shape, weight=None, eps: float | None = None) -> Riding:
    _of_last(input, normalized_shape)
    y = functional.rms_norm(input, normalized_shape, weight, eps)
    return normed(y, input, input.z, input.d, torch.finfo(input.dtype).eps if eps is None else eps, weight, None)


@rule_for("addcmul")
def _addcmul(function, x: Any, one: torch.Tensor, other: torch.Tensor, *, value: float = 1) -> Riding:
    """A riding tensor times a plain one, added to a plain one."""
    riding = one if isinstance(one, Riding) else other
    factor = other if riding is one else one
    if isinstance(x, Riding) or isinstance(factor, Riding) or not isinstance(riding, Riding):
        raise NoRule("more than one operand with differences")
    factor = facing(riding, factor) * value
    y = torch.addcmul(x, one, other, value=value)
    z = riding.z * factor
    moved = riding.d * (riding.ride.spread(factor) if factor.dim() == riding.z.dim() else factor)
    if x.shape == riding.shape:
        riding.ride.first_sum(z, moved)
    return riding.like(y, z + facing(riding, x), moved)
