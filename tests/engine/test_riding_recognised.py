"""What numerically is an RMSNorm is known as one, whatever it is called; what only looks like one is not, and is exact too."""

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mask_impact.engine.riding import recognised
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.tensor import Ride, Riding
from mask_impact.errors import ExactnessError

WIDTH, N_PROMPT = 64, 9


class Renamed(nn.Module):
    """An RMSNorm without a name that says so, with 1 + weight."""

    def __init__(self, width, tiny=1e-5):
        super().__init__()
        self.gain, self.floor, self.other = nn.Parameter(torch.zeros(width)), tiny, 0.5

    def forward(self, x):
        wide = x.float() if x.dtype != torch.float64 else x
        return (wide / (wide.square().mean(-1, keepdim=True) + self.floor).sqrt() * (1 + self.gain.to(wide.dtype))).to(
            x.dtype
        )


class AddsAMean(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x) + 1e-3 * x.mean(-1, keepdim=True)


class AddsAMeanBefore(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x + 1e-3 * x.mean(-1, keepdim=True))


class Clips(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x).clamp(-3, 3)


class ClipsWhatItIsGiven(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x.clamp(-1e4, 1e4))


class SwitchesAtLargeValues(LlamaRMSNorm):
    def forward(self, x):
        return torch.where(x.abs().amax(-1, keepdim=True) > 1e5, 0.5 * super().forward(x), super().forward(x))


class SwitchesInHalfPrecision(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x) * (1.1 if x.dtype == torch.bfloat16 else 1.0)


class AddsItsNumberOutside(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class Centres(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class OfTheFirstHalf(LlamaRMSNorm):
    def forward(self, x):
        half = x[..., : x.shape[-1] // 2]
        return self.weight * x * torch.rsqrt(half.square().mean(-1, keepdim=True) + self.variance_epsilon)


LOOKALIKES = (
    AddsAMean, AddsAMeanBefore, Clips, ClipsWhatItIsGiven, SwitchesAtLargeValues, SwitchesInHalfPrecision, AddsItsNumberOutside,
    Centres, OfTheFirstHalf,
)  # fmt: skip


def recognise(module, dtype=torch.float32):
    """What a module with a random weight is found to be."""
    module = module.to(dtype).eval()
    for number, weight in enumerate(module.parameters()):
        nn.init.normal_(weight, 1.0, 0.1, generator=torch.Generator().manual_seed(number))
    x = torch.zeros(1, 2, WIDTH, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = Riding.make(x, x[:, -1].to(wide), torch.zeros(1, WIDTH, dtype=wide), 2, 2, Ride("a layer", x))
    assert recognised.may_be_norm(module)
    with torch.no_grad():
        return recognised.rms_norm_of(module, module.forward, x, patched=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_norm_is_known_by_what_it_does(dtype):
    assert recognise(LlamaRMSNorm(WIDTH, eps=1e-6), dtype) == recognised.RmsNorm("weight", "variance_epsilon", 0.0)
    assert recognise(Gemma3RMSNorm(WIDTH, eps=1e-6), dtype) == recognised.RmsNorm("weight", "eps", 1.0)
    assert recognise(Renamed(WIDTH), dtype) == recognised.RmsNorm("gain", "floor", 1.0)


@pytest.mark.parametrize("lookalike", LOOKALIKES)
def test_what_only_looks_like_a_norm_is_not_taken_for_one(lookalike):
    assert recognise(lookalike(WIDTH), torch.bfloat16) is None
    if lookalike is not SwitchesInHalfPrecision:
        assert recognise(lookalike(WIDTH), torch.float32) is None
        assert recognise(lookalike(WIDTH), torch.float64) is None


def test_a_module_with_parts_or_a_matrix_is_not_asked_and_a_forward_of_yours_is_asked_each_time():
    assert not recognised.may_be_norm(nn.Linear(4, 4))
    assert not recognised.may_be_norm(nn.Sequential(LlamaRMSNorm(4)))
    assert not recognised.may_be_norm(nn.LayerNorm(4))
    assert not recognised.may_be_norm(torch.ao.quantization.MinMaxObserver())  # would note what it is asked
    norm = LlamaRMSNorm(WIDTH)
    assert recognise(norm) is not None
    x = torch.zeros(1, 2, WIDTH)
    x = Riding.make(x, x[:, -1], x[0, :1], 2, 2, Ride("a layer", x))
    clipped = lambda rows: LlamaRMSNorm.forward(norm, rows).clamp(-1, 1)  # noqa: E731
    with torch.no_grad():
        assert recognised.rms_norm_of(norm, clipped, x, patched=True) is None


def measured(norm):
    """All L2 of a prompt in a tiny Llama of which the second layer has another norm."""
    model = tiny_model("llama")
    model.model.layers[1].post_attention_layernorm.__class__ = norm
    with torch.no_grad(), RidingEngine(model) as engine:
        model(**tiny_inputs(model, N_PROMPT))
    return engine.steps[0].l2


@pytest.mark.parametrize("norm", [LlamaRMSNorm, AddsAMean, Clips, Centres])
def test_recognised_or_not_the_numbers_are_those_of_the_rules(norm, monkeypatch):
    found = measured(norm)
    monkeypatch.setattr(recognised, "may_be_norm", lambda module: False)
    torch.testing.assert_close(found, measured(norm), rtol=1e-5, atol=1e-7)


def test_a_lookalike_that_were_taken_for_a_norm_would_fail_the_self_check_or_the_probe(monkeypatch):
    monkeypatch.setattr(recognised, "_is", lambda norm, *_: norm.offset == 0)
    with pytest.raises(ExactnessError, match="self-check failed"):
        measured(AddsAMean)
    with pytest.raises(ExactnessError, match="moves otherwise than the differences"):
        measured(Centres)
