"""Write into the documentation what the program itself says: help texts, the tables of architectures, real outputs.

    python tools/update_docs.py              rewrite what is not current, of what is generated from the code
    python tools/update_docs.py --outputs    and run the commands whose output or picture is shown, on the demo models
    python tools/update_docs.py --check      only tell, and exit 1 where something is not current

What is generated stands between `<!-- generated: NAME -->` and `<!-- end generated -->`, and GENERATORS has every NAME.
An output is the ```text block behind `<!-- output of: COMMAND -->`; `COMMAND | grep WORD` shows the lines with the word, and
`FIRST && COMMAND` what the last one prints.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask_impact import __main__ as commands  # noqa: E402
from mask_impact import cli  # noqa: E402

DOCUMENTS = ("README.md", "VL_QUICKSTART.md", "VL_IMPLEMENTATION.md")
HELP_COLUMNS = 100
BLOCK = re.compile(r"(<!-- generated: (?P<name>.+?) -->)(?P<body>.*?)(<!-- end generated -->)", re.DOTALL)
OUTPUT = re.compile(r"(<!-- output of: (?P<command>.+?) -->\n```text\n)(?P<body>.*?)(```\n)", re.DOTALL)
# A picture, the command that draws it, and under which name.
PICTURES = {
    "examples/shapes.patches.png": (
        'python mask_impact_vl.py --model demo --image examples/shapes.png --prompt "What color is the star?" --plots',
        "output/vl_masking_results.patches.png",
    ),
    "examples/shapes.flows.png": (
        'python mask_impact_vl.py --model demo --image examples/shapes.png --prompt "What color is the star?" --knockout default',
        "output/vl_masking_results.flows.png",
    ),
}
SCRIPTS = {"mask_impact_vl.py": cli.main_vl, "mask_impact_analysis.py": cli.main_text}


def help_text(script: cli.Script) -> str:
    """The help of a script as a terminal of HELP_COLUMNS columns without colours shows it."""
    with _plain_terminal():
        return cli.build_parser(script).format_help()


def command_help(name: str) -> str:
    """The help of a command of `python -m mask_impact`, likewise."""
    printed = io.StringIO()
    with _plain_terminal(), contextlib.redirect_stdout(printed):
        commands.main([name, "--help"])
    return printed.getvalue()


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=str(HELP_COLUMNS), NO_COLOR="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _help_block(text: str) -> str:
    return f"\n```text\n{text}```\n"


def _architecture_list() -> str:
    from mask_impact.architectures import supported

    return supported()


def _architecture_table() -> str:
    from mask_impact.architectures import LAYOUTS

    def cell(name: str | None) -> str:
        return f"`{name}`" if name else "none"

    rows = [
        f"| `{model_type}` | `{layout.layers}` | {cell(layout.after_attention)} | {cell(layout.before_mlp)} "
        f"| {cell(layout.after_mlp)} | {'1 + weight' if layout.norm_offset else 'weight'} |"
        for model_type, layout in sorted(LAYOUTS.items())
    ]
    head = "| `model_type` | decoder layers | norm after attention | norm before MLP | norm after MLP | norm multiplies by |"
    return "\n" + "\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n"


GENERATORS: dict[str, Callable[[], str]] = {
    "help mask_impact_vl.py": lambda: _help_block(help_text(cli.VL)),
    "help mask_impact_analysis.py": lambda: _help_block(help_text(cli.TEXT)),
    **{
        f"help {commands.PROGRAM} {name}": lambda name=name: _help_block(command_help(name))
        for name in commands.COMMANDS
    },
    "architectures": _architecture_list,
    "architecture table": _architecture_table,
}


def updated(text: str) -> str:
    """The document with every generated part current; KeyError for a part that no generator knows."""
    return BLOCK.sub(lambda match: f"{match[1]}{GENERATORS[match['name']]()}{match[4]}", text)


def output_of(command: str, keep: tuple[str, Path] | None = None) -> str:
    """What a documented command prints on stdout. Meant to run with HF_HUB_OFFLINE=1: the demo stands in for the default.

    keep: a file that it writes, and where to copy it to.
    """
    command, _, word = command.partition(" | grep ")
    folder = os.getcwd()
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(ROOT / "examples", Path(temporary) / "examples")
        os.chdir(temporary)
        try:
            for words in map(shlex.split, command.split(" && ")):
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    code = commands.main(words[3:]) if words[1] == "-m" else SCRIPTS[words[1]](words[2:])
                if code != 0:
                    break
            if keep is not None and code == 0:
                shutil.copy(*keep)
        finally:
            os.chdir(folder)
    if code != 0:
        raise SystemExit(f"{command} ended with exit code {code}")
    return matching(printed.getvalue(), word)


def matching(text: str, word: str) -> str:
    """The lines of the text with the word in them; all where it is empty."""
    return "".join(line for line in text.splitlines(keepends=True) if word in line)


def with_outputs(text: str) -> str:
    """The document with every shown output as the command prints it now."""
    return OUTPUT.sub(lambda match: f"{match[1]}{output_of(match['command'])}{match[4]}", text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell what is not current")
    parser.add_argument("--outputs", action="store_true", help="run the commands whose output is shown")
    args = parser.parse_args(argv)
    stale = []
    with tempfile.TemporaryDirectory() as empty:
        os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=empty)
        for name in DOCUMENTS:
            path = ROOT / name
            text = path.read_text(encoding="utf-8")
            current = with_outputs(updated(text)) if args.outputs else updated(text)
            if current != text:
                stale.append(name)
                if not args.check:
                    path.write_text(current, encoding="utf-8")
        if args.outputs and not args.check:
            for name, (command, written) in PICTURES.items():
                output_of(command, keep=(written, ROOT / name))
    print(f"{'not current' if args.check else 'rewritten'}: {', '.join(stale)}" if stale else "all current")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
