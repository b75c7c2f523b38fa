"""Variants through a layer that has to be given whole sequences: it carries a state from position to position (linear attention,
state space, convolution), beside a softmax attention or in its place, or it counts the positions that it is given.

A variant's rows are put behind what hides nothing, and the layer runs on sequences from their beginning, several in a batch,
with its own forward and no cache. Where only the last position differs, and the layer goes on from a state, the positions before
it run once: each variant goes on from a copy of what the layer keeps of them.

Dimensions: V sequences, S positions, P rows of sequences one behind the other, K key/value groups.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.kept import Kept
from mask_impact.engine.masked_attention import Edges, attend_whole
from mask_impact.engine.ownership import Block
from mask_impact.engine.packing import LinearMaps, OfNothing, Packed, Run
from mask_impact.engine.sight import starts_of
from mask_impact.engine.states import LayerState
from mask_impact.engine.variants import Variants

FAILURES = (
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    RuntimeError,
    StopIteration,
)  # of a layer that runs
SAME_ROW = 16  # roundings of a row that is the same
MapsFor = Callable[[torch.Tensor], LinearMaps]  # of each row of what runs (int64), the row of what hides nothing


class Rows(Protocol):
    """What goes through a layer. running: [1, P, hidden]; packed: where its rows stand; n_in: the sequences that have entered."""

    running: torch.Tensor
    packed: Packed
    n_in: int

    def edges(self, run: Run, device: torch.device) -> Edges | None:
        """What some of the sequences hide; None for nothing."""


def through_whole(
    kept: Kept,
    index: int,
    rows: Rows,
    of_nothing: LayerState,
    maps: MapsFor | None,
    at_once: int,
    seen: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """[1, P, hidden], what the layer makes of the rows. of_nothing: with the whole sequence that hides nothing as `entered`;
    maps: None for the layer's own; at_once: positions of sequences in a batch; seen: is given the keys and values of all
    positions, [1, K, S, D]."""
    packed, made = rows.packed, []
    n, device = packed.n_positions, rows.running.device
    if of_nothing.carried is not None and bool((packed.starts[: rows.n_in] == n - 1).all()):
        return _going_on(kept, index, rows.running, of_nothing, maps)
    base = of_nothing.entered.to(rows.running)
    step = max(1, at_once // n)
    for first in range(0, rows.n_in, step):
        which = range(first, min(first + step, rows.n_in))
        begin, end = int(packed.ends[which.start]), int(packed.ends[which.stop])
        lengths = packed.ends[which.start + 1 : which.stop + 1] - packed.ends[which.start : which.stop]
        places = (torch.arange(len(which)) * n).repeat_interleave(lengths) + packed.at[begin:end]
        places = places.to(device)
        sequences = base.repeat(len(which), 1)
        sequences[places] = rows.running[0, begin:end]
        edges = rows.edges(Run(which, 0, n), device)

        def attention(own, module, query, key, value, *rest, edges=edges, **arguments):
            if seen is not None:
                seen.extend((key, value))
            return attend_whole(query, key, value, of_nothing, index, edges), None

        own = torch.arange(n, device=device).repeat(len(which))
        output = run_layer(kept, index, sequences.unflatten(0, (len(which), n)), maps and maps(own), attention, {})
        made.append(output.flatten(0, 1)[places])
    return torch.cat(made).unsqueeze(0)


def with_state(kept: Kept, index: int, of_nothing: LayerState) -> LayerState:
    """The same with what the layer keeps of all positions but the last, for its last to go on from."""
    cache = DynamicCache(config=kept.model.config)
    before = of_nothing.entered[:-1].unsqueeze(0)
    arguments = of_nothing.arguments_at(torch.arange(-len(of_nothing.entered), -1))
    run_layer(kept, index, before, OfNothing(), None, arguments | _given(of_nothing, cache))
    return replace(of_nothing, carried=cache)


def _going_on(
    kept: Kept, index: int, running: torch.Tensor, of_nothing: LayerState, maps: MapsFor | None
) -> torch.Tensor:
    """[1, V, hidden], of the last row of each of V sequences; running: the same of what enters."""
    cache = copy.deepcopy(of_nothing.carried)
    n = running.shape[1]
    if n > 1:
        cache.layers = [cache.layers[index] if place == index else one for place, one in enumerate(cache.layers)]
        _repeat(cache.layers[index], n)
    own = torch.zeros(n, dtype=torch.int64, device=running.device)
    arguments = of_nothing.arguments_at(torch.tensor([-1])) | _given(of_nothing, cache)
    output = run_layer(kept, index, running.transpose(0, 1), maps and maps(own), None, arguments)
    return output.transpose(0, 1)


def rows_through_layers(kept: Kept, variants: Variants, directly: bool = False) -> int:
    """How many rows go through how many layers for the variants, as a sum, with what hides nothing."""
    n, n_layers, starts, first = kept.n_positions, len(kept.states), starts_of(kept, variants), variants.first
    whole = torch.tensor([kept.decoder.runs_whole(index) for index in range(n_layers)])
    carried = torch.tensor([kept.decoder.carries(index) and not directly for index in range(n_layers)])
    # Of each layer, how many from it on are given the rows before a variant's, too: where these are the last alone, fewer are.
    of_all, of_last = (flags.int().flip(0).cumsum(0).flip(0) for flags in (whole, whole & ~carried))
    before = torch.where(starts == n - 1, of_last[first], of_all[first]) * starts
    own = 0
    if len(variants) and not directly:
        begin, start = int(first.min()), int(starts.min())
        own = (n - start) * (n_layers - begin) + start * int(of_all[begin])
    return int(((n - starts) * (n_layers - first) + before).sum()) + own


def readers(kept: Kept, index: int) -> list[nn.Module]:
    """The modules of a layer, without those within others, whose last row is another one where they are given other rows before
    it. A softmax attention is none."""
    layer, state = kept.decoder.layers[index].module, kept.states[index]
    found, given, attending = [], {}, set()

    def attention(own, module, *args: Any, **kwargs: Any) -> tuple:
        attending.add(module)
        return own(*args, **kwargs)

    def before(module, args, kwargs) -> None:
        given[module] = args, kwargs

    def after(module, args, output) -> None:
        if attending.isdisjoint(module.modules()) and _reads(module, *given[module], output):
            found.append(module)

    with kept.substituted(attention) as block, ExitStack() as stack:
        for module in layer.children():
            stack.enter_context(block.before(module, before))
            stack.enter_context(block.after(module, after))
        layer(state.entered.unsqueeze(0), **state.arguments_of_all())
    return found


def _reads(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> bool:
    """Whether its output's last row, [1, S, ...], is another one behind other states; so, too, if it can't run with them."""

    def other(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or not value.is_floating_point():
            return value
        return torch.cat([-value[:, :-1].roll(1, dims=-1), value[:, -1:]], dim=1)

    try:  # `forward` and not the module itself, which would call the hooks
        changed = module.forward(*map(other, args), **{name: other(value) for name, value in kwargs.items()})
    except FAILURES:
        return True
    first, second = (one[0] if isinstance(one, tuple) else one for one in (output, changed))
    if not isinstance(first, torch.Tensor) or first.shape != second.shape:
        return True
    apart, size = ((one[:, -1] if one.dim() > 2 else one[-1:]).double().norm() for one in (second - first, first))
    return bool(apart > SAME_ROW * torch.finfo(first.dtype).eps * size)


def _given(state: LayerState, cache: DynamicCache) -> dict[str, Any]:
    return {name: None if name == "attention_mask" else cache for name in state.emptied}


def _repeat(layer: Any, n: int) -> None:
    """Every tensor [1, ...] that a cache's layer has, n times."""

    def repeated(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.repeat_interleave(n, dim=0) if value.dim() > 1 else value
        if type(value) in (list, tuple):
            return type(value)(map(repeated, value))
        return {name: repeated(one) for name, one in value.items()} if type(value) is dict else value

    for name, value in vars(layer).items():
        setattr(layer, name, repeated(value))


def run_layer(
    kept: Kept,
    index: int,
    sequences: torch.Tensor,
    maps: LinearMaps | None,
    attention: Callable | None,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """[V, n, hidden], the layer's output of sequences of the same shape; maps: None for its own; attention: in the place of its
    own (None: it has none); arguments: besides the states; empty for those of whole sequences."""
    layer, state = kept.decoder.layers[index], kept.states[index]
    with ExitStack() as stack:
        block = stack.enter_context(kept.substituted(attention or _none))
        if maps is not None:
            for module in kept.decoder.opaque(index):
                in_own_dtype(block, module, state.entered.dtype, maps, stack)
            stack.enter_context(maps)
        output = layer.module(sequences, **(arguments or state.arguments_of_sequences()))
    return output[0] if isinstance(output, tuple) else output


def _none(own, *args: Any, **kwargs: Any) -> tuple:
    raise RuntimeError("an attention is called")


def in_own_dtype(block: Block, module: nn.Module, dtype: torch.dtype, maps: LinearMaps, stack: ExitStack) -> None:
    """A module that is not a chain of linear maps (mixture of experts) takes whole states in the model's dtype."""
    inside, wide = ExitStack(), arithmetic_dtype(dtype)

    def cast(value: Any, to: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(to) if value.dtype in (dtype, wide) else value
        return type(value)(cast(one, to) for one in value) if type(value) in (tuple, list) else value

    def before(module, args, kwargs):
        inside.enter_context(maps.paused())
        return cast(args, dtype), {name: cast(value, dtype) for name, value in kwargs.items()}

    def after(module, args, output):
        inside.close()
        return cast(output, wide)

    stack.enter_context(block.before(module, before, prepend=True))
    stack.enter_context(block.after(module, after))
