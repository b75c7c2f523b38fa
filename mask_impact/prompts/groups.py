"""Tokens of a prompt by name: which positions `system`, `image 0 rows 1-2` or `"the cat"` stand for.

A SPEC is one part, or several joined by " + " with its spaces (`2+2` is a phrase), which together stand for all of theirs:

    tokens 3,5-9        positions of the prompt, from 0
    system, user,       what is in the turns of that role of a ChatML prompt, images and their marks too, without
    assistant           <|im_start|>role, its line break and <|im_end|>
    question            the text of the last user's turn behind its last image (all of its text where none is behind it);
                        all text of a prompt that is not ChatML
    text, special       all tokens of that kind
    image, image 0      the cells of all images that are of no video, of one image (from 0)
    image 0 rows 1-2 columns 3      those in these rows and columns, from 0, either of which may be left out
    image 0 box 10,20,90,80         those that share area with left,top,right,bottom in pixels of the original image
    video, video 0      the cells of all videos, of one video (from 0)
    video 0 frames 2-3  those of the pairs with these frames, from 0, of those that were taken
    video 0 seconds 1.5-3           those of the pairs that are seen within these seconds; rows and columns may follow
    timestamps          the texts that say the time of each pair
    last                the last position
    "phrase", 'phrase'  the tokens that have a character of this text, as the prompt spells it; in quotes any text
    phrase              whatever is none of the above, without spaces around it
    phrase #2           the second of several places, from the prompt's start; also "phrase"#2

Where the prompt has one image (or video) only, its number may be left out. Nothing is escaped in quotes: a phrase ends at a
quote with `#K`, " + " or nothing behind it. Special tokens and image cells have no text, and no phrase runs across them. In
YAML, ` #2` begins a comment and a leading quote is YAML's own, so such specs are quoted once more: '"cat"#2'. Every character
of a byte-level tokenizer belongs to all the tokens that its bytes are spread over.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby, pairwise

import numpy as np

from mask_impact.errors import InputError, shown
from mask_impact.prompts.spans import SPAN, integer, span
from mask_impact.prompts.video_groups import VIDEO, Films
from mask_impact.results.tokens import CELLS, UNKNOWN, ImageRecord, TokenTable, image_name, is_piece, original_box_of

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
MAX_PIECES = 16  # tokens decoded together: a character has at most 4 bytes, but a token can have parts of two
MAX_PLACES = 5  # of a phrase that a message lists
CONTEXT = 12  # characters around each of them

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_TOKENS = re.compile(f"tokens ({SPAN}(?: ?, ?{SPAN})*)")
_IMAGE = re.compile(f"image(?: ([0-9]+))?(?: rows ({SPAN}))?(?: columns ({SPAN}))?")
_BOX = re.compile(f"image(?: ([0-9]+))? box ({_NUMBER}(?: ?, ?{_NUMBER}){{3}})")
_QUOTED = re.compile(r"\s*([\"'])(.*?)\1\s*(?:#([0-9]+))?\s*(?=\Z| \+ )", re.DOTALL)
_NUMBERED = re.compile(r"(.*\S)\s+#([0-9]+)", re.DOTALL)
_HOW = {
    "tokens": "tokens are given as in tokens 3,5-9",
    "image": "parts of an image are given as in image 0 rows 1-2 columns 3-4, or image 0 box 10,20,90,80 in pixels",
    "video": "parts of a video are given as in video 0 frames 2-3 rows 1-2, or video 0 seconds 1.5-3",
}


@dataclass(frozen=True)
class Group:
    """Tokens that are taken together. positions: ascending, at least one."""

    name: str
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.positions or any(b <= a for a, b in pairwise(self.positions)):
            raise ValueError(f"positions {self.positions} of group {self.name!r} are not ascending, or there are none")


@dataclass(frozen=True)
class _Turn:
    """role: as it is written; positions: of what is in it."""

    role: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class _Unit:
    """The smallest piece of text that has characters of its own: a token, or the tokens that share characters."""

    text: str
    positions: tuple[int, ...]


class Layout:
    """Where everything stands in a prompt, the first `n_prompt` positions of `tokens`; what was produced does not count.

    images: in the order of TokenTable.image. decode: several ids together as text, special tokens kept.
    """

    def __init__(
        self, tokens: TokenTable, images: Sequence[ImageRecord], n_prompt: int, decode: Callable[[list[int]], str]
    ) -> None:
        if not 1 <= n_prompt <= len(tokens):
            raise ValueError(f"n_prompt is {n_prompt}, expected 1 to {len(tokens)}, the number of tokens")
        self.tokens, self.images, self.n_prompt = tokens, tuple(images), n_prompt
        self._films = Films(tokens, self.images, n_prompt)
        self._pictures = [number for number, one in enumerate(self.images) if one.moment is None]  # of no video
        kinds = tokens.kinds[:n_prompt]
        runs = (list(run) for kind, run in groupby(range(n_prompt), kinds.__getitem__) if kind == "text")
        self._runs = [list(_units(run, tokens, decode)) for run in runs]  # of text, without special tokens and images
        self._turns = _turns(tokens, n_prompt)  # None: not ChatML
        self._named: dict[str, Callable[[], Sequence[int]]] = {
            "last": lambda: [n_prompt - 1],
            "question": self._question,
            "text": lambda: self._of_kind("text"),
            "special": lambda: self._of_kind("special"),
            **({"timestamps": self._films.timestamps} if self._films else {}),
            **{role: lambda role=role: self._role(role) for role in ROLES},
        }

    def resolve(self, spec: str) -> tuple[int, ...]:
        """The positions that a spec stands for, ascending, at least one. InputError where it can't be resolved."""
        found: set[int] = set()
        for part, phrase, number in _parts(spec):
            try:
                found.update(self._named_part(part) if phrase is None else self._phrase(phrase, number))
            except InputError as error:
                raise InputError(f"{shown(part)}: {error}") from None
        return tuple(sorted(found))

    def words(self) -> list[Group]:
        """Every position of the prompt once, in order: the words of its text, special tokens and image cells one by one.

        A word begins with whitespace, where text begins, and wherever one of two neighbouring tokens has no letter, digit or
        combining mark at the border, so punctuation stands alone, as does whitespace. Scripts that put no spaces between
        words (Chinese) give runs up to the next punctuation mark.
        """
        groups = [group for group in self.each_token() if self.tokens.kinds[group.positions[0]] != "text"]
        for run in self._runs:
            words: list[list[_Unit]] = []
            for before, unit in zip([None, *run], run, strict=False):
                if before is None or not (_in_word(before.text[-1:]) and _in_word(unit.text[:1])):
                    words.append([])
                words[-1].append(unit)
            for word in words:
                positions = tuple(position for unit in word for position in unit.positions)
                groups.append(Group("".join(unit.text for unit in word), positions))
        return sorted(groups, key=lambda group: group.positions)

    def each_token(self) -> list[Group]:
        """Each position of the prompt on its own, named by its text, an image cell `image 0 [row, column]`."""
        groups = []
        for position in range(self.n_prompt):
            image, row, column = (
                int(cells[position]) for cells in (self.tokens.image, self.tokens.row, self.tokens.column)
            )
            name = self.tokens.texts[position] if image < 0 else f"{image_name(self.images, image)} [{row}, {column}]"
            groups.append(Group(name, (position,)))
        return groups

    def parts(self) -> list[str]:
        """What flows are between, of image, video and timestamps, as far as the prompt has them."""
        found = ["image"] if self._pictures else []
        if self._films:
            found += ["video", "timestamps"] if self._films.timed else ["video"]
        return found

    def _named_part(self, part: str) -> Sequence[int]:
        """Positions of a part that is not in quotes."""
        words = " ".join(part.split())
        if words in self._named:
            return self._named[words]()
        if match := _TOKENS.fullmatch(words):
            return [
                position
                for one in match[1].split(",")
                for position in span(one.strip(), "token", self.n_prompt, "the prompt")
            ]
        if match := _IMAGE.fullmatch(words):
            return self._image(*match.groups())
        if self._films and (match := VIDEO.fullmatch(words)):
            return self._films.cells(*match.groups())
        if match := _BOX.fullmatch(words):
            return self._box(match[1], match[2])
        match = _NUMBERED.fullmatch(part)
        how = _HOW.get(words.split(" ")[0], "")
        return self._phrase(match[1], match[2], how) if match else self._phrase(part, None, how)

    def _of_kind(self, kind: str) -> list[int]:
        found = [position for position in range(self.n_prompt) if self.tokens.kinds[position] == kind]
        if not found:
            raise InputError(f"the prompt has no {kind} tokens")
        return found

    def _role(self, role: str) -> Sequence[int]:
        if self._turns is None:
            raise InputError(
                f"the prompt has no turns in ChatML ({TURN_START}{role}), which this needs; give a phrase of it, or token "
                "positions (tokens 3-9)"
            )
        turns = [turn for turn in self._turns if turn.role == role]
        if not turns:
            others = ", ".join(dict.fromkeys(shown(turn.role) for turn in self._turns))
            raise InputError(f"the prompt has no {role} turn; it has {others}")
        found = [position for turn in turns for position in turn.positions]
        if not found:
            raise InputError(f"there is nothing in the prompt's {role} turn{'s' * (len(turns) > 1)}")
        return found

    def _question(self) -> Sequence[int]:
        if self._turns is None:
            return self._of_kind("text")
        self._role("user")
        last = [turn for turn in self._turns if turn.role == "user"][-1].positions
        text = [position for position in last if self.tokens.kinds[position] == "text"]
        if not text:
            raise InputError("there is no text in the prompt's last user turn")
        end = max((position for position in last if self.tokens.kinds[position] in CELLS), default=-1)
        behind = [position for position in text if position > end]
        return behind if any(self.tokens.texts[position].strip() for position in behind) else text

    def _numbered_image(self, number: str | None) -> int:
        """The image that is meant; None: the only one."""
        n = len(self.images)
        if n == 0:
            raise InputError("the prompt has no image")
        if number is None:
            if len(self._pictures) != 1:
                raise InputError(f"the prompt has {n} images: say which, image 0 to image {n - 1}")
            return self._pictures[0]
        if integer(number) >= n:
            has = f"{n} images, 0 to {n - 1}" if n > 1 else "one image, which is 0"
            raise InputError(f"there is no image {number}; the prompt has {has}")
        return int(number)

    def _cells(self, chosen: np.ndarray) -> list[int]:
        """chosen: bool, one for each token."""
        return np.flatnonzero(chosen[: self.n_prompt]).tolist()

    def _image(self, number: str | None, rows: str | None, columns: str | None) -> list[int]:
        if (number, rows, columns) == (None, None, None) and self.images:
            if not self._pictures:
                raise InputError("the prompt has no image; its video is called video")
            return self._cells(np.isin(self.tokens.image, self._pictures))
        image = self._numbered_image(number)
        chosen = self.tokens.image == image
        n_rows, n_columns = self.images[image].grid
        if rows is not None:
            chosen &= np.isin(self.tokens.row, span(rows, "row", n_rows, f"image {image}"))
        if columns is not None:
            chosen &= np.isin(self.tokens.column, span(columns, "column", n_columns, f"image {image}"))
        return self._cells(chosen)

    def _box(self, number: str | None, edges: str) -> list[int]:
        image = self._numbered_image(number)
        left, top, right, bottom = (float(edge) for edge in edges.split(","))
        width, height = self.images[image].size
        bounds = self.images[image].in_original((0, 0, width, height))
        size = f"image {image} has {width} x {height} pixels"
        if self.images[image].region is not None:
            size = f"image {image} is {','.join(f'{edge:.0f}' for edge in bounds)} of its picture"
        if left >= right or top >= bottom:
            raise InputError(f"the box is empty; give left,top,right,bottom with left < right and top < bottom, {size}")
        if left < bounds[0] or top < bounds[1] or right > bounds[2] or bottom > bounds[3]:
            raise InputError(f"the box reaches beyond the image; {size}")
        found = []
        for position in self._cells(self.tokens.image == image):
            cell = original_box_of(self.tokens, self.images, [position])
            if cell[0] < right and cell[2] > left and cell[1] < bottom and cell[3] > top:
                found.append(position)
        return found

    def _phrase(self, phrase: str, number: str | None, how: str = "") -> tuple[int, ...]:
        """Positions of the phrase's place, or of the number-th of several. how: what else may have been meant."""
        if not phrase:
            raise InputError("there is nothing in the quotes; give text of the prompt")
        places = [(positions, context) for run in self._runs for positions, context, _ in _places(run, phrase)]
        n = len(places)
        if not places:
            spellings = (spelling for run in self._runs for *_, spelling in _places(run, phrase, re.IGNORECASE))
            other = next(spellings, None)
            hint = f", but {shown(other)} is: upper and lower case count" if other else f"; {how}" if how else ""
            raise InputError(f"this text is not in the prompt{hint or self._did_you_mean(phrase)}")
        if number is not None:
            if not 1 <= integer(number) <= n:
                has = f"{n} places, #1 to #{n}" if n > 1 else "one place, which is #1"
                raise InputError(f"there is no #{number}; the text has {has}")
            return places[int(number) - 1][0]
        # Several places within the same tokens ("a" in "banana") are no choice.
        if len({positions for positions, _ in places}) > 1:
            listed = ", ".join(
                f"#{k} at token {positions[0]} in {shown(context)}"
                for k, (positions, context) in enumerate(places[:MAX_PLACES], start=1)
            )
            more = f" and {n - MAX_PLACES} more" if n > MAX_PLACES else ""
            raise InputError(f"this text is in the prompt {n} times: {listed}{more}; choose one by adding #1, #2, ...")
        return places[0][0]

    def _did_you_mean(self, phrase: str) -> str:
        """A question with the nearest name of a part, or word of the prompt; nothing where none is near."""
        words = (group.name.strip() for group in self.words() if self.tokens.kinds[group.positions[0]] == "text")
        known = {
            word.lower(): word
            for word in [
                *words,
                *self._named,
                *(["image"] if self.images else []),
                *(["video"] if self._films else []),
            ]
            if word
        }
        near = get_close_matches(phrase.strip().lower(), known, 1, 0.7)
        return f"; did you mean {shown(known[near[0]])}?" if near else ""


