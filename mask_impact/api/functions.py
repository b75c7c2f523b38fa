"""The Python functions: analyze, analyze_many, explain, knockout, without, pixels, deepstack, tower.

Their keywords are made from the settings."""

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any

from mask_impact.analyses import deepstack as parts
from mask_impact.analyses import explain as explanations
from mask_impact.analyses import impact, settings
from mask_impact.analyses import knockout as knockouts
from mask_impact.analyses import pixels as replaced
from mask_impact.analyses import tower as towers
from mask_impact.analyses import without as answers
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.settings import ANSWER_TOKENS, SETTINGS, SettingError, UnknownSetting, make_settings
from mask_impact.api.results import (
    DeepstackEffects,
    Explanation,
    Knockouts,
    PatchEffects,
    Result,
    TowerEffects,
    WhatIf,
)
from mask_impact.errors import MaskImpactError, UsageError, need
from mask_impact.models import loading
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.group_files import WINDOW, FlowSet
from mask_impact.prompts.images import Picture, read_picture, read_pictures
from mask_impact.prompts.videos import Clip, read_videos
from mask_impact.results.flows import Flow
from mask_impact.studies.batching import PROMPTS_AHEAD, Outcome, Task, run_tasks


def _takes_settings(command: str, **defaults: Any) -> Callable:
    """Gives a function of **settings the signature and the help of those that the command takes."""

    def complete(function: Callable) -> Callable:
        taken = settings.of_command(command)
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        named = [inspect.Parameter(one.name, keyword, default=defaults.get(one.name, one.default)) for one in taken]
        function.__signature__ = signature.replace(parameters=[*own, *named])
        lines = [f"    {one.name} ({defaults.get(one.name, one.default)!r}): {one.help}" for one in taken]
        function.__doc__ = inspect.cleandoc(function.__doc__) + "\n\nSettings (default):\n\n" + "\n".join(lines) + "\n"
        return function

    return complete


def _model(model: LoadedModel | str | PathLike) -> LoadedModel:
    """A model's name is as good as the model; load it yourself where you use it more than once."""
    need(
        "the model",
        model,
        (LoadedModel, str, PathLike),
        "one of mask_impact.load or mask_impact.wrap, or the name of one",
    )
    return model if isinstance(model, LoadedModel) else loading.load(str(model))


def _several(images: Any) -> tuple[Any, ...]:
    """A single image where several may stand: a path, or what has pixels."""
    single = isinstance(images, str | PathLike) or hasattr(images, "__array__") or hasattr(images, "getpixel")
    return (images,) if single or not isinstance(images, Iterable) else tuple(images)


def _observer(observer: Observer | None) -> Observer | None:
    need("`observer`", observer, (Observer, type(None)), "an Observer, or None")
    return observer


def _several_videos(videos: Any) -> tuple[Any, ...]:
    """A single video where several may stand: a path, an array of frames, or a list of frames that are no paths."""
    if isinstance(videos, str | PathLike) or hasattr(videos, "__array__") or not isinstance(videos, Iterable):
        return (videos,)
    videos = tuple(videos)
    frames = all(hasattr(one, "getpixel") or getattr(one, "ndim", 4) < 4 for one in videos)
    return (list(videos),) if videos and frames else videos


def _pictures(images: Any, chosen: settings.RunSettings, videos: Any = ()) -> tuple[Picture | Clip, ...]:
    """The images and, behind them, the videos."""
    limit = chosen.max_image_resolution
    pictures = read_pictures(_several(images), max_resolution=limit, allow_remote=chosen.allow_remote)
    fps, most = chosen.video_fps, chosen.video_frames
    return *pictures, *read_videos(_several_videos(videos), fps=fps, most=most, max_resolution=limit)


@_takes_settings("run", answer=True)
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
    pictures = _pictures(images, chosen, videos)
    return Result(**vars(impact.run(_model(model), prompt, chosen, pictures, observer=_observer(observer))))


@_takes_settings("explain", num_tokens=ANSWER_TOKENS)
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
    pictures = _pictures(images, chosen, videos)
    return Explanation(
        **vars(explanations.run(_model(model), prompt, chosen, pictures, seed=seed, observer=_observer(observer)))
    )


@_takes_settings("knockout", window=None)
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
    pictures = _pictures(images, chosen, videos)
    found = knockouts.run(_model(model), prompt, flows, chosen, window, pictures, observer=_observer(observer))
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


@_takes_settings("without", num_tokens=ANSWER_TOKENS)
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
    pictures = _pictures(images, chosen, videos)
    return WhatIf(
        **vars(answers.run(_model(model), prompt, specs, chosen, layers, pictures, observer=_observer(observer)))
    )


