"""Results from files, whoever made them: this program's own with their meta file, or a table of the seven columns alone.

A bare table has distances, positions and token texts and nothing else; `foreign_tables` makes a Result of it, and every guess
is a line in `meta["notices"]`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.files import name_and_kind, without_suffix
from mask_impact.results.foreign_tables import GENERATED_TEXT, PROMPT_NAME, Grid, make_result
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.results.meta import read_meta
from mask_impact.results.records import Result
from mask_impact.results.store import load_result
from mask_impact.results.study_folder import IMPACT, parts_of
from mask_impact.results.table_files import READ_ORDER
from mask_impact.results.table_reading import read_csv, read_json, read_parquet
from mask_impact.results.tables import COLUMNS

MOST_ROWS = 50_000_000  # of a table that is read whole, or of one prompt in the parts of a dataset
OTHERS = {
    "flows": "knockouts",
    "whatif": "answers without some tokens",
    "answer": "what an answer used",
    "patches": "what replacing pixels does",
    "deepstack": "what the parts of an image's features do",
    "tower": "what a vision tower's layers read",
}


class Results(Mapping[str, Result]):
    """The results of one source by prompt name, in the file's order; each is made when it is asked for.

    source: how it was named. makers: those of a dataset's folder also take grids.
    """

    def __init__(self, source: str, makers: dict[str, Callable[..., Result]]) -> None:
        self.source = source
        self._makers = makers

    def __getitem__(self, name: str) -> Result:
        return self._makers[name]()

    def with_grids(self, name: str, grids: Sequence[Grid] | None) -> Result:
        """A prompt of a dataset's folder, the grids of its images known."""
        return self._makers[name](grids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def read_results(
    path: str | os.PathLike, grids: Sequence[Grid] | None = None, prompt_name: str | None = None
) -> Results:
    """What `path` holds: one result, or several where it has a column `prompt_name`.

    path: the name of a stored result (with or without the suffix of one of its files), a .csv, .json or .parquet table
    of others, or a folder of part-*.parquet. A table beside its own meta file is read with it. grids: (rows, columns) of
    the images in a table that has no meta file, one for each image or one for all; None guesses. prompt_name: only this
    prompt. Raises OutputError for what cannot be read, UsageError for a grid or prompt name that the file does not have.
    """
    path = Path(path)
    if (kind := name_and_kind(path.name)[1]) in OTHERS:
        raise OutputError(f"{path} has {OTHERS[kind]}, not a result of distances; `mask-impact report {path}` shows it")
    results = _open(path, grids)
    if prompt_name is None:
        return results
    if prompt_name not in results:
        some = ", ".join(repr(name) for name in list(results)[:5]) + (", ..." if len(results) > 5 else "")
        raise UsageError(f"{path} has no prompt {prompt_name!r}; it has {some}")
    return Results(results.source, {prompt_name: lambda: results[prompt_name]})


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def _open(path: Path, grids: Sequence[Grid] | None) -> Results:
    stem = path.parent / without_suffix(path.name) if path.name else path
    suffix = path.name[len(stem.name) :].lower().removeprefix(".effect") if path.name else ""  # which a result also has
    meta = stem.with_name(f"{stem.name}.meta.json") if path.name else path
    if meta.is_file() and (suffix in ("", ".meta", ".meta.json") or _names_format(meta, suffix[1:])):
        if grids:
            raise UsageError(f"{meta} has the grids of the images; `grid` is for tables that have no meta file")
        return Results(str(path), {stem.name: lambda: load_result(stem)})
    if path.is_dir():
        return _dataset(path, grids)
    if not suffix and not path.exists():
        found = [stem.with_name(f"{stem.name}.{form}") for form in READ_ORDER]
        path = next((one for one in found if one.is_file()), path)
        suffix = path.suffix.lower()
    if not path.exists():
        raise OutputError(f"no result there: {path} does not exist")
    if suffix[1:] not in TABLE_READERS:
        raise OutputError(f"{path} is not a table that can be read; accepted are .csv, .json and .parquet")
    return _from_table(str(path), stem.name, _read(path, TABLE_READERS[suffix[1:]]), grids)


def _names_format(meta: Path, form: str) -> bool:
    """Whether the table is one of those that were written with the meta file (else it is from elsewhere). What is wrong
    with a meta file is said when the result is loaded."""
    try:
        return form in read_meta(meta)["formats"]
    except OutputError:
        return True


def _read(path: Path, reader: Callable[[Path], Any]):
    import pyarrow as pa

    try:
        table = reader(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise OutputError(f"{path} cannot be read as {path.suffix[1:].upper()}: {reason}") from error
    return _checked(table, str(path))


def _dataset(folder: Path, grids: Sequence[Grid] | None) -> Results:
    """The parts of a Parquet dataset; the rows of a prompt are read when it is asked for."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    parts = parts_of(folder, IMPACT, True) or parts_of(folder, IMPACT)
    if not parts:
        raise OutputError(f"{folder} is a folder without part-*.parquet; give a result's name or a table")
    try:
        for part in parts:
            open_file(part, TABLE).close()
        dataset = ds.dataset([str(part) for part in parts], format="parquet")
        wanted = _present(dataset.schema.names, str(folder))
        if PROMPT_NAME not in wanted:
            return _from_table(str(folder), folder.name, _rows_of(dataset, wanted, str(folder)), grids)
        names: dict[str, None] = {}
        for batch in dataset.to_batches(columns=[PROMPT_NAME]):
            names |= dict.fromkeys(pc.unique(pc.drop_null(batch[PROMPT_NAME])).cast(pa.string()).to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not names:
        raise OutputError(f"{folder} has no rows")

    def read(name: str, grids: Sequence[Grid] | None) -> Result:
        source = f"{folder}, prompt {name!r}"
        return make_result(
            _rows_of(dataset, wanted, source, pc.field(PROMPT_NAME).cast(pa.string()) == name), source, grids
        )

    return Results(str(folder), {name: lambda known=grids, name=name: read(name, known) for name in names})


def _rows_of(dataset: Any, columns: list[str], source: str, filter: Any = None):
    import pyarrow as pa

    try:
        table = dataset.scanner(columns=columns, filter=filter).head(MOST_ROWS + 1)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"{source} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return _checked(table, source)


def _checked(table: Any, source: str):
    """The table; OutputError where it has no rows, or too many."""
    if not len(table):
        raise OutputError(f"{source} has no rows")
    if len(table) > MOST_ROWS:
        raise OutputError(
            f"{source} has more than {MOST_ROWS:,} rows; give a dataset's folder, which is read by prompt"
        )
    return table


def _from_table(source: str, name: str, table, grids: Sequence[Grid] | None) -> Results:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = _present(table.schema.names, source)
    if PROMPT_NAME not in wanted:
        return Results(source, {name: lambda: make_result(table, source, grids)})
    column = table[PROMPT_NAME].cast(pa.string()).fill_null("")

    def read(prompt: str) -> Result:
        return make_result(table.filter(pc.equal(column, prompt)), f"{source}, prompt {prompt!r}", grids)

    return Results(source, {prompt: lambda prompt=prompt: read(prompt) for prompt in pc.unique(column).to_pylist()})


# ---------------------------------------------------------------------------------------------------------------------
# Reading tables


def _present(names: Sequence[str], source: str) -> list[str]:
    """Those columns that are used; OutputError where one that is needed is missing."""
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise OutputError(
            f"{source} has no column{'s' * (len(missing) > 1)} {', '.join(missing)}; needed are {', '.join(COLUMNS)}"
        )
    return [*COLUMNS, *(name for name in (PROMPT_NAME, GENERATED_TEXT) if name in names)]


def _types() -> dict[str, Any]:
    import pyarrow as pa

    text = pa.string()
    kinds = (pa.int64(), pa.int64(), text, pa.int64(), text, pa.float32(), pa.float32(), text, text)
    return dict(zip((*COLUMNS, PROMPT_NAME, GENERATED_TEXT), kinds, strict=True))


def _read_csv(path: Path):
    return read_csv(path, partial(_present, source=str(path)), MOST_ROWS, _types(), strings_can_be_null=False)


def _read_json(path: Path):
    import pyarrow as pa

    types = _types()

    def convert(name: str, values: list[Any]):
        return pa.array(values).cast(types[name], safe=types[name] != pa.float32())

    return read_json(path, partial(_present, source=str(path)), MOST_ROWS, convert)


def _read_parquet(path: Path):
    import pyarrow.parquet as pq

    with open_file(path, TABLE) as opened, pq.ParquetFile(opened) as file:
        return read_parquet(file, _present(file.schema_arrow.names, str(path)), MOST_ROWS)


TABLE_READERS: dict[str, Callable[[Path], Any]] = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}
