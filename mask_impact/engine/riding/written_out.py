"""A float32 copy of a layer in which quantised linear maps are plain ones, their weights written out.

What such a module does is linear (`models.linearity`), so what it makes of the unit vectors are its weights, whatever library
quantised them. Knows no attention and no differences.
"""

import torch
from torch import nn

from mask_impact.engine.ownership import is_patched
from mask_impact.engine.riding.probe import cast, copied, widened
from mask_impact.engine.riding.tensor import states_in
from mask_impact.engine.self_check import SELF_CHECK_TOLERANCE
from mask_impact.errors import UsageError
from mask_impact.models.linearity import is_quantised

UNITS = 2**24  # numbers in the unit vectors that a map is given at once
N_ROWS = 4  # random ones, of which the plain map has to make the same


def written_out(name: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[nn.Module, tuple, dict]:
    """A float32 copy of a layer and of what it is called with, without quantised weights; as they are where all is in float32
    already. name: of the layer. UsageError where there is no such copy."""
    quantised = [path for path, inner in module.named_modules() if is_quantised(inner)]
    if quantised and not any(map(is_patched, module.modules())):
        dtype = next(states_in((args, kwargs))).dtype
        wide = torch.promote_types(dtype, torch.float32)
        module = copied(module)
        for path in quantised:
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, _plain(module.get_submodule(path), dtype, f"{name}.{path}"))
        module = module.to(wide)
        device = next(module.parameters()).device
        args, kwargs = cast(args, wide, device), cast(kwargs, wide, device)
    else:
        module, args, kwargs = widened(module, args, kwargs)
    for path, weight in module.named_parameters():
        if weight.dtype not in (torch.float32, torch.float64):
            raise _no_copy(f"{name}.{path}, which is in {str(weight.dtype).removeprefix('torch.')}")
    return module, args, kwargs


@torch.no_grad()
def _plain(module: nn.Module, dtype: torch.dtype, name: str) -> nn.Linear:
    """What a linear module, which is a copy, does in the dtype, in at least float32 and with its hooks; UsageError where it can't
    be said."""
    width, wide = int(module.in_features), torch.promote_types(dtype, torch.float32)
    device = next((part.device for part in (*module.parameters(), *module.buffers())), None)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N_ROWS, width, generator=generator).to(device, dtype)
    try:
        expected = module(rows).to(wide)
        bias = module(torch.zeros_like(rows[:1]))[0].to(wide)
        if getattr(module, "bias", None) is not None:
            module.bias = None  # beside which small weights would lose digits
        columns = []
        for ones in torch.arange(width, device=device).split(max(1, UNITS // width)):
            units = torch.nn.functional.one_hot(ones, width).to(dtype)
            columns.append(module(units).to(wide))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        raise _no_copy(f"{name} ({type(module).__name__})") from error
    weight = torch.cat(columns).T.contiguous()
    plain = nn.Linear(width, weight.shape[0], device=weight.device, dtype=wide)
    plain.weight.data, plain.bias.data = weight, bias
    off = torch.linalg.vector_norm(plain(rows.to(wide)) - expected)
    if not off <= SELF_CHECK_TOLERANCE[dtype] * torch.linalg.vector_norm(expected):
        raise _no_copy(f"{name} ({type(module).__name__})")
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        getattr(plain, kind).update(getattr(module, kind))
    return plain


def _no_copy(what: str) -> UsageError:
    return UsageError(
        f"`verify` needs the weights of each layer in float32, and can't write out {what}; leave `verify` out"
    )
