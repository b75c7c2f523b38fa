"""Several processes on one study: each block done once, by a process that lives, and the same bytes as by one process."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest
from filelock import FileLock
from studying import REPOSITORY, data_files, sentences, write_config, write_dataset

from mask_impact.commands.scripts import main_text
from mask_impact.errors import OutputError
from mask_impact.studies import sharing
from mask_impact.studies.sharing import Team, gather, launched

N_PROMPTS = 24


def never():
    return False


@pytest.fixture
def two(tmp_path):
    """Both processes' teams, as they are when they have met."""
    (tmp_path / ".study.claims").mkdir()
    return [Team(tmp_path, "study", rank, 2) for rank in (0, 1)]


# --- who does which block -----------------------------------------------------------------------------------------------


def test_one_process_does_everything_and_leaves_no_notes(tmp_path):
    with gather(tmp_path, "study") as team:
        for claim in team.share("abc", stop=never):
            team.finish(claim, claim.block)
        assert team.complete
        assert team.reports() == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".study.lock"] == []


def test_two_processes_do_each_block_once(two):
    """At once, in threads: each gets what the other is not at, and is told of what the other did."""
    blocks = [f"block {number}" for number in range(40)]

    def work(team):
        done, passed = [], []
        for claim in team.share(blocks, stop=never, passed=passed.append):
            time.sleep(0.002)
            done.append(claim.block)
            team.finish(claim, [team.rank, claim.block])
        return done, passed

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(work, two))
    assert sorted(results[0][0] + results[1][0]) == sorted(blocks)
    assert min(len(done) for done, _ in results) >= 5
    for team, (done, passed) in zip(two, results, strict=True):
        assert sorted(done + passed) == sorted(blocks)
        assert team.complete
        assert [block for _, block in team.reports()] == blocks


def test_a_block_whose_process_died_is_done_by_another(two):
    lost = two[0].share("ab", stop=never)
    assert next(lost).block == "a"
    lost.close()  # its lock is free, and there is no note
    for claim in two[1].share("ab", stop=never):
        two[1].finish(claim, claim.block)
    assert two[1].reports() == ["a", "b"]


def test_a_slow_process_holds_up_none_but_its_own_block(two, monkeypatch):
    slow = two[0].share("abcd", stop=never)
    claim = next(slow)
    looks = 0

    def look(seconds):
        nonlocal looks
        looks += 1
        if looks == 3:
            two[0].finish(claim, "slow")
            assert [other.block for other in slow] == []

    monkeypatch.setattr(sharing.time, "sleep", look)
    quick = []
    for other in two[1].share("abcd", stop=never):
        quick.append(other.block)
        two[1].finish(other, "quick")
    assert quick == ["b", "c", "d"]
    assert looks == 3
    assert two[1].reports() == ["slow", "quick", "quick", "quick"]


def test_who_is_told_to_stop_takes_no_more(two):
    taken = []
    for claim in two[0].share("abc", stop=lambda: bool(taken)):
        taken.append(claim.block)
        two[0].finish(claim, None)
    assert taken == ["a"]
    assert not two[0].complete


def test_the_notes_are_cleared_when_the_last_has_left(two, monkeypatch):
    first, second = two
    monkeypatch.setattr(sharing, "launched", lambda: (0, 2))
    monkeypatch.setattr(sharing, "_meet", lambda *args: None)
    monkeypatch.setattr(sharing, "SECONDS_FOR_LEAVING", 0.1)
    with ExitStack() as stack:
        with gather(first.folder, "study") as team:
            stack.enter_context(second.lock_of(1))
            for claim in team.share("ab", stop=never):
                team.finish(claim, None)
        assert not first._notes.exists()


