"""What the tables and meta files of pixels, parts of features and the vision tower have in common, there and back."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.results.looked import LookedEffects, LookedTarget
from mask_impact.results.meta import SCHEMA_VERSION, line
from mask_impact.results.names import Kind
from mask_impact.results.siblings import asked, save_kind
from mask_impact.results.table_files import texts_column
from mask_impact.results.token_meta import image_entry, image_from, token_entries, tokens_from

DEFAULT_FORMATS = ("csv", "json")


def target_columns(target: LookedTarget):
    """The columns step and target."""
    n = len(target.logprob_change)
    return np.full(n, target.steps[0], dtype=np.int32), texts_column([target.text] * n)


def change_columns(target: LookedTarget):
    """The columns logprob_change, kl_divergence, top1_token, top1_changed."""
    import pyarrow as pa

    return (
        target.logprob_change + np.float32(0),  # -0.0 becomes 0.0
        target.kl_divergence + np.float32(0),
        texts_column(target.top1_texts[int(token)] for token in target.top1),
        pa.array(target.differs),
    )


def save_looked(
    found: LookedEffects,
    kind: Kind,
    path: str | PathLike,
    tables: Mapping[str, Any],
    formats: tuple[str, ...],
    command: str,
    own: Mapping[str, Any],
    picture: Callable[[BinaryIO], Any] | None,
    on_removed: Callable[[Iterable[Path]], Any],
) -> tuple[Path, ...]:
    """See `save_kind`. own: what the meta file has of this kind."""
    meta = looked_meta(found, formats, command, own)
    question = asked(found.meta, [image.source for image in found.images])
    return save_kind(kind, path, tables, meta, question, picture, on_removed)


def looked_meta(found: LookedEffects, formats: tuple[str, ...], command: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """All of the meta file. own: what it has of its kind."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "n_prompt": found.n_prompt,
        "formats": list(formats),
        **own,
        "images": [image_entry(image) for image in found.images],
        "tokens": [line(entry) for entry in token_entries(found.tokens, found.images)],
    }


def looked_from(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of LookedEffects that a meta file has."""
    return {
        "tokens": tokens_from(meta["tokens"]),
        "images": tuple(map(image_from, meta["images"])),
        "n_prompt": meta["n_prompt"],
        "generated_text": meta["generated_text"],
        "floor": meta["floor"],
        "forwards": meta["forwards"],
        "meta": meta["run"],
    }


def target_from(entry: Mapping[str, Any], change: np.ndarray, kl: np.ndarray) -> dict[str, Any]:
    """The fields of LookedTarget, from an entry of a meta file and what its table has."""
    return {
        "steps": tuple(entry["steps"]),
        "text": entry["text"],
        "probability": entry["probability"],
        "logprob_change": change,
        "kl_divergence": kl,
        "top1": np.array(entry["top1"], dtype=np.int64),
        "top1_texts": {int(token): text for token, text in entry["top1_texts"].items()},
        "differs": np.array(entry["differs"], dtype=bool),
    }
