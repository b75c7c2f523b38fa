"""What a worker of a study does, in a process of its own that Ray starts: it holds the model, and measures blocks.

Whatever leaves it is plain data. It ends itself where it does not get on. Knows neither Ray nor files of results.
"""

import faulthandler
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from mask_impact.analyses.observer import Observer
from mask_impact.errors import MaskImpactError, WorkerError
from mask_impact.models.loading import LoadedModel
from mask_impact.studies.batching import plan, run_group
from mask_impact.studies.crew import Block, Done, Shape, done_of, tasks_of
from mask_impact.studies.digest import Identity, identity_of

SECONDS_BETWEEN_SIGNS = 1.0


@dataclass(frozen=True)
class Ready:
    """A model that a worker has loaded. name, note: as of LoadedModel; said: what it is and where."""

    identity: Identity
    name: str
    note: str | None
    said: str


@dataclass(frozen=True)
class Begun:
    """The prompts of these names are at work."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A model that can't be had: class and message of the error."""

    kind: str
    message: str


class Worker:
    """Loads a model once, and measures block after block. load: gives the model; threads: of one operation on the CPU (None: as
    torch has it); timeout: after how many seconds without a layer or a forward pass done the process ends."""

    def __init__(self, load: Callable[[], LoadedModel], threads: int | None, timeout: float) -> None:
        self._load, self._threads, self._signs = load, threads, _Signs(timeout)
        self._loaded: LoadedModel | None = None

    def load(self) -> Ready | Refused:
        """Loads the model."""
        import torch

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            self._loaded = loaded = self._load()
        except MaskImpactError as error:
            return Refused(type(error).__name__, str(error))
        said = f"{type(loaded.model).__name__}, {loaded.model.dtype}, on {loaded.model.device} of {platform.node()}"
        return Ready(identity_of(loaded), loaded.name, loaded.note, said)

    def measure(self, block: Block, alone: Collection[str], shape: Shape | None) -> Iterator[Begun | Done]:
        """What becomes of the prompts that are wanted of a block; what is at work is announced before it begins. alone: names of
        those that are read and run by themselves."""
        tasks = tasks_of(block)
        shared = [task for task in tasks if task.key not in alone]
        apart = [[task] for task in tasks if task.key in alone and task.key in block.wanted]
        with self._signs:
            for some in (shared, *apart):
                wanted = tuple(task.key for task in some if task.key in block.wanted)
                if not wanted:
                    continue
                yield Begun(wanted)
                failed, groups = plan(self._loaded, some, block.wanted)
                yield from (done_of(one, shape) for one in failed)
                for group in groups:
                    yield Begun(tuple(task.key for task, _ in group if task.key in block.wanted))
                    for outcome in run_group(self._loaded, group, self._signs, block.wanted):
                        yield done_of(outcome, shape)


class _Signs(Observer):
    """Ends the process where nothing is heard of a run for `timeout` seconds, whatever holds it up: Python's own watchdog needs
    no thread of the interpreter."""

    def __init__(self, timeout: float) -> None:
        self._timeout, self._last = timeout, 0.0

    def __enter__(self) -> "_Signs":
        self._arm()
        return self

    def __exit__(self, *exc_info: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        self._last = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout, exit=True, file=sys.__stderr__)

    def _sign(self, *args: object) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_SIGNS:
            self._arm()

    begin = layer_done = effects_begin = effects_done = answers_begin = answer_done = explaining = _sign
    forwards_done = changing = changed = all_changed = explained = note = _sign


def error_of(refused: Refused) -> MaskImpactError:
    """The error that kept a worker from its model."""
    from mask_impact import errors

    kind = getattr(errors, refused.kind, WorkerError)
    return (kind if isinstance(kind, type) and issubclass(kind, MaskImpactError) else WorkerError)(refused.message)
