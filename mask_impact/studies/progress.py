"""How a study gets on: who is told, what is counted, what failed, and that Ctrl-C lets what is at work be written."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mask_impact.analyses.observer import Observer
from mask_impact.errors import public_address
from mask_impact.prompts.marks import is_data
from mask_impact.results.files import append_line
from mask_impact.results.remote import Place, Remote
from mask_impact.results.store import Saved
from mask_impact.studies.crew import Block, Crew, Done, Shape
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.signals import ended_by


class StudyObserver(Observer):
    """Is told how a study gets on, besides what an Observer is told of each run."""

    def study_begins(self, n_jobs: int | None, n_done: int) -> None:
        """n_jobs (None: unknown) are to be done, of which n_done are there already."""

    def skipped(self, n_rows: int) -> None:
        """Rows of a dataset that were there already, or are no jobs."""

    def job_done(self, job: Job, done: Done, saved: Saved | None) -> None:
        """A job's result is written, or its error recorded."""

    def row_failed(self, problem: Problem) -> None:
        """A row of a dataset is no job, which is recorded."""


class ErrorLog:
    """A file with a line of JSON for each failure; none where nothing fails. Elsewhere than on this machine it is written whole,
    when a part is."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self._lines: list[str] = []
        self._n_written = 0

    def add(self, job: Job, error: tuple[str, str], **more: Any) -> dict[str, Any]:
        """A job that failed, with (class, message) of its error; returns what is recorded."""
        entry = {"name": job.name, "error": error[0], "message": error[1], "prompt": job.prompt} | more
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
        line = json.dumps(entry, ensure_ascii=True)
        if isinstance(self.path, Remote):
            self._lines.append(line)
        else:
            append_line(self.path, line)

    def flush(self) -> None:
        """What is not written yet."""
        if len(self._lines) > self._n_written:
            self._n_written = len(self._lines)
            self.path.write(lambda file: file.write("".join(f"{line}\n" for line in self._lines).encode()))


@dataclass
class Tally:
    """What became of the jobs so far. stopped: by the user, before the end; failed: their names; left_out: of how many prompts a
    question about images was left out, by its name and why."""

    n_jobs: int = 0
    n_written: int = 0
    n_skipped: int = 0  # were there already
    failed: list[str] = field(default_factory=list)
    n_tokens: int = 0  # masked at all steps
    stopped: bool = False
    errors_path: Place | None = None
    seconds: float = 0.0
    left_out: Counter = field(default_factory=Counter)

    def count(self, done: Done) -> None:
        """One more job that was run."""
        self.n_written += done.error is None
        self.n_tokens += done.n_tokens
        self.left_out.update(done.left_out.items())

    def end(self, complete: bool, seconds: float, errors_path: Place) -> None:
        """Nothing more is run. errors_path: where it is recorded what failed."""
        self.stopped, self.seconds = not complete, seconds
        self.errors_path = errors_path if self.failed else None


@dataclass
class Course:
    """The blocks that a crew has taken: whether all were, and how many are not done."""

    n_open: int = 0
    all_taken: bool = False

    @property
    def complete(self) -> bool:
        return self.all_taken and not self.n_open


def run_blocks(
    crew: Crew, blocks: Iterable[Block], shape: Shape | None, observer: Observer, course: Course
) -> Iterator[tuple[Block, Done | None]]:
    """What `Crew.run` says, while the first Ctrl-C only keeps it from taking more blocks."""

    def taken() -> Iterator[Block]:
        for block in blocks:
            course.n_open += 1
            yield block
        course.all_taken = True

    with _first_interrupt_waits(observer) as interrupted:
        for block, done in crew.run(taken(), shape, interrupted):
            course.n_open -= done is None
            yield block, done


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
