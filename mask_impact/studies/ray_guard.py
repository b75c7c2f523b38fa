"""Waits, as a process of its own, until the process that started it is gone, and then clears away what that one's Ray left: each
process that has a file open in Ray's folder, and the folder.

Standard input is a pipe whose other end nobody else has: it ends when that process does, however it does. Imports only Python's
own modules.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.2
LOOKS = 50


def processes_in(folder: str) -> list[int]:
    """Ids of the processes, but this one and the one that started it, that have a file open in the folder, where the system
    tells (Linux)."""
    own = (os.getpid(), os.getppid())
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            files = () if int(process.name) in own else os.listdir(process / "fd")
            if any(os.readlink(process / "fd" / file).startswith(f"{folder}/") for file in files):
                found.append(int(process.name))
    return found


def clear(folder: str) -> None:
    """Ends the processes, and removes the folder."""
    for _ in range(LOOKS):
        left = processes_in(folder)
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        if not left:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(os.path.realpath(sys.argv[1]))
