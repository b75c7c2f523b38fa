"""What the vision tower's layers read of images, and whether the answer needs it, as HTML without a script.

Knows what was measured and the card's classes. The page's script colours the maps, of one layer at a time or of all: their
numbers stand with each picture, as a block (`blocks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.errors import ranges
from mask_impact.findings.looked import (
    MATTERS,
    by_window,
    hidden_rows,
    largest_of,
    matters,
    read_by_region,
    read_in_all,
    window_size,
)
from mask_impact.results.tokens import image_title
from mask_impact.results.tower import TowerEffects, TowerReading, TowerTarget
from mask_impact.views.blocks import encode
from mask_impact.views.card_html import MOST_TARGETS, image_source, picture_key
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import rendered, shown
from mask_impact.views.plots import layers_named
from mask_impact.views.regions_html import RegionsView
from mask_impact.views.tower_words import TowerWords

MOST_WINDOWS = 8  # regions whose windows are drawn
HIGH, GAP, LEFT, WIDTH = (
    40,
    22,
    190,
    1000,
)  # of a row of bars, between two, before them, and of all: in the drawing's units
COLOURED = 10 * MATTERS  # nats: what changes less has no full colour


def readings_html(found: TowerEffects) -> str:
    """What the layers read: the images, and how much each layer reads."""
    return rendered("tower_reads.html", {"looked": ReadsView(found)})


def tower_html(found: TowerEffects) -> list[str]:
    """Of each target (the first MOST_TARGETS) whether hiding what is read changes it."""
    return [rendered("tower.html", {"looked": MattersView(found, one)}) for one in found.targets[:MOST_TARGETS]]


def tower_said(found: TowerEffects, target: TowerTarget) -> str:
    """Whether what is read most matters, and what does, in a sentence or two."""
    said = TowerWords(found, target, quote=lambda text: f"“{text.strip()}”", nats=lambda value: nats(value, True))
    return " ".join(filter(None, (said.read, said.most)))


class _HiddenView(RegionsView):
    """Regions that were hidden; of those of any shape the patches are drawn."""

    def around(self, place: int) -> str:
        patches = self.found.patches.get(place)
        return "" if patches is None else self.path_around(place, patches)


class ReadsView:
    """What the layers read as the template takes it."""

    def __init__(self, found: TowerEffects) -> None:
        self.found, self.unit = found, "image token" if found.unit == "token" else "patch"
        self.images = [MapView(found, number, one) for number, one in found.readings.items()]

    @property
    def about_full(self) -> str:
        """How the layer's whole update is known; empty where it is not."""
        n = self.found.probes
        if not n:
            return ""
        return f"to first order, from {n:,} random probe{'s' * (n > 1)}{'; ± is its standard error' * (n > 1)}"


class MapView:
    """The map of one image: its numbers, and a drawing of how much each layer reads."""

    def __init__(self, found: TowerEffects, number: int, one: TowerReading) -> None:
        self.number, self.image, self.reading = number, found.images[number], one
        self.name = image_title(found.images, number)
        self.key, self.source = picture_key(self.image, number), image_source(self.image)
        self.grid, self.several = one.attention.shape[1:], len(found.images) > 1
        self.drawing = _read_rows(found, number)

    @property
    def block(self) -> str:
        """attention, and where there are any full and its error: [kind, layer, row, column]."""
        kinds = (self.reading.attention, self.reading.full, self.reading.error)
        return encode(np.stack([one for one in kinds if one is not None]))

    @property
    def rows(self) -> list[tuple[int, str, str, str, str]]:
        """Of each layer (layer, what is read most, its share, the median, of the whole update)."""
        return [self._row(layer) for layer in range(len(self.reading.attention))]

    def _row(self, layer: int) -> tuple[int, str, str, str, str]:
        numbers, full, error = self.reading.attention[layer], self.reading.full, self.reading.error
        row, column = np.unravel_index(int(numbers.argmax()), numbers.shape)
        whole = "" if full is None else f"{full[layer, row, column]:.3f}"
        if error is not None:
            whole += f" ± {error[layer, row, column]:.3f}"
        return layer, f"[{row}, {column}]", f"{numbers.max():.3f}", f"{np.median(numbers):.3f}", whole


