"""The oracle, proven a second way: by hand from the weights, by the model's own outputs, and by what it must reject."""

import itertools

import mpmath
import numpy as np
import oracle
import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    VOCABULARY,
    WINDOW,
    is_vision_language,
    tiny_image_inputs,
    tiny_inputs,
    tiny_model,
)
from torch.utils._python_dispatch import TorchDispatchMode

N_PROMPT = 9  # longer than the sliding window
VISION_LANGUAGE = ("qwen3_vl", "qwen3_vl_moe")


@pytest.fixture(scope="module")
def biased_qwen3():
    """A qwen3 with biases in all attention projections, its traces, and the oracle's result."""
    model = tiny_model("qwen3", attention_bias=True)
    inputs = tiny_inputs(model, N_PROMPT)
    _, traces = oracle.generate_and_trace(model, inputs, 2)
    return model, traces, oracle.measure(model, inputs, 2)


# By hand: a Qwen3 decoder layer in numpy, one position, straight from the weights.


def rms_norm(x, weight, epsilon=1e-6):
    return weight * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)


def rotate(x, cos, sin):
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-second, first], axis=-1) * sin


def qwen3_by_hand(layer, trace, length, hide=None, *, renormalize=True, head_norms=True):
    """(full, attn, heads) at position length - 1 of a qwen3 layer; `hide` removes one key from the softmax.

    The two switches build wrong implementations: a weight zeroed after the softmax, and q/k norms left out.
    """
    weights = {name: parameter.double().numpy() for name, parameter in layer.named_parameters()}
    x, cos, sin = (part[0, :length].double().numpy() for part in (trace.inputs, trace.cos, trace.sin))

    def linear(name, value):
        return value @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def project(name):  # [length, heads, head_dim]
        return linear(f"self_attn.{name}_proj", normed).reshape(length, -1, head_dim)

    def to_rotated(name):
        heads = project(name)
        if head_norms:
            heads = rms_norm(heads, weights[f"self_attn.{name}_norm.weight"])
        return rotate(heads, cos[:, None], sin[:, None])

    head_dim = layer.self_attn.head_dim
    normed = rms_norm(x, weights["input_layernorm.weight"])
    query, keys, values = to_rotated("q")[-1], to_rotated("k"), project("v")
    heads = []
    for head in range(len(query)):
        group = head * keys.shape[1] // len(query)
        scores = keys[:, group] @ query[head] / np.sqrt(head_dim)
        exponentials = np.exp(scores - scores.max())
        if hide is not None and renormalize:
            exponentials[hide] = 0
        probabilities = exponentials / exponentials.sum()
        if hide is not None:
            probabilities[hide] = 0
        heads.append(probabilities @ values[:, group])
    attn = linear("self_attn.o_proj", np.concatenate(heads))
    normed = rms_norm(x[-1] + attn, weights["post_attention_layernorm.weight"])
    gate = linear("mlp.gate_proj", normed)
    mlp = linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", normed))
    return attn + mlp, attn, np.array(heads)


def distances_by_hand(layer, trace, length, **switches):
    """l2 and cosine distances [position, variant]; the cosine in 50 digits, by its definition."""
    before = flat(qwen3_by_hand(layer, trace, length, head_norms=switches.get("head_norms", True)))
    l2, cosine = np.zeros((2, length, len(before)))
    for position in range(length):
        after = flat(qwen3_by_hand(layer, trace, length, hide=position, **switches))
        for variant, (y, y_hidden) in enumerate(zip(before, after, strict=True)):
            l2[position, variant] = np.sqrt(((y - y_hidden) ** 2).sum())
            cosine[position, variant] = cosine_by_definition(y, y_hidden)
    return l2, cosine


def flat(quantities):
    full, attn, heads = quantities
    return [full, attn, *heads]


def cosine_by_definition(a, b):
    with mpmath.workdps(50):
        a, b = mpmath.matrix(a.tolist()), mpmath.matrix(b.tolist())
        return float(1 - mpmath.fdot(a, b) / mpmath.sqrt(mpmath.fdot(a, a) * mpmath.fdot(b, b)))


