"""Models of which some layers have no softmax attention (linear attention, state space, convolution, experts alone).

The others are measured: against brute force, under the model's own numbers, through analyze, files and back.
"""

import json
from dataclasses import replace

import family_oracle
import numpy as np
import pytest
import torch
from checkpoints import CHATML, make_tokenizer
from family_models import build, family_config, family_inputs, family_model
from marks import pairs_of, slow_but
from samples import assert_same
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache

import mask_impact
from mask_impact.analyses.impact import run_together
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.commands.main import main
from mask_impact.engine.riding import engine as riding_engine
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import Layers
from mask_impact.errors import UnsupportedArchitecture, UsageError
from mask_impact.models import loading
from mask_impact.studies.batching import group_prompts
from mask_impact.views.tables import top_table

N_TOKENS = 3
MEASURED, N_LAYERS = (1, 3), 5
LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention", "linear_attention"]
# The first and the last layer have no attention, and one between those that have.
OTHER = {name: {"num_hidden_layers": N_LAYERS} for name in ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "lfm2")}
OTHER |= {"nemotron_h": {"layers_block_type": [LINEAR[0], LINEAR[1], "moe", LINEAR[1], LINEAR[0]]}}
for name, more in OTHER.items():
    if name != "nemotron_h":
        more["layer_types"] = [kind.replace("linear_attention", "conv") if name == "lfm2" else kind for kind in LINEAR]
OTHER["nemotron_h"] |= {"num_hidden_layers": N_LAYERS}
SAID = {
    "lfm2": "Layers 0, 2, 4 have no softmax attention (convolution): nothing can be hidden there",
    "nemotron_h": "Layers 0, 2, 4 have no softmax attention (0, 4: linear attention; 2: mixture of experts): "
    "nothing can be hidden there",
}
WAYS = [(name, *way) for name in OTHER for way in (("float32", "sdpa"), ("float64", "eager"))] + [
    ("lfm2", "float64", "sdpa")
]
USUAL = [("qwen3_next", "float32", "sdpa"), ("nemotron_h", "float64", "eager"), ("lfm2", "float64", "sdpa")]


def hybrid(name, dtype="float32", backend="eager"):
    model = family_model(name, dtype=getattr(torch, dtype), **OTHER[name])
    model.set_attn_implementation(backend)
    return loading.wrap(model, make_tokenizer(CHATML), name=name)


@pytest.fixture(scope="module")
def nemotron():
    return hybrid("nemotron_h")


@pytest.fixture(scope="module")
def measured(nemotron):
    """A result of two tokens."""
    return mask_impact.analyze(nemotron, family_inputs(nemotron.model), num_tokens=2)


def largest_error(result, step, expected):
    """Of Full, Attn and heads, relative to what brute force has of each layer; infinite where other layers have numbers."""
    found = [
        family_oracle.Distances(layer[:, 0], layer[:, 1], layer[:, 2:].T) if np.isfinite(layer).all() else None
        for layer in result.steps[step].l2.astype(np.float64)
    ]
    return family_oracle.largest_error(found, expected, small=1e-3)


@pytest.mark.parametrize("way", slow_but(USUAL, WAYS), ids=str)
def test_layers_with_an_attention_are_measured_under_their_own_numbers(way):
    """In the prompt's pass and where states are held, against really hiding in a pass without a cache."""
    name, dtype, backend = way
    loaded = hybrid(name, dtype, backend)
    inputs = family_inputs(loaded.model)
    if dtype == "float64":
        with family_oracle.in_float64():
            result = mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)
            ids = loaded.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)
    else:
        result = mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)
        ids = loaded.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)
    ids = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert [step.token_id for step in result.steps] == ids
    assert (result.layers, result.n_layers) == (MEASURED, N_LAYERS)
    for step in (0, N_TOKENS - 1):
        expected = family_oracle.measure(loaded.model, inputs, ids[:step])
        assert largest_error(result, step, expected) < (1e-8 if dtype == "float64" else 1e-3)
        assert result.steps[step].positions.tolist() == list(range(inputs["input_ids"].shape[1] + step))


@pytest.mark.parametrize("numbers", [(0, 1), (3, 1), (2, 3)])
def test_numbers_of_other_layers_are_rejected(numbers, nemotron, monkeypatch):
    """Rows in the order of their calls, rows exchanged, a row under a neighbour's number."""
    inputs = family_inputs(nemotron.model)
    expected = family_oracle.measure(nemotron.model, inputs)
    own = Layers.with_attention

    def broken(self, found):
        right = own(self, found)
        return type(right)(numbers, right.n_layers, right.others)

    monkeypatch.setattr(Layers, "with_attention", broken)
    result = mask_impact.analyze(nemotron, inputs, num_tokens=1, answer=False)
    assert largest_error(result, 0, expected) > 0.1


# --- what is said, and kept ---------------------------------------------------------------------------------------------------


