"""Many prompts to many results: what is there is not done again, what fails is recorded, however a run ends."""

import dataclasses
import gc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image
from studying import REPOSITORY, data_files, sentences, study_files, write_config, write_dataset

from mask_impact.api.functions import analyze
from mask_impact.commands.console import launched
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.errors import DeviceError, OutputError
from mask_impact.models import loading
from mask_impact.results import store
from mask_impact.studies import crew, study
from mask_impact.studies.config import load_config
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.dataset_study import run_dataset
from mask_impact.studies.progress import StudyObserver
from mask_impact.studies.study import run_study
from mask_impact.studies.writer import sole_writer, writing


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
    pytest.param(main_vl, "prompts_config_vl.yaml", ["two_plus_two", "capital", "conversation", "star"], marks=pytest.mark.slow),
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
        def job_done(self, job, done, saved):
            seen.append(sorted(path.name for path in (tmp_path / "out").glob("*.csv")))

    with writing(tmp_path / "out", "study") as writer:
        tally = run_study(loaded, config.jobs, writer, observer=Look())
    assert seen == [[f"p{number}_results.csv" for number in range(count + 1)] for count in range(5)]
    assert (tally.n_written, tally.n_skipped, tally.failed, tally.stopped) == (5, 0, [], False)


def test_a_study_gives_what_single_runs_give(loaded, tmp_path):
    """Forty prompts run in groups of five that share forward passes."""
    prompts = sentences(40)
    config = load_config(write_config(tmp_path / "study.yaml", prompts, defaults={"num_tokens": 2}), kind="text")
    with writing(tmp_path, "study") as writer:
        run_study(loaded, config.jobs, writer)
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


def test_flags_of_a_single_prompt_have_no_place_beside_a_configuration(command, tmp_path, vl_checkpoint):
    write_config(tmp_path / "study.yaml", ["the cat"])
    for flag in (["--prompt", "x"], ["--output", "x"], ["--image", "x.png"], ["--verify", "x"]):
        code, out, err = command(*flag, main=main_vl, model=vl_checkpoint)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert flag[0] in err


