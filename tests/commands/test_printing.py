"""What reaches a terminal: nothing that acts on it, nothing without end, and no traceback where nobody can be told anything."""

import ast
import io
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from PIL import Image
from studying import REPOSITORY

from mask_impact.commands import console
from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text
from mask_impact.errors import InputError, told
from mask_impact.views.text import escape, visible

EVIL = "\x1b[31mevil\x1b]0;pwn\x07\x9b\u202e\u2066\r\x08"
ACTS = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def clean(capsys, monkeypatch, tmp_path):
    """Calls a command in an empty folder, and holds all that it prints to text that acts on nothing; exit code and that text."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, main=main):
        code = main([str(word) for word in argv])
        printed = "".join(capsys.readouterr())
        assert ACTS.search(printed) is None, printed
        return code, printed

    return call


def test_text_of_anywhere_is_written_out_once():
    assert visible(f"a\nb{EVIL}") == r"a\nb\x1b[31mevil\x1b]0;pwn\x07\x9b\u202e\u2066\r\x08"
    assert visible("a\n\tb\x07", "\n\t") == "a\n\tb\\x07"
    assert visible("Grüße 中文 \\ ☃") == "Grüße 中文 \\ ☃"
    for text in (EVIL, "a\\b", "\udc80"):
        assert visible(escape(text)) == escape(text)
        assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("kept", ["name", "image", "mask_mode", "prompt"])
def test_a_dataset_s_texts_act_on_nothing(kept, clean, text_checkpoint, tmp_path):
    rows = [{"prompt": "hi", "name": "a\nFAKE"}, {"prompt": "hi", kept: EVIL}]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    code, printed = clean("study", "d.jsonl", "-m", text_checkpoint)
    assert code == 3
    assert r"\x1b[31mevil" in printed or kept == "prompt"
    assert not any(line.startswith("FAKE") for line in printed.splitlines())


@pytest.mark.parametrize("how", ["run", "knockout", "without", "explain", "script"])
def test_a_folder_s_name_acts_on_nothing(how, clean, text_checkpoint):
    folder = f"out{EVIL}"
    words = {
        "run": ["run", "the cat sat", "--no-answer"],
        "knockout": ["knockout", "the cat sat", "question -> last"],
        "without": ["without", "the cat sat", "cat"],
        "explain": ["explain", "the cat sat"],
        "script": ["--prompt", "the cat sat", "--without", "cat"],
    }[how]
    for _ in range(2):  # the second time something is left from before
        code, printed = clean(
            *words, "--output-dir", folder, "--model", text_checkpoint, main=main_text if how == "script" else main
        )
        assert (code, r"\x1b[31mevil" in printed) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ["top", EVIL], ["report", EVIL], ["run", f"{EVIL}.txt"], ["run", "hi", "-i", EVIL], ["study", f"{EVIL}.yaml"], [EVIL],
        ["run", "hi", f"--{EVIL}"], ["run", "hi", "-m", EVIL], ["run", "hi", "--budget", EVIL],
        ["run", "hi", "--debug", "-n", EVIL],
        ["top", "x", "--grid", EVIL], ["run", "hi", "--groups", EVIL], ["without", "hi", "hi", "--layers", EVIL],
        ["run", "hi", "-o", f"{EVIL}"], ["figure", "map", "x", "-o", EVIL], ["models", EVIL], ["completion", EVIL],
    ],
)  # fmt: skip
def test_no_message_acts_on_anything(words, clean):
    code, printed = clean(*words)
    assert code in (1, 2)
    assert r"\x1b[31mevil" in printed


@pytest.mark.parametrize(
    "words",
    [
        ["top", "{}"], ["report", "{}"], ["run", "{}.txt"], ["run", "hi", "-i", "{}"], ["study", "{}.yaml"], ["{}"],
        ["run", "hi", "--{}"], ["run", "hi", "-m", "{}"], ["run", "hi", "--budget", "{}"], ["top", "x", "--grid", "{}"],
        ["run", "hi", "--groups", "{}"], ["run", "hi", "-m", "demo", "--output-dir", "{}"], ["run", "hi", "-o", "{}"],
        ["figure", "map", "{}"], ["compare", "{}", "x"], ["study", "{}.jsonl"], ["run", "hi", "-n", "{}"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("long", ["x" * 5000, "/".join(["xxx"] * 2000), "9" * 5000])
def test_a_long_value_is_cut_in_the_middle(words, long, clean):
    code, printed = clean(*(word.format(long) for word in words), "-q")
    assert (code in (1, 2), printed.count("\n"), "unexpected" in printed) == (True, 1, False), printed
    assert len(printed) < 900
    assert long[:40] in printed


def test_a_message_is_cut_the_same_way_twice():
    text = f"a {'x' * 500}end is no {'y ' * 5000}: give https://me:pw@host.org/{'z' * 300}?sig=1, or (http://h/p#f)."
    once = told(text)
    assert told(once) == once
    assert f"a {'x' * 100}…{'x' * 96}end is no" in once
    assert len(once) <= 4000
    assert "pw" not in once
    assert told("see (http://h/p#f).") == "see (http://h/p (the rest of the address is left out))."
    assert told("'https://docs.org/a/b' and C://x") == "'https://docs.org/a/b' and C://x"
    assert str(InputError("x" * 300)) == told("x" * 300)


# --- streams that are closed, full or left --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["top", "--help"], ["--version"], ["completion", "bash"]])
def test_a_full_stdout_is_one_line_at_the_end(words, monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 1
    program = "mask-impact" if words[0].startswith("-") else f"mask-impact {words[0]}"
    assert capsys.readouterr().err == f"{program}: error: standard output can't be written: No space left on device\n"


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 1, "mask-impact: error: standard output can't be written: it is closed\n"),
        (">/dev/full", 1, "mask-impact: error: standard output can't be written: No space left on device\n"),
        ("2>&-", 0, ""), (">&- 2>&-", 1, ""), ("2>/dev/full", 0, ""), ("<&-", 0, ""),
    ],
)  # fmt: skip
def test_a_process_ends_with_its_code_and_no_traceback(redirected, code, said):
    command = f'exec "{sys.executable}" -m mask_impact --help {redirected}'
    ended = subprocess.run(
        ["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (code, said)


def test_an_error_nobody_can_be_told_of_is_still_its_code(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["top", "none"]) == 1
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().out == ""


# --- one way out ----------------------------------------------------------------------------------------------------------


def prints(tree):
    """Whether something is printed: print(...), or what a stream of the process writes."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(
        (isinstance(call, ast.Name) and call.id == "print")
        or (
            isinstance(call, ast.Attribute) and call.attr in ("print_exc", "write") and "std" in ast.unparse(call.value)
        )
        or (isinstance(call, ast.Attribute) and call.attr == "print_exc")
        for call in calls
    )


