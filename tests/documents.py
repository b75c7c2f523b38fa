"""Reading the documents: their blocks, commands and tables, and a way to run or check each command."""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))
update_docs = importlib.import_module("update_docs")
doc_parts = importlib.import_module("doc_parts")

LANGUAGES = {"bash", "python", "text", "yaml"}
COMMANDS = (
    "explain",
    "run",
    "knockout",
    "without",
    "pixels",
    "deepstack",
    "tower",
    "study",
    "study_report",
    "serve",
    "report",
    "figure",
    "compare",
    "top",
    "models",
    "verify",
    "completion",
)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int


def read(document):
    return (REPOSITORY / document).read_text(encoding="utf-8")


def blocks_of(text):
    """The fenced blocks of a document; AssertionError for one that has no known language or no end."""
    blocks, opened = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.fullmatch(r"```(\w*)", line.strip())
        if fence and opened is None:
            assert fence[1] in LANGUAGES, f"line {number}: a block needs one of the languages {sorted(LANGUAGES)}"
            opened = (fence[1], number + 1, [])
        elif fence:
            language, first, lines = opened
            blocks.append(Block(language, "\n".join(lines), first))
            opened = None
        elif opened is not None:
            opened[2].append(line)
    assert opened is None, "the last block does not end"
    return blocks


def commands_of(block):
    """The simple commands of a bash block, each as (line number, list of words); `&&` separates two."""
    commands, pending, first = [], "", block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        first = first if pending else number
        pending += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote that another line closes
            continue
        if line.endswith("\\"):
            continue
        pending, command = "", []
        for word in [*words, "&&"]:
            if word != "&&":
                command.append(word)
            elif command:
                commands.append((first, command))
                command = []
    assert not pending, f"line {first}: the command does not end"
    return commands


def table_rows(text, head):
    """The cells of the rows below each table head that is given, whose cells stand for themselves."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[: len(head)] == list(head):
            inside = True
        elif not cells:
            inside = False
        elif inside and not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return rows


def section(text, heading):
    """What stands below a heading of the second level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


# --- commands that are not run here, and what holds them instead ----------------------------------------------------------


def options(words):
    """{flag: value} of a command's words."""
    return dict(zip(words, [*words[1:], ""], strict=True))


def check_pip(words):
    """Files of requirements exist, and everything else is the project itself, of its extras, or in an extra."""
    project = read("pyproject.toml")
    arguments = [word for word in words[4:] if word not in ("--no-deps", "-e", "-r", ".")]
    assert words[:4] == ["python", "-m", "pip", "install"]
    for argument in arguments:
        if "-r" in words:
            assert (REPOSITORY / argument).is_file()
        elif argument.startswith("."):
            assert re.search(rf"^{argument.strip('.[]')} = \[", project, re.MULTILINE)
        else:
            assert f'"{Requirement(argument).name}' in project


def check_pytest(words):
    paths = [word for word in words[3:] if word.endswith(".py")]
    assert words[:3] == ["python", "-m", "pytest"]
    assert all((REPOSITORY / path).is_file() for path in paths)
    assert set(words[3:]) - set(paths) <= {"-m", "slow or browser"}


def check_ruff(words):
    assert f"\n{shlex.join(words)}\n" in read(".ci/run")


def check_mkdocs(words):
    assert words == ["python", "-m", "mkdocs", "build", "--strict"]
    assert (REPOSITORY / "mkdocs.yml").is_file()


def our_words(words):
    """The arguments of `mask-impact` in these words, None where they are another command."""
    if words[:3] == ["python", "-m", "mask_impact"]:
        return words[3:]
    return words[1:] if words[0] == "mask-impact" else None


def is_ours(words):
    return our_words(words) is not None or (words[0] == "python" and words[1] in update_docs.SCRIPTS)


def check_parser(words):
    """Ours: the words are accepted; what the command would do is left out."""
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            patch.setattr(importlib.import_module(f"mask_impact.commands.{command}"), "run", lambda *given: 0)
        assert update_docs.run(words) == 0


