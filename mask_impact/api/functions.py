"""The Python functions: analyze, analyze_many, explain, knockout, without.

Their keywords are made from the settings."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any

from mask_impact.analyses import explain as explanations
from mask_impact.analyses import impact
from mask_impact.analyses import knockout as knockouts
from mask_impact.analyses import without as answers
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.settings import ANSWER_TOKENS, SETTINGS, SettingError, UnknownSetting, make_settings
from mask_impact.api.given import model_of, observer_of, pictures_of, several, several_videos, takes_settings
from mask_impact.api.results import Explanation, Knockouts, Result, WhatIf
from mask_impact.errors import MaskImpactError, UsageError, need
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.group_files import WINDOW, FlowSet
from mask_impact.results.flows import Flow
from mask_impact.studies.batching import PROMPTS_AHEAD, Outcome, Task, run_tasks


@takes_settings("run", answer=True)
def analyze(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    videos: Any = (),
    observer: Observer | None = None,
    **given: Any,
) -> Result:
    """What the answer used, and what hiding each token in each layer changes, for each of up to `num_tokens` produced tokens.

    model: from `mask_impact.load`, or what it takes: "demo", a hub id, a folder. prompt: text, ChatML, or ready model inputs (a
    dict with input_ids [1, n]). images: a path, PIL image or uint8 array [H, W, 3], or a list of them; each `<image>` in the
    prompt marks where one goes, else they go before the text. videos: a path of a file or of a folder of frames, a uint8 array
    [frames, H, W, 3] or a list of frames, or a list of these; `<video>` marks where one goes.
    Errors: InputError, UsageError, ModelError, ExactnessError, DeviceError.
    """
    chosen = make_settings("run", {"answer": True} | given)
    pictures = pictures_of(images, chosen, videos)
    return Result(**vars(impact.run(model_of(model), prompt, chosen, pictures, observer=observer_of(observer))))


@takes_settings("explain", num_tokens=ANSWER_TOKENS)
def explain(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    videos: Any = (),
    seed: int = 0,
    observer: Observer | None = None,
    **given: Any,
) -> Explanation:
    """What the answer used: each token's contribution estimated, the strongest ones really hidden, and the smallest sets
    of words or cells that decide the answer. Without local maps.

    model, prompt, images, videos: as in `analyze`. seed: of the tokens that are drawn at random to hold the estimates against.
    Errors: as in `analyze`.
    """
    need("`seed`", seed, int, "a whole number")
    chosen = make_settings("explain", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = pictures_of(images, chosen, videos)
    return Explanation(
        **vars(explanations.run(model_of(model), prompt, chosen, pictures, seed=seed, observer=observer_of(observer)))
    )


@takes_settings("knockout", window=None)
def knockout(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    flows: FlowSet | Flow | str | Sequence[Any] | None = None,
    *,
    images: Any = (),
    videos: Any = (),
    observer: Observer | None = None,
    **given: Any,
) -> Knockouts:
    """Cut flows between groups of tokens, in a window of layers around each layer, at each of up to num_tokens steps.

    model, prompt, images, videos: as in `analyze`. flows: "image -> last", a (source, target) pair of specs (see
    `prompts.groups`), a Flow, or a list of these; None for image -> question, image -> last, question -> last. window: how
    many layers (None: 9).
    Errors: InputError for a spec that can't be resolved and for a flow against the order of the tokens, UsageError.
    """
    window = given.pop("window", None)
    if window is not None:
        window = SETTINGS["window"].checked(window)
    chosen = make_settings("knockout", given)
    if flows is not None and not isinstance(flows, FlowSet):
        flows = FlowSet(WINDOW, tuple(_flow(one) for one in _listed_flows(flows)))
    pictures = pictures_of(images, chosen, videos)
    found = knockouts.run(model_of(model), prompt, flows, chosen, window, pictures, observer=observer_of(observer))
    return Knockouts(**vars(found))


def _listed_flows(flows: Any) -> Sequence[Any]:
    """Flows as a list, where a single one is given: text, a Flow, or a pair of specs that are no flows."""
    if isinstance(flows, str | Flow) or not isinstance(flows, Iterable):
        return [flows]
    flows = list(flows)
    pair = len(flows) == 2 and all(isinstance(one, str) and "->" not in one for one in flows)
    return [tuple(flows)] if pair else flows


def _flow(one: Any) -> Flow:
    if isinstance(one, Flow):
        return one
    if isinstance(one, str):
        try:
            return Flow.parsed(one)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if not isinstance(one, list | tuple) or len(one) != 2 or not all(isinstance(end, str) for end in one):
        raise UsageError(f"a flow is 'source -> target', a (source, target) pair of text, or a Flow, not {one!r}")
    return Flow(f"{one[0]} -> {one[1]}", *one)


@takes_settings("without", num_tokens=ANSWER_TOKENS)
def without(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    specs: str | Sequence[str],
    *,
    layers: int | Sequence[int] | None = None,
    images: Any = (),
    videos: Any = (),
    observer: Observer | None = None,
    **given: Any,
) -> WhatIf:
    """Generate the answer to a prompt, and again without what each of the specs stands for (see `prompts.groups`).

    model, prompt, images, videos: as in `analyze`. specs: one or several, such as "image" or a word of the prompt. layers: in
    which the tokens are hidden (None: all). Greedy, otherwise as the model's generation config says.
    Errors: InputError for a spec that matches nothing or several places, UsageError for a layer that is not there.
    """
    need("what is hidden", specs, (str, Sequence), "text, or a list of texts")
    specs = [specs] if isinstance(specs, str) else list(specs)
    if wrong := [spec for spec in specs if not isinstance(spec, str)]:
        raise UsageError(f"what is hidden is said in text, not by {wrong[0]!r}")
    if layers is not None:
        layers = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    for layer in layers or ():
        need("a layer", layer, int, "a whole number")
    chosen = make_settings("without", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = pictures_of(images, chosen, videos)
    return WhatIf(
        **vars(answers.run(model_of(model), prompt, specs, chosen, layers, pictures, observer=observer_of(observer)))
    )


def analyze_many(
    model: LoadedModel | str | PathLike,
    prompts: Iterable[str | Mapping[str, Any]],
    *,
    raise_errors: bool = True,
    observer: Observer | None = None,
    **given: Any,
) -> Iterator[Result | MaskImpactError]:
    """The results of many prompts, one by one and in their order; prompts are read as they are needed.

    prompts: what `analyze` takes, or a dictionary with `prompt` and whatever else `analyze` takes for this one alone (images,
    videos, num_tokens, mask_mode ...). given: what `analyze` takes, for all. Prompts of similar length share forward passes.
    raise_errors: whether a prompt that fails ends it all; otherwise its error stands in the place of its result.
    """
    if isinstance(prompts, str | Mapping):
        raise UsageError("prompts are given as a list (or an iterator); for a single one there is analyze")
    need("prompts", prompts, Iterable, "a list, or an iterator")
    return _analyze_many(model_of(model), enumerate(prompts), raise_errors, observer_of(observer), given)


def _analyze_many(
    model: LoadedModel,
    numbered: Iterator[tuple[int, str | Mapping[str, Any]]],
    raise_errors: bool,
    observer: Observer | None,
    given: Mapping[str, Any],
) -> Iterator[Result | MaskImpactError]:
    while block := [_task(number, prompt, given) for number, prompt in islice(numbered, PROMPTS_AHEAD)]:
        waiting: dict[Hashable, Outcome] = {}
        following = iter(block)
        expected = next(following)
        for outcome in run_tasks(model, block, observer):
            waiting[outcome.task.key] = outcome
            while expected is not None and expected.key in waiting:
                done = waiting.pop(expected.key)
                if done.error is not None and raise_errors:
                    raise done.error
                yield Result(**vars(done.result)) if done.error is None else done.error
                expected = next(following, None)


def _task(number: int, prompt: str | Mapping[str, Any], given: Mapping[str, Any]) -> Task:
    own: dict[str, Any] = {}
    if isinstance(prompt, Mapping) and "input_ids" not in prompt:
        own = dict(prompt)
        if "prompt" not in own:
            raise UsageError(f"prompt {number} is a dictionary without `prompt` (or `input_ids`)")
        prompt = own.pop("prompt")
    merged = dict(given) | own
    images, videos = several(merged.pop("images", ())), several_videos(merged.pop("videos", ()))
    try:
        return Task(number, prompt, make_settings("run", merged), images, videos)
    except SettingError as error:
        raise SettingError(f"prompt {number}: {error.name}", error.problem) from None
    except UnknownSetting as error:
        raise UnknownSetting(f"prompt {number}: {error}") from None
