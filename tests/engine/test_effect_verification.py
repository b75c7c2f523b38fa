"""Effects held against really hiding tokens in the whole model: they agree, and a broken replay is told, also where its own
proofs are off."""

from dataclasses import replace

import pytest
import torch
from broken_replay import BROKEN
from family_models import NotHere, family_inputs, family_model
from marks import slow_but
from tiny_models import tiny_image_inputs, tiny_inputs, tiny_model
from torch import nn

from mask_impact.engine import effects, replay
from mask_impact.engine.effect_verification import verify_effects
from mask_impact.engine.kept import keep
from mask_impact.engine.plain_attention import PlainAttention
from mask_impact.errors import UnsupportedArchitecture

USUAL = ("gemma2", "gpt_oss", "mixtral")
FAMILIES = (
    *USUAL,
    "gpt2",
    "deepseek_v3",
    "cohere",
    "granite",
    "gpt_neox",
    "exaone4",
    "minicpm3",
    "llava",
    "qwen2_5_vl",
)


def kept_family(name):
    try:
        model = family_model(name)
    except NotHere as error:
        pytest.skip(str(error))
    if name in ("gemma2", "gpt_oss"):
        model.set_attn_implementation("eager")
    inputs = family_inputs(model)
    return keep(model, inputs), inputs


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_effects_are_those_of_whole_passes(name):
    found = verify_effects(*kept_family(name), n=4)
    assert len(found.positions) == 4
    assert 0 < max(found.errors) < 1e-4


@pytest.mark.parametrize("name", ["olmo2", "qwen3_vl"])
def test_models_of_the_table_are_held_against_the_same(name):
    model = tiny_model(name)
    inputs = tiny_image_inputs(model, n_images=1) if name == "qwen3_vl" else tiny_inputs(model, 9)
    assert 0 < max(verify_effects(keep(model, inputs), inputs, n=3).errors) < 1e-4


class Adapted(nn.Linear):
    """As peft has it: a map of low rank beside it, in float32."""

    def forward(self, x):
        down = torch.linspace(-1, 1, 2 * self.in_features).sin().view(2, -1)
        up = torch.linspace(-1, 1, 2 * self.out_features).cos().view(-1, 2)
        made = super().forward(x)
        return (made + nn.functional.linear(nn.functional.linear(x.float(), down), up) / 8).to(made.dtype)


def test_adapters_in_another_dtype_than_the_model_have_effects():
    """What is given to a layer's own map is given to the adapter's too, which are rounded in another way."""
    model = tiny_model("qwen3", dtype=torch.bfloat16)
    for layer in model.model.layers:
        for module in (layer.self_attn.q_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            module.__class__ = Adapted
    inputs = tiny_inputs(model, 9)
    kept = keep(model, inputs)
    assert 0 < max(verify_effects(kept, inputs, n=3).errors) < 0.2
    assert not kept.decoder.found.known.opaque.modules


def test_effects_that_can_not_be_had_make_no_map_less_exact(monkeypatch):
    """Modules that were tried with whole states in vain go back to differences."""

    def failing(*given, **more):
        raise RuntimeError("no two dtypes")

    monkeypatch.setattr(replay, "_prove_by_differences", failing)
    kept, inputs = kept_family("gemma2")
    with pytest.raises(UnsupportedArchitecture, match="can't run again by itself"):
        verify_effects(kept, inputs, n=1)
    assert not kept.decoder.found.known.opaque.modules


def of_another_layer(monkeypatch, model):
    """A layer's rows go through the one behind it."""
    own = replay._through_layer
    monkeypatch.setattr(
        replay, "_through_layer", lambda kept, index, *rest, **more: own(kept, min(index + 1, 2), *rest, **more)
    )


@pytest.mark.parametrize(("name", "broken"), [*BROKEN, ("gpt2", of_another_layer)])
def test_a_broken_replay_is_told(name, broken, monkeypatch):
    kept, inputs = kept_family(name)
    broken(monkeypatch, kept.model)
    monkeypatch.setattr(effects, "prove", lambda kept: None)
    monkeypatch.setattr(effects, "check_replayed", lambda *given: None)
    assert max(verify_effects(kept, inputs, n=6).errors) > 0.01


def test_an_attention_that_is_not_formed_as_it_says_is_refused(monkeypatch):
    kept, inputs = kept_family("gemma2")
    own = PlainAttention.output
    monkeypatch.setattr(PlainAttention, "output", lambda self, *given: own(replace(self, mask=None), *given) * 1.01)
    with pytest.raises(
        UnsupportedArchitecture, match=r"^`verify` can't form the attention of model\.layers\.0\.self_attn"
    ):
        verify_effects(kept, inputs, n=1)


def test_nothing_visible_gives_nothing():
    plain = PlainAttention(torch.ones(2, 1, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 5), torch.zeros(1, 3), {})
    assert plain.output().tolist() == torch.zeros(2, 1, 5).tolist()
