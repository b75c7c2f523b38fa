"""Completion of commands and flags for your shell."""

import argparse

from mask_impact.commands.caller import Caller
from mask_impact.commands.console import show

SHELLS = ("bash", "zsh", "tcsh")
PATHS = ("DIR", "FILE", "MODEL", "RESULT")  # what takes a path, or may be one
EPILOG = """\
The script goes to standard output. bash:

  mask-impact completion bash \\
      > ~/.local/share/bash-completion/completions/mask-impact

zsh: write it as _mask-impact into a folder of your fpath.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or tcsh")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Prints the script."""
    import shtab

    from mask_impact.commands.main import build_parser

    parser = build_parser()
    for command in parser._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            if action.metavar in PATHS:
                action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
    show(shtab.complete(parser, args.shell))
    return 0
