"""What two results' answers used, unit by unit, and how deep in each model that is read.

Numbers only: `views.comparison_verdict` says them. Knows comparisons and explanations; no files, no models, and it prints
nothing. A unit is a word, cell, region or group that an explanation hides together.

The same unit. A unit of the first is one of the second where its tokens are aligned with just those of the other (see
`alignment`); what is left is matched by its text, where each result has that text once.

Reasons. The units that the answer needs: those of confirmed necessary sets, and those used that make another token the most
probable one. Marks such as `?` count only where nothing else does. Where there is none of either, the two strongest that take
more than LITTLE.

Depth. The centre of mass over the layers of the local impact of the reasons (the comparison's importance), or of the effect that
hiding them in each layer has, where both results have that: 0 is the first layer's side, 1 the last one's. It is of the reasons
that both have, or else of each result's own. A difference counts from CLOSE on, and from 1 / n on for n measured layers of the
result with fewer, and only if each shared reason by itself differs in the same direction. CLOSE is what one model differs by
between two questions of one kind, rounded up: asked for the colours of star and cross in one picture, the demo model reads its
reasons at depths that differ by 0.027 (local impact of `Full`; `Attn`: 0.046) and by 0.08 (effect by layer).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mask_impact.findings.agreement import window_of
from mask_impact.findings.alignment import align
from mask_impact.findings.comparison import Comparison, Pair, Side
from mask_impact.results.explanations import ExplainedTarget
from mask_impact.results.tokens import UNKNOWN

TOP = 5  # units of each result
LITTLE = 0.1  # nats: what changes less is not said to matter
STRONGEST = 2  # reasons where no unit changes the answer
CLOSE = {"impact": 0.05, "effect": 0.1}  # of the depth
MEASURES = {"impact": "local impact", "effect": "effect by layer"}


@dataclass(frozen=True)
class Use:
    """What one result's answer used. number: of its target that has the compared produced token, None where the result has no
    explanation or none of that token; target: that one; reasons: places of its units, those of sets first, else the strongest
    first; elsewhere: the first produced token that the explanation is of, where it is of others."""

    number: int | None
    target: ExplainedTarget | None
    reasons: tuple[int, ...] = ()
    elsewhere: int | None = None


@dataclass(frozen=True)
class Unit:
    """A unit that one of two results uses, in both. Each field has a value for the first and one for the second result.

    places: of the unit in its target, None where that has no such unit; positions: its tokens, empty where they are not in the
    prompt. changes: of the answer's log-probability where it is hidden, nats, NaN where there is no number; measured: whether it
    was really hidden, else it is estimated; differs: whether another token becomes the most probable; reason: see this module.
    """

    places: tuple[int | None, int | None]
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    changes: tuple[float, float]
    measured: tuple[bool, bool]
    differs: tuple[bool, bool]
    reason: tuple[bool, bool]

    @property
    def shared(self) -> bool:
        """Whether it is a reason in both."""
        return all(self.reason)

    def uses(self, which: int) -> bool:
        """Whether it was really hidden from that result (0 or 1), and took more than LITTLE."""
        return self.measured[which] and self.changes[which] < -LITTLE


@dataclass(frozen=True)
class Depth:
    """How deep two results read their reasons, from 0 to 1. measure: one of MEASURES; own: whether it is of each result's own
    reasons, for want of shared ones; least: the smallest difference that counts; agreed: whether each shared reason by itself
    differs in the direction of all."""

    measure: str
    own: bool
    first: float
    second: float
    least: float
    agreed: bool

    @property
    def order(self) -> int:
        """1 where the second reads later, -1 where it reads earlier, 0 where that can't be said."""
        difference = self.second - self.first
        return int(np.sign(difference)) if self.agreed and not self.close else 0

    @property
    def close(self) -> bool:
        """Whether the difference is too small to count."""
        return abs(self.second - self.first) < self.least


