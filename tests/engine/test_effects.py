"""Effects on the answer against full forwards of the model with the edges hidden; what may not change does not, to the bit."""

from dataclasses import replace

import effect_oracle
import numpy as np
import pytest
import torch
from marks import slow_but
from tiny_models import ARCHITECTURES, tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.analyses.greedy import greedy_config
from mask_impact.engine import effects as effects_module
from mask_impact.engine import masked_attention, replay
from mask_impact.engine.effects import StepEffects, measure_effects, sees
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.tensor import Ride
from mask_impact.engine.variants import Masks, Variants, each_window_and_group, windows
from mask_impact.errors import DeviceError, ExactnessError, UsageError

N_STEPS = 3
HEADS = (1, 2)  # of four, in different key/value groups


def run(model, inputs, n_steps=N_STEPS, **settings):
    """[(the engine's positions, StepEffects)] of every step, and the produced ids; settings: of `variants_of`."""
    measured = []
    with RidingEngine(model, keep_states=settings.get("queries", "last")) as engine:

        def at_the_end(module, args, output):
            measured.append(measure_effects(engine, variants_of(engine, **settings), output.logits[0, -1]))

        handle = model.register_forward_hook(at_the_end)
        try:
            ids = model.generate(**inputs, generation_config=greedy_config(model, n_steps))
        finally:
            handle.remove()
    return measured, ids[0, inputs["input_ids"].shape[1] :].tolist()


def variants_of(engine, window=1, heads=None, ablation="mask", queries="last"):
    n, n_layers = engine.n_positions, len(engine.decoder.layers)
    variants = each_window_and_group([[position] for position in range(n)], n, n_layers, window, queries)
    chosen = None if heads is None else torch.tensor([head in heads for head in range(engine.decoder.n_heads)])
    chosen = None if heads is None else chosen.expand(n, -1)
    return replace(variants, masks=replace(variants.masks, heads=chosen, ablation=ablation))


def assert_agrees(model, inputs, **settings):
    measured, ids = run(model, inputs, **settings)
    assert len(measured) == N_STEPS
    for step in (0, N_STEPS - 1):
        effects = measured[step]
        expected = effect_oracle.effects(model, inputs, ids, step, **settings)
        shape = expected["logit_change"].shape
        # Relative to the logits' spread: logits are what the model computes, and effects are their differences.
        for name in ("logit_change", "logprob_change"):
            np.testing.assert_allclose(
                getattr(effects, name).reshape(shape),
                expected[name],
                rtol=1e-4,
                atol=1e-5 * np.abs(expected[name]).max(),
            )
        kl = expected["kl_divergence"]
        np.testing.assert_allclose(effects.kl_divergence.reshape(shape), kl, rtol=1e-3, atol=1e-6 * kl.max())
        assert (effects.top1.reshape(shape) == expected["top1"]).all()
        assert effects.produced == ids[step]


@pytest.mark.parametrize("name", slow_but(("qwen3", "gemma3_text", "qwen3_vl_moe"), ARCHITECTURES))
def test_effects_agree_with_the_oracle(name):
    """All layers and tokens, the prompt and the third step with KV cache; prompts longer than the sliding windows."""
    model = tiny_model(name)
    assert_agrees(model, tiny_inputs(model, 9))


def test_effects_of_image_tokens_agree_with_the_oracle():
    model = tiny_model("qwen3_vl_moe")
    assert_agrees(model, tiny_image_inputs(model))


@pytest.mark.parametrize("name", slow_but(("mistral", "olmo2", "qwen3_vl_moe"), ARCHITECTURES))
def test_effects_on_all_queries_agree_with_the_oracle(name):
    """The token disappears from a layer for everyone: its own later rows and all others' change."""
    model = tiny_model(name)
    assert_agrees(model, tiny_inputs(model, 9), queries="all")


def test_image_tokens_hidden_from_all_queries_agree_with_the_oracle():
    model = tiny_model("qwen3_vl")
    assert_agrees(model, tiny_image_inputs(model), queries="all", window=2)


SETTINGS = [
    {"window": 2}, {"window": 3}, {"heads": HEADS}, {"ablation": "zero-value"}, {"ablation": "mean-value"},
    {"window": 3, "heads": HEADS, "ablation": "mean-value"},
    {"queries": "all", "window": 3, "heads": HEADS}, {"queries": "all", "ablation": "zero-value"},
    {"queries": "all", "window": 2, "ablation": "mean-value"},
]  # fmt: skip


