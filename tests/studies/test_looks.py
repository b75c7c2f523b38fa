"""What a study asks about images besides: pixels, parts of features, the tower, against the same questions by themselves."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from studying import study_files, write_dataset

from mask_impact.analyses import deepstack, pixels
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import PICTURES, RunSettings
from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_vl
from mask_impact.models import loading
from mask_impact.prompts.images import read_pictures
from mask_impact.prompts.videos import read_visuals
from mask_impact.results.deepstack_files import deepstack_table, load_deepstack
from mask_impact.results.patch_files import patch_table
from mask_impact.studies.digest import digest
from mask_impact.studies.jobs import Job
from mask_impact.studies.looks import LOOKS, forwards_of, look, plans
from mask_impact.studies.manifest import read_manifest

ROWS = [
    {"name": "a", "prompt": "the cat", "image": "one.png", "kind": "x"},
    {"name": "b", "prompt": "the mat"},
    {"name": "c", "prompt": "the house", "image": "two.png", "kind": "y"},
]


@pytest.fixture
def study(tmp_path, monkeypatch, capsys, vl_checkpoint):
    """Runs `mask-impact study` on data.jsonl, or a configuration of the same prompts, with the tiny model."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("one", "two")):
        noise = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{name}.png")
    write_dataset(tmp_path / "data.jsonl", ROWS)
    prompts = [
        {("image_path" if key == "image" else key): value for key, value in row.items() if key != "kind"}
        for row in ROWS
    ]
    Path("data.yaml").write_text(yaml.safe_dump({"prompts": prompts}))

    def call(*argv, file="data.jsonl", model=vl_checkpoint):
        code = main(["study", file, "--model", str(model), *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_each_prompt_has_the_rows_that_its_question_has_by_itself(study, vl_checkpoint):
    code, out, _ = study(
        "--pixels", "--by", "tokens", "--fills", "mean", "--deepstack", "--baseline", "mean", "--tower"
    )
    assert code == 0
    assert "1 prompt without deepstack: the prompt has no image; give one" in out
    loaded = loading.load(str(vl_checkpoint))
    pictures = read_pictures(["two.png"])
    alone = {
        "patches": patch_table(
            pixels.run(loaded, "the house", pixels.Question(("mean",), "tokens"), RunSettings(), pictures)
        ),
        "deepstack": deepstack_table(
            deepstack.run(loaded, "the house", deepstack.Question("image", "mean"), RunSettings(), pictures)
        ),
    }
    for name, table in alone.items():
        frame = pd.read_parquet(f"output/data/{name}")
        assert frame.prompt_name.unique().tolist() == ["a", "c"]
        assert json.loads(frame.carried.iloc[0]) == {"kind": "x"}
        own = frame[frame.prompt_name == "c"][table.column_names].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, table.to_pandas(), check_dtype=False, check_categorical=False, rtol=1e-4)
        other = frame[frame.prompt_name == "a"].logprob_change.to_numpy()
        assert not np.allclose(other, table["logprob_change"].to_numpy(), rtol=1e-4)
    assert {"tower", "tower_effects"} <= {
        path.parent.name for path in Path("output/data").glob("*/part-000000.parquet")
    }
    prompts = pd.read_parquet("output/data/prompts").set_index("prompt_name")
    assert {*json.loads(prompts.left_out["b"])} == {*PICTURES}
    assert (prompts.left_out["a"], bool((prompts.seconds > 0).all())) == ("", True)
    manifest = read_manifest(Path("output/data"))
    assert (manifest["complete"], manifest["n_prompts"]) == (True, 3)
    for table, about in manifest["tables"].items():
        assert [*about["columns"]] == pq.read_schema(f"output/data/{table}/part-000000.parquet").names
    assert manifest["settings"]["by"] == "tokens"


def test_resuming_knows_what_was_asked_and_takes_away_what_is_not_asked_any_more(study):
    argv = ("--deepstack", "--baseline", "zero")
    study(*argv)
    before = study_files("output/data")
    assert "0 written; 3 were there already" in study(*argv, "--resume")[1]
    Path("output/data/deepstack/part-000000.parquet").unlink()
    _, out, err = study(*argv, "--resume")
    assert ": 3 written" in out
    assert "its table deepstack is not there" in err
    assert study_files("output/data") == before
    _, out, err = study("--deepstack", "--baseline", "mean", "--resume")
    assert ": 3 written" in out
    assert "baseline was zero, is mean" in err
    study("--resume")
    assert sorted(study_files("output/data")) == ["impact/part-000000.parquet", "prompts/part-000000.parquet"]


def test_a_script_s_configuration_writes_the_files_of_the_single_commands_and_knows_them_again(
    study, vl_checkpoint, capsys
):
    argv = ["--config", "data.yaml", "--model", str(vl_checkpoint), "--deepstack", "--pixels"]
    assert main_vl(argv) == 0
    assert "1 prompt without pixels: the prompt has no image; give one" in capsys.readouterr().out
    found = load_deepstack("output/c_results")
    assert (found.answers, len(found.targets[0].shapley)) == ({}, len(found.parts))
    notices = json.loads(Path("output/b_results.meta.json").read_text())["run"]["notices"]
    assert "No deepstack: the prompt has no image; give one" in notices
    assert main_vl([*argv, "--resume"]) == 0
    assert "3 were there already" in capsys.readouterr().out
    Path("output/c_results.patches.csv").unlink()
    assert main_vl([*argv, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "1 written; 2 were there already" in captured.out
    assert "c_results.patches.csv is not there" in captured.err


def test_videos_are_asked_about_too(study, vl_checkpoint, tmp_path):
    noise = np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save("film.gif", save_all=True, append_images=others, duration=500)
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat", "video": "film.gif"}])
    code, out, err = study("--pixels", "--by", "tokens", "--deepstack", "--tower", "-n", "1")
    assert (code, "failed" in out, "without" in out) == (0, False, False), out + err
    table = pd.concat(map(pd.read_parquet, Path("output/data/patches").glob("part-*.parquet")))
    loaded, settings = loading.load(str(vl_checkpoint)), RunSettings(num_tokens=1, pixels=True, by="tokens")
    films = read_visuals((), ("film.gif",), settings)
    alone = pixels.run(loaded, "the cat", LOOKS["pixels"].question(settings), settings, films)
    assert len(alone.images) == 2
    np.testing.assert_array_equal(table["logprob_change"], patch_table(alone)["logprob_change"])


def test_a_model_without_such_an_eye_is_one_line_and_no_failure(study, text_checkpoint, tmp_path):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}, {"prompt": "the mat"}])
    code, out, _ = study("--deepstack", model=text_checkpoint)
    assert code == 0
    assert out.count("without deepstack") == 1
    assert "2 prompts without deepstack: " in out
    assert "has no DeepStack" in out


