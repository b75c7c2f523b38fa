"""Text models of other families than those that everything is tested on: their numbers are those of really hiding, what they
have not is said in one line."""

import json
from functools import partial

import family_oracle
import numpy as np
import pytest
import torch
from checkpoints import CHATML, make_tokenizer
from family_models import build, family_config, family_inputs, family_model
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface

import mask_impact
from mask_impact.commands.main import main
from mask_impact.errors import ExactnessError, ModelError
from mask_impact.models import loading
from mask_impact.models.families import describe_model

N_TOKENS = 3


def loaded_of(name):
    """With the attention that knows softcaps: in older versions of transformers the usual one leaves them out."""
    model = family_model(name)
    model.set_attn_implementation("eager")
    return loading.wrap(model, make_tokenizer(CHATML), name=name)


@pytest.fixture(scope="module")
def gemma():
    return loaded_of("gemma2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of such a family."""
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    config = family_config("gpt2")
    config.vocab_size = 320
    build(config, MODEL_FOR_CAUSAL_LM_MAPPING).save_pretrained(path)
    make_tokenizer(CHATML).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "cohere2", "gpt_oss", "mixtral", "granite", "gemma4_text"])
def test_the_local_impact_is_that_of_really_hiding(name):
    """A softcap, one map for q, k and v, parallel blocks, sinks, experts, multipliers, last layers that are fed the last position
    of the prompt alone; at the first and the last step."""
    loaded = loaded_of(name)
    inputs = family_inputs(loaded.model)
    result = mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)
    ids = loaded.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert [step.token_id for step in result.steps] == ids.tolist()
    for step in (0, N_TOKENS - 1):
        found = result.steps[step].l2
        expected = family_oracle.measure(loaded.model, inputs, ids[:step].tolist())
        assert len(found) == len(expected)
        for layer, distances in enumerate(expected):
            for name_of in ("full", "attn"):
                wanted = getattr(distances, name_of)
                place = result.variants.index(name_of.capitalize())
                np.testing.assert_allclose(
                    found[layer, :, place], wanted, rtol=2e-4, atol=1e-5 * wanted.max(), err_msg=name_of
                )


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_few_tokens_at_once_give_the_same_numbers(name):
    loaded = loaded_of(name)
    inputs = family_inputs(loaded.model)
    few, all_at_once = (
        mask_impact.analyze(loaded, inputs, num_tokens=2, batch_size=size, answer=False) for size in (3, None)
    )
    assert (few.meta["batch_size"], all_at_once.meta["batch_size"] > 9) == (3, True)
    for step, wanted in zip(few.steps, all_at_once.steps, strict=True):
        np.testing.assert_allclose(step.l2, wanted.l2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_what_the_answer_used_is_that_of_hiding_in_the_whole_model(name):
    """Measured effects of tokens, hidden in all layers from every query, against full forwards with these edges cut."""
    loaded = loaded_of(name)
    inputs = family_inputs(loaded.model)
    result = mask_impact.analyze(loaded, inputs, num_tokens=1)
    assert result.meta["notices"] == []
    (target,) = result.answer.targets
    assert target.measured.sum() > 3
    assert np.isfinite(target.contribution).all()
    oracle = family_oracle.Oracle(loaded.model)
    before = torch.log_softmax(oracle.logits(inputs), dim=-1)[target.token_ids[0]]
    for place in np.flatnonzero(target.measured):
        edges = [(slice(None), position) for position in target.positions[place]]
        hidden = oracle.logits(inputs, hide=dict.fromkeys(range(3), edges))
        wanted = torch.log_softmax(hidden, dim=-1)[target.token_ids[0]] - before
        assert float(target.logprob_change[place]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)
    alone = mask_impact.explain(loaded, inputs, num_tokens=1).targets[0]
    np.testing.assert_allclose(alone.contribution, target.contribution, rtol=1e-4, atol=1e-5)


def test_knockouts_and_effects_by_layer_are_those_of_the_whole_model(gemma):
    inputs = family_inputs(gemma.model)
    result = mask_impact.analyze(gemma, inputs, num_tokens=2, effect=True, window=2, queries="all", answer=False)
    ids = [step.token_id for step in result.steps]
    oracle = family_oracle.Oracle(gemma.model)
    before = torch.log_softmax(oracle.logits(inputs, ids[:1]), dim=-1)[ids[1]]
    for position in (0, 4, 9):
        hidden = oracle.logits(inputs, ids[:1], dict.fromkeys((1, 2), ((slice(None), position),)))
        wanted = float(torch.log_softmax(hidden, dim=-1)[ids[1]] - before)
        assert float(result.steps[1].effect.logprob_change[1, position]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    flows = mask_impact.knockout(gemma, inputs, window=2, num_tokens=1)
    (flow,) = flows.flows
    edges = [(-1, position) for position in flow.source]
    before = torch.log_softmax(oracle.logits(inputs), dim=-1)[ids[0]]
    for layer in range(2):
        hidden = oracle.logits(inputs, hide=dict.fromkeys((layer, layer + 1), edges))
        wanted = float(torch.log_softmax(hidden, dim=-1)[ids[0]] - before)
        assert float(flows.steps[0].logprob_change[0, layer]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_the_strongest_effects_are_chosen_by_estimates(gemma):
    inputs = family_inputs(gemma.model)
    for queries in ("last", "all"):
        some = mask_impact.analyze(gemma, inputs, effect=True, top=2, queries=queries, answer=False).steps[0].effect
        every = mask_impact.analyze(gemma, inputs, effect=True, queries=queries, answer=False).steps[0].effect
        measured = np.isfinite(some.logprob_change)
        assert 2 <= measured.sum() < measured.size
        np.testing.assert_allclose(some.logprob_change[measured], every.logprob_change[measured], rtol=1e-4, atol=1e-5)
        assert np.corrcoef(some.estimated.change.ravel(), every.logprob_change.ravel())[0, 1] > 0.5


def test_a_run_is_checked_against_really_masking(gemma):
    result = mask_impact.analyze(gemma, family_inputs(gemma.model), num_tokens=N_TOKENS, verify=7, answer=False)
    found = result.meta["verification"]
    assert sorted({layer for _, layer, _ in found["triples"]}) == [0, 1, 2]
    assert len(found["errors"]) == 7
    assert 0 < found["error"] == max(found["errors"]) < 1e-4


def test_such_a_model_is_said_to_be_proven_when_it_runs(folder, capsys):
    assert main(["models", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: measured, where it proves sound when it first runs\n")


def test_verify_takes_such_a_model(folder, capsys):
    assert main(["verify", str(folder), "-k", "3", "-q", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert [one["layer"] for one in found["layers"]] == [0, 1, 2]
    assert all(0 < one["median"] <= one["error"] < 1e-3 for one in found["layers"])
    assert [check["n_effects"] for check in found["checks"]] == [4, 4]
    assert found["no_effects"] is None


def test_verify_says_where_nothing_can_be_hidden_and_what_is_not_to_be_had(tmp_path, capsys):
    config = family_config("lfm2")
    config.vocab_size = 320
    build(config, MODEL_FOR_CAUSAL_LM_MAPPING).save_pretrained(tmp_path)
    make_tokenizer(CHATML).save_pretrained(tmp_path)
    assert main(["verify", str(tmp_path), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  Layers without a softmax attention, in which nothing can be hidden: 0" in lines
    assert lines[-1].startswith("PASS: 6 places were really masked, the largest relative error is ")


MIXED = {"layer_types": ["full_attention", "conv", "full_attention"]}


@pytest.fixture(scope="module")
def mixed():
    """Of three layers the one in the middle has no softmax attention."""
    return loading.wrap(family_model("lfm2", **MIXED), make_tokenizer(CHATML), name="lfm2")


def test_effects_go_through_layers_without_an_attention_and_are_nothing_there(mixed):
    inputs = family_inputs(mixed.model)
    result = mask_impact.analyze(mixed, inputs, num_tokens=2, effect=True)
    ids = [step.token_id for step in result.steps]
    expected = family_oracle.effects(mixed.model, inputs, ids[:1], ids[1])
    assert [one is None for one in expected] == [False, True, False]
    for found, wanted in zip(result.steps[1].effect.logprob_change, expected, strict=True):
        np.testing.assert_allclose(found, 0.0 if wanted is None else wanted, rtol=1e-3, atol=1e-4)
    silent, rule = result.meta["notices"]
    assert silent == "Layer 1 has no softmax attention (convolution): nothing can be hidden there"
    assert rule.startswith("Contributions go through what reads other positions in layer 1 by its true gradient")
    alone = mask_impact.explain(mixed, inputs, num_tokens=1)
    assert alone.meta["notices"] == [silent, rule]
    (target,) = alone.targets
    oracle = family_oracle.Oracle(mixed.model)
    before = torch.log_softmax(oracle.logits(inputs), dim=-1)[target.token_ids[0]]
    for place in np.flatnonzero(target.measured):
        edges = [(slice(None), position) for position in target.positions[place]]
        hidden = oracle.logits(inputs, hide=dict.fromkeys((0, 2), edges))
        wanted = torch.log_softmax(hidden, dim=-1)[target.token_ids[0]] - before
        assert float(target.logprob_change[place]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)


def test_only_what_hides_something_is_among_the_strongest_and_their_controls(mixed):
    inputs = family_inputs(mixed.model)
    for queries in ("last", "all"):
        effect = mask_impact.analyze(mixed, inputs, effect=True, top=2, queries=queries, answer=False).steps[0].effect
        assert not np.isfinite(effect.logprob_change[1]).any()
        assert np.isfinite(effect.logprob_change[[0, 2]]).sum() > 4
    (flow,) = mask_impact.knockout(mixed, inputs, window=1, num_tokens=1).steps[0].logprob_change
    assert flow[1] == 0
    assert (flow[[0, 2]] != 0).all()


def test_local_maps_stay_where_the_answer_can_t_be_had():
    """And it is said why; what asks for nothing else is refused. Rows of ours would go through a hook of others."""
    loaded = loaded_of("gpt2")
    inputs = family_inputs(loaded.model)
    loaded.model.transformer.h[1].register_forward_hook(lambda module, args, output: output + 1)
    result = mask_impact.analyze(loaded, inputs, num_tokens=1)
    assert result.answer is None
    assert len(result.steps[0].l2) == 3
    said = "forward hooks are on h.1: what they change is not measured"
    (notice,) = result.meta["notices"]
    assert notice.startswith(f"What the answer used is left out: {said}")
    for ask in (mask_impact.explain, mask_impact.knockout, partial(mask_impact.analyze, effect=True)):
        with pytest.raises(ModelError, match=said):
            ask(loaded, inputs, num_tokens=1)


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "cohere2", "gpt_oss", "mixtral", "deepseek_v3"])
def test_an_answer_without_some_tokens_is_that_with_their_keys_masked_as_padding(name):
    """At every step, with the positions that they have."""
    model = family_model(name, dtype=torch.float64)
    model.set_attn_implementation("eager")
    loaded = loading.wrap(model, make_tokenizer(CHATML), name=name)
    inputs = family_inputs(model)
    found = mask_impact.without(loaded, inputs, ["tokens 3", "tokens 2,5"], num_tokens=N_TOKENS)
    for answer in (found.answer, *found.others):
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], dim=1)
        for step, (token, probability) in enumerate(zip(answer.token_ids, answer.probabilities, strict=True)):
            n = inputs["input_ids"].shape[1] + step
            mask = torch.ones(1, n, dtype=torch.int64)
            mask[0, list(answer.positions)] = 0
            with torch.no_grad():
                logits = model(
                    ids[:, :n], attention_mask=mask, position_ids=torch.arange(n)[None], use_cache=False
                ).logits
            own = logits[0, -1].double().softmax(-1)
            assert int(own.argmax()) == token
            assert probability == pytest.approx(float(own[token]), rel=1e-4)
    assert any(other.probabilities != found.answer.probabilities for other in found.others)


def test_an_attention_that_adds_to_its_logits_is_refused(monkeypatch):
    """What is hidden there can't be said: the attention is not what is known of it."""
    loaded = loaded_of("gpt2")
    inputs = family_inputs(loaded.model)

    def slanted(module, query, key, value, mask, **options):
        slant = torch.arange(key.shape[2]) / 4
        visible = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        weights = torch.softmax((query @ key.transpose(2, 3) + slant).masked_fill(~visible, -torch.inf), dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    loaded.model.set_attn_implementation("sdpa")
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", slanted)
    with pytest.raises(ExactnessError, match=r"^the model's own attention differs from the recomputed one by"):
        mask_impact.without(loaded, inputs, "tokens 3")


def test_many_prompts_that_share_passes_are_each_as_alone(gemma):
    prompts = [family_inputs(gemma.model, n_tokens=n) for n in (5, 8)]
    for prompt, found in zip(
        prompts, mask_impact.analyze_many(gemma, prompts, num_tokens=2, answer=False), strict=True
    ):
        alone = mask_impact.analyze(gemma, prompt, num_tokens=2, answer=False)
        assert found.sinks == alone.sinks
        for one, other in zip(found.steps, alone.steps, strict=True):
            np.testing.assert_allclose(one.l2, other.l2, rtol=1e-4, atol=1e-5 * other.l2.max())


def test_some_tokens_and_other_values_are_hidden_there_too(gemma):
    inputs, analyze = family_inputs(gemma.model), partial(mask_impact.analyze, answer=False)
    whole, zeroed = (analyze(gemma, inputs, ablation=how) for how in ("mask", "zero-value"))
    masked, zeroed = whole.steps[0].l2, zeroed.steps[0].l2
    assert (masked[:, 1:] != zeroed[:, 1:]).any()
    heads = analyze(gemma, inputs, variants=("heads",))
    places = [whole.variants.index(name) for name in heads.variants]
    np.testing.assert_array_equal(heads.steps[0].l2, whole.steps[0].l2[..., places])


def test_the_command_line_measures_such_a_checkpoint(folder, tmp_path, capsys):
    argv = ["run", "the cat", "-m", str(folder), "-n", "2", "--output-dir", str(tmp_path), "--report", "--plots"]
    assert main(argv) == 0, capsys.readouterr().err
    assert "Note:" not in capsys.readouterr().out
    assert {"result.csv", "result.answer.csv", "result.meta.json", "result.html", "result.layers.png"} <= {
        one.name for one in tmp_path.iterdir()
    }
    assert mask_impact.load_result(tmp_path / "result").n_layers == 3
    assert main(["knockout", "the cat", "-m", str(folder), "--output-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["mamba", "rwkv", "falcon_mamba"])
def test_a_configuration_without_heads_or_layers_is_one_line(name, tmp_path):
    CONFIG_MAPPING[name]().save_pretrained(tmp_path)
    assert describe_model(str(tmp_path)).problem.startswith(
        f"architecture '{name}' is not supported: its configuration has no "
    )


def test_models_says_what_it_has(folder):
    found = describe_model(str(folder))
    assert found.problem is None
    assert any(line.startswith("its layers are proven on this checkpoint when they first run") for line in found.how)