@pytest.mark.parametrize(
    "number", slow_but(range(0, len(SETTINGS), 3), range(len(SETTINGS))), ids=lambda number: str(SETTINGS[number])
)
def test_windows_heads_and_ablations_agree_with_the_oracle(number):
    """Architectures of full attention and of sliding windows take turns."""
    model = tiny_model(("qwen3", "gemma3_text", "mistral", "phi3")[number % 4])
    assert_agrees(model, tiny_inputs(model, 9), **SETTINGS[number])


# --- what an engine can get wrong ---------------------------------------------------------------------------------------


def broken(monkeypatch, name):
    """Replays that are wrong in one way each."""
    real = masked_attention._attend
    if name == "mask one layer off":
        pack = replay._Pack

        def off(variants, *rest):
            first, last = (variants.first - 1).clamp_min(0), (variants.last - 1).clamp_min(0)
            return pack(replace(variants, first=first, last=last), *rest)

        monkeypatch.setattr(replay, "_Pack", off)
    elif name == "the unmasked row's own key and value":

        def reused(query, key, value, state, *rest):
            n_rows = key.shape[2]
            own = (part[None, :, -n_rows:].expand_as(key) for part in (state.keys, state.values))
            return real(query, *own, state, *rest)

        monkeypatch.setattr(masked_attention, "_attend", reused)
    else:

        def shifted(*args):
            return real(*args).roll(2, dims=2)

        monkeypatch.setattr(masked_attention, "_attend", shifted)


@pytest.mark.parametrize("name", ["mask one layer off", "the unmasked row's own key and value"])
def test_a_broken_replay_is_told_from_the_model(name, monkeypatch):
    broken(monkeypatch, name)
    model = tiny_model("qwen3")
    with pytest.raises(AssertionError):
        assert_agrees(model, tiny_inputs(model, 9))


def test_a_replay_that_is_not_the_model_gives_no_numbers(monkeypatch):
    """Heads shifted by one group: the row that hides nothing is not the model's own. It shows where layers are proven, and in
    every run behind that."""
    for proven, said in (
        (False, "gives other states when some of its rows run again"),
        (True, "the replayed model differs"),
    ):
        model = tiny_model("qwen3")
        inputs = tiny_inputs(model, 9)
        if proven:
            run(model, inputs, 1)
        with monkeypatch.context() as patch:
            broken(patch, "heads shifted by a group")
            with pytest.raises(ExactnessError, match=said):
                run(model, inputs, 1)


# --- without our oracle -------------------------------------------------------------------------------------------------


def at_the_first_step(model, inputs, look, keep_states="last"):
    """What `look(engine, logits)` gives after the prompt's forward, the engine's block being open."""
    with torch.no_grad(), RidingEngine(model, keep_states=keep_states) as engine:
        logits = model(**inputs).logits[0, -1]
        return look(engine, logits)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3_text", "olmo2"])
def test_hidden_in_all_layers_from_all_is_not_there(name):
    """The model's own attention mask, with the positions kept, says the same; and no oracle of ours is asked."""
    model = tiny_model(name)
    inputs = tiny_inputs(model, 9)
    n = inputs["input_ids"].shape[1]

    def look(engine, logits):
        groups = [[position] for position in range(n - 1)]
        variants = each_window_and_group(groups, n, len(engine.decoder.layers), "all", "all")
        return logits, measure_effects(engine, variants, logits)

    logits, effects = at_the_first_step(model, inputs, look, "all")
    for position in range(n - 1):
        mask = torch.ones(1, n, dtype=torch.long)
        mask[0, position] = 0
        with torch.no_grad():
            hidden = model(
                input_ids=inputs["input_ids"], attention_mask=mask, position_ids=torch.arange(n).unsqueeze(0)
            ).logits[0, -1]
        token = effects.produced
        np.testing.assert_allclose(
            effects.logit_change[position], float(hidden[token] - logits[token]), rtol=1e-3, atol=1e-5
        )


