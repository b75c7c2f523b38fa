"""A map of layers x tokens, whatever its numbers are. Labels lie around it, spread where there is room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mask_impact.results.tokens import ImageRecord, TokenTable, image_name
from mask_impact.views.plots import (
    BLOCK,
    COLUMN,
    DPI,
    FAN,
    GREY,
    HEAD,
    INK,
    LABEL_ROOM,
    LABEL_STEP,
    MARGIN,
    MAX_ALL_LABELS,
    MAX_LABELS,
    MAX_LONG_MAP,
    MAX_MAP,
    MIN_MAP,
    SINK_GREY,
    SMALL,
    TEXT,
    Page,
    fitted,
    inches,
    layers_named,
)

LEFT, BAR = 0.5, 1.1  # inches on the left of the map, and on its right for the colours' scale
MOST_VECTORS = 20_000  # cells; a drawing of more is pixels


@dataclass(frozen=True)
class Column:
    """A token, or all shown patches of an image: their positions, whether all are sinks, and the token's text, or what the image
    is called. image: its number."""

    positions: list[int]
    image: int | None
    is_sink: bool
    name: str

    @cached_property
    def label(self) -> tuple[str, str]:
        """Where it stands, and its name as it fits. Of few columns only: measuring a text takes a millisecond."""
        if self.image is not None:
            return f"{self.positions[0]}-{self.positions[-1]}", self.name
        return str(self.positions[0]), fitted('"', self.name, '"', SMALL, LABEL_ROOM)


@dataclass(frozen=True)
class TokenMap:
    """What is drawn. values: float64 [L, columns]; n_prompt: tokens of the prompt; heading: of a width in inches, two lines;
    measure: what the colours are; colours, scale: a matplotlib colour map, and what makes its norm of the values."""

    columns: Sequence[Column]
    values: np.ndarray
    n_prompt: int
    heading: Callable[[float], tuple[str, str]]
    measure: str
    colours: Any
    scale: Callable[[np.ndarray], Any]


def columns_of(tokens: TokenTable, images: Sequence[ImageRecord], shown: np.ndarray, sink: np.ndarray) -> list[Column]:
    """A column for each shown token and one for each image, in the order of first positions: an image's tokens need not stand in
    one piece. shown, sink: bool [S]."""
    groups: dict[tuple[int | None, int], list[int]] = {}
    for position in np.flatnonzero(shown).tolist():
        image = int(tokens.image[position])
        groups.setdefault((image, 0) if image >= 0 else (None, position), []).append(position)
    columns = []
    for (image, _), places in groups.items():
        is_sink = bool(sink[places].all())
        if image is None:
            name = tokens.texts[places[0]]
        else:
            (rows, across), n_sinks = images[image].grid, int(sink[places].sum())
            left_out = f" without {n_sinks} sink{'s' * (n_sinks > 1)}" if n_sinks and not is_sink else ""
            name = f"{image_name(images, image)}: {rows} x {across} patches{left_out}"
        columns.append(Column(places, image, is_sink, name))
    return columns


def map_figure(one: TokenMap, width: float | None = None, caption: str = ""):
    """A matplotlib Figure. Sinks are grey. Columns are as wide as labels where there are few, and at least a pixel up to 12,600
    of them. width: of the figure in inches, whatever the number of columns; caption: at its foot."""
    columns, values = one.columns, one.values
    if not columns:
        whole = width or 6
        page = Page(whole, HEAD + 0.4, one.heading(whole), caption)
        page.text(MARGIN, HEAD, "No token was masked.")
        return page.finished()
    is_sink = np.array([column.is_sink for column in columns])
    edges = _edges(columns) if width is None else _edges_within(columns, width - LEFT - BAR)
    labelled = _labelled(columns, values, MAX_ALL_LABELS if width is None else int(edges[-1] / LABEL_STEP))
    middles = (edges[:-1] + edges[1:]) / 2
    places = spread(middles[labelled], LABEL_STEP, edges[-1])
    fan = 0.07 if np.allclose(places, middles[labelled]) else FAN
    labels = [columns[index].label for index in labelled]
    below = fan + 0.15 + max(inches(position + name, SMALL) for position, name in labels)
    height, note = min(max(0.105 * len(values), 2.2), 5.0), 0.22 * is_sink.any()
    whole = LEFT + edges[-1] + BAR
    page = Page(whole, HEAD + height + below + note + MARGIN, one.heading(whole), caption)
    heat = _draw_map(page, edges, one, is_sink, height)
    if width is not None:  # printed: no light lines between the cells of a vector drawing, no file of many megabytes
        heat.set(edgecolor="face", linewidth=0.1, rasterized=values.size > MOST_VECTORS)
    _draw_border(page, sum(column.positions[0] < one.n_prompt for column in columns), edges)

    under = HEAD + height
    lines = page.axes(LEFT, under, edges[-1], fan)
    lines.set(xlim=(0, edges[-1]), ylim=(fan, 0))
    lines.axis("off")
    for index, place, (position, name) in zip(labelled, places, labels, strict=True):
        lines.plot([middles[index]] * 2 + [place] * 2, [0, 0.05, fan - 0.05, fan], color=GREY, linewidth=0.4)
        style = {"rotation": 90, "ha": "center", "size": SMALL}
        page.text(LEFT + place, under + fan + 0.04, position, color=GREY, **style)
        y = under + fan + 0.1 + inches(position, SMALL)
        page.text(LEFT + place, y, name, color=GREY if is_sink[index] else INK, **style)
    page.colour_bar(page.axes(LEFT + edges[-1] + 0.15, HEAD, 0.11, 2.2), heat, one.measure, "vertical")
    if note:
        page.sink_note(LEFT, page.bottom - MARGIN - 0.12)
    return page.finished()


def _draw_map(page: Page, edges: np.ndarray, one: TokenMap, is_sink: np.ndarray, height: float):
    """The mesh of the values, with crossed out sinks and the layers' axis."""
    axes, n_layers = page.axes(LEFT, HEAD, edges[-1], height), len(one.values)
    shown = np.ma.array(one.values, mask=is_sink | np.isnan(one.values))
    middles = (edges[:-1] + edges[1:]) / 2
    heat = axes.pcolormesh(
        edges, np.arange(n_layers + 1) - 0.5, shown, cmap=one.colours, norm=one.scale(shown.compressed())
    )
    axes.set_facecolor(SINK_GREY)  # what is not covered
    cross = {"transform": axes.get_xaxis_transform(), "color": INK, "markersize": 3.5, "mew": 0.7, "clip_on": False}
    axes.plot(middles[is_sink], np.full(is_sink.sum(), 0.97), "x", **cross)
    axes.set(xticks=[], xlim=(0, edges[-1]))
    layers = layers_named(n_layers, 13)
    axes.set_yticks(layers, [str(layer) for layer in layers])  # not formatted, perhaps as a formula, by matplotlibrc
    axes.set_ylabel("layer", fontsize=TEXT, color=INK, labelpad=2)
    return heat


