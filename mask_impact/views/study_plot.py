"""What holds over many prompts as a matplotlib Figure to publish: flows by layer, and what parts of the images' features add.

Knows what was found; writes no files. A line or bar for each group, with its 95 % interval where there is one.
"""

from collections.abc import Sequence

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.findings.over_prompts import EVERY, Averaged, Group, OverPrompts
from mask_impact.findings.prompt_numbers import FLOW, PART, PIXELS, WAY, WITHOUT, Kind
from mask_impact.views.plots import GREY, INK, SMALL, TEXT, glyphs

TONES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito's
MOST_FLOWS = 4
WIDTH, HEIGHT, OF_LEGEND = 6.9, 2.1, 0.3  # inches; the second of a row


def study_figure(found: OverPrompts, width: float = WIDTH):
    """The flows in a row of panels, and under them the parts and the pixels. OutputError where the study has neither."""
    from matplotlib.figure import Figure

    groups = _groups(found)
    flows = [*dict.fromkeys(one.kind for one in found.curves if one.kind.quantity.startswith(FLOW))][:MOST_FLOWS]
    parts = _kinds(found, (PART, WITHOUT))
    pixels = _kinds(found, (PIXELS, WAY))
    rows = [row for row in (flows, [kinds for kinds in (parts, pixels) if kinds]) if row]
    if not rows:
        raise OutputError(
            f"{found.sources[0]} has neither flows nor parts of images' features to draw: measure with --answer, --deepstack or "
            "--pixels"
        )
    height = HEIGHT * len(rows) + OF_LEGEND
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - OF_LEGEND / height))
    cells = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for cell, row in zip(cells, rows, strict=True):
        axes = cell.subplots(1, len(row), squeeze=False, sharey=row is flows)[0]
        for axis, what in zip(axes, row, strict=True):
            if isinstance(what, Kind):
                _draw_flow(axis, found, what, groups)
            else:
                _draw_bars(axis, found, what, groups)
        axes[0].set_ylabel("nats", fontsize=SMALL)
    handles = [figure.axes[0].plot([], [], color=tone, linewidth=4)[0] for _, tone in groups]
    names = [f"{glyphs(_called(found, group))} ({len(group.prompts)})" for group, _ in groups]
    figure.legend(handles, names, loc="upper center", ncols=len(names), fontsize=SMALL, frameon=False)
    return figure


def _groups(found: OverPrompts) -> list[tuple[Group, str]]:
    """Those that have labels, or else all prompts, each with its colour."""
    labelled = [group for group in found.groups if group.name != EVERY] or list(found.groups)
    return list(zip(labelled, TONES, strict=False))


def _called(found: OverPrompts, group: Group) -> str:
    return group.name if len(found.sources) == 1 else f"{'AB'[group.study]}, {group.name}"


def _kinds(found: OverPrompts, beginnings: tuple[str, ...]) -> list[Kind]:
    """The kinds of single numbers that begin so, of the first of their measures, parts in the order of the model."""
    kinds = [*dict.fromkeys(one.kind for one in found.numbers if one.kind.quantity.startswith(beginnings))]
    kinds = [kind for kind in kinds if kind[1:] == kinds[0][1:]]
    last = [kind for kind in kinds if kind.quantity == WITHOUT]
    first = [kind for kind in kinds if kind.quantity == f"{PART}main"]
    return [*first, *(kind for kind in kinds if kind not in (*first, *last)), *last]


def _draw_flow(axis, found: OverPrompts, kind: Kind, groups: Sequence[tuple[Group, str]]) -> None:
    for group, tone in groups:
        for one in _of(found.curves, kind, group):
            layers, means = np.arange(len(one.means.n)), one.means
            axis.plot(layers, means.mean, color=tone, linewidth=1.2)
            axis.fill_between(layers, means.low, means.high, color=tone, alpha=0.2, linewidth=0)
    axis.set_title(glyphs(kind.quantity.removeprefix(FLOW)), fontsize=TEXT)
    axis.set_xlabel(f"layer ({kind.measure})", fontsize=SMALL)
    _plain(axis)


def _draw_bars(axis, found: OverPrompts, kinds: Sequence[Kind], groups: Sequence[tuple[Group, str]]) -> None:
    size = 0.8 / len(groups)
    for number, (group, tone) in enumerate(groups):
        for place, kind in enumerate(kinds):
            for one in _of(found.numbers, kind, group):
                mean, low, high = (float(part[0]) for part in (one.means.mean, one.means.low, one.means.high))
                at = place + (number - (len(groups) - 1) / 2) * size
                axis.bar(at, mean, size, color=tone)
                if np.isfinite(low):
                    axis.plot([at, at], [low, high], color=INK, linewidth=0.8)
    names = [kind.quantity.removeprefix(PART).removeprefix(WAY).removeprefix("pixels of the ") for kind in kinds]
    axis.set_xticks(range(len(kinds)), [name.replace(" ", "\n") for name in map(glyphs, names)])
    is_part = kinds[0].quantity.startswith((PART, WITHOUT))
    said = "what each part of the features adds" if is_part else "what replacing pixels does"
    axis.set_title(said, fontsize=TEXT)
    axis.set_xlabel(glyphs(kinds[0].how), fontsize=SMALL)
    _plain(axis)


def _of(averaged: Sequence[Averaged], kind: Kind, group: Group) -> list[Averaged]:
    return [one for one in averaged if one.kind == kind and one.group is group]


def _plain(axis) -> None:
    axis.axhline(0, color=GREY, linewidth=0.5)
    axis.tick_params(labelsize=SMALL - 1)
    axis.spines[["top", "right"]].set_visible(False)