def test_nothing_is_printed_but_by_the_console():
    package = Path(console.__file__).parent.parent
    found = [path for path in package.rglob("*.py") if prints(ast.parse(path.read_text(encoding="utf-8")))]
    assert [path.relative_to(package).as_posix() for path in found] == ["app/page.py", "commands/console.py"]
    assert prints(ast.parse("sys.stderr.write(x)"))
    assert prints(ast.parse("traceback.print_exc()"))


def test_the_stand_in_for_a_closed_stream_is_one():
    closed = console._Closed(quietly=True)
    assert (closed.isatty(), closed.write("x"), isinstance(closed, io.TextIOBase)) == (False, 1, True)


# --- secrets of addresses -------------------------------------------------------------------------------------------------


def test_a_stored_command_has_the_addresses_of_images_without_their_secrets():
    words = [
        "run",
        "see https://a.org/?b=1",
        "-i",
        "https://me:pw@h/a b?c",
        "--image=http://h/p#f",
        "-ihttps://h/q",
        "https://h/?x",
    ]
    assert console.command_line("mask-impact", words) == (
        "mask-impact run 'see https://a.org/?b=1' -i 'https://h/a b (the rest of the address is left out)' "
        "'--image=http://h/p (the rest of the address is left out)' -ihttps://h/q "
        "'https://h/ (the rest of the address is left out)'"
    )


def test_no_file_page_or_line_has_the_secrets_of_an_address(clean, vl_checkpoint, tmp_path, monkeypatch):
    from mask_impact.prompts import images

    picture = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(picture, "PNG")
    monkeypatch.setattr(images, "_download", lambda url, name: io.BytesIO(picture.getvalue()))
    url = "https://me:SECRET@host.org/a%20b.png?sig=SECRET#SECRET"
    model = ["-m", vl_checkpoint, "--allow-remote"]
    code, printed = clean("run", "hi", "-i", url, *model, "--report", "--no-answer", "--json")
    assert (code, "SECRET" in printed) == (0, False)
    row = {"prompt": "hi", "image": url, "name": "x"}
    Path("d.jsonl").write_bytes(orjson.dumps(row))
    Path("c.yaml").write_text(f"prompts: [{{name: x, prompt: hi, image_path: '{url}'}}]", encoding="utf-8")
    assert clean("study", "c.yaml", *model)[0] == 0
    for source in ("d.jsonl", "c.yaml"):
        code, printed = clean("study", source, *model[:2])  # not permitted
        assert (code > 0, "SECRET" in printed) == (True, False)
    monkeypatch.setattr(images, "_download", lambda url, name: io.BytesIO(b"no picture"))
    for source in ("d.jsonl", "c.yaml"):
        code, printed = clean("study", source, *model)
        assert (code, "SECRET" in printed) == (3, False)
    files = [path for path in Path("output").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path.name for path in files if b"SECRET" in path.read_bytes()] == []
    assert (
        b"https://host.org/a%20b.png (the rest of the address is left out)"
        in Path("output/result.meta.json").read_bytes()
    )
