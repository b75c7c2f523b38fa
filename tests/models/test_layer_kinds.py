"""What is said of layers without a softmax attention, from a configuration alone."""

from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING

from mask_impact.errors import ranges
from mask_impact.models.layer_kinds import (
    BETWEEN,
    keeps_states,
    known_without_attention,
    reading_others,
    without_attention,
)

LINEAR, FULL = "linear_attention", "full_attention"


def of(*kinds, name="layer_types"):
    return SimpleNamespace(**{name: list(kinds)})


@pytest.mark.parametrize(
    ("config", "layers", "said"),
    [
        (of(*[LINEAR, LINEAR, LINEAR, FULL] * 2), (0, 1, 2, 4, 5, 6), "0-2, 4-6 have no softmax attention (linear attention)"),
        (of("conv", FULL), (0,), " 0 has no softmax attention (convolution)"),
        (of("mamba", "attention", "moe", "mlp", name="layers_block_type"), (0, 2, 3),
         "0, 2-3 have no softmax attention (0: state space; 2: mixture of experts; 3: MLP)"),
        (SimpleNamespace(), (1, 2), "1-2 have no softmax attention"),
        (of(FULL, FULL, "hybrid"), (1, 2), "1-2 have no softmax attention"),  # what they are instead is not said
        (of(FULL, LINEAR), (0, 1), "0-1 have no softmax attention (0: not said; 1: linear attention)"),
        (of(FULL), (0, 3), "0, 3 have no softmax attention"),  # the configuration has fewer
    ],
)  # fmt: skip
def test_kinds_are_said_as_far_as_the_configuration_says_them(config, layers, said):
    sentence = without_attention(config, layers)
    assert sentence.endswith(f"{said}: nothing can be hidden there")
    assert sentence.startswith("Layers " if len(layers) > 1 else "Layer ")


def test_positions_read_each_other_in_all_but_layers_of_experts_or_an_mlp():
    config = of("mamba", "attention", "moe", "mlp", "conv")
    assert reading_others(config, (0, 2, 3, 4, 7)) == [0, 4, 7]


@pytest.mark.parametrize(
    ("model_type", "keeps"),
    [
        *((name, True) for name in ("qwen3_next", "granitemoehybrid", "nemotron_h", "jamba", "recurrent_gemma")),
        *((name, False) for name in ("qwen3", "gemma3_text", "gpt_oss", "llama4_text", "mixtral", "gpt2")),
    ],
)
def test_which_layers_carry_a_state_is_known_from_the_configuration(model_type, keeps):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    assert keeps_states(CONFIG_MAPPING[model_type]()) is keeps


def test_which_layers_have_none_is_known_from_the_configuration():
    assert known_without_attention(of("mamba", "attention", "moe", "hybrid", "conv")) == [0, 2, 4]
    assert known_without_attention(CONFIG_MAPPING["llama"]()) == []


def test_runs_of_numbers_are_written_from_first_to_last():
    assert ranges([0, 1, 2, 4, 6, 7], BETWEEN) == "0-2, 4, 6-7"
    assert ranges([], BETWEEN) == ""
