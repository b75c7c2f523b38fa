"""Flows that are cut: against full forwards of the model with these edges hidden; files, picture and page of text."""

import json
from pathlib import Path

import effect_oracle
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mask_impact
from mask_impact.analyses import knockout as knockouts
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.engine.variants import Masks
from mask_impact.errors import InputError, UsageError
from mask_impact.models import loading
from mask_impact.prompts.group_files import FlowSet
from mask_impact.results.flow_files import FLOW_COLUMNS
from mask_impact.results.flows import Flow
from mask_impact.views.flows import flows_figure

PROMPT = "the cat sat on the mat"
FLOWS = [("cat", "last"), ("tokens 0-2", "on + mat"), ("sat", "tokens 2-5")]
REPOSITORY = Path(__file__).parents[2]
N_STEPS = 2


@pytest.fixture(scope="module")
def loaded(text_checkpoint):
    return loading.load(str(text_checkpoint), kind="text", device="cpu")


def expected_changes(loaded, found, one, first, last, step):
    """[logprob_change, kl_divergence] by the oracle."""
    inputs = dict(loaded.tokenizer(PROMPT, return_tensors="pt"))
    ids = [entry.token_id for entry in found.steps]
    length = inputs["input_ids"].shape[1] + step
    queries = (length - 1,) if one.target is None else one.target
    duplicate = effect_oracle.computing_copy(loaded.model)
    uncut = effect_oracle.all_logits(duplicate, inputs, ids[:step], effect_oracle.NO_EDGES)[-1]
    edges = effect_oracle.Edges(
        tuple(range(first, last + 1)), queries, one.source, one.flow.heads, found.meta["ablation"]
    )
    cut = effect_oracle.all_logits(duplicate, inputs, ids[:step], edges)[-1]
    effect = effect_oracle.effect(uncut, cut, ids[step])
    return effect["logprob_change"], effect["kl_divergence"]


