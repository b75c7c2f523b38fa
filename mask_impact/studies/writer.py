"""Who writes a study's results: one run at a time, which clears away what an earlier one left.

A run holds a lock of its own, and says in a note beside it what it writes. The system frees the lock of a process that has
died. The note is a lease besides: where it was not renewed for SECONDS_OF_LEASE, as by a machine that is gone while a file
server keeps its lock, the next run takes over; the old one, should it go on, writes nothing more.
"""

import json
import os
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout

from mask_impact.errors import OutputError
from mask_impact.results.files import (
    check_files,
    check_folder,
    check_output,
    is_regular,
    output_error,
    remove_temporaries,
    settle,
    write_files,
)
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.studies.parts import KINDS, part_of, parts_in

SECONDS_AT_THE_DOOR = 60.0  # while another run of the folder begins or ends
SECONDS_BETWEEN_RENEWALS = 20.0
SECONDS_OF_LEASE = 300.0
MAX_TOGETHER = 16  # prompts of a block: what is lost at most when a run is killed
DOOR = ".lock"  # of a folder
ERRORS = "errors.jsonl"  # what failed, by the study's name
_PARTS = re.compile(r"(.+)\0(\d+)\0(\d+)", re.DOTALL)  # in a note: a dataset's parts number/of


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


class Lease:
    """That a run may write, as long as no other has taken over."""

    def __init__(self, note: Path, results: Collection[str]) -> None:
        self._note, self._run = note, uuid.uuid4().hex
        content = json.dumps({"results": sorted(results), "run": self._run}).encode()
        write_files({note: lambda file: file.write(content)})

    @property
    def holds(self) -> bool:
        """Whether the note is still this run's."""
        return _read_note(self._note).get("run") == self._run

    def check(self) -> None:
        """OutputError where another run has taken over."""
        if not self.holds:
            name = self._note.name[1:].removesuffix(".names")
            raise OutputError(
                f"another run has taken over '{name}' in {self._note.parent}, as this one did not renew its lease for "
                f"{SECONDS_OF_LEASE:.0f} s: nothing more is written"
            )

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """While the block is open, the lease is renewed."""
        over = Event()

        def renew() -> None:
            while not over.wait(SECONDS_BETWEEN_RENEWALS):
                with suppress(OSError):
                    if self.holds:
                        os.utime(self._note)

        Thread(target=renew, daemon=True).start()
        try:
            yield
        finally:
            over.set()


@dataclass(frozen=True)
class Writer:
    """The run that writes the results of `name` into `folder`; made by `writing`. fresh: whether parts of an earlier run go."""

    folder: Path
    name: str
    lease: Lease
    fresh: bool = False
    shard: Shard = ALL
    failed_before: tuple[dict, ...] = ()  # what an earlier run recorded

    @property
    def errors_path(self) -> Path:
        return errors_path(self.folder, self.name, self.shard)


def errors_path(folder: Path, name: str, shard: Shard = ALL) -> Path:
    """Where it is recorded what failed."""
    return Path(folder) / f"{shard.called(name)}.{ERRORS}"


@contextmanager
def writing(
    folder: Path, name: str, results: Collection[str] | None = None, fresh: bool = False, shard: Shard = ALL
) -> Iterator[Writer]:
    """The writer of a study; OutputError where another run is writing the same results.

    results: names of those to be written into `folder` (None: the parts of a dataset, in the folder `name` there). fresh:
    whether the parts in that folder are removed, so that old and new ones are never mixed.
    """
    own = shard.called(name)
    check_output(folder, own, [ERRORS])
    check_folder(Path(folder) / f".{name}.claims")  # of an earlier version
    held = {f"{name}\0{shard.index}\0{shard.of}"} if results is None else results
    with sole_writer(Path(folder), own, held) as lease:
        log = errors_path(folder, name, shard)
        try:
            before = _read_log(log)
            log.unlink(missing_ok=True)
            for kind in KINDS if results is None else ():
                remove_temporaries(part_of(Path(folder) / name / "any", kind).parent, shard)
        except OSError as error:
            raise output_error(Path(folder) / name, error) from error
        yield Writer(Path(folder), name, lease, fresh, shard, before)


def _read_log(log: Path) -> tuple[dict, ...]:
    """The lines of a log that can be read."""
    entries = []
    if is_regular(log):
        with open_file(log, TABLE) as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    entries.append(json.loads(line))
    return tuple(entry for entry in entries if isinstance(entry, dict))


def old_parts(writer: Writer, folder: Path, first: int = 0) -> list[Path]:
    """The writer's parts in a dataset's folder, from number `first` on."""
    numbered = [path for path in parts_in(folder) if path.stem.removeprefix("part-").isdigit()]
    return [p for p in numbered if p.stem in writer.shard and int(p.stem.removeprefix("part-")) >= first]


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
            raise OutputError(_taken(name, folder)) from None
        _remove(Path(held.lock_file), note)
        held.acquire()
    try:
        for other in folder.glob(".*.names"):
            if other != note and (taken := _in_both(_names_held(other), results)):
                raise OutputError(_taken(taken, folder))
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
        if not _has_expired(note):
            return set(_read_note(note).get("results", ()))
        _remove(note, lock)
    return set()


def _read_note(note: Path) -> dict:
    with suppress(OSError, ValueError):
        content = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        if isinstance(content, list):  # as an earlier version wrote it
            return {"results": content}
    return {}


def _in_both(one: Collection[str], other: Collection[str]) -> str | None:
    """A name that two runs would both write: a result's, or that of a dataset of which both have a part."""
    if both := {*one} & {*other}:
        return min(both).partition("\0")[0]
    for name, index, of in filter(None, (_parts(entry) for entry in one)):
        for same, at, n in filter(None, (_parts(entry) for entry in other)):
            if same == name and (index - at) % gcd(of, n) == 0:
                return name
    return None


def _parts(entry: str) -> tuple[str, int, int] | None:
    found = _PARTS.fullmatch(entry)
    return (found[1], int(found[2]), int(found[3])) if found else None
