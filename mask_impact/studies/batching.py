"""Many prompts with one model: which of them share forward passes, and what becomes of each.

Sharing pays where a forward pass is bound by reading the weights, and as long as little of it is padding: so prompts of
similar length go together, up to a number of tokens. What goes together follows from the prompts and the model alone.
Knows no files.
"""

import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from transformers import PreTrainedModel

from mask_impact.analyses import impact
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.errors import MaskImpactError
from mask_impact.models.layer_kinds import keeps_states
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.clips import images_apart
from mask_impact.prompts.videos import read_visuals
from mask_impact.results.looked import LookedEffects
from mask_impact.results.records import Result
from mask_impact.studies import looks

# Tokens of one shared forward pass, padding included. `benchmarks/bench_batch.py` shows what they make of it.
TOKENS_TOGETHER = {"cpu": 512}
TOKENS_TOGETHER_ELSEWHERE = 8192
PROMPTS_AHEAD = 64  # how many prompts are looked at to find those that go together


@dataclass(frozen=True)
class Task:
    """One prompt of many. key: what the caller calls it. prompt, images, videos, settings: as for `analyze`. source: what it
    was made of, for the caller."""

    key: Hashable
    prompt: str | Mapping[str, Any]
    settings: RunSettings
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    source: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or the error that kept it from one. looked: what was asked about its images besides, by
    the setting; left_out: of these why they can't be had of it; seconds: its part of what the forward passes took."""

    task: Task
    result: Result | None
    error: MaskImpactError | None = None
    looked: Mapping[str, LookedEffects] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


Group = Sequence[tuple[Task, Prepared]]  # what shares forward passes
_proven: WeakSet[PreTrainedModel] = WeakSet()


def run_tasks(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    observer: Observer | None = None,
    wanted: Collection[Hashable] | None = None,
) -> Iterator[Outcome]:
    """The outcomes of `tasks`, as they come: those that cannot be run first, then group by group.

    wanted: keys of those whose outcomes are needed (None: all); the others run along where they share forward passes with one.
    """
    failed, groups = plan(loaded, tasks, wanted)
    yield from failed
    for group in groups:
        yield from run_group(loaded, group, observer, wanted)


def plan(
    loaded: LoadedModel, tasks: Sequence[Task], wanted: Collection[Hashable] | None = None
) -> tuple[list[Outcome], list[Group]]:
    """The tasks that cannot be run, and the others in groups that share forward passes; those without one that is wanted are
    left out."""
    failed: list[Outcome] = []
    ready: list[tuple[Task, Prepared]] = []
    for task in tasks:
        try:
            pictures = read_visuals(task.images, task.videos, task.settings)
            ready.append((task, prepare(loaded, task.prompt, task.settings, pictures)))
        except MaskImpactError as error:
            failed.append(Outcome(task, None, error))
    together = group_prompts(loaded.model, [prepared for _, prepared in ready])
    groups = [[ready[index] for index in group] for group in together]
    if wanted is None:
        return failed, groups
    needed = [group for group in groups if any(task.key in wanted for task, _ in group)]
    return [one for one in failed if one.task.key in wanted], needed


def run_group(
    loaded: LoadedModel, group: Group, observer: Observer | None, wanted: Collection[Hashable] | None = None
) -> Iterator[Outcome]:
    """The outcomes of a group of `plan`."""
    _prove(loaded)
    outcomes = _run_group(loaded, group, observer)
    return outcomes if wanted is None else (one for one in outcomes if one.task.key in wanted)


def _prove(loaded: LoadedModel) -> None:
    """Measures a word of no interest before anything else: what the first pass through a model finds out about its layers decides
    what is carried along in it, and a prompt is to have the same bits whichever came before it."""
    if loaded.model not in _proven:
        _proven.add(loaded.model)
        with suppress(MaskImpactError):  # which the prompts are told
            impact.run(loaded, "a", RunSettings(num_tokens=1, raw=True, effect=True, answer=False))


def _run_group(loaded: LoadedModel, group: Group, observer: Observer | None) -> Iterator[Outcome]:
    started = time.perf_counter()
    try:
        results = impact.run_together(loaded, [prepared for _, prepared in group], observer=observer)
    except MaskImpactError as error:
        if len(group) == 1:
            yield Outcome(group[0][0], None, error)
            return
    else:
        each = (time.perf_counter() - started) / len(group)
        for (task, prepared), result in zip(group, results, strict=True):
            yield _looked(loaded, task, prepared, result, each, observer)
        return
    for one in group:  # one of them fails, and the others need not
        yield from _run_group(loaded, [one], observer)


def _looked(
    loaded: LoadedModel, task: Task, prepared: Prepared, result: Result, seconds: float, observer: Observer | None
) -> Outcome:
    """The outcome with what is asked about the images besides. seconds: that its result took."""
    started = time.perf_counter()
    try:
        looked, left_out = looks.look(loaded, prepared, observer)
    except MaskImpactError as error:
        return Outcome(task, None, error)
    return Outcome(task, result, None, looked, left_out, seconds + time.perf_counter() - started)


def group_prompts(model: PreTrainedModel, prompts: Sequence[Prepared]) -> list[list[int]]:
    """Numbers of the prompts that run together, shortest first. Where layers carry a state through the sequence only those of one
    length do: some models' layers take padding for text there. Nor do prompts with images and those with videos, where a model
    counts the cells of both together."""
    may_be_padded = not keeps_states(model.config.get_text_config())
    budget = TOKENS_TOGETHER.get(model.device.type, TOKENS_TOGETHER_ELSEWHERE) if _may_share(model) else 0
    apart = images_apart(model.config.model_type)
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index].encoded.n_tokens):
        prompt, group = prompts[index], groups[-1] if groups else []
        fits = (len(group) + 1) * prompt.encoded.n_tokens <= budget
        if group and not may_be_padded:
            fits = fits and prompts[group[0]].encoded.n_tokens == prompt.encoded.n_tokens
        if group and apart:
            fits = fits and _has_video(prompts[group[0]]) == _has_video(prompt)
        if group and fits and _go_together(prompts[group[0]].settings, prompt.settings):
            group.append(index)
        else:
            groups.append([index])
    return groups


def _has_video(prompt: Prepared) -> bool:
    return any(image.moment is not None for image in prompt.encoded.images)


def _go_together(one: RunSettings, other: RunSettings) -> bool:
    same = one.variants == other.variants and one.batch_size == other.batch_size
    return same and not any(settings.verify or settings.effect for settings in (one, other))


def _may_share(model: PreTrainedModel) -> bool:
    """Whether generation looks at nothing but the logits: some of its rules would take padding for text. And whether positions
    do not depend on the length of the longest."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return False
    config = greedy_config(model, 1)
    neutral = {
        "repetition_penalty": (None, 1.0),
        "encoder_repetition_penalty": (None, 1.0),
        "no_repeat_ngram_size": (None, 0),
        "encoder_no_repeat_ngram_size": (None, 0),
        "min_length": (None, 0),
        "exponential_decay_length_penalty": (None,),
        "bad_words_ids": (None,),
        "sequence_bias": (None,),
        "watermarking_config": (None,),
    }
    return all(getattr(config, name, None) in values for name, values in neutral.items())
