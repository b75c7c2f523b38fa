"""Effects and estimates where a layer reads other positions by something beside a softmax attention, counts its rows, has
queries that look ahead, or reads the keys of another layer: against the whole model run in float64 with attention edges cut, and
against gradients through it."""

from types import SimpleNamespace

import family_oracle
import numpy as np
import pytest
import torch
from family_models import NotHere, build, family_inputs, family_model
from marks import slow_but
from test_family_effects import EVERY, Constants, at_each_step, brute_force, by_autograd, replayed
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from mask_impact.engine import effects, replay, sight, whole
from mask_impact.engine.backward import estimate_last, estimates
from mask_impact.engine.effects import measure_effects
from mask_impact.engine.kept import keep, keeper_of, keeping
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.keeping import FoundDecoder
from mask_impact.engine.shared import ForGradients, ForRows
from mask_impact.engine.states import LayerState
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import Masks, Variants, each_window_and_group
from mask_impact.engine.whole import rows_through_layers
from mask_impact.errors import ExactnessError, UnsupportedArchitecture

# Layers without a softmax attention stand behind others that have one, so that what is hidden there has to go through them.
BETWEEN = {
    "qwen3_5_text": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention", "conv"], "num_hidden_layers": 4},
    "granitemoehybrid": {"layer_types": ["attention", "mamba", "attention"]},
    "nemotron_h": {"layers_block_type": ["attention", "mamba", "attention", "moe"]},
}
COUNTING = ("llama4_text",)
AHEAD = ("gemma3", "paligemma")
SHARING = ("gemma4_text",)  # the last two of four layers read the keys of the first two
FAMILIES = (*BETWEEN, *COUNTING, *AHEAD, *SHARING)


def tiny(name, dtype=torch.float64):
    """A tiny model with the attention that knows softcaps, and inputs for it, with an image where it takes one."""
    try:
        model = family_model(name, dtype=dtype, **BETWEEN.get(name, {}))
    except NotHere as error:
        pytest.skip(str(error))
    model.set_attn_implementation("eager")
    return model, family_inputs(model)


@pytest.fixture(scope="module")
def exact():
    """By name, a float64 model with its inputs and the pass of them."""
    made = {}

    def of(name):
        if name not in made:
            model, inputs = tiny(name)
            with family_oracle.in_float64():
                made[name] = model, inputs, keep(model, inputs)
        return made[name]

    return of


# --- effects --------------------------------------------------------------------------------------------------------------


USUAL = (("qwen3_5_text", "all"), ("lfm2", 1), ("gemma3", "all"), ("gemma4_text", "all"))
SLOWLY = [(name, width) for name in FAMILIES for width in (1, "all") if (name, width) != ("granitemoehybrid", 1)]


@pytest.mark.parametrize("case", slow_but(USUAL, SLOWLY), ids=str)
def test_effects_are_those_of_the_whole_model_with_edges_cut(case, exact):
    """Hidden in one layer from the last query, and in all layers from every query."""
    name, width = case
    (model, inputs, kept), queries = exact(name), "last" if width == 1 else "all"
    with family_oracle.in_float64():
        found, token = replayed(kept, width, queries)
    expected = brute_force(model, inputs, (), token, EVERY if queries == "all" else -1, width, len(kept.states))
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-9)
    nowhere = [index for index, state in enumerate(kept.states) if state.keys is None]
    if width == 1:
        assert (found[nowhere] == 0).all()
        assert bool(nowhere) == (name in BETWEEN)


@pytest.mark.parametrize("name", slow_but(("lfm2",), (*BETWEEN, *COUNTING, *SHARING)))
def test_edges_cut_between_some_tokens_are_those_of_the_whole_model(name, exact):
    """A knockout: one key, from two queries in the middle, in the first two layers."""
    model, inputs, kept = exact(name)
    n, token = kept.n_positions, int(kept.logits[-1].argmax())
    keys, queries = (torch.zeros(1, n, dtype=torch.bool) for _ in range(2))
    keys[0, 2] = queries[0, 4] = queries[0, 5] = True
    zero = torch.zeros(1, dtype=torch.int64)
    with family_oracle.in_float64():
        variants = Variants(Masks(keys, queries), zero, zero, zero + 1)
        found = measure_targets(kept, variants, [Target(n - 1, token)], kept.logits[-1:]).logprob_change[0]
    oracle = family_oracle.Oracle(model)
    edges = {layer: [(slice(4, 6), 2)] for layer in (0, 1)}
    before, after = (torch.log_softmax(oracle.logits(inputs, (), hide), -1)[token] for hide in (None, edges))
    assert found == pytest.approx(float(after - before), rel=3e-7, abs=1e-9)
    assert abs(found) > 1e-5


