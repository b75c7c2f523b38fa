"""What holds over many prompts as tables: rows for files and for --json. Writes nothing itself."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mask_impact.findings.over_prompts import Averaged, OverPrompts
from mask_impact.findings.prompt_numbers import DEPTH, FLOW, IMAGE_SHARE, PART, PIXELS, WAY, WITHOUT, PromptNumbers
from mask_impact.results.table_files import clean_text

GROUP = ("study", "group")
OF_KIND = ("measure", "how", "n_layers")
MEAN = ("n", "mean", "low", "high")
LAYERS = (*GROUP, "quantity", *OF_KIND, "layer", *MEAN)
FLOWS = (*GROUP, "flow", *OF_KIND, "layer", *MEAN)
IMAGES = (*GROUP, "quantity", "measure", "how", *MEAN)
OF_IMAGES = (PART, WITHOUT, PIXELS, WAY)  # quantities begin so
HEADS = (*GROUP, *OF_KIND, "layer", "head", *MEAN, "in_top", "share_in_top", "share_low", "share_high")
TESTS = (
    "group", "other_group", "study", "other_study", "quantity", *OF_KIND, "layer", "paired", "n", "other_n", "difference",
    "low", "high", "p", "p_holm",
)  # fmt: skip
PROMPTS = (
    "study", "prompt", "answer", "correct", "n_layers", "image_share", "depth", "largest_effect", "strongest", "evidence",
    "place",
)  # fmt: skip

Row = tuple[Any, ...]


def layer_rows(found: OverPrompts) -> Iterator[Row]:
    """With LAYERS. Single numbers have no layer."""
    for one, is_curve in _all(found):
        if not one.kind.quantity.startswith((FLOW, *OF_IMAGES)):
            yield from _rows(found, one, one.kind.quantity, is_curve)


def flow_rows(found: OverPrompts) -> Iterator[Row]:
    """With FLOWS. What cutting a flow in all layers did has no layer."""
    for one, is_curve in _all(found):
        if one.kind.quantity.startswith(FLOW):
            yield from _rows(found, one, one.kind.quantity.removeprefix(FLOW), is_curve)


def image_rows(found: OverPrompts) -> Iterator[Row]:
    """With IMAGES: what parts of the images' features add, and what replacing pixels does."""
    for one in found.numbers:
        if one.kind.quantity.startswith(OF_IMAGES):
            before = (found.sources[one.group.study], one.group.name, one.kind.quantity, one.kind.measure, one.kind.how)
            yield (*before, int(one.means.n[0]), *_numbers(one.means, 0))


def _all(found: OverPrompts) -> Iterator[tuple[Averaged, bool]]:
    """Curves and single numbers, and which of these each is."""
    yield from ((one, True) for one in found.curves)
    yield from ((one, False) for one in found.numbers)


def _rows(found: OverPrompts, one: Averaged, name: str, is_curve: bool) -> Iterator[Row]:
    before = (
        found.sources[one.group.study],
        one.group.name,
        name,
        one.kind.measure,
        one.kind.how,
        one.kind.n_layers or None,
    )
    means = one.means
    for layer in range(len(means.n)):
        yield (*before, layer if is_curve else None, int(means.n[layer]), *_numbers(means, layer))


def _numbers(means: Any, place: int) -> tuple[float | None, ...]:
    return tuple(_plain(values[place]) for values in (means.mean, means.low, means.high))


def head_rows(found: OverPrompts) -> Iterator[Row]:
    """With HEADS: each layer and head."""
    for one in found.heads:
        n_heads = one.in_top.shape[1]
        before = (found.sources[one.group.study], one.group.name, one.kind.measure, one.kind.how, one.kind.n_layers)
        for layer, head in np.ndindex(one.in_top.shape):
            hits = int(one.in_top[layer, head])
            shares = (hits / one.n, float(one.low[layer, head]), float(one.high[layer, head]))
            yield (*before, layer, head, one.n, *_numbers(one.means, layer * n_heads + head), hits, *shares)


