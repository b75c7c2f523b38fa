"""Evidence: the smallest set of words or cells that is found without which the answer is another, and that alone keeps it.

Both begin with the units in the order of their contributions: the smallest number of the first ones is found by doubling and
halving, then each is tried to be left out, the weakest first. Where the budget is a large one, small sets of the strongest ones
are tried as well (a beam). Two units that say the same are both first by contribution, while hiding either alone changes nothing.

A set that is found is the smallest that was found, not the smallest there is: not all sets can be tried.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

Asked = tuple[bool, float]  # whether the answer changes, and the change of its log-probability
BEAM, BREADTH = 4, 8  # sets that are kept of each size, and units that each is extended by


class Exhausted(Exception):
    """The budget does not allow the next question."""


@dataclass
class Questions:
    """Sets of positions that are hidden and what becomes of the answer, each asked once.

    ask: (sets) -> of each whether the answer changes, and its change; cost: of a set, in forward passes; budget: of all.
    """

    ask: Callable[[list[tuple[int, ...]]], list[Asked]]
    cost: Callable[[tuple[int, ...]], float]
    budget: float
    spent: float = 0.0
    known: dict[frozenset[int], Asked] = field(default_factory=dict)

    def changes(self, positions: Iterable[int]) -> bool:
        """Whether the answer changes without the positions; Exhausted where that can't be paid."""
        return self.of_all([frozenset(positions)])[0][0]

    def of_all(self, sets: Sequence[frozenset[int]]) -> list[Asked]:
        """Of each of the sets; those that are not known yet are asked together."""
        new = [one for one in dict.fromkeys(sets) if one and one not in self.known]
        cost = sum(self.cost(tuple(sorted(one))) for one in new)
        if self.spent + cost > self.budget:
            raise Exhausted
        if new:
            self.spent += cost
            self.known.update(zip(new, self.ask([tuple(sorted(one)) for one in new]), strict=True))
        return [self.known[one] if one else (False, 0.0) for one in sets]


@dataclass(frozen=True)
class Found:
    """places: of the units, None where none was found; minimal: whether each was tried to be left out."""

    places: tuple[int, ...] | None
    minimal: bool
    exhausted: bool


@dataclass(frozen=True)
class Searched:
    """What was found among the units of one kind, before it is confirmed. whole: all positions of the kind; each: the units that
    change the answer each by itself, as far as was asked; spent: forward passes."""

    kind: str
    whole: tuple[int, ...]
    matters: bool
    needed: Found
    enough: Found
    each: tuple[int, ...]
    spent: float


def search(
    kind: str,
    ranking: Sequence[int],
    units: Sequence[Sequence[int]],
    everything: Iterable[int],
    questions: Questions,
    deep: bool,
) -> Searched | None:
    """Both sets of one kind; everything: all positions of it. None where the budget does not even allow to hide all of it."""
    before = questions.spent
    whole = tuple(sorted(everything))
    none = Found(None, True, False)
    try:
        matters = questions.changes(whole)
    except Exhausted:
        return None
    # Hiding some can change an answer that hiding all does not: what is left speaks for another one.
    needed = necessary(questions, ranking, units, deep)
    enough = sufficient(questions, ranking, units, whole) if matters else none
    each = _deciding_alone(questions, ranking, units)
    return Searched(kind, whole, matters, needed, enough, each, questions.spent - before)


def necessary(questions: Questions, ranking: Sequence[int], units: Sequence[Sequence[int]], deep: bool) -> Found:
    """A small set of units without which the answer is another. ranking: their numbers, the strongest first; units: the
    positions of each; deep: whether small sets of the strongest are tried, too."""

    def decides(places: Iterable[int]) -> bool:
        return questions.changes(position for place in places for position in units[place])

    if alone := _deciding_alone(questions, ranking, units):
        return Found(alone[:1], True, False)
    return _smallest(decides, ranking, (lambda size: _beam(questions, ranking, units, size)) if deep else None)


def _deciding_alone(questions: Questions, ranking: Sequence[int], units: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The units without which the answer is known to be another, each by itself: the smallest first, of one size the strongest;
    none that shares a position with one before it."""
    known = {place: questions.known.get(frozenset(units[place]), (False, 0.0)) for place in ranking}
    deciding = sorted((place for place in ranking if known[place][0]), key=lambda at: (len(units[at]), known[at][1]))
    found: list[int] = []
    for place in deciding:
        if not any({*units[place]} & {*units[other]} for other in found):
            found.append(place)
    return tuple(found)


def sufficient(
    questions: Questions, ranking: Sequence[int], units: Sequence[Sequence[int]], everything: Iterable[int]
) -> Found:
    """A small set of units that keeps the answer where all other positions of `everything` are hidden."""
    whole = frozenset(everything)

    def decides(places: Iterable[int]) -> bool:
        return not questions.changes(whole.difference(*(units[place] for place in places)))

    return _smallest(decides, ranking, None)


def _smallest(
    decides: Callable[[Iterable[int]], bool],
    ranking: Sequence[int],
    smaller: Callable[[int], tuple[int, ...] | None] | None,
) -> Found:
    """The smallest set that is found to decide; what was found before the budget ended, where it ends."""
    best: list[int] | None = None
    minimal = False
    try:
        size, below = 1, 0
        while not decides(ranking[:size]):
            if size >= len(ranking):
                return Found(None, True, False)
            size, below = min(2 * size, len(ranking)), size
        best = list(ranking[:size])
        while size - below > 1:
            middle = (size + below) // 2
            size, below = (middle, below) if decides(ranking[:middle]) else (size, middle)
            best = list(ranking[:size])
        for place in reversed(tuple(best[:-1])):  # the last one is needed: without it the beginning did not decide
            best = _without(decides, best, place)
        minimal = True
        if smaller is not None and len(best) > 2 and (found := smaller(len(best))):
            best, minimal = list(found), False
            for place in found:
                best = _without(decides, best, place)
        return Found(tuple(best), True, False)
    except Exhausted:
        return Found(tuple(best) if best else None, minimal, True)


def _without(decides: Callable[[Iterable[int]], bool], places: list[int], place: int) -> list[int]:
    """The set without one of its units where it decides without it, too."""
    others = [other for other in places if other != place]
    return others if decides(others) else places


def _beam(
    questions: Questions, ranking: Sequence[int], units: Sequence[Sequence[int]], below: int
) -> tuple[int, ...] | None:
    """A set of fewer than `below` of the strongest units that decides; None where none is found."""
    strongest = ranking[: max(BREADTH, below)]

    def asked(sets: Sequence[tuple[int, ...]]) -> list[tuple[bool, float, tuple[int, ...]]]:
        found = questions.of_all([frozenset(p for place in one for p in units[place]) for one in sets])
        return [(changes, change, one) for (changes, change), one in zip(found, sets, strict=True)]

    level = asked(list(combinations(strongest, 2)))
    for size in range(2, below):
        deciding = [one for one in level if one[0]]
        if deciding:
            return min(deciding, key=lambda one: one[1])[2]
        if size + 1 >= below:
            return None
        kept = sorted(level, key=lambda one: one[1])[:BEAM]
        further = {tuple(sorted({*one, place})) for _, _, one in kept for place in strongest if place not in one}
        level = asked(sorted(further))
    return None
