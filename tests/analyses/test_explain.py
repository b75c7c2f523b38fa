"""What an answer used: what is measured against full forwards, what is chosen by hand-made rankings, and a picture whose truth is
known."""

import dataclasses
from pathlib import Path

import effect_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from tiny_models import tiny_model

import mask_impact
from mask_impact.analyses import explain
from mask_impact.analyses.explain import agreement_of, choose, is_reliable
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.backward import estimate, keep_forward
from mask_impact.errors import InputError
from mask_impact.models import loading

PICTURE = Path(__file__).parents[2] / "examples" / "shapes.png"
PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tiny():
    tokenizer = make_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=64)
    return loading.wrap(model, tokenizer, name="tiny")


@pytest.fixture(scope="module")
def demo():
    return mask_impact.load("demo", kind="vl")


def run(loaded, prompt=PROMPT, **settings):
    return explain.run(loaded, prompt, RunSettings(**{"raw": True, "num_tokens": 2, "budget": 1000} | settings))


# --- what is measured, and what is estimated ----------------------------------------------------------------------------------


def test_what_is_measured_is_what_full_forwards_with_the_token_hidden_give(tiny):
    found = run(tiny)
    inputs = {
        name: value for name, value in tiny.tokenizer(PROMPT, return_tensors="pt").items() if name != "token_type_ids"
    }
    produced = [step.token_id for step in found.steps]
    layers = range(tiny.config.num_hidden_layers)
    for number, step in enumerate(found.steps):
        own = torch.log_softmax(
            effect_oracle.masked_logits(tiny.model, inputs, produced[:number], layers=(), queries=(), keys=()), -1
        )
        assert step.probability == pytest.approx(float(own[step.token_id].exp()), rel=1e-4)
        assert step.reliable is None
        assert step.measured.all()
        n = found.n_prompt + number
        assert len(step.names) == n
        for place in range(0, n, 2):
            logits = effect_oracle.masked_logits(
                tiny.model, inputs, produced[:number], layers=layers, queries=range(n), keys=step.positions[place]
            )
            expected = float(torch.log_softmax(logits, -1)[step.token_id] - own[step.token_id])
            assert step.logprob_change[place] == pytest.approx(expected, rel=2e-3, abs=2e-5)
            assert int(step.top1[place]) == int(logits.argmax())


def test_estimates_are_sums_over_layers_heads_and_queries_as_changes_of_the_log_probability(tiny):
    found = run(tiny, num_tokens=1)
    inputs = tiny.tokenizer(PROMPT, return_tensors="pt")
    forward = keep_forward(tiny.model, {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]})
    (step,) = found.steps
    for rule, values in (("frozen", step.contribution), ("gradient", step.estimate_local)):
        sums = estimate(forward, step.token_id, rule)
        before = 1 / (1 + np.exp(-sums.target))
        after = 1 / (1 + np.exp(-(sums.target + sums.every.sum((0, 1)).numpy().astype(float))))
        np.testing.assert_allclose(values, np.log(after) - np.log(before), rtol=1e-4, atol=1e-7)
    assert step.probability == pytest.approx(before, rel=1e-4)


def test_words_are_hidden_together_and_produced_tokens_stand_alone(tiny):
    prompt = "zigzag cat"
    found = run(tiny, prompt, groups="words", num_tokens=3)
    first, last = found.steps[0], found.steps[-1]
    assert sorted(position for positions in first.positions for position in positions) == list(range(found.n_prompt))
    assert any(len(positions) > 1 for positions in first.positions)
    assert last.positions[-2:] == ((found.n_prompt,), (found.n_prompt + 1,))
    assert first.names == ("zigzag", " cat")


def test_a_file_of_groups_is_taken_and_one_that_hides_everything_refused(tiny, tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("animal: cat\nplace: '\"the mat\"'\n")
    (step,) = run(tiny, groups=str(path), num_tokens=1).steps
    assert step.names == ("animal", "place")
    path.write_text("all: text\n")
    with pytest.raises(InputError, match="is the whole prompt"):
        run(tiny, groups=str(path))


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "gemma3_text"])
def test_other_families_are_explained_too(name):
    """A mixture of experts, and windows with gated activations of another kind."""
    tokenizer = make_tokenizer()
    model = tiny_model(name, vocab_size=len(tokenizer), max_position_embeddings=64)
    (step,) = run(loading.wrap(model, tokenizer, name="tiny"), num_tokens=1).steps
    for values in (step.contribution, step.estimate_local, step.logprob_change):
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 1e-6
    assert step.reliable is None


