"""Files that a killed process was writing: old or new, never half, and never of two runs; what is checked is what is written."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_explanation, make_result

from mask_impact.errors import OutputError
from mask_impact.results import files
from mask_impact.results.answer_files import save_whatif
from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.explanation_files import save_explanation
from mask_impact.results.files import append_line, check_files, remove_temporaries, settle, write_files
from mask_impact.results.names import ALL, ANSWER, FLOWS, RESULT, WHATIF, owner, suffixes
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.store import load_result, save
from mask_impact.results.stored import read_stored

META = {"model": "tiny", "prompt": "Where?", "images": ["a.png"]}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def whatif(meta):
    own = Answer(None, (), (7, 2), (" up", "<end>"), (0.5, 0.75), " up", 0.5, None)
    return WhatIf(own, (), (0, 2), make_result().tokens, 4, meta)


def two_runs(first, second):
    """Writes all that there is of two runs, whose questions are not the same, under one name into two folders."""
    answer = replace(make_explanation(), meta=META)
    save_whatif(whatif(META), first / "x")
    save(replace(make_result(seed=1), meta=META, answer=answer), first / "x", "csv,json")
    meta = META | {"prompt": "When?"}
    save(replace(make_result(seed=2), meta=meta, answer=replace(answer, meta=meta)), second / "x", "csv,parquet")


@pytest.fixture
def moments(tmp_path, monkeypatch):
    """Copies of a folder as it was before each step of what is done to its files: what a killed process would leave."""
    found = []

    def watched(folder, act):
        def noting(call):
            def step(*args, **how):
                found.append(tmp_path / f"moment{len(found)}")
                shutil.copytree(folder, found[-1])
                return call(*args, **how)

            return step

        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink", "fsync"):
                patch.setattr(os, name, noting(getattr(os, name)))
            patch.setattr(Path, "unlink", noting(Path.unlink))
            act()
        return found

    return watched


def test_a_run_that_is_killed_while_it_replaces_another_leaves_the_one_or_the_other(tmp_path, moments):
    """Whoever reads first finds all files of one of the two, whole, and none of the other."""
    old, new, folder = (tmp_path / name for name in ("old", "new", "folder"))
    for path in (old, new):
        path.mkdir()
    two_runs(old, new)
    shutil.copytree(old, folder)
    second = load_result(new / "x")
    states = moments(folder, lambda: save(second, folder / "x", "csv,parquet"))
    seen = []
    for state in states:
        (stored,) = read_stored(state / "x").values()
        assert stored.notes == ()
        expected = old if stored.result.meta["prompt"] == "Where?" else new
        assert contents(state) == contents(expected)
        seen.append(expected == new)
        remove_temporaries(state, {"x"})
        assert [path.name for path in state.iterdir() if path.name.startswith(".")] in ([], [".x.moves"])
    assert len(states) > 20
    assert seen == sorted(seen)
    assert 0 < sum(seen) < len(seen)
    assert contents(folder) == contents(new)


def test_a_first_run_that_is_killed_leaves_all_or_nothing(tmp_path, moments):
    folder = tmp_path / "folder"
    folder.mkdir()
    states = moments(folder, lambda: save(make_result(), folder / "x", "csv,json"))
    for state in states:
        settle(state / "x.csv")
        assert contents(state) in ({}, contents(folder))
    load_result(states[-1] / "x")
    assert contents(states[0]) == {}


def test_what_is_nearly_written_is_written_before_a_later_run_writes(tmp_path, moments):
    """A note that a killed run left would otherwise put old files in the place of new ones."""
    folder = tmp_path / "folder"
    folder.mkdir()
    states = moments(folder, lambda: save(make_result(seed=1), folder / "x", "csv,json"))
    late = next(state for state in reversed(states) if (state / ".x.moves").exists())
    save(make_result(seed=2), late / "x", "csv")
    assert load_result(late / "x").steps[0].l2.tolist() == make_result(seed=2).steps[0].l2.tolist()
    assert [path.name for path in late.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("moves", [
    {"moves": {".mine.txt.0123456789ab.tmp": "mine.txt"}, "remove": []},
    {"moves": {".x.csv.0123456789ab.tmp": "../x.csv"}, "remove": []},
    {"moves": {"mine.txt": "x.csv"}, "remove": []},
    {"moves": {}, "remove": ["mine.txt", "../mine.txt", "x.link"]},
    {"moves": [], "remove": None}, [], 3, None,
], ids=str)  # fmt: skip
def test_a_note_of_moves_that_is_not_ours_moves_and_removes_nothing(tmp_path, moves):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "mine.txt", folder / "mine.txt", folder / ".mine.txt.0123456789ab.tmp"):
        path.write_text("mine")
    (folder / ".x.csv.0123456789ab.tmp").write_text("other")
    (folder / "x.link").symlink_to(folder / "mine.txt")
    before = contents(folder)
    (folder / ".x.moves").write_text(json.dumps(moves))
    settle(folder / "x.csv")
    assert contents(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "mine.txt"}


def test_a_reader_may_settle_while_the_files_are_being_named(tmp_path, monkeypatch):
    real, seen = os.replace, []

    def replaced(source, target):
        if not seen:
            seen.append(load_settled())
        real(source, target)

    def load_settled():
        monkeypatch.setattr(os, "replace", real)
        return load_result(tmp_path / "x")

    monkeypatch.setattr(os, "replace", replaced)
    save(make_result(), tmp_path / "x", "csv,json")
    assert len(seen) == 1
    assert sorted(contents(tmp_path)) == ["x.csv", "x.json", "x.meta.json"]
    load_result(tmp_path / "x")


@pytest.mark.parametrize("kind", ["folder", "link", "link to a folder", "pipe"])
def test_nothing_but_a_regular_file_is_ever_replaced(tmp_path, kind):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.txt").write_text("mine")
    path = tmp_path / "x.csv"
    if kind == "folder":
        (path / "within").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "outside" / ("mine.txt" if kind == "link" else ""))
    before = os.lstat(path)
    for act in (
        lambda: write_files({tmp_path / "x.json": lambda file: None, path: lambda file: file.write(b"new")}),
        lambda: check_files([path]),
        lambda: save(make_result(), tmp_path / "x", "csv"),
    ):
        with pytest.raises(OutputError, match=r"x\.csv is (a folder|a link|no regular file)"):
            act()
    assert os.lstat(path) == before
    assert (tmp_path / "outside" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "x.csv"]


def test_a_line_is_added_whole_or_not_at_all_and_never_through_a_link(tmp_path, monkeypatch):
    path, write = tmp_path / "log.jsonl", os.write
    append_line(path, "one")
    for wrote in (0, 1, 4):
        monkeypatch.setattr(os, "write", lambda to, data, n=wrote: write(to, data[:n]))
        with pytest.raises(OutputError, match=r"no space left for .*log\.jsonl"):
            append_line(path, "other")
        assert path.read_bytes() == b"one\n"
    monkeypatch.setattr(os, "write", lambda to, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OutputError, match="no space left"):
        append_line(path, "other")
    monkeypatch.setattr(os, "write", write)
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OutputError, match="cannot write"):
        append_line(tmp_path / "link", "other")
    assert path.read_bytes() == b"one\ntwo\n"


# --- names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "v1.5", "two words", "x.csv.2"])
def test_each_file_that_may_be_written_has_its_name_back(name):
    assert len(ALL) == len({*ALL}) == 48
    found = {owner(f"{name}.{suffix}") for suffix in ALL}
    assert found == {name}
    assert owner(f"{name}.txt") == f"{name}.txt"


def test_what_is_checked_follows_from_what_is_asked_for():
    assert suffixes([WHATIF]) == ["whatif.json"]
    assert suffixes([FLOWS], ["csv"]) == ["flows.csv", "flows.png", "flows.meta.json"]
    assert suffixes([RESULT], ["csv"], plots=True, page=True) == [
        "csv", "effect.csv", "meta.json", "layers.png", "patches.png", "html",
    ]  # fmt: skip
    assert len(suffixes([RESULT, ANSWER])) == 3 * 6 + 2


def test_a_file_that_is_of_none_of_the_kinds_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"no file of these kinds is called x\.answer\.csv"):
        write_kinds(tmp_path / "x", [RESULT], {"answer.csv": lambda file: None}, asked({}))
    assert contents(tmp_path) == {}


def test_the_same_image_may_be_named_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked(META) == asked(META | {"images": [str(tmp_path / "." / "a.png")]})
    assert asked(META) == asked(META | {"images": []}, ["a.png"])
    assert asked(META) != asked(META | {"images": ["b.png"]})


def test_temporaries_of_pages_and_pictures_are_cleared_away_too(tmp_path):
    for suffix in ("html", "card.png", "answer.meta.json", "csv"):
        files._temporary(tmp_path / f"x.{suffix}").write_text("")
        files._temporary(tmp_path / f"x.y.{suffix}").write_text("")
    remove_temporaries(tmp_path, {"x"})
    assert {path.name[:5] for path in tmp_path.iterdir()} == {".x.y."}
    assert len(list(tmp_path.iterdir())) == 4


def test_an_explanation_of_another_question_says_what_it_removed(tmp_path):
    save_whatif(whatif(META), tmp_path / "x")
    removed = []
    save_explanation(replace(make_explanation(), meta=META), tmp_path / "x", on_removed=removed.extend)
    assert removed == []
    save_explanation(replace(make_explanation(), meta=META | {"model": "m"}), tmp_path / "x", on_removed=removed.extend)
    assert removed == [tmp_path / "x.whatif.json"]
