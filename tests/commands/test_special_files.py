"""Each flag that names a file, given what is no file to be read: one line that names it, at once, before weights are read."""

import itertools
import os
import signal

import pytest

from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.models import loading
from mask_impact.results import inputs

LARGER = inputs.TABLE + 1  # more than is read of any; nothing of it is written
# What is given: the words of a command, {} for the file, and how the file's name ends.
FLAGS = {
    "prompt": (["run", "{}"], "p.txt"),
    "image": (["run", "hi", "-i", "{}"], "a.png"),
    "groups": (["run", "hi", "--groups", "{}"], "g.yaml"),
    "routes": (["explain", "hi", "--routes", "{}"], "r.yaml"),
    "flows": (["knockout", "hi", "--flows", "{}"], "f.yaml"),
    "config": (["study", "{}"], "c.yaml"),
    "jsonl": (["study", "{}"], "d.jsonl"),
    "csv": (["study", "{}"], "d.csv"),
    "parquet": (["study", "{}"], "d.parquet"),
    "top": (["top", "{}"], "t.csv"),
    "top json": (["top", "{}"], "t.json"),
    "top parquet": (["top", "{}"], "t.parquet"),
    "top meta": (["top", "{}"], "t.meta.json"),
    "report": (["report", "{}"], "t.answer.meta.json"),
    "figure": (["figure", "routes", "{}"], "t.flows.meta.json"),
    "answers": (["report", "{}"], "t.whatif.json"),
    "compare": (["compare", "{}", "other.csv", "--no-page"], "t.csv"),
    "script prompt": (["--prompt", "{}"], "p.txt"),
    "script config": (["--config", "{}"], "c.yaml"),
    "script dataset": (["--dataset", "{}"], "d.jsonl"),
}
KINDS = ("pipe", "endless", "folder", "missing", "large", "not UTF-8", "forbidden", "circle", "deep")


def make(path, kind, monkeypatch):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe\xfd\n\x80\n")
    elif kind == "deep":
        path.write_bytes(b"[" * 100_000)
    elif kind in ("large", "forbidden"):
        path.write_bytes(b"x")
    if kind == "large":
        os.truncate(path, LARGER)
    if kind == "forbidden":  # for root, whom tests may run as, every file can be opened

        def forbidden(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(inputs, "_without_waiting", forbidden)


@pytest.fixture
def guard():
    """Ends what waits for a pipe, in place of the whole run of tests."""

    def late(*_):
        pytest.fail("it was waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# A prompt may be any text, and what is in a dataset's lines is found line by line.
FINE = {(name, kind) for name in ("prompt", "script prompt") for kind in ("deep",)} | {
    (name, kind) for name in ("jsonl", "script dataset") for kind in ("not UTF-8", "deep")
}


@pytest.mark.parametrize(("flag", "kind"), sorted(set(itertools.product(FLAGS, KINDS)) - FINE))
def test_a_special_file_is_one_line(flag, kind, tmp_path, monkeypatch, capsys, guard, vl_checkpoint, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("weights were read"))
    words, name = FLAGS[flag]
    make(tmp_path / name, kind, monkeypatch)
    argv = [word.format(name) for word in words]
    if argv[0] in ("run", "explain", "knockout", "study") or argv[0].startswith("--"):
        argv += [
            "-m" if not argv[0].startswith("--") else "--model",
            str(vl_checkpoint if flag == "image" else text_checkpoint),
        ]
    called = main_text if flag.startswith("script") else main
    code = called([*argv, "--quiet"])
    out, err = capsys.readouterr()
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1), err

    assert name in err
    assert "unexpected" not in err
    assert "please report" not in err


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"prompt": ' + "[" * 100_000, '{"prompt": "hi", "more": ' + "[" * 100_000]
)
def test_a_deep_line_of_a_dataset_is_a_row_that_failed(line, tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(line + "]" * 100_000 + "}" * line.startswith("{"), encoding="utf-8")
    assert main(["study", "d.jsonl", "-m", str(text_checkpoint)]) == 3
    out, _ = capsys.readouterr()
    (said,) = [line for line in out.splitlines() if "FAILED" in line]
    assert "row 1" in said
    assert "no JSON" in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *itertools.product(["image", "groups", "routes", "prompt"], ["pipe", "endless", "folder", "missing"]),
        ("prompt", "large"),
    ],
)
def test_what_a_configuration_names_is_held_to_the_same(
    place, kind, tmp_path, monkeypatch, capsys, guard, vl_checkpoint
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("weights were read"))
    name = {"image": "a.png", "prompt": "p.txt"}.get(place, "g.yaml")
    make(tmp_path / name, kind, monkeypatch)
    entry = {"name": "x", "prompt": "hi"} | {"image_path" if place == "image" else place: name}
    lines = "".join(f"{key}: {value}, " for key, value in entry.items())
    (tmp_path / "c.yaml").write_text(f"prompts: [{{{lines}answer: true}}]\n", encoding="utf-8")
    code = main_vl(["--config", "c.yaml", "--model", str(vl_checkpoint), "--quiet"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert name in err
    assert "unexpected" not in err


def test_standard_input_without_an_end_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with open("/dev/zero", encoding="utf-8") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        assert main(["run", "-", "-m", "demo", "-q"]) == 1
    assert "standard input can't be read: it is larger than 16 MiB" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert main(["run", "-", "-m", "demo", "-q"]) == 1
    assert "standard input can't be read: it is closed" in capsys.readouterr().err
