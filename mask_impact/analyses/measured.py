"""Units, and what hiding those of them did that were really hidden: more are added while it goes from coarse to fine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mask_impact.analyses.candidates import WITH_NOTHING_HIDDEN
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.units import Unit, finer_units
from mask_impact.results.explanations import FINE_ENOUGH
from mask_impact.results.tokens import TokenTable

AT_ONCE = {"region": 1, "sentence": 3}  # parts of one that are measured


@dataclass
class Measured:
    """units: all that there are. effects: of each that was hidden (change, KL, most probable token, whether another than with
    nothing hidden). probability: of the targets with nothing hidden."""

    units: list[Unit]
    hiding: Hiding
    effects: dict[int, tuple[float, float, int, bool]] = field(default_factory=dict)
    probability: float = float("nan")

    def hide(self, places: Sequence[int]) -> None:
        """Really hides units, each by itself."""
        found = self.hiding.measure([self.units[place].positions for place in places])
        self.probability = found.probability
        columns = (
            found.logprob_change.tolist(),
            found.kl_divergence.tolist(),
            found.top1.tolist(),
            (found.differs >= 0).tolist(),
        )
        self.effects.update(zip(map(int, places), zip(*columns, strict=True), strict=True))

    def column(self, number: int, otherwise: float, dtype: type) -> np.ndarray:
        """[G], one of the effects; `otherwise` where a unit was not hidden."""
        values = np.full(len(self.units), otherwise, dtype=dtype)
        for place, effect in self.effects.items():
            values[place] = effect[number]
        return values

    def refine(self, contribution: np.ndarray, tokens: TokenTable, limit: float) -> None:
        """From the strongest region or sentence to its parts, and on to theirs while one has nearly all of the effect; up to a
        limit of forward passes in all. contribution: float [N], of each position."""
        looked: set[int] = set()
        while True:
            coarse = [at for at in self.effects if self.units[at].kind in AT_ONCE and at not in looked]
            best = min(coarse, key=lambda at: self.effects[at][0], default=None)
            if best is None or not self._worth(best, looked):
                return
            looked.add(best)
            parts = finer_units(self.units[best], self.units, tokens)
            parts.sort(key=lambda one: contribution[list(one.positions)].sum())
            parts = parts[: AT_ONCE[self.units[best].kind]]
            cost = WITH_NOTHING_HIDDEN + sum(self.hiding.cost(one.positions[0]) for one in parts)
            if not parts or self.hiding.forwards + cost > limit:
                return
            self.hide([self._place(one) for one in parts])

    def _worth(self, place: int, looked: set[int]) -> bool:
        """Whether a unit's parts may say more: it speaks for the target; within one that was looked at, with nearly all of it."""
        within = [at for at in looked if {*self.units[place].positions} < {*self.units[at].positions}]
        return self.effects[place][0] < FINE_ENOUGH * min((self.effects[at][0] for at in within), default=0.0)

    def _place(self, unit: Unit) -> int:
        """Where a unit stands; a new one comes behind the others."""
        for at, one in enumerate(self.units):
            if one.positions == unit.positions:
                return at
        self.units.append(unit)
        return len(self.units) - 1
