"""Modules that are not made of operations with rules: full states ride through them, as rows of one sequence.

Such as a mixture of experts, which chooses by comparing. The smallest module is taken whose results can carry differences again.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from transformers.cache_utils import Cache

from mask_impact.engine.ownership import is_patched
from mask_impact.engine.riding import recognised
from mask_impact.engine.riding.linear import through_module
from mask_impact.engine.riding.tensor import NoRule, Riding, replaced, riding_in
from mask_impact.errors import is_out_of_memory
from mask_impact.models.linearity import is_quantised


class Opaque:
    """Which modules of a model were found opaque, and which call an attention: those never are."""

    def __init__(self) -> None:
        self.modules: WeakSet[nn.Module] = WeakSet()
        self.attentions: WeakSet[nn.Module] = WeakSet()

    @contextmanager
    def caught(self, modules: list[nn.Module], left: Callable[[nn.Module], None] | None = None) -> Iterator[None]:
        """While the block is open, what has no rule in one of the modules makes full states ride through it. Calls without
        riding tensors, such as another thread's, are as they always are. left(module): an attention that was called is done."""
        before = [(module, module.__dict__.get("forward")) for module in modules]
        try:
            for module in modules:
                module.forward = self._catching(module, module.forward, left)
            yield
        finally:
            for module, forward in before:
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward

    def _catching(self, module: nn.Module, forward: Callable, left: Callable | None) -> Callable:
        patched = "forward" in module.__dict__
        is_linear = is_quantised(module) and not is_patched(module)

        def caught(*args: Any, **kwargs: Any) -> Any:
            riding = [x for x in (*riding_in(args), *riding_in(kwargs)) if x.ride.open]
            if not riding:
                result = forward(*args, **kwargs)
                if left is not None and module in self.attentions:
                    left(module)
                return result
            if not kwargs and len(args) == 1 and not riding[0].stale and recognised.may_be_norm(module):
                norm = recognised.rms_norm_of(module, forward, riding[0], patched)
                if norm is not None:
                    return norm.through(module, forward, riding[0])
            if is_linear and not kwargs and len(args) == 1 and not riding[0].stale:
                return through_module(module, forward, riding[0])
            if module in self.modules:
                return _tried(forward, args, kwargs)
            try:
                return forward(*args, **kwargs)
            except NoRule as error:
                reason = error
            if any(x.stale for x in riding):
                raise NoRule(f"{reason}; {type(module).__name__} had written to what it was given") from reason
            if any(inner in self.attentions for inner in module.modules()):
                raise NoRule(f"{reason}; {type(module).__name__} has an attention in it") from reason
            result = _tried(forward, args, kwargs)
            self.modules.add(module)
            return result

        caught.of_mask_impact = forward
        return caught


def _tried(forward: Callable, args: tuple, kwargs: dict) -> Any:
    """`through_states`; NoRule, for a larger module to be tried, where the module can't take them."""
    try:
        return through_states(forward, args, kwargs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise NoRule(f"states can't ride through a module: {error}") from error


def through_states(forward: Callable, args: tuple, kwargs: dict) -> Any:
    """What a module makes of its arguments, with differences as those of full states that it is given beside: the model's own
    row, z, and z + d of each variant, of which each sequence's last has rounding noise, or z with noise at the end. NoRule where
    the results can't carry them."""
    riding = riding_in((args, kwargs))
    x, ride = riding[0], riding[0].ride
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise NoRule(f"states can't ride through what keeps a cache, in {ride.name}")
    states = {id(one): _states(one) for one in riding}
    n_states = (2 if ride.noise_row else 3) * len(x.z) + len(x.d)
    given, asked = ((args, kwargs) for _ in range(2))
    given = replaced(given, lambda one: one.plain)
    asked = replaced(asked, lambda one: _beside(one, x, states), torch.Tensor)
    own, made = forward(*given[0], **given[1]), forward(*asked[0], **asked[1])
    ride.noisy = True
    return _riding(own, made, x, n_states)


def _states(x: Riding) -> torch.Tensor:
    """[1, m, *row], or [m, *row] where y is one row behind the other: what rides beside, in y's dtype."""
    noise = torch.rand(x.z.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.z) - 0.5
    base = x.base.expand_as(x.d).clone()
    factor = 1 + noise * torch.finfo(x.ride.dtype).eps
    noisy = x.z[:0] if x.ride.noise_row else x.z * factor
    if x.ride.noise_row:
        base[x.ride.ends] *= factor
    rows = torch.cat([x.last.to(x.z), x.z, base + x.d, noisy]).to(x.dtype)
    return rows.reshape(*(1,) * (x.lead - 1), *rows.shape)


def _beside(value: torch.Tensor, x: Riding, states: dict[int, torch.Tensor]) -> torch.Tensor:
    """An argument of the call with states: what rides, or a plain tensor's last rows where it has a row for each of x's."""
    if isinstance(value, Riding):
        return states[id(value)]
    if isinstance(value, nn.Parameter) or value.dim() < x.lead or value.shape[: x.lead] != x.shape[: x.lead]:
        return value
    tail = value.shape[x.lead :]
    last = value.reshape(-1, x.n_rows, *tail)[:, -1]
    spread = x.ride.spread(last).expand(len(x.d), *tail)
    parts = [last, last, spread] if x.ride.noise_row else [last, last, spread, last]
    return torch.cat(parts).reshape(*(1,) * (x.lead - 1), -1, *tail)


def _riding(own: Any, made: Any, x: Riding, n_states: int) -> Any:
    """The results of the model's own call, with the differences that those of the states have."""
    if isinstance(own, tuple | list):
        parts = [_riding(one, other, x, n_states) for one, other in zip(own, made, strict=True)]
        return type(own)(*parts) if hasattr(own, "_fields") else type(own)(parts)
    if own is None or not isinstance(own, torch.Tensor):
        return own
    n = math.prod(x.shape[: x.lead])
    leads = [lead for lead in range(1, own.dim() + 1) if math.prod(own.shape[:lead]) == n]
    if not own.is_floating_point() or not leads or made.numel() != n_states * math.prod(own.shape[leads[-1] :]):
        raise NoRule(f"a result of {own.dtype} and shape {tuple(own.shape)} can't carry differences, in {x.ride.name}")
    lead = leads[-1]
    row = own.shape[lead:]
    last = own.reshape(-1, x.n_rows, *row)[:, -1].to(x.z)
    rows = made.reshape(n_states, *row).to(x.z)
    n_sequences = len(x.z)
    x.ride.check(last, rows[:n_sequences])
    exact, end = rows[n_sequences : 2 * n_sequences], 2 * n_sequences + len(x.d)
    if not x.ride.noise_row:
        noise = torch.linalg.vector_norm((rows[end:] - exact).flatten(1), dim=-1)
        x.ride.noise = noise if x.ride.noise is None else torch.maximum(noise, x.ride.noise)
    return x.like(own, last, rows[2 * n_sequences : end] - x.ride.spread(exact), lead)
