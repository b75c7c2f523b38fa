"""What holds over many prompts: means with intervals by layer, flow and head, groups of prompts beside each other, odd ones.

Knows the numbers of prompts and statistics; no files, and it prints nothing. Only numbers of one `Kind` are averaged: prompts of
models with other numbers of layers, or of effects with another window, are in tables of their own.

Two groups are held against each other by a permutation test: paired by the prompts' names where at least FEWEST prompts of both
have the same, else unpaired. Holm's correction is over the layers of a curve, and over all single numbers of two groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mask_impact.errors import UsageError, nearest
from mask_impact.findings.correctness import expected_column, is_correct
from mask_impact.findings.prompt_numbers import CORRECT, DEPTH, FLOW, IMAGE_SHARE, LARGEST, Kind, PromptNumbers
from mask_impact.findings.statistics import (
    FEWEST,
    Means,
    holm,
    mean_intervals,
    paired_test,
    share_interval,
    unpaired_test,
)

TOP_HEADS = 5  # of a prompt: those that are said to carry it
MOST_GROUPS = 50
N_NAMED = 5  # prompts that are named as strongest, and as strangest
FEWEST_OTHERS = 10  # prompts, before one of them is said to be unlike the others
STRANGE = 3.5  # robust standard deviations from the median (Iglewicz and Hoaglin 1993)
EVERY = "all prompts"


@dataclass(frozen=True)
class Question:
    """What is asked of a study. by: columns that make groups; expected: the column of the expected answer (None: by its name);
    match: when an answer is correct."""

    by: tuple[str, ...] = ()
    expected: str | None = None
    match: str = "exact"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts that are averaged. study: its number, from 0; name: its labels in words."""

    study: int
    name: str
    prompts: tuple[PromptNumbers, ...]


@dataclass(frozen=True)
class Averaged:
    """A kind of numbers in one group. means: [L] for a curve, [1] for a single number."""

    group: Group
    kind: Kind
    means: Means


@dataclass(frozen=True)
class HeadsFound:
    """The heads of one group, [L, H] throughout. in_top: how many of its n prompts have the head among their TOP_HEADS;
    low, high: the interval of that share; means: of each head's part, [L * H]."""

    group: Group
    kind: Kind
    n: int
    in_top: np.ndarray
    low: np.ndarray
    high: np.ndarray
    means: Means


@dataclass(frozen=True)
class Against:
    """A kind of numbers in two groups. p_holm: corrected; the others: see `statistics.Tested`."""

    first: Group
    second: Group
    kind: Kind
    n: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray
    paired: bool


@dataclass(frozen=True)
class Odd:
    """A prompt far from the others. kind: in what; value: its own; median: of all; distance: in robust deviations."""

    prompt: PromptNumbers
    kind: Kind
    value: float
    median: float
    distance: float


@dataclass(frozen=True)
class OverPrompts:
    """All that is said of one or two studies. sources: as they were named; expected: the column of expected answers, None without
    one; correct: by study and prompt name; notes: what could not be said, and why."""

    sources: tuple[str, ...]
    question: Question
    groups: tuple[Group, ...]
    expected: str | None
    correct: tuple[Mapping[str, bool], ...]
    curves: tuple[Averaged, ...]
    numbers: tuple[Averaged, ...]
    heads: tuple[HeadsFound, ...]
    against: tuple[Against, ...]
    strongest: tuple[tuple[PromptNumbers, float], ...]
    strangest: tuple[Odd, ...]
    notes: tuple[str, ...]

    @property
    def named(self) -> tuple[PromptNumbers, ...]:
        """The prompts of the first study that are named, each once."""
        some = (*(one for one, _ in self.strongest), *(odd.prompt for odd in self.strangest))
        return tuple({one.name: one for one in some}.values())


