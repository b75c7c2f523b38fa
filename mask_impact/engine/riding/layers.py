"""A decoder's layers: what lies in a list of modules.

Which of them have a softmax attention shows in a forward.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from mask_impact.engine.riding.opaque import Opaque
from mask_impact.errors import UnsupportedArchitecture

_kinds: dict[tuple, int] = {}  # how layers are built, each with its number


@dataclass(frozen=True, eq=False)
class Layer:
    """One module of a list. name: its path in the model; among: the path of the list."""

    name: str
    among: str
    module: nn.Module

    @property
    def index(self) -> int:
        """Its number in the list."""
        return int(self.name.rpartition(".")[2])

    @cached_property
    def kind(self) -> int:
        """A number that is the same for layers that are built alike."""
        built = tuple((name, type(module)) for name, module in self.module.named_modules())
        return _kinds.setdefault(built, len(_kinds))


@dataclass
class Known:
    """What is found out once about a model: opaque modules, the kinds of layers whose differences were proven, or that were seen
    without an attention, or in which nothing was opaque, and whether its layers give the same when a part of their rows runs
    again; whole: the names of those that do so with all of their rows alone, carried: of those that go on from a state; readers:
    modules that read other positions by something beside a softmax attention; ahead: whether a query was seen to look at what
    stands behind it."""

    opaque: Opaque = field(default_factory=Opaque)
    proven: set[int] = field(default_factory=set)
    without: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    replayed: bool = False
    whole: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    ahead: bool = False
    readers: WeakSet[nn.Module] = field(default_factory=WeakSet)

    def to_prove(self, layer: Layer) -> bool:
        """Whether nothing is known of such layers yet."""
        return layer.kind not in self.proven and layer.kind not in self.without


_known: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()


@dataclass(frozen=True)
class Attending:
    """Which layers of a decoder have a softmax attention, as a forward pass has shown. numbers: of these, in the order of their
    calls; n_layers: how many layers there are; others: the names of those that have none."""

    numbers: tuple[int, ...]
    n_layers: int
    others: tuple[str, ...]

    @property
    def other_numbers(self) -> tuple[int, ...]:
        """The numbers of those that have none, ascending."""
        return tuple(sorted(set(range(self.n_layers)) - {*self.numbers}))


@dataclass(frozen=True)
class Layers:
    """A decoder with the modules of its lists. layers: those of the longest list first. Where lists lie in each other, a module
    belongs to the innermost."""

    decoder: nn.Module
    layers: tuple[Layer, ...]
    around: dict[nn.Module, Layer]  # of each module within a list, itself included

    @property
    def key(self) -> nn.Module:
        """What stands for the decoder, whatever wraps it."""
        return self.layers[0].module

    @property
    def configs(self) -> tuple[object, ...]:
        """What says which attention backend the decoder has."""
        return (self.decoder.config,)

    @property
    def known(self) -> Known:
        """What has been found out about the decoder so far."""
        return _known.setdefault(self.decoder, Known())

    @property
    def attentions(self) -> Iterable[nn.Module]:
        """The modules one of which calls the attention of a layer."""
        return self.decoder.modules()

    def place_of(self, module: nn.Module) -> int | None:
        """The number in its list of the layer that a module is in; None for one that is in none."""
        layer = self.around.get(module)
        return None if layer is None else layer.index

    def is_outer(self, layer: Layer) -> bool:
        """Whether its list lies in no layer of another one."""
        return not any(layer.among.startswith(f"{other.among}.") for other in self.layers)

    def siblings(self, layer: Layer) -> list[Layer]:
        """All layers of its list, in their order."""
        return [other for other in self.layers if other.among == layer.among]

    def with_attention(self, found: Sequence[Layer]) -> Attending:
        """Which of the decoder's layers those are in which an attention was called; found: these, in the order of their calls.
        UnsupportedArchitecture where they are parts of several lists, which have other layers besides."""
        beside = {other: None for layer in found for other in self.siblings(layer)}
        called = {layer.module for layer in found}  # a layer may have been found by another look at the same model
        others = [layer for layer in beside if layer.module not in called]
        if not others:
            return Attending(tuple(range(len(found))), len(found), ())
        if len({layer.among for layer in found}) > 1:
            raise UnsupportedArchitecture(
                f"layers with a softmax attention and others lie in several lists of {type(self.decoder).__name__}: "
                "which number a layer has can't be said"
            )
        return Attending(
            tuple(self.place_of(layer.module) for layer in found), len(beside), tuple(layer.name for layer in others)
        )


def decoder_of(model: nn.Module) -> Layers:
    """The lists of modules in a model's decoder; UnsupportedArchitecture where there is none."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [(name, part) for name, part in decoder.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists or not hasattr(decoder, "config"):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no list of layers in a decoder of transformers: load it with its ForCausalLM or "
            "ForConditionalGeneration class"
        )
    around: dict[nn.Module, Layer] = {}
    found: dict[str, list[Layer]] = {}
    for among, modules in lists:  # outer lists first, so that inner ones overwrite
        found[among] = [Layer(f"{among}.{index}", among, module) for index, module in enumerate(modules)]
        around.update((inner, layer) for layer in found[among] for inner in layer.module.modules())
    ordered = sorted(found.values(), key=len, reverse=True)
    return Layers(decoder, tuple(layer for layers in ordered for layer in layers), around)


def no_attention(model: nn.Module) -> UnsupportedArchitecture:
    """What is raised where no layer's attention can be seen."""
    return UnsupportedArchitecture(
        f"no layer of {type(model).__name__} calls transformers' attention interface: nothing can be measured"
    )
