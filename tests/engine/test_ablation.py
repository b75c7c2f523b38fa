"""Distances where the value of a token is replaced, its weight being kept: against the model with that value, in float64."""

import effect_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from marks import pairs_of
from tiny_models import ARCHITECTURES, tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.analyses.greedy import greedy_config
from mask_impact.api.functions import analyze
from mask_impact.engine import attention
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.models import loading

N_STEPS = 2
ABLATIONS = ("zero-value", "mean-value")


def measured(model, inputs, ablation):
    with RidingEngine(model, ablation=ablation) as engine:
        ids = model.generate(**inputs, generation_config=greedy_config(model, N_STEPS))
    return engine, ids[0, inputs["input_ids"].shape[1] :].tolist()


def at_the_end(duplicate, layer, inputs, ids, edges):
    """A layer's output, and its heads' outputs, at the last position: float64 [hidden] and [heads * head_dim]."""
    seen = {}
    handles = [
        layer.register_forward_hook(
            lambda module, args, output: seen.update(
                output=(output[0] if isinstance(output, tuple) else output)[0, -1].clone()
            )
        ),
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: seen.update(heads=args[0][0, -1].clone())
        ),
    ]
    try:
        effect_oracle.all_logits(duplicate, inputs, ids, edges)
    finally:
        for handle in handles:
            handle.remove()
    return seen["output"], seen["heads"]


def cosine_distance(one, other):
    return 1 - torch.nn.functional.cosine_similarity(one, other, dim=-1)


def assert_agrees(model, inputs, ablation):
    engine, ids = measured(model, inputs, ablation)
    duplicate = effect_oracle.computing_copy(model)
    n_heads = model.config.get_text_config().num_attention_heads
    for step, record in enumerate(engine.steps):
        length = inputs["input_ids"].shape[1] + step
        for index, layer in enumerate(effect_oracle.decoder_layers(duplicate)):
            before = at_the_end(duplicate, layer, inputs, ids[:step], effect_oracle.NO_EDGES)
            expected = []
            for position in range(length):
                edges = effect_oracle.Edges((index,), (length - 1,), (position,), None, ablation)
                after = at_the_end(duplicate, layer, inputs, ids[:step], edges)
                heads = [part.view(n_heads, -1) for part in (before[1], after[1])]
                expected.append(
                    [
                        torch.cat([(after[0] - before[0]).norm().view(1), (heads[1] - heads[0]).norm(dim=-1)]),
                        cosine_distance(*heads),
                    ]
                )
            l2 = torch.stack([row[0] for row in expected])
            kept = [0, *range(2, 2 + n_heads)]  # Full and the heads
            np.testing.assert_allclose(record.l2[index][:, kept], l2, rtol=1e-3, atol=1e-5 * float(l2.max()))
            cosine = torch.stack([row[1] for row in expected])
            np.testing.assert_allclose(record.cosine[index][:, 2:], cosine, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "ablation"), pairs_of(ARCHITECTURES, ABLATIONS, ("mistral", "phi3"), (1,)))
def test_distances_agree_with_the_model_that_has_the_other_value(name, ablation):
    model = tiny_model(name)
    assert_agrees(model, tiny_inputs(model, 9), ablation)


def test_distances_of_image_tokens_too():
    model = tiny_model("qwen3_vl")
    assert_agrees(model, tiny_image_inputs(model), "mean-value")


@pytest.mark.parametrize("broken", ["a mean without the query itself", "half the weight"])
def test_a_broken_engine_is_told_from_the_model(broken, monkeypatch):
    real = attention.query_attention

    def wrong(query, keys, values, scaling, visible=None, ablation="mask", **how):
        found = real(query, keys, values, scaling, visible, ablation, **how)
        if broken == "half the weight":
            return attention.replace(found, weights=found.weights / 2)
        return attention.replace(found, replacement=values[:, :-1].double().mean(dim=1).to(found.values))

    monkeypatch.setattr("mask_impact.engine.riding.boarding.query_attention", wrong)
    model = tiny_model("mistral")
    with pytest.raises(AssertionError):
        assert_agrees(model, tiny_inputs(model, 9), "mean-value")


@pytest.mark.parametrize(
    ("name", "ablation"), [("qwen3", "zero-value"), ("phi3", "mean-value"), ("gemma3_text", "mean-value")]
)
def test_verify_replaces_the_value_too(name, ablation):
    model = tiny_model(name)
    inputs = tiny_inputs(model, 9)
    found = []
    for how in (ablation, "mask"):
        with RidingEngine(model, ablation=ablation, verify=[0, 1, 2, 2]) as engine:
            engine._remeasuring.ablation = how
            model.generate(**inputs, generation_config=greedy_config(model, N_STEPS))
        found.append(engine.verification().error)
    assert found[0] < 1e-3
    assert found[1] > 1e-2


def test_analyze_says_how_tokens_were_hidden():
    loaded = loading.wrap(tiny_model("qwen3"), make_tokenizer())
    inputs = tiny_inputs(loaded.model, 9)
    results = {how: analyze(loaded, inputs, ablation=how, answer=False) for how in ("mask", *ABLATIONS)}
    assert [result.meta["ablation"] for result in results.values()] == ["mask", *ABLATIONS]
    arrays = [result.steps[0].l2 for result in results.values()]
    assert not any(np.allclose(arrays[one], arrays[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
