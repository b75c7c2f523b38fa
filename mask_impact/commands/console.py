"""What every command does alike: usage errors in one line with what was probably meant, safe printing, exit codes.

Knows errors and how text is made safe for a terminal; not what any command does. Exit codes: 0 done, 1 an error, 2 wrong
usage, 130 interrupted (Ctrl-C or SIGTERM); a command may return others of its own. Nothing is coloured, so NO_COLOR has nothing
to switch off.
"""

import argparse
import errno
import io
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from textwrap import fill
from typing import NoReturn, TextIO

from mask_impact.analyses.settings import SETTINGS, SettingError
from mask_impact.errors import (
    InputError,
    MaskImpactError,
    UsageError,
    is_out_of_memory,
    nearest,
    public_address,
    told,
)
from mask_impact.results import files
from mask_impact.studies.signals import ended_by
from mask_impact.views.text import page_width, visible

# What messages call by its name in Python; other words in backticks are a prompt's or an answer's.
_OWN_FLAGS = (
    "baseline",
    "beam",
    "by",
    "expected",
    "fills",
    "grid",
    "image",
    "image_number",
    "keep_sinks",
    "prompt_name",
    "variant",
    "video",
    "workers",
)
FLAGS = f"`({'|'.join([*SETTINGS, *_OWN_FLAGS])})`"


def launched() -> tuple[int, int]:
    """(rank of this process, number of processes) as a launcher (torchrun, accelerate) says in the environment; (0, 1) without
    one."""
    try:
        rank, _, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)


