"""Tables read again: no more of a file than the rows that are expected, and nothing but the types that are expected.

Knows file formats; not what a table means. pyarrow is imported only where it is used.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.results.table_files import beside, checksum, find_table, one_line

LONGEST_HEADER = 2**16  # characters of a CSV file's first line
MOST_COLUMNS = 4096
LONGEST_RECORD = 2**24  # characters of a record of a JSON file
AT_ONCE = 2**20  # characters of a JSON file, of which not more is held
RECORDS_AT_ONCE = 2**14
CHANGES = ("logprob_change", "kl_divergence")  # of each measurement, nats
MOST_LAYERS = 4096  # of a table whose meta file does not say how many

Choose = Callable[[list[str]], list[str]]


def read_numbers(
    path: Path, form: str, dtypes: Mapping[str, Any], n_rows: int, says: str, exactly: bool = True
) -> dict[str, np.ndarray]:
    """The columns of a table by name, each [rows] of its dtype; the other columns are not read. OutputError, also where the
    table has not n_rows, or more than these (exactly: False), which is the most that is read of it. says: what says how many."""
    import pyarrow as pa

    wanted = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
    try:
        table = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}[form](path, wanted, n_rows)
        if len(table) > n_rows:
            raise OutputError(f"{path} has more than the {n_rows:,} rows that {says} says")
        if exactly and len(table) < n_rows:
            raise OutputError(f"{path} is not complete: {len(table):,} rows, expected {n_rows:,} as {says} says")
        if not len(table):
            return {name: np.zeros(0, dtype) for name, dtype in wanted.items()}
        return {name: np.array(_typed(name, table[name], dtype).to_numpy()) for name, dtype in wanted.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error


def read_measured(stem: Path, kind: str, meta: Mapping[str, Any], sizes: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
    """Of each target logprob_change and kl_divergence, float32 of so many rows, out of the table of a kind that the meta file
    belongs to. OutputError, also where its checksum is another."""
    where = beside(stem, f"{kind}.meta.json")
    path, columns = read_floats(stem, kind, where, meta, CHANGES, sum(sizes), "targets")
    found = by_target(columns, sizes)
    check_checksum([column for target in found for column in target], path, where, meta["crc32"])
    return found


def by_target(columns: Sequence[np.ndarray], sizes: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
    """Columns of a table as those of each target, which has so many rows."""
    ends = np.cumsum(sizes)[:-1]
    return list(zip(*(np.split(column, ends) for column in columns), strict=True))


def read_floats(
    stem: Path, table: str, where: Path, meta: Mapping[str, Any], names: Sequence[str], n_rows: int, of: str
) -> tuple[Path, list[np.ndarray]]:
    """(its path, the columns, float32 [n_rows]) of a table that belongs to the meta file `where`. OutputError. of: what says how
    many rows there are."""
    found = find_table(stem, meta["formats"], f"{table}.")
    if found is None:
        raise OutputError(
            f"{where} is there, but its table is not: expected {stem.name}.{table}.csv or the like beside it, as formats says"
        )
    types = dict.fromkeys(names, np.float32)
    return found[0], list(read_numbers(*found, types, n_rows, f"{of} of {where.name}").values())


def check_checksum(columns: Sequence[np.ndarray], path: Path, where: Path, expected: int) -> None:
    """OutputError where a table has not the numbers that its meta file was written with, or lacks one."""
    if checksum(*columns) != expected:
        raise OutputError(f"{path} does not hold the numbers of the run in {where}: its crc32 is another")
    if not all(np.isfinite(column).all() for column in columns):
        raise OutputError(f"{path} lacks a number")


def _typed(name: str, column, dtype: np.dtype):
    """A pyarrow column as the dtype; ValueError where it holds something else. Only floats may be missing, as NaN."""
    import pyarrow as pa

    _check_type(name, column.type, dtype)
    if column.null_count and dtype.kind != "f":
        raise ValueError(f"column {name} is empty in {column.null_count:,} rows")
    return column.cast(pa.from_numpy_dtype(dtype), safe=dtype.kind != "f")


def _check_type(name: str, kind: Any, dtype: np.dtype) -> None:
    from pyarrow import types

    numbers = types.is_integer(kind) or types.is_floating(kind)
    if not {"f": numbers or types.is_null(kind), "b": types.is_boolean(kind)}.get(dtype.kind, numbers):
        raise ValueError(f"column {name} holds {kind}, expected {dtype}")


# --- one format after the other -----------------------------------------------------------------------------------------------


def _all_of(wanted: Mapping[str, Any]) -> Choose:
    """Chooses what is wanted; ValueError where it is not there, or twice."""

    def choose(names: list[str]) -> list[str]:
        for name in wanted:
            if names.count(name) != 1:
                raise ValueError(f"it has {names.count(name) or 'no'} column{'s' * (name in names)} {name}")
        return list(wanted)

    return choose


def _read_parquet(path: Path, wanted: Mapping[str, np.dtype], n_rows: int):
    import pyarrow.parquet as pq

    with open_file(path, TABLE) as opened, pq.ParquetFile(opened) as file:
        names = _all_of(wanted)(file.schema_arrow.names)
        for name in names:
            _check_type(name, file.schema_arrow.field(name).type, wanted[name])
        return read_parquet(file, names, n_rows)


def _read_csv(path: Path, wanted: Mapping[str, np.dtype], n_rows: int):
    import pyarrow as pa

    return read_csv(path, _all_of(wanted), n_rows, {name: pa.from_numpy_dtype(kind) for name, kind in wanted.items()})


def _read_json(path: Path, wanted: Mapping[str, np.dtype], n_rows: int):
    import pyarrow as pa

    def convert(name: str, values: list[Any]):
        return _typed(name, pa.array(values), wanted[name])

    return read_json(path, _all_of(wanted), n_rows, convert)


def read_parquet(file: Any, names: list[str], most: int):
    """Columns of a pyarrow ParquetFile as a pyarrow.Table, read until it has more than `most` rows."""
    import pyarrow as pa

    batches, n_rows = [], 0
    for batch in file.iter_batches(columns=names):
        batches.append(batch)
        n_rows += len(batch)
        if n_rows > most:
            break
    return pa.Table.from_batches(batches) if batches else pa.table({})


def read_csv(path: Path, choose: Choose, most: int, types: Mapping[str, Any], **convert: Any):
    """Columns of a CSV file as a pyarrow.Table, read until it has more than `most` rows. choose: of the names in its first line
    those that are wanted; types: of columns, by name; convert: see pyarrow's ConvertOptions. Errors are pyarrow's, too."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    wanted = choose(_header(path))
    options = pa_csv.ConvertOptions(
        include_columns=wanted, column_types={name: types[name] for name in wanted}, **convert
    )
    batches, n_rows = [], 0
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with open_file(path, TABLE) as file, pa_csv.open_csv(file, parse_options=parse, convert_options=options) as reader:
        for batch in reader:
            batches.append(batch)
            n_rows += len(batch)
            if n_rows > most:
                break
        return pa.Table.from_batches(batches, reader.schema)


