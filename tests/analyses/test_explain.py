"""What an answer used: what is measured against full forwards, what is estimated against the engine's sums, and pictures whose
truth is known."""

from pathlib import Path

import effect_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer, tiny_loaded
from transformers import AttentionInterface, AttentionMaskInterface

import mask_impact
from mask_impact.analyses import explain, hiding, units
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine import backward
from mask_impact.engine.kept import keep
from mask_impact.engine.targets import Target
from mask_impact.errors import DeviceError, InputError, UsageError

PICTURE = Path(__file__).parents[2] / "examples" / "shapes.png"
PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tiny():
    return tiny_loaded()


@pytest.fixture(scope="module")
def demo():
    return mask_impact.load("demo", kind="vl", dtype="float32")


def run(loaded, prompt=PROMPT, **settings):
    defaults = {"raw": True, "num_tokens": 3, "budget": 1000, "groups": "tokens", "target": "each"}
    return explain.run(loaded, prompt, RunSettings(**defaults | settings))


def inputs_of(loaded, prompt=PROMPT):
    return {k: v for k, v in loaded.tokenizer(prompt, return_tensors="pt").items() if k != "token_type_ids"}


def logprobs(loaded, produced, keys, n, prompt=PROMPT):
    """Log-probabilities of the token behind `produced`, with keys hidden from all n queries in all layers."""
    layers = range(loaded.config.get_text_config().num_hidden_layers)
    logits = effect_oracle.masked_logits(
        loaded.model, inputs_of(loaded, prompt), produced, layers=layers, queries=range(n), keys=keys
    )
    return torch.log_softmax(logits, -1)


def greedy(loaded, n_prompt, n, hidden=(), prompt=PROMPT):
    """The n tokens that the model gives with positions hidden, by a full forward each."""
    produced = []
    for _ in range(n):
        seen = n_prompt + len(produced)
        keys = [position for position in hidden if position < seen]
        produced.append(int(logprobs(loaded, produced, keys, seen, prompt).argmax()))
    return produced


# --- what is measured, and what is estimated ----------------------------------------------------------------------------------


def test_what_is_measured_is_what_full_forwards_with_the_token_hidden_give(tiny):
    found = run(tiny)
    produced = [target.token_ids[0] for target in found.targets]
    assert [target.steps for target in found.targets] == [(0,), (1,), (2,)]
    for number, target in enumerate(found.targets):
        n = found.n_prompt + number
        own = logprobs(tiny, produced[:number], (), n)
        assert target.probability == pytest.approx(float(own[target.token_ids[0]].exp()), rel=1e-4)
        assert target.reliable is None
        assert target.measured.all()
        assert len(target.names) == n
        for place in range(0, n, 2):
            hidden = logprobs(tiny, produced[:number], target.positions[place], n)
            expected = float((hidden - own)[target.token_ids[0]])
            assert target.logprob_change[place] == pytest.approx(expected, rel=2e-3, abs=2e-5)
            assert int(target.top1[place]) == int(hidden.argmax())
            assert bool(target.differs[place]) == (int(hidden.argmax()) != int(own.argmax()))


def test_what_is_explained_is_what_the_model_says(tiny):
    found = run(tiny)
    produced = greedy(tiny, found.n_prompt, 3)
    assert [target.token_ids for target in found.targets] == [(one,) for one in produced]
    assert found.tokens.ids[found.n_prompt :].tolist() == produced
    assert found.generated_text == tiny.tokenizer.decode(produced, skip_special_tokens=True)
    assert "".join(target.text for target in found.targets) == tiny.tokenizer.decode(produced)


