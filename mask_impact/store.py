"""Results as files (`NAME.csv`, `.json`, `.parquet`, `.meta.json`): written whole or not at all, and read again.

Knows records and file formats; not how anything was measured, and it never prints. The table holds the distances; the
meta file holds everything else, so that `load_result(save(result))` gives the same Result again. A checksum of every
step's distances in the meta file proves that a table belongs to it. pandas, pyarrow and orjson are imported only where
they are used.
"""

import base64
import csv
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.effect_tables import effect_table, make_record, read_effects, write_table
from mask_impact.errors import OutputError, UsageError
from mask_impact.files import check_output, without_suffix, write_files
from mask_impact.records import Candidate, EffectRecord, ImageRecord, Result, StepRecord, TokenTable

SCHEMA_VERSION = 1
COLUMNS = ("generation_step", "layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance")
FORMATS = ("csv", "json", "parquet")
MANY_ROWS = 2_000_000  # above this the default is CSV and Parquet
READ_ORDER = ("parquet", "csv", "json")  # fastest first; all hold the same numbers
ROWS_PER_CHUNK = 8192  # text of a chunk is about 1 MB and stays in cache


@dataclass(frozen=True)
class Saved:
    """What `save` wrote: the paths (csv, json, parquet as asked for, then meta) and remarks for whoever asked, one
    line each."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def parse_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """`"csv,parquet"` or a sequence of names -> formats in the order of FORMATS, each once; UsageError for others."""
    names = [part.strip().lower() for part in (formats.split(",") if isinstance(formats, str) else formats)]
    unknown = sorted(set(names) - set(FORMATS))
    if unknown or not names:
        problem = f"unknown output format {unknown[0]!r}" if unknown else "no output format was given"
        raise UsageError(f"{problem}; accepted are {', '.join(FORMATS)}")
    return tuple(known for known in FORMATS if known in names)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def to_table(result: Result):
    """The result as a pyarrow.Table: COLUMNS, a row for each step, layer, masked position and variant, in that order."""
    import pyarrow as pa

    return pa.concat_tables(_step_tables(result))


def _step_tables(result: Result) -> Iterator:
    """One table for each step; tokens and variants are codes into dictionaries that all steps share."""
    import pyarrow as pa

    texts = [clean_text(text) for text in result.tokens.texts]
    distinct = list(dict.fromkeys(texts))
    code_of = {text: code for code, text in enumerate(distinct)}
    token_codes = np.array([code_of[text] for text in texts], dtype=np.int32)
    tokens, variants = pa.array(distinct, pa.string()), pa.array(result.variants, pa.string())
    for step in result.steps:
        n_layers, n_masked, n_variants = step.l2.shape
        positions = np.tile(np.repeat(step.positions.astype(np.int32), n_variants), n_layers)
        variant_codes = np.tile(np.arange(n_variants, dtype=np.int32), n_layers * n_masked)
        columns = (
            np.full(step.l2.size, step.step, dtype=np.int32),
            np.repeat(np.arange(n_layers, dtype=np.int32), n_masked * n_variants),
            pa.DictionaryArray.from_arrays(token_codes[positions], tokens),
            positions,
            pa.DictionaryArray.from_arrays(variant_codes, variants),
            _flat(step.l2),
            _flat(step.cosine),
        )
        yield pa.table(dict(zip(COLUMNS, columns, strict=True)))


def to_dataset_table(result: Result, name: str, carried: str, reduce: str):
    """The rows of one prompt of a dataset: `prompt_name`, COLUMNS, `generated_text`, `carried`.

    reduce: `none` for all variants; `summary` for Full, Attn and, for each token and layer, the head with the largest L2.
    """
    import pyarrow as pa

    table = pa.concat_tables(_step_tables(result)) if reduce == "none" else _summary_table(result)

    def constant(text: str):
        codes = pa.array(np.zeros(len(table), dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array([clean_text(text)], pa.string()))

    table = table.unify_dictionaries().add_column(0, "prompt_name", constant(name))
    table = table.append_column("generated_text", constant(result.generated_text))
    return table.append_column("carried", constant(carried))


def _summary_table(result: Result):
    import pyarrow as pa

    first_head = sum(name in result.variants for name in ("Full", "Attn"))
    texts = pa.array([clean_text(text) for text in result.tokens.texts], pa.string()).dictionary_encode()
    tables = []
    for step in result.steps:
        n_layers, n_masked, n_variants = step.l2.shape
        kept = [np.full((n_layers, n_masked), variant) for variant in range(first_head)]
        if first_head < n_variants:
            kept.append(first_head + step.l2[:, :, first_head:].argmax(axis=2))
        variants = np.stack(kept, axis=2)  # [L, P, kept]
        n_kept = variants.shape[2]
        positions = np.tile(np.repeat(step.positions.astype(np.int32), n_kept), n_layers)
        columns = (
            np.full(variants.size, step.step, dtype=np.int32),
            np.repeat(np.arange(n_layers, dtype=np.int32), n_masked * n_kept),
            texts.take(pa.array(positions)),
            positions,
            pa.DictionaryArray.from_arrays(
                variants.reshape(-1).astype(np.int32), pa.array(result.variants, pa.string())
            ),
            _flat(np.take_along_axis(step.l2, variants, axis=2)),
            _flat(np.take_along_axis(step.cosine, variants, axis=2)),
        )
        tables.append(pa.table(dict(zip(COLUMNS, columns, strict=True))))
    return pa.concat_tables(tables)


def _flat(distances: np.ndarray) -> np.ndarray:
    return distances.reshape(-1) + 0.0  # -0.0 becomes 0.0, which every reader of every format gives back


def clean_text(text: str) -> str:
    """The text with lone surrogates (bytes of the command line that are not UTF-8) as U+FFFD: files are UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save(result: Result, path: str | os.PathLike, formats: str | Iterable[str] | None = None) -> Saved:
    """Writes `path`.csv, .json and/or .parquet and always `path`.meta.json, all or none (see `write_files`).

    formats: any of FORMATS; default csv and json, above MANY_ROWS csv and parquet, which a note then says. Numbers are
    written with as many digits as give back the same float32 (float64). Raises UsageError for a name or format that
    cannot be right, OutputError for a place that cannot be written or a distance that is not finite.
    """
    notes = []
    if formats is None:
        formats = ("csv", "json") if result.n_rows <= MANY_ROWS else ("csv", "parquet")
        if result.n_rows > MANY_ROWS:
            notes.append(
                f"{result.n_rows:,} rows: CSV and Parquet in place of CSV and JSON (or ask for formats csv,json)"
            )
    formats = parse_formats(formats)
    _check_finite(result)
    path = Path(path)
    stem = check_output(path.parent, path.name)
    paths = {form: _beside(stem, form) for form in (*formats, "meta.json")}
    meta = _meta_bytes(result, formats)  # before the large files: what fails should fail early
    writers: dict[Path, Callable[[BinaryIO], None]] = {
        paths[form]: lambda file, write=WRITERS[form]: write(result, file) for form in formats
    }
    if result.has_effects:
        effects = effect_table(result, [clean_text(text) for text in result.tokens.texts])
        for form in formats:
            paths[f"effect.{form}"] = _beside(stem, f"effect.{form}")
            writers[paths[f"effect.{form}"]] = lambda file, form=form: write_table(effects, form, file)
    write_files({**writers, paths["meta.json"]: lambda file: file.write(meta)})
    for form in (*FORMATS, *(f"effect.{form}" for form in FORMATS)):
        if form not in paths and _beside(stem, form).exists():
            notes.append(f"{_beside(stem, form)} is from an earlier run and was left as it is")
    return Saved(tuple(paths.values()), tuple(notes))


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")  # not with_suffix: a name may contain dots


