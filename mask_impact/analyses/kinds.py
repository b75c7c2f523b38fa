"""What values a setting takes: how they are checked, parsed and told in words. Knows no setting."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mask_impact.errors import digits, nearest

MOST = 1_000_000  # that a number is without a bound of its own
MOST_LAYERS = 10_000  # models have fewer
MOST_DIGITS = 1000


@dataclass(frozen=True)
class Kind:
    """What values a setting takes.

    accepted: them in words, behind "must be". check: a value from Python or a file as it is kept; ValueError for any other.
    parse: the text of a command line as such a value. choices: the words among them. null: what None means, where it may stand.
    most: the largest number, None where there is none.
    """

    accepted: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    null: str | None = None
    most: int | None = None

    def problem(self, value: Any) -> str:
        """Why the value can't be, as the rest of a sentence that begins with the setting's name."""
        return f"must be {self.accepted}{self.bound(value)}, not {_shown(self.culprit(value))}{self.hint(value)}"

    def bound(self, value: Any) -> str:
        """The largest number, where the value is one that is larger."""
        if self.most is None or isinstance(value, str):
            return ""
        return f", at most {self.most:,}" if isinstance(value, int | float) and value > self.most else ""

    def hint(self, value: Any) -> str:
        """Which of the words was probably meant; nothing where that can't be said."""
        near = nearest(self.culprit(value), self.choices)
        return f"; did you mean {near}?" if near else ""

    def culprit(self, value: Any) -> Any:
        """Of several words the first that is none of the choices; else the value itself."""
        parts = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else ()
        wrong = [part for part in parts if lower(part) not in self.choices]
        return wrong[0] if self.choices and wrong else value


def refuse() -> Any:
    """For a value that can't be."""
    raise ValueError


def lower(value: Any) -> Any:
    """Text without spaces around it and in small letters; anything else as it is."""
    return value.strip().lower() if isinstance(value, str) else value


def number(text: str) -> Any:
    """The number that a text is, or the text."""
    try:
        return int(text[:MOST_DIGITS])  # of longer ones Python itself refuses some; they are too large either way
    except ValueError:
        return text


def _shown(value: Any) -> str:
    return digits(value) if isinstance(value, int) else repr(value)


def whole(at_least: int, of: str = "", null: str | None = None, most: int = MOST) -> Kind:
    """A whole number, `most` at most. of: the unit, such as " of layers"."""

    def check(value: Any) -> int:
        if isinstance(value, bool | float | str) or not hasattr(value, "__index__") or not at_least <= value <= most:
            refuse()
        return int(value)

    return Kind(f"a whole number{of}, at least {at_least}", check, number, null=null, most=most)


def above_zero(of: str, most: float) -> Kind:
    """A number above 0, `most` at most. of: the unit, such as " of frames in a second"."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            refuse()
        return float(value)

    def parse(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    return Kind(f"a number{of}, above 0", check, parse, most=most)


def one_of(names: tuple[str, ...], same: Mapping[str, str] | None = None, any_case: bool = False) -> Kind:
    """One of some words. same: other words for some of them."""
    same = same or {}
    words = (*names, *same)

    def check(value: Any) -> str:
        value = lower(value) if any_case else value
        return same.get(value, value) if isinstance(value, str) and value in words else refuse()

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", check, choices=words)


def some_of(names: tuple[str, ...]) -> Kind:
    """Some of the words, at least one: a list, or text with commas; kept in the order of `names`."""

    def check(value: Any) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            refuse()
        given = [part for part in map(lower, parts) if part != ""]
        known = given and all(part in names for part in given)
        return tuple(name for name in names if name in given) if known else refuse()

    return Kind(f"some of {', '.join(names)}", check, choices=names)


def matching(pattern: re.Pattern, accepted: str) -> Kind:
    """Text that a pattern matches as a whole."""
    return Kind(accepted, lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else refuse())


def text(accepted: str) -> Kind:
    """Text, or a path."""

    def check(value: Any) -> str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        return value if isinstance(value, str) and value else refuse()

    return Kind(accepted, check)


def window(value: Any) -> int | str:
    """A number of layers, or `all`."""
    return "all" if lower(value) == "all" else LAYERS.check(value)


LAYERS = whole(1, " of layers", most=MOST_LAYERS)
YES_NO = Kind("true or false", lambda value: value if isinstance(value, bool) else refuse())
WINDOW = Kind("a whole number of layers, at least 1, or all", window, number, choices=("all",), most=MOST_LAYERS)