# --- which are measured ---------------------------------------------------------------------------------------------------------


def test_both_rankings_take_turns_within_the_budget_and_some_are_drawn_at_random():
    rng = np.random.default_rng(0)
    n = 200
    estimates = {"gradient": rng.normal(size=n), "frozen": rng.normal(size=n)}
    chosen, controls, forwards = choose(estimates, range(n), n, 12, seed=1)
    cost = 1 - np.arange(n) / n
    assert forwards == pytest.approx(cost[chosen].sum())
    assert forwards <= 12
    assert len(set(chosen.tolist())) == len(chosen)
    candidates = [place for place in chosen.tolist() if place not in controls]
    for values in estimates.values():
        assert set(np.argsort(values)[:5].tolist()) <= set(candidates)
    assert 3 <= len(controls) <= 16
    assert not {*controls.tolist()} & {*candidates}
    assert choose(estimates, range(n), n, 12, seed=1)[0].tolist() == chosen.tolist()
    assert choose(estimates, range(n), n, 12, seed=2)[1].tolist() != controls.tolist()


def test_a_small_budget_still_measures_five_and_three_and_a_large_one_everything():
    estimates = {"gradient": np.arange(50.0), "frozen": -np.arange(50.0)}
    chosen, controls, _ = choose(estimates, range(50), 50, 1, seed=0)
    assert (len(chosen), len(controls)) == (8, 3)
    chosen, controls, forwards = choose(estimates, range(50), 50, 26, seed=0)
    assert (sorted(chosen), len(controls)) == (list(range(50)), 0)
    assert forwards == pytest.approx(25.5)


# --- how far the estimates hold -------------------------------------------------------------------------------------------------


def test_agreement_is_counted_over_what_was_measured():
    contribution = np.array([-4.0, -2.0, -1.0, 0.5, -9.0, -3.0])
    measured = np.array([-2.0, -1.0, -0.5, -0.25, np.nan, 0.0])
    control = np.array([False, False, False, True, False, True])
    found = agreement_of(contribution, measured, control)
    assert (found.n, found.strongest_control) == (5, 0.25)
    assert found.same_sign == 0.75
    assert found.ratio == 2.0
    ranks = (
        np.argsort(np.argsort([-4.0, -2.0, -1.0, 0.5, -3.0])),
        np.argsort(np.argsort([-2.0, -1.0, -0.5, -0.25, 0.0])),
    )
    assert found.rho == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_estimates_are_not_reliable_where_they_disagree_or_a_random_token_matters_more():
    measured = np.array([-5.0, -4.0, -3.0, -2.0, -1.0, -0.1, -0.2])
    control = np.array([False] * 5 + [True] * 2)
    good = agreement_of(measured * 1.2, measured, control)
    assert is_reliable(good, measured, control)
    assert not is_reliable(agreement_of(measured[::-1].copy(), measured, control), measured, control)
    surprising = measured.copy()
    surprising[5] = -1.5  # more than the weakest of the five
    found = agreement_of(surprising * 1.2, surprising, control)
    assert found.rho > 0.9
    assert not is_reliable(found, surprising, control)
    assert not is_reliable(dataclasses.replace(good, rho=float("nan")), measured, control)


# --- a picture whose truth is known ---------------------------------------------------------------------------------------------


def test_the_cell_that_the_answer_needs_comes_first(demo):
    found = mask_impact.explain(demo, "What color is the star?", images=PICTURE)
    (step,) = found.steps
    cells = [place for place, positions in enumerate(step.positions) if found.tokens.image[positions[0]] >= 0]
    star = next(place for place in cells if step.names[place] == "image 0 [0, 3]")
    assert found.generated_text == "orange"
    assert min(cells, key=lambda place: step.contribution[place]) == star
    assert min(cells, key=lambda place: np.nan_to_num(step.logprob_change[place])) == star
    assert step.contribution[star] < 100 * min(step.contribution[place] for place in cells if place != star)
    assert step.top1_texts[int(step.top1[star])] == "blue"
    assert "image 0 [0, 3]" in found.top(3)
    assert 0 < step.forwards <= 12
    assert step.control.sum() >= 3
