"""A linear module that is no linear map is refused by its class, and one whose weights alone are quantised is not."""

import copy
import warnings

import pytest
import torch
from checkpoints import make_tokenizer
from family_models import family_model
from tiny_models import ARCHITECTURES, tiny_model
from torch import nn

from mask_impact.api.functions import analyze
from mask_impact.errors import ModelError
from mask_impact.models import linearity, loading


def rounded(values, most):
    scale = values.abs().amax(-1, keepdim=True) / most
    return (values / scale).round() * scale


class Int8Activations(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(rounded(x, 127), self.weight, self.bias)


class Int8ActivationsOfATensor(nn.Linear):
    def forward(self, x):
        scale = x.abs().amax() / 127
        return nn.functional.linear((x / scale).round() * scale, self.weight, self.bias)


class Float8Activations(nn.Linear):
    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 448
        return nn.functional.linear((x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale, self.weight, self.bias)


class Int8Weights(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, rounded(self.weight, 127), self.bias)


class Int4Weights(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, rounded(self.weight, 7), self.bias)


class OwnWeight(nn.Parameter):
    """A weight of a class of its own, as torchao's are, which quantises what it is multiplied by."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is nn.functional.linear:
                return function(rounded(args[0], 127), torch.Tensor(args[1]), *args[2:])
            return function(*args, **kwargs or {})


def with_linear(kind, dtype=torch.float32, name="qwen3", which="down_proj"):
    model = tiny_model(name, vocab_size=320, dtype=dtype)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head and (which in name_of(model, module)):
            module.__class__ = kind
    return model


def name_of(model, wanted):
    return next(name for name, module in model.named_modules() if module is wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Int8Activations, Int8ActivationsOfATensor, Float8Activations])
def test_modules_that_quantise_their_activations_are_refused(kind, dtype):
    for which in ("down_proj", "o_proj"):
        with pytest.raises(ModelError, match=rf"not linear: {kind.__name__} \(model.layers.0.*{which}\) is off by \d"):
            loading.wrap(with_linear(kind, dtype, which=which), make_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.Linear, Int8Weights, Int4Weights])
def test_modules_whose_weights_alone_are_quantised_are_measured(kind, dtype):
    loaded = loading.wrap(with_linear(kind, dtype), make_tokenizer())
    assert analyze(loaded, "the cat", answer=False).n_prompt > 2


def test_a_class_of_weights_is_asked_as_well():
    model = tiny_model("qwen3", vocab_size=320)
    layer = model.model.layers[1].mlp
    layer.up_proj.weight = OwnWeight(layer.up_proj.weight.data, requires_grad=False)
    with pytest.raises(ModelError, match=r"Linear with OwnWeight \(model.layers.1.mlp.up_proj\) is off by \d"):
        loading.wrap(model, make_tokenizer())


def test_torch_s_own_dynamic_quantisation_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(tiny_model("qwen3", vocab_size=320)), {nn.Linear})
    with pytest.raises(
        ModelError, match=r"not linear: DynamicQuantizedLinear \(model.layers.0.self_attn.q_proj\) is off by"
    ):
        loading.wrap(model, make_tokenizer())


def test_a_module_that_can_not_be_asked_is_refused():
    class Strange(nn.Linear):
        def forward(self, x):
            raise RuntimeError("rows of 7 only")

    with pytest.raises(ModelError, match=r"not linear: Strange \(model.layers.0.mlp.down_proj\) can't be asked"):
        loading.wrap(with_linear(Strange), make_tokenizer())


def test_a_router_that_is_made_of_a_linear_module_is_no_linear_map_and_not_refused():
    """Llama 4's gives the scores of the experts beside those that it chose."""
    model = family_model("llama4_text")
    assert any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules())
    linearity.check_linear(model, "llama4_text")


def test_weights_of_another_dtype_than_the_model_are_said_to_be_that():
    """What was quantised in bfloat16 and is loaded in float32."""

    class Packed(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.data)

    model = with_linear(Packed)
    for module in model.modules():
        if isinstance(module, Packed):
            module.weight = nn.Parameter(module.weight.data.bfloat16(), requires_grad=False)
    said = (
        r"quantised in bfloat16 and loaded in float32, which don't go together: Packed \(model.layers.0.mlp.down_proj\)"
    )
    with pytest.raises(ModelError, match=said):
        loading.wrap(model, make_tokenizer())


def test_each_class_is_asked_once_and_plain_ones_never(monkeypatch):
    asked, ask = [], linearity._nonlinearity
    monkeypatch.setattr(
        linearity, "_nonlinearity", lambda module, *how: asked.append(type(module)) or ask(module, *how)
    )
    for name in ARCHITECTURES:
        linearity.check_linear(tiny_model(name), name)
    assert asked == []
    linearity.check_linear(with_linear(Int8Weights), "tiny")
    assert asked == [Int8Weights]