def _header(path: Path) -> list[str]:
    """The names in the first line of a CSV file."""
    with io.TextIOWrapper(open_file(path, TABLE), "utf-8-sig", newline="") as file:
        head = io.StringIO(file.read(LONGEST_HEADER), newline="")
    try:
        names = next(csv.reader(head), [])
    except csv.Error as error:
        raise ValueError(f"its first line: {error}") from error
    if not names:
        raise ValueError("it is empty")
    if head.tell() == LONGEST_HEADER or len(names) > MOST_COLUMNS:
        raise OutputError(
            f"the first line of {path} is none of names: more than {LONGEST_HEADER:,} characters or {MOST_COLUMNS:,} columns"
        )
    return names


def read_json(path: Path, choose: Choose, most: int, convert: Callable[[str, list[Any]], Any]):
    """Columns of a list of records as a pyarrow.Table, read until it has more than `most` rows. choose: of the names in the first
    record those that are wanted; convert: the name of a column and some of its values to a pyarrow.Array. OutputError, or an
    error of pyarrow or json."""
    import pyarrow as pa

    records, tables, wanted, n_rows = _records(path), [], [], 0
    while n_rows <= most and (some := list(islice(records, RECORDS_AT_ONCE))):
        wanted = wanted or choose(list(some[0]))
        for number, record in enumerate(some, start=n_rows + 1):
            if missing := [name for name in wanted if name not in record]:
                raise OutputError(f"record {number} of {path} has no {', '.join(missing)}")
        tables.append(pa.table({name: convert(name, [record[name] for record in some]) for name in wanted}))
        n_rows += len(some)
    return pa.concat_tables(tables) if tables else pa.table({})


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list. Python's json takes NaN, which others write."""
    decode = json.JSONDecoder().raw_decode
    no_list = OutputError(f"{path} is not a list of records, one object for each row")
    text, place, before = "", 0, re.compile(r"\s*\[\s*")
    with io.TextIOWrapper(open_file(path, TABLE), "utf-8-sig") as file:
        while True:
            begins = before.match(text, place)
            try:
                if begins is None:
                    raise ValueError
                record, end = decode(text, begins.end())
            except ValueError:
                more = file.read(AT_ONCE)
                if not more:
                    break
                if len(text) - place > LONGEST_RECORD:
                    raise OutputError(
                        f"{path} has a record of more than {LONGEST_RECORD:,} characters, or is no JSON"
                    ) from None
                text, place = text[place:] + more, 0
                continue
            if not isinstance(record, dict):
                raise no_list
            yield record
            place, before = end, re.compile(r"\s*,\s*")
    if not re.fullmatch(r"\s*\[?\s*\]\s*", text[place:]):
        raise (
            no_list
            if not text.lstrip().startswith("[") and not place
            else ValueError("it ends within the list, or is no JSON")
        )
