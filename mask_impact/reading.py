"""Results from files, whoever made them: this program's own with their meta file, or a table of the seven columns alone.

Knows records, store and the rule for sinks; no models. A bare table has distances, positions and token texts and nothing
else, so what a Result needs beyond them is either derived (the prompt's length, sinks, images as runs of image tokens) or
left empty, and every guess is a line in `meta["notices"]`. Combinations that a table does not have are NaN.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.errors import OutputError, UsageError
from mask_impact.files import without_suffix
from mask_impact.records import ImageRecord, Result, StepRecord, TokenTable
from mask_impact.settings import IMAGE_PAD
from mask_impact.store import COLUMNS, READ_ORDER, load_result
from mask_impact.summary import find_sinks

PROMPT_NAME, GENERATED_TEXT = "prompt_name", "generated_text"  # columns that are used where they are there
CELL = 32  # pixels of an image token's side, where nothing says how large the image was
MAX_HOLES = 200  # a table may be this many times sparser than the array that holds it
Grid = tuple[int, int]


class Results(Mapping[str, Result]):
    """The results of one source by prompt name, in the file's order; each is made when it is asked for.

    source: how it was named.
    """

    def __init__(self, source: str, makers: dict[str, Callable[[], Result]]) -> None:
        self.source = source
        self._makers = makers

    def __getitem__(self, name: str) -> Result:
        return self._makers[name]()

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
    if found := re.search(r"\.(flows|whatif)(\.(csv|json|parquet|png|meta\.json))?\Z", path.name, re.IGNORECASE):
        what = {"flows": "knockouts", "whatif": "answers without some tokens"}[found[1].lower()]
        raise OutputError(f"{path} has {what}, not a result of distances: the run has printed what it says")
    results = _open(path, grids)
    if prompt_name is None:
        return results
    if prompt_name not in results:
        some = ", ".join(repr(name) for name in list(results)[:5]) + (", ..." if len(results) > 5 else "")
        raise UsageError(f"{path} has no prompt {prompt_name!r}; it has {some}")
    return Results(results.source, {prompt_name: lambda: results[prompt_name]})


def parse_grid(text: str) -> Grid:
    """`"16x12"` -> (16, 12), rows before columns; UsageError for anything else."""
    match = re.fullmatch(r"\s*([1-9]\d{0,5})\s*[xX×]\s*([1-9]\d{0,5})\s*", text)  # noqa: RUF001
    if not match:
        raise UsageError(f"a grid is ROWSxCOLUMNS, such as 16x16, not {text!r}")
    return int(match[1]), int(match[2])


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def _open(path: Path, grids: Sequence[Grid] | None) -> Results:
    stem = path.parent / without_suffix(path.name) if path.name else path
    suffix = path.name[len(stem.name) :].lower().removeprefix(".effect") if path.name else ""  # which a result also has
    meta = stem.with_name(f"{stem.name}.meta.json") if path.name else path
    if meta.is_file() and (suffix in ("", ".meta", ".meta.json") or _names_format(meta, suffix[1:])):
        if grids:
            raise UsageError(f"{meta} has the grids of the images; --grid is for tables that have no meta file")
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
    with a meta file is found when the result is loaded."""
    try:
        formats = json.loads(meta.read_bytes()).get("formats", [form])
    except (OSError, ValueError, AttributeError):
        return True
    return form in formats


