"""Answers with hidden tokens, side by side, as text for a terminal. Writes no files."""

from collections.abc import Iterator
from itertools import zip_longest
from os import PathLike

from mask_impact.errors import ranges
from mask_impact.results.answers import Answer, WhatIf
from mask_impact.views.text import cut, escape, model_lines, padded, percent, quoted, saved_lines, wrapped

TOKEN, SPEC, TEXT = 18, 20, 28  # columns


def render_whatif(found: WhatIf, path: str | PathLike | None = None) -> str:
    """The answers side by side, the first token that differs marked; a table where there are several without something."""
    layers = "all layers" if len(found.layers) == found.n_layers else f"layers {ranges(found.layers)}"
    layers = layers.replace("layers", "layer") if len(found.layers) == 1 < found.n_layers else layers
    lines = [*model_lines(found.meta), f"What the model says with tokens hidden from every query in {layers}:", ""]
    lines += _side_by_side(found.answer, found.others[0]) if len(found.others) == 1 else _table(found)
    saved = [] if path is None else ["", *saved_lines([path])]
    return "\n".join([*lines, *saved])


def _side_by_side(answer: Answer, other: Answer) -> Iterator[str]:
    yield from wrapped(f"nothing hidden:  {escape(answer.text)}", "  ", "    ")
    yield from wrapped(f"without {escape(other.spec)} ({_tokens(other)}):  {escape(other.text)}", "  ", "    ")
    yield ""
    yield f"  {'':>4}  {padded('nothing hidden', TOKEN + 9)}    {cut(f'without {escape(other.spec)}', TOKEN + 9)}"
    rows = zip_longest(*(zip(one.token_texts, one.probabilities, strict=True) for one in (answer, other)))
    for place, cells in enumerate(rows):
        left, right = (f"{padded(quoted(c[0], TOKEN), TOKEN)} {percent(c[1]):>8}" if c else "" for c in cells)
        mark = "  <- differs" if place == other.differs_at else ""
        yield f"  {place:>4}  {padded(left, TOKEN + 9)}  | {right}{mark}".rstrip()
    yield ""
    if other.differs_at is None:
        yield "  The answers are the same."
    yield from wrapped(
        f"Probability of {quoted(answer.token_texts[0], TOKEN)} as the first token: {_from_to(answer, other)}"
    )


def _table(found: WhatIf) -> Iterator[str]:
    answer = found.answer
    yield f"  {padded('without', SPEC)}  {'tokens':>6}  {'P(first)':>8}  {'differs at':>10}  answer"
    for one in (answer, *found.others):
        spec = "nothing hidden" if one.spec is None else cut(escape(one.spec), SPEC)
        differs = "-" if one.differs_at is None else str(one.differs_at)
        text = cut(escape(one.text), TEXT)
        yield (
            f"  {padded(spec, SPEC)}  {len(one.positions):>6}  {percent(one.probability):>8}  {differs:>10}  {text}".rstrip()
        )
    yield f"  P(first): the probability of {quoted(answer.token_texts[0], TOKEN)} as the first token"


def _from_to(answer: Answer, other: Answer) -> str:
    return f"{percent(answer.probability)}, then {percent(other.probability)}"


def _tokens(answer: Answer) -> str:
    return f"{len(answer.positions)} token{'s' * (len(answer.positions) != 1)}"