def over_prompts(studies: Mapping[str, Sequence[PromptNumbers]], question: Question) -> OverPrompts:
    """What one study says, or two that are held against each other. UsageError for a column that no prompt has."""
    sources = tuple(studies)
    expected = _expected(studies, question)
    correct = tuple(
        {one.name: right for one in prompts if (right := _right(one, expected, question.match)) is not None}
        for prompts in studies.values()
    )
    notes: list[str] = []
    groups = [*_groups(studies, question, correct, notes)]
    with_correct = [*map(partial(_with_correct, correct), groups)]
    against = [
        found for first, second in _pairs(groups, notes) for found in _compared(first, second, correct, question, notes)
    ]
    return OverPrompts(
        sources=sources,
        question=question,
        groups=tuple(groups),
        expected=expected if any(correct) else None,
        correct=correct,
        curves=tuple(
            Averaged(group, kind, mean_intervals(values, seed=question.seed))
            for group in groups
            for kind, values in _tables(group.prompts, "curves").items()
        ),
        numbers=tuple(
            _single(group, kind, values, question.seed)
            for group, numbers in zip(groups, with_correct, strict=True)
            for kind, values in numbers.items()
        ),
        heads=tuple(
            _heads(group, kind, values, question.seed)
            for group in groups
            for kind, values in _tables(group.prompts, "heads").items()
        ),
        against=tuple(against),
        strongest=tuple(_strongest(studies[sources[0]])),
        strangest=tuple(_strangest(studies[sources[0]])),
        notes=tuple(dict.fromkeys(notes)),
    )


# --- labels and groups ------------------------------------------------------------------------------------------------------


def _expected(studies: Mapping[str, Sequence[PromptNumbers]], question: Question) -> str | None:
    columns = _columns(studies)
    if question.expected is not None and question.expected not in columns:
        raise _no_column("`expected`", question.expected, columns)
    return question.expected or expected_column(columns)


def _columns(studies: Mapping[str, Sequence[PromptNumbers]]) -> dict[str, None]:
    return dict.fromkeys(name for prompts in studies.values() for one in prompts for name in one.labels)


def _no_column(setting: str, name: str, columns: Mapping[str, None]) -> UsageError:
    near = nearest(name, columns)
    there = f"it has {', '.join(columns)}" if columns else "none was carried along"
    return UsageError(
        f"{setting}: the study has no column {name!r}; {there}" + (f"; did you mean {near}?" if near else "")
    )


def _right(one: PromptNumbers, expected: str | None, match: str) -> bool | None:
    return None if expected is None else is_correct(one.answer, one.labels.get(expected), match)


def _groups(
    studies: Mapping[str, Sequence[PromptNumbers]], question: Question, correct: Sequence[Mapping[str, bool]],
    notes: list[str],
) -> Iterator[Group]:  # fmt: skip
    """All prompts of each study, and then its groups, the labels in order."""
    columns = _columns(studies)
    for name in question.by:
        if name not in columns and not (name == CORRECT and any(correct)):
            raise _no_column("`by`", name, columns if not any(correct) else columns | {CORRECT: None})
    for study, (source, prompts) in enumerate(studies.items()):
        yield Group(study, EVERY, tuple(prompts))
        if not question.by:
            continue
        found: dict[tuple, list[PromptNumbers]] = {}
        n_without = 0
        for one in prompts:
            values = tuple(_label(one, name, correct[study]) for name in question.by)
            if None in values:
                n_without += 1
            else:
                found.setdefault(values, []).append(one)
        if n_without:
            notes.append(f"{n_without} of {len(prompts)} prompts of {source} lack a label, and are in no group")
        if len(found) > MOST_GROUPS:
            raise UsageError(
                f"`by` {','.join(question.by)} makes {len(found)} groups, more than {MOST_GROUPS}; give fewer columns"
            )
        for values in sorted(found):
            label = ", ".join(f"{name}={value}" for name, value in zip(question.by, values, strict=True))
            yield Group(study, label, tuple(found[values]))