@pytest.mark.parametrize("hide", [None, 0, 3, N_PROMPT - 1])
def test_a_layer_copy_computes_what_numpy_computes_from_the_weights(biased_qwen3, hide):
    """Agreement to 1e-12 also shows that no step of the copy passes through float32."""
    model, traces, _ = biased_qwen3
    for layer, trace in zip(oracle.decoder_layers(model), traces, strict=True):
        by_hand = qwen3_by_hand(layer, trace, N_PROMPT, hide)
        measured = oracle.run_layer(oracle.layer_copy(layer), trace, N_PROMPT, hide=hide)
        for expected, got in zip(flat(by_hand), measured.vectors(), strict=True):
            assert np.abs(got - expected).max() < 1e-12


def test_every_distance_equals_the_one_computed_by_hand(biased_qwen3):
    """All steps, layers, positions and variants: both measures, in all digits that float64 leaves."""
    model, traces, result = biased_qwen3
    for step, (l2, cosine) in enumerate(zip(result.l2, result.cosine, strict=True)):
        for index, (layer, trace) in enumerate(zip(oracle.decoder_layers(model), traces, strict=True)):
            l2_by_hand, cosine_by_hand = distances_by_hand(layer, trace, N_PROMPT + step)
            assert np.abs(l2[index] - l2_by_hand).max() < 1e-10
            assert np.abs(cosine[index] - cosine_by_hand).max() < 1e-10
            np.testing.assert_allclose(cosine[index], cosine_by_hand, rtol=1e-8)


@pytest.mark.parametrize("broken", [{"renormalize": False}, {"head_norms": False}])
def test_broken_implementations_are_rejected(biased_qwen3, broken):
    """Zeroing a weight without renormalising, and leaving out q/k norms, are the two likeliest mistakes."""
    model, traces, result = biased_qwen3
    pairs = [
        distances_by_hand(layer, trace, N_PROMPT, **broken)
        for layer, trace in zip(oracle.decoder_layers(model), traces, strict=True)
    ]
    with pytest.raises(AssertionError, match="worst at step 0"):
        oracle.assert_l2_close([np.stack([l2 for l2, _ in pairs])], result.l2[:1])
    with pytest.raises(AssertionError, match="worst at step 0"):
        oracle.assert_cosine_close([np.stack([cosine for _, cosine in pairs])], result.cosine[:1])


# By the model: copies against what its own layers returned while it generated.


class OnlyDtype(TorchDispatchMode):
    """Refuses every operation that gives a floating-point tensor of another dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                assert tensor.dtype == self.dtype, f"{function} gave {tensor.dtype}"
        return output


def traced(name, dtype=torch.float32, num_tokens=3):
    model = tiny_model(name, dtype=dtype)
    _, traces = oracle.generate_and_trace(model, tiny_inputs(model, N_PROMPT), num_tokens)
    return model, list(zip(oracle.decoder_layers(model), traces, strict=True))


def baseline(layer, trace, arithmetic=torch.float64):
    """A copy's input and output [1, S, hidden] over the whole trace, nothing hidden."""
    visible = oracle.visible_keys(trace.inputs.shape[1], oracle.window_of(layer))
    return oracle.forward_layer(oracle.layer_copy(layer, arithmetic), trace, visible)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_baseline_is_the_models_own_layer_output(name):
    """Prefill and decoding steps, every position: the mask, window and position embedding are the model's."""
    _, layers = traced(name)
    for layer, trace in layers:
        _, output = baseline(layer, trace)
        assert trace.outputs.shape == (1, N_PROMPT + 2, 48)
        assert (output - trace.outputs).abs().max() < 1e-5 * output.abs().max()


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
def test_the_baseline_of_a_bfloat16_model_is_its_layer_output_within_bfloat16_rounding(arithmetic):
    """In either arithmetic; and not exactly, or the copy would have computed in bfloat16 too."""
    _, layers = traced("qwen3", torch.bfloat16)
    for layer, trace in layers:
        _, output = baseline(layer, trace, arithmetic)
        assert output.dtype == arithmetic
        assert trace.outputs.dtype == torch.bfloat16
        error = (output - trace.outputs).abs().max() / output.abs().max()
        assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_copy_computes_in_float64_throughout(name):
    """Norms, softmax and router of the models ask for float32; one such cast would leave seven digits."""
    _, layers = traced(name, num_tokens=1)
    for layer, trace in layers:
        duplicate = oracle.layer_copy(layer)
        double = oracle.LayerTrace(trace.inputs.double(), trace.outputs, trace.cos.double(), trace.sin.double())
        with OnlyDtype(torch.float64):
            oracle.forward_layer(duplicate, double, oracle.visible_keys(N_PROMPT, oracle.window_of(layer)))