def test_a_target_is_some_of_the_produced_tokens_and_those_before_it_are_units(tiny):
    whole = run(tiny)
    for spec, steps in (("1", (1,)), ("1-2", (1, 2)), ("answer", (0, 1, 2))):
        (target,) = run(tiny, target=spec).targets
        assert target.steps == steps
        assert target.positions[-1] == (whole.n_prompt + steps[0] - 1,)
        assert target.token_ids == tuple(whole.targets[step].token_ids[0] for step in steps)
    (target,) = run(tiny, target="1").targets
    np.testing.assert_allclose(target.logprob_change, whole.targets[1].logprob_change, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(target.contribution, whole.targets[1].contribution, rtol=1e-4, atol=1e-6)


def test_an_answer_of_several_tokens_is_asked_about_as_one(tiny):
    found = run(tiny, target="all")
    (target,) = found.targets
    assert target.steps == (0, 1, 2)
    own = [logprobs(tiny, list(target.token_ids[:n]), (), found.n_prompt + n) for n in range(3)]
    probability = sum(float(row[token]) for row, token in zip(own, target.token_ids, strict=True))
    assert target.probability == pytest.approx(np.exp(probability), rel=1e-3)
    assert len(target.names) == found.n_prompt  # nothing within the target
    for place in (0, 3):
        change = 0.0
        for number, token in enumerate(target.token_ids):
            n = found.n_prompt + number
            before = list(target.token_ids[:number])
            own, hidden = (logprobs(tiny, before, keys, n) for keys in ((), target.positions[place]))
            change += float((hidden - own)[token])
        assert target.logprob_change[place] == pytest.approx(change, rel=2e-3, abs=2e-5)
    assert target.measure == "log-odds"


def test_estimates_are_sums_over_layers_heads_and_queries_as_changes_of_the_log_probability(tiny):
    found = run(tiny, num_tokens=1)
    (target,) = found.targets
    forward = keep(tiny.model, inputs_of(tiny))
    wanted = [Target(found.n_prompt - 1, target.token_ids[0])]
    for rule, values in (("frozen", target.contribution), ("gradient", target.estimate_local)):
        sums = backward.estimate(forward, wanted, rule)
        before = 1 / (1 + np.exp(-sums.values[0]))
        after = 1 / (1 + np.exp(-(sums.values[0] + sums.every.sum((0, 1)).numpy().astype(float))))
        np.testing.assert_allclose(values, np.log(after) - np.log(before), rtol=1e-4, atol=1e-7)
    assert target.probability == pytest.approx(before, rel=1e-4)
    plain = run(tiny, num_tokens=1, measure="log-prob").targets[0]
    sums = backward.estimate(forward, wanted, "frozen", measure="log-prob")
    np.testing.assert_allclose(plain.contribution, sums.every.sum((0, 1)).numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("measure", ["log-odds", "log-prob"])
def test_of_several_tokens_the_estimates_are_the_engine_s_sums_as_they_are(tiny, measure):
    found = run(tiny, target="all", measure=measure)
    (target,) = found.targets
    forward = keep(tiny.model, explain.extended(inputs_of(tiny), target.token_ids[:-1]))
    wanted = [Target(found.n_prompt - 1 + step, token) for step, token in enumerate(target.token_ids)]
    for rule, values in (("frozen", target.contribution), ("gradient", target.estimate_local)):
        sums = backward.estimate(forward, wanted, rule, measure=measure).every.sum((0, 1)).numpy()
        expected = [sums[list(positions)].sum() for positions in target.positions]
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    assert target.measure == measure


def test_why_one_word_rather_than_another(tiny):
    whole = run(tiny, num_tokens=1)
    produced = whole.targets[0].token_ids[0]
    other = next(word for word in ("cat", "mat", "sat") if tiny.tokenizer.encode(word)[0] != produced)
    (target,) = run(tiny, num_tokens=1, instead=other).targets
    rival = target.instead[0]
    n = whole.n_prompt
    own = logprobs(tiny, [], (), n)
    for place in (0, 2):
        hidden = logprobs(tiny, [], target.positions[place], n)
        expected = float((hidden[produced] - hidden[rival]) - (own[produced] - own[rival]))
        assert target.logprob_change[place] == pytest.approx(expected, rel=2e-3, abs=2e-5)
    against = [Target(n - 1, produced, rival)]
    sums = backward.estimate(keep(tiny.model, inputs_of(tiny)), against, "frozen").every.sum((0, 1)).numpy()
    np.testing.assert_allclose(target.contribution, sums, rtol=1e-4, atol=1e-6)
    assert target.instead[1] == tiny.tokenizer.decode([rival])
    with pytest.raises(UsageError, match="is held against one produced token, and the target has 3"):
        run(tiny, target="all", instead="cat")
    with pytest.raises(UsageError, match="begins with the token that was produced"):
        run(tiny, num_tokens=1, instead=whole.targets[0].text.strip())


def test_the_matrix_has_each_produced_token_by_each_of_the_prompt(tiny):
    found = run(tiny, matrix=True)
    assert found.matrix.shape == (3, found.n_prompt)
    for step, target in enumerate(found.targets):
        inputs = explain.extended(inputs_of(tiny), [one.token_ids[0] for one in found.targets[:step]])
        wanted = [Target(found.n_prompt + step - 1, target.token_ids[0])]
        alone = backward.estimate(keep(tiny.model, inputs), wanted, "frozen").every.sum((0, 1)).numpy()
        np.testing.assert_allclose(found.matrix[step], alone[: found.n_prompt], rtol=1e-3, atol=1e-6)


# --- what decides the answer, against full forwards ---------------------------------------------------------------------------


def teacher_forced(loaded, target, n_prompt, hidden):
    """Whether another token becomes the most probable anywhere in the target, by a full forward for each of its tokens."""
    for number, token in enumerate(target.token_ids):
        n = n_prompt + number
        keys = [position for position in hidden if position < n]
        if int(logprobs(loaded, list(target.token_ids[:number]), keys, n).argmax()) != token:
            return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_sets_decide_the_answer_have_no_member_too_many_and_are_confirmed_by_answers_of_the_model(seed):
    loaded = tiny_loaded(seed=seed)
    found = run(loaded, target="all")
    (target,), n = found.targets, found.n_prompt
    (one,) = target.evidence
    content = {at for positions, is_content in zip(target.positions, target.content, strict=True) if is_content
               for at in positions}  # fmt: skip
    assert (one.kind, one.exhausted) == ("text", False)
    assert one.matters == teacher_forced(loaded, target, n, content)
    assert one.necessary is not None
    assert one.sufficient is not None
    for some, keeps in ((one.necessary, False), (one.sufficient, True)):
        chosen = {at for place in some.places for at in target.positions[place]}
        hidden = content - chosen if keeps else chosen
        assert teacher_forced(loaded, target, n, hidden) != keeps
        said = greedy(loaded, n, 3, hidden)
        assert some.text == loaded.tokenizer.decode(said, skip_special_tokens=True)
        assert some.confirmed == ((said == list(target.token_ids)) == keeps)
        assert some.confirmed
        assert some.minimal
        for place in some.places if len(some.places) > 1 else ():
            without = chosen - {*target.positions[place]}
            assert teacher_forced(loaded, target, n, content - without if keeps else without) == keeps


LONG = "the cat sat on the mat in the house the mat sat in the cat on the house the house"


@pytest.mark.parametrize("budget", [6, 8, 12, 20, 30])
def test_the_budget_is_kept_with_what_evidence_and_its_confirmation_take(tiny, budget):
    (target,) = run(tiny, LONG, num_tokens=1, budget=budget, groups="tokens").targets
    assert target.forwards + sum(one.forwards for one in target.evidence) <= budget
    assert target.measured.sum() >= 8
    assert target.measured.all() == (budget >= 20)


def test_units_drawn_at_random_follow_the_seed_alone(tiny):
    def controls(seed):
        given = RunSettings(raw=True, budget=6, groups="tokens")
        (target,) = explain.run(tiny, LONG, given, seed=seed).targets
        return target.control.tolist()

    state = torch.random.get_rng_state()
    np.random.seed(5)
    one = controls(3)
    np.random.seed(6)
    assert controls(3) == one
    assert controls(4) != one
    assert sum(one) >= 3
    assert torch.equal(torch.random.get_rng_state(), state)


# --- thinking -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinking():
    """A model that thought before it answered: (loaded, prepared, what it produced)."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    loaded = tiny_loaded(tokenizer=tokenizer)
    produced = tokenizer.encode("<think>the cat</think>\n\nthe mat<|im_end|>", add_special_tokens=False)
    return loaded, produced


def explained(thinking, **settings):
    loaded, produced = thinking
    chosen = RunSettings(**{"raw": True, "num_tokens": len(produced), "budget": 1000, "groups": "tokens"} | settings)
    return explain.explain(loaded, prepare(loaded, PROMPT, chosen), produced)


def test_the_answer_behind_the_thinking_uses_the_thinking(thinking):
    loaded, produced = thinking
    found = explained(thinking)
    (target,) = found.targets
    assert target.text == "the mat"
    first = target.steps[0]
    assert target.names[found.n_prompt :] == tuple(found.tokens.texts[found.n_prompt : found.n_prompt + first])
    assert "".join(target.names[found.n_prompt :]) == "<think>the cat</think>\n\n"
    place = target.names.index(" cat", found.n_prompt)  # as it was thought, not as it was asked
    change = 0.0
    for step in target.steps:
        n = found.n_prompt + step
        own, hidden = (logprobs(loaded, produced[:step], keys, n) for keys in ((), target.positions[place]))
        change += float((hidden - own)[produced[step]])
    assert abs(change) > 1e-3
    assert target.logprob_change[place] == pytest.approx(change, rel=2e-3, abs=2e-5)


def test_thinking_itself_can_be_asked_about(thinking):
    found = explained(thinking, target="thinking")
    (target,) = found.targets
    assert (target.text, target.steps[0]) == ("the cat", 1)
    assert target.names[found.n_prompt :] == ("<think>",)
    (target,) = explained(thinking, target="mat").targets
    assert target.text == " mat"


# --- units ------------------------------------------------------------------------------------------------------------------


def test_words_are_hidden_together_and_produced_tokens_stand_alone(tiny):
    prompt = "zigzag cat"
    found = run(tiny, prompt, groups="words")
    first, last = found.targets[0], found.targets[-1]
    assert sorted(position for positions in first.positions for position in positions) == list(range(found.n_prompt))
    assert "word" in first.kinds
    assert last.positions[-2:] == ((found.n_prompt,), (found.n_prompt + 1,))
    assert first.names == ("zigzag", " cat")
    assert run(tiny, prompt, groups=None).targets[0].names == first.names


def test_a_file_of_groups_is_taken_and_one_that_hides_everything_refused(tiny, tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("animal: cat\nplace: '\"the mat\"'\n")
    (target,) = run(tiny, groups=str(path), num_tokens=1).targets
    assert target.names == ("animal", "place")
    assert target.kinds == ("group", "group")
    path.write_text("all: text\n")
    with pytest.raises(InputError, match="is the whole prompt"):
        run(tiny, groups=str(path))


@pytest.mark.slow
def test_the_template_can_be_left_out(demo):
    whole = mask_impact.explain(demo, "What color is the star?", images=PICTURE, budget=8)
    content = mask_impact.explain(demo, "What color is the star?", images=PICTURE, budget=8, content_only=True)
    assert "<|im_start|>" in whole.targets[0].names
    assert "<|im_start|>" not in content.targets[0].names
    assert content.targets[0].content.all()
    assert set(content.targets[0].names) < set(whole.targets[0].names)
    assert {" star", "image 0 [0, 3]"} < set(content.targets[0].names)


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "gemma3_text"])
def test_other_families_are_explained_too(name):
    """A mixture of experts, and windows with gated activations of another kind."""
    loaded = tiny_loaded(name)
    found = run(loaded, num_tokens=2, target="all", routes="auto")
    (target,) = found.targets
    for values in (target.contribution, target.estimate_local, target.logprob_change):
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 1e-6
    assert target.reliable is None
    for place in (0, 2, 4):
        change = 0.0
        for step, token in enumerate(target.token_ids):
            n, before = found.n_prompt + step, list(target.token_ids[:step])
            own, hidden = (logprobs(loaded, before, keys, n) for keys in ((), target.positions[place]))
            change += float((hidden - own)[token])
        assert target.logprob_change[place] == pytest.approx(change, rel=2e-3, abs=1e-4)


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    backends = sorted(AttentionInterface._global_mapping), sorted(AttentionMaskInterface._global_mapping)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad is not None for parameter in model.parameters()]
    return (
        model.config._attn_implementation,
        hooks,
        wanted,
        gradients,
        backends,
        model.training,
        torch.is_grad_enabled(),
    )


@pytest.fixture
def own_model():
    """One of whose parameters some want gradients, which nobody else uses."""
    loaded = tiny_loaded()
    for number, parameter in enumerate(loaded.model.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    return loaded


def test_the_model_is_as_it_was(own_model):
    before = state(own_model.model)
    weights = {name: value.clone() for name, value in own_model.model.state_dict().items()}
    run(own_model, routes="auto", matrix=True)
    assert state(own_model.model) == before
    assert all(torch.equal(value, weights[name]) for name, value in own_model.model.state_dict().items())


@pytest.mark.parametrize(
    ("room", "name", "call", "error"),
    [
        (explain, "estimates", 1, KeyboardInterrupt),
        (backward, "hiding_effects", 3, RuntimeError),
        (hiding, "measure_targets", 1, RuntimeError),
        (hiding, "measure_targets", 2, KeyboardInterrupt),
        (explain.routes, "cut_heads", 1, RuntimeError),
        (explain, "generate", 2, KeyboardInterrupt),  # the first gives the answer itself
    ],
)
def test_the_model_is_as_it_was_also_when_it_ends_in_the_middle(own_model, monkeypatch, room, name, call, error):
    before, real, calls = state(own_model.model), getattr(room, name), []

    def fails(*args, **how):
        calls.append(name)
        if len(calls) == call:
            raise error("in the middle")
        return real(*args, **how)

    monkeypatch.setattr(room, name, fails)
    with pytest.raises(error, match="in the middle"):
        run(own_model, routes="auto")
    assert len(calls) == call
    assert state(own_model.model) == before
    monkeypatch.undo()
    assert len(run(own_model, num_tokens=1).targets) == 1  # and can be asked again


def test_running_out_of_memory_in_the_backward_pass_is_one_line(tiny, monkeypatch):
    def fails(*args, **how):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(explain, "estimates", fails)
    with pytest.raises(DeviceError, match="out of memory in a backward pass: shorten the prompt"):
        run(tiny)


# --- a picture whose truth is known ---------------------------------------------------------------------------------------------


def test_the_cell_that_the_answer_needs_comes_first_and_decides_it(demo):
    found = mask_impact.explain(demo, "What color is the star?", images=PICTURE)
    (target,) = found.targets
    cells = [place for place, positions in enumerate(target.positions) if found.tokens.image[positions[0]] >= 0]
    star = next(place for place in cells if target.names[place] == "image 0 [0, 3]")
    assert (found.generated_text, target.text) == ("orange", "orange")  # without the token that ends it
    assert min(cells, key=lambda place: target.contribution[place]) == star
    assert min(cells, key=lambda place: np.nan_to_num(target.logprob_change[place])) == star
    assert target.contribution[star] < 100 * min(target.contribution[place] for place in cells if place != star)
    assert target.top1_texts[int(target.top1[star])] == "blue"
    assert {" star", "image 0 [0, 3]"} < set(found.top(3))
    assert 0 < target.forwards <= 12
    assert target.control.sum() >= 3
    (evidence,) = found.evidence
    assert (evidence.kind, evidence.matters, evidence.exhausted) == ("image", True, False)
    assert (evidence.necessary.places, evidence.necessary.text, evidence.necessary.confirmed) == ((star,), "blue", True)
    assert (evidence.sufficient.places, evidence.sufficient.text, evidence.sufficient.confirmed) == (
        (star,), "orange", True,
    )  # fmt: skip
    assert target.forwards + evidence.forwards <= 12


@pytest.mark.slow
def test_a_larger_budget_looks_for_evidence_among_words_too(demo):
    found = mask_impact.explain(demo, "What color is the star?", images=PICTURE, budget=60)
    assert [one.kind for one in found.evidence] == ["image", "text"]
    (place,) = found.evidence[1].necessary.places
    assert found.targets[0].kinds[place] == "text"
    assert found.evidence[1].necessary.text != "orange"


def test_where_there_are_many_cells_regions_are_hidden(demo, monkeypatch):
    """As with a large picture: the same one, with few cells called many."""
    monkeypatch.setattr(units, "MANY", 15)
    found = mask_impact.explain(demo, "What shape is red?", images=PICTURE)
    (target,) = found.targets
    assert "block" in target.kinds or "region" in target.kinds
    assert "image 0 [2, 0]" in found.top(2)  # within one of them
    blocks = [place for place, kind in enumerate(target.kinds) if kind in ("block", "region")]
    for place in blocks:
        assert set(found.tokens.image[list(target.positions[place])]) == {0}
    assert found.evidence[0].necessary.text == "cross"
