"""The writers of a result's distances, which may be millions of rows: no Python object is made for a row.

Numbers are written with as many digits as give back the same float32 (float64).
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from mask_impact.results.records import Result
from mask_impact.results.table_files import clean_text, flat
from mask_impact.results.tables import COLUMNS, step_tables

ROWS_PER_CHUNK = 8192  # text of a chunk is about 1 MB and stays in cache


def _write_csv(result: Result, file: BinaryIO) -> None:
    file.write((",".join(COLUMNS) + "\n").encode())
    for rows in _row_texts(
        result,
        head=lambda step, layer: f"{step},{layer},",
        token=lambda text, position: f"{_csv_field(text)},{position},",
        variant=lambda name: f"{name},",
        between=",",
        end="\n",
    ):
        file.write(rows)


def _write_json(result: Result, file: BinaryIO) -> None:
    """A list of records, one on each line."""
    chunks = _row_texts(
        result,
        head=lambda step, layer: f',\n{{"generation_step":{step},"layer":{layer},"token_masked":',
        token=lambda text, position: f'{json.dumps(text, ensure_ascii=False)},"token_position":{position},"variant":',
        variant=lambda name: f'{json.dumps(name)},"l2_distance":',
        between=',"cosine_distance":',
        end="}",
    )
    file.write(b"[")
    file.write(next(chunks)[1:])  # no comma before the first record
    for rows in chunks:
        file.write(rows)
    file.write(b"\n]\n")


def _row_texts(
    result: Result,
    head: Callable[[int, int], str],
    token: Callable[[str, int], str],
    variant: Callable[[str], str],
    between: str,
    end: str,
) -> Iterator[memoryview]:
    """The rows as UTF-8 text, in chunks: head(step, layer) token(text, position) variant(name) l2 between cosine end.

    The text of token and variant is the same in every layer, so it is made once for a step; pyarrow formats the numbers
    and joins the pieces. No Python object is made for a row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    variants = pa.array([variant(name) for name in result.variants])
    tokens = [token(clean_text(text), position) for position, text in enumerate(result.tokens.texts)]
    layers = result.layers
    for step in result.steps:
        n_masked, n_variants = step.l2.shape[1:]
        middle = pc.binary_join_element_wise(
            pa.array(tokens).take(pa.array(np.repeat(step.positions, n_variants))),
            variants.take(pa.array(np.tile(np.arange(n_variants), n_masked))),
            "",
        )
        for layer in layers:
            l2, cosine = pa.array(flat(step.l2[layer])), pa.array(flat(step.cosine[layer]))
            for first in range(0, len(middle), ROWS_PER_CHUNK):
                rows = pc.binary_join_element_wise(
                    head(step.step, layer),
                    middle.slice(first, ROWS_PER_CHUNK),
                    l2.slice(first, ROWS_PER_CHUNK).cast(pa.string()),
                    between,
                    cosine.slice(first, ROWS_PER_CHUNK).cast(pa.string()),
                    end,
                    "",
                )
                yield _joined(rows)


def _joined(rows) -> memoryview:
    """All strings of a pyarrow string array, one behind the other: its data buffer holds them just so."""
    _, offsets, data = rows.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)
    return memoryview(data)[ends[rows.offset] : ends[rows.offset + len(rows)]]


def _csv_field(text: str) -> str:
    field = io.StringIO()
    csv.writer(field, lineterminator="\r\n").writerow([text])
    return field.getvalue().removesuffix("\r\n")


def _write_parquet(result: Result, file: BinaryIO) -> None:
    write_tables(step_tables(result), file)


def write_tables(tables: Iterable, file: BinaryIO) -> None:
    """Tables of one schema as a Parquet file, a row group for each."""
    import pyarrow.parquet as pq

    tables = iter(tables)
    first = next(tables)
    distances = [name for name in COLUMNS[-2:] if name in first.schema.names]
    with pq.ParquetWriter(
        file,
        first.schema,
        compression="zstd",
        use_dictionary=[name for name in first.schema.names if name not in distances],
        column_encoding=dict.fromkeys(distances, "BYTE_STREAM_SPLIT"),
    ) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


WRITERS: dict[str, Callable[[Result, BinaryIO], None]] = {
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}