def _draw_border(page: Page, n_prompt: int, edges: np.ndarray) -> None:
    """The line between the prompt's columns, n_prompt of them, and those of produced tokens."""
    if 0 < n_prompt < len(edges) - 1:
        page.figure.axes[0].axvline(edges[n_prompt], color=INK, linewidth=0.7, ymax=1.03, clip_on=False)
        style = {"size": SMALL, "va": "bottom", "color": GREY}
        page.text(LEFT + edges[n_prompt] - 0.04, HEAD - 0.03, "prompt", ha="right", **style)
        page.text(LEFT + edges[n_prompt] + 0.04, HEAD - 0.03, "answer", **style)


def _edges(columns: Sequence[Column]) -> np.ndarray:
    """Where columns begin and end, in inches."""
    n, n_images = len(columns), sum(column.image is not None for column in columns)
    few = max(MIN_MAP, min(n, MAX_ALL_LABELS) * LABEL_STEP) / n
    each = max(few, min(COLUMN, MAX_MAP / n), min(1 / DPI, MAX_LONG_MAP / n))
    block = max(each, min(BLOCK, MAX_MAP / 2 / max(n_images, 1)))
    return np.cumsum([0.0, *(block if column.image is not None else each for column in columns)])


def _edges_within(columns: Sequence[Column], room: float) -> np.ndarray:
    """The same for a figure whose width is given: the columns fill the room, those of images wider where there are many."""
    n, n_images = len(columns), sum(column.image is not None for column in columns)
    block = room / n if n == n_images else max(room / n, min(BLOCK, room / 2 / max(n_images, 1)))
    each = (room - block * n_images) / max(n - n_images, 1)
    edges = np.cumsum([0.0, *(block if column.image is not None else each for column in columns)])
    return edges * (room / edges[-1])


def _labelled(columns: Sequence[Column], values: np.ndarray, most: int = MAX_ALL_LABELS) -> list[int]:
    """Which columns get a label: all of a few, else images, sinks, and those with the largest values. most: that have room."""
    if len(columns) <= min(most, MAX_ALL_LABELS):
        return list(range(len(columns)))
    is_plain = [column.image is None and not column.is_sink for column in columns]
    return sorted(np.lexsort((-np.nansum(np.abs(values), axis=0), is_plain))[: min(most, MAX_LABELS)].tolist())


def spread(wanted: np.ndarray, distance: float, room: float) -> np.ndarray:
    """Places in the order of the wanted ones, at least `distance` apart, within 0..room, as near to them as can be: the
    least squares of an isotonic regression, found by pooling neighbours that are too near (Ayer et al. 1955)."""
    offsets = np.arange(len(wanted)) * distance
    pools: list[tuple[float, int]] = []  # mean, number
    for mean in (wanted - offsets).tolist():
        n = 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (mean * n + before * m) / (n + m), n + m
        pools.append((mean, n))
    free = np.repeat([mean for mean, _ in pools], [n for _, n in pools])
    return np.clip(free, distance / 2, max(room - offsets[-1] - distance / 2, distance / 2)) + offsets
