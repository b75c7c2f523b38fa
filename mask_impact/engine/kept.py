"""A pass of one sequence that was kept whole: every layer's states, from which later layers can run again (`replay`) and
gradients go back (`backward`).

Shapes: N positions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.ownership import Block
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.states import LayerState
from mask_impact.engine.taps import tapped
from mask_impact.models.architectures import Decoder


@dataclass(frozen=True)
class KeptPass:
    """states: of each layer, all positions; final: [1, N, hidden], what stands before the final norm; logits: [n, vocabulary],
    the model's own at the last n positions."""

    model: nn.Module
    decoder: Decoder
    states: list[LayerState]
    final: torch.Tensor
    logits: torch.Tensor

    @property
    def n_positions(self) -> int:
        """N, the length of the sequence."""
        return self.final.shape[1]

    def until(self, n: int) -> "KeptPass":
        """The pass of the first n positions, as if no more had been produced."""
        more = self.n_positions - n
        if more == 0:
            return self
        states = [state.until(n) for state in self.states]
        return replace(self, states=states, final=self.final[:, :n], logits=self.logits[:-more])

    def substituted(self, attention: Callable) -> AbstractContextManager[Block]:
        """A block in which whoever runs the model's layers gets `attention` in the place of its own; see taps.tapped."""
        return tapped(self.decoder, attention)


Kept = KeptPass | MaskingEngine  # an engine whose block is open and that keeps states is as good


@contextmanager
def keeping(engine: MaskingEngine) -> Iterator[list[KeptPass | None]]:
    """Opens an engine that keeps states of all positions; when it closes, the list has what its model was given meanwhile. None
    where the sequence was fed again: its states are no longer those that the first logits came from."""
    logits: list[torch.Tensor] = []
    found: list[KeptPass | None] = []
    with engine, engine.block.after(engine.model, lambda module, args, output: logits.append(output.logits[0])):
        yield found
        whole = KeptPass(engine.model, engine.decoder, engine.states, engine.final, torch.cat(logits))
        found.append(None if engine.fed_again else whole)


@torch.no_grad()
def keep(model: nn.Module, inputs: Mapping[str, Any], n_logits: int = 1) -> KeptPass:
    """Run the model on one whole sequence, prompt and what was produced so far. UsageError for a batch of several."""
    with keeping(MaskingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="all")) as found:
        model(**inputs, use_cache=False, logits_to_keep=n_logits)
    return found[0]
