"""Generation settings of a checkpoint: each token comes from one greedy pass with the plain cache, whatever they say."""

import copy
import json

import pytest
import torch
from checkpoints import save_checkpoint, tiny_loaded
from generation_settings import HONOURED, NOT_HONOURED, WRONG
from tiny_models import tiny_inputs

import mask_impact
from mask_impact.analyses import greedy
from mask_impact.errors import InputError

N_TOKENS = 3


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded(num_hidden_layers=2)


@pytest.fixture(scope="module")
def inputs(loaded):
    return tiny_inputs(loaded.model, 12)


@pytest.fixture(scope="module")
def plain(loaded, inputs):
    return mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)


@pytest.fixture
def settings(loaded):
    """A model's generation settings, for a test to change."""
    own = loaded.model.generation_config
    loaded.model.generation_config = copy.deepcopy(own)
    yield loaded.model.generation_config
    loaded.model.generation_config = own


def cases(names):
    return [(name, value) for name, values in names.items() for value in values]


def produced(result):
    return [step.token_id for step in result.steps]


def by_hand(model, inputs):
    """Greedy, by a full forward for each token."""
    ids = inputs["input_ids"]
    for _ in range(N_TOKENS):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_generation_is_greedy(loaded, inputs, plain):
    assert produced(plain) == by_hand(loaded.model, inputs)


@pytest.mark.parametrize(("name", "value"), cases(NOT_HONOURED))
def test_what_is_not_about_the_choice_of_a_token_changes_nothing(name, value, loaded, inputs, plain, settings):
    setattr(settings, name, value)
    result = mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)
    assert produced(result) == produced(plain)
    assert all((one.l2 == other.l2).all() for one, other in zip(result.steps, plain.steps, strict=True))


@pytest.mark.parametrize("setting", ["guidance_scale", "prefill_chunk_size"])
def test_every_analysis_generates_so(setting, loaded, inputs, plain, settings):
    setattr(settings, setting, NOT_HONOURED[setting][0])
    without = mask_impact.without(loaded, inputs, "tokens 2", num_tokens=N_TOKENS)
    cut = mask_impact.knockout(loaded, inputs, "tokens 2 -> last", num_tokens=N_TOKENS)
    assert list(without.answer.token_ids) == produced(plain) == [step.token_id for step in cut.steps]
    assert mask_impact.explain(loaded, inputs, num_tokens=N_TOKENS, budget=12).tokens.ids[12:].tolist() == produced(
        plain
    )


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        *((name, value, None) for name, value in cases(HONOURED)),
        *((name, values[0], 7) for name, values in HONOURED.items()),
    ],
)
def test_what_is_about_the_choice_of_a_token_is_as_of_the_model_s_own_generate(
    name, value, end, loaded, inputs, settings
):
    settings.eos_token_id = end
    if (name, end) == ("exponential_decay_length_penalty", None):
        return  # is about the logits of the end tokens; transformers cannot do it without any
    setattr(settings, name, value)
    settings.pad_token_id = 0
    own = copy.deepcopy(settings)
    if value == [] or name == "repetition_penalty":  # transformers stumbles over nothing and over whole numbers
        setattr(own, name, float(value) if value else None)
    result = mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)
    loaded.model.generation_config = own
    expected = loaded.model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)
    assert produced(result) == expected[0, 12:].tolist()


def test_some_of_them_change_what_is_produced(loaded, inputs, plain, settings):
    changed = []
    for name, value in (
        ("suppress_tokens", produced(plain)[:1]),
        ("sequence_bias", [[[5], 100.0]]),
        ("forced_eos_token_id", 3),
    ):
        before = getattr(settings, name)
        setattr(settings, name, value)
        changed.append(produced(mask_impact.analyze(loaded, inputs, num_tokens=N_TOKENS, answer=False)))
        setattr(settings, name, before)
    assert produced(plain) not in changed


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_what_makes_no_sense_is_named_in_one_line(name, value, loaded, inputs, settings):
    setattr(settings, name, value)
    with pytest.raises(InputError) as caught:
        mask_impact.analyze(loaded, inputs, num_tokens=1, answer=False)
    said = str(caught.value)
    assert said.startswith(f"the model's generation_config.json: `{name}` is ")
    assert "\n" not in said


def test_a_setting_of_a_model_s_file_is_honoured_or_not_alike(tmp_path, inputs):
    folder = save_checkpoint(tmp_path, "qwen3")
    ids = {}
    for name, settings in (
        ("plain", {}),
        (
            "guided",
            {"guidance_scale": 1.5, "do_sample": True, "cache_implementation": "static", "prefill_chunk_size": 2},
        ),
        ("suppressed", {"suppress_tokens": list(range(100))}),
    ):
        (folder / "generation_config.json").write_text(json.dumps(settings))
        ids[name] = produced(mask_impact.analyze(str(folder), inputs, num_tokens=2, answer=False))
    assert ids["guided"] == ids["plain"]
    assert min(ids["suppressed"]) >= 100


def test_every_setting_of_transformers_is_either_honoured_or_stays_what_it_is_by_default(loaded, settings):
    """Whatever a later version of transformers adds is not honoured until somebody has looked at it."""
    for name in vars(settings):
        if not name.startswith("_") and name not in greedy.HONOURED:
            setattr(settings, name, "something else")
    config = greedy.greedy_config(loaded.model, 3)
    config.update(**settings.to_dict(), defaults_only=True, allow_custom_entries=True)
    assert "something else" not in vars(config).values()