@pytest.mark.parametrize(("argv", "said"), [
    (["--address", "auto"], "--address goes with --workers"),
    (["--timeout", "5"], "--timeout goes with --workers"),
    (["--retry-failed"], "--retry-failed goes with --resume"),
    (["--workers", "2", "--device", "cuda:1"], "--workers gives each worker a GPU of its own"),
    (["--workers", "2", "--address", "ray://there:1"], "--address takes auto or HOST:PORT"),
    (["--workers", "none"], "--workers"),
    (["--shard", "3/2"], "a share such as 1/4"),
    (["--limit", "0"], "--limit"),
])  # fmt: skip
def test_flags_about_many_prompts_that_do_not_go_together_are_refused(argv, said, command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat"])
    code, out, err = command(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_workers_without_ray_are_refused_with_what_to_install(command, tmp_path, monkeypatch):
    write_config(tmp_path / "study.yaml", ["the cat"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    code, _, err = command("--workers", "2", "--quiet")
    assert (code, err.count("\n")) == (1, 1)
    assert "--workers needs Ray, which is not installed: pip install 'mask-impact[ray]'" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_is_told_of_workers_by_one_of_its_processes(rank, command, tmp_path, monkeypatch):
    write_config(tmp_path / "study.yaml", ["the cat"])
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    code, out, err = command()
    assert (code, out) == (2, "")
    assert err.count("\n") == (rank == 0)
    assert ("--workers N" in err) == (rank == 0)


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


def edited(path, **changes):
    """A JSON file with other values in its first level."""
    path = Path(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("p1_results.meta.json", {"formats": None}),
        ("p1_results.meta.json", {"run": None}),
        ("p1_results.meta.json", {"n_prompt": 3_000_000_000}),
        ("p1_results.answer.meta.json", {"formats": None}),
        ("p1_results.answer.meta.json", {"targets": []}),
    ],
)
def test_a_prompt_whose_meta_file_is_damaged_is_done_again_and_said(command, tmp_path, file, changes):
    write_config(tmp_path / "study.yaml", ["the cat", "the mat"])
    assert command("--answer", "--budget", "4")[0] == 0
    before = data_files("output")
    edited(Path("output") / file, **changes)
    code, out, err = command("--resume", "--answer", "--budget", "4")
    assert code == 0
    assert "1 of them are done already" in out
    (said,) = [line for line in err.splitlines() if "p1 is done again" in line]
    assert f"{file} is not the meta file of a result: {next(iter(changes))}" in said
    assert data_files("output") == before
    assert "done again" not in command("--resume", "--answer", "--budget", "4")[2]


def test_a_damaged_table_that_a_picture_needs_is_made_again(command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat", "the mat"])
    command()
    before = data_files("output")
    table = Path("output/p0_results.csv")
    table.write_bytes(table.read_bytes()[:-40])
    code, _, err = command("--resume", "--report")
    assert code == 0
    assert "p0 is done again" in err
    assert "p0_results.csv" in err
    assert data_files("output") == before
    assert Path("output/p0_results.html").is_file()


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
import mask_impact.results.files as files
replace = files.os.replace
files.os.replace = lambda *args: (time.sleep(0.02), replace(*args))
from mask_impact.commands.scripts import main_text
sys.exit(main_text(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["config", "dataset"])
def test_a_killed_study_goes_on_to_the_same_bytes(source, text_checkpoint, tmp_path):
    """kill -9 at random moments (renaming is slowed down, so that some hit between two files), then --resume to the end."""
    if source == "config":
        path = write_config(tmp_path / "study.yaml", sentences(12), defaults={"num_tokens": 2})
        argv, written, n_kills = ["--formats", "csv,parquet"], "*.meta.json", 2
    else:
        path = write_dataset(tmp_path / "study.jsonl", [{"prompt": prompt} for prompt in sentences(64)])
        argv, written, n_kills = ["--reduce", "none"], "study/prompts/*.parquet", 2
    common = [f"--{source}", str(path), "--model", str(text_checkpoint), "--quiet", *argv]

    def start(folder, *argv):
        argv = [sys.executable, "-c", SLOWED, *common, "--output-dir", str(folder), *argv]
        return subprocess.Popen(argv, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def results(folder):
        return data_files(folder) if source == "config" else parts(folder / "study")

    def n_written(folder):
        return len(list(folder.glob(written))) if folder.is_dir() else 0

    assert start(tmp_path / "whole").wait(120) == 0
    expected = results(tmp_path / "whole")
    assert len(expected) == (24 if source == "config" else 8)
    rng, n_killed = random.Random(0), 0
    folder = tmp_path / "killed"
    for _ in range(n_kills):
        process = start(folder, "--resume")
        deadline, n_before = time.monotonic() + 60, n_written(folder)
        while process.poll() is None and time.monotonic() < deadline:  # until it has begun to write
            if n_written(folder) > n_before:
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            n_killed += 1
        process.wait(60)
    assert n_killed >= n_kills // 2
    assert start(folder, "--resume").wait(120) == 0
    assert results(folder) == expected
    assert not list(folder.rglob("*.tmp"))  # what the killed ones were writing
    if source == "config":
        for number in range(12):
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
    code, out, err = command("--quiet", main=main_vl, model=vl_checkpoint)
    assert (code, out) == (3, "")
    assert err == "2 of 4 failed, see output/study.errors.jsonl\n"
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
    assert (
        "no space left on device; what is written is complete, and the same command with --resume added goes on" in err
    )
    monkeypatch.setattr(study, "save", save)
    assert skipped(command) == 2


def test_pictures_and_pages_are_completed_too(command, tmp_path):
    """Those of a result that was there without them, or whose run was killed before them; and none is of an older result."""
    write_config(tmp_path / "study.yaml", ["the cat", "the mat"])
    command()
    before = data_files("output")
    _, out, _ = command("--resume", "--plots", "--report")
    assert "2 of them are done already" in out
    beside = sorted(path.name for path in Path("output").glob("p*") if path.suffix in (".png", ".html"))
    assert beside == ["p0_results.html", "p0_results.layers.png", "p1_results.html", "p1_results.layers.png"]
    assert data_files("output") == before
    old = Path("output/p0_results.layers.png").read_bytes()
    command("--plots", "--num-tokens", "2")
    assert Path("output/p0_results.layers.png").read_bytes() != old


def test_another_study_with_a_result_of_the_same_name_is_refused(command, tmp_path):
    """Two configurations with a prompt of one name, into one folder at once."""
    write_config(tmp_path / "study.yaml", ["the cat"])
    with sole_writer(make_folder(tmp_path / "output"), "other", ["p0_results", "x_results"]):
        code, _, err = command()
        assert code == 1
        assert "another run is writing the results of 'p0_results' into" in err
        assert main_text(["--prompt", "the cat", "--model", "demo", "--output", "p0_results"]) == 1
    assert command()[0] == 0
    assert not [path for path in Path("output").iterdir() if path.name.startswith(".")]


def test_a_note_of_a_run_that_died_is_no_obstacle(command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat"])
    note = make_folder(tmp_path / "output") / ".other.names"
    note.write_text('["p0_results"]')
    assert command()[0] == 0
    assert not note.exists()


def make_folder(path):
    path.mkdir()
    return path


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
    with writing(tmp_path / "once", "study") as writer:
        tally = run_study(loaded, config.jobs, writer, observer=Interrupt(1))
    assert (tally.n_written, tally.stopped) == (1, True)
    store.load_result(tmp_path / "once" / "p0_results")
    with writing(tmp_path / "twice", "study") as writer, pytest.raises(KeyboardInterrupt):
        run_study(loaded, config.jobs, writer, observer=Interrupt(2))
    assert not list((tmp_path / "twice").glob("*.csv"))
    assert signal.getsignal(signal.SIGINT) is before
    with writing(tmp_path / "once", "study") as writer:
        assert run_study(loaded, config.jobs, writer, resume=True).n_skipped == 1


def test_an_interrupted_study_says_how_to_go_on(command, tmp_path, monkeypatch):
    write_config(tmp_path / "study.yaml", sentences(3))
    monkeypatch.setattr(study, "blocks_of", lambda jobs, shard: enumerate([job] for job in jobs))
    run_tasks = crew.run_tasks

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return run_tasks(*args)

    monkeypatch.setattr(crew, "run_tasks", interrupted)
    code, _, err = command()
    assert code == 130
    assert "stopped; the same command with --resume added goes on from here" in err
    monkeypatch.setattr(crew, "run_tasks", run_tasks)
    assert skipped(command) == 1


# --- datasets ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_dataset(text_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the text script on data.jsonl with the tiny model; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = main_text(["--dataset", "data.jsonl", "--model", str(text_checkpoint), *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def parts(folder="output/data"):
    return {name: content for name, content in study_files(folder).items() if name.startswith(("impact", "prompts"))}


def names(*numbers):
    return [f"{table}/part-{number:06d}.parquet" for table in ("impact", "prompts") for number in numbers]


def rows_of(result):
    """(step, layer, position, variant, l2, cosine) of every row, by nested loops."""
    return [
        (step.step, layer, int(position), variant, step.l2[layer, row, v], step.cosine[layer, row, v])
        for step in result.steps
        for layer in range(result.n_layers)
        for row, position in enumerate(step.positions)
        for v, variant in enumerate(result.variants)
    ]


@pytest.mark.parametrize("reduce", ["summary", "none"])
def test_a_dataset_becomes_a_parquet_dataset(reduce, on_dataset, loaded, tmp_path):
    """Twenty rows are two parts; every row of three prompts against what each gives alone."""
    prompts = sentences(20)
    rows = [
        {"name": f"q{number}", "prompt": prompt, "topic": "cats", "number": number}
        for number, prompt in enumerate(prompts)
    ]
    write_dataset(tmp_path / "data.jsonl", rows)
    code, out, _ = on_dataset("--reduce", reduce, "--num-tokens", "2")
    assert code == 0
    assert "20 prompts: 20 written" in out
    assert sorted(parts()) == names(0, 1)
    frame = pd.read_parquet("output/data/impact")
    assert list(frame.columns) == ["prompt_name", *store.COLUMNS, "kind", "content", "generated_text", "carried"]
    assert frame.prompt_name.unique().tolist() == [row["name"] for row in rows]
    for number in (0, 3, 19):
        alone = analyze(loaded, prompts[number], num_tokens=2)
        own = frame[frame.prompt_name == f"q{number}"]
        assert set(own.generated_text) == {alone.generated_text}
        assert json.loads(own.carried.iloc[0]) == {"topic": "cats", "number": number}
        expected = rows_of(alone)
        if reduce == "summary":
            heads = {}
            for row in expected:
                if row[3].startswith("Head") and row[4] > heads.get(row[:3], (0,) * 5)[4]:
                    heads[row[:3]] = row
            expected = [row for row in expected if not row[3].startswith("Head") or heads[row[:3]] == row]
        measured = list(zip(own.generation_step, own.layer, own.token_position, own.variant, strict=True))
        assert measured == [row[:4] for row in expected]
        np.testing.assert_allclose(own.l2_distance, [row[4] for row in expected], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(own.cosine_distance, [row[5] for row in expected], rtol=1e-3, atol=1e-8)
        assert own.token_masked.tolist() == [alone.tokens.texts[row[2]] for row in expected]


def test_rows_that_cannot_be_jobs_are_recorded_in_every_run(on_dataset, tmp_path):
    rows = [
        {"prompt": "the cat"},
        "no json",
        {"name": "empty", "prompt": ""},
        {"prompt": "the cat " * 100},
        {"prompt": "the mat"},
    ]
    write_dataset(tmp_path / "data.jsonl", rows)
    code, out, _ = on_dataset()
    assert code == 3
    assert "5 prompts: 2 written; 3 failed: row 2, empty, row_000004" in out
    assert "[1/5] row 2: FAILED: column 1 of the line is no JSON" in out
    entries = [json.loads(line) for line in Path("output/data.errors.jsonl").read_text().splitlines()]
    assert [(entry["name"], entry.get("row")) for entry in entries] == [(None, 2), ("empty", 3), ("row_000004", None)]
    frame = pd.read_parquet("output/data/impact")
    assert frame.prompt_name.unique().tolist() == ["row_000001", "row_000005"]
    code, out, _ = on_dataset("--resume")
    assert code == 3
    assert "0 written; 2 were there already; 3 failed: row 2, empty, row_000004" in out  # nothing is run again for them
    again = [json.loads(line) for line in Path("output/data.errors.jsonl").read_text().splitlines()]
    assert again == entries
    write_dataset(tmp_path / "data.jsonl", [rows[0], rows[4]])
    assert on_dataset("--resume")[0] == 0
    assert not Path("output/data.errors.jsonl").exists()


def test_resuming_a_dataset_leaves_out_complete_parts(on_dataset, tmp_path):
    rows = [{"prompt": prompt} for prompt in sentences(40)]
    write_dataset(tmp_path / "data.jsonl", rows)
    on_dataset()
    before = parts()
    assert sorted(before) == names(0, 1, 2)
    Path("output/data/prompts/part-000001.parquet").write_bytes(b"damaged")
    _, out, err = on_dataset("--resume")
    assert "40 prompts: 16 written; 24 were there already" in out
    assert "part-000001.parquet is done again: it cannot be read" in err
    assert parts() == before
    _, out, _ = on_dataset("--resume", "--reduce", "none")
    assert "40 prompts: 40 written" in out
    write_dataset(tmp_path / "data.jsonl", rows[:10])
    _, out, _ = on_dataset()
    assert sorted(parts()) == names(0)  # those of the longer dataset are gone


@pytest.mark.parametrize("failures", ["5", "[1]", '[{"name": "x", "error": "InputError"}]', "[" * 99_999, "{}"])
def test_a_part_whose_failures_are_damaged_is_done_again_and_said(on_dataset, tmp_path, failures):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}])
    on_dataset()
    path = Path("output/data/prompts/part-000000.parquet")
    table = pq.read_table(path)
    whole = table.drop_columns(["seconds"]).to_pydict()
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"mask_impact_failures": failures}), path)
    code, out, err = on_dataset("--resume")
    assert code == 0
    assert ": 1 written" in out
    assert "part-000000.parquet is done again" in err
    assert pq.read_table(path).drop_columns(["seconds"]).to_pydict() == whole


def test_a_failure_that_may_pass_is_tried_again(on_dataset, tmp_path, monkeypatch):
    """Out of memory, unlike a prompt that is too long: the part is run again as a whole."""
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}, {"prompt": "the mat"}])
    run_tasks = crew.run_tasks

    def without_memory(*args):
        first, *others = run_tasks(*args)
        yield dataclasses.replace(first, result=None, error=DeviceError("out of memory"))
        yield from others

    monkeypatch.setattr(crew, "run_tasks", without_memory)
    assert on_dataset()[0] == 3
    monkeypatch.setattr(crew, "run_tasks", run_tasks)
    code, out, _ = on_dataset("--resume")
    assert code == 0
    assert "2 prompts: 2 written" in out