# --- who may begin ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, (0, 1)),
    ({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
    ({"RANK": "5", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (0, 1)),
    ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (0, 1)),
    ({"RANK": "1", "WORLD_SIZE": "4"}, (0, 1)),
])  # fmt: skip
def test_what_a_launcher_says(environment, expected, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_a_process_of_an_earlier_run_that_is_still_at_work_is_not_disturbed(two):
    """Its first process has died, and with it the lock of the name."""
    note = two[1]._note(0)
    note.write_text("1")
    with two[1].lock_of(1), pytest.raises(OutputError, match="another run is writing"), gather(two[0].folder, "study"):
        pass
    assert note.exists()
    with gather(two[0].folder, "study"):
        assert not note.exists()


def test_the_error_log_of_an_earlier_run_is_removed_by_who_may_begin(tmp_path):
    log = tmp_path / "study.errors.jsonl"
    log.write_text("{}")
    with FileLock(tmp_path / ".study.lock"), pytest.raises(OutputError), gather(tmp_path, "study"):
        pass
    assert log.exists()
    with gather(tmp_path, "study"):
        assert not log.exists()


def test_a_run_that_begins_while_another_looks_at_what_it_left_is_not_refused(tmp_path, monkeypatch):
    """To look whether a run is alive is to hold its lock for a moment."""
    (tmp_path / ".b.names").write_text('["b"]')
    began, unlink, others = Event(), Path.unlink, []

    def begin():
        with sharing.sole_writer(tmp_path, "b", ["b"]):
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

    monkeypatch.setattr(sharing, "FileLock", Noticed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    with ThreadPoolExecutor() as pool:
        with sharing.sole_writer(tmp_path, "a", ["a"]):
            assert set(others[0].result(60)) == {".b.lock", ".b.names"}
        assert [path.name for path in tmp_path.iterdir()] == []


def test_a_door_that_nobody_opens_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "SECONDS_AT_THE_DOOR", 0)
    said = r"\.lock is held by a run that does not go on"
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(OutputError, match=said),
        sharing.sole_writer(tmp_path, "a", ["a"]),
    ):
        pass
    with sharing.sole_writer(tmp_path, "a", ["a"]):
        pass


# --- real processes -----------------------------------------------------------------------------------------------------

# Renaming files takes a while, so that both processes get some of the work.
SLOWED = """
import os, sys, time
import mask_impact.results.files as files
replace = files.os.replace
files.os.replace = lambda *args: (time.sleep(0.02), replace(*args))
import mask_impact.models.loading as loading
load = loading.load
slow = os.environ["RANK"] == os.environ.get("SLOW_TO_LOAD")
loading.load = lambda *args, **options: (slow and time.sleep(60), load(*args, **options))[1]
from mask_impact.commands.scripts import main_text
sys.exit(main_text(sys.argv[1:]))
"""


@pytest.fixture
def start_two():
    """Starts the processes of a command as a launcher does; none is left at the end."""
    started = []

    def start(argv, cwd, slow_to_load=None):
        started.extend(processes := _start_two(argv, cwd, slow_to_load))
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _free_port():
    """Below those that the system gives to anyone who asks: nobody else takes it while the processes start."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _start_two(argv, cwd, slow_to_load):
    port = _free_port()
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SLOWED, *map(str, argv)],
            cwd=cwd,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "SLOW_TO_LOAD": str(slow_to_load)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def outcome(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for_notes(folder, n, processes):
    """Until n blocks are done."""
    deadline = time.monotonic() + 240
    while len(list(folder.glob("*.json"))) < n:
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, outcome(ended[0])
        assert time.monotonic() < deadline
        time.sleep(0.005)


STARTS = """
import sys
from pathlib import Path
from mask_impact.studies.sharing import sole_writer
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


