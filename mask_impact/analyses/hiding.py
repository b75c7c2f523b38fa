"""Really hiding sets of positions, from every query in all layers, in one sequence that was kept."""

from collections.abc import Sequence

import torch

from mask_impact.analyses.candidates import costs
from mask_impact.analyses.observer import Observer
from mask_impact.engine.kept import KeptPass
from mask_impact.engine.targets import Target, TargetEffects, measure_targets
from mask_impact.engine.variants import Masks, Variants, each_window_and_group, in_each
from mask_impact.engine.whole import rows_through_layers


class Hiding:
    """Hides sets of positions. kept: of the sequence, the produced tokens behind the prompt; targets: what is asked about, the
    last at its end; forwards: what has been taken so far, in forward passes of the sequence."""

    def __init__(self, kept: KeptPass, targets: Sequence[Target], observer: Observer) -> None:
        self.kept, self.targets, self.observer = kept, tuple(targets), observer
        self.n_positions = kept.n_positions
        self.forwards = 0.0
        self._logits = kept.logits[[one.row - self.n_positions for one in self.targets]]

    @property
    def n_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.kept.decoder.layers)

    def cost(self, first: int) -> float:
        """What hiding a set takes that begins at a position, in forward passes: what stands before it needs not run again."""
        return float(costs([(first,)], self.n_positions)[0])

    def measure(self, sets: Sequence[Sequence[int]]) -> TargetEffects:
        """What hiding each of the sets of positions does to the targets."""
        return self._measured(self._hidden(sets))

    def ask(self, sets: Sequence[Sequence[int]]) -> TargetEffects:
        """The same with the rounding of the model: which token comes out first, at less cost."""
        return self._measured(self._hidden(sets), directly=True)

    def _hidden(self, sets: Sequence[Sequence[int]]) -> Variants:
        return each_window_and_group(sets, self.n_positions, self.n_layers, "all", "all")

    def cut(
        self,
        source: Sequence[int],
        target: Sequence[int],
        layers: tuple[int, int],
        heads: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> TargetEffects:
        """What hiding the source from the queries of the target does in some layers, first and last.

        heads: for each of several variants the (layer, head) in which it is hidden; without, one variant with all heads.
        """
        n = 1 if heads is None else len(heads)
        keys, queries = (torch.zeros(n, self.n_positions, dtype=torch.bool) for _ in range(2))
        keys[:, list(source)], queries[:, list(target)] = True, True
        where = None
        if heads is not None:
            where = torch.zeros(n, self.n_layers, self.kept.decoder.n_heads, dtype=torch.bool)
            for number, some in enumerate(heads):
                for layer, head in some:
                    where[number, layer, head] = True
        first, last = (torch.tensor([layer]) for layer in layers)
        return self._measured(in_each(Masks(keys, queries, where), (first, last)))

    def _measured(self, variants: Variants, directly: bool = False) -> TargetEffects:
        rows = rows_through_layers(self.kept, variants, directly)
        forwards = rows / (self.n_positions * self.n_layers)
        self.forwards += forwards

        def done(share: float) -> None:
            self.observer.forwards_done(forwards * share)

        return measure_targets(self.kept, variants, self.targets, self._logits, directly, done)