def _parts(spec: str) -> Iterator[tuple[str, str | None, str | None]]:
    """(part, what is in its quotes, number behind them) of each part of a spec; None where there is none.

    InputError for an empty spec or part.
    """
    if not spec.strip():
        raise InputError("the spec is empty; give a phrase of the prompt, question, image, or tokens 3-9 for example")
    start = 0
    while start <= len(spec):
        quoted = _QUOTED.match(spec, start)
        end = quoted.end() if quoted else spec.find(" + ", start)
        end = len(spec) if end < 0 else end
        part = spec[start:end].strip()
        if not part:
            raise InputError(f"{shown(spec)}: nothing stands before or behind a ' + '; put a phrase with it in quotes")
        yield part, quoted and quoted[2], quoted and quoted[3]
        start = end + len(" + ")


def _units(run: list[int], tokens: TokenTable, decode: Callable[[list[int]], str]) -> Iterator[_Unit]:
    """The units of neighbouring positions of text."""
    start = 0
    while start < len(run):
        text, n = tokens.texts[run[start]], 1
        pieces = run[start : start + MAX_PIECES]
        if is_piece(text):  # and so is each that can follow it
            for end in range(2, len(pieces) + 1):
                if not is_piece(tokens.texts[pieces[end - 1]]):
                    break
                together = decode([int(tokens.ids[position]) for position in pieces[:end]])
                if UNKNOWN not in together:
                    text, n = together, end
                    break
        yield _Unit(text, tuple(run[start : start + n]))
        start += n


