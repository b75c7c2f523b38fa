"""Really masking: it agrees where the engine is right, and says so where the engine is broken, also where the engine's own checks
are off."""

from contextlib import ExitStack

import pytest
import torch
from family_models import VISION_LANGUAGE_FAMILIES, NotHere, family_inputs, family_model
from marks import slow_but
from torch import nn

from mask_impact.engine import attention
from mask_impact.engine.plain_attention import PlainAttention
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding import arithmetic, boarding, differences, functions, opaque, tensor
from mask_impact.engine.riding import engine as riding_engine
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import UnsupportedArchitecture, UsageError

N_STEPS = 3
USUAL = ("gemma2", "gpt_oss", "cohere", "deepseek_v3", "lfm2", "gemma4_text")
FAMILIES = (
    *USUAL, "gpt2", "mixtral", "granite", "qwen3_5_text", "gpt_neox", "granitemoehybrid", "llama4_text", "phi3", "nemotron_h",
    "apertus", "minicpm3", "stablelm", "olmo", "exaone4",
)  # fmt: skip


def tiny_family(name, dtype=torch.float32):
    try:
        model = family_model(name, dtype=dtype)
    except NotHere as error:
        pytest.skip(str(error))
    if "sdpa" in model.config._attn_implementation and name in ("gemma2", "gpt_oss"):
        model.set_attn_implementation("eager")
    return model, family_inputs(model)


def verified(model, inputs, n_triples=9, n_steps=N_STEPS, **settings):
    n_layers = model.config.get_text_config().num_hidden_layers
    with torch.no_grad(), RidingEngine(model, verify=[n % n_layers for n in range(n_triples)], **settings) as engine:
        model.generate(**inputs, max_new_tokens=n_steps, min_new_tokens=n_steps, do_sample=False)
    return engine.verification(), engine


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_what_is_really_masked_agrees(name):
    """The prompt and steps with a cache; windows, sinks, softcaps, experts, parallel branches, layers without an attention."""
    found, engine = verified(*tiny_family(name))
    assert len(found.triples) == 9
    assert {step for step, _, _ in found.triples} == {0, 1, 2}
    assert {layer for _, layer, _ in found.triples} == {*engine.attending.numbers}
    assert 0 < found.error == max(found.errors) < 2e-4


@pytest.mark.parametrize("ablation", ["zero-value", "mean-value"])
def test_other_values_agree_too(ablation):
    found, _ = verified(*tiny_family("gpt_oss"), ablation=ablation)
    assert 0 < found.error < 1e-4


@pytest.mark.parametrize("groups", [("full",), ("attn", "heads"), ("heads",)])
def test_only_what_was_measured_is_compared(groups):
    found, _ = verified(*tiny_family("gemma2"), groups=groups)
    assert 0 < found.error < 1e-4


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_half_precision_agrees_within_its_rounding(name):
    found, _ = verified(*tiny_family(name, torch.bfloat16), n_triples=15)
    assert 1e-4 < found.error < 0.1


def test_a_cache_of_keys_for_later_layers_stays_the_model_s():
    """Gemma 4's last layers read what earlier ones put into a mapping: a float32 copy of a layer must not write into it."""
    model, inputs = tiny_family("gemma4_text", torch.bfloat16)
    with torch.no_grad():
        expected = model(**inputs).logits
        with RidingEngine(model, groups=("heads",), verify=range(4)) as engine:
            found = model(**inputs).logits
    assert torch.equal(found, expected)
    assert engine.verification().error < 0.1


def test_a_single_token_can_be_verified():
    model, inputs = tiny_family("cohere")
    found, _ = verified(model, {name: value[:, :1] for name, value in inputs.items()}, 3, n_steps=1)
    assert found.triples == ((0, 0, 0), (0, 1, 0), (0, 2, 0))
    assert found.error < 1e-4


