"""Rows of several sequences one behind the other, without padding: sequences that end together and begin where they like.

Beside them stands what hides nothing, a sequence of its own that begins first. Every row of the others has a row of it at the
same position, and goes through linear maps as the difference from that row.
Shapes: V sequences, R rows of one of them, P rows of all, N rows of what hides nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Run:
    """Neighbours that begin at the same position. which: of the sequences; first: the row of all that the first of them begins
    at; n_rows: R, of each."""

    which: range
    first: int
    n_rows: int

    def of(self, packed: torch.Tensor) -> torch.Tensor:
        """[n, heads, R, D], its n sequences, of [1, heads, P, D]."""
        n = len(self.which)
        part = packed[0, :, self.first : self.first + n * self.n_rows]
        return part.unflatten(1, (n, self.n_rows)).transpose(0, 1)


@dataclass(frozen=True)
class Packed:
    """Rows of sequences that end together and begin at `starts` (int64 [V]), one sequence behind the other. ends: int64 [1 + V],
    the first row of each sequence, and the number of all rows; at: int64 [P], the position of each row."""

    starts: torch.Tensor
    ends: torch.Tensor
    at: torch.Tensor
    n_positions: int

    @classmethod
    def of(cls, starts: torch.Tensor, n_positions: int) -> "Packed":
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), (n_positions - starts).cumsum(0)])
        at = torch.cat([torch.arange(start, n_positions) for start in starts.tolist()])
        return cls(starts, ends, at, n_positions)

    def positions(self, first: int, n: int) -> torch.Tensor:
        """int64 [P], of the rows of the sequences from `first` to n, counted from the end (-1 is the last)."""
        return self.at[self.ends[first] : self.ends[n]] - self.n_positions

    def places(self, positions: Sequence[int]) -> torch.Tensor:
        """int64 [V, R], the rows of the positions in each sequence."""
        return (self.ends[:-1] - self.starts)[:, None] + torch.tensor(positions)

    def runs(self, n: int) -> list[Run]:
        """The first n sequences, in runs."""
        starts = self.starts[:n].tolist()
        cuts = [0, *(at for at in range(1, n) if starts[at] != starts[at - 1]), n]
        return [
            Run(range(one, other), int(self.ends[one]), self.n_positions - starts[one]) for one, other in pairwise(cuts)
        ]


Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]  # what linear maps were given and what they made of it


class Promoted(TorchFunctionMode):
    """While it is open, norms take states in another dtype than their weights'. A TorchFunctionMode, since layers call them where
    they like."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in NORMS:
            states = args[0] if args else kwargs["input"]
            args = tuple(_like(one, states) for one in args)
            kwargs = {name: _like(one, states) for name, one in kwargs.items()}
        return self.called(function, args, kwargs)

    def called(self, function, args: tuple, kwargs: dict):
        """Every other function."""
        return function(*args, **kwargs)


def _like(value: Any, states: torch.Tensor) -> Any:
    return value.to(states.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class LinearMaps(Promoted):
    """While it is open, `mapped` is what a linear map does: torch's linear, and a product with a matrix of weights, also with a
    bias before it."""

    def __init__(self) -> None:
        super().__init__()
        self._paused = False

    def called(self, function, args: tuple, kwargs: dict):
        """Linear maps among all functions."""
        taken = None if self._paused else _LINEAR.get(function)
        given = None if taken is None else taken(*args, **kwargs)
        return function(*args, **kwargs) if given is None else self.mapped(*given)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block is open linear maps are what they are."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


class OfNothing(LinearMaps):
    """Linear maps of what hides nothing. pairs: what each was given and what it made of it, [N, in] and [N, out], in their
    order; copies, since layers may write into either."""

    def __init__(self) -> None:
        super().__init__()
        self._given = _Given()
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def mapped(self, apply, states, weight, bias):
        """States go to the weights' dtype and come back."""
        made = apply(states.to(weight.dtype), weight).to(states.dtype)
        made = made if bias is None else made + bias
        if not self._given.is_of(states):  # several maps are given the same
            self._given = _Given(states, states.flatten(0, -2).clone())
        self.pairs.append((self._given.parts[0], made.flatten(0, -2).clone()))
        return made


class _Given:
    """What a linear map was given, and what was made of it then for a dtype of weights: it holds as long as nothing is written
    into the states."""

    def __init__(self, states: torch.Tensor | None = None, *parts: Any, dtype: torch.dtype | None = None) -> None:
        self.states, self.parts, self.dtype = states, parts, dtype
        self._version = None if states is None or states.is_inference() else states._version

    def is_of(self, states: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
        """Whether these states are the same, unchanged, and the dtype is."""
        same = self.states is states and self.dtype == dtype
        return self._version is not None and same and states._version == self._version


class ByDifferences(LinearMaps):
    """Linear maps of other sequences: each row is mapped as its difference from a row of what hides nothing.

    pairs: of OfNothing; own: int64 [P], of each row the row that it differs from; scale: of the differences, which changes
    nothing but how they are rounded."""

    def __init__(self, pairs: Pairs, own: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self._pairs = iter(pairs)
        self._own, self._scale = own, scale
        self._given = _Given()

    def mapped(self, apply, states, weight, bias):
        """What hides nothing, as it was mapped, and behind it the map of the difference. What is the same as then, such as
        weights that a layer multiplies with each other, is mapped to the same."""
        given, made = next(self._pairs)
        own = self._own.to(states.device)
        if states.shape[:-1].numel() == len(given) and torch.equal(states.flatten(0, -2), given):
            return made.view(*states.shape[:-1], made.shape[-1])
        if not self._given.is_of(states, weight.dtype):  # an adapter may have another one than its map
            differences = states.flatten(0, -2) - given[own]
            units = in_units(differences, weight.dtype, self._scale)
            self._given = _Given(states, *units, dtype=weight.dtype)
        differences, unit = self._given.parts
        found = apply(differences, weight).to(states.dtype)
        if unit is not None:
            found *= unit
        found += made[own]
        return found.view(*states.shape[:-1], found.shape[-1])


def in_units(differences: torch.Tensor, dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([..., n] in the dtype, [..., 1] what each row was divided by, or None for 1). In float16 small differences would vanish;
    a power of two changes no digit."""
    unit = None if scale == 1.0 else torch.tensor([scale], dtype=differences.dtype, device=differences.device)
    if dtype == torch.float16:
        largest = differences.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(differences.dtype).tiny)
        unit = largest.log2().ceil().exp2() * scale
    return (differences if unit is None else differences / unit).to(dtype), unit


NORMS = (torch.nn.functional.layer_norm, torch.nn.functional.rms_norm)


def _of_linear(input, weight, bias=None):
    return torch.nn.functional.linear, input, weight, bias


def _of_addmm(*args, **how):
    """A sum with a product, where it is a map with a bias."""
    if how or len(args) != 3 or not _weights(args[2]) or args[0].dim() != 1:
        return None
    return torch.matmul, args[1], args[2], args[0]


def _of_product(*args, **how):
    """A product, where it is one with a matrix of weights."""
    return None if how or len(args) != 2 or not _weights(args[1]) else (torch.matmul, *args, None)


def _weights(value: Any) -> bool:
    return isinstance(value, torch.nn.Parameter) and value.dim() == 2


# By function (how a map is applied, its states, weights, bias), or None where it is none.
_LINEAR = {torch.nn.functional.linear: _of_linear, torch.addmm: _of_addmm} | dict.fromkeys(
    (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm), _of_product
)