def _turns(tokens: TokenTable, n_prompt: int) -> list[_Turn] | None:
    """The turns that the tokens spell in ChatML; None where none begins."""
    texts, kinds = tokens.texts, tokens.kinds
    starts = [position for position in range(n_prompt) if texts[position] == TURN_START]
    turns = []
    for start, limit in pairwise([*starts, n_prompt]):
        end = next((position for position in range(start, limit) if texts[position] == TURN_END), limit)
        role, first = "", start + 1
        while first < end and kinds[first] == "text" and "\n" not in role:
            role += texts[first]
            first += 1
        # The token of the line break can have more of the content's white space, but where it has its first word too,
        # it is content.
        role, _, rest = role.partition("\n")
        turns.append(_Turn(role.strip(), tuple(range(first - bool(rest.strip()), end))))
    return turns or None


def _places(run: list[_Unit], phrase: str, flags: int = 0) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """(positions, text around, text itself) of each place of the phrase in a run, overlapping ones too."""
    text = "".join(unit.text for unit in run)
    starts = np.cumsum([0, *(len(unit.text) for unit in run)]).tolist()
    pattern = re.compile(re.escape(phrase), flags)
    match = pattern.search(text)
    while match:
        start, end = match.span()
        inside = run[bisect_right(starts, start) - 1 : bisect_left(starts, end)]
        around = text[max(0, start - CONTEXT) : end + CONTEXT]
        yield tuple(position for unit in inside if unit.text for position in unit.positions), around, match[0]
        match = pattern.search(text, start + 1)


def _in_word(char: str) -> bool:
    return char.isalnum() or (char != "" and unicodedata.category(char).startswith("M"))
