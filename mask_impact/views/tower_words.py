"""What a run of `tower` says of an answer, in sentences: whether what the layers read most matters, and what does.

For every view, each of which brings its own quotes and numbers. Knows what was measured."""

from collections.abc import Callable

from mask_impact.findings.looked import hidden_rows, matters, most_read_row
from mask_impact.results.tower import TowerEffects, TowerTarget


class TowerWords:
    """The sentences about a target. quote: a text in quotes; nats: a change; name: of a region, as the view can show it."""

    def __init__(
        self,
        found: TowerEffects,
        target: TowerTarget,
        *,
        quote: Callable[[str], str],
        nats: Callable[[float], str],
        name: Callable[[str], str] = str,
    ) -> None:
        self._found, self._target = found, target
        self._quote, self._nats, self._name = quote, nats, name

    @property
    def read(self) -> str:
        """Whether what is read most matters."""
        row = most_read_row(self._found, self._target)
        if row is None:
            return "Whether the answer needs what is read was not asked (--no-effects)."
        change = self._nats(float(self._target.logprob_change[row]))
        end = "it is read, and it matters" if matters(self._target, row) else "it is read, and it does not matter"
        return (
            f"Read most over all layers: {self._called(self._found.most_read)}. Hidden, it changes "
            f"{self._quote(self._target.text)} by {change} nats: {end}."
        )

    @property
    def most(self) -> str:
        """What of all that was hidden matters most; empty where nothing was."""
        found, target = self._found, self._target
        rows = hidden_rows(found, target)
        if not rows:
            return ""
        if not any(matters(target, row) for row in rows):
            largest = self._nats(max(abs(float(target.logprob_change[row])) for row in rows))
            return f"None of the {len(rows):,} regions that were hidden matters: {largest} nats at most."
        best = target.row(target.found, found.layers)
        if not matters(target, best):
            return f"The answer needs none of the {len(rows):,} regions that were hidden."
        becomes = self._quote(target.top1_texts[int(target.top1[best])])
        then = f"the answer becomes {becomes}" if target.differs[best] else "the answer stays"
        return f"Of {len(rows):,} regions, {self._called(target.found)} matters most: with it hidden, {then}."

    def _called(self, place: int) -> str:
        return self._name(self._found.regions[place].called)
