"""`NAME.flows.*`: the table and the meta file of knockouts. Knows flows and file formats; nothing is printed or drawn."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from mask_impact.results.files import check_output, write_files
from mask_impact.results.flows import FlowStep, Knockouts
from mask_impact.results.meta import SCHEMA_VERSION, meta_bytes
from mask_impact.results.table_files import clean_text, parse_formats, write_table

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
    found: Knockouts,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    beside: Mapping[str, Callable[[BinaryIO], None]] = MappingProxyType({}),
) -> tuple[Path, ...]:
    """Writes `path`.flows.csv, .json and/or .parquet and `path`.flows.meta.json, all or none; returns the paths.

    beside: what else is written with them, such as a picture, by its suffix. Errors as in `store.save`.
    """
    path = Path(path)
    stem, table = check_output(path.parent, path.name), flow_table(found)
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
            {"step": step.step, "token_id": step.token_id, "token": step.token_text, "floor": step.floor}
            for step in found.steps
        ],
        "tokens": list(found.tokens.texts),
    }
    text = meta_bytes(meta)
    writers = {
        stem.with_name(f"{stem.name}.flows.{form}"): lambda file, form=form: write_table(table, form, file)
        for form in parse_formats(formats)
    }
    writers[stem.with_name(f"{stem.name}.flows.meta.json")] = lambda file: file.write(text)
    writers |= {stem.with_name(f"{stem.name}.flows.{suffix}"): write for suffix, write in beside.items()}
    write_files(writers)
    return tuple(writers)