def _label(one: PromptNumbers, name: str, correct: Mapping[str, bool]) -> str | None:
    if name == CORRECT and name not in one.labels:
        return {True: "yes", False: "no"}.get(correct.get(one.name))
    value: Any = one.labels.get(name)
    return None if value is None or value != value else str(value)


def _pairs(groups: Sequence[Group], notes: list[str]) -> Iterator[tuple[Group, Group]]:
    """Which groups are held against each other: the same ones of two studies, or the only two of one."""
    second = {group.name: group for group in groups if group.study == 1}
    if second:
        for group in groups:
            if group.study == 0 and group.name in second:
                yield group, second[group.name]
            elif group.study == 0:
                notes.append(f"Only the first study has prompts with {group.name}")
        return
    labelled = [group for group in groups if group.name != EVERY]
    if len(labelled) == 2:
        yield labelled[0], labelled[1]
    elif len(labelled) > 2:
        notes.append(
            f"{len(labelled)} groups are not tested against each other; two are, of one column with two values"
        )


# --- means ------------------------------------------------------------------------------------------------------------------


def _tables(prompts: Sequence[PromptNumbers], what: str) -> dict[Kind, np.ndarray]:
    """Of each kind the numbers of the prompts that have them, [n, ...]."""
    found: dict[Kind, list] = {}
    for one in prompts:
        for kind, values in getattr(one, what).items():
            found.setdefault(kind, []).append(values)
    tables = {}
    for kind, rows in found.items():
        if np.ndim(rows[0]) == 2:  # heads: a model may have fewer of them in some layers' tables
            shape = tuple(np.max([row.shape for row in rows], axis=0))
            rows = [np.pad(row, [(0, n - m) for n, m in zip(shape, row.shape, strict=True)]) for row in rows]
        tables[kind] = np.stack([np.atleast_1d(row) for row in rows])
    return dict(sorted(tables.items()))


def _with_correct(correct: Sequence[Mapping[str, bool]], group: Group) -> dict[Kind, np.ndarray]:
    """Single numbers [n, 1], with whether the answers are correct among them."""
    known = [float(correct[group.study][one.name]) for one in group.prompts if one.name in correct[group.study]]
    first = {Kind(CORRECT, "share of the answers", 0): np.array(known)[:, None]} if known else {}
    return first | _tables(group.prompts, "numbers")


def _single(group: Group, kind: Kind, values: np.ndarray, seed: int) -> Averaged:
    if kind.quantity != CORRECT:
        return Averaged(group, kind, mean_intervals(values, seed=seed))
    n = np.array([len(values)])
    return Averaged(group, kind, Means(n, values.mean(axis=0), *share_interval(values.sum(axis=0), n)))


