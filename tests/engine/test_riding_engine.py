"""The engine in parts, in batches and with hooks of others, and that it leaves nothing behind."""

import threading
from types import SimpleNamespace

import oracle
import pytest
import torch
from tiny_models import tiny_inputs, tiny_model

from mask_impact.engine.plans import Masked, SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.errors import UnsupportedArchitecture, UsageError

N_PROMPT = 9  # longer than the tiny models' sliding window
N_TOKENS = 3  # a prompt and two decode steps
# Largest relative difference of any distance between two runs; cosine distances are squares.
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-3}


def generate(model, inputs, n_tokens=N_TOKENS):
    return model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False).tolist()


def measure(model, inputs, **settings):
    with torch.no_grad(), RidingEngine(model, **settings) as engine:
        produced = generate(model, inputs)
    return engine, produced


def assert_close(actual, wanted, bound, what):
    """Each value is within the bound of itself; what is below a millionth of the largest of its layer is nothing."""
    assert actual.shape == wanted.shape, what
    largest = wanted.flatten(1).amax(1).view(-1, *(1,) * (wanted.dim() - 1))
    error = (actual - wanted).abs() / torch.maximum(wanted.abs(), 1e-6 * largest).clamp_min(1e-300)
    assert float(error.max()) <= bound, (what, float(error.max()))


def assert_same(found, expected, bound, experts=False):
    """All that is measured; through experts full states ride: Full within the noise floor."""
    assert len(found.steps) == len(expected.steps)
    for step, wanted in zip(found.steps, expected.steps, strict=True):
        assert torch.equal(step.positions, wanted.positions)
        assert_close(step.attention, wanted.attention, bound, "attention")
        l2, cosine = step.l2.clone(), step.cosine.clone()
        if experts:
            noisy = torch.isfinite(wanted.noise_floor)
            assert torch.equal(torch.isfinite(step.noise_floor), noisy)
            floor = 10 * torch.maximum(step.noise_floor, wanted.noise_floor)[noisy, None]
            assert bool(((l2 - wanted.l2)[noisy, :, 0].abs() <= 1e-4 * wanted.l2[noisy, :, 0] + floor).all())
            l2[noisy, :, 0], cosine[noisy, :, 0] = wanted.l2[noisy, :, 0], wanted.cosine[noisy, :, 0]
        assert_close(l2, wanted.l2, bound, "l2")
        assert_close(cosine, wanted.cosine, 10 * bound, "cosine")
        assert_close(step.baseline_norm, wanted.baseline_norm, bound, "baseline norm")
        assert (step.received is None) == (wanted.received is None)
    if expected.steps[0].received is not None:
        rtol, atol = max(bound, 1e-5), 1e-6
        torch.testing.assert_close(
            found.steps[0].received, expected.steps[0].received, rtol=rtol, atol=atol, equal_nan=True
        )