def rows_of_tests(found: OverPrompts) -> Iterator[Row]:
    """With TESTS."""
    for one in found.against:
        of_kind = (one.kind.measure, one.kind.how, one.kind.n_layers or None)
        studies = (found.sources[one.first.study], found.sources[one.second.study])
        before = (one.first.name, one.second.name, *studies, one.kind.quantity, *of_kind)
        for place in range(len(one.p)):
            layer = place if len(one.p) > 1 else None
            values = (_plain(part[place]) for part in (one.difference, one.low, one.high, one.p, one.p_holm))
            yield (*before, layer, one.paired, int(one.n[0, place]), int(one.n[1, place]), *values)


def prompt_columns(found: OverPrompts) -> tuple[str, ...]:
    """PROMPTS, and a column for each label."""
    labels = dict.fromkeys(name for group in found.groups for one in group.prompts for name in one.labels)
    return (*PROMPTS, *(name if name not in PROMPTS else f"label_{name}" for name in labels))


def prompt_rows(found: OverPrompts) -> Iterator[Row]:
    """With `prompt_columns`."""
    labels = [name.removeprefix("label_") for name in prompt_columns(found)[len(PROMPTS) :]]
    for study, source in enumerate(found.sources):
        whole = next(group for group in found.groups if group.study == study)
        for one in whole.prompts:
            right = found.correct[study].get(one.name)
            numbers = (number_of(one, IMAGE_SHARE), number_of(one, DEPTH), number_of(one, "largest effect"))
            said = (source, one.name, one.answer, right, one.n_layers, *numbers, one.strongest, one.reasons, one.place)
            yield (*said, *(one.labels.get(name) for name in labels))


def number_of(one: PromptNumbers, quantity: str) -> float | None:
    """A prompt's number of that name; None where it has none."""
    return next((_plain(value) for kind, value in one.numbers.items() if kind.quantity == quantity), None)


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


TABLES = {
    "layers": (LAYERS, layer_rows),
    "flows": (FLOWS, flow_rows),
    "images": (IMAGES, image_rows),
    "heads": (HEADS, head_rows),
    "tests": (TESTS, rows_of_tests),
    "prompts": (None, prompt_rows),
}


def as_csv(found: OverPrompts, name: str) -> bytes:
    """A table of TABLES as CSV, UTF-8."""
    columns, rows = TABLES[name]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns or prompt_columns(found))
    for row in rows(found):
        writer.writerow([_field(value) for value in row])
    return clean_text(text.getvalue()).encode()


def _field(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def as_json(found: OverPrompts) -> dict[str, Any]:
    """All tables but those of heads and prompts, which are as long as the study; of heads those that are in the top of any."""
    tables = {
        name: [dict(zip(columns, row, strict=True)) for row in rows(found)]
        for name, (columns, rows) in TABLES.items()
        if columns is not None
    }
    tables["heads"] = [row for row in tables["heads"] if row["in_top"]]
    return {
        "studies": list(found.sources),
        "prompts": [len(whole_of(found, study)) for study in range(len(found.sources))],
        "by": list(found.question.by),
        "expected": found.expected,
        "match": found.question.match if found.expected else None,
        **tables,
        "strongest": [_named(one) | {"largest_effect": value} for one, value in found.strongest],
        "strangest": [
            _named(odd.prompt)
            | {"quantity": odd.kind.quantity, "value": odd.value, "median": odd.median, "distance": odd.distance}
            for odd in found.strangest
        ],
        "notes": list(found.notes),
    }


def _named(one: PromptNumbers) -> dict[str, Any]:
    return {"prompt": one.name, "answer": one.answer, "strongest": one.strongest, "place": one.place}


def whole_of(found: OverPrompts, study: int) -> Sequence[PromptNumbers]:
    """All prompts of a study."""
    return next(group for group in found.groups if group.study == study).prompts
