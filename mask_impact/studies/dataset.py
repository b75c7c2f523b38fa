"""From a dataset to jobs, row by row, each of them checked. Knows neither torch nor models."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mask_impact.analyses.settings import SETTINGS
from mask_impact.errors import InputError, shown
from mask_impact.results.inputs import DATASET, open_file
from mask_impact.studies.dataset_files import READERS
from mask_impact.studies.dataset_forms import PROMPTS, standard
from mask_impact.studies.jobs import (
    NO_FLAGS,
    Job,
    Problem,
    given_flags,
    job_name_problem,
    job_problems,
    located,
    run_settings,
    same_name,
)
from mask_impact.studies.schema import RowLevel, wrong


def read_dataset(
    path: str | os.PathLike, *, kind: str | None, defaults: Mapping[str, Any] = NO_FLAGS
) -> Iterator[Job | Problem]:
    """A job for each row of a .jsonl, .csv or .parquet file, or the problem that it has; the file is read as it goes.

    Columns: prompt, and name, image, video, num_tokens, mask_mode, max_image_resolution, video_fps, video_frames where wanted;
    others are carried along.
    Nothing but the hash of each name is kept. defaults: command-line flags, None where not given, which win over a row. In CSV
    an empty field is not given, and an image that is written as a JSON list is a list. Raises InputError, when called, for a
    file that can't be read, of another suffix or without the column prompt; UsageError for a flag that can't be right.
    """
    flags, path = given_flags(defaults), Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"dataset '{path}' has none of the suffixes that are read; accepted are {', '.join(READERS)}")
    with closing(read(path)) as rows:
        _, columns = next(rows, (0, []))
    if isinstance(columns, str):
        raise InputError(f"dataset '{path}' has no column prompt: {columns}")
    if not {*PROMPTS} & {*columns}:
        raise InputError(f"dataset '{path}' has no column prompt; its columns are {shown(', '.join(columns))}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise InputError(f"dataset '{path}' has several columns {shown(twice[0])}; give each a name of its own")
    return _jobs(read(path), path.parent, kind, flags)


def count_rows(path: str | os.PathLike) -> int:
    """About how many rows a dataset has, without reading it row by row (line breaks within texts count as well)."""
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with open_file(path, DATASET) as file:
            return pq.read_metadata(file).num_rows
    with open_file(path, DATASET) as file:
        n_lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return max(1, n_lines - (path.suffix.lower() == ".csv"))


def _jobs(
    rows: Iterator[tuple[int, Any]], folder: Path, kind: str | None, flags: dict[str, Any]
) -> Iterator[Job | Problem]:
    names: set[int] = set()
    number = 0
    with closing(rows):
        next(rows)  # the columns
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except (InputError, OSError) as error:
                yield Problem(number + 1, None, f"{error}; no row is read from here on")
                return
            name = row.get("name") if isinstance(row, dict) else None
            try:
                yield _job(row, number, folder, kind, flags, names)
            except InputError as error:
                yield Problem(number, name if isinstance(name, str) else None, str(error))


def _job(row: Any, number: int, folder: Path, kind: str | None, flags: dict[str, Any], names: set[int]) -> Job:
    """InputError with all that is wrong in the row; a str stands for a row that could not be read, and says why."""
    if isinstance(row, str):
        raise InputError(row)
    for key in ("image", "video"):
        if row.get(f"{key}_path") is not None:
            raise InputError(f"{key}_path is the key of a configuration; in a dataset the column is called {key}")
    row = standard(_plain(row))
    try:
        entry = RowLevel.model_validate(row)
    except ValidationError as error:
        raise InputError(
            "; ".join(wrong(RowLevel, one["loc"], one) for one in error.errors(include_url=False))
        ) from None
    name = f"row_{number:06d}" if entry.name is None else entry.name
    problems = [problem] if entry.name is not None and (problem := job_name_problem(name)) else []
    if not problems:
        hashed = int.from_bytes(hashlib.blake2b(same_name(name).encode(), digest_size=8).digest())
        if hashed in names:
            problems.append(f"the name {shown(name)} is that of an earlier row; give another")
        names.add(hashed)
    own = {one.name: getattr(entry, one.name) for one in SETTINGS.values() if one.column}
    values = {key: value for key, value in own.items() if value is not None} | flags
    images = located(folder, entry.image)
    videos = tuple(os.path.abspath(folder / video) for video in entry.video or ())
    problems += [problem for _, problem in job_problems(kind, entry.prompt, images, values, "image", videos)]
    if problems:
        raise InputError("; ".join(problems))
    carried = {key: value for key, value in row.items() if key not in RowLevel.model_fields}
    return Job(name, entry.prompt, images, run_settings(values), carried, videos)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers in our columns as they were before pandas: a whole column is of one type there, so a missing
    number makes floats of all, and names may be numbers."""
    plain = dict(row)
    for key in RowLevel.model_fields.keys() & row.keys():
        value = row[key]
        if isinstance(value, float) and value != value:
            plain[key] = None
        elif isinstance(value, float) and value.is_integer() and key != "prompt":
            plain[key] = int(value)
    if isinstance(plain.get("name"), int) and not isinstance(plain["name"], bool):
        plain["name"] = str(plain["name"])
    return plain