def _check_finite(result: Result) -> None:
    for step in result.steps:
        finite = np.isfinite(step.l2) & np.isfinite(step.cosine)
        if not finite.all():
            layer = int(np.argmin(finite.all(axis=(1, 2))))
            raise OutputError(f"step {step.step}, layer {layer} has distances that are not finite; nothing was written")


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
    for step in result.steps:
        n_layers, n_masked, n_variants = step.l2.shape
        middle = pc.binary_join_element_wise(
            pa.array(tokens).take(pa.array(np.repeat(step.positions, n_variants))),
            variants.take(pa.array(np.tile(np.arange(n_variants), n_masked))),
            "",
        )
        for layer in range(n_layers):
            l2, cosine = pa.array(_flat(step.l2[layer])), pa.array(_flat(step.cosine[layer]))
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
    write_tables(_step_tables(result), file)


def write_tables(tables: Iterable, file: BinaryIO) -> None:
    """Tables of one schema as a Parquet file, a row group for each."""
    import pyarrow.parquet as pq

    tables = iter(tables)
    first = next(tables)
    distances = COLUMNS[-2:]
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


# ---------------------------------------------------------------------------------------------------------------------
# The meta file


def _meta_bytes(result: Result, formats: tuple[str, ...]) -> bytes:
    """The meta file: strict JSON (what is not finite is null), indented, but a token or an array on one line."""
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

    def line(value: Any) -> orjson.Fragment:
        return orjson.Fragment(orjson.dumps(value, default=_as_list, option=options))

    steps = [
        {
            "step": step.step,
            "token_id": int(step.token_id),
            "token_text": step.token_text,
            "candidates": [
                line({"id": int(one.id), "text": clean_text(one.text), "probability": float(one.probability)})
                for one in step.candidates
            ],
            "seconds": float(step.seconds),
            "self_check_max": _largest(step.self_check),
            "noise_floor_max": _largest(step.noise_floor),
            "self_check": line(step.self_check),
            "noise_floor": line(step.noise_floor),
            "positions": line(step.positions) if len(step.positions) < step.n_positions else None,
            "attention": line(step.attention),
            "baseline_norm": [line(layer) for layer in step.baseline_norm],
            "distances_crc32": _checksum(step.l2, step.cosine),
            "effect": step.effect and _effect_entry(step.effect, line),
        }
        for step in result.steps
    ]
    meta = {
        "schema_version": SCHEMA_VERSION,
        "run": result.meta,
        "generated_text": result.generated_text,
        "n_prompt": result.n_prompt,
        "n_layers": result.n_layers,
        "n_rows": result.n_rows,
        "variants": list(result.variants),
        "formats": list(formats),
        "distance_dtype": str(result.steps[0].l2.dtype),
        "sinks": [int(position) for position in result.sinks],
        "steps": steps,
        "images": [_image_entry(image) for image in result.images],
        "tokens": [line(entry) for entry in _token_entries(result)],
    }
    return orjson.dumps(jsonable(meta), default=str, option=options | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def jsonable(value: Any) -> Any:
    """The value with every text in it clean. (orjson itself writes what is not finite as null.)"""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {jsonable(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def _effect_entry(effect: EffectRecord, line: Callable[[Any], Any]) -> dict[str, Any]:
    """What the meta file says of a step's effects besides their table."""
    return {
        "floor": line(effect.floor),
        "top1_texts": line({str(token): clean_text(text) for token, text in effect.top1_texts.items()}),
        "groups": effect.groups and [line([clean_text(name), list(positions)]) for name, positions in effect.groups],
        "likeliest": effect.likeliest,
        "rounding": effect.rounding and line(effect.rounding),
        "crc32": _checksum(*(getattr(effect, name) for name in ("logit_change", "logprob_change", "kl_divergence"))),
    }


def _as_list(array: np.ndarray) -> list:
    return array.tolist()  # orjson takes only arrays that are contiguous and of native byte order


def _largest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else None


def _image_entry(image: ImageRecord) -> dict[str, Any]:
    return asdict(image) | {"preview": base64.b64encode(image.preview).decode()}


def _token_entries(result: Result) -> Iterator[dict[str, Any]]:
    """A dictionary for each position; image, row, column and box (left, top, right, bottom in pixels of the original image)
    are null where the token is not part of an image."""
    tokens = result.tokens
    cells = zip(tokens.image.tolist(), tokens.row.tolist(), tokens.column.tolist(), strict=True)
    for position, (token_id, text, kind, cell) in enumerate(
        zip(tokens.ids.tolist(), tokens.texts, tokens.kinds, cells, strict=True)
    ):
        image, row, column = (None if number < 0 else number for number in cell)
        yield {
            "position": position,
            "id": token_id,
            "text": clean_text(text),
            "kind": kind,
            "image": image,
            "row": row,
            "column": column,
            "box": None if image is None else [round(edge, 2) for edge in result.images[image].box(row, column)],
        }


def _checksum(*arrays: np.ndarray) -> int:
    """CRC-32 of the arrays' values in little-endian bytes: tells whether a table belongs to its meta file."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(_flat(array).astype(array.dtype.newbyteorder("<"), copy=False), checksum)
    return checksum


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_result(path: str | os.PathLike) -> Result:
    """Reads what `save` wrote; `path` is the name, with or without the suffix of any of its files.

    Tables are tried in READ_ORDER among those that the meta file names. Raises OutputError where a file is missing,
    cannot be read, or holds other numbers than the run that the meta file describes.
    """
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    meta_path = _beside(stem, "meta.json") if path.name else path / ".meta.json"
    meta = _read_meta(meta_path)
    try:
        table, l2, cosine = _read_table(stem, meta)
        result = _result_from(meta, l2, cosine)
        expected = [step["distances_crc32"] for step in meta["steps"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise OutputError(f"{meta_path} is not the meta file of a result: {_one_line(error)}") from error
    if any(step.get("effect") for step in meta["steps"]):
        result = _with_effects(result, stem, meta)
    for step, checksum in zip(result.steps, expected, strict=True):
        if _checksum(step.l2, step.cosine) != checksum:
            raise OutputError(
                f"{table} does not hold the distances of the run in {meta_path}: step {step.step} differs"
            )
    return result


def _with_effects(result: Result, stem: Path, meta: dict[str, Any]) -> Result:
    import pyarrow as pa

    present = [form for form in READ_ORDER if form in meta["formats"] and _beside(stem, f"effect.{form}").is_file()]
    if not present:
        raise OutputError(
            f"{stem.name}.effect.* is missing: {_beside(stem, 'meta.json')} says that effects were measured"
        )
    path = _beside(stem, f"effect.{present[0]}")
    try:
        columns, first, steps = read_effects(path, present[0]), 0, []
        for step, about in zip(result.steps, meta["steps"], strict=True):
            groups = about["effect"].get("groups")
            shape = (step.l2.shape[0], len(groups or step.positions))
            effect = make_record(columns, first, shape, about["effect"])
            values = (effect.logit_change, effect.logprob_change, effect.kl_divergence)
            if about["effect"].get("crc32", _checksum(*values)) != _checksum(*values):
                raise ValueError(
                    f"it does not hold the effects of the run in {stem.name}.meta.json: step {step.step} differs"
                )
            steps.append(replace(step, effect=effect))
            first += shape[0] * shape[1]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise OutputError(f"{path} cannot be read: {_one_line(error)}") from error
    return replace(result, steps=tuple(steps))


def stored_digest(path: str | os.PathLike, formats: Iterable[str] | None = None) -> str | None:
    """The digest that a complete result's meta file has of what was run, None where it has none.

    formats: which tables have to be there (None: those that the meta file names). Raises OutputError where a file is missing.
    """
    meta = _read_meta(_beside(Path(path), "meta.json"))
    for form in meta.get("formats", ()) if formats is None else parse_formats(formats):
        if form not in meta.get("formats", ()) or not _beside(Path(path), form).is_file():
            raise OutputError(f"{_beside(Path(path), form)} is not there")
    run = meta.get("run")
    return run.get("digest") if isinstance(run, dict) else None


def _read_table(stem: Path, meta: dict[str, Any]) -> tuple[Path, np.ndarray, np.ndarray]:
    import pyarrow as pa

    present = [form for form in READ_ORDER if form in meta["formats"] and _beside(stem, form).is_file()]
    if not present:
        wanted = " or ".join(f"{stem.name}.{form}" for form in meta["formats"])
        raise OutputError(f"{_beside(stem, 'meta.json')} is there, but its table is not: expected {wanted} beside it")
    path, dtype, n_rows = _beside(stem, present[0]), np.dtype(meta["distance_dtype"]), int(meta["n_rows"])
    try:
        l2, cosine = READERS[present[0]](path, dtype)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise OutputError(f"{path} cannot be read: {_one_line(error)}") from error
    if len(l2) != n_rows:
        raise OutputError(f"{path} is not complete: {len(l2):,} rows, expected {n_rows:,}")
    return path, l2, cosine


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(f"no result there: {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {_one_line(error)}") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise OutputError(f"{path} has schema version {version!r}, this program reads version {SCHEMA_VERSION}")
    return meta


def _read_parquet(path: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(COLUMNS[-2:]))
    return tuple(table[name].to_numpy().astype(dtype) for name in COLUMNS[-2:])


def _read_csv(path: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    number = pa.from_numpy_dtype(dtype)
    table = pa_csv.read_csv(
        path,
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(COLUMNS[-2:]), column_types=dict.fromkeys(COLUMNS[-2:], number)
        ),
    )
    return tuple(table[name].to_numpy().astype(dtype) for name in COLUMNS[-2:])


def _read_json(path: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    import orjson

    records = orjson.loads(path.read_bytes())
    return tuple(np.array([record[name] for record in records], dtype=dtype) for name in COLUMNS[-2:])


READERS: dict[str, Callable[[Path, np.dtype], tuple[np.ndarray, np.ndarray]]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
}


def _result_from(meta: dict[str, Any], l2: np.ndarray, cosine: np.ndarray) -> Result:
    n_layers, n_variants = meta["n_layers"], len(meta["variants"])
    steps, first = [], 0
    for index, stored in enumerate(meta["steps"]):
        positions = stored["positions"]
        positions = np.arange(meta["n_prompt"] + index) if positions is None else np.array(positions, dtype=np.int64)
        shape = (n_layers, len(positions), n_variants)
        rows = slice(first, first + int(np.prod(shape)))
        first = rows.stop
        steps.append(
            StepRecord(
                step=stored["step"],
                token_id=stored["token_id"],
                token_text=stored["token_text"],
                candidates=tuple(Candidate(**candidate) for candidate in stored["candidates"]),
                positions=positions,
                l2=l2[rows].reshape(shape),
                cosine=cosine[rows].reshape(shape),
                attention=np.array(stored["attention"], dtype=l2.dtype),
                baseline_norm=np.array(stored["baseline_norm"], dtype=l2.dtype),
                self_check=np.array(stored["self_check"], dtype=np.float64),
                noise_floor=np.array(stored["noise_floor"], dtype=np.float64),
                seconds=stored["seconds"],
            )
        )
    return Result(
        variants=tuple(meta["variants"]),
        n_prompt=meta["n_prompt"],
        tokens=_token_table(meta["tokens"]),
        steps=tuple(steps),
        generated_text=meta["generated_text"],
        sinks=tuple(meta["sinks"]),
        images=tuple(_image_from(entry) for entry in meta["images"]),
        meta=meta["run"],
    )


def _image_from(entry: dict[str, Any]) -> ImageRecord:
    pairs = {name: tuple(entry[name]) for name in ("size", "resized", "grid")}
    return ImageRecord(source=entry["source"], **pairs, preview=base64.b64decode(entry["preview"]))


def _token_table(entries: list[dict[str, Any]]) -> TokenTable:
    def cells(name: str) -> np.ndarray:
        return np.array([-1 if entry[name] is None else entry[name] for entry in entries], dtype=np.int32)

    return TokenTable(
        ids=np.array([entry["id"] for entry in entries], dtype=np.int64),
        texts=tuple(entry["text"] for entry in entries),
        kinds=tuple(entry["kind"] for entry in entries),
        image=cells("image"),
        row=cells("row"),
        column=cells("column"),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
