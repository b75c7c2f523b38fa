"""A Result as files (`NAME.csv`, `.json`, `.parquet`, `.effect.*`, `.meta.json`): written whole or not at all, and read again.

Knows records and the files' modules beside this one; not how anything was measured. The tables hold the numbers, the meta file
everything else, so that `load_result(save(result))` gives the same Result again; checksums in it prove that they belong together.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.distance_files import WRITERS
from mask_impact.results.effect_tables import NUMBERS, columns_to_read, effect_table, make_record, rest_checksum
from mask_impact.results.explanation_files import answer_checksum, explanation_writers, load_explanation
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import without_suffix
from mask_impact.results.meta import read_meta
from mask_impact.results.names import ANSWER, PATCHES, RESULT
from mask_impact.results.patch_files import load_patches, patch_writers
from mask_impact.results.records import Result
from mask_impact.results.result_meta import result_from, result_meta
from mask_impact.results.siblings import asked, removal, write_kinds
from mask_impact.results.table_files import (
    beside,
    changes_checksum,
    checksum,
    clean_text,
    find_table,
    parse_formats,
    table_writers,
)  # fmt: skip
from mask_impact.results.table_reading import read_numbers
from mask_impact.results.tables import COLUMNS

MANY_ROWS = 2_000_000  # above this the default is CSV and Parquet


@dataclass(frozen=True)
class Saved:
    """What `save` wrote: the paths (csv, json, parquet as asked for, then meta), remarks, and what it removed."""

    paths: tuple[Path, ...]
    remarks: tuple[str, ...] = ()
    removed: tuple[Path, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """For whoever asked, one line each."""
        return (*self.remarks, *removal(self.removed))


def save(result: Result, path: str | os.PathLike, formats: str | Iterable[str] | None = None) -> Saved:
    """Writes `path`.csv, .json and/or .parquet and always `path`.meta.json, all or none (see `write_files`).

    What lies there of an earlier run or of another question is removed (see `write_kinds`), which a note says.

    formats: any of FORMATS; default csv and json, above MANY_ROWS csv and parquet, which a note then says. Raises UsageError for
    a name or format that cannot be right, OutputError for a place that cannot be written or a distance that is not finite.
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
    stem = path.parent / without_suffix(path.name)
    meta = result_meta(result, formats)  # before the large files: what fails should fail early
    writers: dict[str, Callable[[BinaryIO], Any]] = {
        form: lambda file, write=WRITERS[form]: write(result, file) for form in formats
    }
    if result.has_effects:
        effects = effect_table(result, [clean_text(text) for text in result.tokens.texts])
        writers |= table_writers({"effect": effects}, formats)
    own, kinds = [*formats, "meta.json", *(suffix for suffix in writers if suffix not in formats)], [RESULT]
    if result.answer is not None:
        writers |= explanation_writers(result.answer, formats, str(result.meta.get("command", "")), by_layer=True)
        kinds.append(ANSWER)
    if result.patches is not None:
        writers |= patch_writers(result.patches, formats, str(result.meta.get("command", "")))
        kinds.append(PATCHES)
    question = asked(result.meta, [image.source for image in result.images])
    removed = write_kinds(stem, kinds, writers | {"meta.json": lambda file: file.write(meta)}, question)
    paths = tuple(beside(stem, suffix) for suffix in dict.fromkeys((*own, *writers)))
    return Saved(paths, tuple(notes), removed)


def _check_finite(result: Result) -> None:
    layers = result.layers
    for step in result.steps:
        finite = np.logical_and(*map(np.isfinite, step.of_layers(layers)))
        if not finite.all():
            layer = layers[int(np.argmin(finite.all(axis=(1, 2))))]
            raise OutputError(f"step {step.step}, layer {layer} has distances that are not finite; nothing was written")


def load_result(path: str | os.PathLike) -> Result:
    """Reads what `save` wrote; `path` is the name, with or without the suffix of any of its files.

    The table that is read fastest is taken among those that the meta file names. Raises OutputError where a file is missing,
    cannot be read, or holds other numbers than the run that the meta file describes.
    """
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    meta_path = beside(stem, "meta.json") if path.name else path / ".meta.json"
    meta = read_meta(meta_path)
    table, l2, cosine = _read_distances(stem, meta)
    result = result_from(meta, l2, cosine)
    if meta["steps"][0].get("effect"):
        result = _with_effects(result, stem, meta)
    if meta.get("patches_crc32") is not None and beside(stem, PATCHES.main).is_file():
        patches = load_patches(stem)
        if changes_checksum(patches.targets) == meta["patches_crc32"]:  # else they were written later, by `pixels`
            result = replace(result, patches=patches)
    if meta.get("answer_crc32") is not None:
        if not beside(stem, "answer.meta.json").is_file():
            raise OutputError(f"{meta_path} has an answer_crc32, but {stem.name}.answer.meta.json is not there")
        answer = load_explanation(stem)
        if answer_checksum(answer) != meta["answer_crc32"] and not _same_prompt(answer, result):
            raise OutputError(
                f"{stem.name}.answer.meta.json is not of the run in {meta_path}: its answer_crc32 is another"
            )
        result = replace(result, answer=answer)
    layers = meta.get("layers") or range(result.n_layers)
    for step, about in zip(result.steps, meta["steps"], strict=True):
        if checksum(*step.of_layers(layers)) != about["distances_crc32"]:
            raise OutputError(
                f"{table} does not hold the distances of the run in {meta_path}: step {step.step} differs from its "
                "distances_crc32"
            )
    return result