def test_without_the_mode_a_float64_copy_would_pass_through_float32():
    """The previous test can fail: a layer called plainly is caught."""
    _, [(layer, trace), *_] = traced("qwen3", num_tokens=1)
    x, cos, sin = trace.inputs.double(), trace.cos.double(), trace.sin.double()
    with pytest.raises(AssertionError, match="float32"), OnlyDtype(torch.float64):
        oracle.layer_copy(layer)(x, position_embeddings=(cos, sin), attention_mask=None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attn_is_what_the_attention_branch_adds_to_the_residual_stream(name):
    """What enters the second half of the layer minus the layer's input, wherever the architecture puts its norms."""
    second_half = {"gemma3_text": "pre_feedforward_layernorm", "olmo2": "mlp"}.get(name, "post_attention_layernorm")
    _, layers = traced(name, num_tokens=1)
    for layer, trace in layers:
        duplicate = oracle.layer_copy(layer)
        entering = []
        getattr(duplicate, second_half).register_forward_pre_hook(
            lambda module, args, entering=entering: entering.append(args[0][0, -1])
        )
        measured = oracle.run_layer(duplicate, trace, N_PROMPT)
        added = (entering[0] - trace.inputs[0, -1].double()).numpy()
        np.testing.assert_allclose(measured.attn, added, atol=1e-13)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_measuring_leaves_the_model_as_it_was(name):
    """Same tokens as plain generation, no hook left, and the attention backend untouched."""
    model = tiny_model(name)
    inputs = tiny_inputs(model, N_PROMPT)
    before = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    backend = model.config._attn_implementation
    result = oracle.measure(model, inputs, 2)
    after = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(before, after)
    assert result.token_ids == before[0, N_PROMPT:].tolist()
    assert model.config._attn_implementation == backend == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in oracle.decoder_layers(model))
    n_layers = len(oracle.decoder_layers(model))
    assert [array.shape for array in result.l2] == [(n_layers, N_PROMPT + step, 2 + 4) for step in range(2)]
    assert result.variants == ("Full", "Attn", "Head_0", "Head_1", "Head_2", "Head_3")
    for l2, cosine, visible in zip(result.l2, result.cosine, result.visible, strict=True):
        assert (l2[visible] > 0).all()
        assert (cosine[visible] > 0).all()
        assert (cosine <= 2).all()


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3_text", "qwen3_vl"])
def test_a_decoding_step_measures_the_same_as_a_longer_prompt(name):
    """Step 2 of a prompt is step 0 of the prompt with two generated tokens; only float32 rounding lies between."""
    model = tiny_model(name)
    inputs = tiny_inputs(model, N_PROMPT)
    generated = oracle.measure(model, inputs, 3)
    longer = {key: torch.cat([value, torch.ones_like(value[:, :2])], dim=1) for key, value in inputs.items()}
    longer["input_ids"][0, N_PROMPT:] = torch.tensor(generated.token_ids[:2])
    if "mm_token_type_ids" in longer:
        longer["mm_token_type_ids"].zero_()
    prompted = oracle.measure(model, longer, 1)
    assert prompted.token_ids == generated.token_ids[2:]
    np.testing.assert_allclose(prompted.l2[0], generated.l2[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_images_are_measured_with_deepstack_in_the_layer_inputs(name):
    """DeepStack adds to image positions between layers 0-1, 1-2, 2-3, outside the layers; inputs are traced as fed."""
    model = tiny_model(name)
    inputs = tiny_image_inputs(model, n_images=2)
    is_image = inputs["mm_token_type_ids"][0].bool()
    n_prompt = len(is_image)
    assert is_image.sum() == 6 + 4
    _, traces = oracle.generate_and_trace(model, inputs, 2)
    for before, after in itertools.pairwise(traces):
        added = (after.inputs - before.outputs)[0].abs().amax(dim=1)
        assert (added[:n_prompt][is_image] > 0.01).all()
        assert (added[:n_prompt][~is_image] == 0).all()
        assert (added[n_prompt:] == 0).all()
    result = oracle.measure(model, inputs, 2)
    assert result.l2[1].shape == (4, n_prompt + 1, 6)
    assert (result.l2[1] > 0).all()


# What the contract fixes.


def test_positions_outside_a_sliding_window_are_exactly_zero():
    """Mistral: every layer slides. The query sees the last five positions, its own included."""
    model = tiny_model("mistral")
    result = oracle.measure(model, tiny_inputs(model, N_PROMPT), 2)
    for step in range(2):
        first = N_PROMPT + step - WINDOW
        for values in (result.l2[step], result.cosine[step]):
            assert (values[:, :first] == 0).all()
            assert (values[:, first:] > 0).all()
        assert not result.visible[step][:, :first].any()
        assert result.visible[step][:, first:].all()


def test_sliding_and_full_layers_alternate():
    """Gemma 3: layers 0 and 2 slide, layers 1 and 3 see everything."""
    model = tiny_model("gemma3_text")
    result = oracle.measure(model, tiny_inputs(model, N_PROMPT), 1)
    outside = result.l2[0][:, : N_PROMPT - WINDOW]
    assert (outside[[0, 2]] == 0).all()
    assert (outside[[1, 3]] > 0).all()


@pytest.mark.parametrize(
    ("name", "overrides", "length"),
    [("llama", {"attention_bias": True}, 1), ("mistral", {"sliding_window": 1}, 4), ("olmo2", {}, 1)],
)
def test_a_query_whose_only_key_is_hidden_gets_attention_output_zero(name, overrides, length):
    """A prompt of one token, or a window of one: heads give 0, the output projection its bias, if it has one."""
    model = tiny_model(name, **overrides)
    inputs = tiny_inputs(model, length)
    _, traces = oracle.generate_and_trace(model, inputs, 1)
    result = oracle.measure(model, inputs, 1)
    for index, (layer, trace) in enumerate(zip(oracle.decoder_layers(model), traces, strict=True)):
        before = oracle.run_layer(oracle.layer_copy(layer), trace, length)
        l2, cosine = result.l2[0][index], result.cosine[0][index]
        assert (l2[:-1] == 0).all()
        assert (cosine[:-1] == 0).all()
        bias = layer.self_attn.o_proj.bias
        bias = 0 if bias is None else bias.double().numpy()
        np.testing.assert_allclose(l2[-1, 1], np.linalg.norm(before.attn - bias), rtol=1e-12)
        np.testing.assert_allclose(l2[-1, 2:], np.linalg.norm(before.heads, axis=1), rtol=1e-12)
        assert (cosine[-1, 2:] == 1).all()
        assert np.isfinite(l2).all()
        assert np.isfinite(cosine).all()
        assert (cosine[-1, 1] == 1) == (name != "llama")


@pytest.mark.parametrize("name", ["qwen3", "mistral", "qwen3_vl_moe"])
def test_hiding_from_all_queries_equals_hiding_from_the_last(name):
    """The measure is local to the layer: other queries' outputs do not reach the last position."""
    model = tiny_model(name)
    inputs = tiny_inputs(model, N_PROMPT)
    last, everyone = (oracle.measure(model, inputs, 1, queries=queries) for queries in ("last", "all"))
    np.testing.assert_allclose(everyone.l2[0], last.l2[0], rtol=1e-10)
    np.testing.assert_allclose(everyone.cosine[0], last.cosine[0], rtol=1e-8)


def test_visible_keys_are_causal_and_windowed():
    """Window 2: the query's own key and the one before."""
    assert oracle.visible_keys(3, None).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert oracle.visible_keys(3, 2).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_a_key_hidden_from_all_queries_stays_with_the_query_that_has_no_other():
    """Query 0 sees key 0 alone: a softmax over nothing is not defined, and query 0 does not matter here."""
    causal = oracle.visible_keys(3, None)
    assert oracle.without_key(causal, 0, "all").int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert oracle.without_key(causal, 0, "last").int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert causal.equal(oracle.visible_keys(3, None))


@pytest.mark.parametrize("angle", [3.0, 1.0, 1e-2, 1e-4, 1.5e-7, 1e-10])
def test_the_cosine_distance_keeps_its_digits(angle):
    """Against 50 digits, down to distances of 1e-20, which 1 - cos in float64 would round to 0."""
    rng = np.random.default_rng(0)
    a, b = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    a, b = 7 * a, 0.3 * (np.cos(angle) * a + np.sin(angle) * b)
    tolerance = max(1e-12, 1e-15 / angle)  # the unit vectors differ by the angle, and each is rounded
    assert oracle.cosine_distance(a, b) == pytest.approx(cosine_by_definition(a, b), rel=tolerance)


def test_the_cosine_distance_of_zero_vectors_is_fixed():
    """1 if one of the two is zero, 0 if both are; 2 for opposite vectors."""
    zero, one = np.zeros(3), np.array([0.0, 3.0, 4.0])
    assert oracle.cosine_distance(zero, one) == oracle.cosine_distance(one, zero) == 1
    assert oracle.cosine_distance(zero, zero) == 0
    assert oracle.cosine_distance(one, one) == 0
    assert oracle.cosine_distance(one, -one) == pytest.approx(2)


# The assertions: what they accept, and what they reject.

SHAPES = [(2, 3, 4), (2, 4, 4)]  # two steps of [layer, position, variant]


@pytest.fixture
def expected():
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 1, shape) for shape in SHAPES]


