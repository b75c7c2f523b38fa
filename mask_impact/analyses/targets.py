"""Which produced tokens are asked about: `answer`, `thinking`, `all`, `each`, `3`, `0-4`, or text of the answer.

`answer` is what stands behind the thinking (all of it, where the model does not think) without special tokens, such as the one
that ends it. Where there is nothing like that, it is the first produced token.
"""

import re
from collections.abc import Callable, Sequence

from mask_impact.errors import InputError, UsageError, shown
from mask_impact.results.tokens import UNKNOWN

THINKING_ENDS, THINKING_BEGINS = "</think>", "<think>"
NAMES = ("answer", "thinking", "all", "each")
_SPAN = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")


def resolve(
    spec: str, ids: Sequence[int], texts: Sequence[str], kinds: Sequence[str], decode: Callable[[list[int]], str]
) -> list[tuple[int, ...]]:
    """The targets, each the numbers of its produced tokens in ascending order. ids, texts, kinds: of the produced tokens; decode:
    several ids together as text. UsageError for a number, InputError for a text that is not there."""
    everything = tuple(range(len(ids)))
    begin = thinking_end(texts)
    if spec == "each":
        return [(step,) for step in everything]
    if spec == "all":
        return [everything]
    if spec == "answer":
        answer = tuple(step for step in everything[begin:] if kinds[step] != "special")
        return [answer or everything[:1]]
    if spec == "thinking":
        thinking = tuple(step for step in everything[:begin] if texts[step].strip() not in ("", *_MARKS))
        if not thinking:
            raise InputError(
                "`target` thinking: the model did not think here (there is no </think> in what it produced)"
            )
        return [thinking]
    if match := _SPAN.fullmatch(spec):
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(ids):
            raise UsageError(
                f"`target` {spec} is not there: {_count(len(ids))} produced, "
                f"0 to {len(ids) - 1}; give those, or produce more with `num_tokens`"
            )
        return [everything[first : last + 1]]
    return [_phrase(spec, ids, decode)]


def _count(n: int) -> str:
    return "1 token was" if n == 1 else f"{n} tokens were"


_MARKS = (THINKING_BEGINS, THINKING_ENDS)


def thinking_end(texts: Sequence[str]) -> int:
    """Number of the first produced token behind the thinking, and behind the line breaks that follow it; 0 without thinking."""
    ends = [step for step, text in enumerate(texts) if text.strip() == THINKING_ENDS]
    if not ends:
        return 0
    begin = ends[-1] + 1
    while begin < len(texts) and not texts[begin].strip():
        begin += 1
    return begin


def _phrase(spec: str, ids: Sequence[int], decode: Callable[[list[int]], str]) -> tuple[int, ...]:
    """The produced tokens that have a character of a text of the answer."""
    quoted = re.fullmatch(r"\s*([\"'])(.+)\1\s*", spec, re.DOTALL)
    phrase = quoted[2] if quoted else spec
    so_far = ["", *(decode(list(ids[: n + 1])) for n in range(len(ids)))]
    starts = [len(text.rstrip(UNKNOWN)) for text in so_far]  # what is not complete goes on in the next token
    ends = [start + (text[start:] != "") for start, text in zip(starts, so_far, strict=True)][1:]
    whole = so_far[-1]
    first = whole.find(phrase)
    if first < 0:
        raise InputError(
            f"`target` {shown(phrase)} is not in the answer {shown(whole)}; give text of it, numbers of produced tokens "
            f"(0-4), or one of {', '.join(NAMES)}"
        )
    return tuple(
        step
        for step, (start, end) in enumerate(zip(starts, ends, strict=False))
        if start < first + len(phrase) and end > first and end > start
    )
