"""`python -m mask_impact COMMAND ...`: what is done with results that are stored already.

Knows the commands' names and nothing of what they do: each is a module with `add_arguments(parser)` and `run(args) -> int`,
imported only when it is called. No command imports torch or transformers.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mask_impact
from mask_impact.console import Parser, guarded

PROGRAM = "python -m mask_impact"


@dataclass(frozen=True)
class Command:
    """module: where its `add_arguments` and `run` are. summary: one line for the list of commands."""

    module: str
    summary: str


COMMANDS = {
    "report": Command("mask_impact.report", "an interactive page of a result, in one HTML file"),
    "compare": Command("mask_impact.compare", "results side by side: which tokens matter in each, at which depth"),
    "top": Command("mask_impact.top", "the strongest tokens, layers or heads of a result, as a table"),
}


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; only the one that `argv` begins with has its arguments."""
    parser = Parser(prog=PROGRAM, description="What is done with stored results.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mask-impact {mask_impact.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        wanted = name in argv[:1]
        module = importlib.import_module(command.module) if wanted else None
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=module.__doc__.partition("\n")[0] if module else None,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if module:
            module.add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    program = f"{PROGRAM} {argv[0]}" if argv[:1] and argv[0] in COMMANDS else PROGRAM

    def run() -> int:
        args = build_parser(argv).parse_args(argv)
        return args.run(args)

    return guarded(program, argv, run)


if __name__ == "__main__":
    sys.exit(main())