def assert_agrees(loaded, found):
    for step in found.steps:
        for number, one in enumerate(found.flows):
            for layer, (first, last) in enumerate(zip(found.first.tolist(), found.last.tolist(), strict=True)):
                change, kl = expected_changes(loaded, found, one, first, last, step.step)
                np.testing.assert_allclose(step.logprob_change[number, layer], change, rtol=1e-3, atol=1e-5)
                np.testing.assert_allclose(step.kl_divergence[number, layer], kl, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("ablation", ["mask", "zero-value"])
def test_flows_agree_with_the_oracle(loaded, ablation):
    """To the last query and to queries before it, in windows, at the first step and one with a KV cache."""
    found = mask_impact.knockout(loaded, PROMPT, FLOWS, window=2, num_tokens=N_STEPS, raw=True, ablation=ablation)
    assert [(one.source, one.target) for one in found.flows] == [
        ((1,), None), ((0, 1, 2), (3, 5)), ((2,), (2, 3, 4, 5)),
    ]  # fmt: skip
    assert (found.first.tolist(), found.last.tolist()) == ([0, 1, 2], [1, 2, 2])
    assert len(found.steps) == N_STEPS
    assert_agrees(loaded, found)
    effect = found.steps[0]
    np.testing.assert_allclose(effect.relative_change, np.exp(effect.logprob_change.astype(float)) - 1, rtol=1e-6)


def test_flows_in_some_heads_agree_with_the_oracle(loaded):
    flows = FlowSet(1, (Flow("a", "cat", "last", (0, 3)), Flow("b", "cat", "last"), Flow("c", "sat", "mat", (1,))))
    found = mask_impact.knockout(loaded, PROMPT, flows, raw=True)
    assert found.meta["window"] == 1
    assert_agrees(loaded, found)


def test_a_flow_to_the_wrong_query_is_told_from_the_model(loaded, monkeypatch):
    def last_alone(keys, queries, heads, ablation):
        return Masks(keys, None, heads, ablation)

    monkeypatch.setattr(knockouts, "Masks", last_alone)
    with pytest.raises(AssertionError):
        assert_agrees(loaded, mask_impact.knockout(loaded, PROMPT, FLOWS[1:], window=2, raw=True))


@pytest.mark.slow
def test_an_image_s_flows_are_the_default_ones(tmp_path, monkeypatch, capsys):
    """And the demo reads the picture where the question stands, not at the end."""
    monkeypatch.chdir(tmp_path)
    image = str(REPOSITORY / "examples" / "shapes.png")
    argv = ["--model", "demo", "--image", image, "--prompt", "What color is the star?", "--knockout", "default"]
    assert main_vl([*argv, "--formats", "csv,json,parquet"]) == 0
    out, err = capsys.readouterr()
    assert "PHASE 2: Qwen3-VL Attention Knockouts" in out
    assert "with a flow cut in 9 layers around a layer (mask):" in out
    stem = "output/vl_masking_results.flows"
    frames = [pd.read_csv(f"{stem}.csv"), pd.read_json(f"{stem}.json"), pd.read_parquet(f"{stem}.parquet")]
    for frame in frames:
        assert list(frame.columns) == list(FLOW_COLUMNS)
        assert frame.flow.drop_duplicates().tolist() == ["image -> question", "image -> last", "question -> last"]
        assert len(frame) == 3 * 36
        np.testing.assert_allclose(frame.relative_change, frames[0].relative_change, rtol=1e-6)
        np.testing.assert_allclose(frame.probability_masked, frame.probability * (1 + frame.relative_change), rtol=1e-6)
        assert ((frame.top1_token != "orange") == frame.top1_changed).all()
    worst = frames[0].groupby("flow").relative_change.min()
    assert worst["image -> question"] < worst["image -> last"]
    meta = json.loads((tmp_path / f"{stem}.meta.json").read_text())
    assert [len(one["source_positions"]) for one in meta["flows"]] == [16, 16, 6]
    assert meta["run"]["window"] == 9
    assert meta["steps"][0]["floor"][0] < 0.05
    with Image.open(f"{stem}.png") as picture:
        assert picture.size[0] > 1000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert "Effect on the answer (token 1 of at most 1): 108 to measure" in err


def test_the_picture_has_the_lines_that_the_table_has(loaded):
    found = mask_impact.knockout(loaded, PROMPT, FLOWS, window=2, num_tokens=N_STEPS, raw=True)
    figure = flows_figure(found)
    assert len(figure.axes) == N_STEPS
    for axes, step in zip(figure.axes, found.steps, strict=True):
        lines = axes.get_lines()[: len(FLOWS)]
        for line, values in zip(lines, step.relative_change, strict=True):
            np.testing.assert_allclose(line.get_ydata(), 100 * values)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [one.flow.name for one in found.flows]


def test_the_api_gives_table_files_and_text(loaded, tmp_path):
    found = mask_impact.knockout(loaded, PROMPT, [Flow("f", "cat", "last"), ("sat", "mat")], window=2, raw=True)
    frame = found.to_frame()
    np.testing.assert_allclose(frame.logprob_change, found.steps[0].logprob_change.reshape(-1))
    paths = found.save(tmp_path / "k", formats="parquet")
    assert sorted(path.name for path in paths) == ["k.flows.meta.json", "k.flows.parquet", "k.flows.png"]
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), frame)
    assert "with a flow cut in 2 layers around a layer (mask):" in str(found)
    meta = json.loads((tmp_path / "k.flows.meta.json").read_text())["run"]
    assert {"versions", "date", "device", "attention_backend", "notices"} <= set(meta)


