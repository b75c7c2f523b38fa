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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mask_impact.analysis import Observer
from mask_impact.batching import Outcome, Task, run_tasks
from mask_impact.config import Job, Problem
from mask_impact.errors import MaskImpactError, OutputError
from mask_impact.files import check_output, write_files
from mask_impact.loading import LoadedModel
from mask_impact.plots import save_plots
from mask_impact.records import Result
from mask_impact.store import SCHEMA_VERSION, Saved, save, stored_digest, to_dataset_table, write_tables

MAX_TOGETHER = 16  # jobs of a group: what is lost at most when a run is killed


class StudyObserver(Observer):
    """Is told how a study gets on, besides what an Observer is told of each run."""

    def study_begins(self, n_jobs: int | None, n_done: int) -> None:
        """n_jobs (None: unknown) are to be done, of which n_done are there already."""

    def skipped(self, n_rows: int) -> None:
        """Rows of a dataset that were there already, or are no jobs."""

    def job_done(self, job: Job, outcome: Outcome, saved: Saved | None) -> None:
        """A job's result is written, or its error recorded."""


class ErrorLog:
    """A file with a line of JSON for each failure; an earlier study's is removed, and none is left where nothing fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def add(self, job: Job, error: MaskImpactError) -> None:
        """A job that failed."""
        entry = {"name": job.name, "error": type(error).__name__, "message": str(error), "prompt": job.prompt}
        self._write(entry | {"images": list(job.images)})

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


@dataclass
class Tally:
    """What became of the jobs so far. stopped: by the user, before the end."""

    n_jobs: int
    n_skipped: int = 0
    n_written: int = 0
    failed: list[str] = field(default_factory=list)
    errors_path: Path | None = None
    stopped: bool = False
    n_tokens: int = 0  # masked at all steps
    seconds: float = 0.0

    def count(self, outcome: Outcome, errors: ErrorLog) -> None:
        """One more job; its error, if it has one, goes into the log."""
        if outcome.error is None:
            self.n_written += 1
            self.n_tokens += sum(len(step.positions) for step in outcome.result.steps)
            return
        errors.add(outcome.task.key, outcome.error)
        self.failed.append(outcome.task.key.name)
        self.errors_path = errors.path


def run_study(
    loaded: LoadedModel,
    jobs: Sequence[Job],
    folder: Path,
    name: str,
    *,
    formats: Sequence[str] | None = None,
    resume: bool = False,
    plots: bool = False,
    command: str = "",
    observer: StudyObserver | None = None,
) -> Tally:
    """Run `jobs` and write {job name}_results for each into `folder`; failures go to `name`.errors.jsonl there.

    resume: leave out jobs whose complete result with the same digest is there. plots: draw each result too. The first Ctrl-C
    ends the study when the group at work is written, the second at once.
    """
    observer = observer or StudyObserver()
    tally, started = Tally(len(jobs)), time.perf_counter()
    with _alone(folder, name), _first_interrupt_waits(observer) as interrupted:
        paths = {job.name: check_output(folder, f"{job.name}_results") for job in jobs}
        digests = {job.name: digest(loaded, job) for job in jobs}
        done = {job.name for job in jobs if resume and _is_there(paths[job.name], digests[job.name], formats)}
        tally.n_skipped = len(done)
        observer.study_begins(len(jobs), len(done))
        errors = ErrorLog(folder / f"{name}.errors.jsonl")

        def keep(job: Job, result: Result) -> Saved:
            meta = {"command": command, "job": job.name, "digest": digests[job.name], "carried": job.carried}
            result = replace(result, meta=result.meta | meta)
            saved = save(result, paths[job.name], formats)
            if plots:
                save_plots(result, paths[job.name])
            return saved

        for group in _groups(jobs):
            if all(job.name in done for job in group):
                continue
            for outcome in run_tasks(loaded, [_task(job) for job in group], observer):
                job = outcome.task.key
                if job.name not in done:  # else it ran along only for the others' sake
                    saved = keep(job, outcome.result) if outcome.error is None else None
                    tally.count(outcome, errors)
                    observer.job_done(job, outcome, saved)
            if interrupted():
                tally.stopped = tally.n_skipped + tally.n_written + len(tally.failed) < len(jobs)
                break
    tally.seconds = time.perf_counter() - started
    return tally


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """OutputError where another run is writing results of that name into the folder."""
    lock = FileLock(check_output(folder, name).with_name(f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"another run is writing the results of '{name}' into {folder}: wait for its end, or use another --output-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _task(job: Job) -> Task:
    return Task(job, job.prompt, job.settings, job.images)


def _groups(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Jobs that may share forward passes: neighbours, few where there are few jobs, so that results come soon."""
    size = min(MAX_TOGETHER, max(1, len(jobs) // 8))
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def digest(loaded: LoadedModel, job: Job) -> str:
    """SHA-256 of all that a result's numbers depend on: prompt, images, model, dtype, settings and the files' schema."""
    settings = asdict(job.settings)
    settings.pop("allow_remote")
    ingredients = {
        "prompt": job.prompt,
        "images": [_image_digest(image) for image in job.images],
        "model": [loaded.name, loaded.revision, _weights_digest(loaded)],
        "dtype": str(loaded.model.dtype),
        "settings": settings,
        "schema": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _image_digest(image: str) -> str:
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a URL, or missing: the run will say so
        return image


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
    """While the block is open, the first Ctrl-C is only noted; the yielded function tells. The second is one as ever."""
    seen = False

    def note(number: int, frame: Any) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        observer.note("Stopping when the prompts at work are written; Ctrl-C again stops at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, which alone gets signals
        yield lambda: False
        return
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


# --- datasets -----------------------------------------------------------------------------------------------------------------


def run_dataset(
    loaded: LoadedModel,
    rows: Iterable[Job | Problem],
    folder: Path,
    name: str,
    *,
    n_rows: int | None = None,
    reduce: str = "summary",
    resume: bool = False,
    observer: StudyObserver | None = None,
) -> Tally:
    """Run the jobs of a dataset, read as they are needed, and write `folder`/`name`/part-*.parquet, MAX_TOGETHER rows each.

    Rows that are no jobs, and jobs that fail, go to `folder`/`name`.errors.jsonl. reduce: see `store.to_dataset_table`.
    n_rows: about how many rows there are. resume: leave out parts that are complete. Ctrl-C as in `run_study`.
    """
    observer = observer or StudyObserver()
    tally, started = Tally(0), time.perf_counter()
    parts = check_output(folder, name)
    with _alone(folder, name), _first_interrupt_waits(observer) as interrupted:
        parts.mkdir(exist_ok=True)
        errors = ErrorLog(folder / f"{name}.errors.jsonl")
        observer.study_begins(n_rows, 0)
        rows = iter(rows)
        number = 0
        while block := list(islice(rows, MAX_TOGETHER)):
            tally.n_jobs += len(block)
            part = _Part(parts / f"part-{number:06d}.parquet", block, loaded, reduce)
            if resume and part.is_there():
                tally.n_skipped += len(block)
                observer.skipped(len(block))
            else:
                _run_part(loaded, part, errors, tally, observer)
            number += 1
            if interrupted():
                tally.stopped = True
                break
        if not tally.stopped:
            _remove_parts_from(parts, number)
    tally.seconds = time.perf_counter() - started
    return tally


class _Part:
    """A file of a dataset's results: rows that run together, and how the file is known again."""

    def __init__(self, path: Path, block: Sequence[Job | Problem], loaded: LoadedModel, reduce: str) -> None:
        self.path, self.reduce = path, reduce
        self.jobs = [one for one in block if isinstance(one, Job)]
        self.problems = [one for one in block if isinstance(one, Problem)]
        ingredients = [[job.name, digest(loaded, job), _as_json(job.carried)] for job in self.jobs]
        self.digest = hashlib.sha256(json.dumps([ingredients, reduce]).encode()).hexdigest()

    def is_there(self) -> bool:
        """Whether a complete file with these rows is there; one with failures is not, for they are to be tried again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_schema(self.path).metadata or {}
        except (OSError, pa.ArrowException):
            return False
        return not self.problems and found.get(b"mask_impact_digest") == self.digest.encode()

    def write(self, tables: Sequence[Any], complete: bool) -> None:
        """The tables of the jobs that did not fail, in their order; all or nothing."""
        if not tables:
            self.path.unlink(missing_ok=True)
            return
        metadata = {"mask_impact_digest": self.digest if complete else ""}
        write_files(
            {self.path: lambda file: write_tables((one.replace_schema_metadata(metadata) for one in tables), file)}
        )


def _run_part(loaded: LoadedModel, part: _Part, errors: ErrorLog, tally: Tally, observer: StudyObserver) -> None:
    for problem in part.problems:
        errors.add_problem(problem)
        tally.failed.append(problem.name or f"row {problem.row}")
        tally.errors_path = errors.path
        observer.skipped(1)
    tables: dict[str, Any] = {}
    for outcome in run_tasks(loaded, [_task(job) for job in part.jobs], observer):
        job = outcome.task.key
        if outcome.error is None:
            tables[job.name] = to_dataset_table(outcome.result, job.name, _as_json(job.carried), part.reduce)
        tally.count(outcome, errors)
        observer.job_done(job, outcome, None)
    part.write([tables[job.name] for job in part.jobs if job.name in tables], len(tables) == len(part.jobs))


def _as_json(carried: dict[str, Any]) -> str:
    return json.dumps(carried, ensure_ascii=False, sort_keys=True, default=str) if carried else ""


def _remove_parts_from(folder: Path, number: int) -> None:
    """Parts of an earlier and longer dataset of that name."""
    for path in folder.glob("part-*.parquet"):
        if path.stem.removeprefix("part-").isdigit() and int(path.stem.removeprefix("part-")) >= number:
            path.unlink()
