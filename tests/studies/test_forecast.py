"""What a study is going to take, against what it took."""

import json

import pytest
from PIL import Image
from studying import sentences, write_config, write_dataset

from mask_impact.analyses.settings import RunSettings
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.models import loading
from mask_impact.prompts.encoding import encode
from mask_impact.prompts.videos import read_visuals
from mask_impact.results.store import load_result


@pytest.fixture
def command(text_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the text script with the tiny model; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = main_text([*argv, "--model", str(text_checkpoint)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def without_weights(monkeypatch):
    monkeypatch.setattr(loading, "_load_weights", lambda *args, **how: pytest.fail("weights are read"), raising=False)
    monkeypatch.setattr(loading, "check_linear", lambda *args, **how: pytest.fail("the model is there"))


@pytest.mark.parametrize("reduce", ["summary", pytest.param("none", marks=pytest.mark.slow)])
def test_the_bytes_of_a_dataset_are_about_what_it_takes(reduce, command, tmp_path):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": f"the cat {'sat ' * 20}{n}"} for n in range(80)])
    argv = ["--dataset", "data.jsonl", "--reduce", reduce, "--num-tokens", "2"]
    code, out, _ = command(*argv, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["n_prompts"], told["n_wrong"], told["n_sampled"]) == (0, 80, 0, 64)
    assert not list((tmp_path / "output").glob("*"))
    assert command(*argv)[0] == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "output" / "data" / "impact").iterdir())
    assert taken / 2.5 < told["n_bytes"] < taken * 2.5


def test_tokens_and_bytes_of_a_configuration_are_those_of_its_results(command, tmp_path):
    write_config(tmp_path / "study.yaml", sentences(4))
    told = json.loads(command("--config", "study.yaml", "--dry-run", "--json")[1])
    assert command("--config", "study.yaml")[0] == 0
    results = [load_result(tmp_path / "output" / f"p{number}_results") for number in range(4)]
    assert told["n_tokens"] == sum(result.n_prompt for result in results) / 4
    tables = [
        path for path in (tmp_path / "output").iterdir() if path.suffix in (".csv", ".json") and "meta" not in path.name
    ]
    taken = sum(path.stat().st_size for path in tables)
    assert taken / 2.5 < told["n_bytes"] < taken * 2.5


def test_what_is_wrong_is_said_without_a_model(command, tmp_path, without_weights):
    rows = [{"prompt": "the cat"}, "no json", {"name": "long", "prompt": "the cat " * 100}, {"prompt": "the mat"}]
    write_dataset(tmp_path / "data.jsonl", rows)
    code, out, _ = command("--dataset", "data.jsonl", "--dry-run")
    assert code == 3
    assert "3 prompts, with 0 images; 2 can't be run:" in out
    assert "row 2: column 1 of the line is no JSON" in out
    assert "long: the prompt has" in out
    assert "forward passes of" in out
    assert "MiB are free" in out


def test_the_cells_of_a_video_are_tokens_too(vl_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "clip" / f"{number}.png")
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the <video> cat", "video": "clip"}])
    argv = ["--dataset", "data.jsonl", "--model", str(vl_checkpoint)]
    assert main_vl([*argv, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    prompt = encode(loading.load(str(vl_checkpoint)), "the <video> cat", read_visuals((), ["clip"], RunSettings()))
    assert (told["n_wrong"], told["n_tokens"]) == (0, prompt.n_tokens)


@pytest.mark.parametrize(("flags", "forwards"), [
    ([], 2), (["--num-tokens", "3"], 4), (["--answer"], 2 + 3 + 12), (["--answer", "--budget", "4"], 2 + 3 + 4),
    (["--effect"], 2 + (3 + 1) / 2), (["--effect", "--window", "all"], 2 + 1),
])  # fmt: skip
def test_forward_passes_are_counted_by_what_is_asked_for(flags, forwards, command, tmp_path):
    """Of a model of L layers: an effect in each layer runs those from it on, L (L + 1) / 2 rows of layers for a token."""
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}])
    told = json.loads(command("--dataset", "data.jsonl", "--dry-run", "--json", *flags)[1])
    assert told["forwards"] == pytest.approx(forwards)
    assert told["all_forwards"] == told["forwards"]


def test_a_share_and_a_limit_are_told_by_themselves(command, tmp_path):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}] * 40)
    for flags, n in ((["--shard", "2/2"], 16), (["--limit", "5"], 5), (["--shard", "1/2", "--limit", "33"], 17)):
        assert json.loads(command("--dataset", "data.jsonl", "--dry-run", "--json", *flags)[1])["n_prompts"] == n