def some_by_force(model, inputs, produced, token, queries, pairs):
    """The change of the token's log-probability where a position is hidden in a layer, for some (layer, position)."""
    oracle = family_oracle.Oracle(model)
    before = torch.log_softmax(oracle.logits(inputs, produced), dim=-1)[token]
    hide = [{layer: [(queries, position)]} for layer, position in pairs]
    return [float(torch.log_softmax(oracle.logits(inputs, produced, one), dim=-1)[token] - before) for one in hide]


DECODED = [(name, queries) for name in ("lfm2", "nemotron_h", *COUNTING) for queries in ("last", "all")]
DECODED += [("qwen3_next", "last"), ("qwen3_5_text", "all"), ("gemma3", "all"), *((name, "all") for name in SHARING)]


@pytest.mark.parametrize("case", slow_but((("lfm2", "all"),), DECODED), ids=str)
def test_effects_of_decode_steps_with_a_cache_are_those_of_the_whole_model(case):
    """float32, beside the local maps, twice: before and after it is known which layers run with whole sequences."""
    (name, queries) = case
    model, inputs = tiny(name, torch.float32)
    for _ in range(2):
        engine = RidingEngine(model, keep_states=queries)

        def measure(logits, engine=engine):
            n = engine.n_positions
            variants = each_window_and_group([(one,) for one in range(n)], n, len(engine.states), 1, queries)
            return measure_effects(engine, variants, logits)

        steps, ids = at_each_step(engine, model, inputs, 3, measure)
        found = steps[-1].logprob_change.reshape(-1, inputs["input_ids"].shape[1] + 2)
    pairs = [(layer, place) for layer in (0, 2) for place in (1, 4, found.shape[1] - 2)]
    expected = some_by_force(model, inputs, ids[:2], ids[2], EVERY if queries == "all" else -1, pairs)
    np.testing.assert_allclose([found[pair] for pair in pairs], expected, rtol=1e-3, atol=1e-4)
    assert max(steps[-1].floor) < 1e-4


@pytest.mark.parametrize("name", slow_but(("qwen3_5_text", "gemma4_text"), (*BETWEEN, *COUNTING, "gemma3", *SHARING)))
def test_a_pass_of_generate_is_as_good_as_one_of_the_whole_sequence(name):
    """Kept while tokens were produced one by one, from states that layers carry; cut short, it is the pass of fewer of them."""
    model, inputs = tiny(name, torch.float32)
    n_prompt = inputs["input_ids"].shape[1]
    with keeping(keeper_of(model)) as kept:
        ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, n_prompt:].tolist()
    cut = kept[0].until(n_prompt + 2)
    longer = family_oracle.full_inputs(inputs, ids[:2], model.config.model_type)
    whole_pass = keep(model, {key: one.float() if one.is_floating_point() else one for key, one in longer.items()}, 3)
    targets = [Target(n_prompt + 1, ids[2]), Target(n_prompt, 4)]
    one, other = (estimates(some, targets) for some in (cut, whole_pass))
    for rule in one:
        torch.testing.assert_close(one[rule].every, other[rule].every, rtol=2e-3, atol=1e-4)
    variants = each_window_and_group([(2,), (n_prompt - 2, 3)], n_prompt + 2, len(cut.states), "all", "all")
    one, other = (measure_targets(some, variants, targets, some.logits[[-1, -2]]) for some in (cut, whole_pass))
    np.testing.assert_allclose(one.logprob_change, other.logprob_change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(("qwen3_5_text",), ("lfm2", "nemotron_h", "qwen3_next")))
def test_bfloat16_keeps_the_digits_of_small_effects(name):
    """Of whole states in bfloat16 an effect of a thousandth would have none."""
    model, inputs = tiny(name, torch.bfloat16)
    kept = keep(model, inputs)
    found, token = replayed(kept, 1, "last")
    expected = brute_force(model, inputs, (), token, -1, 1, len(kept.states))
    large = np.abs(expected) > 1e-3 * np.abs(expected).max()
    assert np.median(np.abs(found[large] / expected[large] - 1)) < (0.05 if name in ("qwen3_5_text", "lfm2") else 0.3)


def test_what_a_layer_carries_is_run_once_and_never_written_into(exact, monkeypatch):
    """Variants of the last query go on from copies of one state; the model's own caches are not touched."""
    model, _, kept = exact("qwen3_5_text")
    lengths = []
    linear = model.model.layers[1].linear_attn
    handle = linear.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["hidden_states"].shape[:2])), with_kwargs=True
    )
    monkeypatch.setattr(effects, "prove", lambda kept: None)
    try:
        with family_oracle.in_float64():
            first, _ = replayed(kept, 1, "last")
            again, _ = replayed(kept, 1, "last")
    finally:
        handle.remove()
    n = kept.n_positions
    assert set(lengths) == {(1, n - 1), (1, 1), (n, 1)}
    np.testing.assert_array_equal(first, again)


