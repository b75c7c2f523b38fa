"""What every command does alike: usage errors in one line with what was probably meant, safe printing, exit codes.

Knows errors and how text is made safe for a terminal; not what any command does. Exit codes: 0 done, 1 an error, 2 wrong
usage, 130 interrupted (Ctrl-C or SIGTERM); a command may return others of its own. Nothing is coloured, so NO_COLOR has nothing
to switch off.
"""

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from textwrap import fill
from typing import NoReturn, TextIO

from mask_impact.analyses.settings import SETTINGS, SettingError
from mask_impact.errors import InputError, MaskImpactError, UsageError, is_out_of_memory, nearest
from mask_impact.results import files
from mask_impact.studies.sharing import launched
from mask_impact.studies.signals import ended_by
from mask_impact.views.text import escape, page_width

# What messages call by its name in Python; other words in backticks are a prompt's or an answer's.
FLAGS = f"`({'|'.join([*SETTINGS, 'by', 'grid', 'image', 'keep_sinks', 'prompt_name', 'variant'])})`"


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


def print_line(text: str, stream: TextIO) -> None:
    """A line on the stream, whatever its encoding. Where its reader has left (`| head`), the run goes on without it."""
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """A line on stdout."""
    print_line(text, sys.stdout)


def note(text: str) -> None:
    """A remark on stderr, escaped, with settings by their flags."""
    print_line(f"NOTE: {escape(with_flags(text))}", sys.stderr)


def with_flags(text: str) -> str:
    """A message of the rooms below, which put the names of settings into backticks, as a command line calls them."""
    return re.sub(FLAGS, lambda found: f"--{found[1].replace('_', '-')}", text)


def guarded(program: str, argv: Sequence[str], action: Callable[[], int]) -> int:
    """Runs `action` and returns its exit code, or that of the error it ends with, said in one line on stderr.

    With --debug among `argv` the traceback is shown as well. Of several processes of a launcher each but the first says which
    it is, and leaves wrong usage and wrong files to the first, which says the same of them.
    """
    rank, _ = launched()
    program = f"{program} (process {rank})" if rank else program
    n_before = len(files.written)
    try:
        with ended_by(signal.default_int_handler):
            return action()
    except SystemExit as ending:  # argparse has printed the help or the version
        return int(ending.code or 0)
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # the terminal has just shown ^C
        there = ", ".join(map(str, files.written[n_before:]))
        what = f"written is {escape(there)}" if there else "no files were written"
        print_line(f"{start}{program}: interrupted: {what}", sys.stderr)
        return 130
    except Exception as error:
        if rank and isinstance(error, UsageError | InputError):
            return error.exit_code
        if "--debug" in argv:
            traceback.print_exc()
        for problem in getattr(error, "problems", [describe(error)]):
            print_line(f"{program}: error: {escape(with_flags(problem))}", sys.stderr)
        return error.exit_code if isinstance(error, MaskImpactError) else 1


def describe(error: Exception) -> str:
    """What is said of an error, in one line."""
    if isinstance(error, SettingError):
        before, _, name = error.name.rpartition(" ")
        return f"{before} --{name.replace('_', '-')} {error.problem}".strip()
    if isinstance(error, MaskImpactError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed: python -m pip install -r requirements.txt"
    if is_out_of_memory(error):
        return (
            "memory does not suffice; use a smaller model, `dtype` bfloat16, or raise the limit that is set (ulimit -v)"
        )
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where; please report it)"
