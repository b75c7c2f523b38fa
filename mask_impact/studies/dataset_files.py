"""Rows of a .jsonl, .csv or .parquet file, read as they are needed.

Each reader yields (0, columns), and then (number, row as a mapping, or why there is none) for each row.
"""

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mask_impact.errors import InputError, described
from mask_impact.results.inputs import DATASET, LINE, MIB, bounded_lines, open_file
from mask_impact.studies.schema import RowLevel

MAX_FIELD = 2**17  # characters of a CSV field: behind a quote that is left open the rest of the file is one


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        yield 0, ["prompt"]  # each line has columns of its own
        for number in count(1):
            line = file.readline(LINE)
            if not line:
                return
            if len(line) == LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE)
                yield number, f"the line is longer than {LINE // MIB} MiB"
            elif not line.isspace():
                yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json_object(line: bytes) -> Any:
    try:
        row = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the line is not UTF-8; save the file as UTF-8"
    except orjson.JSONDecodeError as error:
        return f'column {error.colno} of the line is no JSON: {error.msg}; {{"prompt": "..."}} is accepted'
    return row if isinstance(row, dict) else f"the line must be a JSON object, not {described(row)}"


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_FIELD)  # which is the process's: what else reads CSV here sets its own
    with io.TextIOWrapper(_opened(path), "utf-8-sig", "surrogateescape", newline="") as file:
        # strict: a quote that is left open is an error, not the rest of the file
        lines = csv.reader(bounded_lines(file), strict=True)
        columns: list[str] = []
        try:
            for number, row in enumerate(filter(None, lines)):
                columns = columns or row
                if not "".join(row).isascii() and re.search("[\ud800-\udfff]", "".join(row)):
                    yield number, "the row is not UTF-8; save the file as UTF-8"
                elif len(row) != len(columns):
                    yield number, f"{len(row)} fields, where the first line has {len(columns)}; put commas in quotes"
                else:
                    yield number, _typed(dict(zip(columns, row, strict=True))) if number else columns
        except csv.Error as error:
            raise InputError(f"dataset '{path}' is no CSV, line {lines.line_num}: {error}; check its quotes") from None


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """In the columns that are ours, text as what it stands for."""
    own = {key: row[key] for key in RowLevel.model_fields if row.get(key) or (key == "prompt" and key in row)}
    typed: dict[str, Any] = {key: value for key, value in row.items() if key not in RowLevel.model_fields} | own
    for key in ("num_tokens", "max_image_resolution", "video_frames"):
        if number := re.fullmatch(r"([-+]?[0-9]{1,15})(\.0*)?", own.get(key, "").strip()):
            typed[key] = int(number[1])
    if re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,9}", own.get("video_fps", "").strip()):
        typed["video_fps"] = float(own["video_fps"])
    for key in ("image", "video"):
        if own.get(key, "").startswith("["):
            with suppress(orjson.JSONDecodeError):  # then it is a path
                typed[key] = orjson.loads(own[key])
    return typed


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with _opened(path) as file, parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as table:
            yield 0, table.schema_arrow.names  # pre_buffer would read all row groups before the first row
            batches = table.iter_batches(batch_size=256)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"dataset '{path}' can't be read as Parquet: {' '.join(str(error).split())}") from None


def _opened(path: Path) -> BinaryIO:
    try:
        file = open_file(path, DATASET)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"dataset '{path}' can't be read: {getattr(error, 'strerror', error)}; give a file") from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise InputError(f"dataset '{path}' is empty; give rows with a prompt")
    return file


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
