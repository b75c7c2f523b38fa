"""`--pixels` of a run: what the command of that name finds with its default settings, stored beside, shown, and known again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mask_impact
from mask_impact.commands.entry import main_vl
from mask_impact.commands.main import main
from mask_impact.results.store import load_result
from mask_impact.results.stored import read_stored

PROMPT = "the cat"
NATS = 1e-5


@pytest.fixture
def argv(vl_checkpoint, tmp_path, monkeypatch):
    """Where a.png lies, and what all commands are given."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save("a.png")
    return ["--image", "a.png", "--model", str(vl_checkpoint), "--output", "x"]


def same(one, other):
    """Whether two results of pixels have the same regions and changes."""
    assert [region.name for region in one.regions] == [region.name for region in other.regions]
    for a, b in zip(one.targets, other.targets, strict=True):
        assert (a.steps, a.found) == (b.steps, b.found)
        np.testing.assert_allclose(a.logprob_change, b.logprob_change, atol=NATS)
    return True


def test_a_run_finds_what_the_command_finds_for_the_answer_s_first_token(argv, vl_checkpoint, capsys):
    assert main(["run", PROMPT, *argv, "--num-tokens", "2", "--pixels", "--plots", "--report", "--no-answer"]) == 0
    out = capsys.readouterr().out
    assert "Pixels replaced, coarse to fine:\n" in out
    files = {path.name for path in Path("output").iterdir()}
    assert {"x.patches.csv", "x.patches.json", "x.patches.meta.json", "x.pixels.png", "x.html"} <= files
    found = read_stored("output/x")["x"].patches
    alone = mask_impact.pixels(str(vl_checkpoint), PROMPT, images="a.png", num_tokens=1)
    assert same(found, alone)
    assert found.targets[0].steps == (0,)
    assert "regions, " in (Path("output") / "x.html").read_text()
    assert load_result("output/x").patches.meta["command"].startswith("mask-impact run")


def test_a_run_s_own_target_is_asked_about_by_the_script_too(argv, vl_checkpoint, capsys):
    assert main_vl(["--prompt", PROMPT, *argv, "--num-tokens", "2", "--pixels", "--target", "0-1", "--json"]) == 0
    (target,) = json.loads(capsys.readouterr().out)["pixels"]
    assert target["steps"] == [0, 1]
    alone = mask_impact.pixels(str(vl_checkpoint), PROMPT, images="a.png", num_tokens=2, target="0-1")
    how = {"images": "a.png", "num_tokens": 2, "target": "0-1", "answer": False}
    result = mask_impact.analyze(str(vl_checkpoint), PROMPT, pixels=True, **how)
    assert same(result.patches, alone)
    assert isinstance(result.patches, mask_impact.PatchEffects)
    result.save("output/y")
    assert same(load_result("output/y").patches, alone)


def test_pixels_without_an_image_and_of_other_models_are_refused_before_weights(argv, text_checkpoint, capsys):
    assert main(["run", PROMPT, *argv[2:], "--pixels"]) == 2
    assert (
        "--pixels replaces those of an image or a video: give --image FILE or --video FILE" in capsys.readouterr().err
    )
    assert main(["run", PROMPT, "--image", "a.png", "--model", str(text_checkpoint), "--pixels"]) != 0
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


def test_later_pixels_of_another_question_take_the_place_of_a_run_s(argv):
    assert main(["run", PROMPT, *argv, "--pixels", "--no-answer"]) == 0
    assert main(["pixels", PROMPT, *argv, "--num-tokens", "1", "--by", "tokens"]) == 0
    assert load_result("output/x").patches is None
    assert len(read_stored("output/x")["x"].patches.regions) == 6