def test_a_file_s_flows_and_window(loaded, text_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows.yaml").write_text(
        "window: 2\nflows:\n  - {source: cat, target: last}\n  - {name: $x_1^2$ \\e, source: sat, target: mat}\n"
    )
    argv = ["--model", str(text_checkpoint), "--prompt", PROMPT, "--raw", "--knockout", "flows.yaml", "--output", "f"]
    assert main_text(argv) == 0
    assert "2 layers around a layer" in capsys.readouterr().out
    frame = pd.read_csv("output/f.flows.csv")
    assert frame.flow.drop_duplicates().tolist() == ["cat -> last", "$x_1^2$ \\e"]
    assert frame.last_layer.tolist()[:3] == [1, 2, 2]
    assert main_text([*argv, "--window", "1"]) == 0
    assert pd.read_csv("output/f.flows.csv").last_layer.tolist()[:3] == [0, 1, 2]


A_FLOW_IS = "a flow is 'source -> target', a (source, target) pair of text, or a Flow"
CANNOT_FLOW = [
    ([("mat", "cat")], InputError, "flow 'mat -> cat' is empty by causality: every token of its source stands behind every "),
    ([("dog", "last")], InputError, "flow 'dog -> last': "),
    ([("text", "mat")], InputError, "flow 'text -> mat' leaves its target nothing to see; hide less"),
    ([("last", "last")], InputError, "flow 'last -> last' leaves its target nothing to see; hide less"),
    ("default", UsageError, "a flow is 'source -> target', such as 'image -> last', not 'default'"),
    ("cat -> ", UsageError, "a flow is 'source -> target', such as 'image -> last', not 'cat -> '"),
    ([("a", "b", "c")], UsageError, f"{A_FLOW_IS}, not ('a', 'b', 'c')"),
    ([("a", 3)], UsageError, f"{A_FLOW_IS}, not ('a', 3)"),
    (3, UsageError, f"{A_FLOW_IS}, not 3"),
    (FlowSet(9, (Flow("x", "cat", "last", (-1,)),)), UsageError, "head -1 is not there"),
    (FlowSet(8, (Flow("x", "cat", "last"),)), UsageError, "a window of 8 layers does not fit: the model has 3"),
    (FlowSet(9, (Flow("x", "cat", "last", (4,)),)), UsageError, "flow 'x': head 4 is not there: the model has heads 0 to 3"),
]  # fmt: skip


def test_what_can_t_flow_is_one_line(loaded):
    for flows, error, said in CANNOT_FLOW:
        with pytest.raises(error) as caught:
            mask_impact.knockout(loaded, PROMPT, flows, raw=True)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


WRONG = [
    (["--knockout", "nowhere.yaml"], 1, "nowhere.yaml"),
    (["--knockout", "default", "--window", "4"], 2, "a window of 4 layers does not fit: the model has 3"),
    (["--knockout", "default", "--window", "all"], 2, "a knockout slides a window over the depth: give it a number of layers"),
    (["--knockout", "default", "--max-cost", "3"], 2, "with --max-cost "),
    (["--knockout", "default", "--batch-size", "3"], 2, "--batch-size does not go with --knockout"),
    (["--knockout", "default", "--report"], 2, "--report does not go with --knockout"),
    (["--knockout", "default", "--dataset", "x.jsonl"], 2, "--knockout does not go with --dataset"),
]  # fmt: skip


def test_wrong_flags_are_one_line(tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    for argv, code, said in WRONG:
        prompt = [] if "--dataset" in argv else ["--prompt", PROMPT, "--raw", "--quiet"]
        assert main_text(["--model", str(text_checkpoint), *prompt, *argv]) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err
        assert not list(tmp_path.glob("output/*"))


def test_the_model_is_as_it_was(loaded):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    mask_impact.knockout(loaded, PROMPT, FLOWS, window=2, raw=True)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


def test_the_last_query_goes_on_seeing_itself(loaded):
    """A prompt without a chat template is all question."""
    found = mask_impact.knockout(loaded, PROMPT, raw=True, num_tokens=2)
    (flow,) = found.flows
    assert (flow.flow.name, flow.source, flow.target) == ("question -> last", (0, 1, 2, 3, 4), None)
    assert_agrees(loaded, found)
