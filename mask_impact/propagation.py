"""How a difference passes through the parts of a decoder layer that are not linear maps: pure tensor functions.

A linear map of a difference is the difference of the maps, so only norms and gates need arithmetic of their own. Each
function here returns f(x + d) - f(x) without ever subtracting two values of f, so that a small difference keeps its
digits. Rows are independent; x is one row [hidden], d is [n, hidden].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from mask_impact.architectures import Norm


def rms_norm(state: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The norm of state [..., hidden] in state's own dtype."""
    scale = torch.rsqrt(state.square().mean(-1, keepdim=True) + norm.eps)
    return state * scale * norm.weight(state.dtype, state.device)


def rms_norm_difference(state: torch.Tensor, differences: torch.Tensor, norm: Norm) -> torch.Tensor:
    """norm(x + d) - norm(x) for x [hidden], d [n, hidden].

    With r = (mean(x^2) + eps)^-1/2 and r' the same of x + d: x r' - x r + d r', and r' - r follows from
    mean((x+d)^2) - mean(x^2) = mean(d (2x + d)) without cancellation.
    """
    hidden = state.shape[-1]
    variance = state.square().mean() + norm.eps
    growth = (differences @ (2 * state) + differences.square().sum(-1)) / hidden  # [n]
    masked = variance + growth
    root, masked_root = variance.sqrt(), masked.sqrt()
    scale_difference = -growth / (root * masked_root * (root + masked_root))  # r' - r
    result = torch.addcmul(
        differences * masked_root.reciprocal().unsqueeze(-1), scale_difference.unsqueeze(-1), state.unsqueeze(0)
    )
    return result.mul_(norm.weight(state.dtype, state.device))


@dataclass(frozen=True)
class Activation:
    """An activation and its difference act(g + d) - act(g), for g [intermediate] and d [n, intermediate]."""

    value: Callable[[torch.Tensor], torch.Tensor]
    difference: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _silu_difference(gate: torch.Tensor, differences: torch.Tensor) -> torch.Tensor:
    # With s the sigmoid: silu(b) - silu(a) = d s(b) + a (s(b) - s(a)), and
    # s(b) - s(a) = tanh(d/2) (1 - tanh(a/2) tanh(b/2)) / 2.
    half_tanh = torch.tanh(gate / 2)
    masked_tanh = torch.tanh((gate + differences) / 2)
    sigmoid_difference = torch.tanh(differences / 2) * (1 - half_tanh * masked_tanh)
    return (differences * (1 + masked_tanh) + gate * sigmoid_difference) / 2


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
    "silu": Activation(functional.silu, _silu_difference),
    "gelu_tanh": Activation(lambda x: functional.gelu(x, approximate="tanh"), _gelu_tanh_difference),
}


def gated_difference(
    activation: Activation,
    gate: torch.Tensor,
    up: torch.Tensor,
    gate_differences: torch.Tensor,
    up_differences: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """act(g + d_g) (u + d_u) - act(g) u = act(g) d_u + (act(g + d_g) - act(g)) (u + d_u), written to `out`.

    gate, up: [intermediate] in the arithmetic's dtype; the differences: [n, intermediate] as they come out of the linear
    maps; out: [n, intermediate] of any dtype. Rows go in blocks that stay in the CPU's cache.
    """
    value = activation.value(gate)
    for start in range(0, len(out), block_rows(out)):
        block = slice(start, start + block_rows(out))
        block_gate = gate_differences[block].to(gate.dtype)
        block_up = up_differences[block].to(gate.dtype)
        change = activation.difference(gate, block_gate)
        result = torch.addcmul(change * (up + block_up), value, block_up)
        out[block] = result
    return out


def block_rows(rows: torch.Tensor) -> int:
    """Rows of a [n, width] tensor to work on at once: about 256 KB in float32 on a CPU, all of them on a GPU."""
    if rows.device.type != "cpu":
        return max(1, len(rows))
    return max(1, 65_536 // rows.shape[-1])
