"""Keeping what each layer of a decoder is given and makes of it, while the model's own passes go on: fills a LayerState of each.

Knows no hooks: an engine tells it what happens, in the order in which it does. Shapes: n new positions, S positions.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mask_impact.engine.states import LayerState
from mask_impact.engine.taps import visible_keys


class Keeper:
    """The states of a single sequence. all_rows: whether those of all positions are kept, or of the last one alone. states: of
    each layer that has been entered so far, in their order."""

    def __init__(self, all_rows: bool) -> None:
        self.all_rows = all_rows
        self.states: list[LayerState] = []
        self._final: list[torch.Tensor] = []  # of each step, where states of all positions are kept
        self._anew = True

    @property
    def final(self) -> torch.Tensor:
        """[1, S, hidden], the last layer's output; [1, 1, hidden] where states of the last position are kept."""
        return torch.cat(self._final).unsqueeze(0) if self.all_rows else self.states[-1].left[-1:].unsqueeze(0)

    def begin(self, anew: bool) -> None:
        """A pass begins; anew: with the sequence from its beginning."""
        self._anew = anew
        if anew:
            self._final = []

    def enter(
        self, index: int, hidden_states: torch.Tensor, arguments: Mapping[str, Any], all_rows: bool = False
    ) -> None:
        """A layer begins. hidden_states: [1, n, hidden]; arguments: the others of its call, by name; all_rows: whether all rows
        of this layer are kept, whatever is of the others."""
        if index == len(self.states):
            self.states.append(LayerState(all_rows=self.all_rows or all_rows))
        self.states[index].enter(hidden_states[0], dict(arguments), self._anew)
        if index > 0:
            self.states[index - 1].hand_over(hidden_states[0])

    def attend(
        self,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        window: int | None,
        scaling: float,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Its attention runs; see taps for the arguments."""
        n_rows = query.shape[2] if self.states[index].all_rows else 1
        seen = visible_keys(mask, 0, n_rows, key.shape[2], window, key.device)
        self.states[index].attend(key[0], value[0], seen, scaling, softcap, sinks)

    def leave(self, index: int, output: torch.Tensor) -> None:
        """It is done. output: [1, n, hidden]."""
        self.states[index].leave(output[0])

    def finish(self) -> None:
        """No layer comes behind the one that was left last."""
        if self.all_rows:
            self._final.append(self.states[-1].left)
