"""Write into the documentation what the program itself says: help texts, tables, signatures, real outputs, pictures.

    python tools/update_docs.py              rewrite what is generated from the code
    python tools/update_docs.py --outputs    and run the commands whose output or picture is shown, on the demo models
    python tools/update_docs.py --check      only tell, and exit 1 where something is not current

What is generated stands between `<!-- generated: NAME -->` and `<!-- end generated -->`; `doc_parts.GENERATORS` has every
NAME. An output is the ```text block behind `<!-- output of: COMMAND -->`. `FIRST && COMMAND` shows what the last command
prints, `COMMAND | grep WORD` the lines with the word, and `COMMAND | grep -A 3 WORD` also the 3 lines behind each.
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
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from doc_parts import GENERATORS, plain_terminal  # noqa: E402

from mask_impact.commands import main as mask_impact_command  # noqa: E402
from mask_impact.commands import scripts  # noqa: E402

BLOCK = re.compile(r"(<!-- generated: (?P<name>.+?) -->)(?P<body>.*?)(<!-- end generated -->)", re.DOTALL)
OUTPUT = re.compile(r"(<!-- output of: (?P<command>.+?) -->\n```text\n)(?P<body>.*?)(```\n)", re.DOTALL)
FILTER = re.compile(r"(?P<command>.*?) \| grep (?:-A (?P<after>\d+) )?(?P<word>.+)", re.DOTALL)
SCRIPTS = {"mask_impact_vl.py": scripts.main_vl, "mask_impact_analysis.py": scripts.main_text}
STAR = '"What color is the star?" -i examples/shapes.png -m demo'
# A picture, the command that draws it, and under which name.
PICTURES = {
    "examples/shapes.patches.png": (f"mask-impact run {STAR} --plots", "output/result.patches.png"),
    "examples/shapes.flows.png": (f"mask-impact knockout {STAR}", "output/result.flows.png"),
}


def documents() -> list[str]:
    """Paths of all pages, from the repository's folder."""
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in pages]


def updated(text: str) -> str:
    """The document with every generated part current; KeyError for a part that no generator knows."""
    return BLOCK.sub(lambda match: f"{match[1]}{GENERATORS[match['name']]()}{match[4]}", text)


def run(words: list[str]) -> int:
    """Run a command of the documentation in this process; returns its exit code."""
    if words[:3] == ["python", "-m", "mask_impact"]:
        return mask_impact_command.main(words[3:])
    if words[0] == "mask-impact":
        return mask_impact_command.main(words[1:])
    return SCRIPTS[words[1]](words[2:])


def output_of(command: str, keep: tuple[str, Path] | None = None) -> str:
    """What a documented command prints on stdout, run in an empty folder with the examples.

    keep: a file that it writes, and where to copy it to.
    """
    command, after, word = filtered(command)
    folder = os.getcwd()
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(ROOT / "examples", Path(temporary) / "examples")
        for path in ROOT.glob("prompts_config*.yaml"):
            shutil.copy(path, temporary)
        os.chdir(temporary)
        try:
            for words in map(shlex.split, command.split(" && ")):
                printed, said = io.StringIO(), io.StringIO()
                with plain_terminal(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
                    code = run(words)
                if code != 0:
                    raise SystemExit(f"{shlex.join(words)} ended with exit code {code}: {said.getvalue()}")
            if keep is not None:
                shutil.copy(*keep)
        finally:
            os.chdir(folder)
    return matching(printed.getvalue(), word, after)


def filtered(command: str) -> tuple[str, int, str]:
    """(command, lines behind, word) of a command with or without `| grep`; the empty word is in every line."""
    match = FILTER.fullmatch(command)
    return (match["command"], int(match["after"] or 0), *shlex.split(match["word"])) if match else (command, 0, "")


def matching(text: str, word: str, after: int = 0) -> str:
    """The lines of the text with the word in them, and as many behind each."""
    shown, left = [], -1
    for line in text.splitlines(keepends=True):
        left = after if word in line else left - 1
        shown += [line] if left >= 0 else []
    return "".join(shown)


@cache
def printed_by(command: str) -> str:
    """`output_of` the command, which several documents may show."""
    return output_of(command)


def with_outputs(text: str) -> str:
    """The document with every shown output as the command prints it now."""
    return OUTPUT.sub(lambda match: f"{match[1]}{printed_by(match['command'])}{match[4]}", text)


def stale_documents(outputs: bool) -> Iterator[tuple[Path, str]]:
    """(path, current text) of each document that is not current."""
    for name in documents():
        text = (ROOT / name).read_text(encoding="utf-8")
        current = updated(text)
        current = with_outputs(current) if outputs else current
        if current != text:
            yield ROOT / name, current


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell what is not current")
    parser.add_argument("--outputs", action="store_true", help="run the commands whose output is shown")
    args = parser.parse_args(argv)
    stale = []
    with tempfile.TemporaryDirectory() as empty:
        os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=empty)
        for path, text in stale_documents(args.outputs):
            stale.append(path.relative_to(ROOT).as_posix())
            if not args.check:
                path.write_text(text, encoding="utf-8")
        if args.outputs and not args.check:
            for name, (command, written) in PICTURES.items():
                output_of(command, keep=(written, ROOT / name))
    print(f"{'not current' if args.check else 'rewritten'}: {', '.join(stale)}" if stale else "all current")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
