"""What a card shows of an answer: one sentence, the question's words and the images' cells by effect, the strongest of them, and
the evidence. Knows explanations; draws nothing: `card_html` and `card_figure` do.

A change is that of the target's log-probability where a unit is hidden, nats, negative where the unit speaks for the target:
measured, or estimated where it was not. Colours of words and cells share one scale.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mask_impact.findings.verdict import LITTLE, TOP
from mask_impact.prompts.content import content_positions
from mask_impact.results.explanations import ExplainedTarget, Explanation, TokenSet
from mask_impact.results.tokens import box_of, image_name

NAMED = 3  # units that one sentence names
LONG = 80  # characters of an answer in a sentence
WEAK = 1.0  # nats: where nothing changes the answer by more, nothing is drawn as strong
DOUBT = "generate() does not confirm it: rounding decides here"
ANEW = "there the answer begins anew, and goes another way"
SEVERAL = {"image": "cells of the image", "text": "words"}  # of a kind
ORDINALS = ("first", "second", "third")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """A word, cell or group that was used. place: of the unit in its target; name: as a sentence says it; label: as the files do;
    change, measured: see above; becomes: the most probable token without it, None where that stays; image: its number, -1 for
    text; box: (left, top, right, bottom) in pixels of the image, None for text."""

    place: int
    name: str
    label: str
    change: float
    measured: bool
    becomes: str | None
    image: int
    box: Box | None


@dataclass(frozen=True)
class Word:
    """A piece of the prompt's text. place: of its unit, None where it has none; the rest as in Row, 0 without a unit."""

    text: str
    place: int | None
    change: float
    measured: bool


@dataclass(frozen=True)
class Cell:
    """A cell of an image. evidence: whether it is in a set that decides the answer; the rest as in Row."""

    image: int
    row: int
    column: int
    box: Box
    place: int
    change: float
    measured: bool
    evidence: bool


@dataclass(frozen=True)
class Verdict:
    """What becomes of the answer: with the places of units hidden (`without`), or with all others of their kind hidden (`with`).
    name: of the units; text: the answer then; confirmed: whether a plain generate() gives it; kind: `image` or `text`."""

    role: str
    kind: str
    places: tuple[int, ...]
    name: str
    text: str
    confirmed: bool


