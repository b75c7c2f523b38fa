"""Meta files: what a run was, as strict JSON beside its tables; one schema for each kind, checked once, on reading.

Knows files; not what is in a result. orjson and pydantic are imported only where they are used.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.files import settle
from mask_impact.results.table_files import clean_text, one_line

SCHEMA_VERSION = 1


def jsonable(value: Any) -> Any:
    """The value with every text in it clean. (orjson itself writes what is not finite as null.)"""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {jsonable(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def as_list(array: np.ndarray) -> list:
    """An array as lists: orjson takes only arrays that are contiguous and of native byte order."""
    return array.tolist()


def line(value: Any) -> Any:
    """A value that stands on one line of an indented file."""
    import orjson

    return orjson.Fragment(orjson.dumps(value, default=as_list, option=_options()))


def meta_bytes(content: dict[str, Any]) -> bytes:
    """The file: strict JSON (what is not finite is null), indented, with every text in it clean."""
    import orjson

    options = _options() | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(jsonable(content), default=str, option=options)


def _options() -> int:
    import orjson

    return orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def read_meta(path: Path, schema: Callable[[], Any] | None = None) -> dict[str, Any]:
    """The content of a meta file, checked against the pydantic model that `schema` gives (None: a result's); OutputError."""
    settle(path)
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(f"no result there: {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise OutputError(f"{path} has schema version {version!r}, this program reads version {SCHEMA_VERSION}")
    from pydantic import ValidationError

    try:
        (schema or _schema)().model_validate(meta)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].lower()
        problem = f"{where} is missing" if first["type"] == "missing" else f"{where}: {what}"
        raise OutputError(f"{path} is not the meta file of a result: {problem}") from error
    return meta


@cache
def _schema() -> Any:
    """The schema of a result's meta file. Arrays are lists here; their lengths are checked when the records are made."""
    from pydantic import BaseModel

    class Effect(BaseModel):
        floor: list[float]
        top1_texts: dict[str, str]
        groups: list[Any] | None = None
        likeliest: int | None = None
        rounding: list[float] | None = None
        crc32: int | None = None

    class Step(BaseModel):
        step: int
        token_id: int
        token_text: str
        candidates: list[dict[str, Any]]
        seconds: float
        self_check: list[Any]
        noise_floor: list[Any]
        positions: list[Any] | None
        attention: list[Any]
        baseline_norm: list[Any]
        distances_crc32: int
        effect: Effect | None = None

    class Meta(BaseModel):
        schema_version: int
        run: dict[str, Any]
        generated_text: str
        n_prompt: int
        n_layers: int
        n_rows: int
        variants: list[str]
        formats: list[str]
        distance_dtype: str
        sinks: list[int]
        answer_crc32: int | None = None
        steps: list[Step]
        images: list[dict[str, Any]]
        tokens: list[dict[str, Any]]

    return Meta
