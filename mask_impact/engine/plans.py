"""What an engine is to do with each sequence of a batch: what to mask, and for how long."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch

from mask_impact.errors import UsageError


@dataclass(frozen=True)
class Masked:
    """Which positions are masked, one after the other. prompt: bool [prompt length]; produced: those behind it."""

    prompt: torch.Tensor
    produced: bool

    def positions(self, n_positions: int) -> torch.Tensor:
        """int64 [P_t], ascending, of a sequence of n_positions."""
        flags = torch.full((n_positions,), self.produced)
        flags[: len(self.prompt)] = self.prompt
        return flags.nonzero().flatten()


@dataclass(frozen=True)
class SequencePlan:
    """What to do with one sequence of a batch. padding: how many positions of left padding it has, which are neither masked
    nor counted as positions; masked: which of its positions to mask (None: all); n_steps: for how many forward passes."""

    padding: int = 0
    masked: Masked | None = None
    n_steps: int | None = None

    def positions(self, n_positions: int) -> torch.Tensor:
        """int64 [P_t], those to mask, of a sequence of n_positions without its padding."""
        return torch.arange(n_positions) if self.masked is None else self.masked.positions(n_positions)


def measured_at(step: int, plans: Sequence[SequencePlan], finished: Container[int]) -> list[int]:
    """The numbers of the sequences that are measured at a forward pass; finished: of those that have ended."""
    return [
        number
        for number, plan in enumerate(plans)
        if number not in finished and (plan.n_steps is None or step < plan.n_steps)
    ]


def check_batch(plans: Sequence[SequencePlan], n_sequences: int) -> None:
    """UsageError where the model was given another number of sequences than there are plans."""
    if n_sequences != len(plans):
        expected = "one sequence" if len(plans) == 1 else f"{len(plans)} sequences"
        raise UsageError(f"{expected} at a time can be analysed; the model was given {n_sequences}")
