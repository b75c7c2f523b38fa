"""Keys and values that layers leave for later ones, in an argument of their call that all of them are given: the last layers of
Gemma 4 read those of earlier ones.

A layer that runs again is given one of these objects in the place of the model's. What a layer writes into it is what later ones
read; where nobody has written yet, they read what the model's own pass had there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from mask_impact.engine.states import LayerState

Pair = tuple[torch.Tensor, torch.Tensor]  # keys [1, K, P, D], values [1, K, P, E]


class ForRows(dict):
    """While rows go from layer to layer, more and more of them. state: of the layer that runs, with keys and values of what hides
    nothing; positions: int64 [P], of the rows, counted from the end."""

    def at(self, state: LayerState, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, "ForRows"]:
        """The arguments of a layer's call that it stands for."""
        self._state, self._positions, self._dtype = state, positions, dtype
        return dict.fromkeys(state.shared, self)

    def __getitem__(self, name: Any) -> Pair:
        """What was written, and behind it the rows that have entered since."""
        written = self.get(name)
        n = 0 if written is None else written[0].shape[2]
        if n == len(self._positions):
            return written
        own = (part[:, self._positions[n:].to(part.device)] for part in (self._state.keys, self._state.values))
        pair = tuple(part.unsqueeze(0).to(self._dtype) for part in own)
        return pair if n == 0 else tuple(torch.cat([one, two], dim=2) for one, two in zip(written, pair, strict=True))


class ForGradients(dict):
    """While gradients go back from layer to layer. Of the layer that runs: read: what it was given, leaves by name; written: what
    it has left, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[Any, Pair] = {}
        self.written: dict[Any, Pair] = {}
        self._at: dict[str, dict[Any, list[torch.Tensor]]] = {}  # by rule, what later layers have sent back

    def of(self, state: LayerState, n_rows: int) -> dict[str, "ForGradients"]:
        """The arguments of a layer's call that it stands for; n_rows: of the last rows alone."""
        self.read, self.written = {}, {}
        self._state, self._n_rows = state, n_rows
        return dict.fromkeys(state.shared, self)

    def __getitem__(self, name: Any) -> Pair:
        if name not in self.read:
            parts = (self._state.keys, self._state.values)
            self.read[name] = tuple(
                one[:, -self._n_rows :].unsqueeze(0).detach().clone().requires_grad_(True) for one in parts
            )
        return self.read[name]

    def __setitem__(self, name: Any, pair: Pair) -> None:
        self.written[name] = pair

    @property
    def leaves(self) -> list[torch.Tensor]:
        """Whose gradients are wanted, of the layer that has run."""
        return [one for pair in self.read.values() for one in pair]

    def outputs(self, rules: Iterable[str]) -> tuple[list[torch.Tensor], dict[str, list[torch.Tensor]]]:
        """What the layer has left and later ones have read, and by rule the gradients there."""
        known = [name for name in self.written if any(name in of_rule for of_rule in self._at.values())]
        made = [one for name in known for one in self.written[name]]
        return made, {rule: [one for name in known for one in self._at[rule].pop(name)] for rule in rules}

    def receive(self, by_rule: Mapping[str, Sequence[torch.Tensor | None]]) -> None:
        """By rule the gradients at the leaves, in their order; None for nothing."""
        for rule, gradients in by_rule.items():
            of_rule, rest = self._at.setdefault(rule, {}), iter(gradients)
            for name, pair in self.read.items():
                found = [torch.zeros_like(one) if (new := next(rest)) is None else new for one in pair]
                before = of_rule.get(name)
                of_rule[name] = found if before is None else [one + new for one, new in zip(before, found, strict=True)]