@pytest.mark.parametrize("name", slow_but(("qwen2_5_vl", "llava"), VISION_LANGUAGE_FAMILIES))
def test_prompts_with_an_image_agree(name):
    found, _ = verified(*tiny_family(name))
    assert len(found.triples) == 9
    assert 0 < found.error < 2e-4


# --- broken engines ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch):
    """The engine without its own proofs."""
    monkeypatch.setattr(riding_engine, "check_reproduced", lambda *given: None)
    monkeypatch.setattr(riding_engine, "prove", lambda *given: None)


def without_factors(monkeypatch):
    """Differences that are multiplied by a number stay what they are, as if a layer's multiplier were not there."""
    own = arithmetic._scaled

    def scaled(x, y, factor):
        made = own(x, y, factor)
        made.d = made.d if isinstance(factor, torch.Tensor) else x.d
        return made

    monkeypatch.setattr(arithmetic, "_scaled", scaled)


def without_sinks(monkeypatch):
    own = attention._softmax
    monkeypatch.setattr(attention, "_softmax", lambda logits, sinks: own(logits, None))


def without_softcap(monkeypatch):
    own = boarding.query_attention
    monkeypatch.setattr(
        boarding, "query_attention", lambda *given, softcap, sinks: own(*given, softcap=None, sinks=sinks)
    )


def with_another_layer_s_numbers(monkeypatch):
    own = riding_engine.gather
    monkeypatch.setattr(riding_engine, "gather", lambda records, *rest: own([*records[1:], records[0]], *rest))


def with_another_key_s_numbers(monkeypatch):
    own = boarding.masking_differences
    monkeypatch.setattr(boarding, "masking_differences", lambda *given, **more: own(*given, **more).roll(1, 0))


def without_the_residual_s_branch(monkeypatch):
    """What two riding tensors are together is what one of them is."""
    own = arithmetic._sum

    def one_of_two(y, one, other):
        made = own(y, one, other)
        both = isinstance(one[0], tensor.Riding) and isinstance(other[0], tensor.Riding)
        made.d = one[0].d if both else made.d
        return made

    monkeypatch.setattr(arithmetic, "_sum", one_of_two)


def with_a_straight_gelu(monkeypatch):
    monkeypatch.setattr(differences, "gelu_difference", lambda a, d: d)
    own = functions.ACTIVATIONS["gelu_tanh"]
    monkeypatch.setitem(functions.ACTIVATIONS, "gelu_tanh", type(own)(own.value, lambda a, d: d))


