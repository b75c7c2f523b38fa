"""How a difference passes through norms and gates: pure tensor functions.

A linear map of a difference is the difference of the maps, so only norms and gates need arithmetic of their own. Each
function here returns f(x + d) - f(x) without ever subtracting two values of f, so that a small difference keeps its
digits. Rows are independent; x is one row [hidden], d is [n, hidden].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from mask_impact.engine.attention import CPU_BLOCK_ELEMENTS, blocks


def rms_difference(
    state: torch.Tensor, differences: torch.Tensor, eps: float, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """(x + d) r' - x r, the difference of a norm over the last dimension, times its weight [hidden], for x [hidden] or what d can
    be added to, d [n, ..., hidden].

    With r = (mean(x^2) + eps)^-1/2 and r' the same of x + d it is x (r' - r) + d r', and r' - r follows from
    mean((x+d)^2) - mean(x^2) = mean(d (2x + d)) without cancellation. Where d takes away most of x that sum cancels
    instead, and (x + d) r' - x r is the form to take.
    """
    if state.dim() > 1 or state.device.type != "cpu" or differences.numel() <= CPU_BLOCK_ELEMENTS:
        moved = _rms_difference(state, differences, eps)
        return moved if weight is None else moved.mul_(weight)
    out = torch.empty_like(differences)
    for rows in blocks(differences):
        out[rows] = rms_difference(state, differences[rows], eps, weight)
    return out


def _rms_difference(state: torch.Tensor, differences: torch.Tensor, eps: float) -> torch.Tensor:
    hidden = state.shape[-1]
    variance = state.square().mean(-1) + eps
    twice = 2 * state
    linear = torch.mv(differences, twice) if state.dim() == 1 else (differences * twice).sum(-1)
    growth = (linear + differences.square().sum(-1)) / hidden  # [n, ...]
    most_is_gone = growth < -variance / 2
    root = variance.sqrt()
    # On a GPU asking whether it happens would stall the queue: there the general form is taken at once.
    if state.device.type == "cpu" and not most_is_gone.any():
        masked_root = (variance + growth).sqrt_()
        scale = -growth / (root * masked_root * (root + masked_root))  # r' - r
        moved = differences * masked_root.reciprocal_().unsqueeze(-1)
    else:
        # One expression for both: a (r' - r) + b r' with a = x, b = d, or -x r + b r' with b = x + d.
        masked_state = differences + state
        masked = torch.where(most_is_gone, masked_state.square().mean(-1) + eps, variance + growth)
        masked_root = masked.sqrt()
        scale = torch.where(most_is_gone, -1 / root, -growth / (root * masked_root * (root + masked_root)))
        moved = torch.where(most_is_gone.unsqueeze(-1), masked_state, differences)
        moved.mul_(masked_root.reciprocal().unsqueeze(-1))
    return moved.addcmul_(scale.unsqueeze(-1), state)


@dataclass(frozen=True)
class Activation:
    """An activation, its difference act(g + d) - act(g), and its Taylor coefficients around g where they are known.

    g: [intermediate]; d: [n, intermediate]. taylor(g): act'(g), act''(g)/2, act'''(g)/6, act''''(g)/24.
    """

    value: Callable[[torch.Tensor], torch.Tensor]
    difference: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    taylor: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None


def _silu_difference(gate: torch.Tensor, differences: torch.Tensor) -> torch.Tensor:
    # With s the sigmoid: silu(b) - silu(a) = d s(b) + a (s(b) - s(a)), and
    # s(b) - s(a) = tanh(d/2) (1 - tanh(a/2) tanh(b/2)) / 2.
    half_tanh = torch.tanh(gate / 2)
    masked_tanh = torch.tanh((gate + differences) / 2)
    sigmoid_difference = torch.tanh(differences / 2) * (1 - half_tanh * masked_tanh)
    return (differences * (1 + masked_tanh) + gate * sigmoid_difference) / 2


def _silu_taylor(gate: torch.Tensor) -> tuple[torch.Tensor, ...]:
    # Derivatives of the sigmoid s by s' = s (1 - s); silu = g s, so the k-th derivative of silu is g s_k + k s_(k-1).
    s = torch.sigmoid(gate)
    s1 = s * (1 - s)
    s2 = s1 * (1 - 2 * s)
    s3 = s1 * (1 - 6 * s1)
    s4 = s2 * (1 - 12 * s1)
    return gate * s1 + s, (gate * s2 + 2 * s1) / 2, (gate * s3 + 3 * s2) / 6, (gate * s4 + 4 * s3) / 24


_GELU_SCALE = 0.7978845608028654  # sqrt(2 / pi)
_GELU_CUBIC = 0.044715


def _gelu_tanh_difference(gate: torch.Tensor, differences: torch.Tensor) -> torch.Tensor:
    # gelu(x) = x (1 + t(x)) / 2 with t(x) = tanh(c (x + k x^3)); t(b) - t(a) by the addition theorem, as above.
    masked = gate + differences
    inner = torch.tanh(_GELU_SCALE * (gate + _GELU_CUBIC * gate**3))
    masked_inner = torch.tanh(_GELU_SCALE * (masked + _GELU_CUBIC * masked**3))
    cubes = differences * (3 * gate * masked + differences * differences)  # b^3 - a^3
    argument = _GELU_SCALE * (differences + _GELU_CUBIC * cubes)
    inner_difference = torch.tanh(argument) * (1 - inner * masked_inner)
    return (differences * (1 + masked_inner) + gate * inner_difference) / 2


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(functional.silu, _silu_difference, _silu_taylor),
    "gelu_tanh": Activation(lambda x: functional.gelu(x, approximate="tanh"), _gelu_tanh_difference),
}

# Up to here four terms of the Taylor series are exact in float32: the fifth is below 1e-6 of the first.
TAYLOR_RADIUS = 2.0**-4
# Few rows go in blocks that torch leaves to one thread (below its grain of 2^15): waking the others would take longer than the
# work.
CPU_SERIAL_ELEMENTS = 2**15 - 1
CPU_FEW_ELEMENTS = 2**20


def gated_difference(
    activation: Activation,
    gate: torch.Tensor,
    up: torch.Tensor,
    gate_differences: torch.Tensor,
    up_differences: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """act(g + d_g) (u + d_u) - act(g) u = act(g) d_u + (act(g + d_g) - act(g)) (u + d_u), written to `out`.

    gate, up: [intermediate] in the arithmetic's dtype; the differences: [n, intermediate] as they come out of the
    linear maps; out: [n, intermediate] of any dtype.
    """
    value = activation.value(gate)
    change_of = _ActivationChange(activation, gate, value, exact=gate_differences.dtype == gate.dtype)
    n_rows, width = out.shape
    n_block = max(1, n_rows)
    if out.device.type == "cpu":
        n_elements = CPU_SERIAL_ELEMENTS if out.numel() <= CPU_FEW_ELEMENTS else CPU_BLOCK_ELEMENTS
        n_block = max(1, min(n_rows, n_elements // width))
    first, second = (gate.new_empty(n_block, width) for _ in range(2))
    for start in range(0, n_rows, n_block):
        rows = slice(start, min(start + n_block, n_rows))
        up_rows = up_differences[rows]
        change = change_of(gate_differences[rows], first[: len(up_rows)], second[: len(up_rows)])
        up_rows = first[: len(up_rows)].copy_(up_rows)
        out[rows] = torch.addcmul(change.mul_(up_rows + up), value, up_rows, out=change)
    return out


class _ActivationChange:
    """act(g + d) - act(g) for blocks of rows, by the cheapest way that keeps the digits of d."""

    def __init__(self, activation: Activation, gate: torch.Tensor, value: torch.Tensor, exact: bool) -> None:
        self.activation = activation
        self.gate = gate
        self.value = value
        self.exact = exact
        self.taylor: tuple[torch.Tensor, ...] | None = None

    def __call__(self, differences: torch.Tensor, spare: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """differences: [n, width]; spare, out: buffers of that shape, the second of which is returned."""
        # The size of the differences decides; on a GPU asking for it would stall the queue, and tanh costs little there.
        on_cpu = differences.device.type == "cpu"
        low, high = torch.aminmax(differences) if on_cpu else (0.0, torch.inf)
        differences = spare.copy_(differences)
        if self.activation.taylor is not None and max(-low, high) <= TAYLOR_RADIUS:
            return self._by_taylor(differences, out)
        if self.exact or not on_cpu:
            return out.copy_(self.activation.difference(self.gate, differences))
        # These differences come out of a half-precision linear map and some are large: what the subtraction loses in
        # float32 is far below their own rounding.
        return torch.sub(self.activation.value(differences.add_(self.gate)), self.value, out=out)

    def _by_taylor(self, differences: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.taylor is None:
            self.taylor = self.activation.taylor(self.gate)
        c1, c2, c3, c4 = self.taylor
        torch.addcmul(c3, differences, c4, out=out)
        out.mul_(differences).add_(c2).mul_(differences).add_(c1)
        return out.mul_(differences)