@dataclass(frozen=True)
class Verdict:
    """What is said first of a pair. uses: of the first and the second; units: those that either uses, the strongest first, what
    takes more than LITTLE where anything does; answers: what each said, None where it is not known; depth: None where no
    layer has a number. impact_depth: the centre of the local impact of all tokens in each, from 0 to 1, None where the scale
    makes all layers alike or there is no impact."""

    pair: Pair
    uses: tuple[Use, Use]
    answers: tuple[str | None, str | None]
    units: tuple[Unit, ...]
    depth: Depth | None
    impact_depth: Depth | None

    @property
    def same_answer(self) -> bool | None:
        """Whether the answers are the same but for case, spaces and the mark at the end; None where one is not known."""
        first, second = self.answers
        return None if first is None or second is None else bare(first) == bare(second)

    @cached_property
    def shared(self) -> tuple[Unit, ...]:
        """The reasons of both."""
        return tuple(unit for unit in self.units if unit.shared)

    def own(self, which: int) -> tuple[Unit, ...]:
        """The reasons of the first (0) or the second (1) that are none of the other's."""
        return tuple(unit for unit in self.units if unit.reason[which] and not unit.reason[1 - which])


def bare(answer: str) -> str:
    """An answer without case, spaces around it, and the mark at its end."""
    return answer.strip().rstrip(".!").strip().casefold() or answer.strip()


def verdicts(comparison: Comparison) -> tuple[Verdict, ...]:
    """Of each of the comparison's pairs, in their order."""
    uses = {side.name: use_of(side, comparison.settings.step) for side in comparison.sides}
    return tuple(
        _verdict(comparison, pair, (uses[pair.first.name], uses[pair.second.name])) for pair in comparison.pairs
    )


def _verdict(comparison: Comparison, pair: Pair, uses: tuple[Use, Use]) -> Verdict:
    explained = [which for which in (0, 1) if uses[which].target is not None]
    found = [*(_units(pair, uses) if len(explained) == 2 else _units_of_one(pair, uses, explained))]
    said = [unit for unit in found if any(unit.reason) or np.nanmin(unit.changes) < -LITTLE]
    units = tuple(sorted(said or found, key=lambda unit: np.nanmin(unit.changes)))
    whole = None if comparison.scale == "share" else _impact_depth(pair)
    depth = _depth(pair, units) if len(explained) == 2 else None
    return Verdict(pair, uses, _answers(pair, uses), units, depth, whole)


def _answers(pair: Pair, uses: Sequence[Use]) -> tuple[str | None, str | None]:
    """The targets' texts where both have one, all that was said where they are parts of it; else that, or the produced token."""
    texts = []
    for side, use in zip((pair.first, pair.second), uses, strict=True):
        said = side.result.generated_text.strip()
        asked = use.target.text.strip() if all(one.target for one in uses) else ""
        texts.append(said if not asked or asked in said else asked)
    texts = [text or side.produced for text, side in zip(texts, (pair.first, pair.second), strict=True)]
    first, second = (text.strip() or None for text in texts)
    return first, second


# --- what is used ----------------------------------------------------------------------------------------------------------


def use_of(side: Side, step: int) -> Use:
    """What a result's answer used for its produced token `step`."""
    targets = () if side.result.answer is None else side.result.answer.targets
    number = next((n for n, target in enumerate(targets) if step in target.steps), None)
    if number is None:
        return Use(None, None, elsewhere=targets[0].step if targets else None)
    return Use(number, targets[number], tuple(reasons(targets[number])))


def reasons(target: ExplainedTarget) -> list[int]:
    """Places of the units that are reasons, disjoint; see this module."""
    sets = [one.necessary for one in target.evidence if one.necessary is not None and one.necessary.confirmed]
    used = target.used(TOP)
    deciding = [place for place in used if target.measured[place] and target.differs[place]]
    found: list[int] = []
    taken: set[int] = set()
    for place in (*(place for one in sets for place in one.places), *deciding):
        if not taken & {*target.positions[place]}:
            found.append(place)
            taken |= {*target.positions[place]}
    found = [place for place in found if any(map(str.isalnum, target.names[place]))] or found
    return found or [place for place in used if target.change(place) < -LITTLE][:STRONGEST]


# --- the same unit ---------------------------------------------------------------------------------------------------------