@pytest.mark.parametrize(
    ("name", "settings", "dtype"),
    [
        ("llama", {}, torch.float32),
        ("llama", {"attention_bias": True, "mlp_bias": True}, torch.float32),
        ("phi3", {}, torch.float32),
        ("gemma3_text", {}, torch.bfloat16),
        ("qwen3", {}, torch.float16),
    ],
)
def test_no_more_rows_than_may_be_are_between_two_linear_maps_and_the_numbers_are_the_same(
    name, settings, dtype, monkeypatch
):
    model = tiny_model(name, dtype=dtype, **settings)
    inputs = tiny_inputs(model, N_PROMPT)
    n_rows, real = [], torch.nn.functional.linear

    def counted(rows, *args):
        if type(rows) is torch.Tensor:
            n_rows.append(rows.numel() // rows.shape[-1])
        return real(rows, *args)

    whole, _ = measure(model, inputs)
    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    n_rows.clear()
    parts, _ = measure(model, inputs, max_rows=2)
    assert max(n_rows) <= N_PROMPT + 1  # the prompt's own, and what one lost by rounding
    assert n_rows.count(2) > 40
    assert_same(parts, whole, BOUNDS.get(dtype, 5e-3))
    n_rows.clear()
    measure(model, inputs)
    assert max(n_rows) >= 2 * N_PROMPT


def test_sequences_of_a_batch_go_in_parts_too():
    model = tiny_model("llama")
    inputs = tiny_inputs(model, N_PROMPT)
    inputs = {name: torch.cat([value, value.flip(1)]) for name, value in inputs.items()}
    plans = [SequencePlan(), SequencePlan(masked=Masked(torch.arange(N_PROMPT) % 2 == 0, produced=True))]
    whole, parts = (measure(model, inputs, plans=plans, max_rows=most)[0] for most in (None, 3))
    for number in range(2):
        one, other = (SimpleNamespace(steps=engine.sequences[number]) for engine in (parts, whole))
        assert_same(one, other, 1e-5)


def test_experts_that_were_not_expected_get_their_noise_floor_too():
    """A layer in which nothing was opaque before carries no row for noise; what is opaque then has rows of its own for it."""
    model = tiny_model("qwen3_vl_moe")
    inputs = tiny_inputs(model, N_PROMPT)
    usual, _ = measure(model, inputs)
    known = usual.layers.known
    kinds = {layer.kind for layer in usual.layers.layers}
    assert any(kind not in known.quiet for kind in kinds)
    known.quiet |= kinds
    surprised, _ = measure(model, inputs)
    assert any(kind not in known.quiet for kind in kinds)
    noisy = torch.isfinite(usual.steps[0].noise_floor)
    assert bool(noisy.any())
    assert torch.equal(torch.isfinite(surprised.steps[0].noise_floor), noisy)
    ratio = (surprised.steps[0].noise_floor / usual.steps[0].noise_floor)[noisy]
    assert bool(((ratio > 0.1) & (ratio < 10)).all())
    assert_same(surprised, usual, BOUNDS[torch.float32], experts=True)


@pytest.mark.parametrize("name", ["llama", "olmo2", "gemma3_text"])
def test_a_prompt_of_one_token_has_nothing_left_to_see(name):
    for bias in (True, False):
        model = tiny_model(name, attention_bias=bias)
        inputs = tiny_inputs(model, 1)
        expected = oracle.measure(model, inputs, N_TOKENS)
        riding, _ = measure(model, inputs)
        oracle.assert_l2_close([step.l2.numpy() for step in riding.steps], expected)
    assert torch.equal(riding.steps[0].cosine[..., 1:], torch.ones_like(riding.steps[0].cosine[..., 1:]))
    assert torch.equal(riding.steps[0].l2[..., 1], riding.steps[0].baseline_norm[:, None, 1])


def test_the_oracle_rejects_differences_that_are_a_little_wrong(monkeypatch):
    model = tiny_model("mistral")
    inputs = tiny_inputs(model, N_PROMPT)
    expected = oracle.measure(model, inputs, 1)
    from mask_impact.engine.riding import tensor

    silu = torch.nn.functional.silu
    rule = tensor.RULES[silu]

    def first_order(function, x, inplace=False):
        slope = torch.sigmoid(x.z) * (1 + x.z * (1 - torch.sigmoid(x.z)))
        return x.like(silu(x.plain), silu(x.z), x.d * slope)

    assert rule is not first_order
    monkeypatch.setitem(tensor.RULES, silu, first_order)
    riding, _ = measure(model, inputs, probe=False)
    with pytest.raises(AssertionError, match="differ from the oracle"):
        oracle.assert_l2_close([riding.steps[0].l2.numpy()], expected.l2[:1])


def test_only_the_positions_and_steps_that_a_plan_names_are_measured():
    model = tiny_model("mistral")
    inputs = tiny_inputs(model, N_PROMPT)
    prompt = torch.zeros(N_PROMPT, dtype=torch.bool)
    prompt[[0, 3, 7]] = True
    plans = (SequencePlan(masked=Masked(prompt, produced=True), n_steps=2),)
    some, everything = measure(model, inputs, plans=plans)[0], measure(model, inputs)[0]
    assert [step.positions.tolist() for step in some.steps] == [[0, 3, 7], [0, 3, 7, 9]]
    for step, whole in zip(some.steps, everything.steps, strict=False):
        assert_close(step.l2, whole.l2[:, step.positions], 1e-5, "l2")
        assert_close(step.cosine, whole.cosine[:, step.positions], 1e-4, "cosine")


def test_inference_mode_is_measured_and_recorded_gradients_are_refused():
    model = tiny_model("llama")
    inputs = tiny_inputs(model, N_PROMPT)
    wanted, _ = measure(model, inputs)
    with torch.inference_mode(), RidingEngine(model) as engine:
        model(**inputs)
    assert torch.equal(engine.steps[0].l2, wanted.steps[0].l2)
    with pytest.raises(UsageError, match="no_grad"), RidingEngine(model):
        model(inputs_embeds=torch.randn(1, 3, 48, requires_grad=True))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_vl_moe"])
def test_sequences_of_a_padded_batch_are_measured_as_each_alone(name):
    """The first has three positions of padding and ends after a step; full states of all ride through experts."""
    model = tiny_model(name, dtype=torch.float64)
    model.set_experts_implementation("eager")
    inputs = {key: value.repeat(2, 1) for key, value in tiny_inputs(model, N_PROMPT).items()}
    inputs["input_ids"][1] = inputs["input_ids"][1].flip(0)
    inputs["attention_mask"][0, :3] = 0
    plans = (SequencePlan(padding=3, n_steps=2), SequencePlan())
    with oracle.float32_becomes(torch.float64):
        batch, _ = measure(model, inputs, plans=plans)
        alone = [
            measure(model, {key: value[number : number + 1, padding:] for key, value in inputs.items()})[0]
            for number, padding in enumerate((3, 0))
        ]
    assert [len(steps) for steps in batch.sequences] == [2, 3]
    for steps, one in zip(batch.sequences, alone, strict=True):
        there, wanted = SimpleNamespace(steps=steps), SimpleNamespace(steps=one.steps[: len(steps)])
        assert_same(there, wanted, 1e-9, experts=name == "qwen3_vl_moe")


def test_a_batch_of_another_size_is_refused():
    model = tiny_model("llama")
    with torch.no_grad(), pytest.raises(UsageError, match="one sequence"), RidingEngine(model):
        model(torch.zeros(2, 3, dtype=torch.int64))


class Stop(Exception):
    """Raised in the middle."""


def state_of(model):
    return [
        (
            name,
            dict(module.__dict__.get("_forward_hooks", {})),
            dict(module._forward_pre_hooks),
            module.__dict__.get("forward"),
        )
        for name, module in model.named_modules()
    ]


def test_everything_is_as_it_was_on_any_exit():
    """Also what has been opaque; a forward of another thread gives what it always gives."""
    from transformers import AttentionInterface

    model = tiny_model("qwen3_vl_moe")
    inputs = tiny_inputs(model, N_PROMPT)
    before, lookup = state_of(model), AttentionInterface.get_interface
    with torch.no_grad():
        plain = model(**inputs).logits

    def stop(step, layer):
        if layer == 1:
            raise Stop

    with torch.no_grad(), pytest.raises(Stop), RidingEngine(model, on_layer=stop):
        model(**inputs)
    assert state_of(model) == before
    assert AttentionInterface.get_interface == lookup
    with torch.no_grad(), RidingEngine(model) as engine:
        inside = model(**inputs).logits
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(model(**inputs).logits.detach()))
        thread.start()
        thread.join()
    assert state_of(model) == before
    assert len(engine.steps) == 1
    assert torch.equal(elsewhere[0], plain)
    torch.testing.assert_close(inside, plain)
    assert type(inside) is torch.Tensor


