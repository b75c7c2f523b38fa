"""The oracle of all families, proven a second way: by the models themselves, by the other oracles, by what it rejects."""

import functools

import effect_oracle
import family_oracle
import numpy as np
import oracle
import pytest
import torch
from family_models import FAMILIES, VISION_LANGUAGE_FAMILIES, WINDOW, NotHere, family_inputs, family_model
from family_oracle import Oracle, in_float64, largest_error
from marks import pairs_of
from tiny_models import ARCHITECTURES, tiny_inputs, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

# One of each kind: plain, softcap, sink and experts, parallel block, latent attention, shared keys, linear attention.
FAST = ("llama", "gemma2", "gpt_oss", "gpt_neox", "minicpm3", "gemma4", "qwen3_5")
EVERY_FAMILY = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in (*FAMILIES, *VISION_LANGUAGE_FAMILIES)
]
# `residual + attention + mlp` in one sum: there the attention may be added to the MLP's row first.
PARALLEL = ("cohere", "cohere2", "gpt_neox", "phi", "stablelm", "aya_vision")
# Every layer has a window, and no list says so.
ALL_WINDOWED = ("mistral", "phi3", "mixtral", "starcoder2", "mistral3")
# Without windows, linear attention or images, a model hands a 4D mask to its layers as it is.
TAKES_A_MASK = ("llama", "gpt2", "qwen3", "cohere", "phi", "gpt_neox", "olmo", "granite", "glm4", "deepseek_v3")


@functools.cache
def family(name):
    """A family's float64 model, its inputs, and its oracle; skips where transformers has no such family."""
    try:
        model = family_model(name, dtype=torch.float64)
    except NotHere as reason:
        pytest.skip(str(reason))
    return model, family_inputs(model), Oracle(model)


@torch.no_grad()
def own_logits(model, inputs, **more):
    """What the model itself computes, with its own attention, in float64."""
    with in_float64():
        return model(**inputs | more, use_cache=False).logits[0, -1]


def gap(actual, expected):
    """The largest difference, in units of the largest expected number."""
    return float((actual - expected).abs().max() / expected.abs().max())


# The oracle runs the model that it is given.


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_with_nothing_hidden_it_gives_the_model_s_own_logits(name):
    """The model's attention is sdpa's, or its own where sdpa has no softcap or sink."""
    model, inputs, measuring = family(name)
    assert gap(measuring.logits(inputs), own_logits(model, inputs)) < 1e-9


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_behind_produced_tokens_it_gives_what_generate_gives(name):
    """One pass over prompt and answer, and decoding with a cache: the same logits of the third token."""
    model, inputs, measuring = family(name)
    with in_float64():
        answer = model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    produced = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(produced) == 3
    assert gap(measuring.logits(inputs, produced[:2]), answer.logits[2][0]) < 1e-9


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_what_went_into_the_layers_of_a_generating_model_can_be_measured(name):
    """In float64 it is what the copy computes itself, decoding included; in float32 (one of each kind) it differs by rounding."""
    model, inputs, measuring = family(name)
    with in_float64():
        token_ids, layer_inputs = family_oracle.generate_and_trace(model, inputs, 2)
    expected = measuring.measure(inputs, token_ids[:1])
    error = largest_error(measuring.measure(inputs, token_ids[:1], layer_inputs=layer_inputs), expected)
    assert error < 1e-8
    assert (None in [one if one is None else "" for one in layer_inputs]) == name.startswith("gemma4")
    if name not in FAST:
        return
    rounded = family_model(name)
    also, fed = family_oracle.generate_and_trace(rounded, family_inputs(rounded), 2)
    assert also == token_ids
    error = largest_error(measuring.measure(inputs, token_ids[:1], layer_inputs=fed), expected, small=1e-2)
    assert 1e-9 < error < 1e-3


