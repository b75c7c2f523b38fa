"""From a bare table of the seven columns to a Result: what it does not say is derived, guessed and said, or left empty.

Knows records and the rule for sinks; no files. Combinations that a table does not have are NaN.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.records import Result, StepRecord
from mask_impact.results.sinks import sinks_of_shares
from mask_impact.results.tables import COLUMNS
from mask_impact.results.tokens import IMAGE_PAD, ImageRecord, TokenTable

PROMPT_NAME, GENERATED_TEXT = "prompt_name", "generated_text"  # columns that are used where they are there


CELL = 32  # pixels of an image token's side, where nothing says how large the image was


MAX_HOLES = 200  # a table may be this many times sparser than the array that holds it


Grid = tuple[int, int]


def parse_grid(text: str) -> Grid:
    """`"16x12"` -> (16, 12), rows before columns; UsageError for anything else."""
    match = re.fullmatch(r"\s*([1-9]\d{0,5})\s*[xX×]\s*([1-9]\d{0,5})\s*", text)  # noqa: RUF001
    if not match:
        raise UsageError(f"a grid is ROWSxCOLUMNS, such as 16x16, not {text!r}")
    return int(match[1]), int(match[2])


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
    _check_holes(step, layer, position, n_steps * len(variants), source)
    distinct, n_rows = np.unique(step, return_counts=True)
    if len(distinct) < n_steps:
        empty = int(distinct[np.flatnonzero(np.diff(distinct) > 1)[0]]) + 1
        raise OutputError(f"{source} has no rows of generation step {empty}")
    per_step = np.split(np.argsort(step, kind="stable"), np.cumsum(n_rows)[:-1])
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
        distances = (_filled(shape, cell, values[rows]) for values in (l2, cosine))
        steps.append(_step(index, known[n_prompt + index], positions, n_prompt + index, *distances))
    tokens, images, notices = _tokens_and_images(known, grids, source)
    notices += _number_notices(l2, cosine, layer, first_step, source)
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


def _check_holes(step: np.ndarray, layer: np.ndarray, position: np.ndarray, n_pairs: int, source: str) -> None:
    """OutputError where the array of all numbers would be much larger than the table. n_pairs: of step and variant."""
    last = [int(numbers.max()) for numbers in (step, layer, position)]
    if n_pairs * (last[1] + 1) * (last[2] + 1) > MAX_HOLES * len(step) + 10**6:
        raise OutputError(
            f"{source} numbers its steps, layers and positions up to {last[0]}, {last[1]} and {last[2]}, but has only "
            f"{len(step):,} rows: these can't be their numbers"
        )


def _step(
    index: int, text: str, positions: np.ndarray, n_positions: int, l2: np.ndarray, cosine: np.ndarray
) -> StepRecord:
    n_layers, _, n_variants = l2.shape
    return StepRecord(
        step=index,
        token_id=-1,
        token_text=text,
        candidates=(),
        positions=positions,
        l2=l2,
        cosine=cosine,
        attention=np.zeros(n_positions, dtype=np.float32),
        baseline_norm=np.full((n_layers, n_variants), np.nan, dtype=np.float32),
        self_check=np.full(n_layers, np.nan),
        noise_floor=np.full(n_layers, np.nan),
        seconds=0.0,
    )


def _number_notices(
    l2: np.ndarray, cosine: np.ndarray, layer: np.ndarray, first_step: int, source: str
) -> Iterator[str]:
    n_with_rows, last = len(np.unique(layer)), int(layer.max())
    if n_with_rows <= last:
        yield f"{n_with_rows} of layers 0 to {last} have rows; if the model has others behind these, depths are off"
    n_bad = int((~np.isfinite(l2)).sum() + (~np.isfinite(cosine)).sum())
    if n_bad == l2.size + cosine.size:
        raise OutputError(f"{source} has no distance that is a number")
    if first_step:
        yield f"The file counts generation steps from {first_step}, this program from 0"
    if n_bad:
        yield f"{n_bad:,} distances in the file are not finite numbers; they are shown as having no value"


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
        raise UsageError(f"`grid` was given, and {source} has no token {IMAGE_PAD}")
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
            "`grid` ROWSxCOLUMNS sets it"
        )
    if len(grids) not in (1, n_images):
        raise UsageError(f"`grid` was given {len(grids)} times, and {source} has {n_images} images")
    rows, columns = grids[0 if len(grids) == 1 else number]
    if rows * columns != n_tokens:
        raise UsageError(
            f"`grid` {rows}x{columns} has {rows * columns} cells, and image {number} of {source} has {n_tokens} tokens"
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
    return sinks_of_shares(shares)