def _units(pair: Pair, uses: Sequence[Use]) -> Iterator[Unit]:
    """The union of what the two use."""
    matches = _Matches(uses[0].target, uses[1].target, _partners(pair))
    backwards = matches.reverse()
    there = set()
    for place in dict.fromkeys((*uses[0].reasons, *uses[0].target.used(TOP))):
        there.add(matches.place_of(place))
        yield _unit(uses, (place, matches.place_of(place)), matches.tokens_of(place))
    for place in dict.fromkeys((*uses[1].reasons, *uses[1].target.used(TOP))):
        if place not in there:
            mine = _unit((uses[1], uses[0]), (place, backwards.place_of(place)), backwards.tokens_of(place))
            yield _turned(mine)


def _units_of_one(pair: Pair, uses: Sequence[Use], explained: Sequence[int]) -> Iterator[Unit]:
    """What the one result uses that is explained, without a number for the other."""
    for which in explained:
        target, partners = uses[which].target, _partners(pair)
        if which == 1:
            partners = {other: one for one, other in partners.items()}
        for place in target.used(TOP):
            tokens = tuple(target.positions[place])
            there = tuple(sorted(partners[at] for at in tokens)) if all(at in partners for at in tokens) else ()
            unit = Unit(
                (place, None),
                (tokens, there),
                (target.change(place), np.nan),
                (bool(target.measured[place]), False),
                (bool(target.differs[place]), False),
                (place in uses[which].reasons, False),
            )
            yield _turned(unit) if which else unit


def _partners(pair: Pair) -> dict[int, int]:
    """Of positions of the first result those of the second that are the same token."""
    results = (pair.first.result, pair.second.result)
    places = align(results[0], np.arange(len(results[0].tokens)), results[1], np.arange(len(results[1].tokens)))
    return {int(one): int(other) for one, other in places}


class _Matches:
    """Of one target's units those of another. partners: of aligned positions."""

    def __init__(self, one: ExplainedTarget, other: ExplainedTarget, partners: dict[int, int]) -> None:
        self._one, self._other, self._partners = one, other, partners
        self._by_tokens = {frozenset(positions): place for place, positions in enumerate(other.positions)}
        self._by_text = self._texts_alone()

    def reverse(self) -> "_Matches":
        """The same from the other to the one."""
        return _Matches(self._other, self._one, {other: one for one, other in self._partners.items()})

    def tokens_of(self, place: int) -> tuple[int, ...]:
        """The other's tokens of a unit, empty where it does not have all of them."""
        positions = self._one.positions[place]
        if all(at in self._partners for at in positions):
            return tuple(sorted(self._partners[at] for at in positions))
        found = self._by_text.get(place)
        return () if found is None else self._other.positions[found]

    def place_of(self, place: int) -> int | None:
        """The other's unit of just these tokens."""
        return self._by_tokens.get(frozenset(self.tokens_of(place)))

    def _texts_alone(self) -> dict[int, int]:
        """Units of words whose tokens are not aligned (tokenizers cut words in other places), by texts that each has once."""
        reached = {*self._partners.values()}
        here = _by_name(self._one, self._partners.keys())
        there = _by_name(self._other, reached)
        return {
            places[0]: there[name][0]
            for name, places in here.items()
            if len(places) == 1 and len(there.get(name, ())) == 1
        }


