"""A study read again, prompt by prompt: from the parts of a dataset, or from a folder of single results.

Knows where the files lie and what their columns are; says nothing about the numbers. Parts are read in batches of rows, of which
nothing is kept but the few numbers of each prompt, so that memory does not grow with the rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.findings.prompt_numbers import Gathering, PromptNumbers, Unit
from mask_impact.results.dataset_answers import DatasetAnswers
from mask_impact.results.explanation_tables import ALL_LAYERS
from mask_impact.results.files import is_regular
from mask_impact.results.remote import Place, is_there, opened
from mask_impact.results.stored import Stored, read_stored, stem_of
from mask_impact.results.study_folder import (
    IMPACT,
    PROMPTS,
    is_old,
    parts_of,
    study_of,
    table_of,
)
from mask_impact.results.table_files import beside, one_line
from mask_impact.results.table_reading import MOST_LAYERS
from mask_impact.results.tables import COLUMNS, CONTENT, KIND
from mask_impact.results.tokens import CELLS, IMAGE_PAD, VIDEO_PAD
from mask_impact.studies.manifest import read_manifest
from mask_impact.studies.parts import RUN
from mask_impact.studies.reading_results import PAGES, how_text, of_stored, variant_of

BATCH = 2**16  # rows
MOST_POSITIONS = 2**31


@dataclass
class StudyFiles:
    """Where a study lies. parts: of a dataset, by the names of their files; old: whether an earlier version wrote them; stems: of
    single results; notes: what was left out, and why; n_batches, n_rows: what was read so far."""

    place: Place
    parts: tuple[str, ...] = ()
    old: bool = False
    stems: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)
    n_batches: int = 0
    n_rows: int = 0

    @property
    def source(self) -> str:
        """The place, as it is told."""
        return str(self.place)

    def prompts(self) -> Iterator[PromptNumbers]:
        """The numbers of each prompt, in the files' order. A single result that can't be read is left out, which a note says;
        OutputError for a part that can't."""
        for part in self.parts:
            yield from _Part(part, self).prompts()
        for stem in self.stems:
            try:
                (stored,) = read_stored(stem).values()
            except OutputError as error:
                self.notes.append(f"Left out: {error}")
                continue
            yield of_stored(stem, stored)

    def cards(self, prompts: Iterable[PromptNumbers]) -> dict[str, Stored]:
        """By name what the answers of these prompts used, without distances; nothing of those of which that was not kept."""
        if self.parts:
            answers = DatasetAnswers(self.place)
            return {one.name: Stored(answer=answers[one.name]) for one in prompts if one.name in answers}
        stems = {str(place): stem for stem in self.stems for place in (stem, *(beside(stem, kind) for kind in PAGES))}
        found = {one.name: read_stored(stems[one.place]).lean(stems[one.place].name) for one in prompts}
        return {name: stored for name, stored in found.items() if stored.answer is not None}


def find_study(path: Place) -> StudyFiles:
    """What a folder has. OutputError where it has neither parts of a dataset nor stored results."""
    path = study_of(path)
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise OutputError(f"{path} {what}; give the folder that a study wrote")
    read_manifest(path)  # which says where it is of a later version
    old = is_old(path)
    parts = tuple(part.name for part in parts_of(path, IMPACT if old else PROMPTS, old))
    if parts:
        return StudyFiles(path, parts, old)
    if not isinstance(path, Path):
        raise OutputError(f"{path} has no {PROMPTS}/part-*.parquet; a study of a dataset writes them there")
    stems = dict.fromkeys(stem_of(file) for file in sorted(path.glob("*.meta.json")) if is_regular(file))
    if not stems:
        folders = [one for one in sorted(path.iterdir()) if one.is_dir()]
        inside = [one for one in folders if parts_of(one, PROMPTS) or (is_old(one) and study_of(one) == one)]
        hint = f"; {inside[0]} has parts" if inside else "; a study writes them there"
        raise OutputError(f"{path} has neither parts of a dataset nor results (NAME.meta.json){hint}")
    return StudyFiles(path, stems=tuple(stems))


# --- the parts of a dataset -------------------------------------------------------------------------------------------------


