"""Effects of mixtures of experts in bfloat16: what the experts' rounding makes of them is no more than what the model's own
rounding of its states makes. A float32 copy of the model knows both: it runs from the bfloat16 model's states, and from its
own."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from family_models import family_inputs, family_model

from mask_impact.engine.kept import keep
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group

SEEDS = (0, 1, 2)


def effects_of(kept, token):
    """[L * N], each position hidden from the last query in each layer."""
    n = kept.n_positions
    variants = each_window_and_group([(one,) for one in range(n)], n, len(kept.states), 1, "last")
    return measure_targets(kept, variants, [Target(n - 1, token)], kept.logits[-1:]).logprob_change


def widened(value):
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(widened(one) for one in value)
    return {name: widened(one) for name, one in value.items()} if isinstance(value, dict) else value


def on_the_states_of(kept, wide):
    """The float32 model's layers from what the bfloat16 model's layers were given."""
    states = [copy.copy(state) for state in kept.states]
    for state in states:
        vars(state).update({name: widened(value) for name, value in vars(state).items()})
    return replace(wide, states=states, final=kept.final.float(), logits=kept.logits.float())


def apart(found, expected):
    """The median, relative; what is below a thousandth of the largest counts as much."""
    scale = np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
    return np.median(np.abs(found - expected) / scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "olmoe"])
def test_experts_round_effects_no_more_than_the_model_s_states_are_rounded(name, monkeypatch):
    monkeypatch.setattr(
        "mask_impact.engine.effects.check_replayed", lambda *given: None
    )  # of the states, one another's
    of_experts, of_states = [], []
    for seed in SEEDS:
        model = family_model(name, dtype=torch.bfloat16, seed=seed)
        model.set_attn_implementation("eager")
        wide, inputs = copy.deepcopy(model).float(), family_inputs(model, seed=seed)
        kept, kept_wide = keep(model, inputs), keep(wide, inputs)
        token = int(kept_wide.logits[-1].argmax())
        alone = effects_of(kept_wide, token)
        there = effects_of(on_the_states_of(kept, kept_wide), token)
        of_experts.append(apart(effects_of(kept, token), there))
        of_states.append(apart(there, alone))
    assert np.mean(of_experts) < 0.04
    assert np.mean(of_experts) < 2 * np.mean(of_states)