def changed(arrays, index, value):
    """A copy with one value of step 1 replaced."""
    arrays = [array.copy() for array in arrays]
    arrays[1][index] = value
    return arrays


@pytest.mark.parametrize(
    ("check", "rtol"), [(oracle.assert_l2_close, 1e-4), (oracle.assert_cosine_close, 1e-3)], ids=["l2", "cosine"]
)
class TestTheAssertions:
    where = (1, 2, 3)

    def test_accept_differences_within_the_tolerance(self, check, rtol, expected):
        """Float32 results, and errors just inside."""
        check(expected, expected)
        check([array.astype(np.float32) for array in expected], expected)
        check([array * (1 + 0.9 * rtol) for array in expected], expected)

    def test_reject_one_value_beyond_it_and_say_which(self, check, rtol, expected):
        """One value in 56, twice the tolerance off."""
        wrong = changed(expected, self.where, expected[1][self.where] * (1 + 2 * rtol))
        with pytest.raises(AssertionError, match=r"1 values.* step 1, layer 1, position 2, variant 3"):
            check(wrong, expected)

    def test_name_the_worst_of_several(self, check, rtol, expected):
        """The one furthest beyond its tolerance, not the first."""
        wrong = changed(expected, self.where, expected[1][self.where] * (1 + 50 * rtol))
        wrong[0][0, 0, 0] *= 1 + 2 * rtol
        with pytest.raises(AssertionError, match=r"2 values.* step 1, layer 1, position 2, variant 3"):
            check(wrong, expected)

    def test_reject_nan_and_infinity(self, check, rtol, expected):
        """A comparison with NaN is false, whichever way it is written."""
        for value in (np.nan, np.inf):
            with pytest.raises(AssertionError, match="position 2"):
                check(changed(expected, self.where, value), expected)

    def test_reject_another_shape(self, check, rtol, expected):
        """A missing step or position must not shrink what is compared."""
        with pytest.raises(AssertionError, match="1 steps, expected 2"):
            check(expected[:1], expected)
        with pytest.raises(AssertionError, match="shape"):
            check([array[:, 1:] for array in expected], expected)

    def test_hold_negligible_values_to_the_floor_and_no_less(self, check, rtol, expected):
        """Far below the largest, a value has to be as negligible, but still has to be it."""
        truth = changed(expected, self.where, 1e-14)
        check(changed(truth, self.where, 3e-14), truth)
        with pytest.raises(AssertionError, match="position 2"):
            check(changed(truth, self.where, 3e-9), truth)

    def test_want_exact_zero_where_the_query_does_not_see(self, check, rtol, expected):
        """Outside a sliding window nothing is rounded: the distance is 0."""
        visible = [np.ones(shape[:2], dtype=bool) for shape in SHAPES]
        visible[1][1, 2] = False
        truth = changed(expected, (1, 2), 0)
        check(truth, truth, visible=visible)
        with pytest.raises(AssertionError, match="position 2, variant 3"):
            check(changed(truth, self.where, 1e-30), truth, visible=visible)


