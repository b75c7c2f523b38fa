"""Families of all kinds: softcaps, sinks, multipliers, parallel branches, layer norms, experts, latent attention, layers
without softmax attention. Against brute force in float64, which runs a layer once for each hidden key."""

import family_models
import family_oracle
import numpy as np
import pytest
import torch
from marks import slow_but
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import UnsupportedArchitecture

FAMILIES = (
    "gemma", "gemma2", "olmo", "glm4", "granite", "cohere2", "gpt_oss", "phi", "gpt_neox", "opt", "gpt2", "starcoder2",
    "nemotron", "mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next", "qwen3_5_text",
)  # fmt: skip
USUAL = ("gemma2", "gpt_oss", "gpt2", "granite", "deepseek_v3", "qwen3_next")
WITHOUT = {"qwen3_next", "qwen3_5_text"}
OPAQUE = {"gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next"}


def tiny_family(name, dtype=torch.float64):
    """A tiny model, and inputs for it, with the attention that knows softcaps."""
    model = family_models.family_model(name, dtype=dtype)
    model.set_attn_implementation("eager")
    return model, family_models.family_inputs(model)


def measured(model, inputs, n_tokens=1):
    with torch.no_grad(), RidingEngine(model) as engine:
        if n_tokens == 1:
            model(**inputs, use_cache=False)
        else:
            model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)
    return engine


def brute_force(model, inputs):
    """L2 [L, S, V] of Full, Attn and the heads of the layers that have a map, and the numbers of the layers that have none."""
    found = family_oracle.measure(model, inputs)
    rows = [np.stack([one.full, one.attn, *one.heads], axis=1) for one in found if one is not None]
    return torch.from_numpy(np.stack(rows)), [number for number, one in enumerate(found) if one is None]


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_a_family_without_a_table_agrees_with_brute_force(name):
    """Full, Attn and heads in float64, where also norms are; what the model calls float32 is float64 in both."""
    model, inputs = tiny_family(name)
    with family_oracle.in_float64():
        engine = measured(model, inputs)
    wanted, without = brute_force(model, inputs)
    assert [int(one.rpartition(".")[2]) for one in engine.unmapped] == without
    assert bool(without) == (name in WITHOUT)
    step = engine.steps[0]
    largest = wanted.amax(1, keepdim=True)
    floor = 1e-9 * largest
    floor[..., 0] += 10 * step.noise_floor.nan_to_num(0.0)[:, None]
    assert bool(((step.l2 - wanted).abs() <= 1e-7 * wanted + floor).all()), step.l2 / wanted
    assert bool((floor <= 1e-6 * largest).all())
    assert bool(torch.isfinite(step.noise_floor).any()) == (name in OPAQUE)


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_decode_steps_with_a_cache_measure_what_one_pass_over_all_does(name):
    """float32; the last of three steps against the sequence at once, and the same tokens as without the engine."""
    model, inputs = tiny_family(name, torch.float32)
    with torch.no_grad():
        produced = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    engine = measured(model, inputs, 3)
    assert len(engine.steps) == 3
    whole = {"input_ids": produced[:, :-1], "attention_mask": torch.ones_like(produced[:, :-1])}
    again = measured(model, whole)
    l2, wanted = engine.steps[-1].l2, again.steps[0].l2
    floor = 1e-4 * wanted.amax((1, 2), keepdim=True)
    assert bool(((l2 - wanted).abs() <= 2e-3 * wanted + floor).all())


def test_brute_force_would_tell_a_multiplier_that_is_left_out(monkeypatch):
    """Granite multiplies a branch before it is added; Attn without that is longer."""
    model, inputs = tiny_family("granite")
    multiplier = model.config.residual_multiplier
    assert multiplier < 0.9
    with family_oracle.in_float64():
        engine = measured(model, inputs)
    monkeypatch.setitem(family_oracle.ADDED, "granite", None)
    wanted, _ = brute_force(model, inputs)
    torch.testing.assert_close(engine.steps[0].l2[..., 1] / multiplier, wanted[..., 1])


def test_streams_of_states_that_a_layer_mixes_are_refused_in_one_line():
    """AltUp's prediction makes each of four streams out of all of them, before anything reads one."""
    if "gemma3n_text" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no Gemma 3n")
    tiny = {"vocab_size": 160, "vocab_size_per_layer_input": 160, "hidden_size": 64, "hidden_size_per_layer_input": 16}
    tiny |= {
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "head_dim": 16,
        "laurel_rank": 8,
    }
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2, "activation_sparsity_pattern": [0.0] * 4}
    tiny |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "pad_token_id": None}
    model = family_models.build(CONFIG_MAPPING["gemma3n_text"](**tiny), MODEL_FOR_CAUSAL_LM_MAPPING)
    said = (
        r"^layers\.0 is given several streams of states \(4, 1, \d+, 64\) and mixes them: what it adds to one [^\n]*$"
    )
    with pytest.raises(UnsupportedArchitecture, match=said):
        measured(model, family_models.family_inputs(model))
