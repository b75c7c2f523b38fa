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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mask_impact.analysis import Observer
from mask_impact.batching import Outcome, Task, run_tasks
from mask_impact.config import Job
from mask_impact.errors import MaskImpactError, OutputError
from mask_impact.files import check_output
from mask_impact.loading import LoadedModel
from mask_impact.plots import save_plots
from mask_impact.store import SCHEMA_VERSION, Saved, save, stored_digest

MAX_TOGETHER = 16  # jobs of a group: what is lost at most when a run is killed


class StudyObserver(Observer):
    """Is told how a study gets on, besides what an Observer is told of each run."""

    def study_begins(self, n_jobs: int, n_done: int) -> None:
        """n_jobs are to be done, of which n_done are there already."""

    def job_done(self, job: Job, outcome: Outcome, saved: Saved | None) -> None:
        """A job's result is written, or its error recorded."""


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
        _run_jobs(loaded, jobs, folder, name, formats, resume, plots, command, observer, tally, interrupted)
    tally.seconds = time.perf_counter() - started
    return tally


def _run_jobs(loaded, jobs, folder, name, formats, resume, plots, command, observer, tally, interrupted) -> None:
    paths = {job.name: check_output(folder, f"{job.name}_results") for job in jobs}
    digests = {job.name: digest(loaded, job) for job in jobs}
    done = {job.name for job in jobs if resume and _is_there(paths[job.name], digests[job.name], formats)}
    tally.n_skipped = len(done)
    observer.study_begins(len(jobs), len(done))
    errors = ErrorLog(folder / f"{name}.errors.jsonl")
    for group in _groups(jobs):
        if all(job.name in done for job in group):
            continue
        for outcome in run_tasks(loaded, [_task(job) for job in group], observer):
            job, saved = outcome.task.key, None
            if job.name in done:  # was there already, and ran along only for the others' sake
                continue
            if outcome.error is None:
                meta = {"command": command, "job": job.name, "digest": digests[job.name], "carried": job.carried}
                result = replace(outcome.result, meta=outcome.result.meta | meta)
                saved = save(result, paths[job.name], formats)
                if plots:
                    save_plots(result, paths[job.name])
                tally.n_written += 1
                tally.n_tokens += sum(len(step.positions) for step in result.steps)
            else:
                errors.add(job, outcome.error)
                tally.failed.append(job.name)
                tally.errors_path = errors.path
            observer.job_done(job, outcome, saved)
        if interrupted():
            tally.stopped = tally.n_skipped + tally.n_written + len(tally.failed) < len(jobs)
            return


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


class ErrorLog:
    """A file with a line of JSON for each failure; an earlier study's is removed, and none is left where nothing fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def add(self, job: Job, error: MaskImpactError) -> None:
        """One write for a line: it is there whole or not at all."""
        entry = {"name": job.name, "error": type(error).__name__, "message": str(error), "prompt": job.prompt}
        line = json.dumps(entry | {"images": list(job.images)}, ensure_ascii=True) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


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