class Parsed(Exception):
    """The arguments were accepted; nothing more is to be done."""


def check_script(words):
    """Any other script of the project: it starts and its own parser accepts the words, and there it is stopped."""
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        real(self, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", words[1:])
        patch.setattr(sys, "path", [str(REPOSITORY / words[1]).rpartition("/")[0], *sys.path])
        with pytest.raises(Parsed):
            runpy.run_path(str(REPOSITORY / words[1]), run_name="__main__")


def check_file(words):
    """A script without arguments is there."""
    assert (REPOSITORY / words[1]).is_file()
    assert len(words) == 2


def model_of(words):
    given = options(words)
    return given.get("-m", given.get("--model", "")) if is_ours(words) else ""


# (why it is not run, how to tell it, what holds it instead)
NOT_RUN = [
    ("installs packages", lambda words: "pip" in words, check_pip),
    ("would run these tests within themselves", lambda words: "pytest" in words, check_pytest),
    ("ruff is no requirement of the tests; .ci/run has it", lambda words: words[0] == "ruff", check_ruff),
    (
        "mkdocs is no requirement of the tests; the site is built in test_docs.py",
        lambda words: "mkdocs" in words,
        check_mkdocs,
    ),
    (
        "serves until Ctrl+C; tests/app runs it",
        lambda words: is_ours(words) and words[1:2] == ["serve"],
        check_parser,
    ),
    ("pytest collects the same checks", lambda words: words[1:2] == ["test_vl_phase1.py"], check_script),
    (
        "trains or measures for many minutes",
        lambda words: words[1:] and words[1].startswith(("tools/train", "benchmarks/")),
        check_script,
    ),
    (
        "runs the notebook, which test_notebook.py does",
        lambda words: words[1:2] == ["tools/run_notebook.py"],
        check_file,
    ),
    (
        "rewrites the documents; tested in test_docs.py",
        lambda words: words[1:2] == ["tools/update_docs.py"],
        check_script,
    ),
    ("needs Ray; test_ray.py starts workers", lambda words: "--workers" in words, check_parser),
    (
        "needs a GPU",
        lambda words: is_ours(words) and options(words).get("--device", "").startswith("cuda"),
        check_parser,
    ),
    ("takes an adapter, which test_adapters.py does", lambda words: "my-lora-folder" in words, check_parser),
    ("downloads a model", lambda words: model_of(words).startswith("Qwen/"), check_parser),
    ("takes a real model, which test_loading.py does", lambda words: model_of(words) == "smollm2", check_parser),
]


def run_command(words):
    """Run one of our commands, or check what is not run here; returns what it printed on stdout.

    `> FILE` writes that into a file of the folder; where FILE lies in the user's home it only has to be something.
    """
    if ">" in words[:-1]:
        *words, _, target = words
        printed = run_command(words)
        assert printed
        if not target.startswith("~"):
            Path(target).write_text(printed, encoding="utf-8")
        return None
    for _why, applies, check in NOT_RUN:
        if applies(words):
            check(words)
            return None
    assert is_ours(words), f"neither one of our commands nor in NOT_RUN: {shlex.join(words)}"
    printed = io.StringIO()
    with (
        doc_parts.plain_terminal(),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = update_docs.run(words)
    assert code == 0, said.getvalue()
    return printed.getvalue()


def check_yaml(text):
    """A configuration or a file of flows is read as ours would be; anything else maps names to specs."""
    from mask_impact.prompts.group_files import read_flows
    from mask_impact.studies.config import load_config

    Path("shown.yaml").write_text(text, encoding="utf-8")
    data = yaml.safe_load(text)
    if "prompts" in data:
        assert load_config("shown.yaml", kind=None).jobs
    elif "flows" in data:
        assert read_flows("shown.yaml").flows
    else:
        assert all(
            isinstance(spec, str) for value in data.values() for spec in (value if isinstance(value, list) else [value])
        )