def test_the_assertions_take_an_oracle_result():
    """Which brings along what is visible."""
    model = tiny_model("mistral")
    result = oracle.measure(model, tiny_inputs(model, N_PROMPT), 1)
    oracle.assert_l2_close(result.l2, result)
    oracle.assert_cosine_close(result.cosine, result)
    nearly = [np.maximum(values, 1e-30) for values in result.l2]
    with pytest.raises(AssertionError, match="expected 0 within 0"):
        oracle.assert_l2_close(nearly, result)


# The tiny models keep what their header promises.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tiny_models_are_lively(name):
    """Nothing that a measurement could forget is 0, 1 or uniform."""
    model = tiny_model(name)
    text = model.config.get_text_config()
    assert text.num_key_value_heads < text.num_attention_heads
    assert text.vocab_size == VOCABULARY
    for parameter_name, parameter in model.named_parameters():
        assert parameter.std() > 0.05, parameter_name
        assert not parameter_name.endswith("bias") or parameter.abs().max() > 0.1
    model.set_attn_implementation("eager")
    attentions = model(**tiny_inputs(model, N_PROMPT), output_attentions=True).attentions
    last = torch.stack(attentions)[:, 0, :, -1]  # [layer, head, key], the last query's
    assert last.amax(dim=-1).mean() > 2 / N_PROMPT
    assert last.max() > 0.5
    assert is_vision_language(model) == (name in VISION_LANGUAGE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sharp_tiny_models_have_sinks_and_negligible_tokens(name):
    """Distances over more than six orders of magnitude, and a key with nearly all of the weight."""
    model = tiny_model(name, sharpness=10.0)
    inputs = tiny_inputs(model, N_PROMPT)
    distances = oracle.measure(model, inputs, 1).l2[0]
    largest = distances.max(axis=1, keepdims=True)
    assert ((distances > 0) & (distances < 1e-6 * largest)).any()
    model.set_attn_implementation("eager")
    last = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0, :, -1]
    assert last.max() > 0.99


@pytest.mark.parametrize(
    ("name", "option"), [("llama", "attention_bias"), ("qwen3", "attention_bias"), ("llama", "mlp_bias")]
)
def test_tiny_models_take_biases_as_an_option(name, option):
    """A bias behind the heads is what an implementation on differences can add once too often."""
    layer = oracle.decoder_layers(tiny_model(name, **{option: True}))[0]
    biased = layer.self_attn.o_proj if option == "attention_bias" else layer.mlp.down_proj
    assert biased.bias.abs().max() > 0.1


def test_tiny_models_depend_on_their_seed_alone():
    """The same weights every time, whatever the global random state, which is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tiny_model("qwen3").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = tiny_model("qwen3").state_dict(), tiny_model("qwen3", seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_tiny_models_take_a_dtype_and_keep_rotary_frequencies_in_float32():
    """As a checkpoint does when it is loaded in bfloat16."""
    model = tiny_model("qwen3", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_an_unknown_architecture_is_refused():
    """With the known ones named."""
    with pytest.raises(ValueError, match="known: qwen3_vl"):
        tiny_model("gpt2")