def _by_name(target: ExplainedTarget, aligned: Sequence[int] | set[int]) -> dict[str, list[int]]:
    """Places of text units some of whose tokens are not aligned, by their texts without spaces around them."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(target.names):
        is_text = target.kinds[place] in ("word", "text") and name.strip() and UNKNOWN not in name
        if is_text and not all(at in aligned for at in target.positions[place]):
            found.setdefault(name.strip(), []).append(place)
    return found


def _unit(uses: Sequence[Use], places: tuple[int, int | None], tokens: tuple[int, ...]) -> Unit:
    """A unit of the first of two uses. tokens: its positions in the second."""
    (one, other), (place, partner) = (uses[0].target, uses[1].target), places
    change, measured, differs = np.nan, False, False
    if partner is not None:
        change, measured = other.change(partner), bool(other.measured[partner])
        differs = bool(other.differs[partner])
    elif tokens:
        change = _summed(other, tokens)
    return Unit(
        (place, partner),
        (tuple(one.positions[place]), tokens),
        (one.change(place), change),
        (bool(one.measured[place]), measured),
        (bool(one.differs[place]), differs),
        (place in uses[0].reasons, partner is not None and partner in uses[1].reasons),
    )


def _summed(target: ExplainedTarget, tokens: Sequence[int]) -> float:
    """Tokens that no unit has together: their estimates in sum, NaN where one of them is no unit by itself."""
    single = {positions[0]: place for place, positions in enumerate(target.positions) if len(positions) == 1}
    return float(sum(float(target.contribution[single[at]]) if at in single else np.nan for at in tokens))


def _turned(unit: Unit) -> Unit:
    """The first result's values as the second's."""
    fields = (unit.places, unit.positions, unit.changes, unit.measured, unit.differs, unit.reason)
    return Unit(*((second, first) for first, second in fields))


# --- how deep it is read ---------------------------------------------------------------------------------------------------


def _depth(pair: Pair, units: Sequence[Unit]) -> Depth | None:
    shared = [unit for unit in units if unit.shared]
    sets = [
        [unit.positions[which] for unit in (shared or units) if unit.reason[which]] for which in (0, 1)
    ]  # of each result the tokens of each reason
    if not all(sets):
        return None
    sides = (pair.first, pair.second)
    for measure in ("effect", "impact"):
        weights = [_weights(side, measure) for side in sides]
        if any(one is None for one in weights):
            continue
        together = [
            _centre(side, weight, [at for tokens in them for at in tokens])
            for side, weight, them in zip(sides, weights, sets, strict=True)
        ]
        if None in together:
            continue
        agreed = True
        if shared:
            each = [
                [_centre(side, weight, tokens) for tokens in them]
                for side, weight, them in zip(sides, weights, sets, strict=True)
            ]
            sign = np.sign(together[1] - together[0])
            agreed = all(None in both or np.sign(both[1] - both[0]) == sign for both in zip(*each, strict=True))
        return Depth(measure, not shared, together[0], together[1], _least(pair, measure), agreed)
    return None


def _weights(side: Side, measure: str) -> np.ndarray | None:
    """float64 [L, P], how much each layer reads each token; None where the result can't say it by this measure."""
    if measure == "impact":
        return side.values
    if side.effect is None or not side.effect.by_position or window_of(side.result) == "all":
        return None
    return side.effect.sizes("logprob")


def _centre(side: Side, weights: np.ndarray, tokens: Sequence[int]) -> float | None:
    """The centre of mass over the layers, from 0 to 1, of the tokens' weights [L, P]; None where one of them was not measured in
    some layer in which others were, or nothing has a weight."""
    places = np.flatnonzero(np.isin(side.impact.positions, tokens))
    if len(places) < len({*tokens}) or np.isnan(weights[np.ix_(side.result.layers, places)]).any():
        return None
    return _centre_of(np.nan_to_num(np.maximum(weights[:, places], 0)).sum(axis=1))


def _centre_of(by_layer: np.ndarray) -> float | None:
    """Of float64 [L]."""
    middles = (np.arange(len(by_layer)) + 0.5) / len(by_layer)
    return float((by_layer * middles).sum() / by_layer.sum()) if by_layer.sum() > 0 else None


def _least(pair: Pair, measure: str) -> float:
    return max(CLOSE[measure], 1 / min(len(side.result.layers) for side in (pair.first, pair.second)))


def _impact_depth(pair: Pair) -> Depth | None:
    """The centre of the local impact of all tokens that count."""
    found = []
    for side in (pair.first, pair.second):
        counted = np.nan_to_num(side.values[:, side.impact.counted])
        found.append(_centre_of(np.maximum(counted, 0).sum(axis=1)))
    if None in found:
        return None
    return Depth("impact", True, found[0], found[1], _least(pair, "impact"), True)
