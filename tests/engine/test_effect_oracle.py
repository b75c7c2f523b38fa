"""The oracle of effects, proven other ways: by the model's own outputs, by changed models, and by hand in numpy."""

import copy

import effect_oracle
import numpy as np
import oracle
import pytest
import torch
from effect_oracle import ABLATIONS, NO_EDGES, Edges, all_logits, computing_copy, effects, masked_logits
from test_oracle import OnlyDtype, rms_norm, rotate
from tiny_models import ARCHITECTURES, IMAGE_PAD, WINDOW, is_vision_language, tiny_image_inputs, tiny_inputs, tiny_model

N_PROMPT = 9  # longer than the sliding window
N_HEADS, GROUP = 4, 2  # heads 0 and 1 share a key/value head, and so do heads 2 and 3
VISION_LANGUAGE = ("qwen3_vl", "qwen3_vl_moe")
CASES = [(name, False) for name in ARCHITECTURES] + [(name, True) for name in VISION_LANGUAGE]
USUAL = (("qwen3", False), ("gemma3_text", False), ("qwen3_vl_moe", True))
every_case = pytest.mark.parametrize(
    ("name", "image"),
    [
        pytest.param(*case, id=f"{case[0]}{'-image' * case[1]}", marks=[pytest.mark.slow] * (case not in USUAL))
        for case in CASES
    ],
)
every_case_and_ablation = pytest.mark.parametrize(
    ("name", "image", "ablation"),
    [
        pytest.param(*case, ablation, id=f"{case[0]}{'-image' * case[1]}-{ablation}", marks=marks)
        for at, case in enumerate(CASES)
        for marks, ablations in [([], ABLATIONS) if case in USUAL else ([pytest.mark.slow], ABLATIONS[at % 3 :][:1])]
        for ablation in ablations
    ],
)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def prompt(model, image=False):
    """Inputs without an image (9 tokens) or with one (3 of text, start, 6 of the image, end, 3 of text: 14 tokens)."""
    return tiny_image_inputs(model) if image else tiny_inputs(model, N_PROMPT)


