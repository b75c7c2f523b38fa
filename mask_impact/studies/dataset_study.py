"""Rows of prompts to parts of Parquet, each written as soon as it is done and known again by its digest."""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from mask_impact.errors import InputError, OutputError, WorkerError
from mask_impact.findings.correctness import expected_column, is_correct
from mask_impact.models.loading import LoadedModel
from mask_impact.results.dataset_answers import card_table
from mask_impact.results.distance_files import write_tables
from mask_impact.results.effect_tables import effect_table
from mask_impact.results.explanation_tables import carried_table, cuts_table, explanation_table, matrix_table
from mask_impact.results.remote import Place, is_there, opened
from mask_impact.results.study_folder import IMPACT, PROMPTS, TABLES, part_of
from mask_impact.results.table_files import clean_text, one_line
from mask_impact.results.tables import prompts_table, to_dataset_table, with_prompt
from mask_impact.studies.batching import Outcome
from mask_impact.studies.crew import Block, Crew, Done, ThisProcess
from mask_impact.studies.digest import digest
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.looks import tables_of
from mask_impact.studies.manifest import about, changed, n_complete, read_manifest, stored, write_manifest
from mask_impact.studies.parts import RUN, folder_of, make_folder, remove, write_part
from mask_impact.studies.progress import Course, ErrorLog, StudyObserver, Tally, run_blocks
from mask_impact.studies.writer import MAX_TOGETHER, Writer, old_parts


def run_dataset(
    model: LoadedModel | Crew,
    rows: Iterable[Job | Problem],
    writer: Writer,
    *,
    n_rows: int | None = None,
    own: Collection[str] = (),
    reduce: str = "summary",
    resume: bool = False,
    retry_failed: bool = False,
    keep_others: bool = False,
    observer: StudyObserver | None = None,
) -> Tally:
    """Run the jobs of a dataset or a configuration, read as they are needed, and write parts of MAX_TOGETHER rows each, a file
    for each table.

    They go into the folder that is called as the writer is, in the writer's folder: see `results.study_folder`. Rows that are no
    jobs, and jobs that fail, go to {writer name}.errors.jsonl. model: or who measures with
    it. reduce: see `tables.to_dataset_table`. n_rows: about how many rows there are. own: settings that may differ from row to
    row, besides those that are columns of datasets. resume: leave out parts that are complete;
    with retry_failed only those in which nothing failed. keep_others: whether a resumed run leaves later parts that are there,
    because these rows are only the first of the dataset. Ctrl-C as in `run_study`.
    """
    observer, started = observer or StudyObserver(), time.perf_counter()
    crew = ThisProcess(model, observer) if isinstance(model, LoadedModel) else model
    study, course = _Dataset(crew, rows, writer, reduce, observer), Course()
    study.resume, study.retry_failed, study.own = resume, retry_failed, own
    observer.study_begins(n_rows, 0)
    for block, done in run_blocks(crew, study.blocks(), partial(_tables_of, reduce=reduce), observer, course):
        if done is None:
            study.finish(block.number)
        else:
            study.keep(block.number, done)
    if course.complete and not (resume and keep_others):
        study.remove_others()
    study.end()
    return study.tally_of(course.complete, time.perf_counter() - started)


