"""Rows of several sequences one behind the other, without padding: sequences that end together and begin where they like.

The first sequence begins first. Every row of the others has a row of the first one at the same position, and goes through linear
maps as the difference from it.
Shapes: V sequences behind the first, R rows of one of them, P rows of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """Rows of sequences that end together and begin at `starts` (int64 [1 + V]), one sequence behind the other. ends: int64
    [2 + V], the first row of each sequence, and the number of all rows; at: int64 [P], the position of each row."""

    starts: torch.Tensor
    ends: torch.Tensor
    at: torch.Tensor
    n_positions: int

    @classmethod
    def of(cls, starts: torch.Tensor, n_positions: int) -> "Packed":
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), (n_positions - starts).cumsum(0)])
        at = torch.cat([torch.arange(start, n_positions) for start in starts.tolist()])
        return cls(starts, ends, at, n_positions)

    def positions(self, n: int) -> torch.Tensor:
        """int64 [P], of the rows of the first n sequences, counted from the end (-1 is the last)."""
        return self.at[: self.ends[n]] - self.n_positions

    def own(self, first: int, n: int) -> torch.Tensor:
        """int64 [P], for the rows of the sequences from `first` to n the row of the first sequence at the same position."""
        return self.at[self.ends[first] : self.ends[n]] - self.starts[0]

    def places(self, positions: Sequence[int]) -> torch.Tensor:
        """int64 [1 + V, R], the rows of the positions in each sequence."""
        return (self.ends[:-1] - self.starts)[:, None] + torch.tensor(positions)

    def runs(self, n: int) -> list[Run]:
        """The first n sequences, in runs."""
        starts = self.starts[:n].tolist()
        cuts = [0, *(at for at in range(1, n) if starts[at] != starts[at - 1]), n]
        return [
            Run(range(one, other), int(self.ends[one]), self.n_positions - starts[one]) for one, other in pairwise(cuts)
        ]


class ByDifferences(TorchFunctionMode):
    """While it is open, a linear map takes the rows of what hides nothing as they are, and of the others their difference from
    the row at the same position. own: int64 [P], of each row the row that it differs from; scale: of the differences."""

    def __init__(self, own: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.n_own = int(own.max()) + 1
        self.own, self.scale = own, scale

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.nn.functional.linear:
            return function(*args, **(kwargs or {}))
        states, weight, bias = _linear_arguments(*args, **(kwargs or {}))
        rows = states.flatten(0, -2)
        if len(rows) != len(self.own) or len(rows) == self.n_own:  # some rows of an expert's, or nothing to differ from
            return function(states.to(weight.dtype), weight, bias).to(states.dtype)
        first = rows[: self.n_own]
        own = self.own[self.n_own :].to(rows.device)
        differences = rows[self.n_own :] - first[own]
        unit = unit_of(differences) * self.scale
        # Together: the weights are read once.
        mapped = function(torch.cat([first, differences / unit]).to(weight.dtype), weight).to(rows.dtype)
        of_first = mapped[: self.n_own] if bias is None else mapped[: self.n_own] + bias
        mapped = torch.cat([of_first, of_first[own] + mapped[self.n_own :] * unit])
        return mapped.view(*states.shape[:-1], mapped.shape[-1])


def unit_of(differences: torch.Tensor) -> torch.Tensor:
    """[..., 1], what each row is divided by: in float16 small differences would vanish; a power of two changes no digit."""
    return differences.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(differences.dtype).tiny).log2().ceil().exp2()


def _linear_arguments(input, weight, bias=None):
    return input, weight, bias
