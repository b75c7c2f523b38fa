"""Knockouts: how much of the produced token's probability hangs on a flow from some tokens to others, layer by layer.

A flow hides its source from the queries of its target, in a window of layers that slides over the depth, while the rest of
the model runs on as it is (`replay`). The target `last` is the query that produces the token of a step; it is never hidden
from itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mask_impact.analyses.flows import placed
from mask_impact.analyses.generation import produce
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, describe_run, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.effects import AtEachStep, StepEffects
from mask_impact.engine.kept import keeper_of
from mask_impact.engine.variants import Masks, Variants, check_cost, in_each, windows
from mask_impact.errors import InputError, UsageError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import layout_of, token_texts
from mask_impact.prompts.group_files import WINDOW, FlowSet, default_flows
from mask_impact.prompts.groups import Layout
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts


@dataclass(frozen=True)
class Plan:
    """What is cut. flows: where in the prompt; first, last: int64 [L], the window around each layer."""

    flows: tuple[FlowPositions, ...]
    window: int
    first: torch.Tensor
    last: torch.Tensor


def plan(reader: Reader, prepared: Prepared, flows: FlowSet | None, window: int | str | None = None) -> Plan:
    """Where the flows are in a prompt; works without the model's weights. InputError or UsageError for what can't be cut."""
    encoded, config = prepared.encoded, reader.config.get_text_config()
    layout = layout_of(reader, encoded)
    flows = flows or default_flows(layout.parts())
    n_layers = config.num_hidden_layers
    if window is None:
        window = min(flows.window, n_layers) if flows.window == WINDOW else flows.window
    if window == "all":
        raise UsageError("a knockout slides a window over the depth: give it a number of layers (`window` 9)")
    first, last = windows(n_layers, window)
    located = tuple(_located(flow, layout, encoded.n_tokens, config.num_attention_heads) for flow in flows.flows)
    return Plan(located, window, first, last)


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
    """Cut each flow around each layer, at each produced token; the images are already read. Errors as in `plan`."""
    observer = observer or Observer()
    prepared = prepare(loaded, prompt, settings, pictures)
    encoded, model = prepared.encoded, loaded.model
    cut = plan(loaded, prepared, flows, window)
    n_layers = len(cut.first)
    # No local measure is wanted: the engine only keeps states.
    engine, n_heads = keeper_of(model, observer.layer_done), model.config.get_text_config().num_attention_heads

    def variants_of(n_positions: int) -> Variants:
        return _variants(cut, n_positions, n_heads, settings.ablation)

    def here(*_: Any) -> Variants:
        return variants_of(engine.n_positions)

    check_cost(variants_of(encoded.n_tokens), n_layers, settings.num_tokens, settings.max_cost)
    effects = AtEachStep(engine, here, observer.effects_begin, observer.effects_done)
    observer.begin(encoded.n_tokens, n_layers, settings.num_tokens)
    with torch.no_grad(), engine, effects.attached():
        (produced,) = produce(model, encoded.inputs, greedy_config(model, settings.num_tokens), [effects])
    texts, _ = token_texts(loaded.tokenizer, produced)
    steps = tuple(
        _step(loaded, number, token, text, one, n_layers)
        for number, (token, text, one) in enumerate(zip(produced, texts, effects.steps, strict=True))
    )
    return Knockouts(
        flows=cut.flows,
        steps=steps,
        first=cut.first.numpy(),
        last=cut.last.numpy(),
        generated_text=loaded.tokenizer.decode(produced, skip_special_tokens=True),
        tokens=encoded.tokens,
        meta=describe_run(loaded, prepared)
        | {"window": cut.window, "images": [image.source for image in encoded.images]},
    )


def _variants(cut: Plan, n_positions: int, n_heads: int, ablation: str) -> Variants:
    """Variant l * F + f is flow f around layer l."""
    keys, queries = (torch.zeros(len(cut.flows), n_positions, dtype=torch.bool) for _ in range(2))
    heads = torch.ones(len(cut.flows), n_heads, dtype=torch.bool)
    for place, one in enumerate(cut.flows):
        keys[place, list(one.source)] = True
        queries[place, [n_positions - 1] if one.target is None else list(one.target)] = True
        if one.flow.heads is not None:
            heads[place] = False
            heads[place, list(one.flow.heads)] = True
    return in_each(Masks(keys, queries, heads, ablation), (cut.first, cut.last))


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


def _located(flow: Flow, layout: Layout, n_prompt: int, n_heads: int) -> FlowPositions:
    """Where a flow's ends are, for a query at the end of the prompt. InputError where nothing would be left to see."""
    one = placed(flow, layout, n_heads)
    source = one.source
    if one.target is None:  # the query goes on seeing itself
        source = tuple(position for position in source if position != n_prompt - 1) or source
    if len(source) == n_prompt or (one.target is None and source == (n_prompt - 1,)):
        raise InputError(f"flow '{flow.name}' leaves its target nothing to see; hide less")
    return replace(one, source=source)