class OtherFloats(TorchDispatchMode):
    """Notes floating-point dtypes other than float64."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        results = result if isinstance(result, tuple | list) else [result]
        self.seen |= {
            (str(func), one.dtype)
            for one in results
            if isinstance(one, torch.Tensor) and one.is_floating_point() and one.dtype != torch.float64
        }
        return result


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_a_run_never_leaves_float64(name):
    """Not in norms, softmax, routers, rotary embeddings, nor in the vision tower."""
    _, inputs, measuring = family(name)
    with OtherFloats() as others:
        measuring.logits(inputs)
    assert others.seen == set()


class Sums(TorchFunctionMode):
    """Keeps the last rows of both operands of each sum of two tensors."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("add", "__add__", "__radd__", "add_", "__iadd__"):
            two = [
                one.reshape(-1, one.shape[-1])[-1] for one in args if isinstance(one, torch.Tensor) and one.dim() > 1
            ]
            self.rows += [two] if len(two) == 2 else []
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_attn_is_the_row_that_is_added_to_the_residual_stream(name):
    """Every sum of a layer is watched: one of them has this row, and the layer's input (in parallel blocks, the MLP's row)."""
    _, inputs, measuring = family(name)
    measuring.logits(inputs)
    for index, attentions in enumerate(measuring.attentions):
        if attentions:
            args, kwargs = measuring.calls[index]
            entering = (args[0] if args else kwargs["hidden_states"])[0, -1]
            with Sums() as sums:
                attn = measuring.row(index).attn
            partners = [
                other
                for pair in sums.rows
                for one, other in (pair, pair[::-1])
                if one.shape == attn.shape and one.equal(attn)
            ]
            assert partners
            assert name in PARALLEL or any(one.equal(entering) for one in partners)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_hiding_a_key_matters_in_the_tiny_models_and_windows_are_short(name):
    """Each key that the last query sees moves every quantity; one outside a window or chunk moves nothing, to the bit."""
    model, inputs, measuring = family(name)
    layers = [one for one in measuring.measure(inputs) if one is not None]
    assert layers
    outside = 0
    for layer in layers:
        seen = layer.full > 0
        outside += (~seen).sum()
        assert seen[-WINDOW + 1 :].any()
        assert (layer.full[seen] > 1e-4 * layer.full.max()).all()
        assert ((layer.attn > 0) == seen).all()
        assert ((layer.heads > 0).any(axis=0) == seen).all()
        assert layer.full.max() > 0.01
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    windowed = name in ALL_WINDOWED or {"sliding_attention", "chunked_attention"} & set(kinds)
    assert (outside > 0) == bool(windowed)


# Against other ways to hide a key.


