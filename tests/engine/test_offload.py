"""Models in parts: on several devices, in memory and on a disk, as accelerate dispatches them."""

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from checkpoints import make_tokenizer
from marks import slow_but
from tiny_models import ARCHITECTURES, is_vision_language, tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.api.functions import analyze
from mask_impact.models import loading


def device_map(model, of_layers, of_the_rest="cpu"):
    """A device for each decoder layer, and one for everything else; of_layers(index) gives the former."""
    prefix = "model.language_model.layers" if is_vision_language(model) else "model.layers"
    modules = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")}
    layers = {
        f"{prefix}.{index}": of_layers(index) for index in range(model.config.get_text_config().num_hidden_layers)
    }
    return dict.fromkeys(sorted(modules), of_the_rest) | layers


def dispatched(model, tmp_path, devices):
    model.save_pretrained(tmp_path / "model")
    return (
        type(model)
        .from_pretrained(
            tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offloaded", dtype=model.dtype
        )
        .eval()
    )


def assert_same_results(model, other, inputs):
    results = [
        analyze(loading.wrap(one, make_tokenizer()), inputs, num_tokens=2, verify=2, answer=False)
        for one in (model, other)
    ]
    for one, two in zip(results[0].steps, results[1].steps, strict=True):
        np.testing.assert_allclose(two.l2, one.l2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(two.cosine, one.cosine, rtol=1e-3, atol=1e-6)
    assert results[1].meta["verification"]["error"] < 1e-2
    assert results[0].tokens.ids.tolist() == results[1].tokens.ids.tolist()


@pytest.mark.parametrize("name", slow_but(("qwen3", "gemma3_text", "qwen3_vl_moe"), ARCHITECTURES))
def test_a_model_partly_on_a_disk_gives_the_same_numbers(name, tmp_path):
    """Norms and biases are not in memory when the arithmetic between the linear maps needs them."""
    model = tiny_model(name)
    other = dispatched(model, tmp_path, device_map(model, lambda index: "cpu" if index == 0 else "disk"))
    assert {parameter.device.type for parameter in other.parameters()} == {"cpu", "meta"}
    inputs = tiny_image_inputs(model, n_images=2) if is_vision_language(model) else tiny_inputs(model, 9)
    assert_same_results(model, other, inputs)


@pytest.mark.parametrize("option", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_biases_on_a_disk_are_taken_off_too(option, tmp_path):
    model = tiny_model("llama", **option)
    other = dispatched(model, tmp_path, device_map(model, lambda index: "disk"))
    assert_same_results(model, other, tiny_inputs(model, 9))
    assert_same_results(model, other, tiny_inputs(model, 1))


def test_a_model_wholly_on_a_disk_takes_its_inputs_on_the_cpu(tmp_path):
    model = tiny_model("qwen3")
    other = dispatched(model, tmp_path, device_map(model, lambda index: "disk", of_the_rest="disk"))
    assert other.device.type == "meta"
    assert_same_results(model, other, tiny_inputs(model, 9))


def test_a_model_in_two_parts_on_the_cpu_gives_the_same_numbers():
    """What accelerate puts between the parts (hooks that move inputs and outputs) and ours get along."""
    model = tiny_model("qwen3_vl")
    devices = device_map(model, lambda index: "cpu" if index < 2 else torch.device("cpu"))
    other = dispatch_model(tiny_model("qwen3_vl"), devices, main_device="cpu", force_hooks=True)
    assert all(hasattr(layer, "_hf_hook") for layer in other.model.language_model.layers)
    assert_same_results(model, other, tiny_image_inputs(model, n_images=1))


@pytest.mark.parametrize("plan", ["auto", "balanced", "sequential"])
def test_a_model_may_be_placed_by_accelerate(plan, text_checkpoint):
    loaded = loading.load(str(text_checkpoint), device_map=plan)
    plain = loading.load(str(text_checkpoint))
    one, other = (analyze(model, "the cat", num_tokens=2, answer=False) for model in (loaded, plain))
    np.testing.assert_allclose(one.steps[1].l2, other.steps[1].l2, rtol=1e-4, atol=1e-6)