def _read_distances(stem: Path, meta: dict[str, Any]) -> tuple[Path, np.ndarray, np.ndarray]:
    found = find_table(stem, meta["formats"])
    if found is None:
        wanted = " or ".join(f"{stem.name}.{form}" for form in meta["formats"])
        raise OutputError(
            f"{beside(stem, 'meta.json')} is there, but its table is not: expected {wanted} beside it, as formats says"
        )
    path, form = found
    types = dict.fromkeys(COLUMNS[-2:], np.dtype(meta["distance_dtype"]))
    l2, cosine = read_numbers(path, form, types, meta["n_rows"], f"n_rows of {stem.name}.meta.json").values()
    return path, l2, cosine


def _same_prompt(answer: Explanation, result: Result) -> bool:
    """Whether an explanation that was written later, by `evidence` say, is of the same model, prompt and first produced token."""
    n = result.n_prompt
    return (
        answer.meta.get("model") == result.meta.get("model")
        and answer.n_prompt == n
        and answer.tokens.texts[:n] == result.tokens.texts[:n]
        and answer.tokens.texts[n:][:1] == tuple(step.token_text for step in result.steps[:1])
    )


def _with_effects(result: Result, stem: Path, meta: dict[str, Any]) -> Result:
    found = find_table(stem, meta["formats"], "effect.")
    if found is None:
        raise OutputError(
            f"{stem.name}.effect.* is missing: {beside(stem, 'meta.json')} has effects of its steps, and formats names it"
        )
    path, form = found
    entries = [about["effect"] for about in meta["steps"]]
    shapes = [
        (result.n_layers, len(entry.get("groups") or step.positions))
        for step, entry in zip(result.steps, entries, strict=True)
    ]
    types = columns_to_read(bool(entries[0].get("estimated")))
    columns = read_numbers(
        path,
        form,
        types,
        sum(n_layers * n_hidden for n_layers, n_hidden in shapes),
        f"positions or groups of the steps of {stem.name}.meta.json",
    )
    first, steps = 0, []
    for step, entry, shape in zip(result.steps, entries, shapes, strict=True):
        effect = make_record(columns, first, shape, entry)
        crc32 = checksum(*(getattr(effect, name) for name in NUMBERS))
        if entry.get("crc32", crc32) != crc32 or entry.get("rest_crc32") not in (None, rest_checksum(effect)):
            raise OutputError(
                f"{path} does not hold the effects of the run in {stem.name}.meta.json: step {step.step} differs from its crc32"
            )
        if unnamed := {*effect.top1[effect.measured].tolist()} - {*effect.top1_texts}:
            raise OutputError(
                f"{path} has the token {min(unnamed)} at step {step.step}, of which {stem.name}.meta.json has no text in "
                f"steps.{step.step}.effect.top1_texts"
            )
        if not (np.isfinite([getattr(effect, name) for name in NUMBERS]) == effect.measured).all():
            raise OutputError(f"{path} lacks a number of step {step.step}, or has one where nothing was measured")
        steps.append(replace(step, effect=effect))
        first += shape[0] * shape[1]
    return replace(result, steps=tuple(steps))


def stored_digest(path: str | os.PathLike, formats: Iterable[str] | None = None) -> str | None:
    """The digest that a complete result's meta file has of what was run, None where there is none.

    formats: which tables have to be there (None: those that the meta file names). Raises OutputError where a file that a meta
    file names is missing, or a meta file is damaged; tables are not read.
    """
    stem = Path(path)
    if not beside(stem, "meta.json").exists():
        return None
    meta = read_meta(beside(stem, "meta.json"))
    if formats is not None and not {*parse_formats(formats)} <= {*meta["formats"]}:
        return None
    tables = {"": meta["formats"]}
    if meta["steps"][0].get("effect"):
        tables["effect."] = meta["formats"]
    if meta.get("answer_crc32") is not None:
        tables["answer."] = read_meta(beside(stem, "answer.meta.json"), "answer")["formats"]
    if meta.get("patches_crc32") is not None:
        tables["patches."] = read_meta(beside(stem, PATCHES.main), "patches")["formats"]
    for prefix, forms in tables.items():
        for form in forms:
            if not beside(stem, prefix + form).is_file():
                raise OutputError(f"{beside(stem, prefix + form)} is not there")
    return meta["run"].get("digest")
