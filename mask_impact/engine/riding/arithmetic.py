"""Rules for sums, products, quotients, powers and means."""

from collections.abc import Callable
from typing import Any

import torch

from mask_impact.engine.riding.pending import Gated
from mask_impact.engine.riding.structure import in_row
from mask_impact.engine.riding.tensor import NoRule, Riding, facing, in_place_rule_for, rule_for


def _rows(x: Riding, value: Any) -> tuple[Any, Any]:
    """An operand as (z, d); d is None for a plain one. x: a riding operand of the same operation."""
    if not isinstance(value, Riding):
        return facing(x, value), None
    if value.lead != x.lead or value.n_rows != x.n_rows:
        raise NoRule("two tensors with their rows in other places")
    return value.z, value.d


def _full(d: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Differences as broad as their rows became."""
    return d if d.shape[1:] == z.shape[1:] else d.expand(len(d), *z.shape[1:])


def _spread(x: Riding, row: Any) -> Any:
    """A plain operand's or another tensor's rows, as they face differences."""
    several = isinstance(row, torch.Tensor) and row.dim() == x.z.dim() and len(row) == len(x.z)
    return x.ride.spread(row) if several else row


# --- sums -----------------------------------------------------------------------------------------------------------------


@rule_for("add", "__add__", "__radd__")
def _add(function, a: Any, b: Any, *, alpha: float = 1) -> Riding:
    return _sum(torch.add(a, b, alpha=alpha), (a, 1), (b, alpha))


@rule_for("sub", "subtract", "__sub__")
def _sub(function, a: Any, b: Any, *, alpha: float = 1) -> Riding:
    return _sum(torch.sub(a, b, alpha=alpha), (a, 1), (b, -alpha))


@rule_for("__rsub__", "rsub")
def _rsub(function, a: Any, b: Any) -> Riding:
    return _sum(torch.rsub(a, b), (a, -1), (b, 1))


def _sum(y: torch.Tensor, one: tuple[Any, float], other: tuple[Any, float]) -> Riding:
    """Of operands with their factors."""
    if not isinstance(one[0], Riding):
        one, other = other, one
    (x, factor), (added, other_factor) = one, other
    z, d = (part if factor == 1 else part * factor for part in (x.z, x.d))
    other_z, other_d = _rows(x, added)
    other_z = other_z if other_factor == 1 else other_z * other_factor
    update, values = None, None
    if other_d is None:
        if isinstance(added, torch.Tensor) and added.shape == x.shape:
            x.ride.first_sum(z, d)
            update = _update(x, factor, z, added, other_factor, other_z)
        elif x.values is not None and not isinstance(added, torch.Tensor):
            values = _shifted(x.values, factor, other_z)
        total = z + other_z
        return x.like(y, total, _full(d, total), update=update, values=values)
    if (x.update is None) != (added.update is None):
        held, rest = (x.update, other_z) if added.update is None else (added.update, z)
        whole = factor == 1 if added.update is None else other_factor == 1
        update = held + rest if whole and held.shape == rest.shape else None
    total = z + other_z
    return x.like(y, total, _full(d + (other_d if other_factor == 1 else other_d * other_factor), total), update=update)


def _update(x: Riding, factor: float, z, added: torch.Tensor, other_factor: float, row: torch.Tensor):
    """What has been added to the layer's input after a plain tensor of the same shape was, if it is a sum with that input."""
    entered = x.ride.entered
    is_input = added.numel() == entered.numel() and added.data_ptr() == entered.data_ptr()
    if is_input:
        return z if x.update is None and other_factor == 1 else None
    return x.update + row if x.update is not None and factor == 1 else None


def _shifted(values: Callable, factor: float, shift: float) -> Callable:
    return lambda: values() * factor + shift


# --- products -------------------------------------------------------------------------------------------------------------


@rule_for("mul", "multiply", "__mul__", "__rmul__")
def _mul(function, a: Any, b: Any) -> Riding:
    y = torch.mul(a, b)
    if a is b:
        return _square_rows(a, y)
    if isinstance(a, Riding) and isinstance(b, Riding):
        _rows(a, b)
        z = a.z * b.z
        gate, up = (a, b) if a.activated is not None else (b, a)
        if gate.activated is not None and gate.z.shape == up.z.shape:
            return a.like(y, z, Gated(gate.activated, up.z.clone(), up.pending or up.held))
        return a.like(y, z, _full(a.d * b.base + (a.base + a.d) * b.d, z))
    x, other = (a, b) if isinstance(a, Riding) else (b, a)
    return _scaled(x, y, facing(x, other))


def _scaled(x: Riding, y: torch.Tensor, factor: Any) -> Riding:
    z, values = x.z * factor, None
    if x.values is not None and not isinstance(factor, torch.Tensor):
        held = x.values

        def values() -> torch.Tensor:
            return held() * factor

    return x.like(y, z, _full(x.d * _spread(x, factor), z), values=values)


@rule_for("div", "divide", "true_divide", "__truediv__", "__div__")
def _div(function, a: Any, b: Any) -> Riding:
    y = torch.div(a, b)
    if not isinstance(b, Riding):
        divisor = facing(a, b)
        z = a.z / divisor
        return a.like(y, z, _full(a.d / _spread(a, divisor), z))
    a_z, a_d = _rows(b, a)
    z = a_z / b.z
    change = -_spread(b, z) * b.d
    d = (change if a_d is None else a_d + change) / (b.base + b.d)
    return b.like(y, z, _full(d, z))


@rule_for("__rtruediv__", "__rdiv__")
def _rdiv(function, x: Riding, a: Any) -> Riding:
    return _div(torch.div, a, x) if isinstance(a, torch.Tensor) else _scaled(*_inverse(x, a))


def _inverse(x: Riding, a: float) -> tuple[Riding, torch.Tensor, float]:
    one = _reciprocal(torch.reciprocal, x)
    return one, one.plain * a, a


@rule_for("reciprocal")
def _reciprocal(function, x: Riding) -> Riding:
    z = 1 / x.z
    return x.like(torch.reciprocal(x), z, -x.d * x.ride.spread(z) / (x.base + x.d))


@rule_for("neg", "negative", "__neg__")
def _neg(function, x: Riding) -> Riding:
    return x.like(-x.plain, -x.z, -x.d)


for _rule, _function, _names in (
    (_add, torch.add, ("add_", "__iadd__")),
    (_sub, torch.sub, ("sub_", "subtract_", "__isub__")),
    (_mul, torch.mul, ("mul_", "multiply_", "__imul__")),
    (_div, torch.div, ("div_", "divide_", "true_divide_", "__itruediv__", "__idiv__")),
):
    in_place_rule_for(_rule, _function, *_names)


# --- powers ---------------------------------------------------------------------------------------------------------------


def _square_rows(x: Riding, y: torch.Tensor) -> Riding:
    base, d = x.base, x.d
    return x.like(y, x.z * x.z, d * (2 * base + d), values=lambda: (base + d).square())


@rule_for("square")
def _square(function, x: Riding) -> Riding:
    return _square_rows(x, torch.square(x))


@rule_for("pow", "__pow__", "float_power")
def _pow(function, x: Riding, exponent: float) -> Riding:
    if not isinstance(exponent, int | float) or exponent not in (1, 2, 3, 0.5, -0.5, -1):
        raise NoRule(f"to the power of {exponent}")
    y = function(x, exponent)
    if exponent == 1:
        return x.like(y, x.z, x.d)
    if exponent == 2:
        return _square_rows(x, y)
    if exponent == 3:
        return x.like(y, x.z**3, x.d * (3 * x.base * (x.base + x.d) + x.d.square()))
    return _root_rows(x, y, exponent) if exponent != -1 else _reciprocal(torch.reciprocal, x)


in_place_rule_for(_pow, torch.pow, "pow_", "__ipow__")


@rule_for("sqrt")
def _sqrt(function, x: Riding) -> Riding:
    return _root_rows(x, torch.sqrt(x), 0.5)


@rule_for("rsqrt")
def _rsqrt(function, x: Riding) -> Riding:
    return _root_rows(x, torch.rsqrt(x), -0.5)


def _root_rows(x: Riding, y: torch.Tensor, exponent: float) -> Riding:
    """With v the value and w = v + d a variant's: sqrt(w) - sqrt(v) = d / (sqrt(v) + sqrt(w)), and 1 / sqrt the like.

    Where d takes away most of v that sum cancels: then w is what it is of itself, if something on the way knows it.
    """
    v, w = x.base, x.base + x.d
    most_is_gone = x.d < -v / 2
    if x.values is not None and (x.d.device.type != "cpu" or bool(most_is_gone.any())):
        w = torch.where(most_is_gone, x.values(), w)
    root, other = v.sqrt(), w.sqrt()
    if exponent > 0:
        return x.like(y, x.z.sqrt(), x.d / (root + other))
    return x.like(y, x.z.rsqrt(), -x.d / (root * other * (root + other)))


# --- over a dimension of the row --------------------------------------------------------------------------------------------


@rule_for("mean")
def _mean(function, x: Riding, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Riding:
    return _over(torch.mean, x, dim, keepdim, dtype)


@rule_for("sum")
def _total(function, x: Riding, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Riding:
    return _over(torch.sum, x, dim, keepdim, dtype)


def _over(function, x: Riding, dim: Any, keepdim: bool, dtype: torch.dtype | None) -> Riding:
    if dim is None:
        raise NoRule("over all rows")
    dims = list(dim) if isinstance(dim, tuple | list) else [dim]
    at = [in_row(x, one) for one in dims]
    y = function(x, dims, keepdim) if dtype is None else function(x, dims, keepdim, dtype=dtype)
    held = x.values
    values = None if held is None else lambda: function(held(), at, keepdim)
    return x.like(y, function(x.z, at, keepdim), function(x.d, at, keepdim), values=values)


@rule_for("var")
def _var(function, x: Riding, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, **how) -> Riding:
    correction = how.pop("correction", 1 if unbiased is None or unbiased else 0)
    if dim is None or how:
        raise NoRule("not over a dimension of the row")
    y = torch.var(x, dim, correction=correction, keepdim=keepdim)
    (at,) = (in_row(x, one) for one in (dim if isinstance(dim, tuple | list) else [dim]))
    z, d = (part - part.mean(at, keepdim=True) for part in (x.z, x.d))
    base, n = x.ride.spread(z), x.z.shape[at] - correction
    return x.like(
        y,
        z.square().sum(at, keepdim) / n,
        (d * (2 * base + d)).sum(at, keepdim) / n,
        values=lambda: (base + d).square().sum(at, keepdim) / n,
    )