def generate(model, inputs, num_tokens):
    """Greedily produced token ids, and the logits [vocabulary] behind each, as the model computes them with its cache."""
    output = model.generate(
        **inputs, max_new_tokens=num_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    token_ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return token_ids, [logits[0].double() for logits in output.logits]


@torch.no_grad()
def own_logits(model, inputs, **arguments):
    """Logits [S, vocabulary] of the model's plain forward over the prompt."""
    return model(**(inputs | arguments), use_cache=False).logits[0].double()


def assert_same(actual, expected, rtol=1e-5):
    """Every logit is within `rtol` of the largest expected one; 1e-5 is what float32 leaves of a whole forward."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < rtol, f"logits differ by {error:.2g} of the largest"


def assert_other(actual, expected):
    """The logits differ by far more than any rounding."""
    assert (actual - expected).abs().max() > 1e-3 * expected.abs().max()


# Nothing is cut.


@every_case
def test_with_nothing_cut_the_logits_are_the_models_own_at_every_step(name, image):
    """Prefill and decoding with the cache, in the model's own attention backend; and every position of the prompt."""
    model = tiny_model(name)
    inputs = prompt(model, image)
    token_ids, expected = generate(model, inputs, 4)
    for step, logits in enumerate(expected):
        got = masked_logits(model, inputs, token_ids[:step], layers=(), queries=(), keys=())
        assert got.shape == logits.shape
        assert got.dtype == torch.float64
        assert_same(got, logits)
    assert_same(all_logits(computing_copy(model), inputs, (), NO_EDGES), own_logits(model, inputs))


@every_case_and_ablation
def test_edges_that_are_not_there_change_nothing(name, image, ablation):
    """An empty set of layers, queries, keys or heads; and all keys that come after the queries.

    With weights instead of masks the attention output is computed again, from the same numbers but for rounding.
    """
    model = tiny_model(name)
    inputs = prompt(model, image)
    duplicate = computing_copy(model)
    length = inputs["input_ids"].shape[1]
    every_layer = tuple(range(len(oracle.decoder_layers(model))))
    early, late = tuple(range(5)), tuple(range(5, length))
    plain = all_logits(duplicate, inputs, (), NO_EDGES)
    for edges in (
        Edges((), late, early, None, ablation),
        Edges(every_layer, (), early, None, ablation),
        Edges(every_layer, late, (), None, ablation),
        Edges(every_layer, late, early, (), ablation),
        Edges(every_layer, early, late, None, ablation),
    ):
        got = all_logits(duplicate, inputs, (), edges)
        if ablation == "mask":
            assert torch.equal(got, plain)
        else:
            assert_same(got, plain, rtol=1e-12)
    assert_other(all_logits(duplicate, inputs, (), Edges(every_layer, late, early, None, ablation))[-1], plain[-1])


def test_keys_outside_a_sliding_window_change_nothing():
    """Gemma 3: layers 0 and 2 slide, layers 1 and 3 see everything."""
    model = tiny_model("gemma3_text")
    duplicate, inputs = computing_copy(model), prompt(model)
    plain = all_logits(duplicate, inputs, (), NO_EDGES)[-1]
    first_seen = N_PROMPT - WINDOW
    for ablation in ABLATIONS:
        for layer in range(4):
            for key in (first_seen - 1, first_seen):
                edges = Edges((layer,), (N_PROMPT - 1,), (key,), None, ablation)
                got = all_logits(duplicate, inputs, (), edges)[-1]
                if layer % 2 == 0 and key < first_seen:
                    assert_same(got, plain, rtol=1e-12)
                else:
                    assert (got - plain).abs().max() > 1e-6 * plain.abs().max()


@every_architecture
def test_the_arithmetic_is_float64_throughout(name):
    """Norms, softmax and router ask for float32. (A vision tower's grid positions stay float32, before any layer.)"""
    model = tiny_model(name)
    duplicate, inputs = computing_copy(model), prompt(model)
    for ablation in ABLATIONS:
        with OnlyDtype(torch.float64):
            got = all_logits(duplicate, inputs, (), Edges((1,), (8,), (2,), None, ablation))
        assert got.dtype == torch.float64


def test_another_arithmetic_is_taken_when_asked_for():
    """In float32 to a few roundings; in bfloat16 near, but not nearer than bfloat16 gets, and what such a model gives."""
    model = tiny_model("qwen3")
    inputs = prompt(model)
    cut = {"layers": (1,), "queries": (8,), "keys": (2,)}
    exact = masked_logits(model, inputs, (), **cut)
    for dtype, least, most in ((torch.float32, 1e-9, 1e-5), (torch.bfloat16, 1e-4, 5e-2)):
        got = masked_logits(model, inputs, (), **cut, dtype=dtype)
        assert got.dtype == torch.float64
        assert least < (got - exact).abs().max() / exact.abs().max() < most
        own = tiny_model("qwen3", dtype=dtype)
        own.set_attn_implementation("eager")
        assert torch.equal(all_logits(computing_copy(model, dtype), inputs, (), NO_EDGES), own_logits(own, inputs))


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_produced_token_with_the_id_of_an_image_feature_is_text(name):
    """Random models produce it. Against the model's own step with the cache, where no image is given."""
    model = tiny_model(name)
    inputs = prompt(model, image=True)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        expected = model(input_ids=torch.tensor([[IMAGE_PAD]]), past_key_values=cache).logits[0, -1]
    assert_same(masked_logits(model, inputs, [IMAGE_PAD], layers=(), queries=(), keys=()), expected.double())


# Masks, against the model's forward with a mask of its own, and against changed weights.


@every_case
def test_a_key_hidden_everywhere_equals_a_padding_mask_that_hides_it(name, image):
    """All layers, all queries: at the other positions the model does the same when told that J is padding.

    Position ids are those of the whole prompt: without them the model would count on without J. At J itself the
    two differ: J sees nothing here, or only what came before, and what a model computes for padding is its own affair.
    This applies to all nine architectures and to images: DeepStack still adds to J, but nobody looks there.
    """
    model = tiny_model(name)
    inputs = prompt(model, image)
    length = inputs["input_ids"].shape[1]
    position_ids = torch.arange(length)[None]
    if image:
        position_ids, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    duplicate = computing_copy(model)
    every_layer, everywhere = tuple(range(len(oracle.decoder_layers(model)))), tuple(range(length))
    plain = own_logits(model, inputs)
    for hidden in ((0,), (4,), (length - 2,), (4, 5, 6), (0, 1)):
        attention_mask = torch.ones(1, length, dtype=torch.long)
        attention_mask[0, list(hidden)] = 0
        expected = own_logits(model, inputs, attention_mask=attention_mask, position_ids=position_ids)
        got = all_logits(duplicate, inputs, (), Edges(every_layer, everywhere, hidden))
        others = [position for position in everywhere if position not in hidden]
        assert_same(got[others], expected[others])
        if hidden[0] > 0:
            assert_same(got[: hidden[0]], plain[: hidden[0]])
        assert_other(got[hidden[-1] + 1 :], plain[hidden[-1] + 1 :])


@every_case
def test_a_head_with_no_key_left_is_a_head_whose_output_counts_nothing(name, image):
    """One head, one layer, every edge: the model whose output projection has zeros for that head, there only."""
    model = tiny_model(name)
    inputs = prompt(model, image)
    everywhere = tuple(range(inputs["input_ids"].shape[1]))
    duplicate = computing_copy(model)
    for layer, head in ((0, 0), (1, 2), (2, 3), (1, 1)):
        changed = copy.deepcopy(model)
        attention = oracle.decoder_layers(changed)[layer].self_attn
        attention.o_proj.weight.data[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0
        got = all_logits(duplicate, inputs, (), Edges((layer,), everywhere, everywhere, (head,)))
        assert_same(got, own_logits(changed, inputs))


@every_architecture
def test_other_heads_and_other_layers_give_other_numbers(name):
    """Heads shifted by a group, a head more or less, a layer up: no comparison with the oracle overlooks it."""
    model = tiny_model(name)
    inputs = prompt(model)
    duplicate = computing_copy(model)
    for ablation in ABLATIONS:
        choices = [(1, (0, 1)), (1, (0 + GROUP, 1 + GROUP)), (1, (0,)), (1, (1,)), (1, None), (0, None), (2, None)]
        results = [
            all_logits(duplicate, inputs, (), Edges((layer,), (8,), (6, 7), heads, ablation))[-1]
            for layer, heads in choices
        ]
        for index, one in enumerate(results):
            for other in results[:index]:
                assert_other(one, other)
        every_head = Edges((1,), (8,), (6, 7), tuple(range(N_HEADS)), ablation)
        assert torch.equal(all_logits(duplicate, inputs, (), every_head)[-1], results[4])


# Values, against changed models.


@every_case
def test_a_value_zeroed_for_every_query_equals_a_projection_that_gives_zero(name, image):
    model = tiny_model(name)
    inputs = prompt(model, image)
    length = inputs["input_ids"].shape[1]
    for layer, keys in ((0, (3,)), (1, (0,)), (2, (2, length - 1))):
        changed = copy.deepcopy(model)
        attention = oracle.decoder_layers(changed)[layer].self_attn
        fused = hasattr(attention, "qkv_proj")

        def zeroed(module, args, output, keys=keys, attention=attention):
            output = output.clone()
            output[0, list(keys), -GROUP * attention.head_dim :] = 0
            return output

        (attention.qkv_proj if fused else attention.v_proj).register_forward_hook(zeroed)
        edges = Edges((layer,), tuple(range(length)), keys, None, "zero-value")
        assert_same(all_logits(computing_copy(model), inputs, (), edges), own_logits(changed, inputs))


@every_case
def test_all_values_replaced_by_their_mean_equals_attention_that_does_not_look(name, image):
    """With scores of next to 0 every query weighs all keys that it sees the same, within a window too."""
    model = tiny_model(name)
    inputs = prompt(model, image)
    everywhere = tuple(range(inputs["input_ids"].shape[1]))
    for layer in range(3):
        changed = copy.deepcopy(model)
        oracle.decoder_layers(changed)[layer].self_attn.scaling = 1e-12  # not 0, which some kernels multiply by -inf
        edges = Edges((layer,), everywhere, everywhere, None, "mean-value")
        got = all_logits(computing_copy(model), inputs, (), edges)
        assert_same(got, own_logits(changed, inputs))


# By hand: a whole Mistral in numpy, one edge after the other, straight from the weights.


def mistral_by_hand(model, input_ids, edges, *, renormalize=True, mean_over_kept=False):
    """Logits [S, vocabulary]. The two switches build wrong implementations: a weight set to 0 after the softmax, and
    a mean that leaves out the values it replaces.
    """
    weights = {name: parameter.double().numpy() for name, parameter in model.named_parameters()}
    n_positions = len(input_ids)
    angles = np.outer(np.arange(n_positions), model.model.rotary_emb.inv_freq.double().numpy())
    cos, sin = (np.concatenate([wave, wave], axis=1)[:, None] for wave in (np.cos(angles), np.sin(angles)))
    head_dim, window = model.config.head_dim, model.config.sliding_window
    x = weights["model.embed_tokens.weight"][input_ids]

    for number in range(model.config.num_hidden_layers):

        def linear(name, value, number=number):
            return value @ weights[f"model.layers.{number}.{name}.weight"].T

        def norm(name, value, number=number):
            return rms_norm(value, weights[f"model.layers.{number}.{name}.weight"], model.config.rms_norm_eps)

        normed = norm("input_layernorm", x)
        q, k, v = (linear(f"self_attn.{p}_proj", normed).reshape(n_positions, -1, head_dim) for p in "qkv")
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = np.zeros(q.shape)
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            cuts_head = number in edges.layers and (edges.heads is None or head in edges.heads)
            for query in range(n_positions):
                seen = range(max(0, query - window + 1), query + 1)
                cut = [key for key in seen if cuts_head and query in edges.queries and key in edges.keys]
                kept = [key for key in seen if key not in cut]
                renormalized = edges.ablation == "mask" and renormalize
                share = kept if renormalized else seen
                exponentials = {key: np.exp(q[query, head] @ k[key, group] / head_dim**0.5) for key in share}
                mean = np.mean([v[key, group] for key in (kept if mean_over_kept and kept else seen)], axis=0)
                for key in share:
                    value = v[key, group]
                    if key in cut:
                        value = mean if edges.ablation == "mean-value" else 0 * value
                    attended[query, head] += exponentials[key] / sum(exponentials.values()) * value
        x = x + linear("self_attn.o_proj", attended.reshape(n_positions, -1))
        normed = norm("post_attention_layernorm", x)
        gate = linear("mlp.gate_proj", normed)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", normed))
    return torch.from_numpy(
        rms_norm(x, weights["model.norm.weight"], model.config.rms_norm_eps) @ weights["lm_head.weight"].T
    )


BY_HAND = [
    ((1,), (8,), (6,), None),
    ((0, 1), (8,), (5, 7), None),
    ((0, 1, 2), tuple(range(9)), (4,), None),  # position 4 is hidden from itself as well, and still sees 0 .. 3
    ((1,), tuple(range(9)), (0,), None),  # query 0 is left with no key
    ((0, 2), (8, 6), (4, 5, 6, 7, 8), None),  # query 8 is left with no key: these five are its window
    ((1, 2), (7, 8), (3, 6, 8), (0,)),
    ((0, 1), (5, 8), (4, 5), (3,)),
]


def by_hand_model(n_heads):
    return tiny_model("mistral", num_attention_heads=n_heads, num_key_value_heads=max(1, n_heads // GROUP))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("n_heads", [1, N_HEADS])
def test_the_logits_are_those_computed_by_hand(n_heads, ablation):
    """A single head, and four that share two key/value heads; every position; 1e-12 also shows float64 throughout."""
    model = by_hand_model(n_heads)
    inputs = prompt(model)
    duplicate = computing_copy(model)
    for layers, queries, keys, heads in [*BY_HAND, ((), (), (), None)]:
        if n_heads == 1 and heads is not None:
            heads = (0,)
        edges = Edges(layers, queries, keys, heads, ablation)
        expected = mistral_by_hand(model, inputs["input_ids"][0].numpy(), edges)
        assert_same(all_logits(duplicate, inputs, (), edges), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("ablation", "broken"), [("mask", {"renormalize": False}), ("mean-value", {"mean_over_kept": True})]
)
def test_likely_mistakes_are_rejected(ablation, broken):
    """Each is another definition, not a rounding error."""
    model = by_hand_model(N_HEADS)
    inputs = prompt(model)
    for layers, queries, keys, heads in BY_HAND[:3]:
        edges = Edges(layers, queries, keys, heads, ablation)
        wrong = mistral_by_hand(model, inputs["input_ids"][0].numpy(), edges, **broken)
        assert_other(wrong[-1], all_logits(computing_copy(model), inputs, (), edges)[-1])


# What effects are made of.


@pytest.mark.parametrize(("queries", "window"), [("last", 1), ("all", 4)])
@pytest.mark.parametrize(("name", "image"), [("mistral", False), ("qwen3_vl", False), ("qwen3_vl_moe", True)])
def test_effects_are_differences_of_single_forwards(name, image, queries, window):
    """Every centre layer against layers written down, every number against its definition, in numpy."""
    model = tiny_model(name, num_hidden_layers=4)
    inputs = prompt(model, image)
    token_ids, _ = generate(model, inputs, 3)
    step = 2
    last = inputs["input_ids"].shape[1] + step - 1
    positions = (0, last - 3, last)
    result = effects(model, inputs, token_ids, step, window=window, queries=queries, positions=positions)
    layers_of = {
        1: [(0,), (1,), (2,), (3,)],
        2: [(0, 1), (1, 2), (2, 3), (3,)],
        3: [(0, 1), (0, 1, 2), (1, 2, 3), (2, 3)],
        4: [(0, 1, 2), (0, 1, 2, 3), (1, 2, 3), (2, 3)],
    }[window]
    plain = masked_logits(model, inputs, token_ids[:step], layers=(), queries=(), keys=()).numpy()
    assert all(values.shape == (4, len(positions)) for values in result.values())
    for centre, layers in enumerate(layers_of):
        for column, position in enumerate(positions):
            cut = masked_logits(
                model,
                inputs,
                token_ids[:step],
                layers=layers,
                queries=(last,) if queries == "last" else range(last + 1),
                keys=(position,),
            ).numpy()
            p, q = (np.exp(logits) / np.exp(logits).sum() for logits in (plain, cut))
            token = token_ids[step]
            expected = {
                "logit_change": cut[token] - plain[token],
                "logprob_change": np.log(q[token] / p[token]),
                "kl_divergence": (p * np.log(p / q)).sum(),
                "top1": cut.argmax(),
                "top1_changed": cut.argmax() != token,
            }
            assert set(result) == set(expected)
            for key, value in expected.items():
                np.testing.assert_allclose(result[key][centre, column], value, rtol=1e-9, atol=1e-13, err_msg=key)


@every_case
def test_effects_of_every_position_are_what_effects_have_to_be(name, image):
    """KL >= 0, exactly 0 where the query sees no such key, and never all the same."""
    model = tiny_model(name)
    inputs = prompt(model, image)
    token_ids, _ = generate(model, inputs, 3)
    n_layers = len(oracle.decoder_layers(model))
    for step in (0, 2)[image:]:
        length = inputs["input_ids"].shape[1] + step
        result = effects(model, inputs, token_ids, step)
        windows = [oracle.window_of(layer) for layer in oracle.decoder_layers(model)]
        seen = np.stack([oracle.visible_keys(length, window)[-1].numpy() for window in windows])
        assert all(values.shape == (n_layers, length) for values in result.values())
        assert (result["kl_divergence"] >= 0).all()
        assert (result["kl_divergence"][seen] > 0).all()
        assert (result["logit_change"][seen] != 0).all()
        assert (result["logprob_change"] < 0).any()
        assert (result["logprob_change"] > 0).any()
        for measure in ("kl_divergence", "logit_change", "logprob_change", "top1_changed"):
            assert (result[measure][~seen] == 0).all()
        assert ((result["top1"] == token_ids[step]) != result["top1_changed"]).all()
        assert result["top1_changed"].dtype == bool


@pytest.mark.parametrize(("heads", "ablation"), [((2, 3), "mask"), ((0,), "zero-value"), (None, "mean-value")])
def test_effects_of_heads_and_values(heads, ablation):
    model = tiny_model("qwen3")
    inputs = prompt(model)
    token_ids, [plain, *_] = generate(model, inputs, 1)
    result = effects(model, inputs, token_ids, 0, heads=heads, ablation=ablation, positions=(5,))
    cut = masked_logits(
        model, inputs, (), layers=(2,), queries=(N_PROMPT - 1,), keys=(5,), heads=heads, ablation=ablation
    )
    assert abs(result["logit_change"][2, 0] - float(cut[token_ids[0]] - plain[token_ids[0]])) < 1e-5 * plain.abs().max()


# The model stays as it was.


def state_of(model):
    """All that a careless measurement could leave behind in a model."""
    configs = {name: vars(module.config) for name, module in model.named_modules() if hasattr(module, "config")}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    tensors = {name: (tensor.dtype, tensor.double().sum()) for name, tensor in model.state_dict().items()}
    return copy.deepcopy(configs), hooks, tensors, str(getattr(model.model, "rope_deltas", None)), model.training


@every_case_and_ablation
def test_the_model_is_left_as_it_was(name, image, ablation):
    """After use, after a refusal, and after an error in the middle of a forward; nor does anything global change."""
    model = tiny_model(name)
    inputs = prompt(model, image)
    before = state_of(model)
    logits = own_logits(model, inputs)
    if is_vision_language(model):
        model.model.rope_deltas = None  # what the plain forward left behind

    cut = {"layers": (0, 1), "queries": (8,), "keys": (3,), "ablation": ablation}
    masked_logits(model, inputs, (), **cut)
    assert state_of(model) == before

    with pytest.raises(ValueError, match="key 99 is not there"):
        masked_logits(model, inputs, (), **(cut | {"keys": (99,)}))
    assert state_of(model) == before

    duplicate = computing_copy(model)
    expected, unhooked = all_logits(duplicate, inputs, (), NO_EDGES), state_of(duplicate)[1]
    handle = oracle.decoder_layers(duplicate)[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        all_logits(duplicate, inputs, (), Edges(**cut))
    handle.remove()
    assert state_of(duplicate)[1] == unhooked
    assert torch.equal(all_logits(duplicate, inputs, (), NO_EDGES), expected)
    assert state_of(model) == before
    assert torch.zeros(1).double().float().dtype == torch.float32
    assert torch.equal(own_logits(model, inputs), logits)


def fail(module, args):
    raise ZeroDivisionError


# What cannot be right.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": (3,)}, "layer 3 is not there: it must be 0 .. 2"),
        ({"layers": (-1,)}, "layer -1 is not there"),
        ({"queries": (9,)}, "query 9 is not there: it must be 0 .. 8"),
        ({"keys": (-2,)}, "key -2 is not there"),
        ({"heads": (4,)}, "head 4 is not there: it must be 0 .. 3"),
        ({"ablation": "zero"}, "ablation must be one of mask, zero-value, mean-value, not 'zero'"),
    ],
)
def test_indices_and_ablations_that_are_not_there_are_refused(wrong, message):
    model = tiny_model("qwen3")
    right = {"layers": (1,), "queries": (8,), "keys": (2,)}
    with pytest.raises(ValueError, match=message):
        masked_logits(model, prompt(model), (), **(right | wrong))


def test_inputs_that_the_oracle_does_not_know_are_refused():
    model = tiny_model("qwen3")
    nothing = {"layers": (), "queries": (), "keys": ()}
    inputs = prompt(model)
    padded = inputs | {"attention_mask": torch.tensor([[0] + [1] * 8])}
    with pytest.raises(ValueError, match="padding"):
        masked_logits(model, padded, (), **nothing)
    two = {key: value.expand(2, -1) for key, value in inputs.items()}
    with pytest.raises(ValueError, match="batch of one"):
        masked_logits(model, two, (), **nothing)
    with pytest.raises(ValueError, match="position_ids"):
        masked_logits(model, inputs | {"position_ids": torch.arange(9)[None]}, (), **nothing)
    with pytest.raises(ValueError, match="queries must be"):
        effects(model, inputs, [1], 0, queries="first")


def test_a_mask_that_is_not_of_visible_keys_is_refused():
    """A model that adds a bias to its scores by the mask would lose it."""
    with pytest.raises(ValueError, match="not a mask of visible keys"):
        effect_oracle.visible_in(torch.full((1, 1, 2, 2), -0.5))