class Card:
    """What an answer used, of one of its targets."""

    def __init__(self, found: Explanation, number: int = 0) -> None:
        self.found, self.target = found, found.targets[number]
        self._smallest = self._smallest_units()
        self._content = content_positions(found.tokens, found.n_prompt)

    # --- what was asked and said ----------------------------------------------------------------------------------------

    @property
    def question(self) -> str:
        """What was asked, in one line: the prompt, or its content where there is no text of it."""
        return question_of(self.found)

    @property
    def whole(self) -> bool:
        """Whether the target is all that was said."""
        return self.found.is_all(self.target)

    @property
    def subject(self) -> str:
        """What was said, as a sentence begins with it."""
        text = self.target.text
        if self.target.instead:
            return f"“{_short(text)}” rather than “{_short(self.target.instead[1])}”"
        return _short(text)[:1].upper() + _short(text)[1:] if text.strip() else f"“{_short(text)}”"

    @property
    def effect(self) -> str:
        """What the changes are of."""
        if self.target.instead:
            return (
                f"the log-probability of “{_short(self.target.text)}” over that of “{_short(self.target.instead[1])}”"
            )
        return "the answer's log-probability"

    @property
    def sentence(self) -> str:
        """All of it in a sentence or two. What generate() says then is told of the first produced token alone: for a later one
        the answer begins anew, and may be another before it comes to that."""
        first = self.target.step == 0
        verdicts = [one for one in self.verdicts if one.role == "without" and one.confirmed and first]
        in_sets = {place for one in verdicts for place in one.places}
        deciding = [row for row in self.rows if row.measured and row.becomes is not None and row.place not in in_sets]
        names = _distinct([*(name for one in verdicts for name in self._parts(one)), *(row.name for row in deciding)])
        marks = {row.name for row in deciding if self._is_mark(row.place)}
        names = [name for name in names if name not in marks] or names  # a question mark is no reason
        if names:
            because = f"{self.subject}: because of {listed(names[:NAMED])}."
            if verdicts:
                return f"{because} Without {verdicts[0].name} the model says {_said(verdicts[0].text)}."
            row = next(row for row in deciding if row.name == names[0])
            return f"{because} Without {names[0]} the next token is {_said(row.becomes or '')}."
        changes = bool((self.target.differs & self.target.measured).any()) or bool(self.verdicts)
        stays = "" if changes else " Nothing that was hidden changes the answer."
        strongest = [row.name for row in self.rows if row.change < -LITTLE][:2]
        if strongest:
            return f"{self.subject}: most of all because of {listed(_distinct(strongest))}.{stays}"
        return f"{self.subject}: {'no word or cell stands out' if changes else 'nothing that was hidden changes it'}."

    @property
    def reason(self) -> str:
        """The sentence without what was said."""
        return self.sentence.removeprefix(f"{self.subject}: ")

    def _parts(self, verdict: Verdict) -> list[str]:
        """The names of a set's units, or one name for all of them where they are many or called alike."""
        names = [self.name(place) for place in verdict.places]
        return names if len(names) <= NAMED and len({*names}) == len(names) else [verdict.name]

    def _is_mark(self, place: int) -> bool:
        """Whether a unit is text without a letter or digit."""
        in_image = self.found.tokens.image[self.target.positions[place][0]] >= 0
        return (
            not in_image and self.target.kinds[place] != "group" and not any(map(str.isalnum, self.target.names[place]))
        )

    # --- rows and evidence ----------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The strongest, at most TOP."""
        return tuple(map(self._row, self.target.used(TOP)))

    def _row(self, place: int) -> Row:
        target, positions = self.target, self.target.positions[place]
        becomes = target.top1_texts[int(target.top1[place])] if target.differs[place] else None
        box = box_of(self.found.tokens, self.found.images, positions)
        image = -1 if box is None else int(self.found.tokens.image[positions[0]])
        return Row(
            place,
            self.name(place),
            target.names[place],
            self.target.change(place),
            bool(target.measured[place]),
            becomes,
            image,
            box,
        )

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The evidence, what the answer needs before what keeps it."""
        found = []
        for role in ("without", "with"):
            for one in self.target.evidence:
                chosen = one.necessary if role == "without" else one.sufficient
                if chosen is not None:
                    found.append(self._verdict(role, one.kind, chosen))
        return tuple(found)

    def _verdict(self, role: str, kind: str, chosen: TokenSet) -> Verdict:
        places = sorted(chosen.places, key=lambda place: self.target.positions[place])
        return Verdict(role, kind, tuple(places), self.names(places), chosen.text, chosen.confirmed)

    def doubt(self, one: Verdict) -> str:
        """What is said where a plain generate() does not confirm a verdict."""
        return doubt(self.target, one.confirmed)

    @property
    def note(self) -> str:
        """How much was measured, and whether the estimates of the rest can be trusted."""
        target = self.target
        n, n_measured = len(target.names), int(target.measured.sum())
        units = "words and cells" if self.found.images else "words"
        units = "groups" if all(kind == "group" for kind in target.kinds) else units
        said = f"{n_measured} of {n} {units} were really hidden"
        if target.reliable is None:
            return f"{said}."
        said += "; the others are estimated."
        return (
            said if target.reliable else f"{said} Here the estimates are NOT RELIABLE: a larger budget measures more."
        )

    # --- names ----------------------------------------------------------------------------------------------------------

    def name(self, place: int) -> str:
        """A unit as a sentence says it: the word “star”, the cell at the upper right."""
        target, positions = self.target, self.target.positions[place]
        if target.kinds[place] == "group":
            return target.names[place]
        image = int(self.found.tokens.image[positions[0]])
        if image >= 0:
            return self._cell_name(place, image)
        text = target.names[place].strip()
        if not text:
            return "a line break" if "\n" in target.names[place] else "a space"
        kind = "word " if re.fullmatch(r"[\w'’-]+", text) else ""
        if positions[0] >= self.found.n_prompt:
            return f"the answer's own {kind}“{text}”"
        alike = [
            other
            for other, name in enumerate(target.names)
            if name.strip() == text and target.positions[other][0] < self.found.n_prompt
        ]
        alike.sort(key=lambda other: target.positions[other])
        which = "" if len(alike) == 1 else f"{_ordinal(alike.index(place))} "
        return f"the {which}{kind}“{text}”" if kind or which else f"“{text}”"

    def _cell_name(self, place: int, image: int) -> str:
        positions = self.target.positions[place]
        left, top, right, bottom = box_of(self.found.tokens, self.found.images, positions) or (0, 0, 0, 0)
        width, height = self.found.images[image].size
        where = _where((left + right) / 2 / width, (top + bottom) / 2 / height)
        several = len(self.found.images) > 1
        of = f" of {image_name(self.found.images, image)}" if several else ""
        return f"the {'cell' if len(positions) == 1 else 'region'} {where}{of}"

    def several(self, kind: str) -> str:
        """What the units of a kind are called."""
        has_videos = any(one.moment is not None for one in self.found.images)
        return "cells" if has_videos and kind == "image" else SEVERAL[kind]

    def names(self, places: Sequence[int]) -> str:
        """Several units as a sentence says them."""
        names = [self.name(place) for place in places]
        counted = [_several(name, names.count(name)) for name in _distinct(names)]
        return listed(counted if len(counted) <= NAMED else [*counted[: NAMED - 1], f"{len(counted) - NAMED + 1} more"])

    # --- words and cells ------------------------------------------------------------------------------------------------

    @cached_property
    def largest(self) -> float:
        """The largest change of a word, cell or row, at least WEAK: where the colours and the bars of all of them end."""
        drawn = [abs(one.change) for one in (*self.words, *self.cells)]
        return max([WEAK, *drawn, *(abs(row.change) for row in self.rows)])

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The prompt's text without the template, each piece with its smallest unit; a line break where template was between."""
        tokens, words = self.found.tokens, []
        before: int | None = None
        last = -1  # the position of the last word
        for position in range(self.found.n_prompt):
            place = self._smallest.get(position)
            if tokens.image[position] >= 0 or not self._is_content(position, place):
                before = None
                continue
            if words and any(tokens.image[at] < 0 for at in range(last + 1, position)):
                words.append(Word("\n", None, 0.0, False))
            last = position
            if place is not None and place == before:
                words[-1] = Word(words[-1].text + tokens.texts[position], *_of(words[-1]))
            else:
                change = 0.0 if place is None else self.target.change(place)
                measured = place is not None and bool(self.target.measured[place])
                words.append(Word(tokens.texts[position], place, change, measured))
            before = place
        return tuple(words)

    def _is_content(self, position: int, place: int | None) -> bool:
        if self.found.tokens.kinds[position] == "special":
            return False
        return bool(self._content[position] if place is None else self.target.content[place])

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Of all images."""
        tokens, found = self.found.tokens, []
        deciding = {place for one in self.verdicts if one.confirmed for place in one.places}
        evidence = {at for place in deciding for at in self.target.positions[place]}
        for position in range(self.found.n_prompt):
            image, place = int(tokens.image[position]), self._smallest.get(position)
            if image < 0 or place is None:
                continue
            row, column = int(tokens.row[position]), int(tokens.column[position])
            box = self.found.images[image].box(row, column)
            share = self.target.change(place) / len(self.target.positions[place])  # of a region
            measured = bool(self.target.measured[place])
            found.append(Cell(image, row, column, box, place, share, measured, position in evidence))
        return tuple(found)

    def _smallest_units(self) -> dict[int, int]:
        """Of each position the smallest unit that it is in, one that was measured before others of its size."""
        found: dict[int, int] = {}
        order = sorted(
            range(len(self.target.names)), key=lambda p: (len(self.target.positions[p]), not self.target.measured[p])
        )
        for place in order:
            for position in self.target.positions[place]:
                found.setdefault(position, place)
        return found


def question_of(found: Explanation) -> str:
    """What was asked, in one line: the prompt without the marks of its images, or else the content of the prompt's tokens."""
    prompt = found.meta.get("prompt")
    if not isinstance(prompt, str) or "<|" in prompt:
        target: ExplainedTarget = found.targets[0]
        content = {at for place, one in enumerate(target.positions) if target.content[place] for at in one}
        kinds, texts = found.tokens.kinds, found.tokens.texts
        prompt = "".join(texts[at] for at in sorted(content) if kinds[at] == "text")
    return " ".join(prompt.replace("<image>", " ").replace("<video>", " ").split())


