"""Several produced tokens in one sequence: what hiding does to them against full forwards of a copy of the model."""

import effect_oracle
import numpy as np
import pytest
import torch
from tiny_models import tiny_inputs, tiny_model

from mask_impact.engine import replay, targets
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import Masks, each_window_and_group, in_each
from mask_impact.errors import ExactnessError

N_PROMPT, PRODUCED = 7, [5, 9, 12]
N = N_PROMPT + len(PRODUCED) - 1
TARGETS = [Target(N_PROMPT - 1, 5), Target(N_PROMPT, 9), Target(N_PROMPT + 1, 12)]
SETS = [(0,), (2,), (3, 4), (6,), (1, 5)]


def sequence(model):
    inputs = tiny_inputs(model, N_PROMPT)
    behind = torch.tensor([PRODUCED[:-1]])
    longer = {name: torch.cat([value, torch.ones_like(behind)], 1) for name, value in inputs.items()}
    longer["input_ids"] = torch.cat([inputs["input_ids"], behind], 1)
    if "mm_token_type_ids" in longer:
        longer["mm_token_type_ids"][:] = 0
    return inputs, longer


@torch.no_grad()
def measured(model, wanted=TARGETS, sets=SETS, variants=None, directly=False):
    _, longer = sequence(model)
    with RidingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="all") as engine:
        logits = model(**longer).logits[0, [one.row for one in wanted]]
        if variants is None:
            variants = each_window_and_group(sets, N, len(engine.decoder.layers), "all", "all")
        return measure_targets(engine, variants, wanted, logits, directly)


def distributions(model, positions, layers=None, heads=None, queries=None):
    """Log-probabilities [T, vocabulary] at the targets, with positions hidden, each by a forward of its own."""
    inputs, _ = sequence(model)
    layers = range(model.config.get_text_config().num_hidden_layers) if layers is None else layers
    found = []
    for number in range(len(PRODUCED)):
        logits = effect_oracle.masked_logits(
            model, inputs, PRODUCED[:number], layers=layers, heads=heads, keys=positions,
            queries=range(N_PROMPT + number) if queries is None else queries,
        )  # fmt: skip
        found.append(torch.log_softmax(logits, -1))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "qwen3_vl"])
def test_several_produced_tokens_agree_with_full_forwards(name):
    model = tiny_model(name)
    found, own = measured(model), distributions(model, ())
    tokens = [one.token for one in TARGETS]
    assert found.probability == pytest.approx(float(own[range(3), tokens].sum().exp()), rel=1e-4)
    for place, positions in enumerate(SETS):
        hidden = distributions(model, positions)
        change = (hidden - own)[range(3), tokens].sum()
        kl = (own.exp() * (own - hidden)).sum()
        assert found.logprob_change[place] == pytest.approx(float(change), rel=1e-3, abs=1e-5)
        assert found.kl_divergence[place] == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
        changed = [number for number in range(3) if hidden[number].argmax() != own[number].argmax()]
        assert found.differs[place] == (changed[0] if changed else -1)
        assert found.top1[place] == int((hidden[changed[0]] if changed else own[0]).argmax())


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "qwen3_vl", "qwen3_vl_moe"])
def test_run_directly_they_say_the_same(name):
    model = tiny_model(name)
    one, other = measured(model), measured(model, directly=True)
    np.testing.assert_allclose(other.logprob_change, one.logprob_change, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.kl_divergence, one.kl_divergence, rtol=1e-2, atol=1e-4)
    assert (one.top1 == other.top1).all()
    assert (one.differs == other.differs).all()


def test_of_bfloat16_only_differences_have_digits():
    """Positions that begin at different places go together; what is run directly has the model's own rounding."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama", dtype=torch.bfloat16).to(dtype)
        windows = each_window_and_group([(one,) for one in range(N - 1)], N, model.config.num_hidden_layers, 1, "all")
        found[dtype] = measured(model, variants=windows).logprob_change
    directly = measured(model, variants=windows, directly=True).logprob_change
    exact = found[torch.float32]
    there = exact != 0
    off, off_directly = (
        np.median(np.abs(one - exact)[there] / np.abs(exact)[there]) for one in (found[torch.bfloat16], directly)
    )
    assert off < 0.02
    assert 2 * off < off_directly < 0.1


def test_the_order_of_targets_and_of_variants_does_not_matter():
    model = tiny_model("qwen3")
    one, other = measured(model), measured(model, wanted=TARGETS[::-1], sets=SETS[::-1])
    np.testing.assert_allclose(one.logprob_change, other.logprob_change[::-1], rtol=1e-4, atol=1e-6)
    assert (one.differs >= 0).tolist() == (other.differs[::-1] >= 0).tolist()


def test_one_token_against_another_is_the_change_of_their_ratio():
    model = tiny_model("qwen3")
    found = measured(model, wanted=[Target(N_PROMPT - 1, 5, instead=8)])
    own = distributions(model, ())[0]
    for place, positions in enumerate(SETS):
        hidden = distributions(model, positions)[0]
        assert found.logprob_change[place] == pytest.approx(
            float((hidden[5] - hidden[8]) - (own[5] - own[8])), rel=1e-3, abs=1e-5
        )


def test_what_hides_nothing_that_is_seen_changes_nothing():
    model = tiny_model("qwen3")
    found = measured(model, wanted=TARGETS[:1], sets=[(N - 1,)])  # behind the target
    assert (found.logprob_change[0], found.kl_divergence[0], found.differs[0]) == (0, 0, -1)


def test_heads_of_single_layers_are_cut_alone():
    model = tiny_model("qwen3")
    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    keys, queries = torch.zeros(2, N, dtype=torch.bool), torch.zeros(2, N, dtype=torch.bool)
    keys[:, [1, 3]], queries[:, N_PROMPT - 1] = True, True
    heads = torch.zeros(2, n_layers, n_heads, dtype=torch.bool)
    heads[0, 1, 2] = heads[1, 0, 0] = True
    variants = in_each(Masks(keys, queries, heads), (torch.tensor([0]), torch.tensor([n_layers - 1])))
    found = measured(model, wanted=TARGETS[:1], variants=variants)
    own = distributions(model, ())[0]
    for place, (layer, head) in enumerate([(1, 2), (0, 0)]):
        hidden = distributions(model, (1, 3), layers=[layer], heads=[head], queries=[N_PROMPT - 1])[0]
        change = float(hidden[5] - own[5])
        assert abs(change) > 1e-5
        assert found.logprob_change[place] == pytest.approx(change, rel=1e-3, abs=1e-6)


def test_a_replay_at_the_wrong_row_is_told_from_the_model(monkeypatch):
    real = replay._through_layers
    monkeypatch.setattr(
        replay,
        "_through_layers",
        lambda engine, packs, rows, *rest: real(engine, packs, [max(row - 1, 0) for row in rows], *rest),
    )
    model = tiny_model("qwen3")
    with pytest.raises(ExactnessError, match="the replayed model differs from the model"):
        measured(model)


def test_values_are_what_they_are_called():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    p = torch.softmax(logits, -1)
    wanted = [Target(0, 2), Target(1, 1, instead=0)]
    odds = targets.value_of(logits, wanted)
    assert odds[0].item() == pytest.approx(float((p[0, 2] / (1 - p[0, 2])).log()), rel=1e-5)
    assert odds[1].item() == pytest.approx(-3.0)
    assert targets.value_of(logits, wanted, "log-prob")[0].item() == pytest.approx(float(p[0, 2].log()), rel=1e-5)
