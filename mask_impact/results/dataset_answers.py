"""What answers of a dataset used, prompt by prompt: from NAME/card/part-*.parquet and the same parts of NAME/answer.

A part of `card` has a row for each prompt: all of an explanation but the numbers, which are the prompt's rows in `answer`.
Knows explanations and files. pyarrow is imported only where it is used.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.explanation_files import answer_meta, explanation_from
from mask_impact.results.explanation_tables import NUMBERS
from mask_impact.results.explanations import Explanation
from mask_impact.results.meta import checked_meta, meta_bytes
from mask_impact.results.remote import Place, opened
from mask_impact.results.study_folder import is_old, parts_of, table_of
from mask_impact.results.table_files import one_line

PROMPT, CARD = "prompt_name", "card"
MOST_ROWS = 50_000_000  # of a part
NOT_HERE = {"has_matrix": False, "matrix_crc32": None, "estimates_crc32": None}


def card_table(found: Explanation):
    """A pyarrow.Table of one row and one column, `card`: the explanation as JSON, without its numbers."""
    import pyarrow as pa

    content = meta_bytes(answer_meta(found, ("parquet",)) | NOT_HERE).decode()
    return pa.table({CARD: pa.array([content], pa.large_string())})


class DatasetAnswers(Mapping[str, Explanation]):
    """By prompt name, in the order of the parts; each read when it is asked for. folder: of the study.

    OutputError for parts that can't be read, and for a prompt whose rows do not fit.
    """

    def __init__(self, folder: Place) -> None:
        self._parts: dict[str, Place] = {}
        old = is_old(folder)
        for path in parts_of(folder, "card", old):
            names = _read(path, [PROMPT])[PROMPT].to_pylist()
            self._parts |= dict.fromkeys(names, path)
        self._answers = table_of(folder, "answer", old)
        self._open: tuple[Place | None, Any, Any] = (None, None, None)

    def __getitem__(self, name: str) -> Explanation:
        import pyarrow.compute as pc

        cards, numbers = self._tables(self._parts[name])
        where = f"{self._parts[name]}, prompt {name!r}"
        (content,) = cards.filter(pc.equal(cards[PROMPT], name))[CARD].to_pylist()[:1]
        meta = checked_meta(content, where, "answer") | NOT_HERE
        rows = numbers.filter(pc.equal(numbers[PROMPT], name))
        expected = sum(entry["units"] for entry in meta["targets"])
        table = self._answers / self._parts[name].name
        if len(rows) != expected:
            raise OutputError(f"{table} has {len(rows):,} rows of the prompt {name!r}, expected {expected:,}")
        columns = {one: rows[one].to_numpy().astype(np.float32) for one in NUMBERS}
        return explanation_from(meta, columns, (where, str(table)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _tables(self, path: Place) -> tuple[Any, Any]:
        """A part's two tables. The last part stays open: prompts are mostly asked for in their order."""
        if self._open[0] != path:
            numbers = _read(self._answers / path.name, [PROMPT, *NUMBERS])
            self._open = (path, _read(path, [PROMPT, CARD]), numbers)
        return self._open[1:]


def _read(path: Place, columns: list[str]):
    """Columns of a part, texts as such and numbers as float32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as raw, pq.ParquetFile(raw) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise OutputError(f"{path} has no column {missing[0]}; needed are {', '.join(columns)}")
            if file.metadata.num_rows > MOST_ROWS:
                raise OutputError(f"{path} has more than {MOST_ROWS:,} rows")
            table = file.read(columns)
            kinds = [pa.float32() if name in NUMBERS else pa.large_string() for name in columns]
            return pa.table({name: table[name].cast(kind) for name, kind in zip(columns, kinds, strict=True)})
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
