"""That one run at a time writes a study's results: a note that says which run it is, and what it writes.

Knows notes; not how it is seen to that no other run has one (`writer`, `remote_lease`).
"""

import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from math import gcd
from threading import Event, Thread

from mask_impact.errors import OutputError
from mask_impact.results.files import write_files
from mask_impact.results.remote import Place

SECONDS_BETWEEN_RENEWALS = 20.0
SECONDS_OF_LEASE = 300.0
_PARTS = re.compile(r"(.+)\0(\d+)\0(\d+)", re.DOTALL)  # in a note: a dataset's parts number/of


class Lease:
    """That a run may write, as long as no other has taken over."""

    def __init__(self, note: Place, results: Collection[str]) -> None:
        self._note, self._run, self._results = note, uuid.uuid4().hex, sorted(results)
        self._write()

    def _write(self) -> None:
        content = json.dumps({"results": self._results, "run": self._run}).encode()
        write_files({self._note: lambda file: file.write(content)})

    def _renew(self) -> None:
        os.utime(self._note)

    @property
    def run(self) -> str:
        """By which a run is known."""
        return self._run

    @property
    def holds(self) -> bool:
        """Whether the note is still this run's."""
        return read_note(self._note).get("run") == self._run

    def check(self) -> None:
        """OutputError where another run has taken over."""
        if not self.holds:
            name = self._note.name[1:].removesuffix(".names").removesuffix(".lease")
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
                with suppress(OSError, OutputError):
                    if self.holds:
                        self._renew()

        Thread(target=renew, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def taken_text(name: str, folder: Place) -> str:
    """That another run is writing the results."""
    return (
        f"another run is writing the results of '{name}' into {folder}: wait for its end, or use another `output_dir`"
    )


def read_note(note: Place) -> dict:
    """What a run has noted; nothing where that can't be read."""
    with suppress(OSError, ValueError):
        content = json.loads(note.read_bytes())
        if isinstance(content, dict):
            return content
        if isinstance(content, list):  # as an earlier version wrote it
            return {"results": content}
    return {}


def in_both(one: Collection[str], other: Collection[str]) -> str | None:
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
