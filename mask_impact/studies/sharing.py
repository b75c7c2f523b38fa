"""The processes of one study, which a launcher (`accelerate launch`, torchrun, a cluster's) may start.

They share the work through files in a hidden folder beside the results: whoever holds a block's lock works on it, and says in
the block's note what became of it. A lock that its process leaves behind by dying is free again, so the others do that block;
a slow process holds up none but its own. Nothing passes between the processes once all have begun.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout

from mask_impact.errors import DeviceError, OutputError
from mask_impact.results.files import (
    check_files,
    check_folder,
    check_output,
    output_error,
    remove_temporaries,
    settle,
    write_files,
)
from mask_impact.studies.parts import KINDS, part_of, parts_in

SECONDS_BETWEEN_LOOKS = 0.2  # at blocks that others are working on
SECONDS_FOR_LEAVING = 60.0  # for the others to see that all is done
SECONDS_TO_MEET = 180.0  # for all processes to have begun
SECONDS_AT_THE_DOOR = 60.0  # while another run of the folder begins or ends
DOOR = ".lock"  # of a folder
ERRORS = "errors.jsonl"  # what failed, by the study's name
LAUNCHER_ID = "TORCHELASTIC_RUN_ID"  # in the environment of processes that torchrun or accelerate started


def launched() -> tuple[int, int]:
    """(rank of this process, number of processes) as a launcher says in the environment; (0, 1) without one."""
    try:
        rank, _, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)


@dataclass(frozen=True)
class Claim:
    """A block that is this process's to do, and its number."""

    number: int
    block: Any


