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
    looked_meta,
    target_columns,
    target_from,
)
from mask_impact.results.meta import line, meta_bytes, read_meta, texts_by_id
from mask_impact.results.names import PATCHES
from mask_impact.results.patches import PatchEffects, PatchTarget, PictureRegion
from mask_impact.results.region_images import planes_of, read_shapes
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import beside, changes_checksum, parse_formats, table_writers, texts_column
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
    """Writes `path`.patches.csv, .json and/or .parquet and `path`.patches.meta.json, all or none; `path`.patches.regions.png
    where regions are no rectangles. Returns the paths.

    picture: writes `path`.pixels.png. on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    writers = patch_writers(found, parse_formats(formats), command, picture)
    on_removed(write_kinds(stem, [PATCHES], writers, asked(found.meta, [image.source for image in found.images])))
    return tuple(beside(stem, suffix) for suffix in writers)


def patch_writers(
    found: PatchEffects, formats: Iterable[str], command: str = "", picture: Callable[[BinaryIO], Any] | None = None
) -> dict[str, Callable[[BinaryIO], Any]]:
    """What writes each file, by its suffix."""
    formats = tuple(formats)
    meta = meta_bytes(looked_meta(found, formats, command, _own_meta(found)))
    writers = table_writers({"patches": patch_table(found)}, formats)
    if (planes := planes_of(found.regions, found.shapes)) is not None:
        writers[PATCHES.others[1]] = planes.write
    if picture is not None:
        writers[PATCHES.others[0]] = picture
    return writers | {PATCHES.main: lambda file: file.write(meta)}


def _own_meta(found: PatchEffects) -> dict[str, Any]:
    planes = planes_of(found.regions, found.shapes)
    return {
        **({} if planes is None else {"shapes": planes.entry}),
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
    regions = tuple(map(region_from, meta["regions"]))
    shapes = {} if meta.get("shapes") is None else read_shapes(stem, meta["shapes"], regions)
    return PatchEffects(
        regions=regions,
        shapes=shapes,
        targets=tuple(_target_from(entry, *numbers) for entry, numbers in zip(meta["targets"], changes, strict=True)),
        fills=tuple(meta["fills"]),
        **looked_from(meta),
    )


def region_from(entry: dict[str, Any]) -> PictureRegion:
    """A region as it was, of its entry in a meta file."""
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