@pytest.fixture(scope="module")
def study(tmp_path_factory, text_checkpoint):
    """(arguments of a study without the output folder, the bytes that one process writes)."""
    folder = tmp_path_factory.mktemp("study")
    config = write_config(
        folder / "study.yaml", [*sentences(N_PROMPTS - 1), "the cat " * 100], defaults={"num_tokens": 2}
    )
    argv = ["--config", str(config), "--model", str(text_checkpoint), "--formats", "csv,parquet"]
    assert main_text([*argv, "--output-dir", str(folder / "one"), "--quiet"]) == 3
    return argv, data_files(folder / "one")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(study, start_two, tmp_path):
    argv, expected = study
    first, second = start_two([*argv, "--output-dir", tmp_path / "two"], tmp_path)
    code, out, err = outcome(first)
    assert code == 3, err
    assert f"{N_PROMPTS} prompts: {N_PROMPTS - 1} written; 1 failed: p{N_PROMPTS - 1}" in out
    n_lines = out.count(" -> ")
    assert 0 < n_lines < N_PROMPTS - 1  # the rest was done by the other
    assert outcome(second)[:2] == (0, "")
    assert data_files(tmp_path / "two") == expected
    (entry,) = map(json.loads, (tmp_path / "two" / "study.errors.jsonl").read_text().splitlines())
    assert entry["name"] == f"p{N_PROMPTS - 1}"
    assert not (tmp_path / "two" / ".study.claims").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_what_a_killed_process_leaves_is_done_by_the_other(dying, study, start_two, tmp_path):
    argv, expected = study
    processes = start_two([*argv, "--output-dir", tmp_path / "two"], tmp_path)
    notes = tmp_path / "two" / ".study.claims"
    wait_for_notes(notes, 4, processes)
    processes[dying].send_signal(signal.SIGKILL)
    code, out, err = outcome(processes[1 - dying])
    assert data_files(tmp_path / "two") == expected
    if dying == 1:
        assert (code, f"{N_PROMPTS - 1} written" in out) == (3, True), err
    else:
        assert (code, out) == (0, "")


