"""Verification: some (step, layer, token) are measured again while the model runs, by really masking the token.

When a layer is done, a float32 copy of it runs on what the model gave it, cache included: once with nothing hidden, once with
the token hidden from the last query. Its attention there is a softmax in float64 (`plain_attention`). Distances are
subtractions of the two runs. Nothing rides, and no rule for an operation is used.
"""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mask_impact.engine.plain_attention import PlainAttention
from mask_impact.engine.recording import RawStep
from mask_impact.engine.riding.layers import Attending, Layer, Layers
from mask_impact.engine.riding.probe import snapshot
from mask_impact.engine.riding.written_out import written_out
from mask_impact.engine.taps import tapped
from mask_impact.errors import UnsupportedArchitecture


@dataclass(frozen=True)
class Verification:
    """triples: the (step, layer, position) re-measured; errors: of each the largest relative difference of an L2 distance over
    its variants; error: the largest of them, NaN where nothing could be measured.

    An error is relative to the re-measured distance, or to a thousandth of the largest distance of that variant in that layer
    and step where the re-measured one is smaller: below, the subtraction of two float32 outputs has no digits to compare. A
    distance of Full below its layer's noise floor counts as much as the floor, at most as a tenth of the largest.
    """

    triples: tuple[tuple[int, int, int], ...]
    errors: tuple[float, ...]
    error: float

    @classmethod
    def of(cls, found: Sequence[tuple[tuple[int, int, int], float]]) -> "Verification":
        """Of triples with their errors."""
        errors = tuple(error for _, error in found)
        largest = max(errors, key=lambda error: (math.isnan(error), error), default=math.nan)
        return cls(tuple(triple for triple, _ in found), errors, largest)


def choose_layers(n_layers: int, n_triples: int, seed: int = 0, without: Sequence[int] = ()) -> list[int]:
    """The layers of the triples, chosen before the run so that their inputs can be kept: each layer once before one has its
    turn again. without: those in which nothing can be measured."""
    layers = [layer for layer in range(n_layers) if layer not in without]
    random.Random(seed).shuffle(layers)
    return [layers[number % len(layers)] for number in range(n_triples if layers else 0)]


def error_of(step: RawStep, place: int, position: int, expected: torch.Tensor, groups: Sequence[str]) -> float:
    """See Verification; place: of the layer among those of the step; expected: [V], of one of its positions."""
    measured = step.l2[place]  # [P_t, V]
    row, expected = step.positions.tolist().index(position), expected.to(measured)
    largest = measured.amax(dim=0)
    smallest = 1e-3 * largest
    if "full" in groups and bool(torch.isfinite(step.noise_floor[place])):  # the first of the variants
        smallest[0] = torch.maximum(smallest[0], step.noise_floor[place].to(largest).minimum(largest[0] / 10))
    scale = torch.maximum(expected, smallest).clamp_min(torch.finfo(measured.dtype).tiny)
    return float(((measured[row] - expected).abs() / scale).max())


@dataclass
class _Place:
    """What was measured again last of one of the triples. layer: its number in its list; expected: [V], L2 distances."""

    layer: int
    step: int = -1
    name: str = ""
    position: int = -1
    expected: torch.Tensor | None = None


class Remeasuring:
    """Measures a triple for each entry of `layers` (numbers in their list): of all steps one at random. How many there will be is
    not known, so that a later step may take an earlier one's place.

    groups: which of full, attn, heads; ablation: what hiding means.
    """

    def __init__(self, layers: Sequence[int], groups: Sequence[str], ablation: str = "mask", seed: int = 1) -> None:
        self.groups, self.ablation = tuple(groups), ablation
        self._places = [_Place(layer) for layer in sorted(layers)]
        self._random = random.Random(seed)
        self._wanted: dict[Layer, list[_Place]] = {}  # in layers that run

    def wants(self, step: int, layer: Layer) -> bool:
        """Whether something is to be measured in a layer at a step; asked once, before it runs."""
        of_layer = [place for place in self._places if place.layer == layer.index]
        self._wanted[layer] = [place for place in of_layer if self._random.randrange(step + 1) == 0]
        return bool(self._wanted[layer])

    def pass_on(self, layer: Layer, n_layers: int) -> None:
        """A layer has run that has no attention: the next one takes its place, where nothing has been measured yet."""
        for place in self._wanted.pop(layer, []):
            if place.expected is None:
                place.layer = (layer.index + 1) % n_layers

    def measure(
        self,
        layers: Layers,
        layer: Layer,
        given: tuple[tuple, dict],
        step: int,
        positions: Sequence[int],
        n_positions: int,
    ) -> None:
        """The layer has run. given: its arguments as they were before; positions: those that the engine hid, of n_positions.
        UsageError for weights that can't be written out, UnsupportedArchitecture for an attention that is not known here."""
        wanted = self._wanted.pop(layer, [])
        if not wanted:
            return
        again = _Again(layers, layer, *given, n_positions, self.ablation)
        before = again.run(None)
        in_sight = [position for position in positions if position in again.visible] or positions
        for place in wanted:
            place.step, place.name, place.position = step, layer.name, self._random.choice(in_sight)
            after = again.run(place.position)
            place.expected = torch.cat([_distances(group, before, after) for group in self.groups])

    def compared(self, steps: Sequence[RawStep], mapped: Sequence[str], attending: Attending) -> Verification:
        """What was measured again, held against the engine's numbers. mapped, attending: names and numbers of the steps' rows."""
        found = []
        for place in self._places:
            if place.expected is not None:
                row = list(mapped).index(place.name)
                error = error_of(steps[place.step], row, place.position, place.expected, self.groups)
                found.append(((place.step, attending.numbers[row], place.position), error))
        return Verification.of(sorted(found))


