"""Whether a decoder's linear modules are linear maps: differences are carried through them, and these are not otherwise.

Layers that quantise what goes in (int8 activations, float8) are none: their products are off by some percent, while every state
that is computed twice through them agrees with itself. Asked once for each class of module, by what it does. Knows no prompt.
"""

import torch
from torch import nn

from mask_impact.errors import ModelError

TOLERANCE = 0.01  # of the difference's size; rounding to bfloat16 makes 0.004 of it, int8 activations 0.02, float8 0.05
_PLAIN = (nn.Parameter, torch.Tensor)


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a linear module without parts whose weights are in a form of their own; adapters have parts."""
    leaf = next(module.children(), None) is None
    return leaf and hasattr(module, "in_features") and not _has_plain_weight(module)


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and _has_plain_weight(module)


def _has_plain_weight(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    of_torch = type(weight) in _PLAIN and type(weight.data) in _PLAIN
    return of_torch and weight.is_floating_point() and weight.itemsize > 1  # float8 goes with a scale


def check_linear(model: nn.Module, name: str) -> None:
    """ModelError where a linear module within the model's layers is not a linear map. name: of the model."""
    asked = set()
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        kind = (type(module), type(weight), type(getattr(weight, "data", None)))
        if _is_plain(module) or kind in asked or "layers." not in path or not hasattr(module, "in_features"):
            continue
        asked.add(kind)
        what = f"Linear with {type(weight).__name__}" if type(module) is nn.Linear else module._get_name()
        own = weight.dtype if isinstance(weight, torch.Tensor) else model.dtype
        off = _nonlinearity(module, model.device, model.dtype)
        if off != off and own.is_floating_point and own != model.dtype:
            loaded, packed = (str(one).removeprefix("torch.") for one in (model.dtype, own))
            raise ModelError(
                f"model '{name}' was quantised in {packed} and loaded in {loaded}, which don't go together: {what} ({path}) "
                "does not run; use `dtype` auto"
            )
        if not off <= TOLERANCE:
            by = "can't be asked" if off != off else f"is off by {100 * off:.1f} % for differences"
            raise ModelError(
                f"model '{name}' has modules that are not linear: {what} ({path}) {by}, as where activations are quantised; "
                f"load the model without that (quantised weights alone are fine)"
            )


@torch.no_grad()
def _nonlinearity(module: nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """|f(x + d) - f(x) - (f(2 d) - f(d))| / |f(2 d) - f(d)|; NaN where the module takes no such input.

    x and d are sixteenths, so that their sums are exact in every dtype; one coordinate of x is larger than all others.
    """
    generator = torch.Generator().manual_seed(0)
    x, d = torch.randint(-16, 17, (2, 8, int(module.in_features)), generator=generator) / 16
    x[:, 0] = 4.0
    rows = torch.cat([x + d, x, 2 * d, d]).to(device, dtype)
    try:
        made = module(rows)
        if isinstance(made, tuple):  # a router, which gives more than a product: it goes by the rules of its operations
            return 0.0
        both, alone, twice, once = made.double().chunk(4)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return float("nan")
    carried = twice - once
    return float((both - alone - carried).norm() / carried.norm())
