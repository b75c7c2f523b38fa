"""What a command will write is checked before a model loads; and what it leaves under a name is of one question."""

import os
import shutil
from pathlib import Path

import pytest
from studying import write_config, write_dataset

from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text
from mask_impact.models import loading
from mask_impact.results.store import load_result
from mask_impact.results.stored import read_stored
from mask_impact.studies import crew
from mask_impact.studies.writer import sole_writer

PROMPT = "the cat sat"
EVERYTHING = ("--output-dir", "out", "-q")
# Each command with all that it may write.
COMMANDS = {
    "run": ["run", PROMPT, "-n", "1", "--effect", "--report", "--plots", "-o", "x", "--budget", "2"],
    "explain": ["explain", PROMPT, "-n", "1", "--budget", "2", "--plots", "-o", "x", "--routes", "auto"],
    "evidence": ["evidence", PROMPT, "-n", "1", "--budget", "2", "-o", "x"],
    "knockout": ["knockout", PROMPT, "cat -> last", "-n", "1", "-o", "x", "--formats", "csv,json,parquet"],
    "without": ["without", PROMPT, "cat", "-n", "1", "-o", "x"],
    "study": ["study", "study.yaml"],
    "dataset": ["study", "data.jsonl", "--answer", "--effect", "--budget", "2", "-o", "x"],
}
OWN = dict.fromkeys(COMMANDS, ("x",)) | {"study": ("study",)}  # what is locked


def tree(folder):
    """All that lies below a folder: content of files, where links lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "study.yaml", [PROMPT], output_dir="out")
    write_dataset(tmp_path / "data.jsonl", [{"prompt": PROMPT, "num_tokens": 1}])
    return tmp_path


def arguments(name, model):
    return [*COMMANDS[name], "-m", str(model), *EVERYTHING]


@pytest.fixture(scope="module")
def written(text_checkpoint, tmp_path_factory):
    """The files that each command really writes, below its folder."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in COMMANDS:
            folder = tmp_path_factory.mktemp(name)
            patch.chdir(folder)
            write_config(folder / "study.yaml", [PROMPT], output_dir="out")
            write_dataset(folder / "data.jsonl", [{"prompt": PROMPT, "num_tokens": 1}])
            assert main(arguments(name, text_checkpoint)) == 0
            found[name] = [path.relative_to("out") for path in Path("out").rglob("*") if path.is_file()]
            hidden = [Path(f".{own}.{ending}") for own in OWN[name] for ending in ("lock", "names")]
            errors = [Path(f"{OWN[name][0]}.errors.jsonl")] * (name in ("study", "dataset"))
            found[name] += [*hidden, Path(".lock"), *errors]
    return found


@pytest.fixture(scope="module")
def results(text_checkpoint, tmp_path_factory):
    """A folder with x, of which there are cut flows, and then distances with pictures and a page, and y."""
    folder = tmp_path_factory.mktemp("results")
    common = ["-m", str(text_checkpoint), "-n", "1", "--output-dir", str(folder), "-q"]
    assert main(["knockout", PROMPT, "cat -> last", *common, "-o", "x"]) == 0
    assert main(["run", PROMPT, *common, "-o", "x", "--no-answer", "--plots", "--report"]) == 0
    assert main(["run", "the mat", *common, "-o", "y", "--no-answer", "--formats", "csv"]) == 0
    return folder


