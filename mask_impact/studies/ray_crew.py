"""The workers of a study, which Ray starts on this machine or on those of a cluster: each has the model, and takes a block when
it is free.

A worker has one block at a time, and gets the next when all results of the last are here, so nothing piles up. What a worker
leaves undone when it ends, another does; prompts that end their workers are left out. Only this process writes results.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mask_impact.errors import WorkerError
from mask_impact.models.loading import LoadedModel
from mask_impact.studies.crew import Attempt, Block, Done, Shape, rest_of, until
from mask_impact.studies.digest import Identity
from mask_impact.studies.progress import StudyObserver
from mask_impact.studies.ray_cluster import ray_running
from mask_impact.studies.ray_worker import Begun, Ready, Refused, Worker, error_of

AUTO = "auto"
TIMEOUT = 1800.0  # seconds without a layer or a forward pass done
SECONDS_TO_LOOK = 0.5  # for something to come, before Ctrl-C is looked for
SECONDS_TO_WAIT = 60.0  # for a place for a worker, before it is said
SECONDS_OF_DELAY = 5.0  # until what a worker says is heard
LOADS = 2  # how often in a row a worker may end while it loads


@dataclass(frozen=True)
class Wish:
    """Which workers are asked for. n: how many (None: one for each GPU, or where there is none, one for each machine); address:
    of a cluster (None: this machine); timeout: seconds after which a worker ends that does not get on; verbose: whether what
    workers print is shown."""

    n: int | None = None
    address: str | None = None
    timeout: float = TIMEOUT
    verbose: bool = False


@dataclass
class _Slot:
    """A worker's place. waiting: what is to come of it: a reference while it loads, a generator while it measures."""

    number: int
    actor: Any
    waiting: Any = None
    attempt: Attempt | None = None
    ready: bool = False
    n_died_loading: int = 0
    heard: float = 0.0  # when something came


@contextmanager
def ray_crew(
    wish: Wish, load: Callable[[], LoadedModel], observer: StudyObserver, gpus: bool = True, whole: bool = False
) -> Iterator["RayCrew"]:
    """The workers, at least one of them ready; all are gone at the end. load: can be sent to other machines, and gives the model
    there. gpus: whether workers get GPUs where there are any; whole: whether each gets several, if there are more than workers.
    WorkerError, and the errors of `load`."""
    with ray_running(wish.address, verbose=wish.verbose) as ray:
        share = share_of([node["Resources"] for node in ray.nodes() if node["Alive"]], wish.n, gpus, whole)
        crew = RayCrew(ray, wish, load, observer, share)
        try:
            crew.begin()
            yield crew
        finally:
            crew.end()


@dataclass(frozen=True)
class Share:
    """What each of n workers gets of the machines."""

    n: int
    cpus: float
    gpus: float


