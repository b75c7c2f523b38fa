"""What holds over many prompts as one HTML page without a script: a curve with its band for each group, and the same as tables.

Knows what was found; not where it comes from. All lengths are those of the SVG's own units.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mask_impact
from mask_impact.findings.over_prompts import Averaged, OverPrompts
from mask_impact.findings.prompt_numbers import IMAGE_SHARE, READING, Kind, PromptNumbers
from mask_impact.views.page import rendered, shown
from mask_impact.views.study_text import by, odd_text, render, title, value
from mask_impact.views.text import escape

LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 70, 12, 10, 34, 860, 250
MOST_LINES = 6  # of a figure
N_TICKS = 5
TONES = ("#0b6e99", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d")


@dataclass(frozen=True)
class Curve:
    """A group's line in a figure. line, band: points of the SVG, of which there are several where layers have no number."""

    name: str
    tone: str
    line: tuple[str, ...]
    band: tuple[str, ...]
    tips: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Figure:
    """One kind of numbers by layer. ticks: (place, text) of the axes."""

    title: str
    by: str
    curves: tuple[Curve, ...]
    layers: tuple[tuple[float, str], ...]
    values: tuple[tuple[float, str], ...]
    zero: float | None
    left_out: int


def build_study_page(found: OverPrompts, folder: Path, cards: Mapping[str, str]) -> bytes:
    """The page, UTF-8. folder: where it will lie, for links to the prompts' own files; cards: where they lie, by prompt."""

    def named(one: PromptNumbers) -> tuple[str, str]:
        """(href, text); no href where there is no card."""
        return cards.get(one.name, ""), shown(one.name)

    kinds = dict.fromkeys(one.kind for one in found.curves)
    ordered = sorted(kinds, key=lambda kind: ((IMAGE_SHARE, READING, kind.quantity).index(kind.quantity), kind))
    values = {
        "version": mask_impact.__version__,
        "sources": [escape(source) for source in found.sources],
        "summary": render(found),
        "figures": [_figure(found, kind) for kind in ordered],
        "strongest": [
            (named(one), shown(one.strongest), f"{-nats:.2f} nats", shown(one.answer.strip()), _link(one.place, folder))
            for one, nats in found.strongest
        ],
        "strangest": [
            (named(odd.prompt), odd_text(odd), shown(odd.prompt.answer.strip()), _link(odd.prompt.place, folder))
            for odd in found.strangest
        ],
        "size": (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
    }  # fmt: skip
    return rendered("study.html", values).encode()


def _link(place: str, folder: Path) -> tuple[str, str]:
    """(href, text) of a prompt's file; no href to what no browser shows."""
    try:
        relative = Path(os.path.relpath(place, folder)).as_posix()
    except ValueError:  # another drive
        relative = ""
    is_page = place.endswith((".html", ".png"))
    return (relative if is_page and not relative.startswith(("/", "javascript:")) else "", shown(Path(place).name))


def _figure(found: OverPrompts, kind: Kind) -> Figure:
    of = [one for one in found.curves if one.kind == kind]
    left_out, of = max(0, len(of) - MOST_LINES), of[:MOST_LINES]
    ends = np.concatenate([[0.0], *(part[np.isfinite(part)] for one in of for part in _parts(one))])
    low, high = float(ends.min()), float(ends.max())
    high = high if high > low else low + 1.0
    n = kind.n_layers

    def x(layer: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (layer + 0.5) / n, 2)

    def y(number: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - number) / (high - low), 2)

    every = next((step for step in (1, 2, 5, 10, 20, 50) if n <= 16 * step), 100)
    return Figure(
        title=shown(f"{title(kind)}, by layer"),
        by=shown(by(kind)),
        curves=tuple(_curve(found, one, TONES[place], x, y) for place, one in enumerate(of)),
        layers=tuple((x(layer), str(layer)) for layer in range(0, n, every)),
        values=tuple((y(one), value(kind, one)) for one in np.linspace(low, high, N_TICKS).tolist()),
        zero=y(0.0) if low < 0 < high else None,
        left_out=left_out,
    )


def _parts(one: Averaged) -> Sequence[np.ndarray]:
    return one.means.mean, one.means.low, one.means.high


def _curve(found: OverPrompts, one: Averaged, tone: str, x, y) -> Curve:
    mean, low, high = _parts(one)
    name = one.group.name if len(found.sources) == 1 else f"{'AB'[one.group.study]}, {one.group.name}"
    lines = [" ".join(f"{x(at)},{y(mean[at])}" for at in run) for run in _runs(np.isfinite(mean))]
    bands = []
    for run in _runs(np.isfinite(low) & np.isfinite(high)):
        there = [f"{x(at)},{y(high[at])}" for at in run]
        bands.append(" ".join([*there, *(f"{x(at)},{y(low[at])}" for at in reversed(run))]))
    tips = tuple(
        (x(at), y(mean[at]), f"layer {at}: {value(one.kind, mean[at])}{_between(one, at)}, n {one.means.n[at]}")
        for at in np.flatnonzero(np.isfinite(mean)).tolist()
    )
    return Curve(f"{shown(name)} (n {int(one.means.n.max())})", tone, tuple(lines), tuple(bands), tips)


def _between(one: Averaged, at: int) -> str:
    low, high = one.means.low[at], one.means.high[at]
    return f" ({value(one.kind, low)} to {value(one.kind, high)})" if np.isfinite(low) else ""


def _runs(there: np.ndarray) -> list[list[int]]:
    """Places in a row that are there."""
    runs: list[list[int]] = []
    for at in np.flatnonzero(there).tolist():
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs
