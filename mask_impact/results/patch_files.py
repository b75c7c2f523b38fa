"""`NAME.patches.*`: what replacing pixels does to an answer, as a table, a picture and a meta file, there and back. Draws
nothing."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

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
from mask_impact.results.names import PATCHES
from mask_impact.results.patches import PatchEffects, PatchTarget, PictureRegion
from mask_impact.results.table_files import beside, changes_checksum, parse_formats, texts_column
from mask_impact.results.table_reading import read_measured
from mask_impact.results.tokens import ImageRecord

PATCH_COLUMNS = (
    "step", "target", "image", "row", "column", "video", "frame", "time_s", "size_px", "level", "region", "fill", "route",
    "logprob_change", "kl_divergence", "top1_token", "top1_changed",
)  # fmt: skip


def patch_table(found: PatchEffects):
    """A pyarrow.Table with PATCH_COLUMNS: a row for each target, region, fill and route."""
    import pyarrow as pa

    return pa.concat_tables([_of_target(found, target) for target in found.targets]).unify_dictionaries()


def _of_target(found: PatchEffects, target: PatchTarget):
    import pyarrow as pa

    regions = [found.regions[place] for place in target.place]
    image, row, column, *others = region_columns(regions)
    columns = (
        *target_columns(target),
        *(image, row, column, *moment_columns(regions, found.images), *others),
        texts_column(fill or None for fill in target.fill),
        texts_column(target.route),
        *change_columns(target),
    )
    return pa.table(dict(zip(PATCH_COLUMNS, columns, strict=True)))


def region_columns(regions: Sequence[PictureRegion]):
    """The columns image, row, column, size_px, level, region."""
    import pyarrow as pa

    def counts(values: Iterable[int]):
        return pa.array([None if one < 0 else one for one in values], pa.int32())

    return (
        counts(one.image for one in regions),
        counts(one.row for one in regions),
        counts(one.column for one in regions),
        texts_column("x".join(map(str, one.size)) for one in regions),
        texts_column(one.level for one in regions),
        texts_column(one.name for one in regions),
    )


def moment_columns(regions: Sequence[PictureRegion], images: Sequence[ImageRecord]):
    """The columns video, frame (the first one) and time_s (the middle of the region's pairs of frames); empty for an image."""
    import pyarrow as pa

    moments = [[images[number].moment for number in one.every_image] for one in regions]
    of_films = [None if None in one else one for one in moments]
    return (
        pa.array([one and one[0].video for one in of_films], pa.int32()),
        pa.array([one and one[0].frames[0] for one in of_films], pa.int32()),
        pa.array([one and round((one[0].time_s + one[-1].time_s) / 2, 3) for one in of_films], pa.float32()),
    )


def save_patches(
    found: PatchEffects,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    picture: Callable[[BinaryIO], Any] | None = None,
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes `path`.patches.csv, .json and/or .parquet and `path`.patches.meta.json, all or none; returns the paths.

    picture: writes `path`.pixels.png. on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    own = {
        "crc32": changes_checksum(found.targets),
        "fills": list(found.fills),
        "floor": found.floor,
        "forwards": found.forwards,
        "regions": region_entries(found.regions),
        "targets": [
            {
                "steps": list(one.steps),
                "text": one.text,
                "probability": one.probability,
                "found": one.found,
                **{name: line(list(getattr(one, name))) for name in ("place", "fill", "route")},
                "top1": line(one.top1.tolist()),
                "differs": line(one.differs.tolist()),
                "top1_texts": texts_by_id(one.top1_texts),
            }
            for one in found.targets
        ],
    }
    tables, formats = {"patches": patch_table(found)}, parse_formats(formats)
    return save_looked(found, PATCHES, path, tables, formats, command, own, picture, on_removed)


def region_entries(regions: Iterable[PictureRegion]) -> list[Any]:
    """The regions as a meta file has them."""
    return [line(_region_entry(one)) for one in regions]


def _region_entry(one: PictureRegion) -> dict[str, Any]:
    entry = vars(one) | {"box": [round(edge, 2) for edge in one.box]}
    return entry if one.images else {name: value for name, value in entry.items() if name != "images"}


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_patches(path: str | os.PathLike) -> PatchEffects:
    """What a run of `pixels` called `path` found, as it was saved. OutputError where the files are not there or do not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    meta = read_meta(beside(stem, PATCHES.main), "patches")
    changes = read_measured(stem, "patches", meta, [len(one["place"]) for one in meta["targets"]])
    return PatchEffects(
        regions=tuple(map(_region_from, meta["regions"])),
        targets=tuple(_target_from(entry, *numbers) for entry, numbers in zip(meta["targets"], changes, strict=True)),
        fills=tuple(meta["fills"]),
        **looked_from(meta),
    )


def _region_from(entry: dict[str, Any]) -> PictureRegion:
    images = tuple(entry.get("images") or ())
    return PictureRegion(
        **entry | {name: tuple(entry[name]) for name in ("box", "size", "positions")} | {"images": images}
    )


def _target_from(entry: dict[str, Any], change: np.ndarray, kl: np.ndarray) -> PatchTarget:
    return PatchTarget(
        **target_from(entry, change, kl),
        place=np.array(entry["place"], dtype=np.int64),
        fill=tuple(entry["fill"]),
        route=tuple(entry["route"]),
        found=entry["found"],
    )
