"""How a study gets on: who is told, what is counted, what failed, and that Ctrl-C lets what is at work be written."""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask_impact.analyses.observer import Observer
from mask_impact.errors import MaskImpactError, public_address
from mask_impact.prompts.marks import is_data
from mask_impact.results.files import append_line
from mask_impact.results.store import Saved
from mask_impact.studies.batching import Outcome, Task
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.sharing import Team
from mask_impact.studies.signals import ended_by

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
        entry["images"] = [image[:40] if is_data(image) else public_address(image) for image in job.images]
        if job.videos:
            entry["videos"] = list(job.videos)
        self._write(entry)
        return entry

    def repeat(self, entry: dict[str, Any]) -> None:
        """What `add` recorded in an earlier run."""
        self._write(entry)

    def add_problem(self, problem: Problem) -> None:
        """A row of a dataset that is no job."""
        self._write({"name": problem.name, "row": problem.row, "error": "InputError", "message": problem.message})

    def _write(self, entry: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(entry, ensure_ascii=True))


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


def run_blocks(
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


def task_of(job: Job) -> Task:
    """The job as what shares forward passes."""
    return Task(job, job.prompt, job.settings, job.images, job.videos)


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

    with ended_by(note):
        yield lambda: seen
