"""f(a + d) - f(a) in closed form, for functions of single numbers.

No two values of f are subtracted, so that a small difference keeps its digits. a faces d [n, ...]; pure tensor functions that
know no riding tensor.
"""

import math

import torch


def tanh_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """By the addition theorem."""
    return torch.tanh(d) * (1 - torch.tanh(a) * torch.tanh(a + d))


def sigmoid_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """s(b) - s(a) = s(b) s(-a) (1 - e^(a - b)) for b > a, and the like for b < a."""
    b = a + d
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return -torch.sign(d) * torch.expm1(-d.abs()) * torch.sigmoid(high) * torch.sigmoid(-low)


def softplus_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """log((1 + e^b) / (1 + e^a)) = log1p(s(a) (e^d - 1)) for d < 0, and the like from b for d > 0."""
    from_low = torch.sigmoid(torch.maximum(a, a + d)) * torch.expm1(-d.abs())
    return -torch.sign(d) * torch.log1p(from_low)


def clamp_difference(a: torch.Tensor, d: torch.Tensor, low: float = -math.inf, high: float = math.inf) -> torch.Tensor:
    """Of the number between two limits."""
    kept = a.clamp(low, high)
    return torch.minimum(torch.maximum(d + (a - kept), low - kept), high - kept)


def exp_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """e^a (e^d - 1)."""
    return torch.exp(a) * torch.expm1(d)


def abs_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Of the absolute value."""
    same = (a >= 0) == (a + d >= 0)
    sign = torch.where(a >= 0, 1.0, -1.0).to(d)
    return torch.where(same, sign * d, -sign * (2 * a + d))


# Nodes in 0..1 and weights of Gauss and Legendre, for float32 and for float64.
_FEW = (
    (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262),
    (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692),
)
_MANY = (
    (
        0.019855071751231856, 0.10166676129318664, 0.2372337950418355, 0.4082826787521751, 0.591717321247825, 0.7627662049581645,
        0.8983332387068134, 0.9801449282487681,
    ),
    (
        0.05061426814518813, 0.11119051722668724, 0.15685332293894363, 0.1813418916891809, 0.1813418916891809,
        0.15685332293894363, 0.11119051722668724, 0.05061426814518813,
    ),
)  # fmt: skip


def normal_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Of the normal distribution function: d times the mean density on the way for |d| <= 1, where all terms have one sign; a
    subtraction in the thinner tail beyond."""
    nodes, weights = _MANY if d.dtype == torch.float64 else _FEW
    density = torch.zeros_like(d + a)
    for node, weight in zip(nodes, weights, strict=True):
        density += weight * torch.exp((a + node * d).square() * -0.5)
    near = d * density / math.sqrt(2 * math.pi)
    b = a + d
    side = torch.where(a + b > 0, -1.0, 1.0).to(d)
    far = side * (torch.special.ndtr(side * b) - torch.special.ndtr(side * a))
    return torch.where(d.abs() <= 1, near, far)


def erf_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """2 (Phi(sqrt(2) b) - Phi(sqrt(2) a))."""
    return 2 * normal_difference(math.sqrt(2) * a, math.sqrt(2) * d)


def gelu_difference(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Of x Phi(x): a (Phi(b) - Phi(a)) + d Phi(b)."""
    return a * normal_difference(a, d) + d * torch.special.ndtr(a + d)