def share_of(nodes: list[dict[str, float]], n: int | None, gpus: bool = True, whole: bool = False) -> Share:
    """How the CPUs and GPUs of the machines are divided among n workers, so that all find room. nodes: CPU and GPU of each."""
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes)) if gpus else 0
    nodes = [node for node in nodes if node.get("CPU", 0) and (not n_gpus or node.get("GPU", 0))]
    if not nodes:
        raise WorkerError("Ray has no machine with CPUs to give to a worker; start it with some")
    n = n or n_gpus or len(nodes)
    of_gpus = [0.0] if not n_gpus else [*range(n_gpus // n if whole else 1, 0, -1), 1 / -(-n // n_gpus)]
    most = int(sum(node["CPU"] for node in nodes) / n)
    of_cpus = [*range(most, 0, -1), *(1 / part for part in range(2, 10 * n + 2))]
    for gpu in of_gpus:
        for cpu in of_cpus:
            if sum(_room(node, cpu, gpu) for node in nodes) >= n:
                return Share(n, float(cpu), float(gpu))
    raise WorkerError(f"there is no room for {n} workers on the GPUs of the machines: give fewer `workers`")


def _room(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers with so many CPUs and GPUs a machine takes."""
    by_cpus = int(node["CPU"] / cpus + 1e-9)
    return min(by_cpus, int(node["GPU"] / gpus + 1e-9)) if gpus else by_cpus


class RayCrew:
    """See `crew.Crew`; made by `ray_crew`. identity, name, note: of the model."""

    identity: Identity
    name: str
    note: str | None

    def __init__(self, ray: Any, wish: Wish, load: Callable, observer: StudyObserver, share: Share) -> None:
        self._ray, self._load, self._observer, self._timeout, self._share = ray, load, observer, wish.timeout, share
        self._make = ray.remote(Worker).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._slots: list[_Slot] = []
        self._again: deque[Attempt] = deque()
        self._has_model = False

    @property
    def n(self) -> int:
        """How many workers there are to be."""
        return self._share.n

    def begin(self) -> None:
        """Starts all workers, and waits for the first."""
        self._slots = [_Slot(number + 1, None) for number in range(self._share.n)]
        for slot in self._slots:
            self._start(slot)
        began, said = time.monotonic(), False
        while not any(slot.ready for slot in self._slots):
            for slot in self._heard():
                self._take(slot)
            if not said and time.monotonic() - began > SECONDS_TO_WAIT:
                said = True
                self._observer.note("No worker has its model yet: it is being loaded, or Ray waits for a free place")

    def wait_for_all(self) -> None:
        """Until each worker has its model; a study need not wait."""
        while not all(slot.ready for slot in self._slots):
            for slot in self._heard():
                self._take(slot)

    def end(self) -> None:
        """Ends all workers at once."""
        for slot in self._slots:
            self._kill(slot)
        self._slots = []

    def run(
        self, blocks: Iterable[Block], shape: Shape | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Block, Done | None]]:
        """See `crew.Crew`."""
        coming, all_taken = until(stop, blocks), False
        while True:
            for slot in (slot for slot in self._slots if slot.ready and slot.attempt is None):
                attempt = self._next(coming, stop)
                if attempt is None:
                    all_taken = True
                    break
                block, alone = rest_of(attempt)
                slot.attempt, slot.heard = attempt, time.monotonic()
                slot.waiting = slot.actor.measure.options(num_returns="streaming").remote(block, alone, shape)
            if not any(slot.attempt for slot in self._slots) and ((all_taken and not self._again) or stop()):
                return
            for slot in self._heard():
                yield from self._take(slot)

    def _next(self, coming: Iterator[Block], stop: Callable[[], bool]) -> Attempt | None:
        if self._again and not stop():
            return self._again.popleft()
        block = next(coming, None)
        return None if block is None else Attempt(block, {*block.wanted})

    # --- one worker -------------------------------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        self._kill(slot)
        slot.actor = self._make.remote(self._load, threads_of(self._share.cpus), self._timeout)
        slot.ready, slot.attempt, slot.heard = False, None, time.monotonic()
        slot.waiting = slot.actor.load.remote()

    def _kill(self, slot: _Slot) -> None:
        if slot.actor is not None:
            with suppress(Exception):  # it has ended already
                self._ray.kill(slot.actor)
        slot.actor = slot.waiting = None

    def _heard(self) -> list[_Slot]:
        """The workers of which something came."""
        waiting = {id(slot.waiting): slot for slot in self._slots if slot.waiting is not None}
        if not waiting:
            raise WorkerError(
                "no worker is left: each ended while it loaded the model; --verbose shows what they print"
            )
        came, _ = self._ray.wait([slot.waiting for slot in waiting.values()], num_returns=1, timeout=SECONDS_TO_LOOK)
        return [waiting[id(one)] for one in came]

    def _take(self, slot: _Slot) -> list[tuple[Block, Done | None]]:
        """What came of a worker."""
        errors = self._ray.exceptions
        attempt = slot.attempt
        try:
            if attempt is None:
                self._loaded(slot, self._ray.get(slot.waiting))
                return []
            try:
                said = self._ray.get(next(slot.waiting))
            except StopIteration:
                return self._finished(slot)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            return self._died(slot, error)
        slot.heard = time.monotonic()
        if isinstance(said, Begun):
            attempt.at = said.names
            return []
        attempt.left.discard(said.name)
        attempt.at = tuple(name for name in attempt.at if name in attempt.left)
        return [(attempt.block, said)]

    def _loaded(self, slot: _Slot, said: Ready | Refused) -> None:
        if isinstance(said, Refused):
            if not self._has_model:
                raise error_of(said)
            self._observer.note(f"Worker {slot.number} is done without: {said.message}")
            self._kill(slot)
            return
        if not self._has_model:
            self.identity, self.name, self.note, self._has_model = said.identity, said.name, said.note, True
            if said.note:
                self._observer.note(f"NOTE: {said.note}.")
        elif not said.identity.is_like(self.identity):
            raise WorkerError(f"worker {slot.number} has another model than the others: {said.said}")
        self._observer.note(f"Worker {slot.number} is ready: {said.said}")
        slot.waiting, slot.ready, slot.n_died_loading = None, True, 0

    def _finished(self, slot: _Slot) -> list[tuple[Block, None]]:
        attempt, slot.attempt, slot.waiting = slot.attempt, None, None
        if attempt.left:
            raise WorkerError(f"worker {slot.number} did not say what became of {', '.join(sorted(attempt.left))}")
        return [(attempt.block, None)]

    def _died(self, slot: _Slot, error: Exception) -> list[tuple[Block, Done | None]]:
        """Another worker takes the place of one that has ended."""
        attempt, silent = slot.attempt, time.monotonic() - slot.heard
        held_up = attempt is not None and silent >= self._timeout - min(SECONDS_OF_DELAY, self._timeout / 2)
        why = f"it did not get on for {self._timeout:.0f} s" if held_up else reason(error)
        if attempt is None:
            slot.n_died_loading += 1
            self._observer.note(f"Worker {slot.number} ended while it loaded the model: {why}")
            self._kill(slot)
            if slot.n_died_loading < LOADS:
                self._start(slot)
            return []
        at = ", ".join(attempt.at) or f"the prompts from {attempt.block.jobs[0].name} on"
        self._observer.note(f"Worker {slot.number} ended at {at} ({why}); another does what is left")
        failed = attempt.died(why)
        self._start(slot)
        ended = [(attempt.block, one) for one in failed]
        if attempt.left:
            self._again.append(attempt)
            return ended
        return [*ended, (attempt.block, None)]


def threads_of(cpus: float) -> int:
    """Of one operation in a worker: as many as it has CPUs, or as OMP_NUM_THREADS says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(said) if said.isascii() and said.isdigit() else int(cpus))


def reason(error: Exception) -> str:
    """Why a worker ended, in a few words."""
    text = " ".join(str(error).split())
    if "running low on memory" in text:
        return "the machine ran low on memory, and Ray ended it"
    if "node was terminated" in text or "node has died" in text or "its node" in text:
        return "its machine is gone"
    return "its process crashed or was ended, as the system does where memory runs out"
