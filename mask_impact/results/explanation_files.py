"""`NAME.answer.*`, `NAME.routes.*`, `NAME.matrix.*`: what an answer used, as tables and a meta file, there and back.

Knows explanations and files; nothing is printed. The meta file holds everything but the numbers of the tables.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.explanation_tables import (
    ESTIMATES,
    MATRIX,
    NUMBERS,
    estimates_table,
    explanation_table,
    matrix_table,
    routes_table,
)
from mask_impact.results.explanations import (
    Agreement,
    Evidence,
    ExplainedTarget,
    Explanation,
    HeadCut,
    LayerEstimates,
    Route,
    TokenSet,
)
from mask_impact.results.files import without_suffix
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes, read_meta, texts_by_id
from mask_impact.results.names import ANSWER
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import (
    beside,
    checksum,
    clean_text,
    find_table,
    parse_formats,
    table_writers,
)
from mask_impact.results.table_reading import MOST_LAYERS, read_numbers
from mask_impact.results.token_meta import image_entry, image_from, token_entries, tokens_from

DEFAULT_FORMATS = ("csv", "json")
LISTS = (
    "positions",
    "kinds",
    "top1",
    "differs",
    "control",
    "content",
)  # of an ExplainedTarget, as they are, in the meta file


def save_explanation(
    found: Explanation,
    path: str | os.PathLike,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    command: str = "",
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes `path`.answer.csv, .json and/or .parquet, `path`.answer.meta.json, and where they were asked for `path`.routes.* and
    `path`.matrix.*, all or none; returns the paths. on_removed: is told what was removed, see `write_kinds`."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    writers = explanation_writers(found, parse_formats(formats), command)
    on_removed(write_kinds(stem, [ANSWER], writers, asked(found.meta, [image.source for image in found.images])))
    return tuple(beside(stem, suffix) for suffix in writers)


def explanation_writers(
    found: Explanation, formats: Iterable[str], command: str = "", by_layer: bool = False
) -> dict[str, Callable[[BinaryIO], Any]]:
    """What writes each file of an explanation, by its suffix. by_layer: whether estimates by layer and position are among them,
    which are of the size of a result's distances of one variant."""
    tables = {"answer": explanation_table(found)}
    if any(target.heads is not None for target in found.targets):
        tables["routes"] = routes_table(found)
    if found.matrix is not None:
        tables["matrix"] = matrix_table(found)
    estimates = [target.by_layer for target in found.targets if by_layer and target.by_layer is not None]
    if estimates:
        tables["estimates"] = estimates_table(found)
    formats = tuple(formats)
    meta = meta_bytes(answer_meta(found, formats, command) | {"estimates_crc32": _estimates_checksum(estimates)})
    return table_writers(tables, formats) | {ANSWER.main: lambda file: file.write(meta)}


def answer_checksum(found: Explanation) -> int:
    """Tells whether the tables belong to the meta files."""
    return checksum(*(getattr(target, name) for target in found.targets for name in NUMBERS))


def _estimates_checksum(estimates: Iterable[LayerEstimates]) -> int | None:
    """None without any."""
    arrays = [array for one in estimates for array in (one.contribution, one.estimate)]
    return checksum(*arrays) if arrays else None


