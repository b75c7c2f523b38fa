"""Both scripts as a user meets them: what goes to stdout and stderr, the files, the exit code, and one line for what is wrong.

Most tests call `main` in the test's own process, in an empty folder; where a process matters (signals, a terminal, imports) a
script is started.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from mask_impact.analyses import impact
from mask_impact.analyses.observer import Observer
from mask_impact.api.functions import analyze
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.engine.riding import engine as riding_engine
from mask_impact.errors import DeviceError
from mask_impact.models import loading, sources
from mask_impact.models.names import DEFAULT_MODELS
from mask_impact.results import store

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = {main_text: "mask_impact_analysis.py", main_vl: "mask_impact_vl.py"}
BOTH = pytest.mark.parametrize("main", [main_text, main_vl], ids=["text", "vl"])
Outcome = namedtuple("Outcome", "code out err")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls a script's `main` in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(main, *argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run):
    """Calls a script with --quiet and holds it to one line on stderr, nothing on stdout and no files; returns the line."""

    def call(main, *argv, code=1):
        outcome = run(main, "--quiet", *argv)
        assert (outcome.code, outcome.out) == (code, "")
        assert outcome.err.startswith(f"{PROGRAMS[main]}: error: ")
        assert outcome.err.count("\n") == 1
        assert "Traceback" not in outcome.err
        assert written() == []
        return outcome.err

    return call


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test where weights would be read."""
    monkeypatch.setattr(loading, "_load_weights", lambda *args: pytest.fail("weights were read"))


@pytest.fixture
def copy(tmp_path_factory):
    """Copies a checkpoint into a folder that may be damaged."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path_factory.mktemp("copies") / folder.name))


def written(folder="output"):
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []


def files_of(name, *formats):
    """What a run leaves: the maps, and what the answer used."""
    ends = [*(formats or ("csv", "json")), "meta.json"]
    estimates = [f"{name}.estimates.{end}" for end in ends[:-1]]
    return sorted([*estimates, *(f"{name}.{part}{end}" for part in ("", "answer.") for end in ends)])


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- a run that goes well -------------------------------------------------------------------------------------------------


def test_the_vl_script_says_the_known_lines_on_stdout(run, vl_checkpoint):
    outcome = run(main_vl, "--model", vl_checkpoint, "--prompt", "the cat", "--num-tokens", 2)
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert lines[0] == "PHASE 1: Qwen3-VL Text-Only Masking Analysis"
    assert lines[2:4] == ["Model loaded successfully!", "Text model layers: 4"]
    assert re.fullmatch(r"Analyzing initial prompt \(\d+ tokens\)\.\.\.", lines[4])
    assert "Results saved to: output/vl_masking_results.csv" in lines
    assert written() == files_of("vl_masking_results")


def test_the_text_script_writes_under_its_own_default_name(run, text_checkpoint):
    outcome = run(main_text, "--model", text_checkpoint, "--prompt", "the cat")
    assert outcome.code == 0
    assert "Results saved to: output/masking_results.csv" in outcome.out.splitlines()
    assert written() == files_of("masking_results")


def test_narration_goes_to_stderr_a_line_for_each_token_where_it_is_no_terminal(run, text_checkpoint):
    outcome = run(main_text, "--model", text_checkpoint, "--prompt", "the cat", "--num-tokens", 3)
    assert outcome.err.splitlines() == [
        f"Loading model {text_checkpoint} ...",
        *(f"Processing layer 0/2... (token {number} of at most 3)" for number in (1, 2, 3)),
        "Hiding what the answer may have used: at most 12 forward passes of the prompt ...",
    ]
    assert "Processing" not in outcome.out


def test_output_formats_and_variants_are_as_asked_for(run, text_checkpoint):
    outcome = run(
        main_text, "--model", text_checkpoint, "--prompt", "the cat", "--output-dir", "a/b", "--output", "mine",
        "--formats", "parquet", "--variants", "attn,FULL",
    )  # fmt: skip
    assert outcome.code == 0
    assert written("a/b") == files_of("mine", "parquet")
    assert store.load_result("a/b/mine").variants == ("Full", "Attn")


def test_verify_says_how_far_real_masking_is_from_what_was_measured(run, text_checkpoint):
    outcome = run(main_text, "--model", text_checkpoint, "--prompt", "the cat", "--verify", 3)
    found = re.search(r"^Verified by really masking: 3 .*largest relative error (\S+)$", outcome.out, re.MULTILINE)
    assert float(found[1]) < 1e-3
    assert len(store.load_result("output/masking_results").meta["verification"]["triples"]) == 3


def test_the_result_records_its_command_line(run, text_checkpoint):
    run(main_text, "--quiet", "--model", text_checkpoint, "--prompt", "the cat")
    command = store.load_result("output/masking_results").meta["command"]
    assert command == f"mask_impact_analysis.py --quiet --model {text_checkpoint} --prompt 'the cat'"


@pytest.mark.slow
def test_quiet_prints_nothing_at_all(vl_checkpoint, tmp_path):
    """In a process of its own: log lines and bars of the libraries count too, of the processor's as well."""
    argv = ["--quiet", "--model", vl_checkpoint, "--prompt", "the cat", "--num-tokens", "2"]
    process = start(PROGRAMS[main_vl], *argv, cwd=tmp_path)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
    assert written(tmp_path / "output") == files_of("vl_masking_results")