class _Part:
    """A part, with those of the other kinds of tables that belong to it."""

    def __init__(self, name: str, study: StudyFiles) -> None:
        self.name, self.study = name, study
        self.path = self._file(IMPACT)
        self.gatherings: dict[str, Gathering] = {}
        self.order: dict[str, None] = {}
        self.settings: dict[str, dict[str, Any]] = {}  # by prompt; of an earlier version under no name
        self.reduced = False

    def prompts(self) -> Iterator[PromptNumbers]:
        """In the order of their distances. What is read first decides what is taken for the evidence in what is read then."""
        self._settings()
        for kind, add in (
            ("answer", self._answer), (IMPACT, self._distances), ("effect", self._effects), ("routes", self._routes),
            ("flows", self._cuts), ("deepstack", self._deepstack), ("patches", self._patches),
        ):  # fmt: skip
            path = self._file(kind)
            if is_there(path):
                self._add_all(path, kind, add)
        for name in dict.fromkeys((*self.order, *self.gatherings)):
            yield self.gatherings[name].numbers()

    def _file(self, table: str) -> Place:
        return table_of(self.study.place, table, self.study.old) / self.name

    def _add_all(self, path: Place, kind: str, add: Callable[[Gathering, "_Rows"], None]) -> None:
        import pyarrow as pa

        try:
            for batch in self._batches(path, kind):
                for gathering, rows in self._by_prompt(batch):
                    add(gathering, rows)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise OutputError(f"{path} cannot be read: {one_line(error)}") from error

    def _settings(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._file(IMPACT if self.study.old else PROMPTS)
        columns = ["prompt_name", "settings"]
        try:
            with opened(path) as file, pq.ParquetFile(file) as table:
                run = _mapping(json.loads((table.schema_arrow.metadata or {}).get(RUN.encode(), b"{}")))
                if {*columns} <= {*table.schema_arrow.names} and not self.study.old:
                    names, texts = (column.to_pylist() for column in table.read(columns))
                    self.settings = {name: _mapping(json.loads(text)) for name, text in zip(names, texts, strict=True)}
        except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
            raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
        self.settings.setdefault("", run)
        self.reduced = run.get("reduce") == "summary"

    def _batches(self, path: Place, kind: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        needed, wanted = _COLUMNS[kind]
        with opened(path) as file, pq.ParquetFile(file, pre_buffer=False, buffer_size=BATCH) as table:
            names = table.schema_arrow.names
            if missing := [name for name in needed if name not in names]:
                raise OutputError(f"{path} has no column {missing[0]}; a study writes {', '.join(needed)}")
            columns = [name for name in (*needed, *wanted) if name in names]
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                self.study.n_batches += 1
                self.study.n_rows += len(batch)
                yield batch

    def _by_prompt(self, batch: Any) -> Iterator[tuple[Gathering, "_Rows"]]:
        codes, names = _codes(batch["prompt_name"])
        for code in np.unique(codes):
            places = np.flatnonzero(codes == code)
            rows = _Rows(batch, places)
            name = names[code]
            if name not in self.gatherings:
                settings = self.settings.get(name, self.settings[""])
                self.gatherings[name] = Gathering(
                    name, rows.first("generated_text") or "", _carried(rows.first("carried")), how_text(settings),
                    settings.get("window") != "all", str(self.path), self.reduced,
                )  # fmt: skip
            yield self.gatherings[name], rows

    def _answer(self, gathering: Gathering, rows: "_Rows") -> None:
        changes, measured = rows.floats("contribution"), rows.floats("logprob_change")
        content, needed, names = rows.flags("content"), rows.flags("necessary"), rows.texts("token")
        for row, positions in enumerate(rows.texts("positions")):
            really = bool(np.isfinite(measured[row]))
            change = float(measured[row] if really else np.nan_to_num(changes[row]))
            at = tuple(int(one) for one in positions.split())
            gathering.units.append(Unit(names[row], at, change, really, bool(content[row]), bool(needed[row])))

    def _distances(self, gathering: Gathering, rows: "_Rows") -> None:
        self.order[gathering.name] = None
        variant = rows.coded("variant", variant_of)
        is_image = rows.coded("token_masked", lambda text: text in (IMAGE_PAD, VIDEO_PAD)).astype(bool)
        content = ~rows.coded("token_masked", lambda text: text.startswith("<|") and text.endswith("|>")).astype(bool)
        content |= is_image
        if KIND in rows:  # which an earlier version did not write
            is_image, content = rows.coded(KIND, lambda text: text in CELLS).astype(bool), rows.flags(CONTENT)
        gathering.distances(
            rows.whole("layer"), rows.whole("token_position"), variant, is_image, content, rows.floats("l2_distance"),
            rows.floats("cosine_distance"),
        )  # fmt: skip

    def _effects(self, gathering: Gathering, rows: "_Rows") -> None:
        estimate = rows.floats("estimate") if "estimate" in rows else None
        gathering.effects(
            rows.whole("layer"), rows.whole("token_position"), rows.whole("n_tokens"), rows.floats("logprob_change"),
            rows.flags("below_floor"), estimate, rows.texts("token_masked"),
        )  # fmt: skip

    def _routes(self, gathering: Gathering, rows: "_Rows") -> None:
        """A flow is read whole before the next one, but a batch may end within it: its parts are added."""
        layer, head, values = rows.whole("layer"), rows.whole("head"), rows.floats("contribution")
        flows, step = np.array(rows.texts("flow"), dtype=object), rows.whole("step")
        whole = rows.floats("whole_change") if "whole_change" in rows else None  # of an earlier version
        for name in dict.fromkeys(flows.tolist()):
            for one in np.unique(step[flows == name]):
                here = (flows == name) & (step == one)
                estimate = np.zeros((int(layer.max()) + 1, int(head.max()) + 1))
                np.add.at(estimate, (layer[here], head[here]), np.nan_to_num(values[here]))
                gathering.route(name, int(one), estimate)
                if whole is not None:
                    gathering.cut(name, int(one), float(whole[here][0]))

    def _cuts(self, gathering: Gathering, rows: "_Rows") -> None:
        columns = (
            rows.texts("flow"),
            rows.whole("step").tolist(),
            rows.texts("cut"),
            rows.floats("logprob_change").tolist(),
        )
        for name, step, cut, change in zip(*columns, strict=True):
            if cut == ALL_LAYERS:
                gathering.cut(name, step, change)

    def _deepstack(self, gathering: Gathering, rows: "_Rows") -> None:
        columns = (rows.texts(name) for name in ("region", "baseline", "parts_kept"))
        gathering.parts(*columns, rows.floats("logprob_change"), rows.floats("shapley"))

    def _patches(self, gathering: Gathering, rows: "_Rows") -> None:
        images = np.nan_to_num(rows.floats("image"), nan=-1).astype(int).tolist()
        columns = (rows.texts(name) for name in ("level", "region", "fill", "route"))
        gathering.regions(rows.whole("step").tolist(), images, *columns, rows.floats("logprob_change"))


_TEXTS = ("generated_text", "carried")
# Of each kind of table: the columns that it must have, and those that are read where they are there.
_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    IMPACT: (("prompt_name", *COLUMNS), (KIND, CONTENT, *_TEXTS)),
    "answer": (
        ("prompt_name", "token", "positions", "contribution", "logprob_change", "content", "necessary"), _TEXTS,
    ),
    "effect": (
        ("prompt_name", "layer", "token_masked", "token_position", "n_tokens", "logprob_change", "below_floor"),
        ("estimate", *_TEXTS),
    ),
    "routes": (("prompt_name", "step", "flow", "layer", "head", "contribution"), ("whole_change", *_TEXTS)),
    "flows": (("prompt_name", "step", "flow", "cut", "logprob_change"), _TEXTS),
    "deepstack": (("prompt_name", "region", "baseline", "parts_kept", "logprob_change", "shapley"), _TEXTS),
    "patches": (("prompt_name", "step", "image", "level", "region", "fill", "route", "logprob_change"), _TEXTS),
}  # fmt: skip


class _Rows:
    """Some rows of a batch, column by column."""

    def __init__(self, batch: Any, places: np.ndarray) -> None:
        whole = places[-1] - places[0] + 1 == len(places)
        self._batch = batch.slice(int(places[0]), len(places)) if whole else batch.take(places)

    def __contains__(self, name: str) -> bool:
        return name in self._batch.schema.names

    def first(self, name: str) -> str | None:
        return self._batch[name][0].as_py() if name in self else None

    def whole(self, name: str) -> np.ndarray:
        """int64; ValueError for what can't be the number of a layer, head, position or step."""
        column = self._batch[name]
        if column.null_count:
            raise ValueError(f"column {name} is empty in {column.null_count} rows")
        found = column.to_numpy(zero_copy_only=False).astype(np.int64)
        most = MOST_LAYERS if name in ("layer", "head") else MOST_POSITIONS
        if found.min(initial=0) < 0 or found.max(initial=0) >= most:
            raise ValueError(f"column {name} has a number that is not from 0 to {most - 1:,}")
        return found

    def floats(self, name: str) -> np.ndarray:
        """float64, NaN where there is nothing."""
        return self._batch[name].to_numpy(zero_copy_only=False).astype(np.float64)

    def flags(self, name: str) -> np.ndarray:
        """bool, False where there is nothing."""
        return self._batch[name].fill_null(False).to_numpy(zero_copy_only=False).astype(bool)

    def texts(self, name: str) -> list[str]:
        codes, texts = _codes(self._batch[name])
        return [texts[code] for code in codes.tolist()]

    def coded(self, name: str, value: Any) -> np.ndarray:
        """int64, what a function says of each text."""
        codes, texts = _codes(self._batch[name])
        return np.array([int(value(text)) for text in texts], dtype=np.int64)[codes]


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    """Texts as int64 [R], codes into a list of texts."""
    import pyarrow as pa

    coded = column if pa.types.is_dictionary(column.type) else column.cast(pa.string()).dictionary_encode()
    texts = ["" if text is None else str(text) for text in coded.dictionary.to_pylist()]
    return coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64), [*texts, ""]


def _carried(text: str | None) -> dict[str, Any]:
    with suppress(ValueError):
        return _mapping(json.loads(text or "{}"))
    return {}


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
