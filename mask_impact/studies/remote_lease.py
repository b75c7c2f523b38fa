"""One writer at a time where a store has no locks: a lease object that ends by itself, which a run renews while it goes on.

`.NAME.lease` says which run it is, what it writes, and until when (seconds since 1970, by the run's clock). Whoever begins
looks at the leases of the folder, writes its own, waits, and looks again: of two runs that begin at once at most one goes on.
A run that was cut off from the store finds another's lease, or its own ended, before it writes its next part, and writes
nothing more. Machines' clocks must agree within a minute or so.
"""

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from mask_impact.errors import OutputError
from mask_impact.results.remote import Remote
from mask_impact.studies.lease import SECONDS_OF_LEASE, Lease, in_both, read_note, taken_text

SECONDS_TO_SETTLE = 1.0  # until all see what was written: a store may be slow, not inconsistent
LEASE = ".lease"


class RemoteLease(Lease):
    """See `Lease`."""

    def _write(self) -> None:
        self._until = time.time() + SECONDS_OF_LEASE
        content = json.dumps({"results": self._results, "run": self._run, "until": self._until}).encode()
        self._note.write(lambda file: file.write(content))

    _renew = _write

    @property
    def holds(self) -> bool:
        """Whether the lease is still this run's, and has not ended."""
        return time.time() < self._until and super().holds

    def leave(self) -> None:
        """Nothing more is written."""
        with suppress(OutputError, OSError):
            if read_note(self._note).get("run") == self._run:
                self._note.unlink(missing_ok=True)


@contextmanager
def sole_remote_writer(folder: Remote, name: str, results: Collection[str]) -> Iterator[Lease]:
    """While the block is open no other run writes `name`, or any of `results`, into the folder; OutputError where one does."""
    note = folder / f".{name}{LEASE}"
    _refuse_others(folder, note, results, "")
    lease = RemoteLease(note, results)
    try:
        time.sleep(SECONDS_TO_SETTLE)
        if not lease.holds:
            raise OutputError(taken_text(name, folder))
        _refuse_others(folder, note, results, lease.run)
        with lease.renewed():
            yield lease
    finally:
        lease.leave()


def _refuse_others(folder: Remote, note: Remote, results: Collection[str], run: str) -> None:
    """OutputError where a lease that has not ended is for any of the results. run: our own."""
    for other in folder.glob(f".*{LEASE}"):
        found = read_note(other)
        until = found.get("until")
        if not isinstance(until, int | float) or until < time.time() or (other.path == note.path and run):
            continue
        if taken := in_both(found.get("results", ()), results):
            raise OutputError(taken_text(taken, folder))
