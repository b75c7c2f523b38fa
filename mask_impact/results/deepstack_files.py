"""`NAME.deepstack.*`: what each part of an image's features does to an answer, as a table and a meta file. Prints nothing."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget
from mask_impact.results.files import without_suffix
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes, texts_by_id
from mask_impact.results.names import DEEPSTACK
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import beside, checksum, parse_formats, table_writers, texts_column
from mask_impact.results.token_meta import image_entry, token_entries

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
    numbers = (getattr(one, name) for one in found.targets for name in ("logprob_change", "kl_divergence"))
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "n_prompt": found.n_prompt,
        "formats": list(formats),
        "crc32": checksum(*numbers),
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
            }
            for one in found.targets
        ],
        "answers": [{"parts_kept": found.kept(number), "text": text} for number, text in found.answers.items()],
        "images": [image_entry(image) for image in found.images],
        "tokens": [line(entry) for entry in token_entries(found.tokens, found.images)],
    }