class _Dataset:
    """The parts of a dataset: which are to be run, what was measured of those at work, and writing them."""

    resume = retry_failed = False
    own: Collection[str] = ()

    def __init__(
        self, crew: Crew, rows: Iterable[Job | Problem], writer: Writer, reduce: str, observer: StudyObserver
    ) -> None:
        self._crew, self._rows, self._writer, self._reduce, self._observer = crew, rows, writer, reduce, observer
        self._errors, self._tally = ErrorLog(writer.errors_path), Tally()
        self._folder = folder_of(writer.folder, writer.name)
        make_folder(self._folder)
        self._common: dict[str, Any] | None = None  # what the manifest says of all prompts
        self._old = old_parts(writer, self._folder) if writer.fresh else []  # go when something takes their place
        self._open: dict[int, _Part] = {}
        self._failed: dict[int, list[str]] = {}  # by part
        self._n_parts = self._n_rows = 0
        self._has_manifest = False

    def blocks(self) -> Iterator[Block]:
        """The parts that are to be run."""
        remaining = iter(self._rows)
        while rows := list(islice(remaining, MAX_TOGETHER)):
            number, self._n_parts = self._n_parts, self._n_parts + 1
            self._n_rows += len(rows)
            if number not in self._writer.shard:
                continue
            part = _Part(self._folder, number, rows, self._reduce, self._crew)
            self._notice(part)
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
        remove(self._old)
        self._old = []
        part.write()
        self._failed[number] += [job.name for job in part.jobs if job.name in part.failures]
        self._errors.flush()
        if self._common is not None and not self._has_manifest:
            self._has_manifest = True
            write_manifest(self._folder, self._common, 0, False)

    def _notice(self, part: "_Part") -> None:
        """What the first part says of all; a note where a run goes on with what has another model, settings or code."""
        if self._common is not None or not part.jobs:
            return
        self._common = about(self._crew.identity, part.jobs[0].settings, self._reduce, self.own)
        try:
            before = read_manifest(self._folder) if self.resume else None
        except OutputError as error:
            self._observer.note(f"It is written again: {error}")
            return
        if before is not None and (what := changed(before, self._common)):
            self._observer.note(f"What is there was measured otherwise: {what}")

    def remove_others(self) -> None:
        """Parts of an earlier and longer dataset of that name."""
        remove(old_parts(self._writer, self._folder, self._n_parts))

    def end(self) -> None:
        """The manifest of what is there."""
        self._errors.flush()
        if self._common is not None:
            self._writer.lease.check()
            complete = n_complete(self._folder) == self._n_parts
            write_manifest(self._folder, self._common, self._n_rows, complete)

    def tally_of(self, complete: bool, seconds: float) -> Tally:
        """What became of all rows."""
        tally = self._tally
        tally.failed = [name for _, names in sorted(self._failed.items()) for name in names]
        tally.end(complete, seconds, self._writer.errors_path)
        return tally