def _heads(group: Group, kind: Kind, values: np.ndarray, seed: int) -> HeadsFound:
    """values: [n, L, H]"""
    n, n_layers, n_heads = values.shape
    flat = values.reshape(n, -1)
    k = min(TOP_HEADS, max(1, flat.shape[1] // 2))
    in_top = np.zeros(flat.shape[1], dtype=np.int64)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :k]
    np.add.at(in_top, order[np.take_along_axis(flat, order, axis=1) > 0], 1)
    low, high = share_interval(in_top, np.full(in_top.shape, n))
    shape = (n_layers, n_heads)
    means = mean_intervals(flat, seed=seed)
    return HeadsFound(group, kind, n, in_top.reshape(shape), low.reshape(shape), high.reshape(shape), means)


# --- two groups -------------------------------------------------------------------------------------------------------------


def _compared(
    first: Group, second: Group, correct: Sequence[Mapping[str, bool]], question: Question, notes: list[str]
) -> Iterator[Against]:
    told = CORRECT in question.by  # by which the groups were made: they differ in it without a test
    numbers = [*_tested_numbers(first, second, ({},) * len(correct) if told else correct, question.seed)]
    corrected = holm(np.array([found.p[0] for _, found in numbers]))
    for (kind, found), p in zip(numbers, corrected, strict=True):
        yield _against(first, second, kind, found, np.array([p]))
    mine, others = (_by_name(group.prompts, "curves") for group in (first, second))
    for kind in sorted({*mine} & {*others}):
        found = _tested(mine[kind], others[kind], question.seed)
        yield _against(first, second, kind, found, holm(found.p))
    for kind in sorted({*mine} ^ {*others}):
        same = [one for one in ({*mine} | {*others}) - {kind} if one.quantity == kind.quantity]
        if same:
            notes.append(
                f"Of {kind.quantity} not everything is compared: {kind.n_layers} layers"
                f"{f', {kind.how}' if kind.how else ''}, by {kind.measure}, is in one of the groups only"
            )


def _against(first: Group, second: Group, kind: Kind, found: Any, p_holm: np.ndarray) -> Against:
    return Against(
        first, second, kind, found.n, found.difference, found.low, found.high, found.p, p_holm, found.paired
    )  # fmt: skip


def _by_name(prompts: Sequence[PromptNumbers], what: str) -> dict[Kind, dict[str, np.ndarray]]:
    found: dict[Kind, dict[str, np.ndarray]] = {}
    for one in prompts:
        for kind, values in getattr(one, what).items():
            found.setdefault(kind, {})[one.name] = np.atleast_1d(values)
    return found


def _tested_numbers(
    first: Group, second: Group, correct: Sequence[Mapping[str, bool]], seed: int
) -> Iterator[tuple[Kind, Any]]:
    tables = []
    for group in (first, second):
        known = {one.name for one in group.prompts}
        right = {name: np.array([float(value)]) for name, value in correct[group.study].items() if name in known}
        tables.append(
            ({Kind(CORRECT, "share of the answers", 0): right} if right else {}) | _by_name(group.prompts, "numbers")
        )
    for kind in sorted({*tables[0]} & {*tables[1]}):
        yield kind, _tested(tables[0][kind], tables[1][kind], seed)


def _tested(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], seed: int) -> Any:
    """Paired by name where that can be."""
    shared = [name for name in first if name in second]
    if len(shared) >= FEWEST:
        return paired_test(*(np.stack([one[name] for name in shared]) for one in (first, second)), seed=seed)
    return unpaired_test(*(np.stack([*one.values()]) for one in (first, second)), seed=seed)


# --- prompts that are named -------------------------------------------------------------------------------------------------


def largest_effect(one: PromptNumbers) -> float:
    """Nats, NaN where none was measured."""
    return next((value for kind, value in one.numbers.items() if kind.quantity == LARGEST), np.nan)


def _strongest(prompts: Sequence[PromptNumbers]) -> list[tuple[PromptNumbers, float]]:
    with_effect = [(one, value) for one in prompts if np.isfinite(value := largest_effect(one))]
    return sorted(with_effect, key=lambda pair: -pair[1])[:N_NAMED]


def _strangest(prompts: Sequence[PromptNumbers]) -> list[Odd]:
    """Prompts further than STRANGE from the median in a single number of one kind, each once, by where it is furthest."""
    found: dict[str, Odd] = {}
    for kind, values in _by_name(prompts, "numbers").items():
        if kind.quantity not in (IMAGE_SHARE, DEPTH, LARGEST) and not kind.quantity.startswith(FLOW):
            continue
        by_name = {one.name: one for one in prompts if one.name in values}
        there = np.array([values[name][0] for name in by_name])
        if np.isfinite(there).sum() < FEWEST_OTHERS:
            continue
        median = float(np.nanmedian(there))
        spread = 1.4826 * float(np.nanmedian(np.abs(there - median)))
        if not spread > 0:
            continue
        for (name, one), value in zip(by_name.items(), there.tolist(), strict=True):
            distance = abs(value - median) / spread
            if distance > STRANGE and (name not in found or distance > found[name].distance):
                found[name] = Odd(one, kind, value, median, distance)
    return sorted(found.values(), key=lambda odd: -odd.distance)[:N_NAMED]
