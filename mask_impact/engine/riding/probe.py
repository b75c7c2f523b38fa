"""The proof that nothing gets lost on the way: a layer runs again with the last query's attention output set to 0.

It must move as the difference -o that rides through it says. Code that takes the model's tensor out of a riding one, so that
its difference is lost, can't be seen by the self-check, which looks at the model's own row; here it shows.
"""

import copy
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.ownership import is_patched
from mask_impact.engine.riding.boarding import board
from mask_impact.engine.riding.layers import Layer, Layers
from mask_impact.engine.riding.opaque import Opaque
from mask_impact.engine.riding.tensor import HALF, Ride, replaced, riding_in, states_in
from mask_impact.engine.taps import tapped
from mask_impact.errors import ExactnessError
from mask_impact.models.architectures import parameter

TOLERANCE = 1e-3  # of the movement, relative
DRESS = ("forward", "_old_forward", "_hf_hook")  # attributes
ROUNDINGS = 16  # of the layer's output, that may count as movement


def prove(layers: Layers, layer: Layer, args: tuple, kwargs: dict) -> None:
    """ExactnessError where the layer moves otherwise than what rides through it says; args, kwargs: of a call of it, with the
    caches as they were before."""
    module, args, kwargs = widened(layer.module, args, kwargs)
    entered = next(states_in((args, kwargs)))
    riding, plain = (_run(layers, layer, module, entered, args, kwargs, rides) for rides in (True, False))
    if riding is None or plain is None:
        return  # without an attention
    moved, said, size = plain - riding[0], riding[1], torch.linalg.vector_norm(plain)
    if not bool(torch.isfinite(size)):
        return  # which the self-check will say
    error, length = torch.linalg.vector_norm(moved - said), torch.linalg.vector_norm(moved)
    if error <= TOLERANCE * length + ROUNDINGS * torch.finfo(entered.dtype).eps * size:
        return
    raise ExactnessError(
        f"{layer.name} ({type(layer.module).__name__}) moves otherwise than the differences that ride through it say: "
        f"{float(error / length):.1e} off (relative, {TOLERANCE:.0e} allowed) where its attention gives nothing; its code drops "
        "them somewhere, or no two runs of it are the same: no numbers are given"
    )


def snapshot(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A layer's arguments as they are before it runs: an empty cache is left out, another one copied, and so is what layers put
    their keys and values into for others."""

    def kept(value: Any) -> Any:
        if isinstance(value, MutableMapping):
            return copy.copy(value)
        if not isinstance(value, Cache):
            return value
        return copy.deepcopy(value) if value.get_seq_length() else None

    return tuple(kept(value) for value in args), {name: kept(value) for name, value in kwargs.items()}


def widened(module: nn.Module, args: tuple, kwargs: dict) -> tuple[nn.Module, tuple, dict]:
    """A float32 copy of a layer and of what it is called with, where it runs; as they are where it is no layer in half precision,
    or can't be copied."""
    dtypes = {weight.dtype for weight in module.parameters()}
    patched = any(map(is_patched, module.modules()))
    if patched or not dtypes & set(HALF) or not all(dtype.is_floating_point for dtype in dtypes):
        return module, args, kwargs
    wide = copied(module).to(torch.float32)
    device = next(wide.parameters()).device
    return wide, cast(args, torch.float32, device), cast(kwargs, torch.float32, device)


def _run(layers, layer, module, entered, args, kwargs, rides: bool) -> Any:
    """(own, difference) of the last row of what the layer gives, with -o riding; or the last row alone with o set to 0. None
    for a layer without an attention."""
    owner = torch.zeros(2, dtype=torch.int64) if len(entered) > 1 else None
    ride = Ride(layer.name, entered, owner, shortcut=False)
    asked = []

    def attend(own, called, query, key, value, attention_mask, *rest: Any, **options: Any) -> tuple:
        output = own(query, key, value, attention_mask, *rest, **options)
        asked.append(called)
        opaque.attentions.add(called)
        if not rides:
            emptied = output[0].clone()
            emptied[:, -1] = 0
            return (emptied, *output[1:])
        rows = output[0][:, -1].to(arithmetic_dtype(entered.dtype))
        return (board(output[0], ride, rows, torch.stack([-rows[0], torch.zeros_like(rows[0])])), *output[1:])

    opaque = Opaque()
    opaque.modules.update(inner for inner in module.modules() if inner in layers.known.opaque.modules)
    args, kwargs = snapshot(args, kwargs)
    with tapped(layers, attend, module.modules()), opaque.caught(list(module.modules())), torch.no_grad():
        output = module.forward(*args, **kwargs)
    ride.open = False
    if not asked:
        return None
    x = next(iter(riding_in(output)), None)
    last = next(states_in(output))[:1, -1].to(arithmetic_dtype(entered.dtype)).clone()
    if not rides:
        return last[0]
    return last[0], torch.zeros_like(last[0]) if x is None else x.d[0]


def copied(module: nn.Module) -> nn.Module:
    """A copy whose modules' forwards are their own again, with weights that are elsewhere until the module runs."""
    with _undressed(module):
        made = copy.deepcopy(module)
    for name, inner in module.named_modules():
        for part, weight in inner.named_parameters(recurse=False):
            if weight.is_meta:
                setattr(made.get_submodule(name), part, nn.Parameter(parameter(inner, part), requires_grad=False))
    return made


@contextmanager
def _undressed(module: nn.Module) -> Iterator[None]:
    """While the block is open, what stands in the place of forwards is away, and what accelerate keeps beside it."""
    before = [
        (inner, name, inner.__dict__.pop(name))
        for inner in module.modules()
        for name in DRESS
        if name in inner.__dict__
    ]
    try:
        yield
    finally:
        for inner, name, value in before:
            inner.__dict__[name] = value


def cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """On the device, floating tensors in the dtype, in mappings that are no dicts too; what a mask hides stays hidden."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device)
        if not tensor.is_floating_point():
            return tensor
        hidden = tensor == torch.finfo(tensor.dtype).min
        return tensor.to(dtype).masked_fill(hidden, torch.finfo(dtype).min)

    if isinstance(value, tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        changed = [cast(part, dtype, device) for part in parts]
        return dict(zip(value, changed, strict=True)) if isinstance(value, dict) else tuple(changed)
    if isinstance(value, MutableMapping):  # what layers put their keys and values into for others
        value = copy.copy(value)
        value.update({name: cast(part, dtype, device) for name, part in value.items()})
        return value
    return replaced(value, change, torch.Tensor)
