"""`verify` measures a model again by really masking, and says whether the numbers are within what is stated for its dtype."""

import pytest
import torch
from checkpoints import make_tokenizer
from tiny_models import tiny_model

from mask_impact.analyses import exactness
from mask_impact.analyses.exactness import BOUNDS, TEXTS, Check, Exactness, measure
from mask_impact.engine.riding import tensor
from mask_impact.errors import ExactnessError
from mask_impact.models import loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_model_is_measured_on_the_fixed_prompts_and_within_its_bound(dtype):
    loaded = loading.wrap(
        tiny_model("qwen3", vocab_size=320, dtype=getattr(torch, dtype)), make_tokenizer(), name="tiny"
    )
    found = measure(loaded, n_triples=6)
    assert (found.model, found.dtype, found.device, found.bound) == ("tiny", dtype, "cpu", BOUNDS[dtype])
    assert [check.prompt for check in found.checks] == list(TEXTS)
    assert all(check.n_triples == 6 and check.n_tokens > 5 and check.error > 0 for check in found.checks)
    assert found.passed
    assert found.no_effects is None


def test_a_vision_language_model_is_measured_with_an_image_too(vl_checkpoint):
    loaded = loading.load(str(vl_checkpoint))
    found = measure(loaded, n_triples=4)
    assert [check.prompt for check in found.checks] == [*TEXTS, "What is in the image? (with an image)"]
    assert found.passed


def test_an_engine_that_is_off_does_not_pass(monkeypatch):
    """By one per cent in each distance, which no self-check of its own rows can see."""
    real = tensor.lengths

    def longer(baseline, differences):
        return real(baseline, 1.01 * differences)

    monkeypatch.setattr(tensor, "lengths", longer)
    found = measure(loading.wrap(tiny_model("qwen3", vocab_size=320), make_tokenizer()), n_triples=6)
    assert not found.passed
    assert all(check.error == pytest.approx(0.01, rel=0.1) for check in found.checks)


def test_no_number_does_not_pass_either():
    def of(*errors):
        checks = tuple(Check("a", 3, 0.0, error, error, 1) for error in errors)
        return Exactness("m", "float32", "cpu", 1e-3, checks, (), (), None).passed

    assert of(0.0, 1e-3)
    assert not of(0.0, float("nan"))
    assert not of(2e-3, 0.0)


def test_a_model_that_the_engine_refuses_gives_no_exactness():
    model = tiny_model("qwen3", vocab_size=320)
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda states: own(states).as_subclass(torch.Tensor)  # which drops what rides
    with pytest.raises(ExactnessError, match=r"^layers.1 .* moves otherwise"):
        exactness.measure(loading.wrap(model, make_tokenizer()))
