"""What is said first of a comparison: the answers, what each used, and which reads it later, in a sentence or two.

Knows what `findings.verdict` found and how a card names units. All texts are escaped, so that they are safe in a terminal.
Nothing is said that the numbers do not hold: what was only estimated is called so, and so is what local impact alone says.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.findings.agreement import FEWEST_TOKENS
from mask_impact.findings.comparison import Comparison, Side
from mask_impact.findings.impact import largest
from mask_impact.findings.verdict import LITTLE, Depth, Unit, Use, Verdict, verdicts
from mask_impact.results.tokens import image_name
from mask_impact.views.card import SEVERAL, Card, listed
from mask_impact.views.text import columns, cut, escape

LETTERS = "ABCDEFGH"  # what the results are called in tables
LONGEST_NAME, LONGEST_ANSWER = 24, 60  # columns
SURE = 0.05  # the largest p of what is not said to be chance
CENTRES = {"impact": "centre of the local impact", "effect": "centre of the effect by layer"}


@dataclass(frozen=True)
class Shown:
    """A unit as a table shows it. name: in words, escaped; of the two results: changes, written out, `~` before an estimate, and
    `not there` where the prompt has no such tokens; becomes: the most probable token without it, no spaces around it,
    None where that stays."""

    unit: Unit
    name: str
    changes: tuple[str, str]
    becomes: tuple[str | None, str | None]


class Told:
    """One pair of a comparison, told."""

    def __init__(self, comparison: Comparison, found: Verdict) -> None:
        self.found = found
        self.sides = (found.pair.first, found.pair.second)
        self.names = tuple(called(comparison, side) for side in self.sides)
        self.cards = tuple(_card(side, use) for side, use in zip(self.sides, found.uses, strict=True))

    @property
    def text(self) -> str:
        """All of it, the answers first."""
        return " ".join(filter(None, (self.answers, self.rest)))

    @property
    def answers(self) -> str:
        """Whether they answer alike; empty where one of the answers is not known."""
        first, second = self.found.answers
        if first is None or second is None:
            return ""
        if self.found.same_answer:
            return escape(f"Both answer {_quoted(first)}.")
        return escape(f"They answer differently: {_quoted(first)} and {_quoted(second)}.")

    @property
    def rest(self) -> str:
        """What they used and how deep they read it, or what can be said of that."""
        if all(self.cards):
            return escape(" ".join((*self._measures(), *self._uses(), *self._doubts())))
        return escape(" ".join((*self._unknown(), self._impact())))

    def _measures(self) -> Iterator[str]:
        """Where one is held against another token and the other is not: their numbers are of different things."""
        instead = [None if use.target is None else use.target.instead for use in self.found.uses]
        if instead[0] == instead[1]:
            return
        said = [
            f"{name} is asked why it is this rather than {_quoted(one[1])}"
            for name, one in zip(self.names, instead, strict=True)
            if one is not None
        ]
        yield f"{'; '.join(said)}: the numbers of both are of different things."

    # --- both are explained ---------------------------------------------------------------------------------------------

    def _uses(self) -> Iterator[str]:
        found, own = self.found, (self.found.own(0), self.found.own(1))
        if found.shared:
            yield f"Both use {self._listed(found.shared, 0)}{self._estimated(found.shared, (0, 1))}{self._shared_depth()}."
            also = [self._own(which, "also uses") for which in (0, 1) if own[which]]
            if also:
                yield f"{'; '.join(also)}."
        elif own[0] and own[1]:
            yield f"{self._own(0, 'uses')}; {self._own(1, 'uses')}."
        elif own[0] or own[1]:
            which = 0 if own[0] else 1
            nothing = f"nothing that was hidden changes the answer of {self.names[1 - which]}"
            yield f"{self._own(which, 'uses')}; {nothing}."
        else:
            yield "Nothing that was hidden changes either answer."
        yield from (f"{self._other(which)}." for which in (0, 1) if len(own[which]) > 1 and self._weaker(which))
        if not found.shared and found.depth is not None:
            yield self._own_depth(found.depth)

    def _own(self, which: int, verb: str) -> str:
        """What one alone needs, and where that is one thing, how far the other uses it as well."""
        own = self.found.own(which)
        as_well = f", {self._other(which, own[0])}" if len(own) == 1 and self._weaker(which) else ""
        return f"{self.names[which]} {verb} {self._of(which)}{as_well}"

    def _of(self, which: int) -> str:
        own = self.found.own(which)
        return f"{self._listed(own, which)}{self._estimated(own, (which,))}"

    def _listed(self, units: Sequence[Unit], which: int) -> str:
        places = sorted(
            (unit.places[which] for unit in units), key=lambda place: self.cards[which].target.positions[place]
        )
        return self.cards[which].names(places)

    def _estimated(self, units: Sequence[Unit], sides: Sequence[int]) -> str:
        only = [which for which in sides if not all(unit.measured[which] for unit in units)]
        if not only:
            return ""
        some = "some " if any(unit.measured[which] for unit in units for which in only) else ""
        where = f" in {self.names[only[0]]}" if len(sides) > len(only) else ""
        return f" ({some}by estimate{where})"

    def _weaker(self, which: int) -> Unit | None:
        """The strongest reason of this result alone that the other uses as well."""
        units = [unit for unit in self.found.own(which) if unit.changes[1 - which] < -LITTLE]
        return min(units, key=lambda unit: unit.changes[which], default=None)

    def _other(self, which: int, which_one: Unit | None = None) -> str:
        """How far the other uses a reason of this one: a clause of the unit that was just named, or a sentence.

        which_one: the named unit; None is the strongest of this one alone, in a sentence of its own."""
        unit, other = which_one or self._weaker(which), 1 - which
        how = "less" if unit.changes[other] > unit.changes[which] else "too"
        mine, theirs = (_nats(unit, one) for one in (which, other))
        estimate = "" if unit.measured[other] else "by estimate "
        numbers = f"({theirs} against {mine} nats)"
        if which_one:
            return f"which {estimate}{self.names[other]} uses {how} {numbers}"
        return f"{self.names[other]} {estimate}uses {self._name(unit)} {how} {numbers}"

    def _doubts(self) -> Iterator[str]:
        """Of estimates that the sentences rest on, and that do not hold."""
        for which, (name, use) in enumerate(zip(self.names, self.found.uses, strict=True)):
            rests = any(
                any(unit.reason) and not unit.measured[which] for unit in self.found.units if unit.positions[which]
            )
            if use.target.reliable is False and rests:
                yield f"The estimates of {name} are not reliable."

    # --- depth ----------------------------------------------------------------------------------------------------------

    def _shared_depth(self) -> str:
        depth = self.found.depth
        if depth is None:
            return ""
        it = "it" if len(self.found.shared) == 1 else "them"
        first, second, centre = _percent(depth.first), _percent(depth.second), CENTRES[depth.measure]
        if depth.order:
            return f"; {self._later(depth)} reads {it} later: {_against(depth)} of the depth ({centre})"
        if depth.close:
            return f"; both read {it} at about the same depth ({first} and {second}, {centre})"
        return (
            f"; which of the two reads later is not the same for each of them ({first} and {second} together, {centre})"
        )

    def _own_depth(self, depth: Depth) -> str:
        first, second, centre = _percent(depth.first), _percent(depth.second), CENTRES[depth.measure]
        if depth.order:
            return f"{self._later(depth)} reads its own later: {_against(depth)} of the depth ({centre})."
        return f"Each reads its own at about the same depth ({first} and {second}, {centre})."

    def _later(self, depth: Depth) -> str:
        return self.names[depth.order > 0]

    # --- one of them is not explained -------------------------------------------------------------------------------------

    def _unknown(self) -> Iterator[str]:
        for which, card in enumerate(self.cards):
            if card is not None:
                reasons = self.found.uses[which].reasons
                name = self.names[which]
                uses = f"{name} uses {_card_names(card, reasons)}" if reasons else ""
                yield f"{uses or f'Nothing that was hidden changes the answer of {name}'}."
        missing = [which for which, card in enumerate(self.cards) if card is None]
        who = "either answer" if len(missing) == 2 else f"the answer of {self.names[missing[0]]}"
        steps = {self.found.uses[which].elsewhere for which in missing} - {None}
        of = f" for this produced token (but for token {min(steps)})" if steps else ""
        yield f"What {who} used was not measured{of}."

    def _impact(self) -> str:
        """What local impact says of the pair."""
        pair = self.found.pair
        start = "By local impact alone (what layers read, not what the answer needs),"
        overall = pair.overall
        if not len(pair.matched):
            return "They have no token in common."
        if overall.rho is None:
            few = overall.n < FEWEST_TOKENS
            why = f"with {overall.n} common tokens there is nothing to rank" if few else "one of the two has no ranks"
            return f"{start} {why}."
        sure = overall.rho > 0 and overall.p is not None and overall.p <= SURE
        chance = "" if overall.p is None else f", p {overall.p:.2g}"
        alike = "the common tokens matter alike" if sure else "the common tokens matter no more alike than by chance"
        return f"{start} {alike} (rho {overall.rho:.2f}{chance}){self._strongest()}{self._whole_depth()}."

    def _strongest(self) -> str:
        tokens = [_strongest_token(side) for side in self.sides]
        if None in tokens:
            return ""
        if tokens[0] == tokens[1]:
            return f", most of all {tokens[0]} in both"
        return f", most of all {tokens[0]} in {self.names[0]} and {tokens[1]} in {self.names[1]}"

    def _whole_depth(self) -> str:
        depth = self.found.impact_depth
        if depth is None:
            return ""
        if depth.close:
            return f"; it lies at about the same depth ({_percent(depth.first)} and {_percent(depth.second)})"
        return f"; it lies later in {self._later(depth)}: {_against(depth)} of the depth"

    # --- tables -----------------------------------------------------------------------------------------------------------

    def rows(self) -> list[Shown]:
        """What either used, the strongest first; none where neither is explained."""
        names = [self._name(unit) for unit in self.found.units]
        return [
            self._shown(unit, name if names.count(name) == 1 else f"{name} {self._place(unit)}".strip())
            for unit, name in zip(self.found.units, names, strict=True)
        ]

    def _place(self, unit: Unit) -> str:
        """Row and column as the files have them, of what has no name to itself."""
        which = 0 if unit.places[0] is not None else 1
        found = re.search(r"\[.*\]", self.cards[which].target.names[unit.places[which]])
        return found[0] if found else ""

    def _shown(self, unit: Unit, name: str) -> Shown:
        becomes = []
        for which, use in enumerate(self.found.uses):
            place = unit.places[which]
            changes = place is not None and unit.measured[which] and unit.differs[which]
            text = use.target.top1_texts.get(int(use.target.top1[place]), "") if changes else None
            becomes.append(text if text is None else text.strip() or text)
        changes = tuple(_nats(unit, which) if unit.positions[which] else "not there" for which in (0, 1))
        return Shown(unit, escape(name), changes, tuple(becomes))

    def _name(self, unit: Unit) -> str:
        which = 0 if unit.places[0] is not None else 1
        return self.cards[which].name(unit.places[which])

    def evidence(self, which: int) -> list[str]:
        """The smallest sets that were found of one result (0 or 1), a sentence each, escaped."""
        card = self.cards[which]
        return [] if card is None else evidence_of(card)


def told(comparison: Comparison) -> tuple[Told, ...]:
    """Each pair of a comparison, in their order."""
    return tuple(Told(comparison, found) for found in verdicts(comparison))


def verdict_text(comparison: Comparison, pairs: Sequence[Told]) -> str:
    """The whole verdict, of several pairs as well: what all answer, then each pair by its letters."""
    if len(pairs) == 1:
        return pairs[0].text
    rest = (f"{_letter(comparison, one.sides[0])} and {_letter(comparison, one.sides[1])}: {one.rest}" for one in pairs)
    return " ".join(filter(None, (answers_text(comparison, pairs), *rest)))


def answers_text(comparison: Comparison, pairs: Sequence[Told]) -> str:
    """What all results answer; empty where one of the answers is not known."""
    if len(pairs) == 1:
        return pairs[0].answers
    if any(one.found.same_answer is None for one in pairs):
        return ""
    first = pairs[0].found.answers[0]
    if all(one.found.same_answer for one in pairs):
        return escape(f"All answer {_quoted(first)}.")
    groups: dict[str, list[str]] = {first: [_letter(comparison, comparison.sides[0])]}
    for one in pairs:
        said = first if one.found.same_answer else one.found.answers[1]
        groups.setdefault(said, []).append(_letter(comparison, one.sides[1]))
    return escape(
        f"They answer differently: {listed([f'{_quoted(said)} ({listed(who)})' for said, who in groups.items()])}."
    )


def called(comparison: Comparison, side: Side) -> str:
    """What sentences call a result: its name, or its letter where a name is long."""
    if any(columns(escape(one.name)) > LONGEST_NAME for one in comparison.sides):
        return _letter(comparison, side)
    return side.name


def evidence_of(card: Card) -> list[str]:
    """The smallest sets that were found, a sentence each, escaped."""
    found = []
    for one in card.verdicts:
        start = f"Without {one.name}"
        if one.role == "with":
            start = f"With {one.name} alone, all other {SEVERAL.get(one.kind, one.kind)} hidden,"
        found.append(escape(f"{start} it is {_quoted(one.text)}.{card.doubt(one)}"))
    return found


def _card(side: Side, use: Use) -> Card | None:
    return None if use.number is None else Card(side.result.answer, use.number)


def _card_names(card: Card, places: Sequence[int]) -> str:
    estimated = "" if all(card.target.measured[place] for place in places) else " (by estimate)"
    return card.names(sorted(places, key=lambda place: card.target.positions[place])) + estimated


def _letter(comparison: Comparison, side: Side) -> str:
    return LETTERS[comparison.sides.index(side)]


def _strongest_token(side: Side) -> str | None:
    """The token with the largest share of the importance in all layers, None where nothing has an impact."""
    best = largest(side.shares(side.overall), 1)
    if not best:
        return None
    position, tokens = int(side.impact.positions[best[0]]), side.result.tokens
    if tokens.image[position] >= 0:
        of = f" of {image_name(side.result.images, int(tokens.image[position]))}" if len(side.result.images) > 1 else ""
        return f"the cell [{tokens.row[position]}, {tokens.column[position]}]{of}"
    return _quoted(tokens.texts[position].strip() or tokens.texts[position])


def _nats(unit: Unit, which: int) -> str:
    change = unit.changes[which]
    if np.isnan(change):
        return "not measured"
    written = f"{change:.2f}" if round(change, 2) else "0.00"
    return f"{'' if unit.measured[which] else '~'}{written}".replace("-", "\N{MINUS SIGN}")


def _against(depth: Depth) -> str:
    return f"{_percent(max(depth.first, depth.second))} against {_percent(min(depth.first, depth.second))}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _quoted(text: str) -> str:
    return f"“{cut(text.strip() or text, LONGEST_ANSWER)}”"