def test_the_last_layer_is_the_closed_form(monkeypatch):
    """What the engine's formulas say of the last layer's update, through the model's own norm and head."""
    model = tiny_model("qwen3", dtype=torch.float64)
    inputs = tiny_inputs(model, 9)
    real, seen = Ride.lengths, []

    def keep(ride, baseline, differences):
        seen.append(differences)
        return real(ride, baseline, differences)

    monkeypatch.setattr(Ride, "lengths", keep)

    def look(engine, logits):
        n, n_layers = engine.n_positions, len(engine.decoder.layers)
        differences = seen[-1][:n]  # of the last layer's whole update; one of nothing may follow
        output = engine.states[-1]._left[-1]
        assert differences.shape == (n, model.config.hidden_size)
        norm, head = model.model.norm, model.get_output_embeddings()
        closed = head(norm(output + differences)) - head(norm(output))
        effects = measure_effects(engine, each_window_and_group([[i] for i in range(n)], n, n_layers), logits)
        return closed, effects

    closed, effects = at_the_first_step(model, inputs, look)
    last = effects.logit_change.reshape(-1, len(closed))[-1]
    np.testing.assert_allclose(last, closed[:, effects.produced], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 200.0])
def test_effects_of_any_size_are_those_of_two_distributions(size):
    """Also where a token without any probability gets all of it."""
    torch.manual_seed(0)
    logits = 40 * torch.randn(300)
    differences = size * torch.randn(5, 300)
    differences[0, logits.argmin()] = size
    own, changed = (torch.log_softmax(values.double(), dim=-1) for values in (logits, logits.double() + differences))
    produced = int(logits.argmax())
    logit, logprob, kl, top1 = effects_module.changes_of(differences, logits, own, produced)
    np.testing.assert_allclose(logit, differences[:, produced])
    np.testing.assert_allclose(logprob, changed[:, produced] - own[produced], rtol=1e-4, atol=1e-7)
    expected = (own.exp() * (own - changed)).sum(-1)
    np.testing.assert_allclose(kl, expected, rtol=1e-3, atol=1e-7)
    assert top1.tolist() == changed.argmax(-1).tolist()


def test_kl_is_not_negative_and_top1_is_the_masked_models():
    model = tiny_model("qwen2")
    measured, _ = run(model, tiny_inputs(model, 9))
    for effects in measured:
        assert (effects.kl_divergence >= 0).all()
        changed = effects.top1 != effects.produced
        assert changed.any()
        assert (effects.logprob_change[changed] < 0).any()


