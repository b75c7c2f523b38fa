"""Rows of bars over the layers, one row for each flow, as lengths of an SVG without a script. Knows numbers and names.

A row's bars go up where the flow speaks for the answer and down where it speaks against it, on one scale for all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.views.page import shown

LEFT, TOP, ROW, GAP, WIDTH, END = 150, 6, 62, 16, 1000, 8  # of the drawing, in its own units
LEAST = 0.004  # of a row: lower bars are not drawn
NAME = 22  # characters of a row's name


@dataclass(frozen=True)
class Bar:
    """x, y, width, height: in the drawing; tone: `for` or `against`; measured: whether it was, or estimated; tip: in words."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    measured: bool
    tip: str


@dataclass(frozen=True)
class Line:
    """A row. changes: float [L], nats, negative where it speaks for the answer; layers: first and last of those that are
    marked; tip: of the mark."""

    name: str
    changes: np.ndarray
    measured: bool
    layers: tuple[int, int] | None = None
    tip: str = ""


class LayerBars:
    """The drawing of some rows."""

    def __init__(self, rows: Sequence[Line]) -> None:
        self.rows = rows
        self.n_layers = len(rows[0].changes)
        self.cell = (WIDTH - LEFT - END) / self.n_layers
        self.bottom = TOP + (ROW + GAP) * len(rows) - GAP
        self.height = self.bottom + 46
        most, least = (max(0.0, *(float((sign * row.changes).max()) for row in rows)) for sign in (-1, 1))
        self.scale = ROW / (most + least) if most + least > 0 else 0.0
        self.up = most * self.scale  # of a row, above its line

    def line(self, number: int) -> float:
        """y of a row's line, from which its bars go up and down."""
        return round(TOP + (ROW + GAP) * number + self.up, 2)

    def label(self, row: Line) -> str:
        """A row's name, short enough to stand before it."""
        text = shown(row.name).replace("->", "→")
        return text if len(text) <= NAME else f"{text[: NAME - 1]}…"

    def x(self, layer: float) -> float:
        """Where a layer begins."""
        return round(LEFT + self.cell * layer, 2)

    @property
    def ticks(self) -> list[int]:
        """Layers that are named below."""
        every = next((step for step in (1, 2, 5, 10, 20, 50) if self.n_layers <= 16 * step), 100)
        return list(range(0, self.n_layers, every))

    @property
    def bars(self) -> Iterator[Bar]:
        """Of all rows and layers."""
        for number, row in enumerate(self.rows):
            for layer, change in enumerate(row.changes.tolist()):
                height = abs(change) * self.scale
                if height < LEAST * ROW:
                    continue
                y = self.line(number) - (height if change <= 0 else 0)
                tone = "for" if change <= 0 else "against"
                tip = f"{shown(row.name)}, layer {layer}: {nats(change, row.measured)} nats"
                yield Bar(
                    self.x(layer + 0.08),
                    round(y, 2),
                    round(0.84 * self.cell, 2),
                    round(height, 2),
                    tone,
                    row.measured,
                    tip,
                )

    def band(self, number: int) -> tuple[float, float, float, float] | None:
        """(x, y, width, height) around the layers of a row that are marked, None without any."""
        layers = self.rows[number].layers
        if layers is None:
            return None
        left, right = self.x(layers[0]), self.x(layers[1] + 1)
        return left, self.line(number) - self.up - 3, round(right - left, 2), ROW + 6


def nats(change: float, measured: bool) -> str:
    """-4.84; ~-0.3 where it is estimated."""
    text = f"{change:.2f}" if abs(change) >= 0.995 else f"{change:.2g}"
    text = "0" if float(text) == 0 else text
    return f"{'' if measured else '~'}{text.replace('-', '−')}"
