"""The documentation is true: its commands and snippets run as they stand, its outputs, help texts and messages are the real ones.

Each document's blocks run in their order in one empty folder (with a copy of what they name), on the demo models and
without a hub. What is not run here is recognised by NOT_RUN, which says why, and is checked in another way.
"""

import argparse
import ast
import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

from mask_impact import __main__ as commands
from mask_impact import cli, loading

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "VL_QUICKSTART.md", "VL_IMPLEMENTATION.md")
update_docs = runpy.run_path(str(REPOSITORY / "tools" / "update_docs.py"))

LANGUAGES = {"bash", "python", "text", "yaml"}
SCRIPTS = {"mask_impact_vl.py": (cli.main_vl, cli.VL), "mask_impact_analysis.py": (cli.main_text, cli.TEXT)}
FIRST_LINES = 20  # lines of README.md within which the first command stands
WORDS_BEFORE = 75  # words of README.md before it may come


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


# --- commands that are not run here, and what holds them instead --------------------------------------------------------------


def options(words):
    """{flag: value} of a command's words."""
    return dict(zip(words, [*words[1:], ""], strict=True))


def check_pip(words):
    """Files of requirements exist, and everything else is the project itself, of its extras, or in an extra."""
    project = read("pyproject.toml")
    arguments = [word for word in words[4:] if word not in ("--no-deps", "-e", "-r")]
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
    assert set(words[3:]) - set(paths) <= {"-m", "not slow"}


def check_ruff(words):
    assert f"\n{shlex.join(words)}\n" in read(".ci/run")


def check_parser(words):
    """Both scripts: the parser accepts the words."""
    cli.build_parser(SCRIPTS[words[1]][1]).parse_args(words[2:])


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


def check_launcher(words):
    """accelerate's own parser takes its words, and the script's the rest."""
    from accelerate.commands.launch import launch_command_parser

    assert words[:2] == ["accelerate", "launch"]
    parsed = launch_command_parser().parse_args(words[2:])
    check_parser(["python", parsed.training_script, *parsed.training_script_args])


def is_script(words):
    return words[0] == "python" and words[1] in SCRIPTS


# (why it is not run, how to tell it, what holds it instead)
NOT_RUN = [
    ("installs packages", lambda words: "pip" in words, check_pip),
    ("would run these tests within themselves", lambda words: "pytest" in words, check_pytest),
    ("ruff is no requirement of the tests; .ci/run has it", lambda words: words[0] == "ruff", check_ruff),
    ("pytest collects the same checks", lambda words: words[1] == "test_vl_phase1.py", check_script),
    ("trains or measures for many minutes", lambda words: words[1].startswith(("tools/train", "benchmarks/")), check_script),
    ("rewrites the documents; tested below", lambda words: words[1] == "tools/update_docs.py", check_script),
    ("starts several processes, which test_sharing.py does", lambda words: words[0] == "accelerate", check_launcher),
    ("needs a GPU", lambda words: is_script(words) and options(words).get("--device", "").startswith("cuda"), check_parser),
    ("downloads a model", lambda words: is_script(words) and options(words).get("--model", "").startswith("Qwen/"), check_parser),
    ("takes a real model, which test_loading.py does", lambda words: is_script(words) and "smollm2" in words, check_parser),
]  # fmt: skip


def run_command(words):
    """Run a script or a command of the package, or check what is not run here; returns what it printed on stdout."""
    for _why, applies, check in NOT_RUN:
        if applies(words):
            check(words)
            return None
    is_command = words[:3] == ["python", "-m", "mask_impact"]
    assert is_script(words) or is_command, f"neither one of the scripts nor in NOT_RUN: {shlex.join(words)}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as said:
        code = commands.main(words[3:]) if is_command else SCRIPTS[words[1]][0](words[2:])
    assert code == 0, said.getvalue()
    return printed.getvalue()


