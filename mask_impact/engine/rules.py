"""The rules that gradients go back by, all of them over one graph.

    gradient   the true gradient
    frozen     norms' 1/rms, act(x)/x and softmax weights are constants

What a norm's 1/rms or a gate's ratio is, is found by operation, not by a module's name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RULES = ("frozen", "gradient")


class ConstantWeights(TorchFunctionMode):
    """While it is open, this thread's operations take parameters for constants, so that gradients are formed of states alone; the
    parameters themselves stay as they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*map(_constant, args), **_constants(kwargs))


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) and value.requires_grad else value


def _constants(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _constant(value) for name, value in values.items()} if values else {}


class Rules(ConstantWeights):
    """While it is open, the operations that norms, gates and routers are made of have the backward passes of some rules: of all
    of them over one graph. Weights are constants."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        super().__init__()
        self.rules = rules
        self.now = rules[0]

    def gradients(
        self, output: torch.Tensor, inputs: Sequence[torch.Tensor], by_rule: Mapping[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, ...]]:
        """By rule the gradients at the inputs. by_rule: those at the output; nothing for a single number."""
        found = {}
        for rule in self.rules:
            self.now = rule
            again = rule != self.rules[-1]
            found[rule] = torch.autograd.grad(output, inputs, by_rule.get(rule), retain_graph=again)
        return found

    def either(self, plain: Callable[[], torch.Tensor], frozen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The value of `plain`, with the backward pass of one of them by rule."""
        if len(self.rules) == 1:
            return frozen() if self.rules[0] == "frozen" else plain()
        return _Either.apply(plain(), frozen(), self)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tuple(map(_constant, args)), _constants(kwargs)

        def plain() -> torch.Tensor:
            return function(*args, **kwargs)

        if function in (torch.rsqrt, torch.Tensor.rsqrt, torch.softmax, torch.Tensor.softmax, functional.softmax):
            return self.either(plain, lambda: plain().detach())
        if function in (functional.silu, functional.gelu):
            x = args[0]

            def by_ratio() -> torch.Tensor:
                ratio = function(x.detach(), *args[1:], **kwargs) / x.detach()
                return x * torch.where(x == 0, torch.full_like(ratio, 0.5), ratio)

            return self.either(plain, by_ratio)
        return plain()


class Attended(torch.autograd.Function):
    """A layer's own attention: (query, key, value, the attention, what is known of it, rules) to [1, n, H, D].

    Its backward pass is a Function's, since not every kernel leaves alone what no gradient comes from.
    """

    @staticmethod
    def forward(ctx, query, key, value, own: Callable, one: Any, rules: Rules) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.own, ctx.one, ctx.rules = own, one, rules
        return own(query, key, value)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.rules.now == "frozen":
            return None, None, ctx.one.gradient_of_values(gradient).unsqueeze(0), None, None, None
        with torch.enable_grad():
            parts = [part.detach().requires_grad_(True) for part in ctx.saved_tensors]
            return (*torch.autograd.grad(ctx.own(*parts), parts, gradient), None, None, None)


class _Either(torch.autograd.Function):
    """The first of two tensors of the same value, whose gradient goes to the one that the rule of the moment is about."""

    @staticmethod
    def forward(ctx, plain: torch.Tensor, frozen: torch.Tensor, rules: Rules) -> torch.Tensor:
        ctx.rules = rules
        return plain.view_as(plain)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        return (None, gradient, None) if ctx.rules.now == "frozen" else (gradient, None, None)