def answer_meta(found: Explanation, formats: tuple[str, ...], command: str = "") -> dict[str, Any]:
    """All of an explanation but the numbers of its tables."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "generated_text": found.generated_text,
        "n_prompt": found.n_prompt,
        "formats": list(formats),
        "crc32": answer_checksum(found),
        "has_matrix": found.matrix is not None,
        "matrix_crc32": None if found.matrix is None else checksum(found.matrix),
        "targets": [_target_entry(target) for target in found.targets],
        "images": [image_entry(image) for image in found.images],
        "tokens": [line(entry) for entry in token_entries(found.tokens, found.images)],
    }


def _target_entry(target: ExplainedTarget) -> dict[str, Any]:
    return {
        "steps": target.steps,
        "token_ids": target.token_ids,
        "text": target.text,
        "probability": target.probability,
        "instead": target.instead,
        "measure": target.measure,
        "units": len(target.names),
        "measured": int(target.measured.sum()),
        "forwards": target.forwards,
        "agreement": asdict(target.agreement),
        "reliable": target.reliable,
        "top1_texts": texts_by_id(target.top1_texts),
        "names": line([clean_text(name) for name in target.names]),
        **{name: line(getattr(target, name)) for name in LISTS},
        "evidence": [asdict(one) for one in target.evidence],
        "routes": [
            {"name": one.name, "source": one.source, "target": one.target, "whole_change": one.whole_change}
            | {"layers": one.layers, "logprob_change": one.logprob_change}
            | {name: [line(layer) for layer in getattr(one, name)] for name in ("estimate", "contribution")}
            for one in target.routes
        ],
        "heads": target.heads and asdict(target.heads),
    }


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_explanation(path: str | os.PathLike) -> Explanation:
    """The Explanation of a run called `path`, as it was saved. OutputError where its files are not there or do not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    where = beside(stem, "answer.meta.json")
    meta = read_meta(where, "answer")
    table = find_table(stem, meta["formats"], "answer.")
    if table is None:
        raise OutputError(
            f"{where} is there, but its table is not: expected {stem.name}.answer.csv or the like beside it, as formats says"
        )
    types, n_rows = dict.fromkeys(NUMBERS, np.float32), sum(entry["units"] for entry in meta["targets"])
    columns = read_numbers(*table, types, n_rows, f"units of targets of {where.name}")
    estimates = {} if meta.get("estimates_crc32") is None else _estimates(stem, meta)
    matrix = _matrix(stem, meta) if meta["has_matrix"] else None
    return explanation_from(meta, columns, (str(where), str(table[0])), estimates, matrix)


def explanation_from(
    meta: dict[str, Any],
    columns: dict[str, np.ndarray],
    places: tuple[str, str],
    estimates: dict[int, LayerEstimates] | None = None,
    matrix: np.ndarray | None = None,
) -> Explanation:
    """The Explanation of what a meta file says and the numbers of its table, NUMBERS; OutputError where they do not fit. places:
    where the two are, for messages; estimates: by a target's first step."""
    targets, first = [], 0
    for entry in meta["targets"]:
        rows = slice(first, first + entry["units"])
        numbers = {name: values[rows] for name, values in columns.items()}
        targets.append(_target_from(entry, numbers, (estimates or {}).get(entry["steps"][0])))
        first = rows.stop
    found = Explanation(
        targets=tuple(targets),
        tokens=tokens_from(meta["tokens"]),
        images=tuple(image_from(entry) for entry in meta["images"]),
        n_prompt=meta["n_prompt"],
        generated_text=meta["generated_text"],
        matrix=matrix,
        meta=meta["run"],
    )
    if answer_checksum(found) != meta["crc32"]:
        raise OutputError(f"{places[1]} does not hold the numbers of the run in {places[0]}: its crc32 is another")
    for place, (target, entry) in enumerate(zip(found.targets, meta["targets"], strict=True)):
        n_measured = int(target.measured.sum())
        if (target.top1[target.measured] < 0).any() or entry.get("measured", n_measured) != n_measured:
            raise OutputError(
                f"{places[0]} is not the meta file of {Path(places[1]).name}: targets.{place}.measured or .top1 is not of the "
                f"{n_measured} units that were measured"
            )
    return found