# --- running the documents --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch):
    """As on a machine without a network and with an empty cache."""
    monkeypatch.setattr(loading.hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading, "_is_cached", lambda *args, **kwargs: False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in that holds only what the documents name: a demo checkpoint, the example and the configurations."""
    shutil.copytree(REPOSITORY / "mask_impact" / "demo" / "text", tmp_path / "mask_impact" / "demo" / "text")
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    for config in REPOSITORY.glob("prompts_config*.yaml"):
        shutil.copy(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_snippet_runs_as_it_stands(document, folder, no_hub):
    """In their order, in one namespace, as a reader would. Outputs that are shown are compared with the real ones."""
    printed, namespace = {}, {"__name__": "snippet"}
    for block in blocks_of(read(document)):
        where = f"{document}, line {block.line}"
        try:
            if block.language == "bash":
                for _line, words in commands_of(block):
                    printed[shlex.join(words)] = run_command(words)
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text, where, "exec"), namespace)
            elif block.language == "yaml":
                yaml.safe_load(block.text)
        except BaseException as error:
            error.add_note(where)
            raise
    for match in update_docs["OUTPUT"].finditer(read(document)):
        command, _, word = match["command"].rpartition(" && ")[2].partition(" | grep ")
        real = update_docs["matching"](printed[shlex.join(shlex.split(command))], word)
        assert essence(match["body"]) == essence(real), f"{document}: python tools/update_docs.py --outputs"


def essence(output):
    """What does not differ between machines: all lines but those of tables, without their numbers.

    The demo runs in bfloat16, whose last digit depends on the kernels of the processor, and with it the order of a ranking.
    """
    lines = [line for line in output.splitlines() if not re.match(r"\s+\d+\s", line)]
    return [re.sub(r"\d[\d.,e+-]*", "#", line) for line in lines]


def test_the_two_commands_of_a_fresh_machine_come_first():
    """The first screen of README.md: what it is in a few words, then what to type."""
    text = read("README.md")
    first, *_ = blocks_of(text)
    install = "python -m pip install -r requirements.txt"
    assert first.text.splitlines() == [
        f'{install} && python mask_impact_vl.py --prompt "What is 2+2?" --num-tokens 3',
        f"{install} && python -m pytest",
    ]
    assert first.line <= FIRST_LINES
    before = text.partition("```")[0]
    assert len(before.split()) <= WORDS_BEFORE


def test_ci_finds_exactly_these_two_commands():
    (pattern,) = re.findall(r"grep -E '(\^python.+?)' README\.md", read(".ci/run"))
    assert len(re.findall(pattern, read("README.md"), re.MULTILINE)) == 2


def test_commands_are_read_as_a_shell_reads_them():
    block = Block("bash", 'one "a b" && two # comment\n\nthree \\\n  more\nfour "a\nb"', 10)
    assert commands_of(block) == [
        (10, ["one", "a b"]), (10, ["two"]), (12, ["three", "more"]), (14, ["four", "a\nb"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "python mask_impact_vl.py --device cuda --no-such-flag",
        "python benchmarks/bench_store.py --no-such-flag",
        "python -m pip install -r nowhere.txt",
        "python -m pip install left-pad",
        "python -m pytest tests/test_nowhere.py",
        "python nowhere.py",
        "python -m mask_impact report nowhere",
        "make",
    ],
)
def test_a_command_that_would_not_work_is_found(words):
    with pytest.raises((AssertionError, cli.UsageError, SystemExit, IndexError)):
        run_command(words.split())


# --- what is generated, and what names something ----------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_generated_parts_are_current(document):
    """Help texts and tables; `python tools/update_docs.py` mends it."""
    assert update_docs["updated"](read(document)) == read(document)


def test_both_help_texts_are_in_the_readme():
    names = {match["name"] for match in update_docs["BLOCK"].finditer(read("README.md"))}
    assert {f"help {script}" for script in SCRIPTS} <= names


def anchors(text):
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", read(document)):
        assert not target or (REPOSITORY / target).is_file(), target
        assert not anchor or anchor in anchors(read(target or document)), anchor


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    """Paths in back-quotes that begin with a folder of the project, or are a script at its root."""
    named = re.findall(
        r"[`(]((?:mask_impact|tests|tools|benchmarks|examples|\.ci)/[\w./-]*|\w+\.(?:py|yaml|md))[`)]", read(document)
    )
    roots = (REPOSITORY, REPOSITORY / "mask_impact", REPOSITORY / "tests")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def messages_of_the_package():
    """Every string of the package, with … for what is filled in."""
    texts = []
    for path in (REPOSITORY / "mask_impact").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_in_the_troubleshooting_table_are_the_program_s():
    section = read("VL_QUICKSTART.md").split("\n## When something goes wrong\n")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \| ", section, re.MULTILINE)
    assert len(messages) >= 15
    texts = messages_of_the_package()
    for message in messages:
        parts = [re.escape(part) for part in message.split("…")]
        assert any(re.search(".*?".join(parts), text) for text in texts), f"no such message: {message}"
