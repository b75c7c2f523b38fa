"""The command `mask-impact`: one line for each subcommand, and nothing of what they do.

A subcommand is a module of this folder with EPILOG, `add_arguments(parser)` and `run(args, caller, command) -> int`; its first
docstring line is its description. It is imported only when it is called.
"""

import importlib
import sys
from collections.abc import Sequence

import mask_impact
from mask_impact.commands.caller import MASK_IMPACT
from mask_impact.commands.console import Parser, command_line, did_you_mean, guarded, show
from mask_impact.errors import UsageError

PROGRAM = MASK_IMPACT.program
# By question: what each command answers, in one line.
COMMANDS = {
    "ask a model": {
        "explain": "what the answer used: which words, which cells of the image",
        "evidence": "the smallest sets of words or cells that decide the answer",
        "run": "what the answer used, and where each layer reads",
        "knockout": "what cutting a flow does to the answer, such as image -> last",
        "without": "the answer again, with some tokens hidden",
        "pixels": "what replacing pixels of an image does to the answer",
        "deepstack": "which of an image's features the answer needs, in Qwen3-VL",
        "tower": "which patches the vision tower reads, and whether it matters",
        "study": "many prompts: a YAML file or a dataset; study report sums them up",
        "serve": "ask by clicks: a local page on one loaded model",
    },
    "look at results": {
        "top": "the strongest tokens, layers or heads of a result, as a table",
        "report": "an interactive page of a result",
        "figure": "a figure to publish: PDF, SVG or PNG",
        "compare": "results side by side, of two models or two prompts",
    },
    "know your model": {
        "models": "which architectures are supported, and whether a checkpoint is",
        "verify": "measure how exact the numbers are on your model",
    },
    "set up": {"completion": "completion of commands and flags for your shell"},
}
SUMMARIES = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}
NAMES = list(SUMMARIES)
# A first word that makes another command of one, and its module: what is no name of a file that the command itself takes.
WITHIN = {"study": {"report": "study_report"}}


def overview() -> str:
    """The commands grouped by question, as `mask-impact` alone prints them."""
    lines = [
        "Which token does a model use, at which layer, to produce its answer?",
        "",
        f"usage: {PROGRAM} COMMAND ...",
    ]
    for question, commands in COMMANDS.items():
        lines += ["", f"{question}:"]
        lines += [f"  {name:<12}{summary}" for name, summary in commands.items()]
    lines += [
        "",
        f'{PROGRAM} run "What is 2+2?" -m demo',
        "    tries it, with a small model that is part of the package",
    ]
    return "\n".join([*lines, f"{PROGRAM} COMMAND --help", "    explains a command"])


def build_parser() -> Parser:
    """The parser of all commands, with the arguments of each."""
    parser = _bare_parser()
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", parser_class=Parser)
    for name, summary in SUMMARIES.items():
        _describe(name, commands.add_parser(name, help=summary))
    return parser


def _bare_parser() -> Parser:
    parser = Parser(prog=PROGRAM, usage=f"{PROGRAM} COMMAND ...", add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--version", action="version", version=f"mask-impact {mask_impact.__version__}")
    return parser


def _describe(name: str, parser: Parser) -> Parser:
    """Gives a command's parser what its module says."""
    first, _, within = name.partition(" ")
    module = importlib.import_module(f"mask_impact.commands.{WITHIN[first][within] if within else name}")
    parser.prog, parser.description = f"{PROGRAM} {name}", module.__doc__.partition("\n")[0]
    parser.epilog = module.EPILOG
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    words = [*argv[1:3], "--help"] if argv[:1] == ["help"] else argv
    if len(words) > 1 and words[1] in WITHIN.get(words[0], ()):
        words = [" ".join(words[:2]), *words[2:]]
    known = [*SUMMARIES, *(f"{name} {word}" for name, several in WITHIN.items() for word in several)]
    program = f"{PROGRAM} {words[0]}" if words[:1] and words[0] in known else PROGRAM

    def run() -> int:
        if not words or words[0] in ("-h", "--help"):
            show(overview())
            return 0
        name, *rest = words
        if name.startswith("-"):
            _bare_parser().parse_args([name])  # which prints the version, or refuses the flag
        if name not in known:
            raise UsageError(f"unknown command {name!r}{did_you_mean(name, SUMMARIES)}; {PROGRAM} alone lists them")
        args = _describe(name, Parser()).parse_mixed(rest)
        return args.run(args, MASK_IMPACT, command_line(PROGRAM, argv))

    return guarded(program, argv, run)


if __name__ == "__main__":
    sys.exit(main())