@dataclass(frozen=True)
class BarRow:
    """A row of bars, one for each layer. most: how much the highest bar of its scale is; bars: (layer, height in percent, tone,
    tip)."""

    name: str
    most: str
    bars: list[tuple[int, float, str, str]]


class LayerRows:
    """Rows of bars over the layers. about: what they are, in words."""

    def __init__(self, rows: Sequence[BarRow], about: str) -> None:
        self.rows, self.about, self.n_layers = rows, about, len(rows[0].bars)

    @property
    def ticks(self) -> list[str]:
        """Below each layer its number, where it is named."""
        every = layers_named(self.n_layers, 14).step
        return [str(layer) if layer % every == 0 else "" for layer in range(self.n_layers)]


def _bar_row(
    name: str, numbers: np.ndarray, largest: float, text: Callable[[float], str], tone: Callable[[float], str]
) -> BarRow:
    """As high as the numbers are, whatever their sign; NaN has no height."""
    bars = [
        (
            layer,
            round(100 * min(abs(value) / largest, 1.0), 2),
            tone(value),
            f"{shown(name)}, layer {layer}: {text(value)}",
        )
        for layer, value in enumerate(np.nan_to_num(numbers).tolist())
    ]
    return BarRow(shown(name), text(largest), bars)


def _read_rows(found: TowerEffects, number: int) -> LayerRows:
    """How much each layer reads of an image; and, where regions were given, of their units beside the rest."""
    every, by_region = read_in_all(found.readings[number]), read_by_region(found, number)

    def row(name: str, numbers: np.ndarray, largest: float) -> BarRow:
        return _bar_row(name, numbers, largest or 1.0, "{:.3g}".format, lambda _: "read")

    rows = [row("all, added", every, float(every.max()))]
    largest = max((float(one.max()) for _, one in by_region), default=1.0)
    rows += [row(f"{name}, mean", numbers, largest) for name, numbers in by_region]
    return LayerRows(rows, "How much each layer reads")


class MattersView:
    """What hiding regions in the tower did to a target, as the template takes it."""

    def __init__(self, found: TowerEffects, target: TowerTarget) -> None:
        self.found, self.target = found, target
        self.rows = hidden_rows(found, target)
        self.largest = max([COLOURED, *(abs(float(target.logprob_change[row])) for row in self.rows)])

    @property
    def sentence(self) -> str:
        """Whether what is read most matters."""
        return shown(tower_said(self.found, self.target))

    @property
    def view(self) -> RegionsView:
        """The regions that were hidden; what matters most has a frame."""
        best = self.target.row(self.target.found, self.found.layers)
        framed = self.target.found if matters(self.target, best) else -1
        return _HiddenView(self.found, self.target, self.rows, self.largest, framed)

    @property
    def hidden_in(self) -> str:
        """The layers in which they were."""
        layers = self.found.layers
        return f"layer{'s' * (len(layers) > 1)} {ranges(layers)}"

    @property
    def windows(self) -> LayerRows | None:
        """The changes by window, of the first MOST_WINDOWS regions; None where none matters."""
        found = list(by_window(self.found, self.target))[:MOST_WINDOWS]
        largest = max((largest_of(change) for _, change in found), default=0.0)
        if largest < MATTERS:
            return None

        def tone(value: float) -> str:
            return "for" if value <= 0 else "against"

        def said(value: float) -> str:
            return f"{nats(value, True)} nats"

        rows = [_bar_row(region.called, change, max(largest, COLOURED), said, tone) for region, change in found]
        return LayerRows(rows, "Change of the answer by the window of the tower's layers")

    @property
    def no_window(self) -> str:
        """That none matters; empty where there are no windows, or one does."""
        changes = [largest_of(change) for _, change in by_window(self.found, self.target)]
        if not changes or max(changes) >= MATTERS:
            return ""
        return f"Hidden in {self.window}, nothing matters: {nats(max(changes), True)} nats at most."

    @property
    def window(self) -> str:
        """Of which layers a window is."""
        size = window_size(self.found, self.target)
        return "one layer of the tower alone" if size == 1 else f"the {size} layers of the tower around a layer"

    @property
    def note(self) -> str:
        """How it is known."""
        return (
            f"Below {MATTERS:g} nats a region does not matter, unless the answer changes. Measured in "
            f"{self.found.forwards:.1f} forward passes of the prompt. Where a mask hides nothing, log-probabilities differ by "
            f"{self.found.floor:.1g} nats at most."
        )
