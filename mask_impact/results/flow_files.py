"""`NAME.flows.*`: the table and the meta file of knockouts, there and back. Knows flows and file formats; draws nothing."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.files import without_suffix
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts
from mask_impact.results.meta import SCHEMA_VERSION, line, read_meta, texts_by_id
from mask_impact.results.names import FLOWS
from mask_impact.results.siblings import asked, save_kind
from mask_impact.results.table_files import changes_checksum, checksum, find_table, parse_formats, texts_column
from mask_impact.results.table_reading import MOST_LAYERS, read_numbers
from mask_impact.results.token_meta import token_entries, tokens_from

DEFAULT_FORMATS = ("csv", "json")
FLOW_COLUMNS = (
    "generation_step", "token", "flow", "source", "target", "layer", "first_layer", "last_layer", "probability",
    "probability_masked", "relative_change", "logprob_change", "kl_divergence", "below_floor", "top1_changed", "top1_id",
    "top1_token",
)  # fmt: skip


def flow_table(found: Knockouts):
    """A pyarrow.Table with FLOW_COLUMNS: a row for each step, flow and layer that the window is around."""
    import pyarrow as pa

    return pa.concat_tables([_of_step(found, step) for step in found.steps]).unify_dictionaries()


def _of_step(found: Knockouts, step: FlowStep):
    import pyarrow as pa

    n_flows, n_layers = step.top1.shape
    top1 = step.top1.reshape(-1)

    def of_flows(values: Iterable[str]):
        return texts_column(value for value in values for _ in range(n_layers))

    relative = step.relative_change.reshape(-1)
    columns = (
        np.full(top1.size, step.step, dtype=np.int32),
        texts_column([step.token_text] * top1.size),
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
        texts_column(step.top1_texts[int(token)] for token in top1),
    )
    return pa.table(dict(zip(FLOW_COLUMNS, columns, strict=True)))


def save_flows(
    found: Knockouts,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    picture: Callable[[BinaryIO], Any] | None = None,
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes `path`.flows.csv, .json and/or .parquet and `path`.flows.meta.json, all or none; returns the paths.

    picture: writes `path`.flows.png. on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    table, formats = flow_table(found), parse_formats(formats)
    meta = {
        "schema_version": SCHEMA_VERSION,
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
            {"step": step.step, "token_id": step.token_id, "token": step.token_text, "probability": step.probability}
            | {"floor": step.floor, "likeliest": step.likeliest}
            | {"top1_texts": texts_by_id(step.top1_texts)}
            for step in found.steps
        ],
        "formats": list(formats),
        "crc32": changes_checksum(found.steps),
        "top1_crc32": checksum(*(step.top1 for step in found.steps)),
        "tokens": [line(entry) for entry in token_entries(found.tokens)],
    }
    return save_kind(FLOWS, path, {"flows": table}, meta, asked(found.meta), picture, on_removed)


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_flows(path: str | os.PathLike) -> Knockouts:
    """The knockouts of a run called `path`, as they were saved. OutputError where the files are not there or do not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    where = stem.with_name(f"{stem.name}.flows.meta.json")
    meta = read_meta(where, "flows")
    table = find_table(stem, meta["formats"], "flows.")
    if table is None:
        raise OutputError(
            f"{where} is there, but its table is not: expected {stem.name}.flows.csv or the like beside it, as formats says"
        )
    numbers = {"layer": np.int64, "first_layer": np.int64, "last_layer": np.int64, "top1_id": np.int64}
    n_steps, n_flows = len(meta["steps"]), len(meta["flows"])
    types = numbers | dict.fromkeys(("logprob_change", "kl_divergence"), np.float32)
    columns = read_numbers(*table, types, n_steps * n_flows * MOST_LAYERS, f"steps and flows of {where.name}", False)
    n_layers, rest = divmod(len(columns["layer"]), n_steps * n_flows)
    if rest or not n_layers:
        raise OutputError(
            f"{table[0]} is not complete: {len(columns['layer']):,} rows for {n_steps} steps and {n_flows} flows of {where.name}"
        )
    values = {name: column.reshape(n_steps, n_flows, n_layers) for name, column in columns.items()}
    layers, first, last = (values[name] for name in ("layer", "first_layer", "last_layer"))
    if not (
        (layers == np.arange(n_layers)).all()
        and (first >= 0).all()
        and (first <= layers).all()
        and (layers <= last).all()
        and (last < n_layers).all()
        and all((one == one[0, 0]).all() for one in (first, last))
    ):
        raise OutputError(
            f"{table[0]} does not have windows around layers 0 to {n_layers - 1} for each of the steps and flows of {where.name}"
        )
    found = Knockouts(
        flows=tuple(map(_flow_from, meta["flows"])),
        steps=tuple(
            _step_from(entry, {name: column[number] for name, column in values.items()})
            for number, entry in enumerate(meta["steps"])
        ),
        first=first[0, 0],
        last=last[0, 0],
        generated_text=meta["generated_text"],
        tokens=tokens_from(meta["tokens"]),
        meta=meta["run"],
    )
    top1_crc32 = checksum(*(step.top1 for step in found.steps))
    other = "crc32" if changes_checksum(found.steps) != meta["crc32"] else None
    if other or meta.get("top1_crc32") not in (None, top1_crc32):
        other = other or "top1_crc32"
        raise OutputError(f"{table[0]} does not hold the numbers of the run in {where}: its {other} is another")
    for step in found.steps:
        if unnamed := {*step.top1.ravel().tolist()} - {*step.top1_texts}:
            raise OutputError(
                f"{where} is not the meta file of {table[0].name}: step {step.step} has no text of token {min(unnamed)} in "
                f"steps.{step.step}.top1_texts"
            )
    return found


def _flow_from(entry: dict[str, Any]) -> FlowPositions:
    heads, target = (None if entry[name] is None else tuple(entry[name]) for name in ("heads", "target_positions"))
    flow = Flow(entry["name"], entry["source"], entry["target"], heads)
    return FlowPositions(flow, tuple(entry["source_positions"]), target)


def _step_from(entry: dict[str, Any], values: dict[str, np.ndarray]) -> FlowStep:
    return FlowStep(
        step=entry["step"],
        token_id=entry["token_id"],
        token_text=entry["token"],
        probability=entry["probability"],
        logprob_change=values["logprob_change"],
        kl_divergence=values["kl_divergence"],
        top1=values["top1_id"],
        top1_texts={int(token): text for token, text in entry["top1_texts"].items()},
        floor=tuple(entry["floor"]),
        likeliest=entry["likeliest"],
    )