def in_the_way(path, kind):
    """Something at a path that is no regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind == "link":
        path.symlink_to(path.parents[len(path.relative_to(Path.cwd()).parts) - 1] / "mine.txt")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_stands_where_a_file_is_to_be_is_refused_before_a_model_loads(
    name, kind, written, here, text_checkpoint, monkeypatch, capsys
):
    """For each file that the command really writes, in one line with its path; nothing is changed."""
    monkeypatch.setattr(loading, "load", lambda *args, **how: pytest.fail("a model was loaded"))
    assert len(written[name]) >= 4
    (here / "mine.txt").write_text("outside")
    for file in written[name]:
        path = here / "out" / file
        in_the_way(path, kind)
        before = tree(here) if kind != "pipe" else None
        code = main(arguments(name, text_checkpoint))
        line = capsys.readouterr().err
        assert (code, len(line.splitlines())) == (1, 1), line
        assert f"{Path('out') / file} is " in line
        assert before is None or tree(here) == before
        if kind == "folder":
            (path / "mine.txt").unlink()
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("kind", ["", "/impact", "/effect", "/answer", "/deepstack"])
def test_a_file_where_a_folder_of_parts_is_to_be_is_refused_before_a_model_loads(
    kind, here, text_checkpoint, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *args, **how: pytest.fail("a model was loaded"))
    (here / "out" / f"x{kind}").parent.mkdir(parents=True)
    (here / "out" / f"x{kind}").write_text("mine")
    assert main(arguments("dataset", text_checkpoint)) == 1
    assert f"out/x{kind} is no folder" in capsys.readouterr().err
    assert (here / "out" / f"x{kind}").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize("argv", [
    ["report", "out/x"], ["report", "out/x", "--output", "out/new/page.html"], ["compare", "out/x", "out/y"],
    ["figure", "map", "out/x"], ["figure", "map", "out/x", "-o", "out/new/map.svg"],
], ids=" ".join)  # fmt: skip
def test_pages_and_figures_replace_regular_files_only(argv, kind, here, results, capsys):
    shutil.copytree(results, here / "out")
    (here / "out" / "x.html").unlink()
    there = tree(here)
    assert main(argv) == 0
    (made,) = (here / file for file in {*tree(here)} - {*there} if not (here / file).is_dir())
    made.unlink()
    (here / "mine.txt").write_text("outside")
    in_the_way(made, kind)
    before = tree(here)
    capsys.readouterr()
    assert main(argv) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert f"{made.relative_to(here)} is " in line
    assert tree(here) == before


def test_a_dataset_that_cannot_begin_keeps_the_parts_that_are_there(here, text_checkpoint):
    assert main(arguments("dataset", text_checkpoint)) == 0
    before = tree(here / "out")
    assert main(arguments("dataset", here / "no-such-model")) == 1
    assert tree(here / "out") == before


def test_a_line_of_errors_is_whole_or_not_there_and_a_full_disk_ends_the_study_in_one(
    here, text_checkpoint, monkeypatch, capsys
):
    """The second line finds no room for its second half."""
    write_config(here / "study.yaml", ["the cat " * 100, "the mat " * 100, PROMPT], output_dir="out")
    write, lines = os.write, []

    def half(descriptor, data):
        if b'"prompt"' not in data:
            return write(descriptor, data)
        lines.append(data)
        return write(descriptor, data[: len(data) // 2] if len(lines) == 2 else data)

    monkeypatch.setattr(os, "write", half)
    assert main_text(["--config", "study.yaml", "--model", str(text_checkpoint), "-q"]) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert "no space left for out/study.errors.jsonl" in line
    assert len(lines) == 2
    assert (here / "out" / "study.errors.jsonl").read_bytes() == lines[0]


# --- one question under a name ----------------------------------------------------------------------------------------------


def suffixes(folder, name="x"):
    return {path.name.removeprefix(f"{name}.") for path in folder.glob(f"{name}.*")}


RUN = {"csv", "json", "meta.json"}
FLOWS = {"flows.csv", "flows.json", "flows.meta.json", "flows.png"}
PAGES = {"layers.png", "html"}


@pytest.mark.parametrize(("second", "stays", "goes"), [
    (["knockout", PROMPT, "cat -> last"], RUN | PAGES, set()),
    (["without", PROMPT, "cat"], RUN | PAGES | FLOWS, set()),
    (["run", PROMPT, "--no-answer", "--formats", "csv"], FLOWS, {"json", *PAGES}),
    (["run", PROMPT, "--no-answer", "--plots", "--report"], FLOWS, set()),
    (["run", "the mat", "--no-answer"], set(), FLOWS | PAGES),
    (["knockout", "the cat on", "cat -> last"], set(), RUN | PAGES),
    (["without", "the mat", "mat"], set(), RUN | PAGES | FLOWS),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_a_run_keeps_what_is_of_its_question_and_removes_what_is_not(
    second, stays, goes, here, results, text_checkpoint, capsys
):
    """A page goes with what it shows. One line names what was removed."""
    common = ["-m", str(text_checkpoint), "-n", "1", "-o", "x", "--output-dir", "out"]
    shutil.copytree(results, here / "out")
    for suffix in FLOWS if second[0] == "knockout" else ():
        (here / "out" / f"x.{suffix}").unlink()
    (here / "out" / "x.txt").write_text("mine")
    (here / "out" / "x.card.pdf").write_text("a figure that was made by a command of its own")
    before = suffixes(here / "out")
    capsys.readouterr()
    assert main([*second, *common]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "Removed" in line]
    assert len(said) == bool(goes)
    assert all(f"out/x.{suffix}" in said[0] for suffix in goes)
    after = suffixes(here / "out")
    assert before - after == goes
    assert stays | {"txt", "card.pdf"} <= after
    (stored,) = read_stored(here / "out" / "x").values()
    assert stored.notes == ()


def test_only_files_that_are_ours_are_removed(here, results, text_checkpoint):
    """Not a table beside a meta file that does not name it, a page of another program, or what is no regular file."""
    common = ["-m", str(text_checkpoint), "-n", "1", "-o", "x", "--no-answer", "--formats", "csv", *EVERYTHING]
    shutil.copytree(results, here / "out")
    for suffix in (*FLOWS, *PAGES, "json"):
        (here / "out" / f"x.{suffix}").unlink()
    (here / "out" / "x.parquet").write_text("of another program")
    (here / "out" / "x.html").write_text("<html>of another program")
    (here / "out" / "x.flows.csv").mkdir()
    (here / "out" / "x.layers.png").symlink_to(here / "study.yaml")
    assert main(["run", "the mat", *common]) == 0
    assert suffixes(here / "out") == {"csv", "meta.json", "parquet", "html", "flows.csv", "layers.png"}


def test_a_study_whose_pages_are_asked_for_later_writes_them_beside_the_same_numbers(
    here, text_checkpoint, monkeypatch
):
    argv = ["--config", "study.yaml", "--model", str(text_checkpoint), "-q"]
    assert main_text(argv) == 0
    before = suffixes(here / "out", "p0_results")
    monkeypatch.setattr(crew, "run_tasks", lambda *args: pytest.fail("it ran again"))
    assert main_text([*argv, "--resume", "--report"]) == 0
    assert suffixes(here / "out", "p0_results") == before | {"html"}
    load_result(here / "out" / "p0_results")


@pytest.mark.parametrize("name", ["x.answer", "x.flows", "x.effect"])
def test_a_name_whose_files_would_be_those_of_another_result_is_refused(name, here, capsys):
    assert main(["run", PROMPT, "-m", "demo", "-o", name]) == 2
    assert f"'{name}' ends in .{name.partition('.')[2]}" in capsys.readouterr().err


def test_a_run_that_is_refused_leaves_no_lock(here, text_checkpoint, capsys):
    (here / "out").mkdir()
    with sole_writer(here / "out", "other", ["x"]):
        assert main(arguments("without", text_checkpoint)) == 1
        assert "another run is writing the results of 'x'" in capsys.readouterr().err
    assert list((here / "out").iterdir()) == []
