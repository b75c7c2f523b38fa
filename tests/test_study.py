"""Many prompts to many results: what is there is not done again, what fails is recorded, however a run ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from mask_impact import loading, store, study
from mask_impact.cli import main_text, main_vl
from mask_impact.config import load_config
from mask_impact.errors import OutputError
from mask_impact.study import StudyObserver, run_study

REPOSITORY = Path(__file__).parent.parent


def write_config(path, prompts, **top):
    """A configuration of a list of texts, or of mappings; names p0, p1, .. where a mapping has none."""
    entries = [entry if isinstance(entry, dict) else {"prompt": entry} for entry in prompts]
    entries = [{"name": f"p{number}"} | entry for number, entry in enumerate(entries)]
    path.write_text(yaml.safe_dump(top | {"prompts": entries}))
    return path


def sentences(n, seed=0):
    """Prompts of different lengths."""
    rng = random.Random(seed)
    return [
        " ".join(["the", *rng.choices(["cat", "mat", "sat", "on"], k=rng.randint(1, 8)), str(number)])
        for number in range(n)
    ]


def data_files(folder):
    """Content of all tables by file name; and none is half-written."""
    names = sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))
    assert not [name for name in names if not name.endswith((".csv", ".json", ".parquet", ".jsonl"))]
    return {name: (Path(folder) / name).read_bytes() for name in names if name.endswith((".csv", ".parquet"))}


@pytest.fixture(scope="module")
def loaded(text_checkpoint):
    return loading.load(str(text_checkpoint))


@pytest.fixture
def command(text_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the text script on study.yaml with the tiny model; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, main=main_text, model=text_checkpoint):
        code = main(["--config", "study.yaml", "--model", str(model), *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# --- a study that goes well -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("main", "config", "names"), [
    (main_vl, "prompts_config_vl.yaml", ["two_plus_two", "capital", "conversation", "star"]),
    (main_text, "prompts_config.yaml", None),
], ids=["vl", "text"])  # fmt: skip
def test_the_shipped_configurations_run_as_they_are(main, config, names, tmp_path, capsys):
    assert main(["--config", str(REPOSITORY / config), "--output-dir", str(tmp_path / "results")]) == 0
    jobs = load_config(REPOSITORY / config, kind="vl" if main is main_vl else "text").jobs
    assert names is None or [job.name for job in jobs] == names
    lines = capsys.readouterr().out.splitlines()
    for number, job in enumerate(jobs, start=1):
        result = store.load_result(tmp_path / "results" / f"{job.name}_results")
        assert result.meta["job"] == job.name
        assert any(line.startswith(f"[{number}/{len(jobs)}] {job.name}: ") for line in lines)
    assert f"{len(jobs)} prompts: {len(jobs)} written" in lines


def test_each_prompt_has_its_files_as_soon_as_it_is_done(loaded, tmp_path):
    config = load_config(write_config(tmp_path / "study.yaml", sentences(5)), kind="text")
    seen = []

    class Look(StudyObserver):
        def job_done(self, job, outcome, saved):
            seen.append(sorted(path.name for path in (tmp_path / "out").glob("*.csv")))

    tally = run_study(loaded, config.jobs, tmp_path / "out", "study", observer=Look())
    assert seen == [[f"p{number}_results.csv" for number in range(count + 1)] for count in range(5)]
    assert (tally.n_written, tally.n_skipped, tally.failed, tally.stopped) == (5, 0, [], False)


def test_a_study_gives_what_single_runs_give(loaded, tmp_path):
    """Forty prompts run in groups of five that share forward passes."""
    prompts = sentences(40)
    config = load_config(write_config(tmp_path / "study.yaml", prompts, defaults={"num_tokens": 2}), kind="text")
    run_study(loaded, config.jobs, tmp_path, "study")
    from mask_impact.analysis import analyze

    for number in (0, 7, 39):
        stored, alone = (
            store.load_result(tmp_path / f"p{number}_results"),
            analyze(loaded, prompts[number], num_tokens=2),
        )
        assert stored.tokens.ids.tolist() == alone.tokens.ids.tolist()
        for one, other in zip(stored.steps, alone.steps, strict=True):
            np.testing.assert_allclose(one.l2, other.l2, rtol=1e-4, atol=1e-6)


def test_flags_win_over_the_file(command, tmp_path):
    write_config(
        tmp_path / "study.yaml", ["the cat"], output_dir="there", formats="csv,json", defaults={"num_tokens": 3}
    )
    assert command("--num-tokens", "1", "--formats", "parquet", "--variants", "full", "--output-dir", "here")[0] == 0
    assert not (tmp_path / "there").exists()
    result = store.load_result(tmp_path / "here" / "p0_results")
    assert (len(result.steps), result.variants) == (1, ("Full",))
    assert sorted(data_files(tmp_path / "here")) == ["p0_results.parquet"]


@pytest.mark.parametrize("flag", [["--prompt", "x"], ["--output", "x"], ["--image", "x.png"], ["--verify", "x"]])
def test_flags_of_a_single_prompt_have_no_place_beside_a_configuration(flag, command, tmp_path, vl_checkpoint):
    write_config(tmp_path / "study.yaml", ["the cat"])
    code, out, err = command(*flag, main=main_vl, model=vl_checkpoint)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_resume_needs_a_configuration(capsys):
    assert main_text(["--prompt", "the cat", "--resume"]) == 2
    assert "--resume goes with --config" in capsys.readouterr().err


def test_every_problem_of_a_configuration_is_a_line(command, tmp_path):
    (tmp_path / "study.yaml").write_text("promts: []\nprompts:\n  - name: a/b\n    prompt: ''\n    num_tokens: no\n")
    code, out, err = command()
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("mask_impact_analysis.py: error: ") and "study.yaml:" in line for line in lines)
    assert not (tmp_path / "output").exists()


def test_quiet_prints_nothing_and_lines_of_others_have_no_carriage_return(command, tmp_path):
    write_config(tmp_path / "study.yaml", sentences(3))
    assert command("--quiet")[1:] == ("", "")
    _, out, err = command()
    assert "\r" not in out + err
    assert "3 prompts: 3 written" in out
    assert "prompts/s" in out


# --- resuming ---------------------------------------------------------------------------------------------------------------


def skipped(command, *argv):
    code, out, _ = command("--resume", *argv)
    assert code == 0
    return int(out.split(" of them are done already")[0].split()[-1]) if "done already" in out else 0


def test_resume_leaves_out_what_is_there_and_does_the_rest(command, tmp_path):
    write_config(tmp_path / "study.yaml", sentences(4))
    assert skipped(command) == 0
    before = data_files("output")
    assert skipped(command) == 4
    Path("output/p2_results.csv").unlink()  # the table is gone
    assert skipped(command) == 3
    Path("output/p1_results.meta.json").write_text("{")  # damaged
    assert skipped(command) == 3
    assert data_files("output") == before
    assert skipped(command, "--formats", "csv,parquet") == 0  # not all formats are there
    assert skipped(command, "--formats", "csv,parquet") == 4


@pytest.mark.parametrize("change", [["--num-tokens", "2"], ["--variants", "attn"], ["--dtype", "bfloat16"], ["--raw"]])
def test_other_settings_are_done_again(change, command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat"])
    command()
    assert skipped(command, *change) == 0
    assert skipped(command, *change) == 1


def test_another_prompt_image_or_model_is_done_again(command, tmp_path, vl_checkpoint):
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    prompts = [{"prompt": "the cat", "image_path": "a.png"}, {"prompt": "the mat"}]
    write_config(tmp_path / "study.yaml", prompts)
    vl = {"main": main_vl, "model": vl_checkpoint}
    code, *_ = command(**vl)
    assert code == 0
    Image.new("RGB", (24, 24), "blue").save(tmp_path / "a.png")
    code, out, _ = command("--resume", **vl)
    assert "1 of them are done already" in out
    write_config(tmp_path / "study.yaml", [prompts[0], {"prompt": "the hat"}])
    code, out, _ = command("--resume", **vl)
    assert "1 of them are done already" in out
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", str(vl_checkpoint), str(copy)], check=True)
    code, out, _ = command("--resume", main=main_vl, model=copy)
    assert "done already" not in out


SLOWED = """
import sys, time
import mask_impact.files as files
replace = files.os.replace
files.os.replace = lambda *args: (time.sleep(0.02), replace(*args))
from mask_impact.cli import main_text
sys.exit(main_text(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bytes(text_checkpoint, tmp_path):
    """kill -9 at random moments (renaming is slowed down, so that some hit between two files), then --resume to the end."""
    config = write_config(tmp_path / "study.yaml", sentences(24), defaults={"num_tokens": 2})
    common = ["--config", str(config), "--model", str(text_checkpoint), "--formats", "csv,parquet", "--quiet"]

    def start(folder, *argv):
        argv = [sys.executable, "-c", SLOWED, *common, "--output-dir", str(folder), *argv]
        return subprocess.Popen(argv, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait(120) == 0
    expected = data_files(tmp_path / "whole")
    assert len(expected) == 48
    rng, n_killed = random.Random(0), 0
    folder = tmp_path / "killed"
    for _ in range(6):
        process = start(folder, "--resume")
        deadline = time.monotonic() + 60
        n_before = len(list(folder.glob("*.meta.json"))) if folder.is_dir() else 0
        while process.poll() is None and time.monotonic() < deadline:  # until it has begun to write
            if folder.is_dir() and len(list(folder.glob("*.meta.json"))) > n_before:
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            n_killed += 1
        process.wait(60)
    assert n_killed >= 3
    assert start(folder, "--resume").wait(120) == 0
    assert data_files(folder) == expected
    for number in range(24):
        store.load_result(folder / f"p{number}_results")


# --- what goes wrong --------------------------------------------------------------------------------------------------------


def test_a_prompt_that_fails_is_recorded_and_the_others_run(command, tmp_path, vl_checkpoint):
    Image.new("RGB", (24, 24)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    prompts = [
        {"name": "good", "prompt": "the cat"},
        {"name": "bad_image", "prompt": "the cat", "image_path": "bad.png"},
        {"name": "long", "prompt": "the cat " * 100},
        {"name": "picture", "prompt": "the cat", "image_path": "good.png"},
    ]
    write_config(tmp_path / "study.yaml", prompts)
    code, out, _ = command(main=main_vl, model=vl_checkpoint)
    assert code == 3
    assert "4 prompts: 2 written; 2 failed: bad_image, long" in out
    log = tmp_path / "output" / "study.errors.jsonl"
    assert f"Errors: {Path('output') / log.name}" in out
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(entry["name"], entry["error"]) for entry in entries] == [
        ("bad_image", "InputError"),
        ("long", "InputError"),
    ]
    assert "context is 64" in entries[1]["message"]
    Image.new("RGB", (24, 24)).save(tmp_path / "bad.png")
    write_config(tmp_path / "study.yaml", [*prompts[:2], prompts[3]])
    code, out, _ = command("--resume", main=main_vl, model=vl_checkpoint)
    assert code == 0
    assert "2 of them are done already" in out
    assert not log.exists()


def test_a_disk_that_fills_up_ends_the_study_and_keeps_what_is_done(command, tmp_path, monkeypatch):
    write_config(tmp_path / "study.yaml", sentences(4))
    n_saved, save = 0, study.save

    def full_after_two(*args):
        nonlocal n_saved
        n_saved += 1
        if n_saved > 2:
            raise OutputError("cannot write output/p2_results.csv: no space left on device")
        return save(*args)

    monkeypatch.setattr(study, "save", full_after_two)
    code, _, err = command()
    assert code == 1
    assert "no space left on device" in err
    monkeypatch.setattr(study, "save", save)
    assert skipped(command) == 2


def test_a_second_run_of_the_same_name_is_refused(command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat"])
    (tmp_path / "output").mkdir()
    with FileLock(tmp_path / "output" / ".study.lock"):
        code, _, err = command()
    assert code == 1
    assert "another run is writing the results of 'study' into" in err
    assert command()[0] == 0


def test_the_first_interrupt_waits_for_the_prompt_at_work_and_the_second_does_not(loaded, tmp_path):
    config = load_config(write_config(tmp_path / "study.yaml", sentences(5)), kind="text")

    class Interrupt(StudyObserver):
        def __init__(self, n_times):
            self.n_times = n_times

        def layer_done(self, step, layer):
            while self.n_times:
                self.n_times -= 1
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    tally = run_study(loaded, config.jobs, tmp_path / "once", "study", observer=Interrupt(1))
    assert (tally.n_written, tally.stopped) == (1, True)
    store.load_result(tmp_path / "once" / "p0_results")
    with pytest.raises(KeyboardInterrupt):
        run_study(loaded, config.jobs, tmp_path / "twice", "study", observer=Interrupt(2))
    assert not list((tmp_path / "twice").glob("*.csv"))
    assert signal.getsignal(signal.SIGINT) is before
    assert run_study(loaded, config.jobs, tmp_path / "once", "study", resume=True).n_skipped == 1


def test_an_interrupted_study_says_how_to_go_on(command, tmp_path, monkeypatch):
    write_config(tmp_path / "study.yaml", sentences(3))
    monkeypatch.setattr(study, "_groups", lambda jobs: ([job] for job in jobs))
    run_tasks = study.run_tasks

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return run_tasks(*args)

    monkeypatch.setattr(study, "run_tasks", interrupted)
    code, _, err = command()
    assert code == 130
    assert "stopped; the same command with --resume added goes on from here" in err
    monkeypatch.setattr(study, "run_tasks", run_tasks)
    assert skipped(command) == 1
