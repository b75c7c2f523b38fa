"""Answers without some tokens: against full forwards of the model with the edges hidden, and what the script says of them."""

import json
import sys
from pathlib import Path

import effect_oracle
import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_image_inputs, tiny_inputs, tiny_model

import mask_impact
from mask_impact.analyses import without as answers
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.without import hiding
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.engine import taps
from mask_impact.errors import InputError, UsageError
from mask_impact.models import loading
from mask_impact.views.answers import render_whatif

REPOSITORY = Path(__file__).parents[2]
N_STEPS = 4


def answer(model, inputs, positions, layers):
    """Produced ids, and the logits of each step, with positions hidden."""
    logits = []
    handle = model.register_forward_hook(lambda module, args, output: logits.append(output.logits[0, -1].double()))
    try:
        with hiding(model, positions, layers):
            ids = model.generate(**inputs, generation_config=greedy_config(model, N_STEPS))
    finally:
        handle.remove()
    return ids[0, inputs["input_ids"].shape[1] :].tolist(), logits


def assert_agrees(model, inputs, positions, layers):
    ids, logits = answer(model, inputs, positions, layers)
    n_prompt = inputs["input_ids"].shape[1]
    for step, got in enumerate(logits[: len(ids)]):
        expected = effect_oracle.masked_logits(
            model, inputs, ids[:step], layers=layers, queries=range(n_prompt + step), keys=positions
        )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
        assert int(expected.argmax()) == ids[step]
    return ids


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_tokens_are_hidden_from_all_and_stay_so(name):
    """One at the beginning, whose own query sees nothing then, and two more; sliding windows forget some of them."""
    model = tiny_model(name)
    assert_agrees(model, tiny_inputs(model, 9), (0, 4, 5), (0, 1, 2))


def test_only_in_the_layers_that_are_asked_for():
    model = tiny_model("qwen3")
    inputs = tiny_inputs(model, 9)
    assert_agrees(model, inputs, (3,), (1,))
    _, everywhere = answer(model, inputs, (3,), (0, 1, 2))
    _, in_one = answer(model, inputs, (3,), (1,))
    assert not torch.allclose(everywhere[0], in_one[0])


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_image_tokens_too(name):
    model = tiny_model(name)
    inputs = tiny_image_inputs(model)
    positions = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()[:3]
    assert_agrees(model, inputs, positions, (0, 1, 2))


