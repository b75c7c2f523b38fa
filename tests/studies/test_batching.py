"""Several prompts in one forward: each result is that of its prompt alone."""

import numpy as np
import oracle
import pytest
import torch
from checkpoints import make_tokenizer
from marks import slow_but
from tiny_models import ARCHITECTURES, is_vision_language, tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.analyses import impact_result
from mask_impact.analyses.impact import run_together
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.api import functions
from mask_impact.api.functions import analyze, analyze_many
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import ExactnessError, InputError, UsageError
from mask_impact.models import loading
from mask_impact.studies import batching
from mask_impact.studies.batching import group_prompts

LENGTHS = (9, 4, 1, 7)
N_TOKENS = 4


def wrapped(name, **overrides):
    return loading.wrap(tiny_model(name, **overrides), make_tokenizer())


def prompts_for(loaded, lengths=LENGTHS, **settings):
    settings = RunSettings(num_tokens=N_TOKENS, **settings)
    inputs = [tiny_inputs(loaded.model, length, seed=length) for length in lengths]
    if is_vision_language(loaded.model):
        inputs += [tiny_image_inputs(loaded.model, n_images=n, seed=n) for n in (1, 2)]
    return [prepare(loaded, one, settings) for one in inputs]


def assert_same(together, alone, rtol=1e-5):
    """Within rtol of each value, or of a thousandth of the largest of its layer and variant where it is smaller than that."""
    assert together.tokens.ids.tolist() == alone.tokens.ids.tolist()
    assert together.generated_text == alone.generated_text
    assert len(together.steps) == len(alone.steps)
    for one, other in zip(together.steps, alone.steps, strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        for name in ("l2", "cosine"):
            got, wanted = getattr(one, name), getattr(other, name)
            small = 1e-3 if name == "l2" else 1e-6
            scale = np.maximum(wanted, small * wanted.max(axis=1, keepdims=True))
            np.testing.assert_array_less(np.abs(got - wanted), (rtol if name == "l2" else 10 * rtol) * scale + 1e-30)
        np.testing.assert_allclose(one.attention, other.attention, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(one.baseline_norm, other.baseline_norm, rtol=1e-5)
        for candidate, expected in zip(one.candidates, other.candidates, strict=True):
            assert candidate.id == expected.id
            assert candidate.probability == pytest.approx(expected.probability, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "qwen3_vl"])
def test_sinks_are_found_in_a_batch_as_alone(name, monkeypatch):
    """From the same attention: none of it is the padding's."""
    loaded = wrapped(name)
    seen = []
    monkeypatch.setattr(impact_result, "find_sinks", lambda received: seen.append(received) or ())
    prompts = prompts_for(loaded)
    run_together(loaded, prompts)
    together = [seen.pop(0) for _ in prompts]
    for one, prompt in zip(together, prompts, strict=True):
        run_together(loaded, [prompt])
        np.testing.assert_allclose(one, seen.pop(), rtol=1e-4, atol=1e-7)
    assert any(np.isfinite(one).any() for one in together)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_gives_what_its_prompts_give_alone(name):
    """Different lengths (one of a single token), sliding windows, mixtures of experts, prompts with and without images."""
    loaded = wrapped(name)
    prompts = prompts_for(loaded)
    for prompt, result in zip(prompts, run_together(loaded, prompts), strict=True):
        assert_same(result, run_together(loaded, [prompt])[0], rtol=1e-4 if name == "qwen3_vl_moe" else 2e-5)


@pytest.mark.parametrize("name", slow_but(("gemma3_text",), ["qwen3_vl", "gemma3_text", "mistral"]))
def test_every_value_of_a_batch_agrees_with_the_oracle(name):
    """Against the model's own layer in float64, of each prompt alone and without padding."""
    loaded = wrapped(name)
    prompts = prompts_for(loaded)
    for prompt, result in zip(prompts, run_together(loaded, prompts), strict=True):
        expected = oracle.measure(loaded.model, prompt.encoded.inputs, N_TOKENS)
        oracle.assert_l2_close([step.l2 for step in result.steps], expected)
        oracle.assert_cosine_close([step.cosine for step in result.steps], expected)


def test_padding_that_is_seen_would_be_rejected(monkeypatch):
    """The comparison with the oracle sees a batch whose padding takes part in attention."""
    loaded = wrapped("qwen3")
    prompts = prompts_for(loaded, (9, 4))
    expected = oracle.measure(loaded.model, prompts[1].encoded.inputs, N_TOKENS)
    generate = loaded.model.generate

    def see_padding(**inputs):
        return generate(**inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(loaded.model, "generate", see_padding)
    with pytest.raises((AssertionError, RuntimeError, ValueError, IndexError)):
        oracle.assert_l2_close([step.l2 for step in run_together(loaded, prompts)[1].steps], expected)


@pytest.mark.parametrize("batch_size", slow_but((3,), [1, 3, 10]))
def test_chunks_of_a_batch_change_nothing(batch_size):
    loaded = wrapped("qwen3_vl")
    for one, other in zip(
        run_together(loaded, prompts_for(loaded, batch_size=batch_size)),
        run_together(loaded, prompts_for(loaded)),
        strict=True,
    ):
        assert_same(one, other, rtol=2e-5)


def test_prompts_of_a_batch_may_differ_in_length_of_answer_and_mask_mode():
    loaded = wrapped("qwen3_vl")
    prompts = [
        Prepared(one.prompt, one.encoded, RunSettings(num_tokens=n_tokens, mask_mode=mode))
        for one, n_tokens, mode in zip(
            prompts_for(loaded), (1, 4, 2, 3, 2, 4), ("text", "both", "both", "text", "vision", "text"), strict=True
        )
    ]
    results = run_together(loaded, prompts)
    assert [len(result.steps) for result in results] == [1, 4, 2, 3, 2, 4]
    for prompt, result in zip(prompts, results, strict=True):
        assert_same(result, run_together(loaded, [prompt])[0], rtol=2e-5)


def test_a_sequence_that_ends_early_is_measured_no_further():
    """The end token of one prompt is a token that it produces at its second step; the others go on."""
    loaded = wrapped("qwen3")
    prompts = prompts_for(loaded)
    free = run_together(loaded, prompts)
    end = free[0].steps[1].token_id
    loaded.model.generation_config.eos_token_id = [end]
    loaded.model.generation_config.pad_token_id = 3
    results = run_together(loaded, prompts)
    expected = []
    for result in free:
        produced = [step.token_id for step in result.steps]
        expected.append(produced[: produced.index(end) + 1] if end in produced else produced)
    assert [[step.token_id for step in result.steps] for result in results] == expected
    assert len(expected[0]) == 2
    assert max(len(one) for one in expected) == N_TOKENS
    for prompt, result in zip(prompts, results, strict=True):
        assert_same(result, run_together(loaded, [prompt])[0], rtol=2e-5)


def test_the_engine_refuses_a_batch_of_another_size():
    model = tiny_model("qwen3")
    inputs = {key: value.repeat(2, 1) for key, value in tiny_inputs(model, 4).items()}
    with (
        pytest.raises(UsageError, match="3 sequences at a time can be analysed; the model was given 2"),
        RidingEngine(model, plans=[SequencePlan()] * 3),
    ):
        model.generate(**inputs, max_new_tokens=1)
    with pytest.raises(UsageError, match="single sequence only"):
        RidingEngine(model, plans=[SequencePlan()] * 2, verify=[0])


def test_analyze_is_a_batch_of_one():
    loaded = wrapped("qwen3")
    prompt = prompts_for(loaded)[0]
    one, other = analyze(loaded, prompt.prompt, num_tokens=N_TOKENS), run_together(loaded, [prompt])[0]
    assert all(np.array_equal(a.l2, b.l2) for a, b in zip(one.steps, other.steps, strict=True))


# --- which prompts go together ----------------------------------------------------------------------------------------------


def grouped(prompts, loaded, monkeypatch, budget):
    monkeypatch.setitem(batching.TOKENS_TOGETHER, "cpu", budget)
    return [
        sorted(prompts[index].encoded.n_tokens for index in group) for group in group_prompts(loaded.model, prompts)
    ]


def test_prompts_of_similar_length_go_together_up_to_a_number_of_tokens(monkeypatch):
    loaded = wrapped("qwen3")
    prompts = prompts_for(loaded, (9, 4, 1, 7, 5, 4, 30))
    assert grouped(prompts, loaded, monkeypatch, 16) == [[1, 4, 4], [5, 7], [9], [30]]
    assert grouped(prompts, loaded, monkeypatch, 1000) == [[1, 4, 4, 5, 7, 9, 30]]
    assert grouped(prompts, loaded, monkeypatch, 0) == [[1], [4], [4], [5], [7], [9], [30]]


def test_prompts_that_ask_for_other_things_do_not_go_together(monkeypatch):
    loaded = wrapped("qwen3")
    many = [
        *prompts_for(loaded, (4, 4), variants=("full",)),
        *prompts_for(loaded, (4, 4)),
        *prompts_for(loaded, (4, 4), verify=1),
    ]
    assert [len(group) for group in group_prompts(loaded.model, many)] == [2, 2, 1, 1]


def test_a_model_whose_generation_looks_at_the_prompt_runs_one_by_one():
    for rule in ({"repetition_penalty": 1.1}, {"no_repeat_ngram_size": 2}, {"min_length": 5}):
        loaded = wrapped("qwen3")
        loaded.model.generation_config.update(**rule)
        assert group_prompts(loaded.model, prompts_for(loaded)) == [[2], [1], [3], [0]]


# --- results one by one -----------------------------------------------------------------------------------------------------


def test_analyze_many_yields_the_results_in_the_prompts_order(monkeypatch):
    monkeypatch.setattr(functions, "PROMPTS_AHEAD", 3)
    loaded = wrapped("qwen3")
    inputs = [tiny_inputs(loaded.model, length, seed=length) for length in (9, 4, 2, 7, 8)]
    results = list(analyze_many(loaded, inputs, num_tokens=2))
    for given, result in zip(inputs, results, strict=True):
        assert_same(result, analyze(loaded, given, num_tokens=2), rtol=2e-5)


def test_analyze_many_reads_its_prompts_as_it_needs_them(monkeypatch):
    monkeypatch.setattr(functions, "PROMPTS_AHEAD", 2)
    loaded, read = wrapped("qwen3"), []

    def prompts():
        for length in (3, 4, 5, 6, 7):
            read.append(length)
            yield tiny_inputs(loaded.model, length)

    results = analyze_many(loaded, prompts())
    assert next(results).n_prompt == 3
    assert read == [3, 4]
    assert [result.n_prompt for result in results] == [4, 5, 6, 7]


def test_a_prompt_brings_its_own_settings_and_images(vl_checkpoint):
    loaded = loading.load(str(vl_checkpoint))
    picture = np.zeros((16, 24, 3), dtype=np.uint8)
    one, other = analyze_many(
        loaded,
        ["the cat", {"prompt": "the <image> cat", "images": [picture], "mask_mode": "vision", "num_tokens": 1}],
        num_tokens=2,
        variants=("full",),
    )
    assert (len(one.steps), len(other.steps)) == (2, 1)
    assert one.variants == other.variants == ("Full",)
    assert other.images[0].size == (24, 16)
    assert set(other.tokens.image[other.steps[0].positions]) == {0}


def test_a_prompt_that_fails_ends_it_or_gives_its_error_in_its_place(monkeypatch):
    loaded = wrapped("qwen3")
    prompts = [tiny_inputs(loaded.model, 4), " ", tiny_inputs(loaded.model, 5)]
    one, error, other = analyze_many(loaded, prompts, raise_errors=False)
    assert (one.n_prompt, other.n_prompt) == (4, 5)
    assert isinstance(error, InputError)
    results = analyze_many(loaded, prompts)
    assert next(results).n_prompt == 4
    with pytest.raises(InputError, match="the prompt is empty"):
        next(results)


def test_of_a_group_only_the_prompt_that_fails_is_lost(monkeypatch):
    """Activations that are not finite in one sequence: found when the group has run, and the others run again."""
    loaded = wrapped("qwen3")
    prompts = [tiny_inputs(loaded.model, length, seed=length) for length in (4, 5, 6)]
    bad = int(prompts[1]["input_ids"][0, 2])
    assert all(bad not in prompts[index]["input_ids"] for index in (0, 2))
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[bad] = float("nan")
    one, error, other = analyze_many(loaded, prompts, raise_errors=False)
    assert (one.n_prompt, other.n_prompt) == (4, 6)
    assert isinstance(error, ExactnessError)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"text": "the cat"}, "without `prompt`"),
        ({"prompt": "the cat", "tokens": 3}, "unknown setting 'tokens'; did you mean num_tokens"),
    ],
)
def test_a_dictionary_that_is_no_prompt_is_refused(prompt, said):
    with pytest.raises(UsageError, match=said):
        next(analyze_many(wrapped("qwen3"), [prompt]))
