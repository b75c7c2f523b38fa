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
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes, read_meta, texts_by_id
from mask_impact.results.names import DEEPSTACK
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import beside, changes_checksum, parse_formats, table_writers, texts_column
from mask_impact.results.table_reading import read_measured
from mask_impact.results.token_meta import image_entry, image_from, token_entries, tokens_from

DEFAULT_FORMATS = ("csv", "json")
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
        np.full(n, target.steps[0], dtype=np.int32),
        texts_column([target.text] * n),
        texts_column([found.region] * n),
        texts_column([found.baseline] * n),
        texts_column(map(found.kept, range(n))),
        target.logprob_change + np.float32(0),  # -0.0 becomes 0.0
        target.kl_divergence + np.float32(0),
        texts_column(target.top1_texts[int(token)] for token in target.top1),
        pa.array(target.differs),
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
    path = Path(path)
    stem, table, formats = path.parent / without_suffix(path.name), deepstack_table(found), parse_formats(formats)
    text = meta_bytes(_meta(found, formats, command))
    writers = table_writers({"deepstack": table}, formats)
    writers[DEEPSTACK.main] = lambda file: file.write(text)
    question = asked(found.meta, [image.source for image in found.images])
    on_removed(write_kinds(stem, [DEEPSTACK], writers, question))
    return tuple(beside(stem, suffix) for suffix in writers)


def _meta(found: DeepstackEffects, formats: tuple[str, ...], command: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "n_prompt": found.n_prompt,
        "formats": list(formats),
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
        "images": [image_entry(image) for image in found.images],
        "tokens": [line(entry) for entry in token_entries(found.tokens, found.images)],
    }


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
        tokens=tokens_from(meta["tokens"]),
        images=tuple(map(image_from, meta["images"])),
        n_prompt=meta["n_prompt"],
        generated_text=meta["generated_text"],
        floor=meta["floor"],
        forwards=meta["forwards"],
        meta=meta["run"],
    )


def _target_from(entry: dict[str, Any], change: np.ndarray, kl: np.ndarray) -> DeepstackTarget:
    return DeepstackTarget(
        steps=tuple(entry["steps"]),
        text=entry["text"],
        probability=entry["probability"],
        logprob_change=change,
        kl_divergence=kl,
        top1=np.array(entry["top1"], dtype=np.int64),
        top1_texts={int(token): text for token, text in entry["top1_texts"].items()},
        differs=np.array(entry["differs"], dtype=bool),
        shapley=np.array(entry["shapley"], dtype=np.float64),
        interaction=np.array(entry["interaction"], dtype=np.float64),
    )