def test_nothing_hidden_is_the_model_to_the_bit_and_it_is_left_as_it_was():
    model = tiny_model("gemma3_text")
    inputs = tiny_inputs(model, 9)
    plain, own = answer(model, inputs, (), (0, 1, 2))
    for positions, layers in (((), (0,)), ((1,), ())):
        ids, logits = answer(model, inputs, positions, layers)
        assert ids == plain
        assert all(torch.equal(one, other) for one, other in zip(logits, own, strict=True))
    answer(model, inputs, (1,), (0,))
    with pytest.raises(RuntimeError, match="in the middle"), hiding(model, (1,), (0,)):
        raise RuntimeError("in the middle")
    again, logits = answer(model, inputs, (), ())
    assert again == plain
    assert all(torch.equal(one, other) for one, other in zip(logits, own, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "mask_impact" not in model.config._attn_implementation


@pytest.mark.parametrize("broken", ["a position too far", "seen again from the second step on"])
def test_a_broken_one_is_told_from_the_model(broken, monkeypatch):
    if broken == "a position too far":
        real_hiding = answers.hiding

        def too_far(model, positions, layers):
            return real_hiding(model, [position + 1 for position in positions], layers)

        monkeypatch.setattr(sys.modules[__name__], "hiding", too_far)
    else:

        def forgetting(mask, number, n_rows, n_keys, window, device):
            visible = taps.each_visible_key(mask, number, n_rows, n_keys, window, device)
            return _Unchangeable(torch.ones(1, n_keys, dtype=torch.bool)) if n_rows == 1 else visible

        class _Unchangeable:
            def __init__(self, tensor):
                self.tensor = tensor

            def clone(self):
                return _Ignoring(self.tensor)

        class _Ignoring(torch.Tensor):
            def __setitem__(self, place, value):
                pass

        monkeypatch.setattr(answers, "each_visible_key", forgetting)
    model = tiny_model("qwen3")
    with pytest.raises(AssertionError):
        assert_agrees(model, tiny_inputs(model, 9), (4,), (0, 1, 2))


@pytest.fixture(scope="module")
def loaded(text_checkpoint):
    return loading.load(str(text_checkpoint), kind="text", device="cpu")


def test_the_api_gives_both_answers(loaded):
    found = mask_impact.without(loaded, "the cat sat on the mat", ["cat", "tokens 0 + mat"], num_tokens=3, raw=True)
    assert [one.positions for one in found.others] == [(1,), (0, 5)]
    assert found.meta["notices"] == []  # all layers have an attention
    inputs = dict(loaded.tokenizer("the cat sat on the mat", return_tensors="pt"))
    for one in (found.answer, *found.others):
        hidden = {"layers": (0, 1, 2), "queries": range(9), "keys": one.positions}
        logits = []
        for step in range(len(one.token_ids)):
            hidden["queries"] = range(6 + step)
            logits.append(effect_oracle.masked_logits(loaded.model, inputs, one.token_ids[:step], **hidden))
        probabilities = torch.log_softmax(torch.stack(logits), dim=-1).exp()
        assert probabilities.argmax(dim=-1).tolist() == list(one.token_ids)
        np.testing.assert_allclose(one.probabilities, probabilities.amax(dim=-1), rtol=1e-4)
        np.testing.assert_allclose(one.probability, float(probabilities[0, found.answer.token_ids[0]]), rtol=1e-4)
        same = [a == b for a, b in zip(one.token_ids, found.answer.token_ids, strict=False)]
        assert one.differs_at == (same.index(False) if False in same else None)


def test_what_can_t_be_hidden_is_one_line(loaded):
    for specs, layers, error, said in (
        (["dog"], None, InputError, "dog"),
        (["the"], None, InputError, "#2"),
        (["text"], None, InputError, "'text' is the whole prompt: nothing would be left to answer to; hide less"),
        (["cat"], [3], UsageError, "layer 3 is not there: the model has layers 0 to 2"),
        (["cat"], -1, UsageError, "layer -1 is not there: the model has layers 0 to 2"),
    ):
        with pytest.raises(error) as caught:
            mask_impact.without(loaded, "the cat sat on the mat", specs, layers=layers, raw=True)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_spec_may_stand_alone_and_wrong_types_are_said(loaded, tmp_path):
    found = mask_impact.without(loaded, "the cat sat on the mat", "cat", num_tokens=2, raw=True)
    assert [one.spec for one in found.others] == ["cat"]
    assert found.save(tmp_path / "w").name == "w.whatif.json"
    assert "without cat (1 token):" in str(found)
    for wrong in ({"specs": [3]}, {"specs": ["cat"], "layers": "0-3"}, {"specs": ["cat"], "layers": [1.5]}):
        with pytest.raises(UsageError):
            mask_impact.without(loaded, "the cat sat", **wrong, raw=True)


# --- the script ---------------------------------------------------------------------------------------------------------


def test_the_demo_without_the_cell_of_the_star(tmp_path, monkeypatch, capsys):
    """The star stands in a cell of its own: without it another colour is the answer; without an empty one the same."""
    monkeypatch.chdir(tmp_path)
    image = str(REPOSITORY / "examples" / "shapes.png")
    argv = ["--model", "demo", "--image", image, "--prompt", "What color is the star?"]
    assert main_vl([*argv, "--without", "star", "--quiet"]) == 0
    content = json.loads((tmp_path / "output" / "vl_masking_results.whatif.json").read_text())
    assert content["layers"] == list(range(36))
    (other,) = content["others"]
    assert (other["without"], other["differs_at"], len(other["positions"])) == ("star", 0, 1)
    assert other["text"] != content["answer"]["text"] == "orange"
    assert main_vl([*argv, "--without", "star", "--without", "color", "--layers", "0-3,7"]) == 0
    out, err = capsys.readouterr()
    assert "PHASE 2: Qwen3-VL Answers Without Some Tokens" in out
    assert "hidden from every query in layers 0-3,7:" in out
    lines = [line.split() for line in out.splitlines()]
    assert next(line[0] for line in lines if line[-1:] == ["orange"]) == "nothing"
    assert "Generating 3 answers ..." in err


def test_both_answers_stand_side_by_side_with_the_first_difference_marked(
    tmp_path, monkeypatch, capsys, text_checkpoint
):
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(text_checkpoint), "--prompt", "the cat sat on the mat", "--raw", "--num-tokens", "5"]
    assert main_text([*argv, "--without", "tokens 1-4", "--output", "w"]) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "output" / "w.whatif.json").read_text())
    (other,) = content["others"]
    marked = [line for line in out.splitlines() if line.endswith("<- differs")]
    assert [int(line.split()[0]) for line in marked] == [other["differs_at"]]
    assert "without tokens 1-4 (4 tokens):" in out


WRONG = [
    (["--without", "cat", "--effect"], "--effect does not go with --without"),
    (["--without", "cat", "--knockout", "default"], "--without does not go with --knockout"),
    (["--layers", "0-2"], "--layers goes with --without"),
    (["--without", "cat", "--layers", "5-2"], "--layers must be numbers and ranges such as 0-35 or 3,5-9, not '5-2'"),
    (["--without", "cat", "--layers", "0-999999999999"], "--layers must be numbers and ranges such as 0-35 or 3,5-9, not "),
    (["--without", "cat", "--max-cost", "5"], "--max-cost does not go with --without"),
    (["--without", "cat", "--layers", "0-99"], "layer 3 is not there: the model has layers 0 to 2"),
    (["--config", "x.yaml", "--without", "cat"], "--without does not go with --config"),
]  # fmt: skip


def test_flags_of_another_mode_are_refused_in_one_line(tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    for argv, said in WRONG:
        prompt = [] if "--config" in argv else ["--prompt", "the cat sat", "--raw", "--quiet"]
        assert main_text(["--model", str(text_checkpoint), *prompt, *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err
        assert not list(tmp_path.glob("output/*"))


def test_what_stands_in_the_prompt_is_written_out(loaded):
    """Nothing of a prompt or a spec acts on the terminal."""
    found = mask_impact.without(loaded, "the cat \x1b[31m sat", ['"\x1b[31m"'], num_tokens=2, raw=True)
    assert 'without "\\x1b[31m"' in render_whatif(found)
    assert "\x1b" not in render_whatif(found)
