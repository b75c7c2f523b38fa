"""The vision tower: where its layers are, keys hidden in their attention while it runs, and what each layer reads of each patch.

The tower is the model's own and runs as it is: its attentions ask for a backend, and what answers is ours (`engine.taps`). Where
keys are hidden, that backend gets a mask; the arithmetic of what a layer reads is in `tower_map`. Knows Qwen3-VL's tower; nothing
of images but the order in which the attention meets them. Shapes: n variants of P patches, L layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mask_impact.engine.effects import TOLERANCE
from mask_impact.engine.ownership import AnyDecoder, Block
from mask_impact.engine.taps import BACKENDS, scaling_of, tapped
from mask_impact.engine.tower_map import Unit, reading
from mask_impact.errors import ExactnessError, ModelError, UnsupportedArchitecture
from mask_impact.models.architectures import parameter


@dataclass(frozen=True)
class Tower:
    """layers: the modules of the tower's L layers; attentions: the attention of each, with its number; outputs: the linear map
    that ends each attention, W_o."""

    module: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: dict[nn.Module, int]
    outputs: tuple[nn.Linear, ...]

    def weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W_o [hidden, H * D] and its bias."""
        return parameter(self.outputs[layer], "weight"), parameter(self.outputs[layer], "bias")


def tower_of(model: nn.Module) -> Tower:
    """The tower of a model of Qwen3-VL's kind. UnsupportedArchitecture for another one, ModelError for one whose attention runs
    by a backend that is not known, or ends in a map that is not plainly linear."""
    try:
        module = model.model.visual
        layers = tuple(module.blocks)
        found = Tower(
            module,
            layers,
            {layer.attn: number for number, layer in enumerate(layers)},
            tuple(layer.attn.proj for layer in layers),
        )
        backend = module.config._attn_implementation
    except AttributeError as error:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} ({model.config.model_type}) has no vision tower of Qwen3-VL's kind: {error}"
        ) from error
    if backend not in BACKENDS:
        raise ModelError(
            f"attention backend '{backend}' of the vision tower is not supported; load the model with one of "
            f"{', '.join(BACKENDS)}"
        )
    for number, one in enumerate(found.outputs):
        weight = getattr(one, "weight", None)
        if type(one) is not nn.Linear or type(weight) not in (torch.Tensor, nn.Parameter):
            raise ModelError(
                f"layer {number} of the vision tower ends its attention in {type(one).__name__}, which is not a plain linear "
                "map; load the model without an adapter and not quantised"
            )
    return found


def pieces(n: int, kwargs: Mapping[str, Any]) -> list[slice]:
    """The images among the n patches of a call of an attention: flash attention takes all in one call, with their edges in
    `cu_seq_lens_q`; other backends are called once for each."""
    edges = kwargs.get("cu_seq_lens_q")
    return [slice(0, n)] if edges is None else [slice(*edge) for edge in pairwise(edges.tolist())]


# --- keys that are hidden -----------------------------------------------------------------------------------------------


