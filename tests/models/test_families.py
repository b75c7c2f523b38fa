"""The architectures that everything is tested on, and what a checkpoint is said to be before its weights are read."""

import shutil

import pytest
from tiny_models import ARCHITECTURES
from transformers import LlavaConfig, MllamaConfig

from mask_impact.errors import ModelError
from mask_impact.models import loading
from mask_impact.models.architectures import EXAMPLES
from mask_impact.models.families import describe_model, families


def test_the_families_are_those_of_the_tests_each_with_examples():
    found = families()
    assert [one.model_type for one in found] == list(EXAMPLES)
    assert {one.model_type for one in found} == set(ARCHITECTURES)
    assert {one.model_type for one in found if one.kind == "vl"} == {"qwen3_vl", "qwen3_vl_moe"}
    assert all(one.examples for one in found)


def test_a_description_says_what_the_loaded_model_is(text_checkpoint, vl_checkpoint):
    for folder in (text_checkpoint, vl_checkpoint):
        found, loaded = describe_model(str(folder)), loading.load(str(folder))
        text = loaded.config.get_text_config()
        assert (found.name, found.kind, found.model_type) == (str(folder), loaded.kind, loaded.config.model_type)
        assert (found.n_layers, found.n_heads, found.hidden_size, found.context) == (
            text.num_hidden_layers, text.num_attention_heads, text.hidden_size, text.max_position_embeddings,
        )  # fmt: skip
        assert found.dtype == str(loaded.model.dtype).removeprefix("torch.")
        assert found.problem is None


@pytest.fixture
def without_weights(tmp_path, text_checkpoint):
    """A copy of the tiny checkpoint, its weights left out."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(text_checkpoint, tmp_path / "model", ignore=ignored)


def test_no_weight_is_needed(without_weights):
    assert describe_model(str(without_weights)).problem is None


def test_what_is_not_supported_is_described_with_its_own_type_and_the_reason(tmp_path):
    MllamaConfig().save_pretrained(tmp_path / "mllama")
    found = describe_model(str(tmp_path / "mllama"))
    assert (found.model_type, found.kind) == ("mllama", None)
    assert found.problem == (
        "architecture 'mllama' is not supported: its configuration has no image tokens in a decoder's sequence"
    )


def test_another_vision_language_model_is_said_to_be_one(tmp_path):
    LlavaConfig().save_pretrained(tmp_path)
    found = describe_model(str(tmp_path))
    assert (found.model_type, found.kind, found.problem) == ("llava", "vl", None)
    assert found.how[0] == "loaded as a vision-language model"
    assert any(line.startswith("its layers are proven on this checkpoint when they first run") for line in found.how)


def test_a_model_that_is_nowhere_is_an_error():
    with pytest.raises(ModelError, match="no such folder"):
        describe_model("./nowhere")
