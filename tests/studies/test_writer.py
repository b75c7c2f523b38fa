"""Who writes a study's results: one run at a time, or several of different shares, and no run that has died is in the way."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest
from filelock import FileLock
from studying import REPOSITORY, data_files, sentences, study_files, write_config, write_dataset

from mask_impact.commands.scripts import main_text
from mask_impact.errors import OutputError
from mask_impact.studies import lease as leases
from mask_impact.studies import writer
from mask_impact.studies.writer import Shard, blocks_of, sole_writer, writing

# --- who may begin ------------------------------------------------------------------------------------------------------


def test_the_error_log_of_an_earlier_run_is_removed_by_who_may_begin(tmp_path):
    log = tmp_path / "study.errors.jsonl"
    log.write_text("{}")
    with FileLock(tmp_path / ".study.lock"), pytest.raises(OutputError), writing(tmp_path, "study"):
        pass
    assert log.exists()
    with writing(tmp_path, "study"):
        assert not log.exists()


def test_a_run_that_begins_while_another_looks_at_what_it_left_is_not_refused(tmp_path, monkeypatch):
    """To look whether a run is alive is to hold its lock for a moment."""
    (tmp_path / ".b.names").write_text('["b"]')
    began, unlink, others = Event(), Path.unlink, []

    def begin():
        with writer.sole_writer(tmp_path, "b", ["b"]):
            return [path.name for path in tmp_path.iterdir() if path.name in (".b.lock", ".b.names")]

    def unlinked(path, **how):
        if path.name == ".b.names" and not others:
            others.append(pool.submit(begin))
            assert began.wait(60)
        return unlink(path, **how)

    class Noticed(FileLock):
        def acquire(self, *args, **how):
            if current_thread() is not main_thread():
                began.set()
            return super().acquire(*args, **how)

    monkeypatch.setattr(writer, "FileLock", Noticed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    with ThreadPoolExecutor() as pool:
        with writer.sole_writer(tmp_path, "a", ["a"]):
            assert set(others[0].result(60)) == {".b.lock", ".b.names"}
        assert [path.name for path in tmp_path.iterdir()] == []


def test_a_door_that_nobody_opens_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS_AT_THE_DOOR", 0)
    said = r"\.lock is held by a run that does not go on"
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(OutputError, match=said),
        writer.sole_writer(tmp_path, "a", ["a"]),
    ):
        pass
    with writer.sole_writer(tmp_path, "a", ["a"]):
        pass


# --- the lease ----------------------------------------------------------------------------------------------------------


def made_older(path, seconds):
    there = path.stat().st_mtime
    os.utime(path, (there - seconds, there - seconds))


@pytest.mark.parametrize("old_name", ["study", "other"])
def test_a_run_that_does_not_renew_its_lease_is_taken_over_and_writes_nothing_more(tmp_path, old_name):
    """As of a machine that is gone while the file server keeps its lock; should it come back, it finds out."""
    with sole_writer(tmp_path, old_name, ["x"]) as lost:
        with pytest.raises(OutputError, match="another run is writing"), sole_writer(tmp_path, "study", ["x"]):
            pass
        made_older(tmp_path / f".{old_name}.names", leases.SECONDS_OF_LEASE + 60)
        lost.check()
        with sole_writer(tmp_path, "study", ["x"]) as lease:
            lease.check()
            with pytest.raises(OutputError, match="another run has taken over"):
                lost.check()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_lease_is_renewed_while_its_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_RENEWALS", 0.01)
    renewed, utime = Event(), os.utime
    monkeypatch.setattr(leases.os, "utime", lambda path: (utime(path), renewed.set()))
    with sole_writer(tmp_path, "study", ["x"]) as lease:
        note = tmp_path / ".study.names"
        made_older_by = note.stat().st_mtime - 1000
        utime(note, (made_older_by, made_older_by))
        renewed.clear()
        assert renewed.wait(60)
        assert note.stat().st_mtime > made_older_by + 900
        lease.check()


# --- shares -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "clash"), [
    ((0, 1), (0, 1), True), ((0, 1), (1, 2), True), ((0, 2), (1, 2), False), ((0, 2), (2, 4), True), ((1, 2), (2, 4), False),
    ((0, 2), (1, 3), True),
])  # fmt: skip
def test_runs_of_shares_that_have_a_part_in_common_are_refused(tmp_path, one, other, clash):
    common = set(range(60)) & {n for n in range(60) if n in Shard(*one)} & {n for n in range(60) if n in Shard(*other)}
    assert bool(common) == clash
    with writing(tmp_path, "data", shard=Shard(*one)), writing(tmp_path, "else"):
        if clash:
            with pytest.raises(OutputError, match="results of 'data"), writing(tmp_path, "data", shard=Shard(*other)):
                pass
        else:
            with writing(tmp_path, "data", shard=Shard(*other)):
                pass


@pytest.mark.parametrize("n", [0, 5, 16, 47, 48, 100])
def test_the_prompts_of_a_share_are_counted_as_they_are_in_its_parts(n):
    for of in (1, 3):
        counted = [Shard(index, of).share(n) for index in range(of)]
        assert counted == [sum(row // 16 % of == index for row in range(n)) for index in range(of)]


def test_shares_of_a_configuration_are_all_of_it_in_the_same_blocks():
    jobs = list(range(100))
    whole = dict(blocks_of(jobs))
    shares = [dict(blocks_of(jobs, Shard(index, 3))) for index in range(3)]
    assert {number: block for share in shares for number, block in share.items()} == whole
    assert sum(map(len, shares)) == len(whole)


@pytest.mark.parametrize("source", ["config", "dataset"])
def test_the_shares_of_a_study_end_with_the_files_of_the_whole(source, text_checkpoint, tmp_path, capsys):
    if source == "config":
        path = write_config(tmp_path / "study.yaml", sentences(5))
    else:
        path = write_dataset(tmp_path / "study.jsonl", [{"prompt": "the cat"}] * 33 + ["no json"])
    argv = [f"--{source}", str(path), "--model", str(text_checkpoint), "--output-dir"]
    code = 0 if source == "config" else 3
    assert main_text([*argv, str(tmp_path / "whole")]) == code
    failed = []
    for share in ("2/2", "1/2"):
        failed.append(main_text([*argv, str(tmp_path / "shares"), "--shard", share]))
    assert sorted(failed) == [0, code]
    folders = [tmp_path / name / ("" if source == "config" else "study") for name in ("whole", "shares")]
    whole, shares = map(data_files if source == "config" else study_files, folders)
    assert whole == shares
    assert len(whole) == (5 if source == "config" else 6)
    logs = sorted(path.name for path in (tmp_path / "shares").glob("*.jsonl"))
    assert logs == ([] if source == "config" else ["study.1of2.errors.jsonl"])


def test_a_limit_takes_the_first_prompts_and_a_later_run_the_rest(text_checkpoint, tmp_path, capsys):
    path = write_dataset(tmp_path / "data.jsonl", [{"prompt": prompt} for prompt in sentences(33)])
    argv = ["--dataset", str(path), "--model", str(text_checkpoint), "--output-dir", str(tmp_path / "out"), "--resume"]
    assert main_text([*argv, "--limit", "16"]) == 0
    assert "16 prompts: 16 written" in capsys.readouterr().out
    assert main_text(argv) == 0
    assert "33 prompts: 17 written; 16 were there already" in capsys.readouterr().out
    assert main_text([*argv, "--limit", "16"]) == 0
    assert len(study_files(tmp_path / "out" / "data")) == 6
    assert main_text([*argv[:-1], "--limit", "16"]) == 0  # anew: as if the others were not in the file
    assert len(study_files(tmp_path / "out" / "data")) == 2


# --- real processes -----------------------------------------------------------------------------------------------------

STARTS = """
import sys
from pathlib import Path
from mask_impact.studies.writer import sole_writer
for _ in range(int(sys.argv[3])):
    with sole_writer(Path(sys.argv[1]), sys.argv[2], [sys.argv[2]]):
        pass
"""


@pytest.mark.slow
def test_runs_that_begin_and_end_in_one_folder_are_never_refused_and_leave_nothing(tmp_path):
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    started = [subprocess.Popen([*command, name, "100"], env=environment, stderr=subprocess.PIPE) for name in "abcd"]
    assert [process.communicate(timeout=240)[1] for process in started] == [b""] * 4
    assert [path.name for path in tmp_path.iterdir()] == []