QUICK = ("llama", "gemma3_text", "qwen3_vl")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one in QUICK else [pytest.mark.slow]) for one in ARCHITECTURES]
)
def test_it_agrees_with_the_oracle_of_the_table(name):
    """That one knows nine architectures, and runs their layers with masks; two steps, all distances."""
    model = tiny_model(name, dtype=torch.float64)
    model.set_experts_implementation("eager")
    inputs = tiny_inputs(model, 7)
    with in_float64():
        known = oracle.measure(model, inputs, 2)
        _, traces = oracle.generate_and_trace(model, inputs, 2)
    for step, l2 in enumerate(known.l2):
        measured = family_oracle.measure(model, inputs, known.token_ids[:step])
        fed = [trace.inputs[:, : 7 + step] for trace in traces]
        assert (
            largest_error(family_oracle.measure(model, inputs, known.token_ids[:step], layer_inputs=fed), measured)
            < 1e-9
        )
        for layer, distances in zip(measured, l2, strict=True):
            np.testing.assert_allclose(layer.full, distances[:, 0], rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(layer.attn, distances[:, 1], rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(layer.heads.T, distances[:, 2:], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_effects_agree_with_the_effect_oracle(name):
    """The change of the produced token's log-probability, a layer and a position at a time."""
    model = tiny_model(name, dtype=torch.float64)
    inputs = tiny_inputs(model, 7)
    with in_float64():
        token_ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, 7:].tolist()
        known = effect_oracle.effects(model, inputs, token_ids, 1)["logprob_change"]
    measured = family_oracle.effects(model, inputs, token_ids[:1], token_ids[1])
    np.testing.assert_allclose(np.array(measured), known, rtol=1e-8, atol=1e-12)
    assert np.abs(known).max() > 0.1


@pytest.mark.parametrize(("name", "position"), pairs_of(TAKES_A_MASK, (0, 4, 8), FAST, (1,)))
def test_hiding_in_all_layers_equals_a_4d_mask(name, position):
    """The model's own attention reads the mask."""
    model, inputs, measuring = family(name)
    length = inputs["input_ids"].shape[1]
    visible = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    visible[..., -1, position] = False
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    everywhere = dict.fromkeys(range(len(measuring.layers or own_layers(measuring, inputs))), (position,))
    hidden = measuring.logits(inputs, hide=everywhere)
    assert gap(hidden, own_logits(model, inputs, attention_mask=mask)) < 1e-9
    assert gap(hidden, own_logits(model, inputs)) > 1e-3


def own_layers(measuring, inputs):
    """The oracle's layers, which its first run finds."""
    measuring.logits(inputs)
    return measuring.layers


def test_a_query_that_sees_no_key_gets_zero():
    """A prompt of one token: the heads lose all that they gave."""
    model = family_model("llama", dtype=torch.float64)
    measuring = Oracle(model)
    (*_, layer) = measuring.measure(family_inputs(model, n_tokens=1))
    np.testing.assert_allclose(layer.heads[:, 0], measuring.row(2).heads.norm(dim=-1), rtol=1e-12)
    np.testing.assert_allclose(layer.attn[0], measuring.row(2).attn.norm(), rtol=1e-12)


@pytest.mark.parametrize("name", ["minicpm3"])
def test_values_may_be_of_another_width_than_queries(name):
    """Latent attention: 24 numbers of a query, 20 of a value."""
    _, inputs, measuring = family(name)
    measuring.logits(inputs)
    assert measuring.row(0).heads.shape == (4, 20)


def test_measuring_leaves_the_model_as_it_was():
    """The same logits, backend, dtype, and no hook."""
    model = family_model("llama")
    inputs = family_inputs(model)
    before = model(**inputs).logits
    family_oracle.measure(model, inputs, [1])
    family_oracle.effects(model, inputs, [1], 2)
    assert torch.equal(before, model(**inputs).logits)
    assert model.config._attn_implementation == "sdpa"
    assert family_oracle.NAME not in AttentionInterface()
    assert model.dtype == torch.float32 == torch.get_default_dtype()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tiny_models_depend_on_their_seed_alone():
    """The same weights every time, whatever the global random state, which is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = family_model("gpt_oss").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = family_model("gpt_oss").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_family_that_is_not_there_says_so():
    """With its name, so that a test can skip it with this reason."""
    with pytest.raises(NotHere, match="no_such_family"):
        family_model("no_such_family")


# What it must reject.

right = family_oracle.probabilities


def not_renormalised(logits, visible, *rest):
    """A weight that is set to 0 behind the softmax."""
    return right(logits, torch.ones_like(visible).tril(), *rest) * visible


def cap_behind_the_mask(logits, visible, bias, softcap, sinks):
    """What is hidden comes back with the logit -softcap."""
    capped = torch.tanh((logits + bias).masked_fill(~visible, -torch.inf) / softcap) * softcap
    return torch.softmax(capped, dim=-1)


def without_sinks(logits, visible, bias, softcap, sinks):
    """The other keys take the sink's share."""
    return right(logits, visible, bias, softcap, None)


@pytest.mark.parametrize(
    ("name", "broken", "also_unhidden"),
    [("llama", not_renormalised, False), ("gemma2", cap_behind_the_mask, True), ("gpt_oss", without_sinks, True)],
)
def test_a_broken_oracle_is_told(monkeypatch, name, broken, also_unhidden):
    """By what it gives with nothing hidden, where it is wrong there too, and by its distances."""
    model, inputs, measuring = family(name)
    expected = measuring.measure(inputs)
    monkeypatch.setattr(family_oracle, "probabilities", broken)
    assert (gap(measuring.logits(inputs), own_logits(model, inputs)) > 1e-6) == also_unhidden
    assert largest_error(measuring.measure(inputs), expected) > 1e-3


def test_the_largest_error_sees_one_wrong_value_and_a_missing_layer():
    """Relative to the value; a NaN and a layer that is not there are infinitely wrong."""
    _, inputs, measuring = family("llama")
    expected = measuring.measure(inputs)
    assert largest_error(expected, expected) == 0
    wrong = measuring.measure(inputs)
    wrong[1].heads[2, 3] *= 1.01
    assert largest_error(wrong, expected) == pytest.approx(0.01)
    wrong[1].heads[2, 3] = np.nan
    assert largest_error(wrong, expected) == np.inf
    assert largest_error([None, *expected[1:]], expected) == np.inf