def test_a_dataset_that_is_begun_anew_and_interrupted_is_no_mixture(on_dataset, tmp_path, monkeypatch):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": prompt} for prompt in sentences(40)])
    on_dataset()
    assert len(parts()) == 6
    run_tasks = crew.run_tasks

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return run_tasks(*args)

    monkeypatch.setattr(crew, "run_tasks", interrupted)
    assert on_dataset("--reduce", "none")[0] == 130
    assert sorted(parts()) == names(0)


@pytest.mark.slow
def test_the_memory_of_a_dataset_does_not_grow_with_its_length(loaded, tmp_path):
    """What Python and numpy hold at most: less than a kilobyte more for each further prompt, whose distances are a hundred."""
    peaks = []
    for n_rows in (60, 300):
        data = write_dataset(tmp_path / f"{n_rows}.jsonl", [{"prompt": "the cat sat on the mat"}] * n_rows)
        gc.collect()
        tracemalloc.start()
        with writing(tmp_path, f"out{n_rows}") as writer:
            tally = run_dataset(loaded, read_dataset(data, kind="text"), writer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert tally.n_written == n_rows
    assert peaks[1] - peaks[0] < 240 * 1024


def test_flags_that_do_not_go_with_a_dataset_or_a_configuration_are_refused(on_dataset, tmp_path):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}])
    for argv in (
        ["--prompt", "x"], ["--formats", "csv"], ["--plots"], ["--report"], ["--config", "study.yaml", "--output", "x"],
        ["--config", "study.yaml", "--reduce", "summary"],
    ):  # fmt: skip
        code, out, err = on_dataset(*argv)
        assert (code, out) == (2, "")
        assert "does not go with" in err


def test_reduce_none_is_what_a_configuration_does_anyway(command, tmp_path):
    write_config(tmp_path / "study.yaml", ["the cat"])
    assert command("--reduce", "none")[0] == 0


def test_a_dataset_that_cannot_be_read_is_one_line(on_dataset, tmp_path):
    code, out, err = on_dataset()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "data.jsonl" in err
