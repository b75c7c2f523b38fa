"""`NAME.tower.*`, `NAME.tower_effects.*`: what a vision tower's layers read, and what hiding patches in them does to an answer.

Tables, a meta file, and a picture that somebody else draws; there and back."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import ranges
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
from mask_impact.results.names import TOWER
from mask_impact.results.patch_files import region_columns, region_entries, region_from
from mask_impact.results.table_files import beside, changes_checksum, checksum, parse_formats, texts_column
from mask_impact.results.table_reading import CHANGES, by_target, check_checksum, read_floats
from mask_impact.results.tower import ANSWERS_WHAT, TowerEffects, TowerReading, TowerTarget

READING_COLUMNS = (
    "image", "layer", "unit", "row", "column", "attn_relative", "full_first_order", "full_standard_error", "probes",
)  # fmt: skip
FIELDS = {"attention": "attn_relative", "full": "full_first_order", "error": "full_standard_error"}  # of a reading
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
    readings, sets = (
        found.readings.values(),
        list(dict.fromkeys(one for target in found.targets for one in target.layers)),
    )
    measured = [getattr(one, name) for name in FIELDS for one in readings if getattr(one, name) is not None]
    own = {
        "answers_what": ANSWERS_WHAT,
        "crc32": checksum(*(one.astype(np.float32) for one in measured)),
        "crc32_effects": changes_checksum(found.targets),
        "unit": found.unit,
        "probes": found.probes,
        "n_layers": found.n_layers,
        "layers": line(list(found.layers)),
        "layer_sets": [line(list(one)) for one in sets],
        "readings": [line({"image": image, "grid": one.attention.shape[1:]}) for image, one in found.readings.items()],
        "most_read": found.most_read if found.most_read >= 0 else None,
        "floor": found.floor,
        "forwards": found.forwards,
        "regions": region_entries(found.regions),
        "patches": [
            line({"region": number, "grid": one.shape, "places": np.flatnonzero(one).tolist()})
            for number, one in found.patches.items()
        ],
        "targets": [
            {
                "steps": list(one.steps),
                "text": one.text,
                "probability": one.probability,
                "found": one.found if one.found >= 0 else None,
                "place": line(one.place.tolist()),
                "layer_set": line([sets.index(layers) for layers in one.layers]),
                "top1": line(one.top1.tolist()),
                "differs": line(one.differs.tolist()),
                "top1_texts": texts_by_id(one.top1_texts),
            }
            for one in found.targets
        ],
    }
    return save_looked(found, TOWER, path, tables, formats, command, own, picture, on_removed)


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_tower(path: str | os.PathLike) -> TowerEffects:
    """What a run of `tower` called `path` found, as it was saved. OutputError where the files are not there or do not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    where = beside(stem, TOWER.main)
    meta = read_meta(where, "tower")
    shapes = [(meta["n_layers"], *one["grid"]) for one in meta["readings"]]
    sizes = [rows * columns * n for n, rows, columns in shapes]
    fields = list(FIELDS)[: 1 + min(meta["probes"], 2)]
    table, columns = read_floats(stem, "tower", where, meta, [FIELDS[one] for one in fields], sum(sizes), "readings")
    check_checksum(columns, table, where, meta["crc32"])
    counts = [len(one["place"]) for one in meta["targets"]]
    changes = [np.zeros(0, np.float32)] * len(CHANGES)
    if meta["regions"]:
        table, changes = read_floats(stem, "tower_effects", where, meta, CHANGES, sum(counts), "targets")
    of_targets = by_target(changes, counts)
    check_checksum([one for target in of_targets for one in target], table, where, meta["crc32_effects"])
    of_images = [_of_images(column, sizes, shapes) for column in columns]
    sets = [tuple(one) for one in meta["layer_sets"]]
    return TowerEffects(
        readings={
            one["image"]: TowerReading(**dict(zip(fields, numbers, strict=True)))
            for one, *numbers in zip(meta["readings"], *of_images, strict=True)
        },
        unit=meta["unit"],
        probes=meta["probes"],
        n_layers=meta["n_layers"],
        layers=tuple(meta["layers"]),
        regions=tuple(map(region_from, meta["regions"])),
        targets=tuple(
            _target_from(one, sets, *numbers) for one, numbers in zip(meta["targets"], of_targets, strict=True)
        ),
        most_read=-1 if meta["most_read"] is None else meta["most_read"],
        patches={one["region"]: _patches_from(one) for one in meta.get("patches") or ()},
        **looked_from(meta),
    )


def _patches_from(entry: dict[str, Any]) -> np.ndarray:
    """bool [rows, columns]"""
    found = np.zeros(entry["grid"], dtype=bool)
    found.flat[entry["places"]] = True
    return found


def _of_images(column: np.ndarray, sizes: list[int], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """A column of the table as arrays [L, rows, columns], one for each image."""
    parts = np.split(column, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _target_from(entry: dict[str, Any], sets: list[tuple[int, ...]], change: np.ndarray, kl: np.ndarray) -> TowerTarget:
    return TowerTarget(
        **target_from(entry, change, kl),
        place=np.array(entry["place"], dtype=np.int64),
        layers=tuple(sets[one] for one in entry["layer_set"]),
        found=-1 if entry["found"] is None else entry["found"],
    )
