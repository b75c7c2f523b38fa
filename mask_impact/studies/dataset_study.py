"""A dataset to parts of Parquet, each written as soon as it is done and known again by its digest."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from mask_impact.errors import InputError, WorkerError
from mask_impact.models.loading import LoadedModel
from mask_impact.results.dataset_answers import card_table
from mask_impact.results.distance_files import write_tables
from mask_impact.results.effect_tables import effect_table
from mask_impact.results.explanation_tables import explanation_table, matrix_table, routes_table
from mask_impact.results.files import check_output, is_regular, output_error, write_files
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.results.patch_files import patch_table
from mask_impact.results.records import Result
from mask_impact.results.table_files import clean_text, one_line
from mask_impact.results.tables import to_dataset_table, with_prompt
from mask_impact.studies.crew import Block, Crew, Done, ThisProcess
from mask_impact.studies.digest import digest
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.parts import HOW, KINDS, RUN, part_of
from mask_impact.studies.progress import Course, ErrorLog, StudyObserver, Tally, run_blocks
from mask_impact.studies.writer import MAX_TOGETHER, Writer, old_parts


def run_dataset(
    model: LoadedModel | Crew,
    rows: Iterable[Job | Problem],
    writer: Writer,
    *,
    n_rows: int | None = None,
    reduce: str = "summary",
    resume: bool = False,
    retry_failed: bool = False,
    keep_others: bool = False,
    observer: StudyObserver | None = None,
) -> Tally:
    """Run the jobs of a dataset, read as they are needed, and write part-*.parquet of MAX_TOGETHER rows each into a folder.

    The folder is called as the writer is, in the writer's folder. Rows that are no jobs, and jobs that fail, go to
    {writer name}.errors.jsonl. Effects and what answers used go to folders beside it, see `part_of`. model: or who measures with
    it. reduce: see `tables.to_dataset_table`. n_rows: about how many rows there are. resume: leave out parts that are complete;
    with retry_failed only those in which nothing failed. keep_others: whether a resumed run leaves later parts that are there,
    because these rows are only the first of the dataset. Ctrl-C as in `run_study`.
    """
    observer, started = observer or StudyObserver(), time.perf_counter()
    crew = ThisProcess(model, observer) if isinstance(model, LoadedModel) else model
    study, course = _Dataset(crew, rows, writer, reduce, observer), Course()
    study.resume, study.retry_failed = resume, retry_failed
    observer.study_begins(n_rows, 0)
    for block, done in run_blocks(crew, study.blocks(), partial(_tables_of, reduce=reduce), observer, course):
        if done is None:
            study.finish(block.number)
        else:
            study.keep(block.number, done)
    if course.complete and not (resume and keep_others):
        study.remove_others()
    return study.tally_of(course.complete, time.perf_counter() - started)


class _Dataset:
    """The parts of a dataset: which are to be run, what was measured of those at work, and writing them."""

    resume = retry_failed = False

    def __init__(
        self, crew: Crew, rows: Iterable[Job | Problem], writer: Writer, reduce: str, observer: StudyObserver
    ) -> None:
        self._crew, self._rows, self._writer, self._reduce, self._observer = crew, rows, writer, reduce, observer
        self._errors, self._tally = ErrorLog(writer.errors_path), Tally()
        self._folder = check_output(writer.folder, writer.name, ())
        _make_folder(self._folder)
        self._old = old_parts(writer, self._folder) if writer.fresh else []  # go when something takes their place
        self._open: dict[int, _Part] = {}
        self._failed: dict[int, list[str]] = {}  # by part
        self._n_parts = 0

    def blocks(self) -> Iterator[Block]:
        """The parts that are to be run."""
        remaining = iter(self._rows)
        while rows := list(islice(remaining, MAX_TOGETHER)):
            number, self._n_parts = self._n_parts, self._n_parts + 1
            if number not in self._writer.shard:
                continue
            part = _Part(self._folder / f"part-{number:06d}.parquet", rows, self._reduce, self._crew)
            self._tally.n_jobs += len(rows)
            for problem in part.problems:
                self._errors.add_problem(problem)
                self._observer.row_failed(problem)
            self._failed[number] = [problem.name or f"row {problem.row}" for problem in part.problems]
            failures = part.failures_there(self.retry_failed, self._observer.note) if self.resume else None
            if failures is not None:
                self._pass(number, part, failures)
                continue
            self._open[number] = part
            if part.jobs:
                yield Block(number, tuple(part.jobs), frozenset(job.name for job in part.jobs))
            else:
                self.finish(number)

    def _pass(self, number: int, part: "_Part", failures: Sequence[dict[str, Any]]) -> None:
        """The part is there."""
        for failure in failures:
            self._errors.repeat(failure)
        self._failed[number] += [failure["name"] for failure in failures]
        self._tally.n_skipped += len(part.jobs) - len(failures)
        if part.jobs:
            self._observer.skipped(len(part.jobs))

    def keep(self, number: int, done: Done) -> None:
        """What was measured of a prompt."""
        part = self._open[number]
        job = next(job for job in part.jobs if job.name == done.name)
        if done.error is None:
            part.tables[done.name] = done.content
        else:
            part.failures[done.name] = self._errors.add(job, done.error)
        self._tally.count(done)
        self._observer.job_done(job, done, None)

    def finish(self, number: int) -> None:
        """All prompts of a part are measured."""
        part = self._open.pop(number)
        self._writer.lease.check()
        while self._old:
            self._old.pop().unlink(missing_ok=True)
        part.write()
        self._failed[number] += [job.name for job in part.jobs if job.name in part.failures]

    def remove_others(self) -> None:
        """Parts of an earlier and longer dataset of that name."""
        for path in old_parts(self._writer, self._folder, self._n_parts):
            path.unlink(missing_ok=True)

    def tally_of(self, complete: bool, seconds: float) -> Tally:
        """What became of all rows."""
        tally = self._tally
        tally.failed = [name for _, names in sorted(self._failed.items()) for name in names]
        tally.end(complete, seconds, self._writer.errors_path)
        return tally


class _Part:
    """A file of a dataset's results: rows that run together, how the file is known again, and what was measured so far."""

    def __init__(self, path: Path, rows: Sequence[Job | Problem], reduce: str, crew: Crew) -> None:
        self.path, self._reduce, self._crew = path, reduce, crew
        self.jobs = [row for row in rows if isinstance(row, Job)]
        self.problems = [row for row in rows if isinstance(row, Problem)]
        self.tables: dict[str, dict[str, Any]] = {}  # by prompt, then by KINDS
        self.failures: dict[str, dict[str, Any]] = {}  # what is recorded of prompts that failed

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the file depends on."""
        ingredients = [[job.name, digest(self._crew.identity, job), _as_json(job.carried)] for job in self.jobs]
        return hashlib.sha256(json.dumps([ingredients, self._reduce]).encode()).hexdigest()

    def failures_there(self, retry: bool, say: Callable[[str], Any]) -> list[dict[str, Any]] | None:
        """What is recorded of the jobs that failed, where a file with this digest is there; None where the part is to be run.

        A job that failed for what it is, or ended its workers, does so again, as long as its digest is the same; for another
        reason it may not. retry: whether such jobs are run, too. say: is told where the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with open_file(self.path, TABLE) as file:
                found = pq.read_schema(file).metadata or {}
            if found.get(b"mask_impact_digest") != self.digest.encode():
                return None
            failures = json.loads(found.get(b"mask_impact_failures", b"[]"))
            if not isinstance(failures, list):
                raise ValueError("mask_impact_failures is no list")
            names = [(failure["name"], failure["error"]) for failure in failures]
            if not {name for name, _ in names} <= {job.name for job in self.jobs}:
                raise ValueError("mask_impact_failures has a name that is none of its prompts'")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException) as error:
            say(f"{self.path} is done again: it cannot be read ({one_line(error)})")
            return None
        lasting = () if retry else (InputError.__name__, WorkerError.__name__)
        return failures if all(error in lasting for _, error in names) else None

    def write(self) -> None:
        """The tables of the jobs that did not fail, in their order, by KINDS; all or nothing. Distances come last: by their file
        the part is known again."""
        done = [self.tables[job.name] for job in self.jobs if job.name in self.tables]
        tables = {kind: [one[kind] for one in done if kind in one] for kind in KINDS}
        failures = [self.failures[job.name] for job in self.jobs if job.name in self.failures]
        metadata = {"mask_impact_digest": self.digest, "mask_impact_failures": json.dumps(failures)}
        metadata[RUN] = json.dumps(
            {"model": self._crew.name, "reduce": self._reduce}
            | {name: getattr(self.jobs[0].settings, name) for name in HOW if self.jobs}
        )
        writers, empty = {}, []
        for kind, of_kind in reversed(tables.items()):
            path = part_of(self.path, kind)
            if of_kind:
                _make_folder(path.parent)
                writers[path] = lambda file, of_kind=of_kind: write_tables(
                    (one.replace_schema_metadata(metadata) for one in of_kind), file
                )
            elif is_regular(path):
                empty.append(path)
        if writers:
            write_files(writers, empty)
        else:
            for path in empty:
                path.unlink(missing_ok=True)


def _tables_of(result: Result, job: Job, reduce: str) -> dict[str, Any]:
    """The tables of one prompt, by KINDS; those of what was not asked for are left out."""
    carried = _as_json(job.carried)

    def named(table: Any) -> Any:
        return with_prompt(table, job.name, result.generated_text, carried)

    tables = {"": to_dataset_table(result, job.name, carried, reduce)}
    if result.has_effects:
        tables["effect"] = named(effect_table(result, [clean_text(text) for text in result.tokens.texts]))
    if result.answer is not None:
        tables["answer"] = named(explanation_table(result.answer))
        tables["card"] = named(card_table(result.answer))
        if any(target.heads is not None for target in result.answer.targets):
            tables["routes"] = named(routes_table(result.answer))
        if result.answer.matrix is not None:
            tables["matrix"] = named(matrix_table(result.answer))
    if result.patches is not None:
        tables["patches"] = named(patch_table(result.patches))
    return tables


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def _as_json(carried: dict[str, Any]) -> str:
    return json.dumps(carried, ensure_ascii=False, sort_keys=True, default=str) if carried else ""