# --- estimates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(("qwen3_5_text", "gemma3", "gemma4_text"), FAMILIES))
def test_gradient_estimates_are_gradients_through_the_whole_model_along_what_hiding_does(name, exact):
    model, inputs, kept = exact(name)
    with family_oracle.in_float64():
        target = Target(kept.n_positions - 1, int(kept.logits[-1].topk(3).indices[1]))
        layers = [index for index, state in enumerate(kept.states) if state.keys is not None]
        found = estimates(kept, [target], ("gradient",), layers=layers)["gradient"]
        alone = estimate_last(kept, target)
        expected = by_autograd(model, inputs, target.token)
    assert expected.abs().amax((1, 2, 3)).min() > 1e-4
    maps = torch.stack([found.maps[layer] for layer in layers])
    torch.testing.assert_close(maps.double(), expected, rtol=1e-5, atol=1e-7)
    for last in (found.last, alone):
        torch.testing.assert_close(last[layers].double(), expected[:, :, -1], rtol=1e-5, atol=1e-7)
    others = sorted({*range(len(kept.states))} - {*layers})
    assert not found.every[others].any()
    assert found.received[others].isnan().all()


class AroundConvolutions(Constants):
    """LFM2 with what reads other positions by a convolution as it is; its gate is a function, no module."""

    def __init__(self, model, inputs):
        free = [one for one in model.modules() if type(one).__name__ == "Lfm2ShortConv"]
        self.free = {part for one in free for part in one.modules()}
        self.ratios = []
        super().__init__(model, inputs)

    def run(self, hook, attend):
        self.modules = self.modules - self.free
        known, place = hook == self.put, iter(range(len(self.ratios)))
        own = torch.nn.functional.silu

        def silu(x):
            if not known:
                self.ratios.append(own(x) / x)
            return x * self.ratios[next(place) if known else -1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "silu", silu)
            return super().run(hook, attend)


def test_frozen_estimates_go_through_what_reads_other_positions_by_the_true_gradient(exact):
    model, inputs, kept = exact("lfm2")
    with family_oracle.in_float64():
        token = int(kept.logits[-1].topk(3).indices[1])
        constants = AroundConvolutions(model, inputs)
        found = estimates(kept, [Target(kept.n_positions - 1, token)], ("frozen", "gradient"), layers=(0, 2))
        constants.odds(token, (0, 0, 0, torch.zeros(())))
        for place, head, row, key in ((0, 1, 8, 3), (0, 0, 5, 2), (1, 3, 8, 4)):
            along = 1e-5 * constants.changes[place][key, head, row]
            up, down = (constants.odds(token, (place, head, row, sign * along)) for sign in (1, -1))
            frozen, plain = (float(found[rule].maps[2 * place][head, row, key]) for rule in ("frozen", "gradient"))
            assert frozen == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)
            assert frozen != pytest.approx(plain, rel=1e-2)


# --- what must not go unnoticed -------------------------------------------------------------------------------------------


def rows_alone(monkeypatch):
    """As if what a layer carries did not matter: each variant's rows run as the others' do."""
    monkeypatch.setattr(FoundDecoder, "runs_whole", lambda self, index: False)


def stale_states(monkeypatch):
    """As if what a variant changes reached its last position alone."""
    own = whole.run_layer

    def run(kept, index, sequences, maps, attention, arguments):
        if maps is None or sequences.shape[1] == 1 or kept.states[index].keys is not None:
            return own(kept, index, sequences, maps, attention, arguments)
        nothing = kept.states[index].entered.to(sequences).expand_as(sequences)
        sequences = torch.cat([nothing[:, :-1], sequences[:, -1:]], dim=1)
        return own(kept, index, sequences, maps, attention, arguments)

    monkeypatch.setattr(whole, "run_layer", run)


def without_looking_back(monkeypatch):
    """As if nobody before a token had seen it."""
    monkeypatch.setattr(sight, "_seen_ahead", lambda kept: None)


def own_keys_alone(monkeypatch):
    """As if what a variant changes in a layer's keys stayed there."""
    monkeypatch.setattr(ForRows, "__setitem__", lambda self, name, pair: None)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("lfm2", rows_alone),
        ("lfm2", stale_states),
        ("gemma3", without_looking_back),
        ("gemma4_text", own_keys_alone),
    ],
)
def test_the_oracle_tells_what_is_left_out(name, broken, exact, monkeypatch):
    """Where the program's own checks are off."""
    model, inputs, kept = exact(name)
    monkeypatch.setattr(effects, "prove", lambda kept: None)
    monkeypatch.setattr(effects, "check_replayed", lambda *given: None)
    broken(monkeypatch)
    with family_oracle.in_float64():
        found, token = replayed(kept, "all", "all")
    expected = brute_force(model, inputs, (), token, EVERY, "all", len(kept.states))
    assert np.abs(found - expected).max() > 1e-3