@pytest.mark.slow
def test_a_reader_that_leaves_early_does_not_end_the_run(text_checkpoint, tmp_path):
    """As in `| head -1`: the files are what counts."""
    code = (
        "import os, sys; from mask_impact.analyses import impact; from mask_impact.commands import scripts; "
        "reader, writer = os.pipe(); os.dup2(writer, 1); os.close(writer); os.close(reader); "
        "sys.exit(scripts.main_text(sys.argv[1:]))"
    )
    arguments = ["--model", text_checkpoint, "--prompt", "the cat"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment(), timeout=120)
    assert process.returncode == 0
    assert written(tmp_path / "output") == files_of("masking_results")


def test_a_terminal_that_cannot_show_a_character_does_not_end_the_run(run, text_checkpoint, monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(main_text, "--model", text_checkpoint, "--prompt", "the cat é").code == 0
    assert "Results saved to" in (tmp_path / "out").read_text()


# --- prompts --------------------------------------------------------------------------------------------------------------


def templated_prompt():
    return store.load_result("output/masking_results").meta["templated_prompt"]


def test_prompt_txt_is_the_default_prompt(run, text_checkpoint, tmp_path):
    (tmp_path / "prompt.txt").write_text("the mat\n")
    assert run(main_text, "--model", text_checkpoint, "--raw").code == 0
    assert templated_prompt() == "the mat"


@pytest.mark.parametrize("content", [b"the mat\r\nthe cat\r\n", "the mat\nthe cat".encode("utf-8-sig")])
def test_a_prompt_file_may_come_from_windows(content, run, text_checkpoint, tmp_path):
    """A byte order mark or carriage return would be tokens of their own."""
    (tmp_path / "mine.txt").write_bytes(content)
    assert run(main_text, "--model", text_checkpoint, "--raw", "--prompt", "mine.txt").code == 0
    assert templated_prompt() == "the mat\nthe cat"


def test_no_prompt_at_all_is_a_usage_error(refused):
    assert "--prompt" in refused(main_text, code=2)


@pytest.mark.parametrize("prompt", ["", "   ", " \n "])
def test_an_empty_prompt_is_refused_before_anything_is_loaded(prompt, refused, no_weights):
    assert "the prompt is empty; give some text" in refused(main_text, "--prompt", prompt)


def test_an_empty_prompt_file_is_refused(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    assert "the prompt is empty" in refused(main_text, "--prompt", "empty.txt")


def test_a_prompt_file_that_does_not_exist_is_named(refused):
    assert "prompt file 'nowhere.txt' does not exist" in refused(main_text, "--prompt", "nowhere.txt")


@pytest.mark.parametrize(
    "prompt", ["-yes", "-1 or -2?", "--what is this?", "Please summarize notes.txt", "read a/notes b.txt"]
)
def test_a_prompt_may_begin_like_a_flag_and_end_like_a_file(prompt, run, text_checkpoint):
    assert run(main_text, "--model", text_checkpoint, "--raw", "--prompt", prompt).code == 0
    assert templated_prompt() == prompt


def test_a_path_with_spaces_is_a_file_where_it_or_its_folder_is_there(run, refused, text_checkpoint, tmp_path):
    (tmp_path / "my notes.txt").write_text("the cat")
    assert run(main_text, "--model", text_checkpoint, "--raw", "--prompt", "my notes.txt").code == 0
    assert templated_prompt() == "the cat"
    for path in tmp_path.glob("masking_results*"):
        path.unlink()
    (tmp_path / "my texts").mkdir()
    shutil.rmtree(tmp_path / "output")
    assert "prompt file 'my texts/notes.txt' does not exist" in refused(main_text, "--prompt", "my texts/notes.txt")


def test_a_flag_behind_prompt_is_no_prompt(refused):
    for flag in ("--effect", "--what?"):
        assert "expected one argument; one that begins with -- is given as --prompt=--it" in refused(
            main_text, "--prompt", flag, code=2
        )


def test_a_prompt_file_that_is_a_folder_is_named(refused, tmp_path):
    (tmp_path / "folder.txt").mkdir()
    assert "prompt file 'folder.txt' cannot be read" in refused(main_text, "--prompt", "folder.txt")


def test_a_prompt_file_that_is_not_utf8_is_named(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    line = refused(main_text, "--prompt", "latin.txt")
    assert "prompt file 'latin.txt' is not UTF-8 (byte 3)" in line
    assert "save it as UTF-8" in line


def test_a_prompt_that_is_no_text_is_refused(refused):
    assert "not valid Unicode" in refused(
        main_text, "--prompt", "a\udcff"
    )  # a byte of the command line that is not UTF-8


def test_a_prompt_longer_than_the_context_names_both_lengths(refused, text_checkpoint):
    line = refused(main_text, "--model", text_checkpoint, "--raw", "--prompt", "the " * 70, "--num-tokens", 2)
    assert re.search(r"prompt has \d+ tokens and 2 are to be produced, but the model's context is 64", line)


def test_ever_so_many_tokens_are_refused_before_the_first(refused, text_checkpoint):
    assert "--num-tokens" in refused(main_text, "--model", text_checkpoint, "--prompt", "the", "--num-tokens", 10**6)


# --- usage ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--num-tokens", "0"], ["--num-tokens", "at least 1", "0"]),
        (["--num-tokens", "-3"], ["--num-tokens", "at least 1", "-3"]),
        (["--num-tokens", "many"], ["--num-tokens", "whole number", "'many'"]),
        (["--num-tokens", "1.5"], ["--num-tokens", "whole number", "'1.5'"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1", "0"]),
        (["--verify", "-1"], ["--verify", "at least 0", "-1"]),
        (["--dtype", "nonsense"], ["--dtype", "'nonsense'", "auto", "float32", "bfloat16", "float16"]),
        (["--device", "nonsense"], ["'nonsense'", "auto, cpu, cuda, cuda:N or mps"]),
        (["--formats", "csv,xml"], ["'xml'"]),
        (["--formats", ""], ["format"]),
        (["--variants", "full,tails"], ["--variants", "full, attn, heads", "tails"]),
        (["--variants", ","], ["--variants", "full, attn, heads"]),
        (["--output", "a/b"], ["'a/b'", "path separator", "--output-dir"]),
        (["--output", ".."], ["'..'", "my_results"]),
        (["--output", "../up"], ["'../up'", "--output-dir"]),
        (["--output", ""], ["empty", "my_results"]),
        (["--config", "prompts.yaml"], ["--prompt does not go with --config"]),
        (["--dataset", "prompts.jsonl"], ["--prompt does not go with --dataset"]),
        (["--reduce", "none"], ["--reduce goes with --dataset"]),
        (["--resume"], ["--resume goes with --config or --dataset"]),
        (["--model", "demo", "--revision", "main"], ["--revision", "'demo'"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["--num"], ["--num", "--help"]),
        (["--model"], ["--model", "--help"]),
    ],
    ids=lambda value: " ".join(value) if value[:1] and value[0].startswith("--") else None,
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv, said, refused, no_weights, monkeypatch, text_checkpoint):
    monkeypatch.setattr(sources, "demo_path", lambda kind: text_checkpoint)
    line = refused(main_text, "--prompt", "the cat", *argv, code=2)
    assert [words for words in said if words not in line] == []


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--mask-mode", "vision"], 2, "--mask-mode vision needs an image or a video: give --image FILE or --video FILE"),
        (["--mask-mode", "images", "--image", "good.png"], 2, "--mask-mode must be text, vision, both or all, not 'images'"),
        (["--max-image-resolution", "0"], 2, "--max-image-resolution must be a whole number of pixels, at least 1, not 0"),
        (["--max-image-resolution", "big"], 2, "must be a whole number of pixels, at least 1, not 'big'"),
        (["--image"], 2, "expected one argument"),
        (["--image", "missing.png"], 1, "image 'missing.png' does not exist"),
        (["--image", "."], 1, "image '.' is a folder"),
        (["--image", "text.png"], 1, "image 'text.png'"),
        (["--image", "cut.jpg"], 1, "image 'cut.jpg'"),
        (["--image", "good.png", "--prompt", "<image> <image>"], 1, "marks 2 places for an image (<image>), and the number of "
         "images given is 1"),
        (["--prompt", "<image>?"], 1, "marks 1 place for an image"),
        (["--image", "http://127.0.0.1:9/a.png"], 1, "nothing is fetched unless --allow-remote is given"),
        (["--image", "https://127.0.0.1:9/a.png", "--allow-remote"], 1, "cannot be fetched"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_about_images_is_said_before_any_weight_is_read(
    argv, code, said, refused, no_weights, tmp_path
):
    Image.new("RGB", (64, 48)).save(tmp_path / "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    (tmp_path / "text.png").write_text("not a picture")
    assert said in refused(main_vl, "--prompt", "the cat", *argv, code=code)


@pytest.mark.parametrize("flag", ["--mask-mode", "--max-image-resolution"])
def test_the_text_script_has_no_flags_for_images(flag, refused):
    assert f"unknown flag {flag}" in refused(main_text, "--prompt", "the cat", flag, "x", code=2)


def test_the_text_script_says_which_script_takes_images(refused):
    line = refused(main_text, "--prompt", "the cat", "--image", "a.png", code=2)
    assert "a text model takes no image; mask_impact_vl.py does" in line


def test_what_an_earlier_run_left_beside_a_result_is_removed_and_named(run, text_checkpoint):
    argv = ["--model", text_checkpoint, "--prompt", "the cat"]
    run(main_text, *argv, "--plots", "--report")
    outcome = run(main_text, *argv, "--report")
    assert "output/masking_results.layers.png" in outcome.err
    assert not Path("output/masking_results.layers.png").exists()
    assert Path("output/masking_results.html").exists()


def test_an_image_that_the_model_cannot_take_leaves_nothing(refused, vl_checkpoint, tmp_path):
    Image.new("RGB", (8, 4000)).save(tmp_path / "thin.png")
    line = refused(main_vl, "--model", vl_checkpoint, "--prompt", "the cat", "--image", "thin.png")
    assert "image 0 ('thin.png', 8 x 4000 pixels) is beyond what the model's processor takes" in line
    assert main_vl(["--quiet", "--model", str(vl_checkpoint), "--prompt", "the cat", "--image", "thin.png",
                    "--max-image-resolution", "200"]) == 0  # fmt: skip


def test_images_that_do_not_fit_into_the_context_are_refused(refused, vl_checkpoint, tmp_path):
    Image.new("RGB", (24, 32)).save(tmp_path / "good.png")
    line = refused(main_vl, "--model", vl_checkpoint, "--prompt", "the", *["--image", "good.png"] * 5)
    assert "the model's context is 64" in line
    assert "shrink its images (--max-image-resolution)" in line


@pytest.mark.parametrize(
    ("mask_mode", "title", "kinds"),
    [
        (None, "PHASE 2c: Qwen3-VL Image Analysis, Text and Vision Tokens Masked", {True, False}),
        ("both", "PHASE 2c: Qwen3-VL Image Analysis, Text and Vision Tokens Masked", {True, False}),
        ("ALL", "PHASE 2c: Qwen3-VL Image Analysis, Text and Vision Tokens Masked", {True, False}),
        ("vision", "PHASE 2b: Qwen3-VL Image Analysis, Vision Tokens Masked", {True}),
        ("text", "PHASE 2a: Qwen3-VL Image Analysis, Text Tokens Masked", {False}),
    ],
)
def test_each_mask_mode_has_its_phase_and_its_rows(mask_mode, title, kinds, run, vl_checkpoint, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 40)).save(tmp_path / "b.png")
    argv = [] if mask_mode is None else ["--mask-mode", mask_mode]
    argv += ["--image", "a.png", "--image", "b.png", "--num-tokens", 1, "--verbose"]
    outcome = run(main_vl, "--model", vl_checkpoint, "--prompt", "the <image> cat <image>", *argv)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == title
    result = store.load_result("output/vl_masking_results")
    for step in result.steps:
        assert {bool(image >= 0) for image in result.tokens.image[step.positions]} == kinds
    assert [image.source for image in result.images] == ["a.png", "b.png"]
    assert [image.size for image in result.images] == [(60, 40), (20, 40)]
    assert result.meta["mask_mode"] == {None: "both", "ALL": "both"}.get(mask_mode, mask_mode)
    assert f"Images ({(result.tokens.image >= 0).sum()} vision tokens)" in outcome.out
    rows, columns = result.images[0].grid
    assert f"{rows} rows x {columns} columns\n" in outcome.out
    assert ("Patches that are read most" in outcome.out) == (True in kinds)
    assert ("Where it is read for the first token" in outcome.out) == (False in kinds)


@BOTH
def test_plots_and_report_are_written_beside_the_tables(main, run, text_checkpoint, vl_checkpoint, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    argv = ["--model", vl_checkpoint, "--image", "a.png"] if main is main_vl else ["--model", text_checkpoint]
    outcome = run(main, "--prompt", "the cat", "--output", "mine", "--plots", "--report", *argv)
    plots = ["mine.card.png", "mine.layers.png", *(["mine.patches.png"] if main is main_vl else [])]
    assert outcome.code == 0
    assert written() == sorted([*files_of("mine"), *plots, "mine.html"])
    assert "Also written: output/mine.html" in outcome.out.splitlines()
    assert Path("output/mine.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    for name in plots:
        assert f"Also written: output/{name}" in outcome.out.splitlines()
        Image.open(Path("output") / name).load()


@BOTH
def test_help_and_argument_errors_import_nothing_heavy(main, tmp_path):
    calls = [
        ["--help"], ["--version"], ["--nonsense"], ["--prompt", "x", "--num-tokens", "0"], ["--prompt", "x", "--output", "a/b"],
        ["--prompt", " "], ["--prompt", "nowhere.txt"],
    ]  # fmt: skip
    code = f"""
import sys
from mask_impact.commands.scripts import {main.__name__} as main
codes = [main(call) for call in {calls}]
print([name for name in ("torch", "transformers", "pandas", "pyarrow") if name in sys.modules], codes, file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stderr.splitlines()[-1] == "[] [0, 0, 2, 2, 2, 1, 1]"


@BOTH
def test_help_names_every_flag_and_the_examples(main, run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    outcome = run(main, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line for line in outcome.out.splitlines() if len(line) > 80] == []
    assert "(default: None)" not in outcome.out
    assert outcome.out.count(f"python {PROGRAMS[main]} --") == (7 if main is main_vl else 5)
    of_images = ("--image", "--mask-mode", "--max-image-resolution", "--allow-remote")
    assert all((f"\n  {flag}" in outcome.out) == (main is main_vl) for flag in of_images)
    for flag in (
        "--config",
        "--dataset",
        "--reduce",
        "--resume",
        "--device-map",
        "--effect",
        "--plots",
        "--report",
        "--prompt",
        "--num-tokens",
        "--output",
        "--output-dir",
        "--model",
        "--revision",
        "--device",
        "--dtype",
    ):
        assert f"\n  {flag}" in outcome.out


def test_debug_shows_the_traceback_before_the_line(run):
    outcome = run(main_text, "--prompt", "x", "--num-tokens", "0", "--debug")
    assert outcome.code == 2
    assert outcome.err.startswith("Traceback")
    assert outcome.err.splitlines()[-1].startswith("mask_impact_analysis.py: error: --num-tokens")


def test_an_error_that_nobody_thought_of_is_one_line_too(refused, text_checkpoint, monkeypatch):
    monkeypatch.setattr(impact, "run", lambda *args, **options: {}["key"])
    line = refused(main_text, "--model", text_checkpoint, "--prompt", "the cat")
    assert "unexpected KeyError: 'key'" in line
    assert "--debug" in line


# --- places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_model_loads(folder, refused, no_weights, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    line = refused(main_text, "--prompt", "the cat", "--output-dir", folder)
    assert f"cannot write {folder}" in line


def test_a_full_disk_is_refused_before_the_model_loads(refused, no_weights, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30, 0))
    assert "nearly full: 0.0 MiB free, 16 MiB needed" in refused(main_text, "--prompt", "the cat")


def test_a_disk_that_fills_up_while_writing_leaves_no_file(refused, text_checkpoint, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(main_text, "--model", text_checkpoint, "--prompt", "the cat")
    assert "no space left for output/" in line
    assert "--output-dir" in line


# --- models ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_cuda_without_cuda_names_what_there_is(main, refused, no_weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(main, "--prompt", "the cat", "--model", "demo", "--device", "cuda")
    assert "device 'cuda' is not available on this machine; available: auto, cpu" in line


def test_a_text_model_is_sent_to_the_text_script(refused, no_weights, text_checkpoint):
    line = refused(main_vl, "--prompt", "the cat", "--model", text_checkpoint)
    assert "is a text model: use mask_impact_analysis.py" in line


def test_a_vision_language_model_is_sent_to_the_vl_script(refused, no_weights, vl_checkpoint):
    line = refused(main_text, "--prompt", "the cat", "--model", vl_checkpoint)
    assert "is a vision-language model: use mask_impact_vl.py" in line


def test_a_named_model_that_cannot_be_had_is_never_replaced(refused, text_checkpoint, monkeypatch):
    monkeypatch.setattr(sources, "demo_path", lambda kind: text_checkpoint)
    monkeypatch.setattr(sources, "_hub_problem", lambda model, revision: "the hub cannot be reached")
    for name in ("nobody/nothing", DEFAULT_MODELS["text"]):
        line = refused(main_text, "--prompt", "the cat", "--model", name)
        assert (
            f"model '{name}' not found: no such folder, not in the local cache, and the hub cannot be reached" in line
        )
        assert "demo" in line


@BOTH
def test_the_demo_steps_in_for_the_default_and_says_so_everywhere(main, run, request, monkeypatch):
    kind = "vl" if main is main_vl else "text"
    monkeypatch.setattr(sources, "demo_path", lambda kind: request.getfixturevalue(f"{kind}_checkpoint"))
    monkeypatch.setattr(sources, "_hub_problem", lambda model, revision: "the hub cannot be reached")
    monkeypatch.setattr(sources, "_is_cached", lambda model, revision: False)
    outcome = run(main, "--prompt", "the cat", "--output", "mine")
    default = DEFAULT_MODELS[kind]
    notes = [line for line in outcome.err.splitlines() if line.startswith("NOTE: ")]
    assert len(notes) == 1
    assert f"The default model {default} is neither cached nor downloadable" in notes[0]
    assert f"Note: The default model {default}" in outcome.out
    meta = json.loads(Path("output/mine.meta.json").read_text())["run"]
    assert meta["notices"] == [notes[0].removeprefix("NOTE: ").removesuffix(".")]
    assert meta["model"] == f"demo ({kind})"


@BOTH
def test_a_demo_that_was_asked_for_needs_no_note(main, run, request, monkeypatch):
    monkeypatch.setattr(sources, "demo_path", lambda kind: request.getfixturevalue(f"{kind}_checkpoint"))
    outcome = run(main, "--prompt", "the cat", "--model", "demo", "--output", "mine")
    assert outcome.code == 0
    assert "NOTE" not in outcome.err
    assert json.loads(Path("output/mine.meta.json").read_text())["run"]["notices"] == []


def test_a_damaged_configuration_is_one_line(refused, no_weights, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    for damage in (b"{not json", b"", b"[]", b'"text"', b'{"architectures": ["Qwen3ForCausalLM"]}', b"\xff\xfe"):
        (folder / "config.json").write_bytes(damage)
        line = refused(main_text, "--prompt", "x", "--model", folder)
        assert f"cannot read the configuration of model '{folder}'" in line, damage


@pytest.mark.parametrize("damage", [b"{not json", b"", b"[]", b"{}"])
@BOTH
def test_a_damaged_tokenizer_is_one_line(main, damage, refused, no_weights, copy, request):
    folder = copy(request.getfixturevalue("vl_checkpoint" if main is main_vl else "text_checkpoint"))
    (folder / "tokenizer.json").write_bytes(damage)
    line = refused(main, "--prompt", "the cat", "--model", folder)
    assert str(folder) in line
    assert "tokenizer" in line or "processor" in line


def test_truncated_weights_are_one_line(refused, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"cannot read the weights of model '{folder}'" in refused(
        main_text, "--prompt", "the cat", "--model", folder
    )


def test_a_missing_tensor_is_named(refused, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    line = refused(main_text, "--prompt", "the cat", "--model", folder)
    assert (
        "incomplete: 1 tensors are missing or have another shape, the first is model.layers.1.mlp.up_proj.weight"
        in line
    )


def test_a_tensor_of_another_shape_is_named(refused, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in refused(main_text, "--prompt", "the cat", "--model", folder)


def test_a_missing_shard_is_one_line(refused, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    loading.load(str(folder)).model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    line = refused(main_text, "--prompt", "the cat", "--model", folder)
    assert "weights" in line
    assert shards[1].name in line


def test_pickled_weights_are_never_loaded(refused, copy, text_checkpoint, tmp_path):
    folder = copy(text_checkpoint)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": RunsWhenUnpickled(tmp_path / "ran")}, folder / "pytorch_model.bin")
    line = refused(main_text, "--prompt", "the cat", "--model", folder)
    assert "has no .safetensors weights" in line
    assert "convert them to safetensors" in line
    assert not (tmp_path / "ran").exists()


class RunsWhenUnpickled:
    """What a pickle can do to whoever reads it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_the_layer(name, value, refused, copy, text_checkpoint):
    folder = copy(text_checkpoint)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, :] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    line = refused(main_text, "--prompt", "the cat", "--model", folder)
    layer = name.split(".")[2]
    assert re.search(rf"activations of layers\.{layer} at step 0 are not finite", line)


# --- memory ---------------------------------------------------------------------------------------------------------------


def limit_rows(monkeypatch, limit):
    """Riding takes the memory of at most `limit` rows."""

    def within_limit(name, module, n_variants, max_rows, *rest):
        if min(n_variants, max_rows or n_variants) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(riding_engine, "check_room", within_limit)


def test_out_of_memory_shrinks_the_chunks_and_changes_nothing_else(run, text_checkpoint, monkeypatch):
    arguments = ["--model", text_checkpoint, "--prompt", "the cat sat on the mat", "--num-tokens", 2]
    run(main_text, *arguments, "--output", "normal")
    limit_rows(monkeypatch, 3)
    outcome = run(main_text, *arguments, "--output", "small")
    assert outcome.code == 0
    shrinking = re.findall(r"Out of memory: going on with --batch-size (\d+)", outcome.err)
    assert int(shrinking[-1]) <= 3
    assert outcome.out.count("Analyzing initial prompt") == 1
    normal, small = store.load_result("output/normal"), store.load_result("output/small")
    assert small.meta["batch_size"] == int(shrinking[-1])
    assert [step.token_id for step in small.steps] == [step.token_id for step in normal.steps]
    for one, other in zip(normal.steps, small.steps, strict=True):
        assert abs(one.l2 - other.l2).max() <= 1e-5 * one.l2.max()


def test_memory_for_not_even_one_row_is_an_error(refused, text_checkpoint, monkeypatch):
    limit_rows(monkeypatch, 0)
    line = refused(main_text, "--model", text_checkpoint, "--prompt", "the cat")
    assert "out of memory with a single masked token" in line
    assert "shorten the prompt" in line


# --- what a run that fails leaves of the model ------------------------------------------------------------------------------


class InterruptedAtLayer1(Observer):
    def layer_done(self, step, layer):
        if layer == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["text", "vl"])
@pytest.mark.parametrize("way", ["interrupted", "out of memory"])
def test_a_run_that_fails_leaves_model_and_library_as_they_were(way, kind, request, monkeypatch):
    loaded = loading.load(str(request.getfixturevalue(f"{kind}_checkpoint")))
    before = traces(loaded.model)
    expected = analyze(loaded, "the cat")
    with monkeypatch.context() as patch:
        if way == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                analyze(loaded, "the cat", observer=InterruptedAtLayer1())
        else:
            limit_rows(patch, 0)
            with pytest.raises(DeviceError):
                analyze(loaded, "the cat")
    assert traces(loaded.model) == before
    again = analyze(loaded, "the cat")
    assert (again.steps[0].l2 == expected.steps[0].l2).all()


def traces(model):
    """Everything that a run touches: hooks, attention backends of all configs, the library's registries, the weights."""
    from transformers import AttentionInterface, AttentionMaskInterface

    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in hooks),
        "patched": sorted(name for name, module in model.named_modules() if "forward" in vars(module)),
        "backends": [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")],
        "registered": [sorted(interface._global_mapping) for interface in (AttentionInterface, AttentionMaskInterface)],
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "training": model.training,
        "weights": [float(parameter.detach().double().sum()) for parameter in model.parameters()],
    }


# --- processes --------------------------------------------------------------------------------------------------------------


def environment(**more):
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


def start(program, *argv, cwd, **pipes):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | pipes
    command = [sys.executable, str(REPOSITORY / program), *map(str, argv)]
    return subprocess.Popen(command, cwd=cwd, env=environment(), **pipes)


@pytest.mark.slow
def test_ctrl_c_in_a_run_is_exit_code_130_one_line_and_no_files(tmp_path):
    model = save_checkpoint(tmp_path / "model", "qwen3", max_position_embeddings=8192)
    process = start(PROGRAMS[main_text], "--model", model, "--prompt", "the cat", "--num-tokens", "8000", cwd=tmp_path)
    for line in process.stderr:
        if "(token 5 of" in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    said = [line for line in errors.splitlines() if not line.startswith("Processing layer")]
    assert said == ["mask_impact_analysis.py: interrupted: no files were written"]
    assert written(tmp_path / "output") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("numpy", signal.SIGTERM),
        ("torch._C", signal.SIGINT),
        ("torch._C", signal.SIGTERM),
        ("transformers", signal.SIGTERM),
        ("safetensors", signal.SIGINT),
    ],
)
def test_a_signal_while_modules_are_read_is_one_line_too(module, number, tmp_path):
    command = [
        sys.executable,
        "-X",
        "importtime",
        REPOSITORY / PROGRAMS[main_text],
        "--model",
        "demo",
        "--prompt",
        "2+2?",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.split()[-1] == module:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    said = [line for line in errors.splitlines() if not line.startswith(("import time:", "Loading model"))]
    assert process.returncode == 130, said
    assert len(said) == 1
    assert re.fullmatch(r"mask_impact_analysis.py: interrupted(: no files were written)?", said[0])


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_an_interrupt_after_files_were_written_names_them(kind, request, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mask_impact.commands.run.render_summary", interrupt)
    model, main = request.getfixturevalue(f"{kind}_checkpoint"), {"text": main_text, "vl": main_vl}[kind]
    argv = ["--model", str(model), "--prompt", "the cat", "--output-dir", str(tmp_path), "--formats", "csv"]
    assert main(argv) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert ": interrupted: written is " in line
    assert set(line.partition(" is ")[2].split(", ")) == {str(path) for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_bar_on_a_terminal_is_drawn_and_wiped_off(tmp_path):
    """What is loaded within a second draws no bar of its own; what stays on the screen are notes."""
    model = save_checkpoint(tmp_path / "model", "qwen3", max_position_embeddings=512)
    shown = on_terminal(PROGRAMS[main_text], "--model", model, "--prompt", "the cat", "--num-tokens", 40, cwd=tmp_path)
    drawn = re.findall(r"\r([^\r\n]*\S[^\r\n]*)", shown)
    assert len(drawn) > 1
    known = (
        r"Processing layer \d/2\.\.\. \(token \d+ of at most 40\)",
        r"What the answer used: .* of at most 12 forward passes",
    )
    of_each = [[bar for bar in drawn if re.match(one, bar)] for one in known]
    assert all(of_each)
    assert sum(map(len, of_each)) == len(drawn)
    assert [line for line in screen(shown) if line] == [f"Loading model {model} ..."]


def on_terminal(program, *argv, cwd):
    """What a script sends to a terminal on stderr."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = start(program, *argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = []

    def read():
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the script has ended
                return
            if not chunk:
                return
            shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=120) == 0
    reader.join(timeout=10)
    os.close(ours)
    return b"".join(shown).decode()


def screen(shown):
    """The lines that stay on a terminal: carriage return, line feed and cursor up are followed."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\x1b\[[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif not part.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_an_unreachable_hub_is_not_waited_for(refused, monkeypatch):
    """Even one whose name resolution hangs, which no time limit of a request covers."""

    hanging, ended = threading.Event(), []

    class Hanging:
        def model_info(self, *args, **options):
            ended.append(hanging.wait(120))

    monkeypatch.setattr(sources, "HfApi", Hanging)
    monkeypatch.setattr(sources.hub_constants, "HF_HUB_OFFLINE", False)
    line = refused(main_text, "--prompt", "the cat", "--model", "nobody/nothing")
    assert ended == []
    hanging.set()
    assert "the hub does not answer" in line


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("mask_impact.models.loading", "mask_impact.analyses.impact"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("mask_impact.models.loading", raising=False)
    monkeypatch.delattr("mask_impact.analyses.impact", raising=False)
    line = refused(main_text, "--model", "demo", "--prompt", "the cat")
    assert "the Python package transformers is not installed: python -m pip install -r requirements.txt" in line