def test_nothing_is_said_to_be_zero_where_nothing_was_measured(measured):
    others = [layer for layer in range(N_LAYERS) if layer not in MEASURED]
    for step in measured.steps:
        for name in ("l2", "cosine", "baseline_norm", "self_check", "noise_floor"):
            assert np.isnan(getattr(step, name)[others]).all(), name
        assert np.isfinite(step.l2[list(MEASURED)]).all()
        assert step.attention.sum() == pytest.approx(1, abs=1e-5)
    assert {*measured.to_frame().layer} == {*MEASURED}


@pytest.mark.parametrize("name", slow_but(["nemotron_h"], SAID))
def test_the_other_layers_are_named_with_their_kind(name, nemotron):
    loaded = nemotron if name == "nemotron_h" else hybrid(name)
    result = mask_impact.analyze(loaded, family_inputs(loaded.model), num_tokens=1)
    assert SAID[name] in result.meta["notices"]
    text = " ".join(str(result).split())
    assert f"Note: {SAID[name]}" in text
    assert "2 of 5 layers" in text


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_files_hold_rows_of_measured_layers_and_are_read_back(form, measured, tmp_path):
    measured.save(tmp_path / "result", formats=form)
    meta = json.loads((tmp_path / "result.meta.json").read_text(encoding="utf-8"))
    assert (meta["layers"], meta["n_layers"], meta["n_rows"]) == ([*MEASURED], N_LAYERS, len(measured.to_frame()))
    again = mask_impact.load_result(tmp_path / "result")
    assert again.layers == MEASURED
    assert_same(replace(again, answer=None), replace(measured, answer=None))
    if form == "csv":
        rows = (tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert [int(row.split(",")[1]) for row in rows] == measured.to_frame().layer.tolist()


def test_the_command_line_measures_compares_and_shows_such_a_checkpoint(tmp_path, capsys):
    for name, more in (("lfm2", OTHER["lfm2"]), ("qwen3", {})):
        folder = tmp_path / name
        build(family_config(name, vocab_size=320, **more), MODEL_FOR_CAUSAL_LM_MAPPING).save_pretrained(folder)
        make_tokenizer(CHATML).save_pretrained(folder)
        argv = ["run", "the cat", "-m", str(folder), "-n", "2", "--output-dir", str(tmp_path / "out" / name)]
        assert main([*argv, "--report", "--plots"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["models", str(tmp_path / "lfm2")]) == 0
    assert SAID["lfm2"] in " ".join(capsys.readouterr().out.split())
    full, hybrid = (tmp_path / "out" / name / "result" for name in ("qwen3", "lfm2"))
    assert {"result.html", "result.layers.png", "result.csv"} <= {one.name for one in hybrid.parent.iterdir()}
    assert SAID["lfm2"] in hybrid.with_suffix(".html").read_text(encoding="utf-8")
    assert main(["compare", str(full), str(hybrid), "--output", str(tmp_path / "side.html")]) == 0
    said = capsys.readouterr()
    assert SAID["lfm2"] in said.err
    assert "2 of 5 layers" in said.out
    assert {row[1] for row in top_table(mask_impact.load_result(hybrid), "layer").rows} == {*MEASURED}


# --- the model's own states ---------------------------------------------------------------------------------------------------


def states_of(cache):
    """Every tensor that a cache holds, by layer and name."""
    found = {}
    for number, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            many = value if isinstance(value, dict) else {0: value}
            found |= {(number, name, at): one.clone() for at, one in many.items() if isinstance(one, torch.Tensor)}
    return found


def caches_after(model, inputs, engine_at):
    """The states after the prompt and after two further tokens; engine_at: at which of these passes an engine is there."""
    cache, found = DynamicCache(config=model.config), []
    passes = [inputs["input_ids"], torch.tensor([[7]]), torch.tensor([[9]])]
    for number, ids in enumerate(passes):
        given = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        with torch.no_grad():
            if number in engine_at:
                with RidingEngine(model) as engine:
                    model(**given)
                assert len(engine.steps[0].positions) == inputs["input_ids"].shape[1] + number
            else:
                model(**given)
        found.append(states_of(cache))
    return found


def differ(one, other):
    """By more than rounding: where one row is computed, those of the differences may stand beside it in a product."""

    def same(found, wanted):
        return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())

    return any(
        step.keys() != wanted.keys() or not all(same(step[key], wanted[key]) for key in wanted)
        for step, wanted in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("name", "engine_at"), pairs_of(OTHER, ((0, 1), (1,)), ("nemotron_h", "lfm2"), (0,)))
def test_the_probe_leaves_the_models_own_states_alone(name, engine_at):
    model = hybrid(name).model
    inputs = family_inputs(model)
    own = caches_after(model, inputs, ())
    assert len(own[0]) >= 2 * len(MEASURED)
    assert not differ(caches_after(model, inputs, engine_at), own)


def test_a_probe_that_runs_on_the_models_own_states_is_rejected(monkeypatch):
    model = hybrid("lfm2", backend="sdpa").model
    inputs = family_inputs(model)
    own = caches_after(model, inputs, ())
    monkeypatch.setattr(riding_engine, "snapshot", lambda args, kwargs: (args, kwargs))
    monkeypatch.setattr("mask_impact.engine.riding.probe.snapshot", lambda args, kwargs: (args, kwargs))
    assert differ(caches_after(model, inputs, (1,)), own)


# --- several prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(["lfm2"], OTHER))
def test_prompts_of_one_length_share_passes_and_others_do_not(name):
    loaded = hybrid(name)
    inputs = [family_inputs(loaded.model, n_tokens=n, seed=seed) for seed, n in enumerate((5, 8, 5))]
    prompts = [prepare(loaded, one, RunSettings(num_tokens=2)) for one in inputs]
    assert group_prompts(loaded.model, prompts) == [[0, 2], [1]]
    for prompt, found in zip(inputs, mask_impact.analyze_many(loaded, inputs, num_tokens=2, answer=False), strict=True):
        alone = mask_impact.analyze(loaded, prompt, num_tokens=2, answer=False)
        assert [step.token_id for step in found.steps] == [step.token_id for step in alone.steps]
        for one, other in zip(found.steps, alone.steps, strict=True):
            np.testing.assert_allclose(one.l2, other.l2, rtol=1e-4, atol=1e-4 * np.nanmax(other.l2))


def test_padding_would_be_text_to_a_convolution_with_a_bias():
    """Why lengths are not mixed: in other configurations of the same families a padded prompt has other numbers."""
    model = family_model("lfm2", conv_bias=True, **OTHER["lfm2"])
    loaded = loading.wrap(model, make_tokenizer(CHATML), name="lfm2")
    prompts = [prepare(loaded, family_inputs(model, n_tokens=n), RunSettings(num_tokens=1)) for n in (4, 9)]
    padded, alone = run_together(loaded, prompts)[0], run_together(loaded, prompts[:1])[0]
    assert np.nanmax(abs(padded.steps[0].l2 - alone.steps[0].l2)) > 1e-2 * np.nanmax(alone.steps[0].l2)


# --- answers without some tokens ----------------------------------------------------------------------------------------------


def hidden_by_masks(model, inputs, position, layers, num_tokens):
    """Greedy ids and probabilities with a key at the lowest number of the dtype in the masks that attentions are given."""

    def mask_it(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[..., position] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    oracle = family_oracle.Oracle(model)
    oracle.logits(inputs)
    names = {module: name for name, module in oracle.model.named_modules()}
    handles = [
        model.get_submodule(names[module]).register_forward_pre_hook(mask_it, with_kwargs=True)
        for layer in layers
        for module in oracle.attentions[layer]
    ]
    try:
        found = model.generate(
            **inputs, max_new_tokens=num_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    finally:
        for handle in handles:
            handle.remove()
    ids = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, [float(one[0].double().softmax(-1)[token]) for one, token in zip(found.logits, ids, strict=True)]


@pytest.mark.parametrize(("name", "layers"), pairs_of(OTHER, (None, [3], [2, 3, 4]), ("nemotron_h",), (0,)))
def test_tokens_are_hidden_in_the_layers_that_have_an_attention(name, layers, nemotron):
    loaded = nemotron if name == "nemotron_h" else hybrid(name)
    inputs = family_inputs(loaded.model)
    found = mask_impact.without(loaded, inputs, "tokens 3", layers=layers, num_tokens=N_TOKENS)
    expected = MEASURED if layers is None else (3,)
    assert found.layers == expected
    ids, probabilities = hidden_by_masks(loaded.model, inputs, 3, expected, N_TOKENS)
    assert found.others[0].token_ids == tuple(ids)
    assert found.others[0].probabilities == pytest.approx(probabilities, rel=1e-4)
    assert found.others[0].probabilities != pytest.approx(found.answer.probabilities, rel=1e-3)
    assert any("have no softmax attention" in notice for notice in found.meta["notices"])


def test_where_hidden_tokens_still_get_through_is_said(nemotron):
    found = mask_impact.without(nemotron, family_inputs(nemotron.model), "tokens 3", num_tokens=1)
    assert found.meta["notices"][-2:] == [
        SAID["nemotron_h"],
        "What a hidden token says can still get through layers 0, 4",
    ]
    assert "hidden from every query in layers 1,3:" in str(found)


def test_layers_that_all_have_no_attention_are_one_error(nemotron):
    said = r"^Layers 0, 2, 4 have no softmax attention \(.*\): nothing can be hidden there; layers that have one: 1, 3$"
    with pytest.raises(UsageError, match=said):
        mask_impact.without(nemotron, family_inputs(nemotron.model), "tokens 3", layers=[0, 2])


def test_a_model_of_which_no_attention_is_seen_is_one_error():
    loaded = hybrid("lfm2")
    for layer in MEASURED:
        loaded.model.model.layers[layer].self_attn.forward = lambda hidden_states, **given: (hidden_states, None)
    inputs = family_inputs(loaded.model)
    said = r"^no layer of Lfm2ForCausalLM calls transformers' attention interface: nothing can be measured$"
    with pytest.raises(UnsupportedArchitecture, match=said):
        mask_impact.analyze(loaded, inputs, num_tokens=1)
    with pytest.raises(UnsupportedArchitecture, match=said):
        mask_impact.without(loaded, inputs, "tokens 3", num_tokens=1)