def test_a_dry_run_counts_about_what_is_run(study, vl_checkpoint):
    argv = ("--pixels", "--by", "tokens", "--deepstack")
    plain = json.loads(study("--dry-run", "--json")[1])
    told = json.loads(study(*argv, "--dry-run", "--json")[1])
    assert [*told["left_out"].values()] == [1, 1]
    loaded, pictures = loading.load(str(vl_checkpoint)), read_pictures(["one.png"])
    settings = RunSettings(pixels=True, by="tokens", deepstack=True)
    taken = sum(
        LOOKS[name].analysis.run(loaded, "the cat", LOOKS[name].question(settings), settings, pictures).forwards
        for name in ("pixels", "deepstack")
    )
    more = (told["all_forwards"] - plain["all_forwards"]) / 2
    assert taken / 1.5 < more < taken * 1.5


def layers_counted(loaded, monkeypatch):
    """[rows through decoder layers, through the tower's as many as have their weights] of all that runs from here on."""
    counted = np.zeros(2)
    layers = (loaded.model.model.language_model.layers[0], loaded.model.model.visual.blocks[0])
    weights = [sum(one.numel() for one in layer.parameters() if one.dim() == 2) for layer in layers]
    for place, own in enumerate([type(layer).forward for layer in layers]):

        def forward(self, states, *args, place=place, own=own, **kwargs):
            counted[place] += states.shape[:-1].numel() * weights[place] / weights[0]
            return own(self, states, *args, **kwargs)

        monkeypatch.setattr(type(layers[place]), "forward", forward)
    return counted


@pytest.mark.parametrize("asked", [
    {"pixels": True, "by": "tokens"}, {"pixels": True, "split": True, "num_tokens": 2},
    {"tower": True}, {"tower": True, "by": "tokens"},
], ids=str)  # fmt: skip
def test_a_forecast_is_that_of_the_tokens_that_go_through_layers(asked, vl_checkpoint, tmp_path, monkeypatch):
    """Of a prompt whose image comes late: what stands before it runs once. An estimate's backward pass is as one forward."""
    noise = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "late.png")
    loaded, settings = loading.load(str(vl_checkpoint)), RunSettings(**{"num_tokens": 1} | asked)
    prompt = "the cat sat on the mat and the mat sat on the cat <image> the mat"
    prepared = prepare(loaded, prompt, settings, read_pictures([str(tmp_path / "late.png")]))
    look(loaded, prepared, None)  # the first time, layers are proven
    counted = layers_counted(loaded, monkeypatch)
    loaded.model(**prepared.encoded.inputs)
    forward = counted.sum()
    counted[:] = 0
    look(loaded, prepared, None)
    n_backward = "pixels" in asked and "by" not in asked
    taken = counted.sum() / forward + n_backward
    assert forwards_of(loaded, prepared) == pytest.approx(taken, rel=0.15)
    if "tokens" in asked.values():
        (plan,) = plans(loaded, prepared)[0].values()
        assert plan.most_runs() > 1.15 * taken  # each variant as a whole pass


@pytest.mark.parametrize(("flags", "said"), [
    (["--by", "tokens"], "--by goes with --pixels or --tower"),
    (["--baseline", "mean"], "--baseline goes with --deepstack"),
    (["--target", "all"], "--target is about what the answer used"),
])  # fmt: skip
def test_settings_of_what_is_not_asked_are_refused(flags, said, study):
    code, _, err = study(*flags)
    assert code == 2
    assert said in err


def test_settings_of_images_are_of_a_digest_where_they_matter_and_only_there(vl_checkpoint):
    loaded = loading.load(str(vl_checkpoint))

    def of(**settings):
        return digest(loaded, Job("a", "the cat", (), RunSettings(**settings), {}))

    assert of() == of(by="tokens") == of(region="image 0 rows 0") == of(target="all")
    assert len({of(), of(pixels=True), of(tower=True), of(deepstack=True), of(pixels=True, by="tokens")}) == 5
    assert of(deepstack=True) != of(deepstack=True, target="all")
    assert of(deepstack=True) == of(deepstack=True, by="tokens")