class Help(argparse.HelpFormatter):
    """Help as wide as the terminal, and 80 columns where there is none. Indented lines of an epilog stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=page_width() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = groupby(text.splitlines(), key=lambda line: line if line[:1] in ("", " ") else "prose")
        return "\n".join(fill(" ".join(lines), width) if kind == "prose" else kind for kind, lines in parts)


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the usage and exit: an error is one line, with what was probably meant."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{"formatter_class": Help, "allow_abbrev": False} | kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        return self._complete(*self.parse_known_args(args, namespace))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        return super().parse_known_args(self._with_prompts(sys.argv[1:] if args is None else args), namespace)

    def _with_prompts(self, args: Sequence[str]) -> list[str]:
        """The arguments with a prompt that begins with - joined to its flag, since argparse takes it for a flag."""
        joined: list[str] = []
        for argument in args:
            is_text = (
                argument.startswith("-") and (" " in argument or not argument.startswith("--")) and argument != "-"
            )
            is_flag = argument.partition("=")[0] in self._option_string_actions
            if joined[-1:] == ["--prompt"] and is_text and not is_flag:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return joined

    def parse_mixed(self, args: Sequence[str]) -> argparse.Namespace:
        """Arguments with flags between them; where there is a --, argparse takes no flags between them."""
        parse = self.parse_known_args if "--" in args else self.parse_known_intermixed_args
        return self._complete(*parse(args))

    def _complete(self, parsed: argparse.Namespace, unknown: Sequence[str]) -> argparse.Namespace:
        """What was parsed; UsageError for what argparse does not know, flags first."""
        for argument in unknown:
            name = argument.partition("=")[0]
            if name.startswith("-"):
                prompts = any(action.dest == "prompt" and not action.option_strings for action in self._actions)
                behind = "; a prompt that begins with - goes behind --" * prompts
                self.error(f"unknown flag {name}{did_you_mean(name, self._option_string_actions) or behind}")
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        show(message.removesuffix("\n"))  # help and version are all that argparse prints

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument --prompt: expected one argument"):
            message += "; one that begins with -- is given as --prompt=--it"
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            names = [name.strip().strip("'") for name in choice[2].split(",")]
            message = f"{message[: choice.start()]}unknown {choice[1]!r}; accepted are {', '.join(names)}"
            message += did_you_mean(choice[1], names)
        raise UsageError(f"{message} (--help lists what is accepted)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest of the known names, or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


# --- printing -------------------------------------------------------------------------------------------------------------

_lost: list[str] = []  # why stdout could not be written to, since the command began


def say(text: str) -> None:
    """A line on stdout, whatever is in it."""
    _print(visible(text), sys.stdout)


def show(page: str) -> None:
    """Lines on stdout that views made of several: nothing acts on a terminal but their ends and tabs."""
    page = re.sub(r"\r(?!\n|\Z)", r"\\r", page)  # a line of CSV ends with both
    _print(visible(page, "\r\n\t"), sys.stdout)


def remark(text: str) -> None:
    """A line on stderr, whatever is in it, with settings by their flags."""
    _print(visible(told(with_flags(text))), sys.stderr)


def note(text: str) -> None:
    """A remark that is called a note."""
    remark(f"NOTE: {text}")


def _print(text: str, stream: TextIO | None) -> None:
    """Lines on a stream, whatever its encoding. Where its reader has left (`| head`) or it is full, the run goes on without."""
    if stream is None:
        return
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            _lost.append(error.strerror or str(error))
        with suppress(OSError, ValueError):  # what is left in its buffer goes nowhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Closed(io.TextIOBase):
    """In place of a stream that was closed when the process began. quietly: whether what is written is simply lost."""

    def __init__(self, quietly: bool) -> None:
        self._quietly = quietly

    def write(self, text: str) -> int:
        if not self._quietly:
            raise OSError(errno.EBADF, "it is closed")
        return len(text)


def _streams_that_are() -> None:
    """Libraries write to stdout and stderr without a look whether they are there."""
    if sys.stdout is None:
        sys.stdout = _Closed(quietly=False)
    if sys.stderr is None:
        sys.stderr = _Closed(quietly=True)


def command_line(program: str, argv: Sequence[str]) -> str:
    """The whole command as a shell takes it, addresses as `public_address` has them: it is stored with results."""

    def public(word: str) -> str:
        found = re.fullmatch("(-i|--[a-z-]+=|)(https?://.*)", word, re.IGNORECASE | re.DOTALL)
        return found[1] + public_address(found[2]) if found else word

    return shlex.join([program, *map(public, argv)])


def with_flags(text: str) -> str:
    """A message of the rooms below, which put the names of settings into backticks, as a command line calls them."""
    return re.sub(FLAGS, lambda found: f"--{found[1].replace('_', '-')}", text)


def guarded(program: str, argv: Sequence[str], action: Callable[[], int]) -> int:
    """Runs `action` and returns its exit code, or that of the error it ends with, said in one line on stderr.

    With --debug among `argv` the traceback is shown as well. Of several processes of a launcher, which nothing here needs, each
    but the first leaves it to the first to say so.
    """
    rank, _ = launched()
    n_before = len(files.written)
    _lost.clear()
    _streams_that_are()
    try:
        with ended_by(signal.default_int_handler):
            code = action()
    except SystemExit as ending:  # argparse has printed the help or the version
        code = int(ending.code or 0)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            remark("")  # the terminal has just shown ^C
        there = ", ".join(map(str, files.written[n_before:]))
        remark(f"{program}: interrupted: {f'written is {there}' if there else 'no files were written'}")
        return 130
    except Exception as error:
        if rank and isinstance(error, UsageError | InputError):
            return error.exit_code
        if "--debug" in argv:
            _print(visible(traceback.format_exc(), "\n"), sys.stderr)
        for problem in getattr(error, "problems", [describe(error)]):
            remark(f"{program}: error: {problem}")
        return error.exit_code if isinstance(error, MaskImpactError) else 1
    if _lost:
        remark(f"{program}: error: standard output can't be written: {_lost[0]}")
    return code or (1 if _lost else 0)


def describe(error: Exception) -> str:
    """What is said of an error, in one line."""
    if isinstance(error, SettingError):
        before, _, name = error.name.rpartition(" ")
        return f"{before} --{name.replace('_', '-')} {error.problem}".strip()
    if isinstance(error, MaskImpactError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # such as a name that is too long
        return f"'{error.filename}': {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed: python -m pip install -r requirements.txt"
    if is_out_of_memory(error):
        return (
            "memory does not suffice; use a smaller model, `dtype` bfloat16, or raise the limit that is set (ulimit -v)"
        )
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where; please report it)"
