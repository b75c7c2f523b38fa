"""Norms that are known by what they do: a module that numerically is an RMSNorm passes its differences on in one step.

In: a module without parts, asked once with random rows of many sizes, in float32 and in the model's dtype. Out: where its weight
and its small number lie, or None. No names of classes or attributes count. Knows no layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from mask_impact.engine.riding.functions import normed
from mask_impact.engine.riding.tensor import HALF, Riding
from mask_impact.models.architectures import parameter

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RmsNorm:
    """y = x / sqrt(mean(x^2) + eps) * (weight + offset). weight, eps: names of attributes; weight is None where there is none."""

    weight: str | None
    eps: str
    offset: float

    def of(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What it multiplies by, [hidden]."""
        if self.weight is None:
            return None
        return parameter(module, self.weight).to(device=device, dtype=dtype) + self.offset

    def through(self, module: nn.Module, forward: Forward, x: Riding) -> Riding:
        """x after the module, whose own code makes y."""
        y = forward(x.plain)
        z, d = x.z.to(y.device), x.d.to(y.device)  # the module may lie elsewhere, and take what it is given there
        return normed(y, x, z, d, getattr(module, self.eps), self.of(module, z.dtype, z.device), None)


# For which code and dtype, and what was found.
_found: WeakKeyDictionary[nn.Module, tuple[tuple[Callable, torch.dtype], RmsNorm | None]] = WeakKeyDictionary()


def rms_norm_of(module: nn.Module, forward: Forward, x: Riding, patched: bool) -> RmsNorm | None:
    """What a module is, that is given x; patched: whether forward is not that of its class, so that nothing is remembered."""
    key = type(module).forward, x.dtype
    known = None if patched else _found.get(module)
    if known is not None and known[0] == key:
        return known[1]
    found = _asked(module, forward, x.shape[-1], x.dtype, x.device)
    if not patched:
        _found[module] = key, found
    return found


def may_be_norm(module: nn.Module) -> bool:
    """Whether it has no parts, nothing that it may note what it is given in, and no parameter or one, of one dimension."""
    if next(module.children(), None) is not None or next(module.buffers(recurse=False), None) is not None:
        return False
    parameters = list(module.parameters(recurse=False))
    return len(parameters) <= 1 and all(p.dim() == 1 for p in parameters)


def _asked(module: nn.Module, forward: Forward, width: int, dtype: torch.dtype, device: torch.device) -> RmsNorm | None:
    names = [name for name, _ in module.named_parameters(recurse=False)]
    numbers = [name for name, value in vars(module).items() if isinstance(value, float) and 0 <= value < 1]
    candidates = [
        RmsNorm(weight, eps, offset)
        for weight in names or [None]
        for eps in numbers
        for offset in ((0.0, 1.0) if names else (0.0,))
    ]
    asked = (torch.float32, dtype) if dtype in HALF else (dtype,)
    for one in asked:
        if not candidates:
            break
        rows = _rows(width, one).to(device)
        try:
            given = forward(rows.clone())
        except (TypeError, ValueError, IndexError, RuntimeError):
            return None
        if not isinstance(given, torch.Tensor) or given.shape != rows.shape:
            return None
        bound = 1e-5 if one not in HALF else 8 * torch.finfo(one).eps
        candidates = [norm for norm in candidates if _is(norm, module, rows, given, bound)]
    return candidates[0] if candidates else None


def _is(norm: RmsNorm, module: nn.Module, rows: torch.Tensor, given: torch.Tensor, bound: float) -> bool:
    """Whether the norm gives each number, as exactly as rounding lets it."""
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    x, weight = rows.to(wide), norm.of(module, wide, rows.device)
    wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + getattr(module, norm.eps))
    wanted = wanted if weight is None else wanted * weight
    slack = bound * (wanted.abs() + 0.01 * wanted.abs().amax(-1, keepdim=True))
    return bool(((given.to(wide) - wanted).abs() <= slack).all())


def _rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, n, width]: rows of sizes from far below to far above those of a model, each around 0, around a mean, and with one
    number that outweighs the others."""
    generator = torch.Generator().manual_seed(0)
    exponents = range(-4, 4) if dtype == torch.float16 else range(-8, 13, 2)
    drawn = torch.randn(len(exponents), 3, width, generator=generator, dtype=torch.float64)
    drawn[:, 1] += 1
    drawn[:, 2] *= 0.03
    drawn[torch.arange(len(exponents)), 2, torch.arange(len(exponents)) % width] = 3 if dtype == torch.float16 else 1e3
    sizes = torch.tensor([10.0**exponent for exponent in exponents], dtype=torch.float64)
    return (drawn * sizes[:, None, None]).flatten(0, 1).unsqueeze(0).to(dtype)