def _target_from(
    entry: dict[str, Any], numbers: dict[str, np.ndarray], by_layer: LayerEstimates | None
) -> ExplainedTarget:
    def token_set(stored: dict[str, Any] | None) -> TokenSet | None:
        return None if stored is None else TokenSet(**stored | {"places": tuple(stored["places"])})

    def route(stored: dict[str, Any]) -> Route:
        layers = None if stored["layers"] is None else tuple(stored["layers"])
        arrays = {name: np.array(stored[name], dtype=np.float32) for name in ("estimate", "contribution")}
        return Route(**stored | arrays | {"layers": layers})

    heads, nan = entry["heads"], float("nan")
    return ExplainedTarget(
        steps=tuple(entry["steps"]),
        token_ids=tuple(entry["token_ids"]),
        text=entry["text"],
        probability=entry["probability"],
        instead=None if entry["instead"] is None else tuple(entry["instead"]),
        measure=entry["measure"],
        names=tuple(entry["names"]),
        positions=tuple(tuple(positions) for positions in entry["positions"]),
        kinds=tuple(entry["kinds"]),
        **numbers,
        top1=np.array(entry["top1"], dtype=np.int64),
        top1_texts={int(token): text for token, text in entry["top1_texts"].items()},
        **{name: np.array(entry[name], dtype=bool) for name in ("differs", "control", "content")},
        agreement=Agreement(**{name: nan if value is None else value for name, value in entry["agreement"].items()}),
        reliable=entry["reliable"],
        forwards=entry["forwards"],
        evidence=tuple(
            Evidence(
                **one
                | {name: token_set(one[name]) for name in ("necessary", "sufficient")}
                | {"each": tuple(one.get("each", ()))}
            )
            for one in entry["evidence"]
        ),
        routes=tuple(map(route, entry["routes"])),
        heads=None if heads is None else HeadCut(**heads | {"heads": tuple(map(tuple, heads["heads"]))}),
        by_layer=by_layer,
    )


def _matrix(stem: Path, meta: dict[str, Any]) -> np.ndarray:
    shape = (len(meta["tokens"]) - meta["n_prompt"], meta["n_prompt"])
    matrix = _read(stem, meta, "matrix", {MATRIX[-1]: np.float32}, shape[0] * shape[1])[MATRIX[-1]].reshape(shape)
    if meta.get("matrix_crc32") not in (None, checksum(matrix)):
        raise OutputError(
            f"{stem.name}.matrix.* does not hold the numbers of the run in {stem.name}.answer.meta.json: its "
            "matrix_crc32 is another"
        )
    return matrix


def _estimates(stem: Path, meta: dict[str, Any]) -> dict[int, LayerEstimates]:
    """By the first step of their targets."""
    types = dict.fromkeys(("step", "layer"), np.int32) | dict.fromkeys(ESTIMATES[-2:], np.float32)
    steps, n = {entry["steps"][0] for entry in meta["targets"]}, len(meta["tokens"])
    columns = _read(stem, meta, "estimates", types, len(steps) * MOST_LAYERS * n, exactly=False)
    found = {}
    for step in np.unique(columns["step"]).tolist():
        layers = columns["layer"][columns["step"] == step]
        n_layers = len(np.unique(layers))
        n_positions = len(layers) // n_layers
        if step in steps and n_positions <= n and np.array_equal(layers, np.repeat(np.arange(n_layers), n_positions)):
            rows = columns["step"] == step
            found[step] = LayerEstimates(*(columns[name][rows].reshape(n_layers, -1) for name in ESTIMATES[-2:]))
    if _estimates_checksum(found.values()) != meta["estimates_crc32"]:
        raise OutputError(
            f"{stem.name}.estimates.* does not hold the numbers of the run in {stem.name}.answer.meta.json: its "
            "estimates_crc32 is another"
        )
    return found


def _read(
    stem: Path, meta: dict[str, Any], name: str, types: dict[str, Any], n_rows: int, exactly: bool = True
) -> dict[str, np.ndarray]:
    """Columns of a table, of which the meta file says that it was written."""
    table = find_table(stem, meta["formats"], f"{name}.")
    if table is None:
        field = {"matrix": "has_matrix", "estimates": "estimates_crc32"}[name]
        raise OutputError(
            f"{stem.name}.{name}.* is missing: {field} of {stem.name}.answer.meta.json and its formats name it"
        )
    return read_numbers(*table, types, n_rows, f"tokens and targets of {stem.name}.answer.meta.json", exactly)