def test_the_oracle_tells_a_gradient_that_does_not_come_back_from_shared_keys(exact, monkeypatch):
    model, inputs, kept = exact("gemma4_text")
    monkeypatch.setattr(ForGradients, "outputs", lambda self, rules: ([], {rule: [] for rule in rules}))
    with family_oracle.in_float64():
        target = Target(kept.n_positions - 1, int(kept.logits[-1].topk(3).indices[1]))
        found = estimates(kept, [target], ("gradient",))["gradient"]
        expected = by_autograd(model, inputs, target.token)
    torch.testing.assert_close(found.every[2:].double(), expected[2:].sum(2), rtol=1e-5, atol=1e-7)
    assert (found.every[:2].double() - expected[:2].sum(2)).abs().max() > 1e-3


def test_a_layer_that_gives_other_states_again_is_refused(monkeypatch):
    """Run with whole sequences, too."""
    model, inputs = tiny("lfm2", torch.float32)
    kept = keep(model, inputs)
    own = whole.run_layer

    def other(*given):
        return own(*given) + 0.1

    monkeypatch.setattr(whole, "run_layer", other)
    monkeypatch.setattr(replay, "run_layer", other)
    with pytest.raises(
        ExactnessError, match=r"^layers\.\d \(Lfm2ForCausalLM\) gives other states when some of its rows"
    ):
        replayed(kept, 1, "last")


def test_an_attention_that_looks_ahead_without_a_mask_is_refused():
    model, inputs = tiny("lfm2", torch.float32)
    model.set_attn_implementation("sdpa")
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(
        UnsupportedArchitecture, match=r"^a query of layers\.0 sees what stands behind it, and no mask says so"
    ):
        keep(model, {"input_ids": inputs["input_ids"]})


def test_what_a_layer_gives_the_next_one_beside_its_states_is_refused():
    """ZAYA's routers get the states of the router before: a variant's own would not reach them."""
    if "zaya" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no zaya")
    tiny = {"vocab_size": 160, "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "router_hidden_size": 16}
    model = build(CONFIG_MAPPING["zaya"](**tiny, pad_token_id=None), MODEL_FOR_CAUSAL_LM_MAPPING)
    said = r"^layers\.1 is given `prev_router_hidden_states` by the layer before it, beside its states \(ZayaForCausalLM\): no "
    with pytest.raises(UnsupportedArchitecture, match=said):
        keep(model, family_inputs(model))


def test_rows_of_whole_sequences_are_counted(exact):
    """Four layers of LFM2, the second and the last of which run whole, or go on from a state."""
    _, _, kept = exact("lfm2")
    n = kept.n_positions
    with family_oracle.in_float64():
        replay.prove(kept)
    every = each_window_and_group([(4,)], n, 4, "all", "all")
    assert rows_through_layers(kept, every) == 2 * (2 * (n - 4) + 2 * n)
    assert rows_through_layers(kept, every, directly=True) == 2 * (n - 4) + 2 * n
    last = each_window_and_group([(4,)], n, 4, "all", "last")
    assert rows_through_layers(kept, last) == 4 + (2 + 2 * n)


def looking(visible):
    """A pass of which one layer's queries see these keys."""
    states = [LayerState(visible=visible, looks_ahead=True), LayerState()]
    return SimpleNamespace(n_positions=len(visible), states=states)


def test_a_variant_begins_where_the_first_position_stands_that_sees_a_change():
    """Positions 2 and 3 see each other, and 1 sees 2: what changes 3 changes 2 in the next layer, and 1 in the one after it."""
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    visible[2, 3] = visible[1, 2] = True
    kept = looking(visible)
    assert sight.with_seers(kept, torch.tensor([5, 4, 3, 2, 1, 0, 6])).tolist() == [5, 4, 1, 1, 1, 0, 6]
    keys, queries = (torch.zeros(2, 6, dtype=torch.bool) for _ in range(2))
    keys[:, 3] = True
    queries[0, 1], queries[1, 2] = True, True
    zero = torch.zeros(2, dtype=torch.int64)
    assert sight.starts_of(kept, Variants(Masks(keys, queries), torch.arange(2), zero, zero)).tolist() == [6, 1]
    assert not sight.looks_ahead_at_the_last(kept)
