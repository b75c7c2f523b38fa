"""Code that loses differences, or writes where it should not, or is no function at all: exact, or refused by name."""

import oracle
import pytest
import torch
from marks import slow_but
from tiny_models import tiny_inputs, tiny_model
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from mask_impact.engine.riding import layers, probe
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import ExactnessError, UnsupportedArchitecture

N_PROMPT = 9


def planted(where, fault, dtype=torch.float32):
    """A tiny Llama of which a part of its second layer is of another class."""
    model = tiny_model("llama", dtype=dtype)
    model.model.layers[1].get_submodule(where).__class__ = fault
    return model, tiny_inputs(model, N_PROMPT)


def measured(model, inputs, **settings):
    with torch.no_grad(), RidingEngine(model, **settings) as engine:
        model(**inputs)
    return engine


class Unwraps(nn.SiLU):
    """Takes the model's tensor out of the riding one, as a kernel does that is called directly."""

    def forward(self, x):
        return functional.silu(x.as_subclass(torch.Tensor))


class UnwrapsIntoNumpy(nn.SiLU):
    def forward(self, x):
        return torch.from_numpy(functional.silu(x.as_subclass(torch.Tensor)).float().numpy()).to(x.dtype)


class Draws(nn.SiLU):
    """Dropout that nobody sees."""

    def forward(self, x):
        return functional.silu(x) * (torch.rand(x.shape, generator=torch.default_generator) > 0.2)


class FunctionOfItsOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return functional.silu(x.as_subclass(torch.Tensor))


class CallsAFunctionOfItsOwn(nn.SiLU):
    def forward(self, x):
        return FunctionOfItsOwn.apply(x)


class CallsCpp(nn.SiLU):
    """Hands the tensor's memory to a library in C++, as kernels of others get it."""

    def forward(self, x):
        return functional.silu(torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)))


