"""`--verify`: an independent re-measurement that agrees where the engine is right and says so where it is not."""

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.verification import choose_layers, verify


def run(model, inputs, n_triples, num_tokens=3, **settings):
    layers = choose_layers(model.config.get_text_config().num_hidden_layers, n_triples)
    with torch.no_grad(), MaskingEngine(model, record_layers=frozenset(layers), **settings) as engine:
        model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    return engine, layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_remeasured_triples_agree(name):
    model = tiny_model(name)
    engine, layers = run(model, tiny_inputs(model, 9), 12)
    verification = verify(engine, layers)
    assert len(verification.triples) == 12
    assert len({step for step, _, _ in verification.triples}) == 3
    assert verification.error < 1e-3 if name == "qwen3_vl_moe" else verification.error < 5e-4


def test_prompts_with_images_can_be_verified():
    model = tiny_model("qwen3_vl")
    engine, layers = run(model, tiny_image_inputs(model, n_images=2), 12)
    assert verify(engine, layers).error < 5e-4


@pytest.mark.parametrize("groups", [("full",), ("attn", "heads")])
def test_only_what_was_measured_is_compared(groups):
    model = tiny_model("gemma3_text")
    engine, layers = run(model, tiny_inputs(model, 9), 8, groups=groups)
    assert verify(engine, layers).error < 1e-4


def test_a_single_token_can_be_verified():
    """Its only visible token hidden: the attention output is zero by definition."""
    model = tiny_model("qwen3")
    engine, layers = run(model, tiny_inputs(model, 1), 4, num_tokens=1)
    assert verify(engine, layers).error < 1e-4


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_wrong_number_is_noticed(factor):
    """One per cent off in every value: the check must fail by one per cent."""
    model = tiny_model("qwen3")
    engine, layers = run(model, tiny_inputs(model, 9), 6)
    for step in engine.steps:
        step.l2.mul_(factor)
    assert verify(engine, layers).error == pytest.approx(0.01, rel=0.05)


def test_the_model_is_not_changed_by_verifying():
    model = tiny_model("mistral")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    engine, layers = run(model, tiny_inputs(model, 9), 6)
    verify(engine, layers)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
