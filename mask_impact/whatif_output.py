"""What is shown and written of answers with hidden tokens: the page of text on stdout and `NAME.whatif.json`."""

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from mask_impact.files import check_output, write_files
from mask_impact.store import clean_text, jsonable
from mask_impact.summary import escape, model_lines, padded, percent, quoted
from mask_impact.whatif import Answer, WhatIf

TOKEN, SPEC, TEXT = 20, 28, 40  # columns


def render_whatif(found: WhatIf) -> str:
    """The answers side by side, the first token that differs marked; a table where there are several without something."""
    layers = "all layers" if len(found.layers) == found.n_layers else f"layers {_ranges(found.layers)}"
    layers = layers.replace("layers", "layer") if len(found.layers) == 1 < found.n_layers else layers
    lines = [*model_lines(found.meta), f"What the model says with tokens hidden from every query in {layers}:", ""]
    lines += _side_by_side(found.answer, found.others[0]) if len(found.others) == 1 else _table(found)
    return "\n".join(lines)


def _side_by_side(answer: Answer, other: Answer) -> Iterator[str]:
    yield f"  nothing hidden:  {escape(answer.text)}"
    yield f"  without {escape(other.spec)} ({_tokens(other)}):  {escape(other.text)}"
    yield ""
    yield f"  {'':>4}  {padded('nothing hidden', TOKEN + 9)}    {_cut(f'without {escape(other.spec)}', TOKEN + 9)}"
    rows = zip_longest(*(zip(one.token_texts, one.probabilities, strict=True) for one in (answer, other)))
    for place, cells in enumerate(rows):
        left, right = (f"{padded(quoted(c[0], TOKEN), TOKEN)} {percent(c[1]):>8}" if c else "" for c in cells)
        mark = "  <- first difference" if place == other.differs_at else ""
        yield f"  {place:>4}  {padded(left, TOKEN + 9)}  | {right}{mark}".rstrip()
    yield ""
    if other.differs_at is None:
        yield "  The answers are the same."
    yield f"  Probability of {quoted(answer.token_texts[0], TOKEN)} as the first token: {_from_to(answer, other)}"


def _table(found: WhatIf) -> Iterator[str]:
    answer = found.answer
    yield f"  {padded('without', SPEC)}  {'tokens':>6}  {'P(first)':>8}  {'differs at':>10}  answer"
    for one in (answer, *found.others):
        spec = "nothing hidden" if one.spec is None else _cut(escape(one.spec), SPEC)
        differs = "-" if one.differs_at is None else str(one.differs_at)
        text = _cut(escape(one.text), TEXT)
        yield (
            f"  {padded(spec, SPEC)}  {len(one.positions):>6}  {percent(one.probability):>8}  {differs:>10}  {text}".rstrip()
        )
    yield f"  P(first): the probability of {quoted(answer.token_texts[0], TOKEN)} as the first token"


def _from_to(answer: Answer, other: Answer) -> str:
    return f"{percent(answer.probability)}, then {percent(other.probability)}"


def _tokens(answer: Answer) -> str:
    return f"{len(answer.positions)} token{'s' * (len(answer.positions) != 1)}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _ranges(layers: tuple[int, ...]) -> str:
    """0-5,7"""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def save_whatif(found: WhatIf, path: str | os.PathLike, command: str = "") -> Path:
    """Writes `path`.whatif.json, and returns its path. Errors as in `store.save`."""
    import orjson

    def entry(answer: Answer) -> dict:
        tokens = zip(answer.token_ids, answer.token_texts, answer.probabilities, strict=True)
        return {
            "without": answer.spec and clean_text(answer.spec),
            "positions": answer.positions,
            "text": clean_text(answer.text),
            "probability_of_first_token": answer.probability,
            "differs_at": answer.differs_at,
            "tokens": [{"id": token, "text": clean_text(text), "probability": p} for token, text, p in tokens],
        }

    path = Path(path)
    stem = check_output(path.parent, path.name)
    content = {
        "schema_version": 1,
        "run": jsonable(found.meta | {"command": command}),
        "layers": found.layers,
        "answer": entry(found.answer),
        "others": [entry(one) for one in found.others],
        "tokens": [clean_text(text) for text in found.tokens.texts],
    }
    text = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    target = stem.with_name(f"{stem.name}.whatif.json")
    write_files({target: lambda file: file.write(text)})
    return target
