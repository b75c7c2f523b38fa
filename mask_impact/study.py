"""Many prompts to many results: each written as soon as it is done, what failed recorded, what is done not done again.

A result is known again by a digest of everything that it depends on, so that a run can go on where another one ended, however
it ended. Prompts run in groups that follow from the list of jobs alone, so that a result has the same bits whichever of the
others were there already.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask_impact.analysis import Observer
from mask_impact.batching import Outcome, Task, run_tasks
from mask_impact.config import Job, Problem
from mask_impact.errors import InputError, MaskImpactError, OutputError
from mask_impact.files import check_output, write_files
from mask_impact.loading import LoadedModel
from mask_impact.records import Result
from mask_impact.settings import GROUPS, OF_EFFECTS
from mask_impact.sharing import Team
from mask_impact.store import SCHEMA_VERSION, Saved, load_result, save, stored_digest, to_dataset_table, write_tables

NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_TOGETHER = 16  # jobs of a group: what is lost at most when a run is killed


class StudyObserver(Observer):
    """Is told how a study gets on, besides what an Observer is told of each run."""

    def study_begins(self, n_jobs: int | None, n_done: int) -> None:
        """n_jobs (None: unknown) are to be done, of which n_done are there already."""

    def skipped(self, n_rows: int) -> None:
        """Rows of a dataset that were there already, or are no jobs."""

    def job_done(self, job: Job, outcome: Outcome, saved: Saved | None) -> None:
        """A job's result is written, or its error recorded."""

    def row_failed(self, problem: Problem) -> None:
        """A row of a dataset is no job, which is recorded."""


