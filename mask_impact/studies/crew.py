"""Who measures the prompts of a study: this process, or workers elsewhere (`ray_crew`), behind one door.

In: blocks of prompts that may share forward passes. Out: what became of each prompt, as it comes. What shares a forward pass
follows from the block alone, so that a number has the same bits whoever measures it and whatever was there already. Knows no
files of results.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mask_impact.analyses.observer import Observer
from mask_impact.errors import WorkerError
from mask_impact.models.loading import LoadedModel
from mask_impact.studies.batching import Outcome, Task, run_tasks
from mask_impact.studies.digest import Identity, identity_of
from mask_impact.studies.jobs import Job

Shape = Callable[[Outcome], Any]  # what is kept of an outcome; where workers are elsewhere, it is formed there
MOST_DEATHS = 8  # at none
DEATHS = 2  # of workers at the same prompts, and then these are looked at one by one, or left out


@dataclass(frozen=True)
class Block:
    """Prompts that may share forward passes. wanted: names of those whose results are needed; others only run along."""

    number: int
    jobs: tuple[Job, ...]
    wanted: frozenset[str]


@dataclass(frozen=True)
class Done:
    """What became of a prompt. content: what the study's shape made of its outcome; text: its answer; n_tokens: that were hidden,
    at all steps; error: (class, message) where it failed; left_out: what can't be had of it, and why."""

    name: str
    content: Any = None
    text: str = ""
    n_tokens: int = 0
    error: tuple[str, str] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


class Crew(Protocol):
    """Who measures. identity: of the model that all of them have."""

    identity: Identity
    name: str

    def run(
        self, blocks: Iterable[Block], shape: Shape | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Block, Done | None]]:
        """(block, what became of a prompt), in any order, and (block, None) when the block is done. Blocks are taken as they
        can be worked on, and no more of them where `stop` says so. shape: None keeps the outcome as it is."""
        ...


class ThisProcess:
    """Measures with a model that this process has."""

    def __init__(self, loaded: LoadedModel, observer: Observer | None = None) -> None:
        self._loaded, self._observer = loaded, observer
        self.identity, self.name = identity_of(loaded), loaded.name

    def run(self, blocks: Iterable[Block], shape: Shape | None, stop: Callable[[], bool]):
        """See `Crew`."""
        for block in until(stop, blocks):
            for outcome in run_tasks(self._loaded, tasks_of(block), self._observer, block.wanted):
                yield block, done_of(outcome, shape)
            yield block, None


def until(stop: Callable[[], bool], blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks, as long as nothing says that it is enough."""
    blocks = iter(blocks)
    while not stop():
        try:
            yield next(blocks)
        except StopIteration:
            return


def tasks_of(block: Block) -> list[Task]:
    """The block's prompts as what shares forward passes, by their names."""
    return [Task(job.name, job.prompt, job.settings, job.images, job.videos, job) for job in block.jobs]


def done_of(outcome: Outcome, shape: Shape | None) -> Done:
    """An outcome as what is handed on of it."""
    name, error, result = outcome.task.key, outcome.error, outcome.result
    if error is not None:
        return Done(name, error=(type(error).__name__, str(error)))
    n_tokens = sum(len(step.positions) for step in result.steps)
    without_pictures = replace(outcome, task=replace(outcome.task, images=(), videos=()))
    content = without_pictures if shape is None else shape(without_pictures)
    return Done(name, content, result.generated_text, n_tokens, left_out=outcome.left_out)


@dataclass
class Attempt:
    """A block that a worker is at, and what has gone wrong with it so far.

    left: names that are wanted still; at: those that are at work; alone: those that do not share forward passes any more,
    because one of them ends its worker.
    """

    block: Block
    left: set[str]
    at: tuple[str, ...] = ()
    alone: set[str] = field(default_factory=set)
    deaths: Counter = field(default_factory=Counter)

    def died(self, why: str) -> list[Done]:
        """The worker has ended. Prompts that shared a forward pass run once more as they were, then one by one; one that ends
        its worker again by itself is returned as failed, and not run any more."""
        at, self.at = self.at, ()
        self.deaths[at] += 1
        if self.deaths[at] < (DEATHS if at else MOST_DEATHS):
            return []
        if not at:  # between prompts
            raise WorkerError(f"workers end without measuring the prompts from {self.block.jobs[0].name} on: {why}")
        if len(at) > 1:
            self.alone |= {*at}
            return []
        self.left -= {*at}
        message = f"its worker ended {self.deaths[at]} times while it was measured, and it is left out: {why}"
        return [Done(name, error=(WorkerError.__name__, message)) for name in at]


def rest_of(attempt: Attempt) -> tuple[Block, Collection[str]]:
    """What is to be done still: the same prompts share forward passes; and which run alone."""
    return Block(attempt.block.number, attempt.block.jobs, frozenset(attempt.left)), frozenset(attempt.alone)