class _Hiding:
    """The attention of a tower that sees n variants of an image, one behind the other."""

    def __init__(self, tower: Tower, keys: torch.Tensor, layers: torch.Tensor) -> None:
        self._tower, self._keys, self._layers = tower, keys, layers
        self._met: dict[int, int] = {}  # variants so far, by layer

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the tower runs."""
        self._met.clear()

    def attend(
        self,
        own: Callable[..., tuple],
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple:
        layer, parts = self._tower.attentions[module], pieces(query.shape[2], kwargs)
        first = self._met.get(layer, 0)
        self._met[layer] = first + len(parts)
        if not self._layers[first : first + len(parts), layer].any():
            return own(query, key, value, attention_mask, **kwargs)
        if "cu_seq_lens_q" not in kwargs:
            return own(query, key, value, self._mask(first, layer, query), **kwargs)
        found = [  # a kernel that takes no mask
            nn.functional.scaled_dot_product_attention(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                attn_mask=self._mask(first + place, layer, query),
                scale=scaling_of(query, kwargs),
                enable_gqa=key.shape[1] != query.shape[1],
            )
            for place, part in enumerate(parts)
        ]
        return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None

    def _mask(self, variant: int, layer: int, like: torch.Tensor) -> torch.Tensor:
        """[1, 1, P, P], what is added to logits."""
        keys = self._keys[variant].to(like.device) & self._layers[variant, layer].to(like.device)
        hidden = keys & ~keys.unsqueeze(1)  # from all patches but those that are hidden with it
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)[
            None, None
        ]


@contextmanager
def keys_hidden(decoder: AnyDecoder, tower: Tower, keys: torch.Tensor, layers: torch.Tensor) -> Iterator[None]:
    """While the block is open, the tower runs over n variants of one image, and patches of each are hidden as keys from all
    other patches; hidden ones see each other. keys: bool [n, P], which; layers: bool [n, L], in which layers. Where a variant has
    a layer and no key, the attention gets a mask all the same, one that hides nothing. decoder: the model's, which the thread
    owns."""
    hiding = _Hiding(tower, keys, layers)
    with tapped(decoder, hiding.attend, tower.attentions) as block, block.before(tower.module, hiding.begin):
        yield


# --- what the layers read ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerReading:
    """What one layer reads of each of M units of an image, float64 [M]. attention: how much the layer's attention output changes
    where the unit is hidden from all other patches, relative to that output; full: the same for the layer's whole update, to
    first order, and error: its standard error (both None without probes)."""

    attention: torch.Tensor
    full: torch.Tensor | None
    error: torch.Tensor | None


class _Reading:
    """Goes through the layers while the tower runs, and measures each when it is done."""

    def __init__(self, tower: Tower, unit: Unit, probes: int, generator: torch.Generator) -> None:
        self._tower, self._unit, self._probes, self._generator = tower, unit, probes, generator
        self._calls: list[tuple[torch.Tensor, ...]] = []
        self._arguments: tuple[tuple, dict] = ((), {})
        self._given: Iterator[torch.Tensor] | None = None  # outputs of a layer that runs again
        self.found: list[LayerReading] = []

    def watch(self, block: Block) -> list:
        """Handles of the hooks, which are context managers."""
        handles = []
        for layer in self._tower.layers:
            handles += [block.before(layer, self._begin), block.after(layer, self._end)]
        return handles

    def attend(
        self,
        own: Callable[..., tuple],
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple:
        if self._given is not None:
            return next(self._given), None
        output, weights = own(query, key, value, attention_mask, **kwargs)
        self._calls.append((query, key, value, output, scaling_of(query, kwargs), pieces(query.shape[2], kwargs)))
        return output, weights

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._given is None:
            self._calls, self._arguments = [], (args, kwargs)

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._given is not None:
            return
        number = len(self.found)
        gradients, update = self._gradients(module)
        weight, bias = self._tower.weights(number)
        attention, full, begin = [], [], 0
        for query, key, value, attended, scaling, parts in self._calls:
            for part in parts:
                rows = slice(begin + part.start, begin + part.stop)
                heads = [one[0, :, part] for one in (query, key, value)]
                one = reading(*heads, scaling, weight, self._unit, None if gradients is None else gradients[:, rows])
                self._check(number, one.output, attended[0, part].transpose(0, 1))
                ended = nn.functional.linear(attended[0, part].flatten(1), weight, bias)
                attention.append(one.attention / _squared(ended))
                full.append(None if update is None else one.full / _squared(update[rows]))
            begin += query.shape[2]
        self.found.append(_relative(torch.cat(attention), None if update is None else torch.cat(full, dim=1)))
        self._calls = []

    def _gradients(self, layer: nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """[probes, P, H, D], of random mixtures of the layer's update by the attention's output; and the update [P, hidden]."""
        if not self._probes:
            return None, None
        args, kwargs = self._arguments
        outputs = [call[3].detach().clone().requires_grad_() for call in self._calls]
        self._given = iter(outputs)
        try:
            with torch.enable_grad():
                result = layer(*args, **kwargs)
        finally:
            self._given = None
        result = result[0] if isinstance(result, tuple) else result
        found = []
        for _ in range(self._probes):
            signs = torch.randint(2, result.shape, generator=self._generator).to(result) * 2 - 1
            parts = torch.autograd.grad(result, outputs, signs, retain_graph=True)
            found.append(torch.cat([part[0] for part in parts]))
        return torch.stack(found), result.detach() - args[0]

    def _check(self, number: int, found: torch.Tensor, own: torch.Tensor) -> None:
        """ExactnessError where an attention's output is not what its queries, keys and values give. Both [H, P, D]."""
        own, tolerance = own.to(found), TOLERANCE[own.dtype]
        error = float((found - own).norm() / own.norm().clamp_min(torch.finfo(own.dtype).tiny))
        if not error <= tolerance:
            raise ExactnessError(
                f"layer {number} of the vision tower gives another attention output than its queries, keys and values say, by "
                f"{error:.1e} of it ({tolerance:.0e} allowed): no map is given"
            )


def _squared(rows: torch.Tensor) -> float:
    return float(rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum())


def _relative(attention: torch.Tensor, full: torch.Tensor | None) -> LayerReading:
    """From sums of squares [M], and [probes, M], relative to the squared norm of what changes."""
    attention = attention.clamp_min(0).sqrt()
    if full is None:
        return LayerReading(attention.cpu(), None, None)
    mean = full.mean(dim=0)
    error = full.std(dim=0) / len(full) ** 0.5 if len(full) > 1 else torch.full_like(mean, torch.nan)
    length = mean.sqrt()
    return LayerReading(attention.cpu(), length.cpu(), (error / (2 * length.clamp_min(1e-300))).cpu())


def readings(
    decoder: AnyDecoder, tower: Tower, run: Callable[[], object], unit: Unit, probes: int = 0, seed: int = 0
) -> Sequence[LayerReading]:
    """Of each of the tower's layers, from one pass of it over one image. run: runs it; probes: random ones for `full`; seed: of
    these. ExactnessError."""
    one = _Reading(tower, unit, probes, torch.Generator().manual_seed(seed))
    with tapped(decoder, one.attend, tower.attentions) as block:
        handles = one.watch(block)
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return one.found
