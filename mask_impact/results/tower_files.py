"""`NAME.tower.*`, `NAME.tower_effects.*`: what a vision tower's layers read, and what hiding patches in them does to an answer.

Tables, a meta file, and a picture that somebody else draws."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import ranges
from mask_impact.results.looked_files import DEFAULT_FORMATS, change_columns, save_looked, target_columns
from mask_impact.results.meta import line, texts_by_id
from mask_impact.results.names import TOWER
from mask_impact.results.patch_files import region_columns, region_entries
from mask_impact.results.table_files import checksum, parse_formats, texts_column
from mask_impact.results.tower import ANSWERS_WHAT, TowerEffects, TowerReading, TowerTarget

READING_COLUMNS = (
    "image", "layer", "unit", "row", "column", "attn_relative", "full_first_order", "full_standard_error", "probes",
)  # fmt: skip
EFFECT_COLUMNS = (
    "step", "target", "image", "row", "column", "size_px", "level", "region", "layers", "logprob_change", "kl_divergence",
    "top1_token", "top1_changed",
)  # fmt: skip


def reading_table(found: TowerEffects):
    """A pyarrow.Table with READING_COLUMNS: a row for each image, layer of the tower, and unit of the image."""
    import pyarrow as pa

    return pa.concat_tables(
        [_of_image(found, image, one) for image, one in found.readings.items()]
    ).unify_dictionaries()


def _of_image(found: TowerEffects, image: int, one: TowerReading):
    import pyarrow as pa

    layer, row, column = (index.ravel().astype(np.int32) for index in np.indices(one.attention.shape))
    n = len(layer)

    def numbers(values: np.ndarray | None):
        return pa.nulls(n, pa.float32()) if values is None else pa.array(values.ravel().astype(np.float32))

    columns = (
        np.full(n, image, dtype=np.int32),
        layer,
        texts_column([found.unit] * n),
        row,
        column,
        numbers(one.attention),
        numbers(one.full),
        numbers(one.error),
        np.full(n, found.probes, dtype=np.int32),
    )
    return pa.table(dict(zip(READING_COLUMNS, columns, strict=True)))


def effect_table(found: TowerEffects):
    """A pyarrow.Table with EFFECT_COLUMNS: a row for each target, region, and set of layers in which it was hidden."""
    import pyarrow as pa

    return pa.concat_tables([_of_target(found, target) for target in found.targets]).unify_dictionaries()


def _of_target(found: TowerEffects, target: TowerTarget):
    import pyarrow as pa

    columns = (
        *target_columns(target),
        *region_columns([found.regions[place] for place in target.place]),
        texts_column(map(ranges, target.layers)),
        *change_columns(target),
    )
    return pa.table(dict(zip(EFFECT_COLUMNS, columns, strict=True)))


def save_tower(
    found: TowerEffects,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    picture: Callable[[BinaryIO], Any] | None = None,
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes `path`.tower.csv, .json and/or .parquet, `path`.tower_effects.csv and so on where effects were measured, and
    `path`.tower.meta.json, all or none; returns the paths.

    picture: writes `path`.tower.png. on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    tables, formats = {"tower": reading_table(found)}, parse_formats(formats)
    if found.regions:
        tables["tower_effects"] = effect_table(found)
    numbers = [one.attention.astype(np.float32) for one in found.readings.values()]
    numbers += [getattr(one, name) for one in found.targets for name in ("logprob_change", "kl_divergence")]
    own = {
        "answers_what": ANSWERS_WHAT,
        "crc32": checksum(*numbers),
        "unit": found.unit,
        "probes": found.probes,
        "n_layers": found.n_layers,
        "layers": line(list(found.layers)),
        "most_read": found.regions[found.most_read].name if found.most_read >= 0 else None,
        "floor": found.floor,
        "forwards": found.forwards,
        "regions": region_entries(found.regions),
        "targets": [
            {
                "steps": list(one.steps),
                "text": one.text,
                "probability": one.probability,
                "found": one.found if one.found >= 0 else None,
                "top1_texts": texts_by_id(one.top1_texts),
            }
            for one in found.targets
        ],
    }
    return save_looked(found, TOWER, path, tables, formats, command, own, picture, on_removed)
