"""Tables as files, whatever is in them: written as CSV, JSON or Parquet, and found again.

Knows file formats; not what a table means. pyarrow and orjson are imported only where they are used.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import UsageError
from mask_impact.results.names import FORMATS

READ_ORDER = ("parquet", "csv", "json")  # fastest first; all hold the same numbers


def parse_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """`"csv,parquet"` or a sequence of names -> formats in the order of FORMATS, each once; UsageError for others."""
    names = [part.strip().lower() for part in (formats.split(",") if isinstance(formats, str) else formats)]
    unknown = sorted(set(names) - set(FORMATS))
    if unknown or not names:
        problem = f"unknown output format {unknown[0]!r}" if unknown else "no output format was given"
        raise UsageError(f"{problem}; accepted are {', '.join(FORMATS)}")
    return tuple(known for known in FORMATS if known in names)


def clean_text(text: str) -> str:
    """The text with lone surrogates (bytes of the command line that are not UTF-8) as U+FFFD: files are UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def texts_column(values: Iterable[str | None]):
    """Texts as a pyarrow.Array that holds each of them once."""
    import pyarrow as pa

    return pa.array([None if one is None else clean_text(one) for one in values], pa.string()).dictionary_encode()


def beside(stem: Path, suffix: str) -> Path:
    """The file of a result called stem."""
    return stem.with_name(f"{stem.name}.{suffix}")  # not with_suffix: a name may contain dots


def checksum(*arrays: np.ndarray) -> int:
    """CRC-32 of the arrays' values in little-endian bytes: tells whether a table belongs to its meta file."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(flat(array).astype(array.dtype.newbyteorder("<"), copy=False), checksum)
    return checksum


def changes_checksum(targets: Iterable[Any]) -> int:
    """The same, of a table of targets that have a `logprob_change` and a `kl_divergence`."""
    return checksum(*(getattr(one, name) for one in targets for name in ("logprob_change", "kl_divergence")))


def one_line(error: BaseException) -> str:
    """What went wrong, short enough for a message."""
    told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(told.split())[:200]


def table_writers(tables: Mapping[str, Any], formats: Iterable[str]) -> dict[str, Callable[[BinaryIO], Any]]:
    """What writes each of the tables in each of the formats, by suffix. tables: by what stands before the format in it."""
    return {
        f"{name}.{form}": lambda file, table=table, form=form: write_table(table, form, file)
        for name, table in tables.items()
        for form in formats
    }


def write_table(table, form: str, file: BinaryIO) -> None:
    """The table as csv, json (a list of records, one on each line) or parquet."""
    import pyarrow as pa

    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
    elif form == "csv":
        import pyarrow.csv as pa_csv

        plain = pa.schema(
            [(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
        )
        pa_csv.write_csv(table.cast(plain), file)
    else:
        import orjson

        # float32 as numpy's, which orjson writes with the digits that float32 has.
        columns = {
            name: list(column.to_numpy()) if column.type == pa.float32() else column.to_pylist()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        lines = (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows)
        file.write(b"[\n" + b",\n".join(lines) + b"\n]\n")


def find_table(stem: Path, formats: Iterable[str], prefix: str = "") -> tuple[Path, str] | None:
    """The table of a result that is read fastest, among those of the formats that are there, and its format."""
    present = [form for form in READ_ORDER if form in formats and beside(stem, prefix + form).is_file()]
    return (beside(stem, prefix + present[0]), present[0]) if present else None


def flat(distances: np.ndarray) -> np.ndarray:
    """The values one behind the other, as every file has them."""
    return distances.reshape(-1) + 0.0  # -0.0 becomes 0.0, which every reader of every format gives back