def doubt(target: ExplainedTarget, confirmed: bool) -> str:
    """What is said, in parentheses, of a set of the target that a plain generate() does not confirm; empty for others."""
    if confirmed:
        return ""
    return f" ({DOUBT if target.step == 0 else ANEW})"


def _of(word: Word) -> tuple[int | None, float, bool]:
    return word.place, word.change, word.measured


def _said(text: str) -> str:
    return f"“{_short(text)}”" if text.strip() else "nothing"


def _short(text: str) -> str:
    """A text as a sentence quotes it: one line, its end left out where it is long."""
    line = " ".join(text.split()) or text.replace("\n", "\\n")
    return line if len(line) <= LONG else f"{line[: LONG - 1]}…"


def _several(name: str, n: int) -> str:
    """A unit's name where n units have it: 2 cells at the upper right, 2 line breaks."""
    if n == 1:
        return name
    article, _, rest = name.partition(" ")
    if article == "a":
        return f"{n} {rest}s"
    kind, _, where = rest.partition(" ")
    return f"{n} {kind}s {where}" if kind in ("cell", "region") else f"{name} ({n} times)"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ordinal(number: int) -> str:
    """first, second, third, 4th, 21st."""
    if number < len(ORDINALS):
        return ORDINALS[number]
    n = number + 1
    return f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def _where(x: float, y: float) -> str:
    """Where a point is, x and y from 0 to 1: at the upper right, in the middle."""
    side = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    height = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    if side and height:
        return f"at the {height} {side}"
    if side:
        return f"at the {side}"
    return {"upper": "at the top", "lower": "at the bottom", "": "in the middle"}[height]
