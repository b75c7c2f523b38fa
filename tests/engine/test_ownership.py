"""A model has one owner at a time: its other users get what they get alone, and the model is as it was, whatever happens."""

import os
import threading
from contextlib import ExitStack
from functools import partial, wraps

import pytest
import torch
from checkpoints import tiny_loaded
from rounds import Rounds, state_of
from tiny_models import tiny_inputs, tiny_model
from torch import nn

import mask_impact
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.without import hiding
from mask_impact.engine import backward, effects, replay
from mask_impact.engine.kept import keep
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding import boarding, linear
from mask_impact.engine.riding import engine as engine_module
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.rules import RULES, ConstantWeights, Rules
from mask_impact.engine.taps import tapped
from mask_impact.errors import ExactnessError, ModelError


def in_another_thread(function):
    """What a function returns, or raises, in a thread of its own."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def is_free(model):
    """Whether a thread could have the model for itself now."""
    lock = owned(decoder_of(model))

    def look():
        with lock:
            return True

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(0.05)
    return not thread.is_alive()


# --- threads ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounds():
    return Rounds()


def test_threads_that_analyze_generate_and_run_forward_at_once_get_what_they_get_alone(rounds):
    assert rounds.run(10, "analyze", "generate", "forward", switch=1e-4) == {"right": 30}


def test_analyses_at_once_wait_for_each_other(rounds):
    assert rounds.run(3, "analyze", "explain", "without") == {"right": 9}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "uses"),
    [
        (2, ("analyze", "generate", "forward")),
        (5, ("analyze", "answer", "without")),
        (5, ("explain", "generate", "forward")),
    ],
)
def test_many_rounds_of_three_threads(share, uses, rounds):
    """ROUNDS=500 python -m pytest -m slow tests/engine/test_ownership.py for more."""
    n_rounds = int(os.environ.get("ROUNDS", "40")) // share
    assert rounds.run(n_rounds, *uses) == {"right": 3 * n_rounds}


# --- other threads, inside every block --------------------------------------------------------------------------------------


def blocks(model, inputs):
    """Every way in which a model is tapped: its name and a context manager."""
    decoder = decoder_of(model)
    kept = keep(model, inputs)

    def nothing(*args, **kwargs):
        raise AssertionError("the tap was called")

    return {
        "engine": RidingEngine(model),
        "engine that keeps states": RidingEngine(model, keep_states="all"),
        "hidden tokens": hiding(model, (1, 2), (0, 1, 2)),
        "tap": tapped(decoder, nothing),
        "replay": kept.substituted(nothing),
        "gradients": ConstantWeights(),
        "rules": Rules(RULES),
    }


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "qwen3_vl", "qwen3_vl_moe", "phi3"])
def test_another_thread_s_forward_and_generate_are_its_own_inside_every_block(name):
    model = tiny_model(name).requires_grad_(True)
    inputs = tiny_inputs(model, 8)
    padded = {key: torch.cat([torch.zeros_like(value[:, :3]), value], dim=1) for key, value in inputs.items()}
    weight = model.get_output_embeddings().weight

    def use():
        logits = model(**padded).logits
        (gradient,) = torch.autograd.grad(logits.sum(), weight)
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return logits.detach(), gradient, ids

    alone = use()
    for block in blocks(model, inputs).values():
        before = state_of(model)["configs"]
        with block:
            assert state_of(model)["configs"] == before
            found = in_another_thread(use)
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_what_another_thread_does_is_not_measured():
    model = tiny_model("qwen3")
    inputs = tiny_inputs(model, 8)
    with RidingEngine(model) as engine:
        in_another_thread(lambda: model.generate(**inputs, max_new_tokens=3))
        assert engine.steps == []
        model.generate(**inputs, generation_config=greedy_config(model, 2))
    assert [len(step.positions) for step in engine.steps] == [8, 9]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_tap_is_for_the_modules_of_its_own_model(backend):
    model, other = tiny_model("qwen3"), tiny_model("qwen3", seed=1)
    for one in (model, other):
        one.set_attn_implementation(backend)
    inputs = tiny_inputs(model, 8)
    alone = other(**inputs).logits
    seen = []

    def attend(own, module, *args, **kwargs):
        seen.append(module)
        return own(*args, **kwargs)

    with tapped(decoder_of(model), attend):
        assert torch.equal(other(**inputs).logits, alone)
        assert seen == []
        model(**inputs)
    assert seen == [layer.self_attn for layer in model.model.layers]


def test_a_model_that_is_in_use_is_waited_for():
    model = tiny_model("qwen3")
    assert is_free(model)
    with RidingEngine(model):
        assert not is_free(model)
        assert is_free(tiny_model("qwen3"))  # another one is not
    assert is_free(model)


# --- the same thread again --------------------------------------------------------------------------------------------------


def test_a_block_inside_a_block_of_the_same_thread_is_the_only_one():
    loaded = tiny_loaded()
    model, (short, long) = loaded.model, (tiny_inputs(loaded.model, n) for n in (5, 9))
    alone = mask_impact.analyze(loaded, short, num_tokens=2, answer=False)
    with RidingEngine(model) as plain:
        model.generate(**long, generation_config=greedy_config(model, 2))
    inner = []

    def again(step, layer):
        if (step, layer) == (0, 1):
            inner.append(mask_impact.analyze(loaded, short, num_tokens=2, answer=False))

    with RidingEngine(model, on_layer=again) as outer:
        model.generate(**long, generation_config=greedy_config(model, 2))
    assert all((one.l2 == other.l2).all() for one, other in zip(inner[0].steps, alone.steps, strict=True))
    assert all(torch.equal(one.l2, other.l2) for one, other in zip(outer.steps, plain.steps, strict=True))


def test_a_forward_of_the_owner_s_own_in_between_is_an_error_and_no_wrong_number():
    loaded = tiny_loaded()
    inputs = tiny_inputs(loaded.model, 8)

    class Interfering(Observer):
        def layer_done(self, step, layer):
            if (step, layer) == (0, 2):
                loaded.model(**inputs)

    before = state_of(loaded.model)
    with pytest.raises(ExactnessError, match=r"forward pass 2 saw 9 positions of 10: no numbers are given"):
        mask_impact.analyze(loaded, inputs, num_tokens=2, answer=False, observer=Interfering())
    assert state_of(loaded.model) == before


# --- the model is as it was -------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


PLACES = {
    "a layer": (nn.Module, None),
    "attention": (boarding, "query_attention"),
    "a linear map's rows": (linear, "mapped"),
    "the end of a step": (engine_module, "gather"),
    "hooking": (RidingEngine, "_hook_layer"),
    "replaying": (replay, "attend_packed"),
    "effects": (effects, "logit_differences"),
    "the target": (backward, "value_of"),
    "going back": (backward, "_through_layer"),
}


@pytest.mark.parametrize(
    ("place", "n_before"), [(place, n) for place in PLACES for n in (0, 2) if (place, n) != ("the target", 2)]
)
def test_the_model_is_as_it_was_wherever_an_analysis_is_stopped(place, n_before, monkeypatch):
    """At the first time that something is done, and at the third."""
    loaded = tiny_loaded()
    loaded.model.requires_grad_(True)
    inputs = tiny_inputs(loaded.model, 8)
    before = state_of(loaded.model)
    where, name = PLACES[place]
    if name is None:
        where, name = type(loaded.model.model.layers[1]), "forward"
    own, calls = getattr(where, name), []

    @wraps(own)
    def stopped(*args, **kwargs):
        calls.append(name)
        if len(calls) > n_before:
            raise Stop
        return own(*args, **kwargs)

    monkeypatch.setattr(where, name, stopped)
    with pytest.raises(Stop):
        mask_impact.analyze(loaded, inputs, num_tokens=3, budget=12, effect=True)
    monkeypatch.undo()
    assert state_of(loaded.model) == before
    assert is_free(loaded.model)


def test_a_state_that_was_left_behind_would_be_seen():
    model = tiny_model("qwen3")
    layer = model.model.layers[0]
    changes = (
        lambda: setattr(layer.self_attn.config, "_attn_implementation", "eager"),
        lambda: layer.register_forward_hook(lambda *args: None),
        lambda: setattr(layer, "forward", layer.forward),
        lambda: layer.train(),
        lambda: model.requires_grad_(True),
        lambda: setattr(model.generation_config, "top_k", 3),
    )
    for change in changes:
        before = state_of(model)
        change()
        assert state_of(model) != before


# --- hooks of others --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_others_on_layers_are_refused_by_name_where_layers_run_again(kind):
    """The maps honour them, and say what is left out; these hooks change nothing."""
    loaded = tiny_loaded()
    model, inputs = loaded.model, tiny_inputs(loaded.model, 8)
    names = ["layers.0.mlp.down_proj", "layers.1", "layers.1.self_attn", "layers.2.self_attn.o_proj"]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(getattr(model.model.get_submodule(name), kind)(lambda *args: None))
        said = (
            "forward hooks are on layers.0.mlp.down_proj, layers.1, layers.1.self_attn and 1 more: what they change is not "
            "measured; remove them first"
        )
        for use in (mask_impact.explain, mask_impact.knockout, partial(mask_impact.analyze, effect=True)):
            with pytest.raises(ModelError) as caught:
                use(loaded, inputs, num_tokens=1)
            assert str(caught.value) == said
        hooked = mask_impact.analyze(loaded, inputs, num_tokens=1)
    assert hooked.answer is None
    assert f"What the answer used is left out: {said}" in hooked.meta["notices"]
    plain = mask_impact.analyze(loaded, inputs, num_tokens=1)
    assert plain.answer is not None
    assert (plain.steps[0].l2 == hooked.steps[0].l2).all()


@pytest.mark.parametrize("name", ["norm", "lm_head"])
def test_hooks_behind_the_layers_are_refused_where_differences_ride_on_to_the_logits(name):
    loaded = tiny_loaded()
    model, inputs = loaded.model, tiny_inputs(loaded.model, 8)
    module = {"norm": model.model.norm, "lm_head": model.lm_head}[name]
    plain = mask_impact.analyze(loaded, inputs, num_tokens=1, answer=False).steps[0]
    with module.register_forward_hook(lambda module, args, output: output + 1.0):
        for use in (mask_impact.explain, mask_impact.knockout):
            with pytest.raises(ModelError, match=rf"^forward hooks are on {name}: what they change is not measured"):
                use(loaded, inputs, num_tokens=1)
        hooked = mask_impact.analyze(loaded, inputs, num_tokens=1, answer=False).steps[0]
    assert (hooked.l2 == plain.l2).all()  # what layers do is before them


def test_hooks_that_steer_are_honoured_where_tokens_are_hidden_in_generation():
    """There are no rows of ours there: the answers are those of the steered model."""
    loaded = tiny_loaded()
    inputs = tiny_inputs(loaded.model, 8)
    layer = loaded.model.model.layers[1]
    plain = mask_impact.without(loaded, inputs, "tokens 2", num_tokens=3)
    with layer.mlp.down_proj.register_forward_hook(lambda module, args, output: output + 3.0):
        expected = loaded.model.generate(**inputs, max_new_tokens=3)[0, 8:].tolist()
        steered = mask_impact.without(loaded, inputs, "tokens 2", num_tokens=3)
    assert list(steered.answer.token_ids) == expected
    assert steered.answer.probabilities != plain.answer.probabilities
