"""Routes as a matplotlib Figure: for each flow of tokens a strip over the layers of what it carries to the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.results.explanations import ExplainedTarget, Explanation, HeadCut, Route
from mask_impact.results.flows import Knockouts
from mask_impact.views.figure_blocks import WIDTH, Block, Key, figure_of, keys_block, lines_block, nats, stacked
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GREY,
    INK,
    MARGIN,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    caption_of,
    fitted,
    layers_named,
    tick_text,
    wrapped,
)

LEFT = 0.45  # inches; room for the numbers of the layers' axis
STRIP, HEADS = 0.62, (0.5, 1.3)  # heights: of a strip, and the least and most of the heads' panel
GAP, BAND, VISIBLE = 0.13, "0.93", 0.02  # the last: part of the largest bar from which on a bar can be seen
MAX_STRIPS, MOST_CHARACTERS = 12, 24  # the last: of the token that is said without the heads


@dataclass(frozen=True)
class _Strip:
    """What is drawn of a flow. carried: float [L], nats, positive where the flow speaks for the answer; solid: bool [L], where it
    was really cut; span: first and last of the layers that were cut alone; told: what was measured, in words."""

    name: str
    carried: np.ndarray
    solid: np.ndarray
    span: tuple[int, int] | None
    told: str


def routes_figure(found: Explanation, number: int = 0, width: float = WIDTH):
    """For each route of a target a strip over the layers, a matplotlib Figure: by how much the answer's log-probability would
    fall without it in that layer, by contribution (norms, gates and attention weights held constant), the sum over heads. All
    strips have one scale.

    Filled where the route was really cut, in few layers in a row; hollow where it is estimated only. Below them the heads that
    carry most, where these were cut. number: of the target; width: in inches.
    """
    target = found.targets[number]
    strips = [_of_route(route) for route in target.routes[:MAX_STRIPS]]
    said, of = found.said(target), target.changes_of
    over = f" over that of “{target.instead[1].strip()}”" if target.instead else ""
    about = f"what each route carries, by layer: estimated fall of the answer's {of}{over} without it, nats (sum over heads)"
    heads = (
        []
        if target.heads is None
        else [_heads(target.heads, _n_heads(target), len(strips[0].carried), width - 2 * MARGIN)]
    )
    left_out = len(target.routes) - len(strips)
    return _figure(found.meta, said, about, strips, heads, list(_keys(strips)), left_out, width)


def flows_strips(found: Knockouts, step: int = 0, width: float = WIDTH):
    """The same of knockouts: for each flow the measured fall of the log-probability of the token that was produced at `step`,
    where the flow is cut in the window around each layer. All strips are filled."""
    record = found.steps[step]
    strips = []
    for one, change in list(zip(found.flows, record.logprob_change, strict=True))[:MAX_STRIPS]:
        layer = int(change.argmin())
        told = f"most around layer {layer}: {nats(float(change[layer]))}"
        strips.append(_Strip(one.flow.name, -change.astype(float), np.ones(len(change), dtype=bool), None, told))
    window = found.meta.get("window")
    around = f"in {window} layers around each layer" if window and window > 1 else "in each layer"
    about = f"measured fall of the log-probability where a flow is cut {around}, nats"
    left_out = len(found.flows) - len(strips)
    return _figure(found.meta, record.token_text, about, strips, [], list(_keys(strips)), left_out, width)


def _of_route(route: Route) -> _Strip:
    carried = -route.contribution.sum(axis=1, dtype=np.float64)
    solid = np.zeros(len(carried), dtype=bool)
    told = []
    if route.whole_change is not None:
        told.append(f"cut in all layers: {nats(route.whole_change)}")
    if route.layers is not None and route.logprob_change is not None:
        first, last = route.layers
        solid[first : last + 1] = True
        told.append(f"in {_layers(first, last)}: {nats(route.logprob_change)}")
    return _Strip(
        route.name, carried, solid, route.layers if solid.any() else None, " · ".join(told) or "estimated only"
    )


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}\u2013{last}"


def _n_heads(target: ExplainedTarget) -> int:
    return max(route.contribution.shape[1] for route in target.routes)


# --- the figure -------------------------------------------------------------------------------------------------------------


def _figure(
    meta,
    said: str,
    about: str,
    strips: Sequence[_Strip],
    heads: list[Block],
    keys: list[Key],
    left_out: int,
    width: float,
):
    room = width - 2 * MARGIN
    largest = max((float(np.abs(strip.carried).max()) for strip in strips), default=0.0) or 1.0
    lowest = min((float(strip.carried.min()) for strip in strips), default=0.0)
    limits = (-1.12 * largest if lowest < -0.3 * largest else min(1.12 * lowest, -0.04 * largest), 1.12 * largest)
    title = fitted("Routes to “", said.strip(), "”", TITLE, room)
    more = f"{left_out} more route{'s' * (left_out > 1)} not shown" if left_out else ""
    blocks = [
        stacked([lines_block([title], TITLE), lines_block(wrapped(about, SMALL, room, 3), SMALL, GREY)], 0.03),
        *(_strip(strip, limits, room, is_last=strip is strips[-1]) for strip in strips),
        *([lines_block([more], SMALL, GREY)] if more else []),
        *heads,
        keys_block(keys, room),
    ]
    return figure_of(blocks, caption_of(meta), width, GAP)


def _keys(strips: Sequence[_Strip]) -> Iterator[Key]:
    if any(strip.solid.any() for strip in strips):
        yield "really cut in these layers", {"facecolor": FOR, "edgecolor": FOR, "linewidth": 0.8}
    if not all(strip.solid.all() for strip in strips):
        yield "estimated only", {"facecolor": "white", "edgecolor": FOR, "linewidth": 0.8}
    largest = max((float(np.abs(strip.carried).max()) for strip in strips), default=0.0)
    if any((strip.carried < -VISIBLE * largest).any() for strip in strips):
        yield "speaks against the answer", {"facecolor": "white", "edgecolor": AGAINST, "linewidth": 0.8}


def _strip(strip: _Strip, limits: tuple[float, float], room: float, is_last: bool) -> Block:
    """The name of a route, what was measured of it, and its bars."""
    name = fitted("", strip.name.replace("->", "→"), "", TEXT, room)
    told = lines_block(wrapped(strip.told, SMALL, room, 2), SMALL, GREY)
    head = stacked([lines_block([name], TEXT), told], 0.0)
    n_layers = len(strip.carried)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        head.draw(sheet, x, y)
        axes = sheet.axes(x + LEFT, y + head.height + 0.03, room - LEFT, STRIP)
        if strip.span:
            axes.axvspan(strip.span[0] - 0.5, strip.span[1] + 0.5, color=BAND, linewidth=0, zorder=0)
        _bars(axes, strip)
        axes.axhline(0, color=GREY, linewidth=0.5)
        ticks = [tick for tick in (limits[0] / 1.12, 0.0, limits[1] / 1.12) if tick == 0 or abs(tick) > 0.3 * limits[1]]
        axes.set(xlim=(-0.5, n_layers - 0.5), ylim=limits)
        axes.set_yticks(ticks, [tick_text(tick, ".2g") for tick in ticks])
        _layer_ticks(axes, n_layers, is_last)

    below = 0.34 if is_last else 0.06
    return Block(head.height + 0.03 + STRIP + below, draw)


def _bars(axes, strip: _Strip) -> None:
    linewidth = 0.7 if len(strip.carried) <= 60 else 0.4
    colours = [FOR if value >= 0 else AGAINST for value in strip.carried]
    filled = [colour if solid else "white" for colour, solid in zip(colours, strip.solid, strict=True)]
    axes.bar(range(len(colours)), strip.carried, 0.72, color=filled, edgecolor=colours, linewidth=linewidth, zorder=2)


def _layer_ticks(axes, n_layers: int, is_last: bool) -> None:
    layers = layers_named(n_layers, 12)
    axes.set_xticks(layers, [str(layer) for layer in layers] if is_last else [""] * len(layers))
    if is_last:
        axes.set_xlabel("layer", fontsize=SMALL, color=INK, labelpad=1.5)


def _heads(cut: HeadCut, n_heads: int, n_layers: int, room: float) -> Block:
    """Where the heads lie that carry most, and what becomes of the answer without them."""
    n = len(cut.heads)
    then = cut.top1_text.strip()
    then = then if len(then) <= MOST_CHARACTERS else f"{then[:MOST_CHARACTERS]}…"
    told = f"the {n} heads that carry most: without them {nats(cut.logprob_change)}, then “{then}”"
    told = f"{told}; without as many at random {nats(cut.random_change)}"
    told = lines_block(wrapped(told, SMALL, room, 3), SMALL, GREY)
    head, height = stacked([lines_block(["heads"], TEXT), told], 0.0), float(np.clip(0.11 * n_heads, *HEADS))

    def draw(sheet: Sheet, x: float, y: float) -> None:
        head.draw(sheet, x, y)
        axes = sheet.axes(x + LEFT, y + head.height + 0.03, room - LEFT, height)
        layers, heads = zip(*cut.heads, strict=True) if cut.heads else ((), ())
        size = max(min(72 * height / n_heads, 72 * (room - LEFT) / n_layers, 9) * 0.8, 2.5)
        axes.plot(layers, heads, "s", color=FOR, markersize=size, markeredgewidth=0)
        axes.set(xlim=(-0.5, n_layers - 0.5), ylim=(n_heads - 0.5, -0.5))
        every = next(every for every in (1, 2, 4, 8, 16, 32, 64, 1024) if n_heads <= 6 * every)
        axes.set_yticks(range(0, n_heads, every), [str(one) for one in range(0, n_heads, every)])
        axes.set_ylabel("head", fontsize=SMALL, color=INK, labelpad=2)
        _layer_ticks(axes, n_layers, True)

    return Block(head.height + 0.03 + height + 0.34, draw)
