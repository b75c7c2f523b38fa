"""Whether an answer is the expected one. Knows texts only."""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from mask_impact.findings.verdict import bare

COLUMNS = (
    "expected",
    "expected_answer",
    "answer",
    "answers",
)  # of a dataset: the first that is there holds what is expected
MATCHES = ("exact", "contains", "one-of")  # one-of: exactly one of several
THOUGHT = "</think>"


def expected_column(columns: Collection[str]) -> str | None:
    """Which of a dataset's columns holds the expected answer, by its name."""
    return next((name for name in COLUMNS if name in columns), None)


def is_correct(answer: str, expected: Any, match: str = "exact") -> bool | None:
    """Whether the answer is what was expected, but for case, spaces and the mark at its end; None where nothing was.

    expected: a text, a number, or a list of these (also as JSON), of which one suffices. `contains`: its words stand in the
    answer. What a model thought before it answered does not count.
    """
    wanted = _wanted(expected)
    if not wanted:
        return None
    said = bare(answer.rpartition(THOUGHT)[2])
    if match == "contains":
        return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", said) for one in wanted)
    return said in (wanted if match == "one-of" or _is_list(expected) else wanted[:1])


def _is_list(expected: Any) -> bool:
    return isinstance(_data(expected), list | tuple)


def _wanted(expected: Any) -> list[str]:
    data = _data(expected)
    return [bare(_text(one)) for one in (data if isinstance(data, list | tuple) else [data]) if _text(one).strip()]


def _data(expected: Any) -> Any:
    """A list that a CSV file holds as text."""
    if isinstance(expected, str) and expected.lstrip().startswith("["):
        with suppress(ValueError):
            return json.loads(expected)
    return expected


def _text(one: Any) -> str:
    if isinstance(one, float):  # a column of numbers some of which are missing
        return "" if one != one else f"{one:.12g}"
    return "" if one is None else str(one)