class ErrorLog:
    """A file with a line of JSON for each failure; none where nothing fails. Several processes may write into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, job: Job, error: MaskImpactError) -> dict[str, Any]:
        """A job that failed; returns what is recorded."""
        entry = {"name": job.name, "error": type(error).__name__, "message": str(error), "prompt": job.prompt}
        entry["images"] = list(job.images)
        self._write(entry)
        return entry

    def repeat(self, entry: dict[str, Any]) -> None:
        """What `add` recorded in an earlier run."""
        self._write(entry)

    def add_problem(self, problem: Problem) -> None:
        """A row of a dataset that is no job."""
        self._write({"name": problem.name, "row": problem.row, "error": "InputError", "message": problem.message})

    def _write(self, entry: dict[str, Any]) -> None:
        """One write for a line: it is there whole or not at all."""
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")  # a name may contain dots


@dataclass
class Tally:
    """What became of the jobs so far. stopped: by the user, before the end; seconds: of this process."""

    n_jobs: int = 0
    n_written: int = 0
    n_skipped: int = 0  # were there already
    failed: list[str] = field(default_factory=list)  # their names
    n_tokens: int = 0  # masked at all steps
    stopped: bool = False
    errors_path: Path | None = None
    seconds: float = 0.0

    def count(self, outcome: Outcome) -> None:
        """One more job that was run."""
        if outcome.error is None:
            self.n_written += 1
            self.n_tokens += sum(len(step.positions) for step in outcome.result.steps)
        else:
            self.failed.append(outcome.task.key.name)

    def report(self) -> dict[str, Any]:
        """What `add` takes, for another process to add it."""
        return {name: getattr(self, name) for name in ("n_jobs", "n_written", "n_skipped", "failed", "n_tokens")}

    def add(self, report: dict[str, Any]) -> None:
        """The report of another tally, of other jobs."""
        for name, value in report.items():
            setattr(self, name, getattr(self, name) + value)


def run_study(
    loaded: LoadedModel,
    jobs: Sequence[Job],
    team: Team,
    *,
    formats: Sequence[str] | None = None,
    resume: bool = False,
    beside: Mapping[str, Callable[[Result, Path], Any]] = NOTHING,
    command: str = "",
    observer: StudyObserver | None = None,
) -> Tally:
    """Run `jobs` and write {job name}_results for each into the team's folder; failures go to {team name}.errors.jsonl there.

    resume: leave out jobs whose complete result with the same digest is there. beside: what else is written of each result, by
    the suffix of a file that it always writes: functions of the result and its path without suffix. The first Ctrl-C (or
    SIGTERM) ends the study when the group at work is written, the second Ctrl-C at once.
    """
    observer = observer or StudyObserver()
    errors = ErrorLog(team.errors_path)
    paths = {job.name: check_output(team.folder, f"{job.name}_results") for job in jobs}
    digests = {job.name: digest(loaded, job) for job in jobs}

    def is_there(job: Job) -> bool:
        return resume and _is_there(paths[job.name], digests[job.name], formats)

    def keep(job: Job, result: Result) -> Saved:
        meta = {"command": command, "job": job.name, "digest": digests[job.name], "carried": job.carried}
        result = replace(result, meta=result.meta | meta)
        for suffix in beside:  # those of an earlier result must not pass for this one's
            _with_suffix(paths[job.name], suffix).unlink(missing_ok=True)
        saved = save(result, paths[job.name], formats)
        complete(job, result)
        return saved

    def complete(job: Job, result: Result | None = None) -> None:
        """Write what is not there yet beside a result that is."""
        for suffix, write in beside.items():
            if not _with_suffix(paths[job.name], suffix).exists():
                result = load_result(paths[job.name]) if result is None else result
                write(result, paths[job.name])

    def run(group: Sequence[Job]) -> Tally:
        done = {job.name for job in group if is_there(job)}
        tally = Tally(len(group), n_skipped=len(done))
        for job in group:
            if job.name in done:
                complete(job)
        if len(done) == len(group):
            return tally
        for outcome in run_tasks(loaded, [_task(job) for job in group], observer):
            job = outcome.task.key
            if job.name in done:  # ran along only for the others' sake
                continue
            saved = keep(job, outcome.result) if outcome.error is None else None
            if outcome.error is not None:
                errors.add(job, outcome.error)
            tally.count(outcome)
            observer.job_done(job, outcome, saved)
        return tally

    alone = team.size == 1  # others may have written results by now, which are counted when their groups are passed
    observer.study_begins(len(jobs), sum(map(is_there, jobs)) if alone else 0)
    tally = _share(team, _groups(jobs), run, observer, counted_at_once=alone)
    tally.n_jobs = len(jobs)  # where it was stopped, too
    return tally


def _share(
    team: Team, blocks: Iterable[Any], run: Callable[[Any], Tally], observer: StudyObserver, counted_at_once: bool
) -> Tally:
    """Run the blocks that are this process's; the tally of all of them, whoever ran them.

    counted_at_once: whether the observer was told at the beginning what is there already.
    """
    started, total = time.perf_counter(), Tally()
    with _first_interrupt_waits(observer) as interrupted:
        for claim in team.share(blocks, stop=interrupted, passed=lambda block: observer.skipped(len(block))):
            tally = run(claim.block)
            team.finish(claim, tally.report())
            if tally.n_skipped and not counted_at_once:
                observer.skipped(tally.n_skipped)
    for report in team.reports():
        total.add(report)
    total.stopped, total.seconds = not team.complete, time.perf_counter() - started
    total.errors_path = team.errors_path if total.failed else None
    return total


def _task(job: Job) -> Task:
    return Task(job, job.prompt, job.settings, job.images)


def _groups(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Jobs that may share forward passes: neighbours, few where there are few jobs, so that several processes get some each."""
    size = min(MAX_TOGETHER, max(1, len(jobs) // 16))
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def digest(loaded: LoadedModel, job: Job) -> str:
    """SHA-256 of all that a result's numbers depend on: prompt, images, model, dtype, settings and the files' schema."""
    settings = asdict(job.settings)
    for name in ("allow_remote", "max_cost"):
        settings.pop(name)
    if not settings["effect"]:
        settings = {name: value for name, value in settings.items() if name not in OF_EFFECTS}
    elif settings["groups"] not in GROUPS:
        settings["groups"] = _file_digest(settings["groups"])
    ingredients = {
        "prompt": job.prompt,
        "images": [_file_digest(image) for image in job.images],
        "model": [loaded.name, loaded.revision, _weights_digest(loaded)],
        "dtype": str(loaded.model.dtype),
        "settings": settings,
        "schema": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _file_digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a URL, or missing: the run will say so
        return path


def _weights_digest(loaded: LoadedModel) -> list[list[Any]]:
    """Name, size and time of the weight files of a model in a folder; a model of the hub is known by its commit."""
    folder = Path(loaded.model.config.name_or_path or ".")
    if loaded.revision is not None or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _is_there(path: Path, expected: str, formats: Sequence[str] | None) -> bool:
    try:
        return stored_digest(path, formats) == expected
    except OutputError:
        return False


@contextmanager
def _first_interrupt_waits(observer: Observer) -> Iterator[Callable[[], bool]]:
    """While the block is open, the first Ctrl-C is only noted; the yielded function tells. The second is one as ever.

    SIGTERM, which launchers and clusters end a process with, is only noted too: what is at work gets written.
    """
    seen = False

    def note(number: int, frame: Any) -> None:
        nonlocal seen
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not seen:
            observer.note("Stopping when the prompts at work are written; Ctrl-C again stops at once")
        seen = True

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread, which alone gets signals
        yield lambda: False
        return
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- datasets -----------------------------------------------------------------------------------------------------------------


def run_dataset(
    loaded: LoadedModel,
    rows: Iterable[Job | Problem],
    team: Team,
    *,
    n_rows: int | None = None,
    reduce: str = "summary",
    resume: bool = False,
    observer: StudyObserver | None = None,
) -> Tally:
    """Run the jobs of a dataset, read as they are needed, and write part-*.parquet of MAX_TOGETHER rows each into a folder.

    The folder is called as the team is, in the team's folder. Rows that are no jobs, and jobs that fail, go to
    {team name}.errors.jsonl. reduce: see `store.to_dataset_table`. n_rows: about how many rows there are. resume: leave out
    parts that are complete. Ctrl-C as in `run_study`.
    """
    observer = observer or StudyObserver()
    errors = ErrorLog(team.errors_path)
    folder = check_output(team.folder, team.name)
    folder.mkdir(exist_ok=True)
    n_parts = 0

    def parts() -> Iterator[_Part]:
        nonlocal n_parts
        remaining = iter(rows)
        while block := list(islice(remaining, MAX_TOGETHER)):
            n_parts += 1
            yield _Part(folder / f"part-{n_parts - 1:06d}.parquet", block, reduce)

    def run(part: _Part) -> Tally:
        for problem in part.problems:
            errors.add_problem(problem)
            observer.row_failed(problem)
        part_digest = part.digest(loaded)
        failures = part.failures_there(part_digest) if resume else None
        if failures is None:
            tally = _run_part(loaded, part, part_digest, errors, observer)
        else:
            for failure in failures:
                errors.repeat(failure)
            names = [failure["name"] for failure in failures]
            tally = Tally(len(part.jobs), n_skipped=len(part.jobs) - len(names), failed=names)
        tally.n_jobs += len(part.problems)
        tally.failed = [*(problem.name or f"row {problem.row}" for problem in part.problems), *tally.failed]
        return tally

    observer.study_begins(n_rows, 0)
    tally = _share(team, parts(), run, observer, counted_at_once=False)
    if team.leads and team.complete:
        _remove_parts_from(folder, n_parts)
    return tally


class _Part:
    """A file of a dataset's results: rows that run together, and how the file is known again."""

    def __init__(self, path: Path, rows: Sequence[Job | Problem], reduce: str) -> None:
        self.path, self.reduce = path, reduce
        self.jobs = [row for row in rows if isinstance(row, Job)]
        self.problems = [row for row in rows if isinstance(row, Problem)]

    def __len__(self) -> int:
        return len(self.jobs) + len(self.problems)

    def digest(self, loaded: LoadedModel) -> str:
        """SHA-256 of all that the file depends on."""
        ingredients = [[job.name, digest(loaded, job), _as_json(job.carried)] for job in self.jobs]
        return hashlib.sha256(json.dumps([ingredients, self.reduce]).encode()).hexdigest()

    def failures_there(self, expected: str) -> list[dict[str, Any]] | None:
        """What is recorded of the jobs that failed, where a file with this digest is there; None where the part is to be run.

        A job that failed for what it is fails again, as long as its digest is the same; for another reason it may not.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_schema(self.path).metadata or {}
            if found.get(b"mask_impact_digest") != expected.encode():
                return None
            failures = json.loads(found.get(b"mask_impact_failures", b"[]"))
        except (OSError, ValueError, pa.ArrowException):
            return None
        return failures if all(failure["error"] == InputError.__name__ for failure in failures) else None

    def write(self, tables: Sequence[Any], part_digest: str, failures: Sequence[dict[str, Any]]) -> None:
        """The tables of the jobs that did not fail, in their order; all or nothing."""
        if not tables:
            self.path.unlink(missing_ok=True)
            return
        metadata = {"mask_impact_digest": part_digest, "mask_impact_failures": json.dumps(failures)}
        write_files(
            {self.path: lambda file: write_tables((one.replace_schema_metadata(metadata) for one in tables), file)}
        )


def _run_part(loaded: LoadedModel, part: _Part, part_digest: str, errors: ErrorLog, observer: StudyObserver) -> Tally:
    tally, failures = Tally(len(part.jobs)), []
    tables: dict[str, Any] = {}
    for outcome in run_tasks(loaded, [_task(job) for job in part.jobs], observer):
        job = outcome.task.key
        if outcome.error is None:
            tables[job.name] = to_dataset_table(outcome.result, job.name, _as_json(job.carried), part.reduce)
        else:
            failures.append(errors.add(job, outcome.error))
        tally.count(outcome)
        observer.job_done(job, outcome, None)
    part.write([tables[job.name] for job in part.jobs if job.name in tables], part_digest, failures)
    return tally


def _as_json(carried: dict[str, Any]) -> str:
    return json.dumps(carried, ensure_ascii=False, sort_keys=True, default=str) if carried else ""


def _remove_parts_from(folder: Path, number: int) -> None:
    """Parts of an earlier and longer dataset of that name."""
    for path in folder.glob("part-*.parquet"):
        if path.stem.removeprefix("part-").isdigit() and int(path.stem.removeprefix("part-")) >= number:
            path.unlink()
