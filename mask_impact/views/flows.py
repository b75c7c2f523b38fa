"""Knockouts as text for a terminal and as a line plot. Knows flows and plots; writes no files. matplotlib is imported late."""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import BinaryIO

import numpy as np

from mask_impact.results.flows import Knockouts
from mask_impact.views.plots import DPI, SMALL, TEXT, TITLE, drawn_as_text, fitted, png_of, writer_of
from mask_impact.views.text import columns, cut, escape, model_lines, padded, percent, quoted, saved_lines, wrapped

MAX_NAME = 20  # columns of a flow's name in the page of text
MAX_PANELS = 8  # produced tokens that are drawn
LINES = ("-", "--", ":", "-.")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's, told apart by all


def flows_png(found: Knockouts) -> bytes:
    """The line plot as a PNG file."""
    return png_of(lambda: flows_figure(found))


def picture_of(found: Knockouts) -> Callable[[BinaryIO], None]:
    """What `save_flows` writes beside the table."""
    return writer_of(flows_png(found))


def flows_figure(found: Knockouts):
    """A panel for each produced token (the first MAX_PANELS): its probability's relative change over the layers, a line for
    each flow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = found.steps[:MAX_PANELS]
    n_columns = 1 if len(steps) == 1 else 2
    rows = -(-len(steps) // n_columns)
    width, row, head, foot = 7.0, 2.6, 0.75, 0.35 + 0.17 * -(-len(found.flows) // 2)
    figure = Figure((width, head + rows * row + foot), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    height = head + rows * row + foot
    answer = found.generated_text or "".join(step.token_text for step in found.steps)
    figure.text(0.15 / width, 1 - 0.15 / height, fitted('Flows to the answer "', answer, '"', TITLE, width - 0.3),
                fontsize=TITLE, va="top")  # fmt: skip
    left_out = f" · the first {len(steps)} of {len(found.steps)} tokens" if len(steps) < len(found.steps) else ""
    about = f" · {found.meta['ablation']} in windows of {found.meta['window']} of {found.n_layers} layers{left_out}"
    about = fitted("model ", str(found.meta["model"]), about, TEXT, width - 0.3)
    figure.text(0.15 / width, 1 - 0.41 / height, about, fontsize=TEXT, color="0.45", va="top")
    low = min(-5.0, *(100 * float(step.relative_change.min()) for step in steps))
    high = max(5.0, *(100 * float(step.relative_change.max()) for step in steps))
    room = 0.06 * (high - low)
    for place, step in enumerate(steps):
        x, y = (place % n_columns) * width / n_columns, head + (place // n_columns) * row
        box = (x + 0.6, height - y - row + 0.5, width / n_columns - 0.75, row - 0.75)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        for number, (one, values) in enumerate(zip(found.flows, step.relative_change, strict=True)):
            style = LINES[number // len(COLOURS) % len(LINES)]
            axes.plot(100 * values, style, color=COLOURS[number % len(COLOURS)], linewidth=1.2, label=one.flow.name)
        axes.axhline(0, color="0.45", linewidth=0.5)
        axes.set_ylim(low - room, high + room)
        axes.set_xlim(0, max(1, found.n_layers - 1))
        axes.tick_params(labelsize=SMALL, width=0.5, length=2.5)
        axes.spines[:].set(linewidth=0.5, edgecolor="0.45")
        probability = f'" ({percent(step.probability)})'
        title = fitted(f'token {step.step}, "', step.token_text, probability, TEXT, box[2])
        axes.set_title(title, fontsize=TEXT, loc="left", pad=4)
        axes.set_xlabel("layer that the window is around", fontsize=SMALL)
        if place % n_columns == 0:
            axes.set_ylabel("change of its probability, %", fontsize=SMALL)
    handles = figure.axes[0].get_lines()[: len(found.flows)]
    labels = [fitted("", one.flow.name, "", TEXT, width / 2 - 0.8) for one in found.flows]
    figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=TEXT, frameon=False)
    return drawn_as_text(figure)


def render_flows(found: Knockouts, paths: Iterable[str | PathLike] = ()) -> str:
    """The page of text: of each flow, where cutting it costs each produced token most, and what becomes of it there.

    paths: the files that were written.
    """
    window, ablation = found.meta["window"], found.meta["ablation"]
    lines = [*model_lines(found.meta), *wrapped(f"Generated text: {escape(found.generated_text)}", "", "  "), ""]
    width = max(len("flow"), *(min(MAX_NAME, columns(escape(one.flow.name))) for one in found.flows))
    for step in found.steps:
        layers = "1 layer" if window == 1 else f"{window} layers"
        lines += wrapped(
            f"Token {step.step}, {quoted(step.token_text, 16)} ({percent(step.probability)}), with a flow cut in {layers} "
            f"around a layer ({ablation}):",
            "",
            "  ",
        )
        head = f"  {padded('flow', width)}  {'tokens':>6}  {'layer':>5}  {'probability':>11}  {'log-prob.':>9}  becomes"
        lines.append(head)
        for number, one in enumerate(found.flows):
            layer = int(step.logprob_change[number].argmin())
            change = float(step.logprob_change[number, layer])
            top1 = int(step.top1[number, layer])
            becomes = quoted(step.top1_texts[top1], 16) if step.top1_changed[number, layer] else ""
            relative = f"{100 * np.expm1(change):+.1f} %"
            name = padded(cut(escape(one.flow.name), MAX_NAME), width)
            lines.append(
                f"  {name}  {len(one.source):>6}  {layer:>5}  {relative:>11}  {change:>9.3g}  {becomes}".rstrip()
            )
        lines.append("")
    return "\n".join([*lines, *saved_lines(paths)]).rstrip()
