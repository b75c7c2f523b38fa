"""Meta files: what a run was, as strict JSON beside its tables; one schema for each kind, checked once, on reading.

Knows files; not what is in a result. orjson and pydantic are imported only where they are used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.files import settle
from mask_impact.results.inputs import META, read_file
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


def texts_by_id(texts: Mapping[int, str]) -> Any:
    """Texts of tokens by id, as a line of JSON."""
    return line({str(token): clean_text(text) for token, text in texts.items()})


def meta_bytes(content: dict[str, Any]) -> bytes:
    """The file: strict JSON (what is not finite is null), indented, with every text in it clean."""
    import orjson

    options = _options() | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(jsonable(content), default=str, option=options)


def _options() -> int:
    import orjson

    return orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def read_meta(path: Path, kind: str = "result") -> dict[str, Any]:
    """The content of a meta file, which has the schema of its kind (one of `schema.SCHEMAS`); OutputError. All that is made of
    it may rely on the schema."""
    settle(path)
    try:
        content = read_file(path, META)
    except FileNotFoundError as error:
        raise OutputError(f"no result there: {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    return checked_meta(content, str(path), kind)


def checked_meta(content: bytes | str, path: str, kind: str) -> dict[str, Any]:
    """What the content of a meta file says, see `read_meta`; path: where it is from."""
    import orjson

    try:
        meta = orjson.loads(content)
    except ValueError as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        said = repr(version)[:60]
        raise OutputError(f"{path} has schema version {said}, this program reads version {SCHEMA_VERSION}")
    from pydantic import ValidationError

    from mask_impact.results.schema import SCHEMAS

    try:
        SCHEMAS[kind].model_validate(meta)
    except ValidationError as error:
        problem = _problem(error.errors(include_url=False, include_input=False)[0])
        raise OutputError(f"{path} is not the meta file of a result: {problem}") from error
    return meta


def _problem(first: Any) -> str:
    """A fault that pydantic found, with its field first."""
    where = ".".join(str(part)[:60] for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        return f"{where} is missing"
    what = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"][:1].lower() + first["msg"][1:]
    return " ".join((f"{where}: {what}" if where else what).split())[:300]
