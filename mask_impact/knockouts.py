"""Knockouts: how much of the produced token's probability hangs on a flow from some tokens to others, layer by layer.

A flow hides its source from the queries of its target, in a window of layers that slides over the depth, while the rest of
the model runs on as it is (`replay`). The target `last` is the query that produces the token of a step; it is never hidden
from itself.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList

from mask_impact.analysis import Observer, describe_run, greedy_config, on_input_device, prepare
from mask_impact.effects import AtEachStep, StepEffects, check_cost, in_each, windows
from mask_impact.encoding import EncodedPrompt, layout_of, token_texts
from mask_impact.engine import MaskingEngine, SequencePlan
from mask_impact.errors import InputError, UsageError
from mask_impact.groups import WINDOW, Flow, FlowSet, default_flows
from mask_impact.images import read_pictures
from mask_impact.loading import LoadedModel
from mask_impact.replay import Masks, Variants
from mask_impact.settings import MAX_COST, RunSettings


@dataclass(frozen=True)
class FlowPositions:
    """A flow in one prompt. source, target: positions; the target None stands for the query of each step."""

    flow: Flow
    source: tuple[int, ...]
    target: tuple[int, ...] | None


@dataclass(frozen=True)
class FlowStep:
    """What cutting each flow around each layer does to the token produced at a step.

    probability: of that token, with nothing hidden. logprob_change (nats), kl_divergence (nats): float32 [F, L]; top1: int64
    [F, L], the token that is the most probable then; top1_texts: by id. floor, likeliest: see records.EffectRecord.
    """

    step: int
    token_id: int
    token_text: str
    probability: float
    logprob_change: np.ndarray
    kl_divergence: np.ndarray
    top1: np.ndarray
    top1_texts: dict[int, str]
    floor: tuple[float, float, float]
    likeliest: int

    @property
    def top1_changed(self) -> np.ndarray:
        """bool [F, L], where another token than with nothing hidden is the most probable one."""
        return self.top1 != self.likeliest

    @property
    def relative_change(self) -> np.ndarray:
        """float64 [F, L], of the produced token's probability: (p' - p) / p."""
        return np.expm1(self.logprob_change.astype(np.float64))


@dataclass(frozen=True)
class Knockouts:
    """first, last: int64 [L], the window around each layer."""

    flows: tuple[FlowPositions, ...]
    steps: tuple[FlowStep, ...]
    first: np.ndarray
    last: np.ndarray
    generated_text: str
    encoded: EncodedPrompt
    meta: dict[str, Any]

    @property
    def n_layers(self) -> int:
        return len(self.first)

    def to_frame(self):
        """A pandas.DataFrame with a row for each step, flow and layer; its columns are those of the files."""
        from mask_impact.flow_output import flow_table

        return flow_table(self).to_pandas()

    def save(self, path: str | os.PathLike, formats: str | Iterable[str] = ("csv", "json")) -> tuple[Path, ...]:
        """Write `path`.flows.*: the table in these formats, a meta file and the picture; returns their paths."""
        from mask_impact.flow_output import save_flows

        return save_flows(self, path, formats)

    def __str__(self) -> str:
        from mask_impact.flow_output import render_flows

        return render_flows(self)


def knockout(
    model: LoadedModel,
    prompt: str | Mapping[str, Any],
    flows: FlowSet | Sequence[tuple[str, str]] | None = None,
    *,
    images: Sequence[Any] = (),
    num_tokens: int = 1,
    window: int | None = None,
    ablation: str = "mask",
    raw: bool | None = None,
    max_image_resolution: int | None = None,
    allow_remote: bool = False,
    max_cost: int = MAX_COST,
    observer: Observer | None = None,
) -> Knockouts:
    """Cut flows between groups of tokens, in a window of layers around each layer, at each of up to num_tokens steps.

    flows: a set of them, (source, target) pairs of specs (see `groups`) or Flow objects, or None for the predefined ones:
    image -> question, image -> last, question -> last. window: how many layers (None: as the set says, else 9). The rest as
    in `analyze`.
    Errors: InputError for a spec that can't be resolved and for a flow against the order of the tokens, UsageError.
    """
    settings = RunSettings(
        num_tokens, raw=raw, max_image_resolution=max_image_resolution, allow_remote=allow_remote, ablation=ablation,
        max_cost=max_cost,
    )  # fmt: skip
    if flows is not None and not isinstance(flows, FlowSet):
        flows = FlowSet(WINDOW, tuple(map(_flow, flows)))
    pictures = read_pictures(images, max_resolution=max_image_resolution, allow_remote=allow_remote)
    return run(model, prompt, flows, settings, window, pictures, observer=observer)


def _flow(one: Any) -> Flow:
    if isinstance(one, Flow):
        return one
    if isinstance(one, str) or len(one) != 2 or not all(isinstance(end, str) for end in one):
        raise UsageError(f"flows are (source, target) pairs of text, or Flow objects, not {one!r}")
    return Flow(f"{one[0]} -> {one[1]}", *one)


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    flows: FlowSet | None,
    settings: RunSettings,
    window: int | None = None,
    pictures: Sequence[Any] = (),
    *,
    observer: Observer | None = None,
) -> Knockouts:
    """`knockout` with its settings already checked and its images already read."""
    observer = observer or Observer()
    prepared = prepare(loaded, prompt, settings, pictures)
    encoded, model = prepared.encoded, loaded.model
    flows = flows or default_flows(bool(encoded.images))
    # No local measure is wanted: the engine only keeps states.
    engine = MaskingEngine(model, plans=[SequencePlan(n_steps=0)], on_layer=observer.layer_done, keep_states="all")
    n_layers, n_heads = len(engine.decoder.layers), engine.decoder.n_heads
    if window is None:
        window = min(flows.window, n_layers) if flows.window == WINDOW else flows.window
    if window == "all":
        raise UsageError("a knockout slides a window over the depth: give it a number of layers (--window 9)")
    first, last = windows(n_layers, window)
    layout = layout_of(loaded, encoded)
    located = tuple(_locate(flow, layout, encoded.n_tokens, n_heads) for flow in flows.flows)

    def variants_of(n_positions: int) -> Variants:
        """Variant l * F + f is flow f around layer l."""
        keys, queries = (torch.zeros(len(located), n_positions, dtype=torch.bool) for _ in range(2))
        heads = torch.ones(len(located), n_heads, dtype=torch.bool)
        for place, one in enumerate(located):
            keys[place, list(one.source)] = True
            queries[place, [n_positions - 1] if one.target is None else list(one.target)] = True
            if one.flow.heads is not None:
                heads[place] = False
                heads[place, list(one.flow.heads)] = True
        return in_each(Masks(keys, queries, heads, settings.ablation), (first, last))

    check_cost(variants_of(encoded.n_tokens), n_layers, settings.num_tokens, settings.max_cost)
    effects = AtEachStep(engine, lambda: variants_of(engine.n_positions), observer.effects_begin, observer.effects_done)
    config = greedy_config(model, settings.num_tokens)
    observer.begin(encoded.n_tokens, n_layers, settings.num_tokens)
    with torch.no_grad(), engine, effects.attached():
        ids = model.generate(
            **on_input_device(model, encoded.inputs),
            generation_config=config,
            logits_processor=LogitsProcessorList([effects]),
        )
    produced = ids[0, encoded.n_tokens :].tolist()
    texts, _ = token_texts(loaded.tokenizer, produced)
    steps = tuple(
        _step(loaded, number, token, text, one, n_layers)
        for number, (token, text, one) in enumerate(zip(produced, texts, effects.steps, strict=True))
    )
    return Knockouts(
        flows=located,
        steps=steps,
        first=first.numpy(),
        last=last.numpy(),
        generated_text=loaded.tokenizer.decode(produced, skip_special_tokens=True),
        encoded=encoded,
        meta=describe_run(loaded, prepared, engine.decoder)
        | {"window": window, "images": [image.source for image in encoded.images]},
    )


def _step(loaded: LoadedModel, number: int, token: int, text: str, effects: StepEffects, n_layers: int) -> FlowStep:
    ids = np.unique(effects.top1).tolist()

    def by_flow(values: np.ndarray) -> np.ndarray:
        """[F, L]"""
        return values.reshape(n_layers, -1).T.copy()

    return FlowStep(
        number, token, text, effects.probability, by_flow(effects.logprob_change), by_flow(effects.kl_divergence),
        by_flow(effects.top1), dict(zip(ids, token_texts(loaded.tokenizer, ids)[0], strict=True)), effects.floor,
        effects.likeliest,
    )  # fmt: skip


def _locate(flow: Flow, layout, n_prompt: int, n_heads: int) -> FlowPositions:
    """Where a flow's ends are. InputError where nothing can flow, or a head is not there."""
    try:
        source = layout.resolve(flow.source)
        target = None if flow.target.strip() == "last" else layout.resolve(flow.target)
    except InputError as error:
        raise InputError(f"flow '{flow.name}': {error}") from None
    if wrong := [head for head in flow.heads or () if head not in range(n_heads)]:
        raise UsageError(f"flow '{flow.name}': head {wrong[0]} is not there: the model has heads 0 to {n_heads - 1}")
    reached = n_prompt - 1 if target is None else target[-1]
    if source[0] > reached:
        raise InputError(
            f"flow '{flow.name}' is empty by causality: every token of its source stands behind every token of its target, "
            "and a token sees only what is before it; turn it round"
        )
    if target is None:  # the query goes on seeing itself
        source = tuple(position for position in source if position != n_prompt - 1) or source
    if len(source) == n_prompt or (target is None and source == (n_prompt - 1,)):
        raise InputError(f"flow '{flow.name}' leaves its target nothing to see; hide less")
    return FlowPositions(flow, source, target)