def test_a_hook_of_yours_sees_the_model_s_tensor_and_what_it_adds_counts():
    """Steering: the hook's addition is part of the layer, and no row of ours goes through it."""
    model = tiny_model("llama")
    inputs = tiny_inputs(model, N_PROMPT)
    seen = []

    def steer(module, args, output):
        seen.append(tuple(output.shape))
        return output + 0.5

    handle = model.model.layers[1].mlp.register_forward_hook(steer)
    try:
        riding, _ = measure(model, inputs, probe=False)
    finally:
        handle.remove()
    plain, _ = measure(model, inputs)
    assert seen[0] == (1, N_PROMPT, 48)
    torch.testing.assert_close(riding.steps[0].l2[:2], plain.steps[0].l2[:2])
    assert not torch.allclose(riding.steps[0].baseline_norm[1, 0], plain.steps[0].baseline_norm[1, 0], rtol=1e-3)


def test_a_model_has_one_owner():
    model = tiny_model("llama")
    inputs = tiny_inputs(model, N_PROMPT)
    done = []

    def other():
        done.append(measure(model, inputs)[0].steps)

    thread = threading.Thread(target=other)
    with torch.no_grad(), RidingEngine(model) as engine:
        thread.start()
        thread.join(0.2)
        assert done == []  # it waits
        model(**inputs)
    thread.join()
    torch.testing.assert_close(engine.steps[0].l2, done[0][0].l2)


def test_hidden_states_that_are_asked_for_are_plain_tensors():
    model = tiny_model("llama")
    with torch.no_grad(), RidingEngine(model):
        found = model(**tiny_inputs(model, N_PROMPT), output_hidden_states=True).hidden_states
    assert [type(states) for states in found] == [torch.Tensor] * 4


class TwoLists(torch.nn.Module):
    """A decoder with layers in two lists."""

    def __init__(self):
        super().__init__()
        self.config = None
        self.lower, self.upper = (torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2)) for _ in range(2))


def test_layers_have_the_numbers_of_their_calls_or_of_their_list():
    """Of two lists, of which some layers have no attention, nobody could say which layer a number means."""
    layers = decoder_of(TwoLists())
    lower, upper = layers.layers[:2], layers.layers[2:]
    every = layers.with_attention([*upper, *lower])
    assert (every.numbers, every.n_layers, every.others) == ((0, 1, 2, 3), 4, ())
    some = layers.with_attention([lower[1]])
    assert (some.numbers, some.n_layers, some.others, some.other_numbers) == ((1,), 2, ("lower.0",), (0,))
    with pytest.raises(
        UnsupportedArchitecture, match=r"^layers with a softmax attention and others lie in several lists"
    ):
        layers.with_attention([lower[1], upper[1]])
