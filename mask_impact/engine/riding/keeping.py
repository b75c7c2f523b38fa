"""Keeping the states of a decoder: its layers in the order in which their attentions run, and what stands
behind the last one.

A layer without a softmax attention is kept as the others are, without keys and values. Where it reads other positions in
another way (linear attention, state space, convolution), it runs again with all of them. Refuses what can't run again by itself:
arguments that are neither numbers nor tensors with a row for each position, something between two layers.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from mask_impact.engine.keeper import Keeper
from mask_impact.engine.ownership import Block, refuse_hooks
from mask_impact.engine.riding.layers import Layer, Layers
from mask_impact.engine.riding.tensor import states_in
from mask_impact.engine.states import NOT_KEPT, along_positions, is_shared
from mask_impact.engine.tail import Tail, TailWatch
from mask_impact.engine.taps import attention_options, each_visible_key, scaling_of, up_to_own, windowed_kernel
from mask_impact.errors import ModelError, UnsupportedArchitecture
from mask_impact.models.layer_kinds import beside_attention, reading_others

WHAT = "no effects, estimates or knockouts can be had"


@dataclass(frozen=True)
class FoundDecoder:
    """A decoder as a pass has shown it. layers: those of its list, in their order."""

    found: Layers
    layers: tuple[Layer, ...]
    n_heads: int

    @property
    def key(self) -> nn.Module:
        """As that of the lists it was found in."""
        return self.found.key

    @property
    def configs(self) -> tuple[object, ...]:
        """What says which attention backend the decoder has."""
        return self.found.configs

    @property
    def attentions(self) -> Any:
        """The modules one of which calls the attention of a layer."""
        return self.found.attentions

    @property
    def proven(self) -> bool:
        """Whether its layers have been seen to give the same when a part of their rows runs again."""
        return self.found.known.replayed

    def runs_whole(self, index: int) -> bool:
        """Whether a layer has to be given all positions again: it reads others by something beside a softmax attention, or counts
        them."""
        return self.layers[index].name in self.found.known.whole

    def make_whole(self, index: int) -> None:
        """From now on a layer is given all positions."""
        self.found.known.whole.add(self.layers[index].name)

    def carries(self, index: int) -> bool:
        """Whether such a layer has been seen to go on from a state: then the last position runs by itself."""
        return self.layers[index].name in self.found.known.carried

    def make_carrying(self, index: int, does: bool) -> None:
        """Whether a layer goes on from a state from now on."""
        (self.found.known.carried.add if does else self.found.known.carried.discard)(self.layers[index].name)

    def readers(self, index: int) -> tuple[nn.Module, ...]:
        """The modules of a layer that read other positions by something beside a softmax attention, as far as it is known."""
        return tuple(one for one in self.layers[index].module.children() if one in self.found.known.readers)

    def make_reader(self, module: nn.Module) -> None:
        """This is one."""
        self.found.known.readers.add(module)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """What is made opaque in a block that ends with an error is not, afterwards: it would make local numbers less exact."""
        known = self.found.known.opaque.modules
        before = list(known)
        try:
            yield
        except BaseException:
            known.intersection_update(before)
            raise

    def make_opaque(self, index: int, alike: bool = False) -> None:
        """From now on whole states go through what stands in a layer beside its attention; alike: through those of its modules
        alone that are built as some of other layers are that were found opaque. A module that no difference of an attention has
        gone through, as in a parallel branch, has not been asked yet."""
        known, layer = self.found.known.opaque, self.layers[index].module
        classes = {type(module) for module in known.modules}
        for module in layer.modules() if alike else layer.children():
            if not any(part in known.attentions for part in module.modules()) and (
                not alike or type(module) in classes
            ):
                known.modules.add(module)

    def opaque(self, index: int) -> tuple[nn.Module, ...]:
        """The modules of a layer that take whole states, without those within others of them."""
        known = self.found.known.opaque.modules
        some = [module for module in self.layers[index].module.modules() if module in known]
        inner = {id(part) for module in some for part in module.modules() if part is not module}
        return tuple(module for module in some if id(module) not in inner)


def _unless_given_up(told: Callable[..., None]) -> Callable[..., None]:
    """What an engine tells, and may go on after where the states need not be kept."""

    def tell(self: "StatesKeeping", *args: Any, **kwargs: Any) -> None:
        if self.problem is None:
            try:
                told(self, *args, **kwargs)
            except ModelError as error:
                if self.must:
                    raise
                self.problem = error

    return wraps(told)(tell)


class StatesKeeping:
    """The states of a single sequence. must: whether what can't be kept is an error; problem: why it can't, where it need not.
    decoder, tail: None before the first pass is done."""

    def __init__(self, model: nn.Module, layers: Layers, all_rows: bool, must: bool = True) -> None:
        self.model, self.layers, self.must = model, layers, must
        self.problem: ModelError | None = None
        self.keeper = Keeper(all_rows)
        self.decoder: FoundDecoder | None = None
        self.tail: Tail | None = None
        self._order: dict[Layer, int] = {}
        self._n_heads: set[int] = set()
        self._given: dict[Layer, tuple[tuple, dict]] = {}  # of layers that are running
        self._attended: set[Layer] = set()  # in this pass
        self._silent: set[Layer] = set()  # those that called no attention in this pass
        self._waiting: list[
            tuple[Layer, tuple[tuple, dict], Any]
        ] = []  # of the first pass, before any attention was called
        self._n_new = 0  # positions that are given in this pass
        self._last: torch.Tensor | None = None  # the output of the layer that was left last
        self._beside_last: list[torch.Tensor] = []  # what else it gave
        self._features: list[torch.Tensor] = []  # that the decoder is given in this pass
        self._watch = TailWatch(model)

    @contextmanager
    def attached(self, block: Block) -> Iterator[None]:
        """While the block is open, what is called behind the layers is seen. ModelError for hooks of others."""
        self._refuse_hooks()
        with ExitStack() as stack:
            for module in self._watch.beside(self.layers.decoder):
                stack.enter_context(block.after(module, self._beside))
            stack.enter_context(block.after(self.model, self._after_model))
            yield

    @_unless_given_up
    def _refuse_hooks(self) -> None:
        refuse_hooks(self.layers)

    @_unless_given_up
    def begin(self, anew: bool, given: Mapping[str, Any]) -> None:
        """A pass begins; anew: with the sequence from its beginning; given: the arguments of the decoder's call."""
        self._features = list(_tensors_in(given))
        self._given, self._attended, self._silent, self._last = {}, set(), set(), None
        self._waiting, self._beside_last = [], []
        self.keeper.begin(anew)

    @staticmethod
    def with_all_rows(kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the decoder's call, so that its last layers are given all positions, too: some run for those alone
        whose logits are asked for."""
        asked = isinstance(kwargs.get("logits_to_keep"), int)
        return kwargs | {"logits_to_keep": 0} if asked else kwargs

    @_unless_given_up
    def enter(self, layer: Layer, args: tuple, kwargs: dict) -> None:
        """A module of one of the lists is called."""
        self._given[layer] = args, kwargs

    @_unless_given_up
    def attend(self, layer: Layer | None, module, query, key, value, mask, options: Mapping[str, Any]) -> None:
        """An attention runs; layer: that its module is in."""
        if layer not in self._given:
            return
        if layer in self._attended:
            raise self._refused(f"{layer.name} calls an attention twice in one pass")
        self._attended.add(layer)
        for other, given, output in self._waiting:
            if other.among == layer.among:
                self._pass_by(other, given, output)
        self._waiting = []
        self._n_heads.add(query.shape[1])
        softcap, sinks = attention_options(self.layers, options)
        window = windowed_kernel(self.layers, dict(options))
        if mask is None and query.shape[2] > 1 and not _is_causal(module, options):
            raise self._refused(f"a query of {layer.name} sees what stands behind it, and no mask says so")
        ahead = mask is not None and _looks_ahead(query, key, mask, window)
        self.layers.known.ahead |= ahead
        index = self._enter(layer, self._given[layer])
        self.keeper.states[index].looks_ahead |= ahead
        self.keeper.attend(index, query, key, value, mask, window, scaling_of(query, options), softcap, sinks)

    @_unless_given_up
    def leave(self, layer: Layer, output: Any) -> None:
        """A module of one of the lists is done."""
        given = self._given.pop(layer, None)
        if layer in self._attended:
            self._leave(layer, output)
        elif given is not None and not self._order and self.layers.is_outer(layer):
            self._waiting.append((layer, given, output))
        elif given is not None and self._order and layer.among == next(iter(self._order)).among:
            self._pass_by(layer, given, output)

    def _pass_by(self, layer: Layer, given: tuple[tuple, dict], output: Any) -> None:
        """A layer that called no attention is done."""
        if layer in self._silent:
            raise self._refused(f"{layer.name} runs twice in one pass")
        self._silent.add(layer)
        self._enter(layer, given)
        self._leave(layer, output)

    def _enter(self, layer: Layer, given: tuple[tuple, dict]) -> int:
        """Keeps what a layer was given; returns its number."""
        index, known = self._order.setdefault(layer, len(self._order)), self.layers.known
        states, rest = _arguments_of(layer, *given)
        if index > 0 and states.shape[1] != self._n_new:
            raise self._refused(f"{layer.name} is given {states.shape[1]} of {self._n_new} positions")
        self._n_new = states.shape[1]
        for name, value in rest.items():
            if any(value is one for one in self._beside_last):
                raise self._refused(f"{layer.name} is given `{name}` by the layer before it, beside its states")
        if index > 0 and not _is_added(self._features, self._last, states):
            raise self._refused(f"something stands between {layer.name} and the layer before it")
        self.keeper.enter(index, states, rest, not known.replayed or known.ahead or layer.name in known.whole)
        return index

    def _leave(self, layer: Layer, output: Any) -> None:
        states = next(states_in(output), None)
        if states is None:
            raise self._refused(f"{layer.name} gives no states [sequences, positions, hidden]")
        self._last = states
        parts = output if isinstance(output, tuple | list) else ()
        self._beside_last = [one for one in parts if isinstance(one, torch.Tensor) and one is not states]
        self.keeper.leave(self._order[layer], states)
        self._watch.calls.clear()

    @_unless_given_up
    def finish(self) -> None:
        """The decoder's pass is done."""
        order = tuple(self._order)
        if not order or len(self._attended) + len(self._silent) < len(order):
            raise self._refused("its layers are not the same in each pass")
        missing = [layer.name for layer in self.layers.siblings(order[0]) if layer not in self._order]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise self._refused(f"{', '.join(missing[:3])}{more} are not called")
        if [layer.index for layer in order] != list(range(len(order))):
            raise self._refused("its layers run in another order than they lie in")
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        if self._n_heads != {heads}:
            raise self._refused(f"its layers have {', '.join(map(str, sorted(self._n_heads)))} heads, not {heads}")
        self.keeper.finish()
        self.decoder = FoundDecoder(self.layers, order, heads)
        silent = [layer.index for layer in order if layer in self._silent]
        with_attention = [layer.index for layer in order if layer in self._attended]
        for index in (*reading_others(config, silent), *beside_attention(config, with_attention)):
            self.decoder.make_whole(index)

    @_unless_given_up
    def _beside(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.tail is None:
            self._watch.note(module, args, output)

    @_unless_given_up
    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.tail is None and self._last is not None:
            tail = self._watch.found(self._last, output.logits[0, -1])
            behind = [*(one for _, one in tail.modules), tail.head]
            names = {one: name for part in (self.model, self.layers.decoder) for name, one in part.named_modules()}
            refuse_hooks(self.layers, {names.get(one, type(one).__name__): one for one in behind})
            self.tail = tail

    def _refused(self, what: str) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(f"{what} ({type(self.model).__name__}): {WHAT}")


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part)


def _is_added(features: list[torch.Tensor], left: torch.Tensor, entered: torch.Tensor) -> bool:
    """Whether between two layers nothing happens but that rows of one of the features [.., hidden] are added to some positions,
    in their order: what is added is the same then, whatever the states are. left, entered: [1, n, hidden], what the one layer
    gave and the other is given."""
    left = left.to(entered.device)
    if torch.equal(left, entered):
        return True
    wide = torch.promote_types(entered.dtype, torch.float32)
    added = (entered.to(wide) - left.to(wide))[0]
    some = added.any(dim=-1)
    added, bound = added[some], torch.finfo(entered.dtype).eps * entered[0, some].to(wide).abs()
    for one in features:
        if not one.is_floating_point() or one.dim() == 0 or one.shape[-1] != added.shape[-1]:
            continue
        rows = one.detach().to(added).reshape(-1, added.shape[-1])
        rows = rows[rows.any(dim=-1)]
        if rows.shape == added.shape and bool(((rows - added).abs() <= bound).all()):
            return True
    return False


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether a call without a mask is."""
    causal = options.get("is_causal")
    return getattr(module, "is_causal", True) if causal is None else causal


def _looks_ahead(query, key, mask: torch.Tensor, window: int | None) -> bool:
    """Whether some query of a call sees a later position, so that what is changed there changes it too."""
    n_rows, n_keys = query.shape[2], key.shape[2]
    if n_rows == 1:
        return False
    visible = each_visible_key(mask, 0, n_rows, n_keys, window, key.device)
    return bool((visible & ~up_to_own(n_rows, n_keys, key.device)).any())


def _arguments_of(layer: Layer, args: tuple, kwargs: dict) -> tuple[torch.Tensor, dict[str, Any]]:
    """(states [1, n, hidden], the other arguments by name) of a layer's call; UnsupportedArchitecture where one can't be kept."""
    bound = inspect.signature(layer.module.forward).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise UnsupportedArchitecture(f"{layer.name} is given arguments without a name: {WHAT}")
        else:
            named[name] = value
    first = next(iter(named), None)
    states = named.pop(first, None)
    if not isinstance(states, torch.Tensor) or states.dim() != 3 or len(states) != 1:
        raise UnsupportedArchitecture(f"{layer.name} is not given states [1, positions, hidden] first: {WHAT}")
    for name, value in named.items():
        if name not in NOT_KEPT and not _can_be_kept(value, states.shape[1]):
            what = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise UnsupportedArchitecture(
                f"{layer.name} is given `{name}`, {what}, without a row for each position: {WHAT}"
            )
    return states, named


def _can_be_kept(value: Any, n: int) -> bool:
    """Whether an argument is a number or text, a tensor that has n positions or is the same for all, or some of these; or shared
    keys."""
    if is_shared(value):
        return True
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(_can_be_kept(one, n) for one in value)
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 or along_positions(value, n) is not None
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device | Cache)