def test_rounding_is_measured_by_rounding_otherwise():
    """In bfloat16 it is what a bfloat16 run is off the float32 run of its weights, to an order of magnitude."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("qwen3", dtype=torch.bfloat16).to(dtype)
        (effects,), _ = run(model, tiny_inputs(model, 9), 1)
        found[dtype] = effects
    relative, largest_ = found[torch.bfloat16].rounding
    assert 1e-4 < relative < 0.05
    assert found[torch.float32].rounding[0] < 1e-4
    one, other = (effects.logprob_change for effects in found.values())
    off = np.median(np.abs(one - other)[one != 0] / np.abs(one)[one != 0])
    assert off / 20 < relative < 20 * off
    assert largest_ > 0


def test_the_floor_is_what_the_arithmetic_makes_of_nothing():
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-4)):
        model = tiny_model("qwen3", dtype=dtype)
        (effects,), _ = run(model, tiny_inputs(model, 9), 1)
        assert max(effects.floor) <= most
        assert np.abs(effects.logprob_change).max() > 100 * most


# --- what may not change ------------------------------------------------------------------------------------------------


def test_hiding_nothing_changes_nothing_to_the_bit():
    """No key, no layer that sees the key, no head; and a row that hides nothing among others that do."""
    model = tiny_model("mistral")
    inputs = tiny_inputs(model, 9)

    def look(engine, logits):
        n = engine.n_positions
        hidden = torch.zeros(4, n, dtype=torch.bool)
        hidden[1, 0] = True  # out of every window
        hidden[2, n - 2] = hidden[3, n - 2] = True
        zero, last = torch.zeros(4, dtype=torch.int64), torch.full((4,), 2)
        last[2] = -1  # no layer
        seen = sees(engine, Variants(Masks(hidden), torch.arange(4), zero, last))
        no_head = Masks(hidden, heads=torch.zeros(4, engine.decoder.n_heads, dtype=torch.bool))
        each = torch.arange(4)
        return (
            seen,
            measure_effects(engine, Variants(Masks(hidden), each, zero, last), logits),
            measure_effects(engine, Variants(no_head, each, zero, last), logits),
        )

    seen, effects, without_heads = at_the_first_step(model, inputs, look)
    assert seen.tolist() == [False, False, False, True]
    for name in ("logit_change", "logprob_change", "kl_divergence"):
        values = getattr(effects, name)
        assert (values[:3] == 0).all()
        assert values[3] != 0
        assert (getattr(without_heads, name) == 0).all()
    assert (effects.top1[:3] == effects.produced).all()


def test_a_key_behind_the_query_changes_nothing():
    model = tiny_model("qwen3")

    def look(engine, logits):
        n = engine.n_positions
        hidden, queries = torch.zeros(2, n, dtype=torch.bool), torch.zeros(2, n, dtype=torch.bool)
        hidden[:, 5], queries[0, :5], queries[1, 5:7] = True, True, True
        first, last = torch.zeros(2, dtype=torch.int64), torch.full((2,), 2)
        variants = Variants(Masks(hidden, queries), torch.arange(2), first, last)
        assert variants.starts.tolist() == [n, 5]
        assert variants.row_layers(3).sum() == (n - 5) * 3
        return measure_effects(engine, variants, logits)

    effects = at_the_first_step(model, tiny_inputs(model, 9), look, "all")
    assert (effects.logit_change[0], effects.kl_divergence[0]) == (0, 0)
    assert effects.logit_change[1] != 0


def test_the_model_is_as_it_was_and_the_engine_measures_on():
    """Effects are taken in the middle of a generation; the distances and tokens are those of a run without them."""
    model = tiny_model("qwen3")
    inputs = tiny_inputs(model, 9)
    with RidingEngine(model) as plain:
        ids = model.generate(**inputs, generation_config=greedy_config(model, N_STEPS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with RidingEngine(model, keep_states="last") as engine:

        def at_the_end(module, args, output):
            measure_effects(engine, variants_of(engine), output.logits[0, -1])

        handle = model.register_forward_hook(at_the_end)
        again = model.generate(**inputs, generation_config=greedy_config(model, N_STEPS))
        handle.remove()
    assert torch.equal(ids, again)
    for one, other in zip(plain.steps, engine.steps, strict=True):
        assert torch.equal(one.l2, other.l2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert engine.states == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_windows_are_cut_at_the_ends():
    assert [tuple(pair) for pair in torch.stack(windows(5, 3), dim=1).tolist()] == [
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 4),
    ]
    assert [tuple(pair) for pair in torch.stack(windows(4, 2), dim=1).tolist()] == [(0, 1), (1, 2), (2, 3), (3, 3)]
    for width in (0, 6):
        with pytest.raises(UsageError, match=f"a window of {width} layers does not fit: the model has 5"):
            windows(5, width)


def test_chunks_of_rows_change_nothing_but_rounding(monkeypatch):
    model = tiny_model("gemma3_text")
    inputs = tiny_inputs(model, 9)
    (whole,), _ = run(model, inputs, 1)
    monkeypatch.setattr(masked_attention, "ATTENTION_BYTES", 1)
    monkeypatch.setattr(replay, "ROWS_TOGETHER", {"cpu": 5})
    monkeypatch.setattr(replay, "PACKS_HELD", 2)
    monkeypatch.setattr(replay, "ROWS_OF_LOGITS", 7)
    (chunked,), _ = run(model, inputs, 1)
    assert isinstance(chunked, StepEffects)
    np.testing.assert_allclose(chunked.logprob_change, whole.logprob_change, rtol=1e-4, atol=1e-6)
    assert (chunked.top1 == whole.top1).all()


def test_without_memory_for_many_fewer_go_together(monkeypatch):
    model = tiny_model("qwen3")
    inputs = tiny_inputs(model, 9)
    (whole,), _ = run(model, inputs, 1, queries="all")
    real, sizes = replay._through_layers, []

    def narrow(engine, packs, *rest):
        sizes.append(sum(len(pack.variants) for pack in packs))
        if sizes[-1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(engine, packs, *rest)

    monkeypatch.setattr(replay, "_through_layers", narrow)
    (found,), _ = run(model, inputs, 1, queries="all")
    np.testing.assert_allclose(found.logprob_change, whole.logprob_change, rtol=1e-3, atol=1e-6)
    assert max(sizes) > 2

    def none(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(replay, "_through_layers", none)
    with pytest.raises(DeviceError, match="out of memory with a single variant of the model"):
        run(model, inputs, 1)
