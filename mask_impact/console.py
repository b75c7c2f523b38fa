"""What every command line of the package does alike: usage errors in one line, safe printing, exit codes.

Knows errors and how text is made safe for a terminal; not what any command does. Exit codes: 0 done, 1 an error, 2 wrong
usage, 130 interrupted; a command may return others of its own.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from mask_impact.errors import MaskImpactError, UsageError
from mask_impact.summary import escape


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the usage and exit: an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists what is accepted)")


def print_line(text: str, stream: TextIO) -> None:
    """A line on the stream, whatever its encoding. Where its reader has left (`| head`), the run goes on without it."""
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def guarded(program: str, argv: Sequence[str], action: Callable[[], int]) -> int:
    """Runs `action` and returns its exit code, or that of the error it ends with, said in one line on stderr.

    With --debug among `argv` the traceback is shown as well.
    """
    try:
        return action()
    except SystemExit as ending:  # argparse has printed the help or the version
        return int(ending.code or 0)
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # the terminal has just shown ^C
        print_line(f"{start}{program}: interrupted: no files were written", sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        for problem in getattr(error, "problems", [describe(error)]):
            print_line(f"{program}: error: {escape(problem)}", sys.stderr)
        return error.exit_code if isinstance(error, MaskImpactError) else 1


def describe(error: Exception) -> str:
    """What is said of an error, in one line."""
    if isinstance(error, MaskImpactError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed: python -m pip install -r requirements.txt"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where; please report it)"
