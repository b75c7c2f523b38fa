"""Limits of time and memory for what a checkpoint brings along: its chat template and its tokenizer.

Both are programs of others: a few characters of a template ask for 10 GB or never end, and no check of the template itself
sees all the ways to that. So they are rehearsed, once in a child process that may take little, before they are done here. What
was rehearsed with a text holds for texts up to twice as long. Linux only; elsewhere nothing is rehearsed. Knows no prompt.
"""

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

from mask_impact.errors import InputError, is_panic

SECONDS = 5.0  # of a processor, and as many more for each million characters
MEMORY = 2**30  # bytes beyond what the process has, and 2,000 more for each character
PATIENCE = 6  # of these seconds by the clock, where other processes want the processor too
SHORT = 500  # characters; what holds for a shorter text holds for one of twice this length
_RAN_OUT, _PANICKED = 3, 4  # exit codes of the child

_rehearsed: WeakKeyDictionary[object, dict[object, int]] = (
    WeakKeyDictionary()
)  # the longest text by tokenizer and template


def rehearse(owner: object, key: object, length: int, steps: Sequence[tuple[str, Callable[[], object]]]) -> None:
    """Do the steps in a child process with limits. InputError, by the name of the step that does not keep them.

    owner, key: whose steps they are, and which: what was rehearsed with a text half as long is not rehearsed again.
    length: of the text in characters.
    """
    longest = _rehearsed.setdefault(owner, {})
    if sys.platform != "linux" or length <= 2 * longest.get(key, -1):
        return
    seconds, memory = SECONDS * (1 + length / 1e6), MEMORY + 2000 * length
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            # Of a fork beside threads: the child takes no lock of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:  # no room for another process, though there may be for the prompt
        os.close(reader)
        os.close(writer)
        return
    if child == 0:
        _child(writer, seconds, memory, steps)
    os.close(writer)
    try:
        begun, code = _outcome(child, reader, time.monotonic() + PATIENCE * seconds)
    finally:
        os.close(reader)
    if code == 0:
        longest[key] = max(length, SHORT)
        return
    problem = {
        _RAN_OUT: f"takes more than {memory / 2**20:,.0f} MiB of memory",
        _PANICKED: "breaks down",
        -signal.SIGPROF: f"takes more than {seconds:.3g} s",
        -signal.SIGKILL: f"takes more than {seconds:.3g} s",
    }.get(code, f"ends its process (exit code {code})")  # some libraries abort where memory runs out
    raise InputError(
        f"the {steps[max(begun - 1, 0)][0]} {problem} with this prompt; get the checkpoint again, or use another one"
    )


def _child(writer: int, seconds: float, memory: int, steps: Sequence[tuple[str, Callable[[], object]]]) -> None:
    """Never returns. Writes a byte before each step."""
    code = 0  # also for other errors: they are met again, and said, in the process that asked
    try:
        import resource

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a tokenizer prints as it breaks down
        with open("/proc/self/statm", encoding="ascii") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (present + memory, present + memory))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        for _, step in steps:
            os.write(writer, b".")
            with tokenizing(""):
                step()
    except MemoryError:
        code = _RAN_OUT
    except TokenizerPanic:
        code = _PANICKED
    except BaseException:
        code = 0
    finally:
        os._exit(code)


def _outcome(child: int, reader: int, deadline: float) -> tuple[int, int]:
    """(how many steps were begun, the child's exit code, negative for a signal); the child is gone afterwards."""
    at = 0
    ended = False
    try:
        while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
            if not (read := os.read(reader, 16)):
                ended = True
                break
            at += len(read)
    finally:
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return at, os.waitstatus_to_exitcode(status)


class TokenizerPanic(InputError):
    """A tokenizer that breaks down: its library raises no Exception then."""


@contextmanager
def tokenizing(name: str) -> Iterator[None]:
    """While the block is open, a tokenizer that breaks down is a TokenizerPanic. name: of the model."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TokenizerPanic(
            f"the tokenizer of model '{name}' breaks down on the prompt: {reason}; its tokenizer.json may be damaged, "
            f"get the checkpoint again"
        ) from None
