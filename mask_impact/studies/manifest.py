"""`NAME/manifest.json`: what a study is of, and which tables it has with which columns.

Written when the first part is there, and again at the end. Its fingerprint is of what all prompts have in common: model,
settings, code version; each prompt's own digest and settings are in the table of prompts. Knows where the tables lie; not
what they mean.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import mask_impact
from mask_impact.analyses.settings import RunSettings, of_class
from mask_impact.errors import OutputError
from mask_impact.results.files import write_files
from mask_impact.results.inputs import META, TABLE, parse_json
from mask_impact.results.meta import meta_bytes
from mask_impact.results.remote import Place, Remote, is_there, opened
from mask_impact.results.study_folder import MANIFEST, PROMPTS, TABLES, parts_of
from mask_impact.results.table_files import one_line

VERSION = 2  # of the folder's layout
KEY = "prompt_name"
NO_NUMBERS = {"allow_remote", "max_cost", "batch_size"}  # settings on which no number depends


def stored(settings: RunSettings) -> dict[str, Any]:
    """The settings on which a number may depend, as JSON types."""
    return {name: value for name, value in asdict(settings).items() if name not in NO_NUMBERS}


def about(identity: Any, settings: RunSettings, reduce: str, own: Collection[str] = ()) -> dict[str, Any]:
    """What all prompts have in common, as JSON types, with its fingerprint. identity: a `digest.Identity`.

    Settings that a row may have of its own (a dataset's columns, and `own`) are left out, and so are the times of the model's
    files, which differ from machine to machine.
    """
    import torch
    import transformers

    of_rows = {one.name for one in of_class(RunSettings) if one.column} | {*own}
    found = {
        "model": {
            "name": identity.name,
            "revision": identity.revision,
            "weights": [list(file[:2]) for file in identity.weights],
            "dtype": identity.dtype,
            "device": identity.device,
        },
        "settings": {name: value for name, value in stored(settings).items() if name not in of_rows},
        "reduce": reduce,
        "code": {
            "mask_impact": mask_impact.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    fingerprint = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return {"layout": VERSION, "fingerprint": fingerprint} | json.loads(json.dumps(found))


def write_manifest(folder: Place, common: dict[str, Any], n_prompts: int, complete: bool) -> None:
    """The file, of what is in the folder. n_prompts: in the study, as far as they were read; complete: whether all parts are
    there. OutputError."""
    content = common | {
        "key": KEY,
        "complete": complete,
        "n_prompts": n_prompts,
        "tables": {table: about for table in TABLES if (about := _table(folder, table)) is not None},
    }
    data = meta_bytes(content)
    if isinstance(folder, Remote):
        (folder / MANIFEST).write(lambda file: file.write(data))
    else:
        write_files({folder / MANIFEST: lambda file: file.write(data)})


def _table(folder: Place, table: str) -> dict[str, Any] | None:
    """A table's parts and columns, from the first part; None where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = parts_of(folder, table)
    if not parts:
        return None
    try:
        with opened(parts[0], TABLE) as file:
            schema = pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException):  # damaged: it is done again
        return {"parts": len(parts), "columns": {}}
    plain = (field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema)
    return {"parts": len(parts), "columns": dict(zip(schema.names, map(str, plain), strict=True))}


def read_manifest(folder: Place) -> dict[str, Any] | None:
    """What the manifest says; None where there is none. OutputError for one that can't be read, or is of a later version."""
    path = folder / MANIFEST
    if not is_there(path):
        return None
    try:
        with opened(path, META) as file:
            content = parse_json(file.read())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    layout = content.get("layout") if isinstance(content, dict) else None
    if layout != VERSION:
        raise OutputError(f"{path} has layout {str(layout)[:20]}, this program reads {VERSION}")
    return content


def changed(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What of a study's common part differs from what the manifest says of an earlier run, in a few words; None where nothing
    does."""
    if before.get("fingerprint") == now["fingerprint"]:
        return None
    found = []
    for part in ("model", "settings", "code"):
        old, new = before.get(part), now[part]
        old = old if isinstance(old, dict) else {}
        known = old if part == "settings" else new  # some may have been the prompts' own
        found += [
            f"{name} was {old.get(name)}, is {value}"
            for name, value in new.items()
            if name in known and old.get(name) != value
        ]
    if before.get("reduce") != now["reduce"]:
        found.append(f"reduce was {before.get('reduce')}, is {now['reduce']}")
    return "; ".join(found)[:300] or None


def n_complete(folder: Place) -> int:
    """How many parts are known as complete."""
    return len(parts_of(folder, PROMPTS))