@_takes_settings("pixels", num_tokens=ANSWER_TOKENS)
def pixels(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    boxes: Sequence[Any] = (),
    mask: Any = None,
    by: str | None = None,
    beam: int = 1,
    fills: str | Sequence[str] = replaced.DEFAULT_FILLS,
    image_number: int | None = None,
    split: bool = False,
    observer: Observer | None = None,
    **given: Any,
) -> PatchEffects:
    """Replace the pixels of regions of an image, one region after the other, and see what becomes of the answer.

    model, prompt, images: as in `analyze`. boxes: a region (left, top, right, bottom) in pixels of the image, or a list of them.
    mask: an image of the same size, white where the region is. by: `search` (coarse to fine, where no region is given), `tokens`
    or `patches`. beam: how many rectangles each level of a search goes on from. fills: what replaces the pixels, some of
    `border`, `mean`, `blur`, `grey`. image_number: in which image (None: all, or the only one). split: whether the effect of the
    token that is found is split, as that of a region given is.
    Errors: InputError for a region that is not in the image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    question = replaced.Question(
        fills=(fills,) if isinstance(fills, str) else tuple(fills),
        by=by,
        beam=beam,
        boxes=_boxes(boxes),
        mask=None if mask is None else read_picture(mask),
        image=image_number,
        split=split,
    )
    chosen = make_settings("pixels", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = _pictures(images, chosen)
    found = replaced.run(_model(model), prompt, question, chosen, pictures, observer=_observer(observer))
    return PatchEffects(**vars(found))


@_takes_settings("deepstack", num_tokens=ANSWER_TOKENS)
def deepstack(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    region: str = parts.EVERYTHING,
    baseline: str = "blank",
    other: Any = None,
    answers: bool = True,
    observer: Observer | None = None,
    **given: Any,
) -> DeepstackEffects:
    """Keep some parts of an image's features (main ones, DeepStack's levels), the rest a baseline's, and see what becomes of the
    answer: every set of parts, exact Shapley values and interactions.

    model, prompt, images: as in `analyze`. region: spec of image tokens (see `prompts.groups`). baseline: `blank` (the same
    picture with the region blanked), `mean` (over the image's tokens) or `zero`. other: a picture that the baseline is instead.
    answers: whether answers are generated with each part alone and without each.
    Errors: InputError for a region that is not of an image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    need("`region`", region, str, "text")
    question = parts.Question(region, baseline, None if other is None else read_picture(other), bool(answers))
    chosen = make_settings("deepstack", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = _pictures(images, chosen)
    found = parts.run(_model(model), prompt, question, chosen, pictures, observer=_observer(observer))
    return DeepstackEffects(**vars(found))


@_takes_settings("tower", num_tokens=ANSWER_TOKENS)
def tower(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    unit: str = "patch",
    probes: int = 0,
    effects: bool = True,
    layers: Sequence[int] | None = None,
    windows: int | None = None,
    boxes: Sequence[Any] = (),
    mask: Any = None,
    by: str | None = None,
    beam: int = 1,
    image_number: int | None = None,
    observer: Observer | None = None,
    **given: Any,
) -> TowerEffects:
    """Which patches the layers of the vision tower read, and what hiding regions in these layers does to the answer: two
    questions.

    model, prompt, images: as in `analyze`. unit: what is hidden together for the map, `patch` or `token`. probes: random ones for
    the layers' whole update, to first order (0: none). effects: whether the answer is asked about. layers: the tower's, in which
    regions are hidden (None: all). windows: also hide what is found in so many layers around each (None: not). boxes, mask, by,
    beam, image_number: the regions, as in `pixels`.
    Errors: InputError for a region that is not in the image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    picture = None if mask is None else read_picture(mask)
    regions = replaced.Question(by=by, beam=beam, boxes=_boxes(boxes), mask=picture, image=image_number)
    for layer in layers or ():
        need("a layer", layer, int, "a whole number")
    chosen_layers = None if layers is None else tuple(layers)
    question = towers.Question(regions, bool(effects), unit, probes, chosen_layers, windows)
    chosen = make_settings("tower", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = _pictures(images, chosen)
    found = towers.run(_model(model), prompt, question, chosen, pictures, observer=_observer(observer))
    return TowerEffects(**vars(found))


def _boxes(boxes: Any) -> tuple[replaced.Box, ...]:
    """One box where several may stand."""
    boxes = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    listed = [boxes] if len(boxes) == 4 and not any(isinstance(one, Iterable) for one in boxes) else boxes
    try:
        found = tuple(tuple(float(edge) for edge in one) for one in listed)
    except (TypeError, ValueError):
        found = ((),)
    if any(len(one) != 4 for one in found):
        raise UsageError(f"a box is (left, top, right, bottom) in pixels, not {listed[0]!r}")
    return found


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
    return _analyze_many(_model(model), enumerate(prompts), raise_errors, _observer(observer), given)


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
    images, videos = _several(merged.pop("images", ())), _several_videos(merged.pop("videos", ()))
    try:
        return Task(number, prompt, make_settings("run", merged), images, videos)
    except SettingError as error:
        raise SettingError(f"prompt {number}: {error.name}", error.problem) from None
    except UnknownSetting as error:
        raise UnknownSetting(f"prompt {number}: {error}") from None
