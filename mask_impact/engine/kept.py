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

from mask_impact.engine.ownership import Block
from mask_impact.engine.plans import Masked, SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.keeping import FoundDecoder
from mask_impact.engine.states import LayerState
from mask_impact.engine.tail import Tail
from mask_impact.engine.taps import tapped


@dataclass(frozen=True)
class KeptPass:
    """states: of each layer, all positions; tail: what stands between the last layer and the logits; final: [1, N, hidden], what
    it is given; logits: [n, vocabulary], the model's own at the last n positions."""

    model: nn.Module
    decoder: FoundDecoder
    tail: Tail
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


Kept = KeptPass | RidingEngine  # an engine whose block is open and that keeps states is as good
# A decoder shows in a first step what it is made of; one position is hidden in it.
_TO_FIND_OUT = SequencePlan(masked=Masked(torch.ones(1, dtype=torch.bool), produced=False), n_steps=1)


def keeper_of(model: nn.Module, on_layer: Callable[[int, int], None] | None = None) -> RidingEngine:
    """An engine that keeps states of all positions of a single sequence, and measures nothing that is of use."""
    return RidingEngine(model, groups=("full",), plans=[_TO_FIND_OUT], on_layer=on_layer, keep_states="all")


@contextmanager
def keeping(engine: RidingEngine) -> Iterator[list[KeptPass | None]]:
    """Opens an engine that keeps states of all positions; when it closes, the list has what its model was given meanwhile. None
    where the sequence was fed again: its states are no longer those that the first logits came from; and where the engine could
    not keep them, and need not."""
    logits: list[torch.Tensor] = []
    found: list[KeptPass | None] = []
    with engine, engine.block.after(engine.model, lambda module, args, output: logits.append(output.logits[0])):
        yield found
        if engine.fed_again or not engine.keeps:
            found.append(None)
            return
        states, final = engine.states, engine.final
        found.append(KeptPass(engine.model, engine.decoder, engine.tail, states, final, torch.cat(logits)))


@torch.no_grad()
def keep(model: nn.Module, inputs: Mapping[str, Any], n_logits: int = 1) -> KeptPass:
    """Run the model on one whole sequence, prompt and what was produced so far. UsageError for a batch of several."""
    with keeping(keeper_of(model)) as found:
        model(**inputs, use_cache=False, logits_to_keep=n_logits)
    return found[0]
