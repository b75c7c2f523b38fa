"""`NAME.patches.*`: what replacing pixels does to an answer, as a table, a picture and a meta file, there and back. Draws
nothing."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.results.files import without_suffix
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes, read_meta, texts_by_id
from mask_impact.results.names import PATCHES
from mask_impact.results.patches import PatchEffects, PatchTarget, PictureRegion
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import beside, changes_checksum, parse_formats, table_writers, texts_column
from mask_impact.results.table_reading import read_measured
from mask_impact.results.token_meta import image_entry, image_from, token_entries, tokens_from

DEFAULT_FORMATS = ("csv", "json")
PATCH_COLUMNS = (
    "step", "target", "image", "row", "column", "size_px", "level", "region", "fill", "route", "logprob_change",
    "kl_divergence", "top1_token", "top1_changed",
)  # fmt: skip


def patch_table(found: PatchEffects):
    """A pyarrow.Table with PATCH_COLUMNS: a row for each target, region, fill and route."""
    import pyarrow as pa

    return pa.concat_tables([_of_target(found, target) for target in found.targets]).unify_dictionaries()


def _of_target(found: PatchEffects, target: PatchTarget):
    import pyarrow as pa

    n = len(target.place)
    columns = (
        np.full(n, target.steps[0], dtype=np.int32),
        texts_column([target.text] * n),
        *region_columns([found.regions[place] for place in target.place]),
        texts_column(fill or None for fill in target.fill),
        texts_column(target.route),
        target.logprob_change + np.float32(0),  # -0.0 becomes 0.0
        target.kl_divergence + np.float32(0),
        texts_column(target.top1_texts[int(token)] for token in target.top1),
        pa.array(target.differs),
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
    path = Path(path)
    stem, table, formats = path.parent / without_suffix(path.name), patch_table(found), parse_formats(formats)
    text = meta_bytes(_meta(found, formats, command))
    writers = table_writers({"patches": table}, formats)
    if picture is not None:
        writers["pixels.png"] = picture
    writers[PATCHES.main] = lambda file: file.write(text)
    question = asked(found.meta, [image.source for image in found.images])
    on_removed(write_kinds(stem, [PATCHES], writers, question))
    return tuple(beside(stem, suffix) for suffix in writers)


def _meta(found: PatchEffects, formats: tuple[str, ...], command: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "n_prompt": found.n_prompt,
        "formats": list(formats),
        "crc32": changes_checksum(found.targets),
        "fills": list(found.fills),
        "floor": found.floor,
        "forwards": found.forwards,
        "regions": [line(vars(one) | {"box": [round(edge, 2) for edge in one.box]}) for one in found.regions],
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
        "images": [image_entry(image) for image in found.images],
        "tokens": [line(entry) for entry in token_entries(found.tokens, found.images)],
    }


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
        tokens=tokens_from(meta["tokens"]),
        images=tuple(map(image_from, meta["images"])),
        n_prompt=meta["n_prompt"],
        generated_text=meta["generated_text"],
        floor=meta["floor"],
        forwards=meta["forwards"],
        meta=meta["run"],
    )


def _region_from(entry: dict[str, Any]) -> PictureRegion:
    return PictureRegion(**entry | {name: tuple(entry[name]) for name in ("box", "size", "positions")})


def _target_from(entry: dict[str, Any], change: np.ndarray, kl: np.ndarray) -> PatchTarget:
    return PatchTarget(
        steps=tuple(entry["steps"]),
        text=entry["text"],
        probability=entry["probability"],
        place=np.array(entry["place"], dtype=np.int64),
        fill=tuple(entry["fill"]),
        route=tuple(entry["route"]),
        logprob_change=change,
        kl_divergence=kl,
        top1=np.array(entry["top1"], dtype=np.int64),
        top1_texts={int(token): text for token, text in entry["top1_texts"].items()},
        differs=np.array(entry["differs"], dtype=bool),
        found=entry["found"],
    )
