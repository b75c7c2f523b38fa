"""Workers that Ray really starts: the bytes of one process, whoever is killed when, and nothing is left running."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from studying import REPOSITORY, sentences, study_files, write_config, write_dataset

from mask_impact.commands.main import main

KILLS = int(os.environ.get("KILLS", "1"))  # of each kind
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: the extra `ray`"),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to see what is left"),
]
GO = "import sys, poisoned; sys.exit(poisoned.go())"
# A process that starts another in its group, and waits for it whatever comes.
LEADER = """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
sys.exit(subprocess.call(sys.argv[1:]))
"""


@pytest.fixture
def place(tmp_path):
    """A folder for temporary files with a short path, as Ray's sockets need it; nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="mi", dir="/tmp") as short:
        yield Path(short)
        assert not [path.name for path in Path(short).glob("mi-*")]


@pytest.fixture
def start(place, tmp_path):
    """Starts a command with two workers; none of its processes may be left at the end."""
    (tmp_path / "pids").mkdir()
    mine = {"TMPDIR": str(place), "OMP_NUM_THREADS": "1", "PIDS": str(tmp_path / "pids"), "CUDA_VISIBLE_DEVICES": ""}
    mine["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    started = []

    def call(*argv, **more):
        command = [sys.executable, "-c", GO, "study", *map(str, argv), "--workers", "2", "--device", "cpu"]
        command = [sys.executable, "-c", LEADER, *command] if "GROUP" in more else command
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | mine | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 60
    while left := processes_of(place):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_of(folder):
    """Ids of processes that have files open there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(
                os.readlink(process / "fd" / entry).startswith(f"{folder}/") for entry in os.listdir(process / "fd")
            ):
                found.append(int(process.name))
    return found


def outcome(process):
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def until(condition, process):
    """Waits; False where the process ends before."""
    deadline = time.monotonic() + 300
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, text_checkpoint):
    """(arguments of a study without the output folder, the parts that one process writes)."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = [{"prompt": prompt} for prompt in [*sentences(98), "the cat " * 100]]
    argv = [str(write_dataset(folder / "data.jsonl", [*rows, "no json"])), "--model", str(text_checkpoint)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(["study", *argv, "--output-dir", str(folder / "one"), "--quiet", "--device", "cpu"]) == 3
    return argv, study_files(folder / "one" / "data")


def listening(processes):
    """Addresses, as /proc has them, at which these processes listen."""
    sockets = set()
    for process in processes:
        with suppress(OSError):
            sockets |= {os.readlink(f"/proc/{process}/fd/{entry}") for entry in os.listdir(f"/proc/{process}/fd")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def test_two_workers_write_the_bytes_of_one_process_and_talk_to_nobody_else(dataset, start, place, tmp_path):
    argv, expected = dataset
    process = start(*argv, "--output-dir", tmp_path / "two", SLOWED="0.05")
    parts = tmp_path / "two" / "data"
    assert until(lambda: parts.is_dir() and list(parts.glob("prompts/*.parquet")), process), outcome(process)
    addresses = listening(processes_of(place))
    code, out, err = outcome(process)
    assert code == 3, err
    assert "100 prompts: 98 written; 2 failed: row 100, row_000099" in out
    assert study_files(parts) == expected
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith(".")] == []
    entries = [json.loads(line)["name"] for line in (tmp_path / "two" / "data.errors.jsonl").read_text().splitlines()]
    assert sorted(entries, key=str) == [None, "row_000099"]


def test_workers_are_asked_about_images_as_one_process_is(start, vl_checkpoint, tmp_path):
    for number, name in enumerate("ab"):
        noise = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    rows = [{"prompt": f"the cat {number}", "image": f"{'ab'[number % 2]}.png"} for number in range(17)]
    path = write_dataset(tmp_path / "data.jsonl", [*rows[:16], {"prompt": "no image"}])
    argv = [path, "--model", vl_checkpoint, "--deepstack", "--baseline", "mean", "--variants", "full", "--output-dir"]
    assert main(["study", *map(str, argv), str(tmp_path / "one"), "--quiet", "--device", "cpu"]) == 0
    code, out, err = outcome(start(*argv, tmp_path / "two"))
    assert code == 0, err
    assert "1 prompt without deepstack: the prompt has no image" in out
    found = study_files(tmp_path / "two" / "data")
    assert found == study_files(tmp_path / "one" / "data")
    assert "deepstack/part-000000.parquet" in found


def test_prompts_that_end_or_hold_up_their_workers_are_left_out_by_name(start, text_checkpoint, tmp_path):
    prompts = [{"name": name, "prompt": f"the cat {name}"} for name in ("a", "poison", "b", "hang", "c", "d")]
    path = write_config(tmp_path / "study.yaml", prompts)
    argv = [path, "--model", text_checkpoint, "--output-dir", tmp_path / "out", "--timeout", "20"]
    code, out, err = outcome(start(*argv))
    assert code == 3, err
    assert "6 prompts: 4 written; 2 failed: poison, hang" in out
    log = tmp_path / "out" / "study.errors.jsonl"
    entries = {entry["name"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    assert entries["poison"]["error"] == entries["hang"]["error"] == "WorkerError"
    assert "crashed" in entries["poison"]["message"]
    assert "did not get on for 20 s" in entries["hang"]["message"]
    assert main(["study", *map(str, argv[:-2]), "--resume"]) == 3  # both are left out again, not run without workers
    assert len(log.read_text().splitlines()) == 2
    assert main(["study", *map(str, argv[:-2]), "--resume", "--retry-failed"]) == 0
    assert pq.read_table(tmp_path / "out" / "study" / "prompts").num_rows == 6


def killed(kind, process, pids, place, rng):
    """Ends a worker, the first process, or all of them, as kill -9 does."""
    if kind == "worker":
        workers = [int(path.name) for path in pids.iterdir()]
        victims = [rng.choice(workers)]
    else:
        victims = [process.pid] if kind == "driver" else [process.pid, *processes_of(place)]
    for victim in victims:
        with suppress(OSError):
            os.kill(victim, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["worker", "driver", "tree"])
def test_whoever_is_killed_nothing_is_lost_and_nothing_is_done_twice(kind, dataset, start, place, tmp_path, capsys):
    argv, expected = dataset
    rng, pids = random.Random(kind), tmp_path / "pids"
    for kill in range(KILLS):
        folder = tmp_path / f"out{kill}"
        argv_here = [*argv, "--output-dir", folder, "--resume"]
        for path in pids.iterdir():
            path.unlink()
        process = start(*argv_here, SLOWED="0.1")
        n_before = rng.randrange(4)
        parts = folder / "data" / "prompts"
        began = until(lambda: len(list(parts.glob("*.parquet"))) >= n_before and list(pids.iterdir()), process)  # noqa: B023
        assert began, outcome(process)
        time.sleep(rng.uniform(0, 0.5))
        killed(kind, process, pids, place, rng)
        if kind == "worker":
            code, out, err = outcome(process)
            assert code == 3, err
            assert "98 written" in out
        else:
            process.wait(60)
            n_there = len(list(folder.glob("data/prompts/*.parquet")))
            if kind == "driver":
                code, out, err = outcome(start(*argv_here))
            else:  # one process goes on with what workers have left
                code = main(["study", *map(str, argv_here), "--device", "cpu"])
                out, err = capsys.readouterr()
            assert code == 3, err
            assert f"{min(16 * n_there, 98)} were there already" in out or not n_there
        assert study_files(folder / "data") == expected
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_of_all_processes_lets_what_is_at_work_be_written(end, dataset, start, tmp_path):
    """Ctrl-C reaches each process of a terminal, and `timeout` each of its group; the workers are to go on with it."""
    argv, expected = dataset
    process = start(*argv, "--output-dir", tmp_path / "out", SLOWED="0.3", GROUP="1")
    parts = tmp_path / "out" / "data"
    assert until(lambda: parts.is_dir() and list(parts.glob("prompts/*.parquet")), process), outcome(process)
    os.killpg(process.pid, end)
    code, _, err = outcome(process)
    assert code == 130, err
    assert "Traceback" not in err
    n_there = len(list(parts.glob("prompts/*.parquet")))
    assert 0 < n_there < 7
    assert study_files(parts).items() <= expected.items()
    assert "with --resume added goes on from here" in err


def test_a_disk_that_fills_up_ends_the_study_in_one_line(dataset, start, tmp_path):
    code, _, err = outcome(start(*dataset[0], "--output-dir", tmp_path / "out", FULL_AFTER="3"))
    assert code == 1, err
    assert "no space left for" in err
    assert "with --resume added goes on from there" in err
    assert "Traceback" not in err
