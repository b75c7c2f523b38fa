"""`NAME.deepstack.*`: what each part of an image's features does to an answer, as a table and a meta file, there and
back. Prints nothing."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget, FeaturePart
from mask_impact.results.files import without_suffix
from mask_impact.results.looked_files import (
    DEFAULT_FORMATS,
    change_columns,
    looked_from,
    save_looked,
    target_columns,
    target_from,
)
from mask_impact.results.meta import line, read_meta, texts_by_id
from mask_impact.results.names import DEEPSTACK
from mask_impact.results.table_files import beside, changes_checksum, parse_formats, texts_column
from mask_impact.results.table_reading import read_measured

DEEPSTACK_COLUMNS = (
    "step", "target", "region", "baseline", "parts_kept", "logprob_change", "kl_divergence", "top1_token", "top1_changed",
    "shapley", "norm_share",
)  # fmt: skip


def deepstack_table(found: DeepstackEffects):
    """A pyarrow.Table with DEEPSTACK_COLUMNS: a row for each target and set of parts; what is of one part stands in the
    row in which it alone is kept."""
    import pyarrow as pa

    return pa.concat_tables([_of_target(found, target) for target in found.targets]).unify_dictionaries()


def _of_target(found: DeepstackEffects, target: DeepstackTarget):
    import pyarrow as pa

    n = len(target.top1)

    def of_parts(values: np.ndarray):
        placed = {1 << part: float(value) for part, value in enumerate(values)}
        return pa.array([placed.get(number) for number in range(n)], pa.float32())

    columns = (
        *target_columns(target),
        texts_column([found.region] * n),
        texts_column([found.baseline] * n),
        texts_column(map(found.kept, range(n))),
        *change_columns(target),
        of_parts(target.shapley),
        of_parts(found.norm_share),
    )
    return pa.table(dict(zip(DEEPSTACK_COLUMNS, columns, strict=True)))


def save_deepstack(
    found: DeepstackEffects,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes `path`.deepstack.csv, .json and/or .parquet and `path`.deepstack.meta.json, all or none; returns the paths.

    on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    own = {
        "crc32": changes_checksum(found.targets),
        "region": found.region,
        "positions": line(list(found.positions)),
        "baseline": found.baseline,
        "parts": [line(asdict(part)) for part in found.parts],
        "norm_share": line(found.norm_share.tolist()),
        "floor": found.floor,
        "forwards": found.forwards,
        "targets": [
            {
                "steps": list(one.steps),
                "text": one.text,
                "probability": one.probability,
                "shapley": line(one.shapley.tolist()),
                "interaction": line(one.interaction.tolist()),
                "top1_texts": texts_by_id(one.top1_texts),
                "top1": line(one.top1.tolist()),
                "differs": line(one.differs.tolist()),
            }
            for one in found.targets
        ],
        "answers": [
            {"set": number, "parts_kept": found.kept(number), "text": text} for number, text in found.answers.items()
        ],
    }
    tables, formats = {"deepstack": deepstack_table(found)}, parse_formats(formats)
    return save_looked(found, DEEPSTACK, path, tables, formats, command, own, None, on_removed)


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_deepstack(path: str | os.PathLike) -> DeepstackEffects:
    """What a run of `deepstack` called `path` found, as it was saved. OutputError where the files are not there or do not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    meta = read_meta(beside(stem, DEEPSTACK.main), "deepstack")
    changes = read_measured(stem, "deepstack", meta, [len(one["top1"]) for one in meta["targets"]])
    return DeepstackEffects(
        parts=tuple(FeaturePart(**entry) for entry in meta["parts"]),
        region=meta["region"],
        positions=tuple(meta["positions"]),
        baseline=meta["baseline"],
        targets=tuple(_target_from(entry, *numbers) for entry, numbers in zip(meta["targets"], changes, strict=True)),
        norm_share=np.array(meta["norm_share"], dtype=np.float64),
        answers={one["set"]: one["text"] for one in meta["answers"]},
        **looked_from(meta),
    )


def _target_from(entry: dict[str, Any], change: np.ndarray, kl: np.ndarray) -> DeepstackTarget:
    return DeepstackTarget(
        **target_from(entry, change, kl),
        shapley=np.array(entry["shapley"], dtype=np.float64),
        interaction=np.array(entry["interaction"], dtype=np.float64),
    )
