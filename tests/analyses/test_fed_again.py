"""A model that drops its cache and is fed the whole sequence again, as Phi-3 is where its positions' frequencies change.

Held against full forwards of each step's sequence by itself, which know no cache.
"""

import effect_oracle
import numpy as np
import oracle
import pytest
import torch
import transformers
from checkpoints import make_tokenizer, tiny_loaded
from packaging.version import Version
from tiny_models import tiny_inputs
from transformers.generation import GenerationMixin

import mask_impact
from mask_impact.analyses.impact import run_together
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import ExactnessError

feeds_again = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="generate() drops the cache and feeds one token"
)
SWITCH, N_PROMPT, N_TOKENS = 24, 21, 8
FED = [N_PROMPT, 1, 1, 1, SWITCH + 1, 1, 1, 1]  # positions that go in at each step
ROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.2, 1.0], "long_factor": [4.0, 2.0, 7.0], "original_max_position_embeddings": SWITCH,
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded("phi3", make_tokenizer(), rope_parameters=ROPE, original_max_position_embeddings=SWITCH)


@pytest.fixture(scope="module")
def inputs(loaded):
    return tiny_inputs(loaded.model, N_PROMPT)


@pytest.fixture(scope="module")
def ids(loaded, inputs):
    """What the model produces, and that it is fed again."""
    fed = []
    first = loaded.model.model.layers[0]
    with first.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1])):
        produced = loaded.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)[0, N_PROMPT:].tolist()
    assert fed == FED
    return produced


def until(inputs, ids, step):
    """The sequence of a step as a prompt."""
    whole = torch.cat([inputs["input_ids"], torch.tensor([ids[:step]], dtype=torch.int64)], dim=1)
    return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}


@pytest.fixture(scope="module")
def result(loaded, inputs):
    return mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, effect=True, budget=20, verify=8)


@feeds_again
def test_a_hidden_token_stays_hidden_at_every_step(loaded, inputs):
    found = mask_impact.without(loaded, inputs, "tokens 3", num_tokens=N_TOKENS).others[0]
    assert len(found.token_ids) == N_TOKENS
    for step, token in enumerate(found.token_ids):
        queries = range(N_PROMPT + step)
        logits = effect_oracle.masked_logits(
            loaded.model, inputs, found.token_ids[:step], layers=range(3), queries=queries, keys=(3,)
        )
        assert int(logits.argmax()) == token
        assert found.probabilities[step] == pytest.approx(float(logits.softmax(-1)[token]), rel=1e-4)


@feeds_again
def test_the_distances_of_every_step_are_those_of_really_masking(loaded, inputs, ids, result):
    assert [step.token_id for step in result.steps] == ids
    for step in (0, 3, 4, 5, 7):
        expected = oracle.measure(loaded.model, until(inputs, ids, step), 1).l2[0]
        np.testing.assert_allclose(result.steps[step].l2, expected, rtol=1e-3, atol=1e-4 * expected.max())


@feeds_again
def test_the_effects_of_every_step_are_those_of_really_masking(loaded, inputs, ids, result):
    for step in (0, 4, 7):
        expected = effect_oracle.effects(loaded.model, inputs, ids, step)["logprob_change"]
        found = result.steps[step].effect.logprob_change
        np.testing.assert_allclose(
            found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
        )


@feeds_again
def test_verification_measures_the_same_again(result):
    assert result.meta["verification"]["error"] < 1e-3
    assert max(step for step, _, _ in result.meta["verification"]["triples"]) >= 4


@feeds_again
def test_states_that_are_kept_are_of_the_whole_sequence(loaded, inputs, ids):
    """Knockouts hide keys from all queries, so each step's later layers run from states of all positions."""
    found = mask_impact.knockout(loaded, inputs, [("tokens 3", "tokens 10-12")], num_tokens=N_TOKENS, window=1)
    assert [step.token_id for step in found.steps] == ids
    for step in (3, 4, 6):
        own = effect_oracle.masked_logits(loaded.model, inputs, ids[:step], layers=(), queries=(), keys=())
        for layer in range(3):
            cut = effect_oracle.masked_logits(
                loaded.model, inputs, ids[:step], layers=(layer,), queries=(10, 11, 12), keys=(3,)
            )
            expected = float(cut.log_softmax(-1)[ids[step]] - own.log_softmax(-1)[ids[step]])
            assert found.steps[step].logprob_change[0, layer] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@feeds_again
def test_what_the_answer_used_is_of_one_pass_of_the_whole_sequence(loaded, inputs, ids, result):
    """The states that the first tokens came from are gone: the sequence runs once more, as a whole."""
    explained = mask_impact.explain(loaded, inputs, num_tokens=N_TOKENS, budget=20)
    target = explained.targets[0]
    logits = loaded.model(**until(inputs, ids, N_TOKENS - 1)).logits[0, N_PROMPT - 1 :].double().log_softmax(-1)
    expected = float(logits[range(N_TOKENS), ids].sum())
    assert np.log(target.probability) == pytest.approx(expected, rel=1e-3)
    assert np.log(result.answer.targets[0].probability) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("ask", [mask_impact.analyze, mask_impact.explain, mask_impact.knockout])
def test_a_pass_that_does_not_see_what_stands_before_it_is_one_line(loaded, inputs, monkeypatch, ask):
    """As before transformers 5.20: the cache goes, the sequence is not fed again, and the model's own answer is off."""

    def one_token(self, input_ids, past_key_values=None, **kwargs):
        cache = None if input_ids.shape[1] > SWITCH else past_key_values
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, past_key_values=cache, **kwargs)

    monkeypatch.setattr(type(loaded.model), "prepare_inputs_for_generation", one_token)
    with pytest.raises(ExactnessError, match=r"^forward pass 4 saw 1 positions of 25: no numbers are given; [^\n]+$"):
        ask(loaded, inputs, num_tokens=N_TOKENS)


def test_prompts_of_such_a_model_do_not_share_passes(loaded):
    """The longest of them would decide about the frequencies of all."""
    alone = mask_impact.analyze(loaded, tiny_inputs(loaded.model, 20), num_tokens=2, answer=False)
    settings = {"num_tokens": 2, "answer": False}
    many = list(mask_impact.analyze_many(loaded, [tiny_inputs(loaded.model, n) for n in (20, SWITCH + 1)], **settings))
    assert all((one.l2 == other.l2).all() for one, other in zip(many[0].steps, alone.steps, strict=True))


def test_a_sequence_that_is_given_anew_is_measured_by_itself():
    """Also where nothing but the engine knows of it: two forwards without a cache."""
    loaded = tiny_loaded()
    short, long = tiny_inputs(loaded.model, 5), tiny_inputs(loaded.model, 9)
    with torch.no_grad(), RidingEngine(loaded.model) as engine:
        loaded.model(**long, use_cache=False)
        loaded.model(**short, use_cache=False)
    plain = run_together(loaded, [prepare(loaded, short, RunSettings(num_tokens=1))])[0]
    assert [len(step.positions) for step in engine.steps] == [9, 5]
    np.testing.assert_allclose(engine.steps[1].l2, plain.steps[0].l2, rtol=1e-5)
