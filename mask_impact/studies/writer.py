"""Who writes a study's results: one run at a time, which clears away what an earlier one left.

A run holds a lock of its own, and says in a note beside it what it writes. The system frees the lock of a process that has
died. The note is a lease besides: where it was not renewed for SECONDS_OF_LEASE, as by a machine that is gone while a file
server keeps its lock, the next run takes over; the old one, should it go on, writes nothing more.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mask_impact.errors import OutputError
from mask_impact.results.files import (
    check_files,
    check_folder,
    check_output,
    output_error,
    remove_temporaries,
    settle,
)
from mask_impact.results.remote import Place, Remote, is_there, opened, place_of
from mask_impact.results.study_folder import TABLES, number_of
from mask_impact.studies.lease import SECONDS_OF_LEASE, Lease, in_both, read_note, taken_text
from mask_impact.studies.parts import all_parts
from mask_impact.studies.remote_lease import sole_remote_writer

SECONDS_AT_THE_DOOR = 60.0  # while another run of the folder begins or ends
MAX_TOGETHER = 16  # prompts of a block: what is lost at most when a run is killed
DOOR = ".lock"  # of a folder
ERRORS = "errors.jsonl"  # what failed, by the study's name


@dataclass(frozen=True)
class Shard:
    """The blocks of a study that a run does: each `of`-th, from `index` on. Runs of other shards may go on at once."""

    index: int = 0
    of: int = 1

    def __contains__(self, block: int | str) -> bool:
        """Whether the block of a number, or the part of a name (part-000007), is one of them."""
        number = int(block.removeprefix("part-")) if isinstance(block, str) else block
        return number % self.of == self.index

    def share(self, n: int) -> int:
        """How many of n prompts are in its blocks, if there are many more of them than in a block."""
        n_blocks, left = divmod(n, MAX_TOGETHER)
        whole = (n_blocks - self.index + self.of - 1) // self.of
        return whole * MAX_TOGETHER + left * (n_blocks in self)

    def called(self, name: str) -> str:
        """How a study's files are called that each shard has for itself."""
        return name if self.of == 1 else f"{name}.{self.index + 1}of{self.of}"


ALL = Shard()


def blocks_of(jobs: Sequence[Any], shard: Shard = ALL) -> Iterator[tuple[int, Sequence[Any]]]:
    """The blocks of a configuration's jobs, numbered, of the shard. Neighbours may share forward passes; where there are few
    jobs a block has few, so that several workers get some each."""
    size = min(MAX_TOGETHER, max(1, len(jobs) // 16))
    for number, first in enumerate(range(0, len(jobs), size)):
        if number in shard:
            yield number, jobs[first : first + size]


def rows_of(rows: Iterable[Any], shard: Shard) -> Iterator[Any]:
    """The rows of a dataset that are the shard's."""
    return (row for number, row in enumerate(rows) if number // MAX_TOGETHER in shard)


def jobs_of(jobs: Sequence[Any], shard: Shard) -> list[Any]:
    """The jobs of a configuration that are the shard's."""
    return [job for _, block in blocks_of(jobs, shard) for job in block]


@dataclass(frozen=True)
class Writer:
    """The run that writes the results of `name` into `folder`; made by `writing`. fresh: whether parts of an earlier run go."""

    folder: Place
    name: str
    lease: Lease
    fresh: bool = False
    shard: Shard = ALL
    failed_before: tuple[dict, ...] = ()  # what an earlier run recorded

    @property
    def errors_path(self) -> Place:
        return errors_path(self.folder, self.name, self.shard)


def errors_path(folder: Place | str, name: str, shard: Shard = ALL) -> Place:
    """Where it is recorded what failed."""
    return place_of(folder) / f"{shard.called(name)}.{ERRORS}"


@contextmanager
def writing(
    folder: Place, name: str, results: Collection[str] | None = None, fresh: bool = False, shard: Shard = ALL
) -> Iterator[Writer]:
    """The writer of a study; OutputError where another run is writing the same results.

    results: names of those to be written into `folder` (None: the parts of a dataset, in the folder `name` there). fresh:
    whether the parts in that folder are removed, so that old and new ones are never mixed.
    """
    own = shard.called(name)
    held = {f"{name}\0{shard.index}\0{shard.of}"} if results is None else results
    if isinstance(folder, Remote):
        holding = sole_remote_writer(folder, own, held)
    else:
        check_output(folder, own, [ERRORS])
        check_folder(Path(folder) / f".{name}.claims")  # of an earlier version
        folder = Path(folder)
        holding = sole_writer(folder, own, held)
    with holding as lease:
        log = errors_path(folder, name, shard)
        try:
            before = _read_log(log)
            log.unlink(missing_ok=True)
            for table in TABLES if results is None and isinstance(folder, Path) else ():
                remove_temporaries(folder / name / table, shard)
        except OSError as error:
            raise output_error(folder / name, error) from error
        yield Writer(folder, name, lease, fresh, shard, before)


def _read_log(log: Place) -> tuple[dict, ...]:
    """The lines of a log that can be read."""
    entries = []
    if is_there(log):
        with opened(log) as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    entries.append(json.loads(line))
    return tuple(entry for entry in entries if isinstance(entry, dict))


def old_parts(writer: Writer, folder: Place, first: int = 0) -> list[Place]:
    """The writer's parts in a dataset's folder, from number `first` on."""
    numbered = [(path, number_of(path)) for path in all_parts(folder)]
    return [path for path, number in numbered if number is not None and number >= first and number in writer.shard]


@contextmanager
def sole_writer(folder: Path, name: str, results: Collection[str]) -> Iterator[Lease]:
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
            lease = _enter(folder, name, note, held, results)
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
        with lease.renewed():
            yield lease
    finally:
        try:
            with suppress(OSError), _at_the_door(folder):  # what then stays is no obstacle
                if lease.holds:
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


def _enter(folder: Path, name: str, note: Path, held: FileLock, results: Collection[str]) -> Lease:
    try:
        held.acquire()
    except Timeout:
        if not _has_expired(note):
            raise OutputError(taken_text(name, folder)) from None
        _remove(Path(held.lock_file), note)
        held.acquire()
    try:
        for other in folder.glob(".*.names"):
            if other != note and (taken := in_both(_names_held(other), results)):
                raise OutputError(taken_text(taken, folder))
        return Lease(note, results)
    except BaseException:
        _remove(Path(held.lock_file))
        held.release()
        raise


def _has_expired(note: Path) -> bool:
    """Whether a lease was not renewed in time, by the clock of the file system, which machines have in common."""
    probe = note.with_name(f"{note.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        renewed = note.stat().st_mtime
        probe.touch()
        return probe.stat().st_mtime - renewed > SECONDS_OF_LEASE
    except OSError:
        return False
    finally:
        _remove(probe)


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # a system that keeps open files
            path.unlink(missing_ok=True)


def _names_held(note: Path) -> set[str]:
    """What the run of this note writes; nothing where it has ended, and then its note and its lock are removed."""
    lock = note.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            _remove(note, lock)
    except Timeout:
        if not _has_expired(note):
            return set(read_note(note).get("results", ()))
        _remove(note, lock)
    return set()