BROKEN = [
    ("granite", without_factors),
    ("gpt_oss", without_sinks),
    ("gemma2", without_softcap),
    ("gemma2", with_another_layer_s_numbers),
    ("gpt2", with_another_key_s_numbers),
    ("gemma2", without_the_residual_s_branch),
    ("gemma2", with_a_straight_gelu),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_a_broken_engine_is_told(name, broken, unchecked, monkeypatch):
    given = tiny_family(name)
    with ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        broken(monkeypatch)
        found, _ = verified(*given, n_steps=2)
    assert found.error > 0.02


def test_a_number_that_is_one_per_cent_off_is_told():
    _, engine = verified(*tiny_family("gpt2"))
    for step in engine.steps:
        step.l2.mul_(1.01)
    assert engine.verification().error == pytest.approx(0.01, rel=0.05)


# --- weights in a form of their own ------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """A linear map whose weights are bytes; code that no rule for an operation takes is on the way."""

    def __init__(self, plain):
        super().__init__()
        self.out_features, self.in_features = plain.weight.shape
        self.scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        packed = (plain.weight.detach() / self.scale).round() + 128
        self.weight = nn.Parameter(packed.to(torch.uint8), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x):
        weight = ((self.weight.float() - 128) * self.scale).to(x.dtype)
        return nn.functional.linear(x.contiguous().view(torch.uint8).view(x.dtype), weight, self.bias)


class Rounding(Packed):
    """What goes in is rounded."""

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 127
        return super().forward((x / scale).round().nan_to_num() * scale)


class Adapted(nn.Module):
    """As peft has it: a map with another of low rank beside it, in float32."""

    def __init__(self, plain):
        super().__init__()
        self.out_features, self.in_features = plain.weight.shape
        self.base_layer = Packed(plain)
        generator = torch.Generator().manual_seed(self.in_features)
        down, up = torch.randn(2, self.in_features, 2, generator=generator) / 6
        self.down = nn.Linear(self.in_features, 2, bias=False)
        self.up = nn.Linear(2, self.out_features, bias=False)
        self.down.weight.data = down.T.contiguous()
        self.up.weight.data = up[:1].expand(self.out_features, 2).contiguous()

    def forward(self, x):
        made = self.base_layer(x)
        return (made + self.up(self.down(x.to(self.down.weight.dtype)))).to(made.dtype)


def packed_family(name, dtype=torch.float32, kind=Packed):
    model, inputs = tiny_family(name, dtype)
    for layer in model.get_decoder().layers:
        for path, module in [*layer.named_modules()]:
            if type(module) is nn.Linear:
                parent, _, child = path.rpartition(".")
                setattr(layer.get_submodule(parent), child, kind(module))
    return model, inputs


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("kind", [Packed, Adapted])
@pytest.mark.parametrize("name", slow_but(("gemma2",), ("gemma2", "gpt_neox", "starcoder2")))
def test_weights_that_are_no_numbers_are_written_out(name, kind, dtype, most):
    """Differences go through the maps themselves: nothing whole rides through them, and there is no noise floor."""
    found, engine = verified(*packed_family(name, dtype, kind))
    assert 0 < found.error < most
    assert not engine.layers.known.opaque.modules
    assert all(bool(torch.isnan(step.noise_floor).all()) for step in engine.steps)


def test_differences_that_a_packed_map_carries_wrongly_are_told(unchecked, monkeypatch):
    own = opaque.through_module

    def longer(*given):
        made = own(*given)
        made.d = 1.02 * made.d
        return made

    monkeypatch.setattr(opaque, "through_module", longer)
    assert verified(*packed_family("gemma2"), n_steps=2)[0].error > 0.015


def test_weights_that_are_written_out_wrongly_are_told(monkeypatch):
    own = nn.functional.one_hot
    monkeypatch.setattr(nn.functional, "one_hot", lambda *given: own(*given).roll(1, 1))
    with pytest.raises(
        UsageError, match=r"^`verify` needs .* float32, and can't write out layers.\d.self_attn.q_proj \(P"
    ):
        verified(*packed_family("gemma2"))


def test_a_map_that_is_none_is_not_written_out(unchecked):
    with pytest.raises(UsageError, match=r"can't write out layers.\d.*q_proj \(Rounding\); leave `verify` out$"):
        verified(*packed_family("gemma2", kind=Rounding))


def test_weights_that_are_no_linear_map_s_are_not_written_out():
    model, inputs = tiny_family("gemma2")
    for layer in model.model.layers:
        layer.mlp.register_parameter("codes", nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(
        UsageError, match=r"can't write out layers.\d.mlp.codes, which is in uint8; leave `verify` out$"
    ):
        verified(model, inputs)


# --- what can't be verified -------------------------------------------------------------------------------------------------


def test_an_attention_that_is_not_formed_as_it_says_is_refused(monkeypatch):
    monkeypatch.setattr(PlainAttention, "_spread", lambda self, part: part.double().flip(0).repeat_interleave(2, 0))
    with pytest.raises(
        UnsupportedArchitecture, match=r"^`verify` can't form the attention of layers\.0 \(Gemma2DecoderL"
    ):
        verified(*tiny_family("gemma2"))


def test_several_sequences_are_refused():
    model, _ = tiny_family("gpt2")
    with pytest.raises(UsageError, match="a single sequence"):
        RidingEngine(model, verify=[0], plans=[SequencePlan(), SequencePlan()])
