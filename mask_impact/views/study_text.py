"""What holds over many prompts, in plain words for a terminal. Every mean has its interval and says of how many prompts it is."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mask_impact.errors import ranges
from mask_impact.findings.over_prompts import EVERY, TOP_HEADS, Against, Averaged, HeadsFound, Odd, OverPrompts
from mask_impact.findings.prompt_numbers import (
    ALL,
    CORRECT,
    DEPTH,
    EVIDENCE,
    FLOW,
    IMAGE_SHARE,
    LARGEST,
    READING,
    STRONG,
    Kind,
)
from mask_impact.findings.statistics import FEWEST
from mask_impact.views.study_tables import whole_of
from mask_impact.views.text import escape, fitted, percent, quoted

ENOUGH = 0.05  # p, corrected, up to which a difference is said to be one
N_HEADS = 5
MATCHES = {"exact": "exactly", "contains": "within the answer", "one-of": "one of several"}
SAID = {
    EVIDENCE: "the smallest set that decides the answer",
    STRONG: "the two words or cells with the largest effect",
    ALL: "not known",
}
TITLES = {
    CORRECT: "correct answers",
    IMAGE_SHARE: "image, of image and text",
    READING: "where {} is read",
    DEPTH: "depth where {} is read",
    LARGEST: "largest effect of one word or cell",
}


def render(found: OverPrompts) -> str:
    """The whole summary."""
    lines = [*_head(found)]
    for group in found.groups:
        lines += ["", _group_title(found, group.study, group.name, len(group.prompts))]
        if len(group.prompts) < FEWEST:
            lines.append(f"  Too few for intervals, which {FEWEST} prompts have.")
        of = [one for one in (*found.numbers, *found.curves) if one.group is group]
        said = [(one.kind, line) for one in sorted(of, key=_order) for line in said_of(one)]
        said += [(one.kind, line) for one in found.heads if one.group is group for line in heads_said(one)]
        lines += _by_measure(said)
    lines += [*_tests(found), *_prompts(found)]
    return "\n".join(fitted(lines))


def _head(found: OverPrompts) -> Iterator[str]:
    for study, source in enumerate(found.sources):
        letter = f"Study {'AB'[study]}" if len(found.sources) > 1 else "Study"
        yield f"{letter}: {escape(source)}, {len(whole_of(found, study)):,} prompts"
    yield "Means over prompts; in parentheses the 95 % interval and the number of prompts."
    yield "Depth goes from 0, before the first layer, to 1, behind the last one."
    yield from _evidence(found)
    if found.expected:
        yield f"Correct: the answer is that of column {quoted(found.expected)}, {MATCHES[found.question.match]}."


def _evidence(found: OverPrompts) -> Iterator[str]:
    """What is taken for the evidence, where there is any."""
    reasons = [one.reasons for study in range(len(found.sources)) for one in whole_of(found, study)]
    said = [f"{SAID[rule]} in {n:,}" for rule in SAID if (n := reasons.count(rule))]
    if reasons.count(ALL) < len(reasons):
        yield f"Evidence: {', '.join(said)} of {len(reasons):,} prompts."


def _group_title(found: OverPrompts, study: int, name: str, n: int) -> str:
    before = f"{'AB'[study]}, " if len(found.sources) > 1 else ""
    title = f"{before}{escape(name)}"
    return f"{title[0].upper()}{title[1:]} ({n:,})" if name == EVERY else f"{title} ({n:,})"


def _by_measure(said: Sequence[tuple[Kind, str]]) -> Iterator[str]:
    """The lines, under what each is measured by."""
    for measure in dict.fromkeys(by(kind) for kind, _ in said):
        if measure:
            yield f"  {measure[0].upper()}{measure[1:]}:"
        yield from (f"{'    ' if measure else '  '}{line}" for kind, line in said if by(kind) == measure)


def _order(one: Averaged) -> tuple[int, str, int]:
    names = [*TITLES]
    quantity = one.kind.quantity
    return (names.index(quantity) if quantity in names else len(names), quantity, len(one.means.n))


def title(kind: Kind) -> str:
    """What a number is, in words."""
    what = "the evidence" if kind.measure.endswith("of the evidence") else "any token"
    return TITLES[kind.quantity].format(what) if kind.quantity in TITLES else kind.quantity


def by(kind: Kind) -> str:
    """By what it is measured, and of how many layers."""
    if not kind.n_layers:
        return ""
    return ", ".join(filter(None, (kind.measure, kind.how, f"{kind.n_layers} layers")))


# --- one group --------------------------------------------------------------------------------------------------------------


def said_of(one: Averaged) -> list[str]:
    """Lines on a curve or a single number."""
    kind, means = one.kind, one.means
    if not _is_curve(one):
        return [f"{title(kind)}: {_with_interval(one, 0)}"]
    if not np.isfinite(means.mean).any():
        return []
    order = np.argsort(-_strength(one), kind="stable")
    order = order[np.isfinite(means.mean[order])]
    most, least = int(order[0]), int(order[-1])
    text = f"{title(kind)}, by layer: most in layer {most}, {_with_interval(one, most)}"
    if least != most and kind.quantity == IMAGE_SHARE:
        text += f"; least in layer {least}, {_with_interval(one, least)}"
    return [text]


def _is_curve(one: Averaged) -> bool:
    return len(one.means.n) > 1


def _strength(one: Averaged) -> np.ndarray:
    """By which layers are ordered: flows by how much less probable cutting them makes the answer."""
    sign = -1 if one.kind.quantity.startswith(FLOW) else 1
    return np.nan_to_num(sign * one.means.mean, nan=-np.inf)


def _with_interval(one: Averaged, place: int) -> str:
    means = one.means
    return with_interval(one.kind, means.mean[place], means.low[place], means.high[place], int(means.n[place]))


def with_interval(kind: Kind, mean: float, low: float, high: float, n: int | str, signed: bool = False) -> str:
    """45.0 % (40.1 to 50.2 %, n 12)"""
    between = f"{value(kind, low, signed, bare=True)} to {value(kind, high, signed)}, " if math.isfinite(low) else ""
    return f"{value(kind, mean, signed)} ({between}n {n})"


def value(kind: Kind, number: float, signed: bool = False, bare: bool = False) -> str:
    """A number with its unit; bare: without."""
    sign = "+" if signed and number > 0 else ""
    if kind.quantity == DEPTH:
        return f"{sign}{number:.2f}"
    if kind.quantity in (CORRECT, IMAGE_SHARE, READING):
        return f"{sign}{100 * number:.1f}{'' if bare else ' %'}"
    return f"{sign}{number:.3g}{'' if bare else ' nats'}"


def heads_said(one: HeadsFound) -> list[str]:
    """The heads that are among the strongest of most prompts."""
    order = np.argsort(-one.in_top.reshape(-1), kind="stable")[:N_HEADS]
    named = []
    for place in order.tolist():
        layer, head = divmod(place, one.in_top.shape[1])
        if not one.in_top[layer, head]:
            continue
        share, low, high = one.in_top[layer, head] / one.n, one.low[layer, head], one.high[layer, head]
        named.append(f"layer {layer} head {head} in {percent(share)} ({100 * low:.1f} to {100 * high:.1f} %)")
    if not named:
        return []
    k = min(TOP_HEADS, max(1, one.in_top.size // 2))
    return [f"heads among the top {k} of a prompt: {', '.join(named)}; n {one.n}"]


# --- two groups -------------------------------------------------------------------------------------------------------------


def _tests(found: OverPrompts) -> Iterator[str]:
    pairs = dict.fromkeys((one.first, one.second) for one in found.against)
    for first, second in pairs:
        of = [one for one in found.against if one.first is first and one.second is second]
        names = [_side(found, group.study, group.name) for group in (first, second)]
        yield ""
        yield f"{names[0]} minus {names[1]}"
        yield f"  Permutation tests, {_how_paired(of)}; p after Holm's correction."
        ordered = sorted(of, key=lambda one: len(one.p))
        told = [
            (one.kind, f"{title(one.kind)}: {_tested(one, 0)}")
            if len(one.p) == 1
            else (one.kind, f"{title(one.kind)}, by layer: {_layers_that_differ(one)}")
            for one in ordered
        ]
        yield from _by_measure(told)


def _side(found: OverPrompts, study: int, name: str) -> str:
    return f"{'AB'[study]}, {escape(name)}" if len(found.sources) > 1 else escape(name)


def _how_paired(of: Sequence[Against]) -> str:
    n_paired = sum(one.paired for one in of)
    if n_paired == len(of):
        return "paired by the prompts' names"
    return (
        "unpaired, since the prompts have other names"
        if not n_paired
        else "paired where the prompts' names are the same"
    )


def _tested(one: Against, place: int) -> str:
    n = int(one.n[0, place]) if one.paired else f"{one.n[0, place]} and {one.n[1, place]}"
    numbers = (one.difference[place], one.low[place], one.high[place])
    if not math.isfinite(numbers[0]):
        return "no number in one of them"
    said = "" if one.p_holm[place] <= ENOUGH else ", no difference shown"
    return f"{with_interval(one.kind, *numbers, n, signed=True)}, p {p_text(one.p_holm[place])}{said}"


def p_text(p: float) -> str:
    """Two digits; the smallest as such."""
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def _layers_that_differ(one: Against) -> str:
    differ = np.flatnonzero(one.p_holm <= ENOUGH)
    if not len(differ):
        smallest = np.nanmin(one.p_holm) if np.isfinite(one.p_holm).any() else math.nan
        n = f"n {one.n[0].max()}" if one.paired else f"n {one.n[0].max()} and {one.n[1].max()}"
        return (
            f"no layer differs (smallest p {p_text(smallest)}, {n})"
            if math.isfinite(smallest)
            else "no layer has a number"
        )
    most = int(differ[np.argmax(np.abs(one.difference[differ]))])
    return f"layers {ranges(differ.tolist())} differ, most of all layer {most}: {_tested(one, most)}"


# --- prompts ----------------------------------------------------------------------------------------------------------------


def _prompts(found: OverPrompts) -> Iterator[str]:
    if found.strongest:
        yield ""
        yield "Prompts with the largest effect of one word or cell"
        for one, nats in found.strongest:
            yield f"  {escape(one.name)}: {quoted(one.strongest, 40)} {-nats:.2f} nats, says {quoted(one.answer.strip(), 40)}"
            yield from _place(one.place)
    if found.strangest:
        yield ""
        yield "Prompts that are unlike the others"
        for odd in found.strangest:
            yield f"  {escape(odd.prompt.name)}: {odd_text(odd)}, says {quoted(odd.prompt.answer.strip(), 40)}"
            yield from _place(odd.prompt.place)


def _place(place: str) -> Iterator[str]:
    """Of a prompt that has files of its own."""
    if not place.endswith(".parquet"):
        yield f"    {escape(place)}"


def odd_text(odd: Odd) -> str:
    """In what it is odd."""
    own, median = value(odd.kind, odd.value), value(odd.kind, odd.median)
    return f"{title(odd.kind)} is {own}, where half of the prompts have less than {median}"
