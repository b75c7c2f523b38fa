"""What Ctrl-C and SIGTERM, with which launchers and clusters end a process, do. Imports only Python's own modules, so that a
process can see to it before it reads any others."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ended_by(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """While the block is open, both call `handler` (number, frame). Nothing changes outside the main thread, which alone gets
    signals."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
