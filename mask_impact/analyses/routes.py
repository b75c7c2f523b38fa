"""Routes: by which flows between groups of tokens the answer came, in which layers and heads.

What cutting a flow does in one head of one layer is estimated for all of them at once. The flow is then really cut in all layers,
and in the few layers in a row that carry most of it by either estimate, of which the one with the larger effect is kept; and
the heads that carry most are cut, beside heads that are drawn at random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mask_impact.analyses.flows import placed
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.prepared import Prepared
from mask_impact.engine.backward import Estimates
from mask_impact.engine.backward import Flow as EstimatedFlow
from mask_impact.errors import InputError, UsageError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import layout_of, token_texts
from mask_impact.prompts.group_files import default_flows, read_flows
from mask_impact.results.explanations import HeadCut, Route
from mask_impact.results.flows import Flow, FlowPositions

MOST_OF_IT = 0.8  # of a flow's estimate lies within the layers in which it is cut
N_HEADS = 10
N_DRAWS = 8  # of as many heads at random


def placed_flows(reader: Reader, prepared: Prepared) -> tuple[FlowPositions, ...]:
    """The flows that were asked for, or the usual ones that the prompt has; works without the model's weights. Their target
    None stands for the rows of what is asked about.

    InputError or UsageError for a flow that was asked for and can't be.
    """
    asked = prepared.settings.routes
    layout, n_heads = layout_of(reader, prepared.encoded), reader.config.get_text_config().num_attention_heads
    usual = asked in (None, "auto")
    found = []
    for flow in default_flows(layout.parts()).flows if usual else _asked(asked):
        try:
            found.append(placed(flow, layout, n_heads))
        except InputError:
            if not usual:
                raise
    return tuple(found)


def _asked(text: str) -> Sequence[Flow]:
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise UsageError(f"`routes` {text} is not there; give auto, flows such as image -> last, or a YAML file")
        return read_flows(text).flows
    try:
        return [Flow.parsed(one) for one in text.split(";") if one.strip()]
    except ValueError as error:
        raise UsageError(f"`routes`: {error}") from None


def masks_of(flows: Sequence[FlowPositions], n_positions: int, rows: Sequence[int]) -> list[EstimatedFlow]:
    """The flows as the backward pass takes them. rows: of the target."""

    def flags(positions: Sequence[int]) -> torch.Tensor:
        found = torch.zeros(n_positions, dtype=torch.bool)
        found[list(positions)] = True
        return found

    return [EstimatedFlow(flags(_source(one, rows)), flags(_target(one, rows))) for one in flows]


def _target(one: FlowPositions, rows: Sequence[int]) -> Sequence[int]:
    return rows if one.target is None else one.target


def _source(one: FlowPositions, rows: Sequence[int]) -> Sequence[int]:
    """A row of the target goes on seeing itself."""
    return [position for position in one.source if one.target is not None or position not in rows] or one.source


def routes_of(
    flows: Sequence[FlowPositions], estimates: Mapping[str, Estimates], hiding: Hiding | None, rows: Sequence[int]
) -> tuple[Route, ...]:
    """What each flow carries. estimates: by rule; hiding: cuts each where it carries most; None where nothing is to be cut."""
    routes = []
    for place, one in enumerate(flows):
        gradient, frozen = (estimates[rule].flows[place].numpy().copy() for rule in ("gradient", "frozen"))
        if one.flow.heads is not None:
            for values in (gradient, frozen):
                values[:, np.setdiff1d(np.arange(values.shape[1]), one.flow.heads)] = 0.0
        route = Route(one.flow.name, one.flow.source, one.flow.target, gradient, frozen)
        routes.append(route if hiding is None else _cut(route, one, hiding, rows))
    return tuple(routes)


def _cut(route: Route, one: FlowPositions, hiding: Hiding, rows: Sequence[int]) -> Route:
    """The route with what cutting it does, in all layers and in the few that carry most."""
    source, target = _source(one, rows), _target(one, rows)
    layers, heads = range(hiding.n_layers), one.flow.heads
    some = None if heads is None else [[(layer, head) for layer in layers for head in heads]]

    def change(layers: tuple[int, int]) -> float:
        return float(hiding.cut(source, target, layers, some).logprob_change[0])

    few = {carrying(estimate.sum(axis=1)) for estimate in (route.estimate, route.contribution)} - {None}
    changes = {layers: change(layers) for layers in sorted(few)}
    best = min(changes, key=changes.get, default=None)
    whole = change((0, hiding.n_layers - 1))
    return replace(route, whole_change=whole, layers=best, logprob_change=changes.get(best))


def carrying(estimate: np.ndarray) -> tuple[int, int] | None:
    """First and last of the fewest layers in a row that have MOST_OF_IT of what speaks for the target; None where nothing
    does. estimate: float [L]."""
    carried = np.concatenate([[0.0], np.cumsum(np.maximum(-estimate.astype(float), 0))])
    n, enough = len(estimate), MOST_OF_IT * carried[-1]
    if not carried[-1] > 0:
        return None
    spans = [
        (last - first, first, last - 1)
        for first in range(n)
        for last in range(first + 1, n + 1)
        if carried[last] - carried[first] >= enough * (1 - 1e-9)
    ]
    _, first, last = min(spans)
    return first, last


def cut_heads(loaded: LoadedModel, estimates: Estimates, hiding: Hiding, rows: Sequence[int], seed: int) -> HeadCut:
    """What becomes of the target where the heads that carry most read nothing but their own position."""
    others = [position for position in range(max(rows) + 1) if position not in rows]
    carried = estimates.last[..., others].sum(dim=-1).numpy()  # [L, H]
    n_layers, n_heads = carried.shape
    n = min(N_HEADS, carried.size // 2)
    order = [divmod(int(place), n_heads) for place in np.argsort(carried.ravel(), kind="stable")]
    rng = np.random.default_rng(seed)
    draws = [[order[n:][place] for place in rng.permutation(len(order) - n)[:n]] for _ in range(N_DRAWS)]
    found = hiding.cut(others, rows, (0, n_layers - 1), [order[:n], *draws])
    (text,), _ = token_texts(loaded.tokenizer, found.top1[:1].tolist())
    return HeadCut(tuple(order[:n]), float(found.logprob_change[0]), text, float(found.logprob_change[1:].mean()))
