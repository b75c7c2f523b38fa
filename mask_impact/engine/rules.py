"""The rules that gradients go back by, all of them over one graph.

    gradient   the true gradient
    frozen     norms' 1/rms, act(x)/x and softmax weights are constants

What reads other positions in another way than a softmax attention (linear attention, state space, convolution) has no weights
that could be held: there the frozen rule goes back by the true gradient.

What a norm's 1/rms or a gate's ratio is, is found by operation, not by a module's name: roots, and the norms of torch; functions
of one number; a module without parameters that makes of each number another one. A sigmoid is a weight, as a softmax is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mask_impact.engine.ownership import Block

RULES = ("frozen", "gradient")
_WEIGHTS = (
    torch.rsqrt, torch.Tensor.rsqrt, torch.sqrt, torch.Tensor.sqrt, torch.softmax, torch.Tensor.softmax, functional.softmax,
    torch.sigmoid, torch.Tensor.sigmoid, functional.sigmoid,
)  # fmt: skip
_ACTIVATIONS = (functional.silu, functional.gelu, torch.tanh, torch.Tensor.tanh, functional.tanh)
_POWERS = (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__)


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
        self._inside = 0  # modules whose backward pass is theirs as a whole

    def gradients(
        self,
        output: torch.Tensor | Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        by_rule: Mapping[str, Any],
        may_be_unused: bool = False,
    ) -> dict[str, tuple[torch.Tensor | None, ...]]:
        """By rule the gradients at the inputs. by_rule: those at the output, or outputs; nothing for a single number.
        may_be_unused: whether None stands for an input that no gradient comes to."""
        found = {}
        for rule in self.rules:
            self.now = rule
            again = rule != self.rules[-1]
            found[rule] = torch.autograd.grad(output, inputs, by_rule.get(rule), again, allow_unused=may_be_unused)
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

        if self._inside:
            return plain()
        if function in _WEIGHTS or (function in _POWERS and args[1:2] in ((0.5,), (-0.5,))):
            return self.either(plain, lambda: plain().detach())
        if function in _ACTIVATIONS:
            return self.either(plain, lambda: by_ratio(args[0], plain().detach()))
        if function in _NORMS:
            return self.either(plain, lambda: _NORMS[function](*args, **kwargs))
        return plain()

    @contextmanager
    def of_modules(self, block: Block, layer: nn.Module, plain: Sequence[nn.Module] = ()) -> Iterator[None]:
        """While the block is open, a layer's modules without parameters that make of each number another one have these backward
        passes too, whatever they are made of. plain: modules in it whose gradient is the true one by every rule."""
        inside = {part for module in plain for part in module.modules()}
        with ExitStack() as stack:
            for module in plain:
                stack.enter_context(block.before(module, self._enter))
                stack.enter_context(block.after(module, self._leave))
            for module in layer.modules():
                if module in inside:
                    continue
                at_zero = _at_zero(module)
                if at_zero is not None:
                    before, after = self._around(at_zero)
                    stack.enter_context(block.before(module, before))
                    stack.enter_context(block.after(module, after))
            yield

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._inside -= 1

    def _around(self, at_zero: float) -> tuple[Callable, Callable]:
        def after(module, args, output: torch.Tensor) -> torch.Tensor:
            self._inside -= 1
            made = output.detach()
            return self.either(lambda: output, lambda: made if at_zero else by_ratio(args[0], made))

        return self._enter, after


def by_ratio(x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """made, of which made / x is a constant."""
    ratio = made / x.detach()
    return x * torch.where(x == 0, torch.full_like(ratio, 0.5), ratio)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps: float = 1e-5) -> torch.Tensor:
    """torch's, with a constant 1/std."""
    over = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(over, keepdim=True)
    normed = centred * torch.rsqrt(centred.detach().square().mean(over, keepdim=True) + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _rms_norm(input, normalized_shape, weight=None, eps: float | None = None) -> torch.Tensor:
    """torch's, with a constant 1/rms."""
    over, eps = tuple(range(-len(normalized_shape), 0)), torch.finfo(input.dtype).eps if eps is None else eps
    normed = input * torch.rsqrt(input.detach().square().mean(over, keepdim=True) + eps)
    return normed if weight is None else normed * weight


_NORMS = {functional.layer_norm: _layer_norm, functional.rms_norm: _rms_norm}


def _at_zero(module: nn.Module) -> float | None:
    """What a module makes of 0, if it is one that makes of each number another one; None for all others."""
    if any(True for _ in module.children()) or any(True for _ in module.parameters()) or isinstance(module, nn.Softmax):
        return None
    numbers = torch.tensor([[0.0, 0.5, -2.0, 3.0]])
    try:
        with torch.no_grad():
            made = module(numbers)
            alone = torch.cat([module(one) for one in numbers.split(1, dim=1)], dim=1)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return None
    if not isinstance(made, torch.Tensor) or not torch.equal(made, alone) or torch.equal(made, numbers):
        return None
    return float(made[0, 0])


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