@pytest.mark.slow
def test_processes_that_are_told_to_end_write_what_they_are_at(study, start_two, tmp_path):
    """SIGTERM, as launchers and clusters send it; --resume does the rest, and all processes may go on with it."""
    argv, expected = study
    argv = [*argv, "--output-dir", tmp_path / "two"]
    processes = start_two(argv, tmp_path)
    notes = tmp_path / "two" / ".study.claims"
    wait_for_notes(notes, 4, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    (code, _, err), (other, _, _) = map(outcome, processes)
    assert (code, other) == (130, 130)
    assert "with --resume added goes on from here" in err
    n_there = len(list((tmp_path / "two").glob("*.csv")))
    assert 0 < n_there < N_PROMPTS - 1
    code, out, err = outcome(start_two([*argv, "--resume"], tmp_path)[0])
    assert code == 3, err
    assert f"{N_PROMPTS - 1 - n_there} written; {n_there} were there already" in out
    assert data_files(tmp_path / "two") == expected


@pytest.mark.slow
def test_a_process_that_is_told_to_end_before_it_works_ends_as_the_others_do(study, start_two, tmp_path):
    """The one that waits for the other's word has begun nothing yet."""
    argv, _ = study
    (first, second) = start_two([*argv, "--output-dir", tmp_path / "two"], tmp_path, slow_to_load=1)
    wait_for_notes(tmp_path / "two" / ".study.claims", 1, [first, second])
    second.send_signal(signal.SIGTERM)
    code, out, err = outcome(second)
    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert outcome(first)[0] == 3  # it has done the rest


@pytest.mark.slow
def test_a_dataset_is_shared_too(text_checkpoint, start_two, tmp_path):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": prompt} for prompt in sentences(100)])
    argv = ["--dataset", tmp_path / "data.jsonl", "--model", text_checkpoint]
    code, _, err = outcome(start_two([*argv, "--output-dir", tmp_path / "two"], tmp_path)[0])
    assert code == 0, err
    assert main_text([*map(str, argv), "--output-dir", str(tmp_path / "one"), "--quiet"]) == 0
    parts = [{path.name: path.read_bytes() for path in (tmp_path / name / "data").iterdir()} for name in ("one", "two")]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 7


@pytest.mark.slow
def test_the_launcher_of_accelerate_starts_them(study, tmp_path):
    argv, expected = study
    launcher = Path(sys.executable).with_name("accelerate")
    if not launcher.exists():
        pytest.skip(f"{launcher} does not exist: accelerate is not installed as a command")
    command = [launcher, "launch", "--multi_gpu", "--num_processes", "2", REPOSITORY / "mask_impact_analysis.py"]
    process = subprocess.run(
        [*map(str, command), *argv, "--output-dir", str(tmp_path / "two")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 1  # whatever the code of a process that failed: here 3, one prompt being too long
    assert f"{N_PROMPTS - 1} written; 1 failed" in process.stdout, process.stderr
    assert data_files(tmp_path / "two") == expected


# The second process comes late, or never.
LATE = """
import os, sys, time
time.sleep(600 * (os.environ["RANK"] == "1"))
from mask_impact.studies import sharing
sharing.SECONDS_TO_MEET = float(os.environ.get("SECONDS_TO_MEET", 600))
from mask_impact.commands.scripts import main_text
sys.exit(main_text(sys.argv[1:]))
"""


def until(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(process):
    """Whether a process, by its id, is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_while_they_meet_end_and_resume_starts(study, tmp_path):
    argv, expected = study
    argv = [*argv, "--output-dir", str(tmp_path / "two")]
    (tmp_path / "late.py").write_text(LATE)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(_free_port()),
    ]
    with open(tmp_path / "said.txt", "wb") as said:
        process = subprocess.Popen(
            [*launcher, str(tmp_path / "late.py"), *argv],
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}, stderr=said, stdout=said,
        )  # fmt: skip
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("needs Linux, to know the launcher's processes")
        until(lambda: (tmp_path / "two" / ".study.names").exists())
        workers = children.read_text().split()
        process.kill()
        process.wait()
    first, second = workers
    try:
        until(lambda: not runs(first))
        lines = [line for line in (tmp_path / "said.txt").read_text().splitlines() if "process 0:" in line]
        assert lines == ["process 0: the launcher has died; what is written is complete, --resume goes on"]
        assert main_text([*argv, "--quiet", "--resume"]) == 3
        assert data_files(tmp_path / "two") == expected
    finally:
        os.kill(int(second), signal.SIGKILL)


@pytest.mark.slow
def test_who_is_not_met_in_time_is_not_waited_for(study, tmp_path):
    argv = [*study[0], "--output-dir", str(tmp_path / "two")]
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(_free_port()), "SECONDS_TO_MEET": "2", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", LATE, *argv], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert "the 2 processes of the launcher could not meet" in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name != ".study.claims"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_after_a_kill_of_everything_at_any_moment_the_next_resume_starts(seed, study, start_two, tmp_path):
    """And ends with the bytes of an undisturbed run."""
    argv, expected = study
    argv = [*argv, "--output-dir", str(tmp_path / "two")]
    processes = start_two(argv, tmp_path)
    until(lambda: (tmp_path / "two").exists())
    time.sleep(random.Random(seed).uniform(0, 6))  # the moment is what is drawn; nothing is waited for
    for process in processes:
        process.kill()
        process.wait()
    assert main_text([*argv, "--resume", "--quiet"]) == 3
    assert data_files(tmp_path / "two") == expected
    hidden = [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]
    assert hidden == []


# --- what several processes are not for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "said"), [
    (["--prompt", "the cat"], "several processes share the prompts of a study; a single prompt takes one"),
    (["--config", "study.yaml", "--device-map", "auto"], "--device-map spreads a model over all GPUs of one process"),
])  # fmt: skip
def test_what_one_process_is_for_is_refused_by_several_in_one_line(argv, said, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    lines = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert main_text(argv) == 2
        lines += capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
