"""The local impact: one prompt through the model's own `generate()` with the engine riding, to a Result.

Generation is greedy and otherwise as the model's generation config says. Knows no files and prints nothing; whoever wants
to show progress passes an observer.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mask_impact.analyses.explain import explain
from mask_impact.analyses.generation import (
    Candidates,
    check_steps,
    default_rows,
    leave_out_finished,
    most_probable,
    produce,
    smaller_chunk,
)
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.impact_result import Pass, make_result
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.pixels import Question, of_run, plan
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.analyses.strongest import Chosen, choose_strongest, most
from mask_impact.analyses.units import effect_groups
from mask_impact.engine.effects import AtEachStep
from mask_impact.engine.kept import KeptPass, keeping
from mask_impact.engine.ownership import owned
from mask_impact.engine.plans import Masked, SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.riding.remeasuring import choose_layers
from mask_impact.engine.variants import Variants, check_cost, each_window_and_group
from mask_impact.errors import ExactnessError, ModelError
from mask_impact.models.layer_kinds import known_without_attention
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import join
from mask_impact.prompts.groups import Group
from mask_impact.prompts.images import Picture
from mask_impact.results.records import Result


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    settings: RunSettings,
    pictures: Sequence[Picture] = (),
    *,
    observer: Observer | None = None,
) -> Result:
    """The maps of one prompt, and what replacing pixels does, where that is asked for. Its settings are checked, its images are
    read."""
    observer, prepared = observer or Observer(), prepare(loaded, prompt, settings, pictures)
    if settings.pixels:  # what can't be asked is refused before hours of work
        plan(loaded, prepared, Question())
    result = run_together(loaded, [prepared], observer=observer)[0]
    if not settings.pixels:
        return result
    return replace(result, patches=of_run(loaded, prepared, [step.token_id for step in result.steps], observer))


def run_together(loaded: LoadedModel, prompts: Sequence[Prepared], *, observer: Observer | None = None) -> list[Result]:
    """The results of several prompts that share their forward passes, in their order.

    They have to agree in `settings.variants`, and be one where `settings.verify` is set. A result is that of the prompt
    alone, but for rounding, and without pixels.
    """
    observer = observer or Observer()
    asked = [one.settings.batch_size for one in prompts if one.settings.batch_size]
    max_rows = min(asked) if asked else default_rows(loaded.model)
    groups = effect_groups(loaded, prompts[0])
    with owned(decoder_of(loaded.model)):
        started = time.perf_counter()
        while True:
            try:
                passes = _generate(loaded.model, prompts, groups, max_rows, observer)
                break
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                n_tokens = sum(one.encoded.n_tokens for one in prompts)
                max_rows = smaller_chunk(error, max_rows, n_tokens, observer)
        seconds = time.perf_counter() - started
        return [
            _with_answer(loaded, one, make_result(loaded, one, pass_, groups, max_rows, seconds), pass_.kept, observer)
            for one, pass_ in zip(prompts, passes, strict=True)
        ]


def _with_answer(
    loaded: LoadedModel, prompt: Prepared, result: Result, kept: KeptPass | None, observer: Observer
) -> Result:
    """The result with what its answer used, where that is asked for. Where it can't be had, a notice says why: the maps are
    there all the same."""
    if not prompt.settings.answer:
        return result
    produced = [step.token_id for step in result.steps]
    try:
        answer = explain(loaded, prompt, produced, kept, observer=observer)
        more = [one for one in answer.meta["notices"] if one not in result.meta["notices"]]
        meta = result.meta | {"notices": [*result.meta["notices"], *more]}
        return replace(result, answer=answer, meta=meta)
    except (ExactnessError, ModelError) as error:
        observer.explained()
        notices = [*result.meta["notices"], f"What the answer used is left out: {error}"]
        return replace(result, meta=result.meta | {"notices": notices})


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Prepared],
    groups: Sequence[Group] | None,
    max_rows: int,
    observer: Observer,
) -> list[Pass]:
    n_steps = max(one.settings.num_tokens for one in prompts)
    config = greedy_config(model, n_steps)
    text = model.config.get_text_config()
    n_layers = text.num_hidden_layers
    layers = choose_layers(n_layers, max(one.settings.verify for one in prompts), without=known_without_attention(text))
    inputs, paddings = join([one.encoded for one in prompts], config.pad_token_id or 0)
    keeps = len(prompts) == 1 and prompts[0].settings.answer
    engine = RidingEngine(
        model,
        groups=prompts[0].settings.variants,
        ablation=prompts[0].settings.ablation,
        plans=[
            SequencePlan(padding, _masked(one), one.settings.num_tokens)
            for padding, one in zip(paddings, prompts, strict=True)
        ],
        max_rows=max_rows,
        on_layer=observer.layer_done,
        keep_states="all" if keeps else prompts[0].settings.queries if prompts[0].settings.effect else None,
        must_keep=prompts[0].settings.effect,
        verify=layers,
    )
    chosen: list[Chosen] = []
    effects = _effects(engine, prompts[0], groups, chosen, observer)
    observer.begin(sum(one.encoded.n_tokens for one in prompts), n_layers, n_steps)
    candidates: list[Candidates] = []
    with torch.no_grad(), keeping(engine) if keeps else engine as kept, ExitStack() as stack:
        stack.enter_context(leave_out_finished(model, engine, config))
        processors = [] if effects is None else [stack.enter_context(effects.attached())]
        produced = produce(
            model, inputs, config, processors, on_logits=lambda logits: candidates.append(most_probable(logits))
        )
    produced = [ids[: one.settings.num_tokens] for ids, one in zip(produced, prompts, strict=True)]
    check_steps([len(steps) for steps in engine.sequences], [len(ids) for ids in produced])
    return [
        Pass(
            engine,
            steps,
            produced[number],
            [of_step[number] for of_step in candidates[: len(steps)]],
            engine.verification(),
            effects.steps if effects is not None else [],
            chosen,
            kept[0] if keeps else None,
        )
        for number, steps in enumerate(engine.sequences)
    ]


def _masked(prompt: Prepared) -> Masked | None:
    mode = prompt.settings.mask_mode
    if mode == "both":
        return None
    return Masked(torch.from_numpy(prompt.encoded.tokens.masked(mode)), produced=mode == "text")


def _effects(
    engine: RidingEngine,
    prompt: Prepared,
    groups: Sequence[Group] | None,
    chosen: list[Chosen],
    observer: Observer,
) -> AtEachStep | None:
    """What measures the effects; UsageError where they cost more than is allowed. chosen: gets what is measured of each step,
    where not all is."""
    settings = prompt.settings
    if not settings.effect:
        return None
    n_layers = engine.model.config.get_text_config().num_hidden_layers

    def variants_of(hidden: Sequence[Sequence[int]], n_positions: int) -> Variants:
        return each_window_and_group(
            hidden, n_positions, n_layers, settings.window, settings.queries, settings.ablation
        )

    def here(logits: torch.Tensor, produced: int) -> Variants:
        hidden = _hidden_at(groups, engine.steps[-1].positions.tolist())
        variants = variants_of(hidden, engine.n_positions)
        if settings.top is None:
            return variants
        chosen.append(choose_strongest(engine, hidden, variants, logits, produced, settings.top))
        return variants[torch.from_numpy(chosen[-1].places)]

    n_prompt = prompt.encoded.n_tokens
    masked = prompt.encoded.tokens.masked(settings.mask_mode).nonzero()[0].tolist()
    first = variants_of(_hidden_at(groups, masked), n_prompt)
    check_cost(first, n_layers, settings.num_tokens, settings.max_cost, most(settings.top))
    return AtEachStep(engine, here, observer.effects_begin, observer.effects_done)


def _hidden_at(groups: Sequence[Group] | None, positions: Sequence[int]) -> list[tuple[int, ...]]:
    """What is hidden together at a step."""
    return [(position,) for position in positions] if groups is None else [group.positions for group in groups]