def _read(path: Path, reader: Callable[[Path], Any]):
    import pyarrow as pa

    try:
        return reader(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, pa.ArrowException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise OutputError(f"{path} cannot be read as {path.suffix[1:].upper()}: {reason}") from error


def _dataset(folder: Path, grids: Sequence[Grid] | None) -> Results:
    """The parts of a Parquet dataset; the rows of a prompt are read when it is asked for."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise OutputError(f"{folder} is a folder without part-*.parquet; give a result's name or a table")
    try:
        dataset = ds.dataset([str(part) for part in parts], format="parquet")
        wanted = _present(dataset.schema.names, str(folder))
        if PROMPT_NAME not in wanted:
            return _from_table(str(folder), folder.name, dataset.to_table(columns=wanted), grids)
        column = dataset.to_table(columns=[PROMPT_NAME])[PROMPT_NAME]
        names = pc.unique(pc.drop_null(column.cast(pa.string()))).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not names:
        raise OutputError(f"{folder} has no rows")

    def read(name: str) -> Result:
        text = pc.field(PROMPT_NAME).cast(pa.string())
        return make_result(dataset.to_table(columns=wanted, filter=text == name), f"{folder}, prompt {name!r}", grids)

    return Results(str(folder), {name: lambda name=name: read(name) for name in names})


def _from_table(source: str, name: str, table, grids: Sequence[Grid] | None) -> Results:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = _present(table.schema.names, source)
    if not len(table):
        raise OutputError(f"{source} has no rows")
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
    import pyarrow.csv as pa_csv

    csv.field_size_limit(2**27)
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    if not header:
        raise OutputError(f"{path} is empty")
    wanted = _present(header, str(path))
    types = {name: kind for name, kind in _types().items() if name in wanted}
    return pa_csv.read_csv(
        path,
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=wanted, column_types=types, strings_can_be_null=False, auto_dict_encode=False
        ),
    )


def _read_json(path: Path):
    import orjson
    import pyarrow as pa

    content = path.read_bytes()
    try:
        records = orjson.loads(content)
    except ValueError:
        records = json.loads(content)  # takes NaN, which others write
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise OutputError(f"{path} is not a list of records, one object for each row")
    if not records:
        raise OutputError(f"{path} has no rows")
    wanted = _present(list(records[0]), str(path))
    for number, record in enumerate(records, start=1):
        missing = [name for name in wanted if name not in record]
        if missing:
            raise OutputError(f"record {number} of {path} has no {', '.join(missing)}")
    return pa.table({name: pa.array([record[name] for record in records], _types()[name]) for name in wanted})


def _read_parquet(path: Path):
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=_present(pq.read_schema(path).names, str(path)))


TABLE_READERS: dict[str, Callable[[Path], Any]] = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}


# ---------------------------------------------------------------------------------------------------------------------
# From a table to a Result


def make_result(table, source: str, grids: Sequence[Grid] | None = None) -> Result:
    """A pyarrow.Table with COLUMNS (and perhaps `generated_text`), the rows of one prompt, as a Result.

    source names the table in errors. Raises OutputError for rows that contradict each other.
    """
    step, layer, position = (
        _whole_numbers(table, name, source) for name in ("generation_step", "layer", "token_position")
    )
    text_codes, texts = _codes(table, "token_masked", source)
    variant_codes, variants = _codes(table, "variant", source)
    l2, cosine = (_distances(table, name, source) for name in COLUMNS[-2:])

    order = sorted(range(len(variants)), key=lambda code: _variant_order(variants[code]))
    variant_codes = np.argsort(order)[variant_codes]
    variants = tuple(variants[code] for code in order)
    first_step, n_layers = int(step.min()), int(layer.max()) + 1
    n_steps = int(step.max()) - first_step + 1
    n_cells = n_steps * n_layers * (int(position.max()) + 1) * len(variants)
    if n_cells > MAX_HOLES * len(table) + 10**6:
        raise OutputError(
            f"{source} numbers its steps, layers and positions up to {int(step.max())}, {n_layers - 1} and "
            f"{int(position.max())}, but has only {len(table):,} rows: these can't be their numbers"
        )

    per_step = [np.flatnonzero(step == first_step + index) for index in range(n_steps)]
    empty = next((index for index, rows in enumerate(per_step) if not len(rows)), None)
    if empty is not None:
        raise OutputError(f"{source} has no rows of generation step {first_step + empty}")
    # The sequence grows by one token at each step, and not every position need have been masked.
    n_prompt = max(1, *(int(position[rows].max()) + 1 - index for index, rows in enumerate(per_step)))
    token_texts = _token_texts(position, text_codes, texts, n_prompt + n_steps, source)
    generated = _generated_text(table, token_texts[n_prompt:])
    if generated is not None and token_texts[-1] is None:
        before = "".join(text or "" for text in token_texts[n_prompt:-1])
        token_texts[-1] = generated[len(before) :] if generated.startswith(before) else None
    known = ["" if text is None else text for text in token_texts]

    steps = []
    for index, rows in enumerate(per_step):
        positions, place = np.unique(position[rows], return_inverse=True)
        shape = (n_layers, len(positions), len(variants))
        cell = np.ravel_multi_index((layer[rows], place, variant_codes[rows]), shape)
        _check_unique(cell, rows, table, source)
        steps.append(
            StepRecord(
                step=index,
                token_id=-1,
                token_text=known[n_prompt + index],
                candidates=(),
                positions=positions,
                l2=_filled(shape, cell, l2[rows]),
                cosine=_filled(shape, cell, cosine[rows]),
                attention=np.zeros(n_prompt + index, dtype=np.float32),
                baseline_norm=np.full((n_layers, len(variants)), np.nan, dtype=np.float32),
                self_check=np.full(n_layers, np.nan),
                noise_floor=np.full(n_layers, np.nan),
                seconds=0.0,
            )
        )
    tokens, images, notices = _tokens_and_images(known, grids, source)
    n_bad = int((~np.isfinite(l2)).sum() + (~np.isfinite(cosine)).sum())
    if n_bad == l2.size + cosine.size:
        raise OutputError(f"{source} has no distance that is a number")
    if first_step:
        notices.append(f"The file counts generation steps from {first_step}, this program from 0")
    if n_bad:
        notices.append(f"{n_bad:,} distances in the file are not finite numbers; they are shown as having no value")
    sinks = _sinks(steps[0], variants)
    if sinks:
        notices.append(
            "The file has no attention weights: sinks are positions that take most of the L2 distance in all layers"
        )
    return Result(
        variants=variants,
        n_prompt=n_prompt,
        tokens=tokens,
        steps=tuple(steps),
        generated_text="".join(known[n_prompt:]) if generated is None else generated,
        sinks=sinks,
        images=images,
        meta={"source": source, "notices": notices},
    )


def _whole_numbers(table, name: str, source: str) -> np.ndarray:
    """int64 [rows]"""
    import pyarrow as pa

    try:
        numbers = table[name].cast(pa.int64())
    except pa.ArrowException as error:
        raise OutputError(f"column {name} of {source} does not hold whole numbers: {error}") from error
    if numbers.null_count or (len(numbers) and int(np.min(numbers.to_numpy())) < 0):
        raise OutputError(f"column {name} of {source} has a missing or negative number; it counts from 0")
    return numbers.to_numpy()


def _codes(table, name: str, source: str) -> tuple[np.ndarray, list[str]]:
    """Texts as int64 [rows], codes into a list of distinct texts."""
    import pyarrow as pa

    try:
        column = table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise OutputError(f"column {name} of {source} does not hold texts: {error}") from error
    if column.null_count:
        raise OutputError(f"column {name} of {source} is empty in {column.null_count} rows")
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


def _distances(table, name: str, source: str) -> np.ndarray:
    """float32 [rows], NaN where there is no number."""
    import pyarrow as pa

    try:
        return table[name].cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
    except pa.ArrowException as error:
        raise OutputError(f"column {name} of {source} does not hold numbers: {error}") from error


def _variant_order(name: str) -> tuple[int, int, str]:
    head = re.fullmatch(r"Head_(\d{1,6})", name)
    return ({"Full": 0, "Attn": 1}.get(name, 2 if head else 3), int(head[1]) if head else 0, name)


def _token_texts(
    position: np.ndarray, codes: np.ndarray, texts: list[str], n_positions: int, source: str
) -> list[str | None]:
    """The text at each position, None where the table says nothing of it."""
    found = np.full(n_positions, -1)
    found[position] = codes
    wrong = np.flatnonzero(found[position] != codes)
    if wrong.size:
        row = int(wrong[0])
        one, other = texts[codes[row]], texts[found[position[row]]]
        raise OutputError(
            f"{source} has two tokens at position {int(position[row])}, {one!r} and {other!r}: the rows of several prompts "
            f"need a column {PROMPT_NAME}"
        )
    return [texts[code] if code >= 0 else None for code in found]


def _generated_text(table, produced: list[str | None]) -> str | None:
    if GENERATED_TEXT not in table.column_names:
        return None
    text = table[GENERATED_TEXT][0].as_py()
    return text if isinstance(text, str) else None


def _check_unique(cells: np.ndarray, rows: np.ndarray, table, source: str) -> None:
    order = np.argsort(cells, kind="stable")
    twice = np.flatnonzero(np.diff(cells[order]) == 0)
    if twice.size:
        row = table.slice(int(rows[order[twice[0] + 1]]), 1).to_pylist()[0]
        where = ", ".join(f"{name} {row[name]}" for name in ("generation_step", "layer", "token_position", "variant"))
        raise OutputError(f"{source} has two rows for {where}: the rows of several prompts need a column {PROMPT_NAME}")


def _filled(shape: tuple[int, int, int], cells: np.ndarray, values: np.ndarray) -> np.ndarray:
    array = np.full(math.prod(shape), np.nan, dtype=np.float32)
    array[cells] = np.where(np.isfinite(values), values, np.nan)
    return array.reshape(shape)


def _tokens_and_images(
    texts: list[str], grids: Sequence[Grid] | None, source: str
) -> tuple[TokenTable, tuple[ImageRecord, ...], list[str]]:
    """Each run of image tokens is an image."""
    is_pad = np.array([text == IMAGE_PAD for text in texts])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_pad, [False]])))
    runs = [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]
    cells = np.full((3, len(texts)), -1, dtype=np.int32)
    images, notices = [], []
    for number, (first, end) in enumerate(runs):
        (rows, columns), note = _grid_of(number, end - first, len(runs), grids, source)
        notices += [note] if note else []
        cells[0, first:end] = number
        cells[1, first:end], cells[2, first:end] = np.divmod(np.arange(end - first), columns)
        size = (columns * CELL, rows * CELL)
        images.append(ImageRecord(source="", size=size, resized=size, grid=(rows, columns)))
    if grids and not runs:
        raise UsageError(f"--grid was given, and {source} has no token {IMAGE_PAD}")
    kinds = [
        "image" if pad else "special" if re.fullmatch(r"<\|.+\|>", text) else "text"
        for text, pad in zip(texts, is_pad, strict=True)
    ]
    tokens = TokenTable(
        ids=np.full(len(texts), -1, dtype=np.int64),
        texts=tuple(texts),
        kinds=tuple(kinds),
        image=cells[0],
        row=cells[1],
        column=cells[2],
    )
    return tokens, tuple(images), notices


def _grid_of(number: int, n_tokens: int, n_images: int, grids: Sequence[Grid] | None, source: str) -> tuple[Grid, str]:
    """The grid of an image, and a line where it was guessed."""
    if not grids:
        rows, columns = guess_grid(n_tokens)
        return (rows, columns), (
            f"The grid of image {number}, {rows} rows x {columns} columns, is a guess from its {n_tokens} tokens; "
            "--grid ROWSxCOLUMNS sets it"
        )
    if len(grids) not in (1, n_images):
        raise UsageError(f"--grid was given {len(grids)} times, and {source} has {n_images} images")
    rows, columns = grids[0 if len(grids) == 1 else number]
    if rows * columns != n_tokens:
        raise UsageError(
            f"--grid {rows}x{columns} has {rows * columns} cells, and image {number} of {source} has {n_tokens} tokens"
        )
    return (rows, columns), ""


def guess_grid(n_tokens: int) -> Grid:
    """The (rows, columns) of `n_tokens` cells that are nearest to a square, wider than high."""
    rows = next(rows for rows in range(math.isqrt(n_tokens), 0, -1) if n_tokens % rows == 0)
    return rows, n_tokens // rows


def _sinks(step: StepRecord, variants: tuple[str, ...]) -> tuple[int, ...]:
    """The rule for sinks, on each position's share of the L2 distance in each layer in place of attention weights."""
    measure = next((variants.index(name) for name in ("Full", "Attn") if name in variants), None)
    if measure is None:
        n_values = np.isfinite(step.l2).sum(axis=2)
        distances = np.divide(np.nansum(step.l2, axis=2), n_values, out=np.zeros(n_values.shape), where=n_values > 0)
    else:
        distances = np.nan_to_num(step.l2[:, :, measure].astype(np.float64))
    totals = distances.sum(axis=1, keepdims=True)
    shares = np.zeros((len(distances), step.n_positions))
    shares[:, step.positions] = np.divide(distances, totals, out=np.zeros_like(distances), where=totals > 0)
    return find_sinks(shares)