class AddsNoise(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        state = super().forward(hidden_states, **kwargs)
        return state + 0.01 * torch.randn(state.shape, dtype=state.dtype)


class DropsTheLayer(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states, **kwargs).as_subclass(torch.Tensor)


class WritesIntoTheResidual(LlamaDecoderLayer):
    """The sum is written into the plain input, so that the differences have no place."""

    def forward(self, hidden_states, **kwargs):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        residual = hidden_states.clone()
        residual.add_(attended)
        return residual + self.mlp(self.post_attention_layernorm(residual))


class WritesIntoItsInput(LlamaMLP):
    """Through a part that shares the memory."""

    def forward(self, x):
        x.view(-1, x.shape[-1]).mul_(2.0)
        return super().forward(x)


LOST = {
    "unwraps": ("mlp.act_fn", Unwraps),
    "unwraps into numpy": ("mlp.act_fn", UnwrapsIntoNumpy),
    "a function of its own": ("mlp.act_fn", CallsAFunctionOfItsOwn),
    "draws": ("mlp.act_fn", Draws),
    "calls C++": ("mlp.act_fn", CallsCpp),
    "adds noise": ("", AddsNoise),
    "drops the layer's": ("", DropsTheLayer),
}
REFUSED = {
    "writes into the residual": ("", WritesIntoTheResidual, r"^add_ in layers\.1: it is written into a tensor that "),
    "writes into its input": (
        "mlp",
        WritesIntoItsInput,
        r"^linear in layers\.1: what it is given was written to in place",
    ),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_code_that_loses_differences_is_refused_with_the_layer_s_name(name, dtype):
    model, inputs = planted(*LOST[name], dtype)
    with pytest.raises(ExactnessError, match=r"^layers\.1 "):
        measured(model, inputs)


def test_without_the_probe_nothing_would_tell():
    """The self-check sees nothing, and the distances are far off."""
    model, inputs = planted(*LOST["unwraps"])
    wrong = measured(model, inputs, probe=False).steps[0]
    right = measured(tiny_model("llama"), inputs).steps[0]
    assert float(wrong.self_check.max()) < 1e-6
    torch.testing.assert_close(wrong.l2[0], right.l2[0])
    assert float(((wrong.l2[1, :, 0] - right.l2[1, :, 0]) / right.l2[1, :, 0]).abs().max()) > 0.05


@pytest.mark.parametrize("name", REFUSED)
def test_a_write_in_place_that_loses_differences_is_refused_with_layer_and_operation(name):
    where, fault, said = REFUSED[name]
    model, inputs = planted(where, fault)
    with pytest.raises(UnsupportedArchitecture, match=said):
        measured(model, inputs)


class WritesWherePlain(nn.SiLU):
    """Into the model's tensor behind the riding one's back."""

    def forward(self, x):
        y = functional.silu(x)
        y.as_subclass(torch.Tensor).mul_(2.0)
        return y


class SetsData(nn.SiLU):
    def forward(self, x):
        y = functional.silu(x)
        y.data = y.data * 2
        return y


class TakesData(nn.SiLU):
    def forward(self, x):
        return functional.silu(x.data)


class TakesNumpy(nn.SiLU):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * torch.sigmoid(x).numpy())


class WritesInPlace(LlamaMLP):
    """Right: the results are written into tensors that carry differences themselves."""

    def forward(self, x):
        gate = self.act_fn(self.gate_proj(x))
        gate *= self.up_proj(x)
        return self.down_proj(gate).mul_(1.5).add_(0.25)


class LooksLikeANorm(LlamaRMSNorm):
    """By the largest number, and around another centre."""

    def forward(self, x):
        return self.weight * (x - 0.1) / (x.square().mean(-1, keepdim=True) + 1.0)


class LooksLikeANormByTheLargest(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + 0.5)


class AddsItsResidualTwice(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        state = hidden_states + attended
        return state + self.mlp(self.post_attention_layernorm(state)) + state


class RoundsItsInput(nn.Linear):
    """A quantised linear map is none: its steps are not those of a difference."""

    def forward(self, x):
        return functional.linear(torch.round(x * 8) / 8, self.weight)


@torch.library.custom_op("mask_impact_tests::gated", mutates_args=())
def gated(x: torch.Tensor) -> torch.Tensor:
    """A kernel of its own, such as the hub has."""
    return functional.silu(x)


class CallsAKernel(nn.SiLU):
    def forward(self, x):
        return torch.ops.mask_impact_tests.gated(x)


EXACT = {
    "writes where plain": ("mlp.act_fn", WritesWherePlain),
    "sets .data": ("mlp.act_fn", SetsData),
    "calls a kernel": ("mlp.act_fn", CallsAKernel),
    "rounds its input": ("mlp.down_proj", RoundsItsInput),
    "rounds the attention": ("self_attn.o_proj", RoundsItsInput),
    "takes .data": ("mlp.act_fn", TakesData),
    "takes numpy": ("mlp.act_fn", TakesNumpy),
    "writes in place": ("mlp", WritesInPlace),
    "looks like a norm": ("post_attention_layernorm", LooksLikeANorm),
    "looks like a norm, by the largest": ("post_attention_layernorm", LooksLikeANormByTheLargest),
    "adds its residual twice": ("", AddsItsResidualTwice),
}


@pytest.mark.parametrize("name", EXACT)
def test_code_that_is_unusual_is_measured_exactly(name):
    """By its operations, or with full states through what has none; the oracle runs the planted code itself."""
    model, inputs = planted(*EXACT[name], torch.float64)
    with oracle.float32_becomes(torch.float64):
        step = measured(model, inputs).steps[0]
    expected = oracle.measure(model, inputs, 1)
    oracle.assert_l2_close([step.l2.numpy()], expected.l2, rtol=2e-6)
    oracle.assert_cosine_close([step.cosine.numpy()], expected.cosine, rtol=1e-5)


compiled = torch.compile(functional.silu, backend="eager")


class CallsCompiled(nn.SiLU):
    def forward(self, x):
        return compiled(x)


@pytest.mark.parametrize("what", slow_but(["an activation", "the model"], ["an activation", "layers", "the model"]))
def test_what_torch_compile_has_compiled_is_measured_as_it_is_written(what):
    """And is compiled again afterwards."""
    expected = measured(tiny_model("llama"), tiny_inputs(tiny_model("llama"), N_PROMPT)).steps[0]
    model, inputs = planted("mlp.act_fn", CallsCompiled)
    ran = []

    def backend(graph, example_inputs):
        return lambda *args: (ran.append(what), graph(*args))[1]

    if what == "layers":
        for layer in model.model.layers:
            layer.compile(backend=backend)
    elif what == "the model":
        model.forward = torch.compile(model.forward, backend=backend)
    found = measured(model, inputs).steps[0]
    assert not ran
    torch.testing.assert_close(found.l2, expected.l2)
    if what == "layers":
        with torch.no_grad():
            model(**inputs)
        assert ran


class Drops(nn.SiLU):
    def forward(self, x):
        return functional.dropout(functional.silu(x), 0.1, training=True)


def test_dropout_is_refused():
    model, inputs = planted("mlp.act_fn", Drops)
    with pytest.raises(ExactnessError, match="dropout is active in layers"):
        measured(model, inputs)
    model = tiny_model("llama", attention_dropout=0.5).train()
    with pytest.raises(ExactnessError, match="self-check"):
        measured(model, inputs)


def test_a_kind_of_layer_is_proven_once(monkeypatch):
    """Three layers of one kind; with a cache that holds something, and in the second block not again."""
    model = tiny_model("mistral")
    inputs = tiny_inputs(model, N_PROMPT)
    proven = []
    own = probe.prove
    monkeypatch.setattr(
        "mask_impact.engine.riding.engine.prove",
        lambda found, layer, *given: (proven.append(layer.name), own(found, layer, *given)),
    )
    with torch.no_grad():
        first = model(**inputs, use_cache=True)
        following = {"input_ids": torch.tensor([[3]]), "past_key_values": first.past_key_values}
        with RidingEngine(model) as engine:
            model(**following)
        assert engine.steps[0].l2.shape[1] == N_PROMPT + 1
        measured(model, inputs)
    assert proven == ["layers.0"]
    assert layers.decoder_of(model).known.proven


def test_a_decoder_without_layers_or_without_an_attention_interface_is_refused():
    from transformers import GPTJConfig, GPTJForCausalLM

    with pytest.raises(UnsupportedArchitecture, match="no list of layers"):
        RidingEngine(nn.Linear(2, 2))
    model = GPTJForCausalLM(
        GPTJConfig(vocab_size=20, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=16)
    ).eval()
    with pytest.raises(UnsupportedArchitecture, match="attention interface"):
        measured(model, {"input_ids": torch.arange(5)[None]})


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_what_somebody_puts_into_one_layer_is_proven_there(way):
    """Layers that are built alike were proven before it came; the layer after it is as it was."""
    model = tiny_model("llama")
    inputs = tiny_inputs(model, 6)

    def run():
        with torch.no_grad(), RidingEngine(model) as engine:
            model(**inputs)
        return engine.steps[0].l2

    plain, mlp = run(), model.model.layers[1].mlp
    if way == "hook":
        handle = mlp.register_forward_hook(lambda module, args, output: output.as_subclass(torch.Tensor))
    else:
        own = mlp.forward
        mlp.forward = lambda states: own(states).as_subclass(torch.Tensor)
    with pytest.raises(ExactnessError, match=r"^layers.1 .* moves otherwise"):
        run()
    handle.remove() if way == "hook" else delattr(mlp, "forward")
    assert torch.equal(run(), plain)
    with mlp.register_forward_hook(lambda module, args, output: output * 2):
        assert not torch.allclose(run()[1], plain[1])