@dataclass
class Team:
    """The processes that write the results of `name` into `folder`, seen from one of them. Made by `gather`.

    device: where this process is to load its model (None: where the user says). fresh: whether parts of an earlier run go.
    """

    folder: Path
    name: str
    rank: int = 0
    size: int = 1
    device: str | None = None
    fresh: bool = False
    complete: bool = False  # whether all blocks are done, by whomever
    _reports: dict[int, Any] = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        """Whether this is the one that speaks to the user and tidies up."""
        return self.rank == 0

    @property
    def errors_path(self) -> Path:
        return self.folder / f"{self.name}.{ERRORS}"

    @property
    def _notes(self) -> Path:
        return self.folder / f".{self.name}.claims"

    def share(
        self, blocks: Iterable[Any], *, stop: Callable[[], bool], passed: Callable[[Any], None] = lambda block: None
    ) -> Iterator[Claim]:
        """The blocks that are this process's to do, one by one; each is to be given to `finish` before the next is asked for.

        Every process gives the same blocks. Ends when all are done, or where `stop` says so. passed: told of each block
        that another process did.
        """
        waiting: list[Claim] = []
        for number, block in enumerate(blocks):
            if stop():
                return
            waiting.append(Claim(number, block))
            waiting = yield from self._try(waiting, passed)
        while waiting:
            if stop():
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
            waiting = yield from self._try(waiting, passed)
        self.complete = True

    def _try(self, waiting: list[Claim], passed: Callable[[Any], None]):
        """Yields the claims that no process has done or is working on; returns those that other processes work on."""
        still = []
        for claim in waiting:
            if self.size == 1:
                yield claim
                continue
            try:
                with FileLock(self._notes / f"{claim.number:06d}.lock", timeout=0):
                    if not self._note(claim.number).exists():
                        yield claim
                        continue
            except Timeout:
                still.append(claim)
                continue
            passed(claim.block)
        return still

    def finish(self, claim: Claim, report: Any) -> None:
        """The claim's results are written. report: anything that JSON can say."""
        if self.size == 1:
            self._reports[claim.number] = report
        else:
            text = json.dumps(report).encode()
            write_files({self._note(claim.number): lambda file: file.write(text)})

    def reports(self) -> list[Any]:
        """What was reported of all blocks that are done, in their order."""
        if self.size > 1:
            for path in self._notes.glob("*.json"):
                self._reports[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
        return [self._reports[number] for number in sorted(self._reports)]

    def _note(self, number: int) -> Path:
        return self._notes / f"{number:06d}.json"

    def lock_of(self, rank: int) -> FileLock:
        """Held by a process, but the first one, as long as it is in the team."""
        return FileLock(self._notes / f"process-{rank}.lock", timeout=0)


@contextmanager
def sole_writer(folder: Path, name: str, results: Collection[str]) -> Iterator[None]:
    """While the block is open no other run writes `name`, or any of `results`, into the folder; OutputError where one does.

    A study of hundreds of prompts takes one lock and not hundreds, which are as many open files: beside the lock lies a note
    of what its run writes. What a killed run left is removed, or done where it was nearly done. Runs look at each other's locks
    only while they hold the folder's own, and take and leave theirs while they hold it: a look is never taken for a run.
    """
    lock, note = folder / f".{name}.lock", folder / f".{name}.names"
    check_files([lock, note, folder / DOOR])
    held = FileLock(lock, timeout=0)
    try:
        with _at_the_door(folder):
            _enter(folder, name, note, held, results)
    except Timeout:
        raise OutputError(
            f"{folder / DOOR} is held by a run that does not go on: end it, or use another `output_dir`"
        ) from None
    except OSError as error:
        raise output_error(lock, error) from error
    try:
        for moves in folder.glob(".*.moves"):
            settle(moves.with_name(moves.name[1:].removesuffix("moves") + "json"))
        remove_temporaries(folder, {*results, note.name})
        yield
    finally:
        try:
            with suppress(OSError), _at_the_door(folder):  # what then stays is no obstacle
                _remove(lock, note)
                held.release()
        finally:
            held.release()


@contextmanager
def _at_the_door(folder: Path) -> Iterator[None]:
    with FileLock(folder / DOOR, timeout=SECONDS_AT_THE_DOOR):
        try:
            yield
        finally:
            _remove(folder / DOOR)


def _enter(folder: Path, name: str, note: Path, held: FileLock, results: Collection[str]) -> None:
    try:
        held.acquire()
    except Timeout:
        raise OutputError(_taken(name, folder)) from None
    try:
        for other in folder.glob(".*.names"):
            if other != note and (taken := _names_held(other) & set(results)):
                raise OutputError(_taken(min(taken), folder))
        names = json.dumps(sorted(results)).encode()
        write_files({note: lambda file: file.write(names)})
    except BaseException:
        _remove(Path(held.lock_file))
        held.release()
        raise


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # a system that keeps open files
            path.unlink(missing_ok=True)


def _taken(name: str, folder: Path) -> str:
    return (
        f"another run is writing the results of '{name}' into {folder}: wait for its end, or use another `output_dir`"
    )


def _names_held(note: Path) -> set[str]:
    """What the run of this note writes; nothing where it has ended, and then its note and its lock are removed."""
    lock = note.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            _remove(note, lock)
    except Timeout:
        with suppress(OSError, ValueError, TypeError):
            return set(json.loads(note.read_text(encoding="utf-8")))
    return set()


@contextmanager
def gather(
    folder: Path, name: str, device: str = "auto", results: Collection[str] = (), fresh: bool = False
) -> Iterator[Team]:
    """The team of this process; OutputError where other processes are writing the same results.

    device: what the user says; `auto` becomes each process's own GPU, where there are any. results: names of the results to
    be written into `folder`, beside those in the folder `name` there. fresh: whether the parts in that folder are removed, so
    that old and new ones are never mixed.
    """
    check_output(folder, name, [ERRORS])
    rank, size = launched()
    team = Team(Path(folder), name, rank, size, fresh=fresh)
    with ExitStack() as stack:
        if size > 1:
            stack.enter_context(_ends_with_its_launcher())
        problem = _begin(team, stack, results) if team.leads else None
        if size > 1:
            team.device = _meet(team, stack, problem, device)
        elif problem:
            raise OutputError(problem)
        yield team
        if team.leads and team.complete and size > 1:
            _tidy_up(team)


def _begin(team: Team, stack: ExitStack, results: Collection[str]) -> str | None:
    """The first process takes the names, and clears away what an earlier run left; says where that can't be."""
    try:
        check_folder(team._notes)
        stack.enter_context(sole_writer(team.folder, team.name, results))
        for left in team._notes.glob("process-*.lock"):
            with FileLock(left, timeout=0):
                pass
    except OutputError as error:
        return str(error)
    except Timeout:
        return _taken(team.name, team.folder)
    try:
        shutil.rmtree(team._notes, ignore_errors=True)
        team.errors_path.unlink(missing_ok=True)
        for kind in KINDS:
            remove_temporaries(part_of(team.folder / team.name / "any", kind).parent)
        if team.size > 1:
            for part in parts_in(team.folder / team.name) if team.fresh else ():
                part.unlink()
            team._notes.mkdir()
    except OSError as error:
        return str(output_error(team._notes, error))
    return None


def _meet(team: Team, stack: ExitStack, problem: str | None, device: str) -> str | None:
    """All processes wait for the first one's word, and until each has its lock; returns this one's device."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # gloo: it meets on any machine, and two processes on one GPU can meet as well.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = None
    try:
        state = PartialState(cpu=on_cpu, backend="gloo", timeout=timedelta(seconds=SECONDS_TO_MEET))
        (problem,) = broadcast_object_list([problem])
        if problem is None and not team.leads:
            stack.enter_context(team.lock_of(team.rank))
        state.wait_for_everyone()
    except (RuntimeError, OSError) as error:
        raise DeviceError(f"the {team.size} processes of the launcher could not meet: {error}") from error
    finally:
        if state is not None:
            state.destroy_process_group()
        PartialState._reset_state()
    if problem is not None:
        raise OutputError(problem)
    return f"cuda:{state.local_process_index}" if device == "auto" and not on_cpu else None


@contextmanager
def _ends_with_its_launcher() -> Iterator[None]:
    """While the block is open, this process ends when its launcher has died: it could wait for the others for long, and hold its
    lock. What is written is whole, whenever that is. For torchrun and what is made of it, which always wait for their processes.
    """
    launcher, over = os.getppid(), Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if os.getppid() != launcher:
                line = f"process {os.environ.get('RANK')}: the launcher has died; what is written is complete, --resume goes on\n"
                os.write(2, line.encode())
                os._exit(1)

    if LAUNCHER_ID in os.environ:
        Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _tidy_up(team: Team) -> None:
    """Removes the notes when the last of the others has left."""
    for rank in range(1, team.size):
        with suppress(Timeout), team.lock_of(rank).acquire(timeout=SECONDS_FOR_LEAVING):
            pass
    shutil.rmtree(team._notes, ignore_errors=True)