class _Part:
    """The files of some of a dataset's rows, which run together: how they are known again, and what was measured so far."""

    def __init__(self, folder: Place, number: int, rows: Sequence[Job | Problem], reduce: str, crew: Crew) -> None:
        self._folder, self._number, self._reduce, self._crew = folder, number, reduce, crew
        self.jobs = [row for row in rows if isinstance(row, Job)]
        self.problems = [row for row in rows if isinstance(row, Problem)]
        self.tables: dict[str, dict[str, Any]] = {}  # by prompt, then by TABLES
        self.failures: dict[str, dict[str, Any]] = {}  # what is recorded of prompts that failed

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {job.name: digest(self._crew.identity, job) for job in self.jobs}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the files depend on."""
        ingredients = [[job.name, self._digests[job.name], _as_json(job.carried)] for job in self.jobs]
        return hashlib.sha256(json.dumps([ingredients, self._reduce]).encode()).hexdigest()

    def failures_there(self, retry: bool, say: Callable[[str], Any]) -> list[dict[str, Any]] | None:
        """What is recorded of the jobs that failed, where a part with this digest is there; None where it is to be run.

        A job that failed for what it is, or ended its workers, does so again, as long as its digest is the same; for another
        reason it may not. retry: whether such jobs are run, too. say: is told where the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = part_of(self._folder, PROMPTS, self._number)
        try:
            with opened(path) as file:
                found = pq.read_schema(file).metadata or {}
            if found.get(b"mask_impact_digest") != self.digest.encode():
                return None
            tables = json.loads(found[b"mask_impact_tables"])
            if missing := [name for name in tables if not is_there(part_of(self._folder, name, self._number))]:
                raise ValueError(f"its table {missing[0]} is not there")
            failures = json.loads(found.get(b"mask_impact_failures", b"[]"))
            if not isinstance(failures, list):
                raise ValueError("mask_impact_failures is no list")
            names = [(failure["name"], failure["error"]) for failure in failures]
            if not {name for name, _ in names} <= {job.name for job in self.jobs}:
                raise ValueError("mask_impact_failures has a name that is none of its prompts'")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException) as error:
            say(f"{path} is done again: it cannot be read ({one_line(error)})")
            return None
        lasting = () if retry else (InputError.__name__, WorkerError.__name__)
        return failures if all(error in lasting for _, error in names) else None

    def write(self) -> None:
        """The tables of the jobs that did not fail, in their order; all or nothing."""
        done = [(job, self.tables[job.name]) for job in self.jobs if job.name in self.tables]
        of = {name: [one[name] for _, one in done if name in one] for name in TABLES}
        of = {name: tables for name, tables in of.items() if tables}
        of[PROMPTS] = [prompts_table([self._row(job, one[PROMPTS]) for job, one in done])]
        run = {"model": self._crew.name, "reduce": self._reduce}
        failures = [self.failures[job.name] for job in self.jobs if job.name in self.failures]
        known = {"mask_impact_digest": self.digest, "mask_impact_failures": json.dumps(failures)}
        known["mask_impact_tables"] = json.dumps([name for name in of if name != PROMPTS])

        def writer_of(name: str, tables: list) -> Callable[[Any], None]:
            metadata = {RUN: json.dumps(run)} | (known if name == PROMPTS else {})
            return lambda file: write_tables((one.replace_schema_metadata(metadata) for one in tables), file)

        write_part(self._folder, self._number, {name: writer_of(name, tables) for name, tables in of.items()})

    def _row(self, job: Job, found: Mapping[str, Any]) -> dict[str, Any]:
        """What the table of prompts has of one."""
        expected = job.carried.get(expected_column(job.carried))
        return {
            "prompt_name": job.name,
            "digest": self._digests[job.name],
            "settings": _as_json(stored(job.settings)),
            "correct": is_correct(found["generated_text"], expected),
            "carried": _as_json(job.carried),
            **found,
        }


def _tables_of(outcome: Outcome, reduce: str) -> dict[str, Any]:
    """The tables of one prompt, by TABLES; those of what was not asked for are left out. Of the prompts' table what the outcome
    says."""
    result, job = outcome.result, outcome.task.source
    carried = _as_json(job.carried)

    def named(table: Any) -> Any:
        return with_prompt(table, job.name, result.generated_text, carried)

    tables: dict[str, Any] = {IMPACT: to_dataset_table(result, job.name, carried, reduce)}
    tables[PROMPTS] = {
        "generated_text": result.generated_text,
        "n_prompt": result.n_prompt,
        "n_produced": len(result.steps),
        "left_out": _as_json(dict(outcome.left_out)),
        "seconds": outcome.seconds,
    }
    if result.has_effects:
        tables["effect"] = named(effect_table(result, [clean_text(text) for text in result.tokens.texts]))
    if result.answer is not None:
        tables["answer"] = named(explanation_table(result.answer))
        tables["card"] = named(card_table(result.answer))
        if any(target.heads is not None for target in result.answer.targets):
            tables["routes"] = named(carried_table(result.answer))
            if len(cuts := cuts_table(result.answer)):
                tables["flows"] = named(cuts)
        if result.answer.matrix is not None:
            tables["matrix"] = named(matrix_table(result.answer))
    tables |= {name: named(table) for name, table in tables_of(outcome.looked)}
    return tables


def _as_json(carried: dict[str, Any]) -> str:
    return json.dumps(carried, ensure_ascii=False, sort_keys=True, default=str) if carried else ""