@dataclass
class _Seen:
    """Of one run, the last position: heads [H, E], the layer's output [hidden], and the operands of sums behind the attention."""

    heads: torch.Tensor | None = None
    full: torch.Tensor | None = None
    sums: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def _distances(group: str, before: _Seen, after: _Seen) -> torch.Tensor:
    if group == "heads":
        return torch.linalg.vector_norm(after.heads - before.heads, dim=-1).cpu()
    change = after.full - before.full if group == "full" else _first_added(before, after)
    return torch.linalg.vector_norm(change).reshape(1).to(torch.float64).cpu()


def _first_added(before: _Seen, after: _Seen) -> torch.Tensor:
    """[hidden], the change of what is first added to something that is the same in both runs."""
    for one, other in zip(before.sums, after.sums, strict=False):  # experts may be others
        changes = [b - a for a, b in zip(one, other, strict=True)]
        moved = [change for change in changes if bool(change.any())]
        if len(moved) == 1:
            return moved[0]
    return torch.zeros_like(before.full)


class _Again:
    """A layer that runs again, its attention being a PlainAttention for the last query. visible: the positions that this sees,
    once the layer has run with nothing hidden."""

    def __init__(
        self, layers: Layers, layer: Layer, args: tuple, kwargs: dict, n_positions: int, ablation: str
    ) -> None:
        self.module, self.args, self.kwargs = written_out(layer.name, layer.module, args, kwargs)
        self.layers, self.layer, self.n_positions, self.ablation = layers, layer, n_positions, ablation
        self.visible: set[int] = set()
        self._with_all = True  # softcap and sinks: not every backend knows them

    def run(self, hidden: int | None) -> _Seen:
        """With one position hidden from the last query, or none."""
        seen, sums = _Seen(), _Sums()
        called: list[nn.Module] = []

        def attend(own, module, query, key, value, mask, *rest: Any, **options: Any) -> tuple:
            output = own(query, key, value, mask, *rest, **options)
            asked = PlainAttention(query[0, :, -1:], key[0], value[0], mask, options)
            seen.heads = self._row(asked, hidden, output[0][0, -1])
            called.append(module)
            changed = output[0].clone()
            changed[0, -1] = seen.heads
            return (changed, *output[1:])

        def left(module, args, output) -> None:
            sums.open = sums.open or module in called

        args, kwargs = snapshot(self.args, self.kwargs)
        with ExitStack() as stack, torch.no_grad():
            block = stack.enter_context(tapped(self.layers, attend, self.module.modules()))
            for inner in self.module.modules():
                stack.enter_context(block.after(inner, left))
            stack.enter_context(sums)
            output = self.module.forward(*args, **kwargs)
        seen.full, seen.sums = _last(output if isinstance(output, torch.Tensor) else output[0]), sums.seen
        return seen

    def _row(self, asked: PlainAttention, hidden: int | None, own: torch.Tensor) -> torch.Tensor:
        """[H, E], which has to be the model's own [H, E] where nothing is hidden."""
        first = self.n_positions - asked.key.shape[1]  # a window's cache has dropped those before
        if hidden is not None:
            key = hidden - first if hidden >= first else None
            return replace(asked, with_all=self._with_all).output(key, self.ablation)[:, 0]
        seen = torch.isfinite(asked.logits()).flatten(0, 1).any(dim=0)
        self.visible = {first + key for key in seen.nonzero().flatten().tolist()}
        plain = asked.like(own.unsqueeze(1))
        if plain is None:
            raise UnsupportedArchitecture(
                f"`verify` can't form the attention of {self.layer.name} ({type(self.layer.module).__name__}): leave `verify` out"
            )
        self._with_all = plain.with_all
        return plain.output()[:, 0]


def _last(rows: torch.Tensor) -> torch.Tensor:
    """[width], the last row."""
    return rows.reshape(-1, rows.shape[-1])[-1].clone()


def _are_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dim() > 1


_SUMS: dict[str, float] = {"add": 1, "__add__": 1, "__radd__": 1, "add_": 1, "__iadd__": 1, "sub": -1, "__sub__": -1}


class _Sums(TorchFunctionMode):
    """Sees the operands of sums of tensors that are as large as the result, once it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, function: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        factor = _SUMS.get(getattr(function, "__name__", ""))
        operands = [one for one in args if isinstance(one, torch.Tensor)]
        if self.open and factor is not None and len(operands) == 2 and _are_rows(*operands):
            one, other = (_last(operand) for operand in operands)
            self.seen.append((one, other * (factor * kwargs.get("alpha", 1))))
        return function(*args, **kwargs)
