"""Quantised weights ride through the quantised linear's own forward: as exactly as with the same weights written out."""

import copy

import numpy as np
import oracle
import pytest
import torch
from checkpoints import make_tokenizer, save_checkpoint
from family_models import family_inputs, family_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import mask_impact
from mask_impact.analyses import exactness
from mask_impact.engine.riding import engine as riding_engine
from mask_impact.engine.riding import opaque, written_out
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.errors import ModelError
from mask_impact.models import loading

STEPS = 2
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # in groups of 32 and blocks of 64 weights
KINDS = ("torchao int8", "torchao int4", "bitsandbytes nf4")
pytestmark = pytest.mark.slow


def method_of(kind):
    """How transformers is asked for it; skips where the package is not there."""
    if kind.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return TorchAoConfig(torchao_config(kind))


def torchao_config(kind):
    quantization = pytest.importorskip("torchao.quantization")
    if kind == "torchao int8":
        return quantization.Int8WeightOnlyConfig()
    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)


def in_full(model, like):
    """The plain model `like` with the weights that the quantised linear maps have, as what they make of the unit vectors."""
    dense = copy.deepcopy(like)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            with torch.no_grad():
                made = module(torch.eye(module.in_features)) - (0 if module.bias is None else module.bias)
            dense.get_submodule(name).weight.data = made.T.contiguous()
    return dense


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", **WIDE)


def quantised(checkpoint, kind, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=method_of(kind), dtype=dtype, device_map="cpu"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_local_impact_is_that_of_the_same_weights_written_out(checkpoint, kind):
    model = quantised(checkpoint, kind)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    result = mask_impact.analyze(loading.wrap(model, make_tokenizer()), "the cat sat", num_tokens=STEPS, answer=False)
    inputs = oracle.prompt_of(result)
    assert oracle.largest_error(result, oracle.measure(in_full(model, plain), inputs, STEPS)) < 1e-4
    assert (
        oracle.largest_error(result, oracle.measure(plain, inputs, STEPS)) > 1e-3
    )  # the weights that it was made of are others


@pytest.mark.parametrize("kind", KINDS)
def test_the_measured_effects_are_those_of_the_same_weights_written_out(checkpoint, kind):
    model = quantised(checkpoint, kind)
    dense = in_full(model, AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    found, expected = (
        mask_impact.analyze(loading.wrap(one, make_tokenizer()), "the cat sat", effect=True, answer=False)
        for one in (model, dense)
    )
    changes = [one.steps[0].effect.logprob_change for one in (found, expected)]
    assert np.abs(changes[1]).max() > 1e-2
    np.testing.assert_allclose(*changes, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_quantised_is_loaded_and_gives_the_same(checkpoint, kind, tmp_path):
    model = quantised(checkpoint, kind)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    first, again = (
        mask_impact.analyze(loaded, "the cat sat", answer=False)
        for loaded in (loading.wrap(model, make_tokenizer()), loading.load(str(tmp_path)))
    )
    np.testing.assert_array_equal(first.steps[0].l2, again.steps[0].l2)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("kind", ["torchao int8", "torchao int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_family_is_proven_with_quantised_weights_too(name, kind, dtype):
    config = torchao_config(kind)
    quantize = pytest.importorskip("torchao.quantization").quantize_
    model = family_model(name, dtype=dtype)
    plain = copy.deepcopy(model)
    inner = {module for layer in model.get_decoder().modules() for module in layer.modules()}
    quantize(model, config, filter_fn=lambda module, path: isinstance(module, torch.nn.Linear) and module in inner)
    assert any(type(parameter.data) is not torch.Tensor for parameter in model.parameters())
    inputs = family_inputs(model)
    found, other = (
        mask_impact.analyze(loading.wrap(one, make_tokenizer()), inputs, answer=False) for one in (model, plain)
    )
    assert np.isfinite(found.steps[0].l2).all()
    assert not np.allclose(found.steps[0].l2, other.steps[0].l2, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("kind", KINDS)
def test_really_masking_in_layers_with_the_weights_written_out_agrees(checkpoint, kind, dtype, most):
    """Also with what is small beside a layer's own row, which whole states would lose in bfloat16: no module is opaque."""
    model = quantised(checkpoint, kind, dtype)
    found = exactness.measure(loading.wrap(model, make_tokenizer()))
    assert found.passed
    assert found.no_effects is None
    assert all(0 < check.error < most and (check.effect_error or 0) < 1e-3 for check in found.checks)
    assert not decoder_of(model).known.opaque.modules


def test_really_masking_tells_quantised_maps_that_carry_differences_wrongly(checkpoint, monkeypatch):
    own = opaque.through_module

    def longer(module, forward, x):
        made = own(module, forward, x)
        made.d = 1.02 * made.d
        return made

    monkeypatch.setattr(opaque, "through_module", longer)
    monkeypatch.setattr(riding_engine, "prove", lambda *given: None)
    found = exactness.measure(loading.wrap(quantised(checkpoint, "torchao int8"), make_tokenizer()))
    assert not found.passed
    assert all(check.error > 0.015 for check in found.checks)


def test_really_masking_tells_weights_that_were_written_out_wrongly(checkpoint, monkeypatch):
    own = written_out._plain

    def longer(*given):
        plain = own(*given)
        plain.weight.data *= 1.02
        return plain

    monkeypatch.setattr(written_out, "_plain", longer)
    found = exactness.measure(loading.wrap(quantised(checkpoint, "bitsandbytes nf4"), make_tokenizer()))
    assert all(check.error > 0.015 for check in found.checks)


@pytest.mark.parametrize(("kind", "dtype"), [("torchao int8", "float32"), ("torchao int4", "bfloat16")])
def test_what_was_quantised_in_bfloat16_is_loaded_as_it_is_or_refused_in_one_line(checkpoint, kind, dtype, tmp_path):
    quantised(checkpoint, kind, torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert exactness.measure(loading.load(str(tmp_path), dtype=dtype), n_triples=3).passed
    if kind == "torchao int4":
        with pytest.raises(ModelError, match=r"quantised in bfloat16 and loaded in float32.*use `dtype` auto$"):
            loading.load(str(tmp_path), dtype="float32")


def test_weights_whose_activations_are_quantised_too_are_refused(checkpoint):
    pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32, device_map="cpu"
    )
    with pytest.raises(ModelError, match=r"not linear: Linear8bitLt \(model.layers.0.self_attn.q_proj\) is off by \d"):
        loading.wrap(model, make_tokenizer())


def test_the_oracle_sees_a_weight_that_is_off(checkpoint):
    model = quantised(checkpoint, "torchao int8")
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    result = mask_impact.analyze(loading.wrap(model, make_tokenizer()), "the cat sat", answer=False)
    inputs = oracle.prompt_of(result)
    dense = in_full(model, plain)
    dense.model.layers[0].mlp.up_proj.weight.data[3] *= 1.1
    assert oracle.largest_error(result, oracle.measure(dense, inputs, 1)) > 1e-3
