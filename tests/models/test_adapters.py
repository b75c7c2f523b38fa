"""Adapters of peft: loaded by their folder, measured within the model's layers, refused in one line where that can't be."""

import json
import shutil

import numpy as np
import oracle
import pytest
import test_quantised
import torch
from checkpoints import make_tokenizer, save_checkpoint
from tiny_models import tiny_model

import mask_impact
from mask_impact.analyses import exactness
from mask_impact.errors import ModelError
from mask_impact.models import loading
from mask_impact.models.families import describe_model

peft = pytest.importorskip("peft")
STEPS = 2
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of peft, when it makes adapters
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
LORA = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS, "init_lora_weights": False}


def with_lora(model, **more):
    """A model of peft around it, with weights that matter."""
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA | more)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "qwen3", "qwen3")


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """The folder of an adapter for the checkpoint."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    with_lora(loading.load(str(checkpoint)).model).save_pretrained(folder)
    return folder


@pytest.fixture
def mine(adapter, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(adapter, tmp_path / "mine")


def test_a_folder_is_loaded_and_measured_as_its_model_with_the_adapter_merged(checkpoint, adapter):
    loaded = loading.load(str(adapter))
    assert loaded.name == str(adapter)
    assert loaded.note == f"'{adapter}' is an adapter (LORA): its model {checkpoint} is measured with it"
    result = mask_impact.analyze(loaded, "the cat sat", num_tokens=STEPS, answer=False)
    assert loaded.note in result.meta["notices"]
    merged = peft.PeftModel.from_pretrained(loading.load(str(checkpoint)).model, adapter).merge_and_unload()
    assert oracle.largest_error(result, oracle.measure(merged, oracle.prompt_of(result), STEPS)) < 1e-4
    without = loading.load(str(checkpoint)).model
    assert oracle.largest_error(result, oracle.measure(without, oracle.prompt_of(result), STEPS)) > 1e-2


BIASES = {"attention_bias": True, "mlp_bias": True}  # without which peft can't merge a bias


@pytest.mark.parametrize(
    ("name", "more", "sizes"),
    [
        *((name, more, {}) for name in ("qwen3", "gemma3_text") for more in ({}, {"use_dora": True})),
        ("llama", {"lora_bias": True}, BIASES),
    ],
    ids=str,
)
def test_maps_effects_and_answer_are_those_of_the_merged_model(name, more, sizes):
    """An adapter may have a bias of its own: differences go through its code."""
    model, other = (with_lora(tiny_model(name, vocab_size=320, **sizes), **more) for _ in range(2))
    found, expected = (
        mask_impact.analyze(loading.wrap(one, make_tokenizer()), "the cat sat on", num_tokens=STEPS, effect=True)
        for one in (model, other.merge_and_unload())
    )
    for step, wanted in zip(found.steps, expected.steps, strict=True):
        np.testing.assert_allclose(step.l2, wanted.l2, rtol=1e-4, atol=1e-6 * wanted.l2.max())
        np.testing.assert_allclose(step.effect.logprob_change, wanted.effect.logprob_change, atol=1e-4)
    assert found.answer is not None


@pytest.mark.parametrize(
    ("more", "dtype", "most"), [({}, torch.bfloat16, 0.1), ({"use_dora": True}, torch.float32, 1e-4)], ids=str
)
def test_really_masking_in_the_layers_with_the_adapter_agrees(more, dtype, most):
    """In bfloat16 the adapter's own weights stay in float32, as peft has it."""
    found = exactness.measure(
        loading.wrap(with_lora(tiny_model("qwen3", vocab_size=320, dtype=dtype), **more), make_tokenizer())
    )
    assert found.passed
    assert found.no_effects is None
    assert all(0 < check.error < most for check in found.checks)


@pytest.mark.parametrize(
    ("kind", "dtype", "most"),
    [("torchao int8", torch.bfloat16, 0.1), ("bitsandbytes nf4", torch.float32, 1e-4)],
    ids=str,
)
def test_an_adapter_on_quantised_weights_is_verified_too(tmp_path, kind, dtype, most):
    checkpoint = save_checkpoint(tmp_path / "wide", "qwen3", **test_quantised.WIDE)
    model = with_lora(test_quantised.quantised(checkpoint, kind, dtype))
    found = exactness.measure(loading.wrap(model, make_tokenizer()))
    assert found.passed
    assert all(0 < check.error < most for check in found.checks)


def test_its_own_tokenizer_is_taken_where_it_has_one(mine):
    assert loading.load(str(mine)).tokenizer.chat_template
    make_tokenizer(chat_template="{{ messages[0].content }}").save_pretrained(mine)
    assert loading.load(str(mine)).tokenizer.chat_template == "{{ messages[0].content }}"


def test_models_describes_it(adapter, checkpoint):
    found = describe_model(str(adapter))
    assert (found.model_type, found.problem, found.n_layers) == ("qwen3", None, 3)
    assert found.how[-1] == f"an adapter (LORA): its model {checkpoint} is measured with it"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "does not say which model it is for"),
        ({"base_model_name_or_path": "/nowhere"}, "the model of adapter '.*' can't be had: model '/nowhere' not found"),
        ({"peft_type": "PREFIX_TUNING"}, "adapter '.*' is of kind PREFIX_TUNING, which puts states before the prompt"),
        ({"r": 5}, "cannot read the adapter|does not fit its model"),
        ({"target_modules": ["q_proj"]}, "does not fit its model .* belongs nowhere"),
        ({"target_modules": [*TARGETS, "k_proj"]}, "does not fit its model .* is missing"),
    ],
)
def test_one_that_can_not_be_loaded_is_one_line(mine, change, said):
    file = mine / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=said) as caught:
        loading.load(str(mine))
    assert "\n" not in str(caught.value)


def test_pickled_weights_and_adapters_of_adapters_are_refused(mine, adapter):
    (mine / "adapter_model.safetensors").rename(mine / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors; save it with"):
        loading.load(str(mine))
    (mine / "adapter_model.bin").rename(mine / "adapter_model.safetensors")
    file = mine / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(ModelError, match=r"is for '.*', which is an adapter itself"):
        loading.load(str(mine))


def test_a_model_with_virtual_tokens_is_not_wrapped():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny_model("qwen3", vocab_size=320), config)
    with pytest.raises(ModelError, match="the model's adapter is of kind PROMPT_TUNING, which puts states before"):
        loading.wrap(model, make_tokenizer())
