"""What is shown and written of knockouts: `NAME.flows.*` as table, meta file and line plot, and the page of text on stdout.

Knows knockouts, files and plots; no models. pyarrow, orjson and matplotlib are imported where they are used.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mask_impact.effect_tables import write_table
from mask_impact.files import check_output, write_files
from mask_impact.knockouts import FlowStep, Knockouts
from mask_impact.plots import DPI, SMALL, TEXT, TITLE, drawn_as_text, fitted, quiet, write_png
from mask_impact.store import clean_text, jsonable, parse_formats
from mask_impact.summary import escape, model_lines, padded, percent, quoted

FLOW_COLUMNS = (
    "generation_step", "token", "flow", "source", "target", "layer", "first_layer", "last_layer", "probability",
    "probability_masked", "relative_change", "logprob_change", "kl_divergence", "below_floor", "top1_changed", "top1_id",
    "top1_token",
)  # fmt: skip
MAX_PANELS = 8  # produced tokens that are drawn
LINES = ("-", "--", ":", "-.")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's, told apart by all


def flow_table(found: Knockouts):
    """A pyarrow.Table with FLOW_COLUMNS: a row for each step, flow and layer that the window is around."""
    import pyarrow as pa

    return pa.concat_tables([_of_step(found, step) for step in found.steps]).unify_dictionaries()


def _of_step(found: Knockouts, step: FlowStep):
    import pyarrow as pa

    n_flows, n_layers = step.top1.shape
    top1 = step.top1.reshape(-1)

    def texts(values: Iterable[str]):
        return pa.array([clean_text(value) for value in values], pa.string()).dictionary_encode()

    def of_flows(values: Iterable[str]):
        return texts(value for value in values for _ in range(n_layers))

    relative = step.relative_change.reshape(-1)
    columns = (
        np.full(top1.size, step.step, dtype=np.int32),
        texts([step.token_text] * top1.size),
        of_flows(one.flow.name for one in found.flows),
        of_flows(one.flow.source for one in found.flows),
        of_flows(one.flow.target for one in found.flows),
        *(np.tile(part.astype(np.int32), n_flows) for part in (np.arange(n_layers), found.first, found.last)),
        np.full(top1.size, step.probability),
        step.probability * (1 + relative),
        relative,
        step.logprob_change.reshape(-1) + np.float32(0),  # -0.0 becomes 0.0
        step.kl_divergence.reshape(-1) + np.float32(0),
        pa.array(np.abs(step.logprob_change.reshape(-1)) <= step.floor[1]),
        pa.array(step.top1_changed.reshape(-1)),
        top1,
        texts(step.top1_texts[int(token)] for token in top1),
    )
    return pa.table(dict(zip(FLOW_COLUMNS, columns, strict=True)))


def save_flows(
    found: Knockouts, path: str | os.PathLike, formats: str | Iterable[str] = ("csv", "json"), command: str = ""
) -> tuple[Path, ...]:
    """Writes `path`.flows.csv, .json and/or .parquet, `path`.flows.meta.json and `path`.flows.png, all or none; returns the
    paths. Errors as in `store.save`."""
    import orjson

    path = Path(path)
    stem, table = check_output(path.parent, path.name), flow_table(found)
    meta = {
        "schema_version": 1,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "flows": [
            {
                "name": one.flow.name,
                "source": one.flow.source,
                "target": one.flow.target,
                "heads": one.flow.heads,
                "source_positions": one.source,
                "target_positions": one.target,  # None: the query of each step
            }
            for one in found.flows
        ],
        "steps": [
            {"step": step.step, "token_id": step.token_id, "token": step.token_text, "floor": step.floor}
            for step in found.steps
        ],
        "tokens": list(found.encoded.tokens.texts),
    }
    text = orjson.dumps(jsonable(meta), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    picture = io.BytesIO()
    with quiet():
        write_png(flows_figure(found), picture)
    writers = {
        stem.with_name(f"{stem.name}.flows.{form}"): lambda file, form=form: write_table(table, form, file)
        for form in parse_formats(formats)
    }
    writers[stem.with_name(f"{stem.name}.flows.meta.json")] = lambda file: file.write(text)
    writers[stem.with_name(f"{stem.name}.flows.png")] = lambda file: file.write(picture.getvalue())
    write_files(writers)
    return tuple(writers)


def flows_figure(found: Knockouts):
    """A panel for each produced token (the first MAX_PANELS): its probability's relative change over the layers, a line for
    each flow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = found.steps[:MAX_PANELS]
    columns = 1 if len(steps) == 1 else 2
    rows = -(-len(steps) // columns)
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
        x, y = (place % columns) * width / columns, head + (place // columns) * row
        box = (x + 0.6, height - y - row + 0.5, width / columns - 0.75, row - 0.75)
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
        if place % columns == 0:
            axes.set_ylabel("change of its probability, %", fontsize=SMALL)
    handles = figure.axes[0].get_lines()[: len(found.flows)]
    labels = [fitted("", one.flow.name, "", TEXT, width / 2 - 0.8) for one in found.flows]
    figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=TEXT, frameon=False)
    return drawn_as_text(figure)


def render_flows(found: Knockouts) -> str:
    """The page of text: of each flow, where cutting it costs each produced token most, and what becomes of it there."""
    window, ablation = found.meta["window"], found.meta["ablation"]
    lines = [*model_lines(found.meta), f"Generated text: {escape(found.generated_text)}", ""]
    width = max(len("flow"), *(min(40, len(escape(one.flow.name))) for one in found.flows))
    for step in found.steps:
        layers = "1 layer" if window == 1 else f"{window} layers"
        lines.append(
            f"Token {step.step}, {quoted(step.token_text, 16)} ({percent(step.probability)}), with a flow cut in {layers} "
            f"around a layer ({ablation}):"
        )
        head = f"  {padded('flow', width)}  {'tokens':>6}  {'layer':>5}  {'probability':>11}  {'log-prob.':>9}  becomes"
        lines.append(head)
        for number, one in enumerate(found.flows):
            layer = int(step.logprob_change[number].argmin())
            change = float(step.logprob_change[number, layer])
            top1 = int(step.top1[number, layer])
            becomes = quoted(step.top1_texts[top1], 16) if step.top1_changed[number, layer] else ""
            relative = f"{100 * np.expm1(change):+.1f} %"
            name = padded(escape(one.flow.name)[:40], width)
            lines.append(
                f"  {name}  {len(one.source):>6}  {layer:>5}  {relative:>11}  {change:>9.3g}  {becomes}".rstrip()
            )
        lines.append("")
    return "\n".join(lines).rstrip()
