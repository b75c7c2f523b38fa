"""Differences that are not formed yet: what they follow from is held.

So a chain of operations becomes one pass over blocks of rows, and no more rows than may ride at once are ever between two wide
linear maps. In: rows and differences of a riding tensor. Out: the differences, written to where they are wanted, such as between
the rows that enter a linear map. Knows no riding tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mask_impact.engine.riding.norms_and_gates import Activation, gated_difference

Piece = tuple[int, slice]  # the number of a sequence, and some of its variants


class Pending:
    """shape: [n, *row]; pieces: all n, see Ride.pieces."""

    shape: torch.Size
    pieces: tuple[Piece, ...]

    def piece(self, number: int, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """Some of the differences, written to `out` [m, *row], of any dtype, which is returned."""
        raise NotImplementedError

    def into(self, out: torch.Tensor) -> torch.Tensor:
        """All of them, written to `out` [n, *row], of any dtype, which is returned."""
        for number, rows in self.pieces:
            self.piece(number, rows, out[rows])
        return out


Held = torch.Tensor | Pending


def _part(held: Held, number: int, rows: slice, like: torch.Tensor) -> torch.Tensor:
    """Some of the differences; like: in whose dtype they are formed, where they are not yet."""
    if isinstance(held, torch.Tensor):
        return held[rows]
    n_rows = len(range(*rows.indices(held.shape[0])))
    return held.piece(number, rows, like.new_empty(n_rows, *held.shape[1:]))


@dataclass(frozen=True)
class Mapped(Pending):
    """What a linear map makes of differences. before: these, [n, *row, in]; apply: [m, in] to [m, out], without a bias; like: of
    what dtype it takes rows; shape: [n, *row, out]."""

    before: Held
    apply: Callable[[torch.Tensor], torch.Tensor]
    like: torch.Tensor
    shape: torch.Size
    pieces: tuple[Piece, ...]

    def piece(self, number: int, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """See Pending."""
        given = _part(self.before, number, rows, self.like)
        return out.copy_(self.apply(given.flatten(0, -2)).view(out.shape))


@dataclass(frozen=True)
class Activated(Pending):
    """act(g + d) - act(g). gate: [B, width], rows of the sequences; before: d [n, width], in the arithmetic's dtype or as a
    linear map of the model gave them; like: in whose dtype they are formed, where they are not yet."""

    activation: Activation
    gate: torch.Tensor
    before: Held
    like: torch.Tensor
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> torch.Size:
        """[n, width]."""
        return self.before.shape

    def piece(self, number: int, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """See Pending."""
        gate = self.gate[number]
        return out.copy_(self.activation.difference(gate, _part(self.before, number, rows, self.like).to(gate)))


@dataclass(frozen=True)
class Gated(Pending):
    """The difference of act(g) u. up: [B, width]; before: [n, width], the difference of u."""

    one: Activated
    up: torch.Tensor
    before: Held

    @property
    def shape(self) -> torch.Size:
        """[n, width]."""
        return self.before.shape

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """As of the activation."""
        return self.one.pieces

    def piece(self, number: int, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """See Pending."""
        gate, up, one = self.one.gate[number], self.up[number], self.one
        there = out if out.device == up.device else out.new_empty(out.shape, device=up.device)
        gate_rows, up_rows = (_part(held, number, rows, one.like) for held in (one.before, self.before))
        gated_difference(one.activation, gate, up, gate_rows, up_rows, out=there)
        return out if there is out else out.copy_(there)
