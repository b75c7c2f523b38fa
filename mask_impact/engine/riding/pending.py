"""Differences that are not formed yet: what they follow from is held.

So a chain of operations becomes one pass over blocks of rows. In: rows and differences of a riding tensor before an activation,
and of what the activation is multiplied by. Out: the differences, written to where they are wanted, such as between the rows
that enter a linear map. Knows no riding tensor.
"""

from dataclasses import dataclass

import torch

from mask_impact.engine.propagation import Activation, gated_difference


@dataclass(frozen=True)
class Activated:
    """act(g + d) - act(g). gate: [B, width], rows of the sequences; differences: [n, width], in the arithmetic's dtype or as a
    linear map of the model gave them; spans: which of these are of which sequence, see Ride.spans."""

    activation: Activation
    gate: torch.Tensor
    differences: torch.Tensor
    spans: tuple[tuple[int, slice], ...]

    @property
    def shape(self) -> torch.Size:
        """[n, width]."""
        return self.differences.shape

    def into(self, out: torch.Tensor) -> torch.Tensor:
        """Written to `out`, of any dtype, which is returned."""
        for number, rows in self.spans:
            gate = self.gate[number]
            out[rows] = self.activation.difference(gate, self.differences[rows].to(gate))
        return out


@dataclass(frozen=True)
class Gated:
    """The difference of act(g) u. up: [B, width]; differences: [n, width], those of u."""

    one: Activated
    up: torch.Tensor
    differences: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """[n, width]."""
        return self.differences.shape

    def into(self, out: torch.Tensor) -> torch.Tensor:
        """Written to `out`, of any dtype, which is returned."""
        there = out if out.device == self.up.device else out.new_empty(out.shape, device=self.up.device)
        for number, rows in self.one.spans:
            gated_difference(
                self.one.activation,
                self.one.gate[number],
                self.up[number],
                self.one.differences[rows],
                self.differences[rows],
                out=there[rows],
            )
        return out if there is out else out.copy_(there)


Pending = Activated | Gated
