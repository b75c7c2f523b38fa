"""Really hiding sets of positions, against full forwards of a copy of the model with these edges masked."""

import effect_oracle
import numpy as np
import pytest
import torch
from tiny_models import tiny_image_inputs, tiny_inputs, tiny_model

from mask_impact.analyses import hiding
from mask_impact.analyses.explain import extended
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.observer import Observer
from mask_impact.engine.kept import keep
from mask_impact.engine.targets import Target

PRODUCED = [5, 9, 12]


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.forwards = []

    def forwards_done(self, n):
        self.forwards.append(n)


class Case:
    """A tiny model with a prompt and what was produced, the same tokens whatever the model says."""

    def __init__(self, name, seed=0):
        self.model, self.duplicate = tiny_model(name, seed=seed), None
        self.inputs = (
            tiny_image_inputs(self.model, grids=((1, 4, 4),))
            if name.startswith("qwen3_vl")
            else tiny_inputs(self.model, 8)
        )
        self.n_prompt = self.inputs["input_ids"].shape[1]
        self.longer = extended(self.inputs, PRODUCED[:-1])
        self.n = self.n_prompt + 2
        self.targets = [Target(self.n_prompt - 1 + step, token) for step, token in enumerate(PRODUCED)]
        self.n_layers = self.model.config.get_text_config().num_hidden_layers

    def hiding(self, targets=None, observer=None):
        return Hiding(keep(self.model, self.longer, 3), targets or self.targets, observer or Observer())

    def logprobs(self, targets, **edges):
        """Log-probabilities [T, vocabulary] at the targets' rows, by one full forward that the package has no part in."""
        self.duplicate = self.duplicate or effect_oracle.computing_copy(self.model)
        cut = effect_oracle.Edges(**{"layers": range(self.n_layers), "queries": range(self.n), "keys": ()} | edges)
        logits = effect_oracle.all_logits(self.duplicate, self.inputs, PRODUCED[:-1], cut)
        return torch.log_softmax(logits[[one.row for one in targets]], dim=-1)


def expected(case, targets, **edges):
    """(change, KL, most probable token, number of the first target that changes or -1) of cutting edges."""
    own, cut = case.logprobs(targets), case.logprobs(targets, **edges)
    change = sum(float(cut[n, one.token] - own[n, one.token]) for n, one in enumerate(targets))
    kl = float((own.exp() * (own - cut)).sum())
    others = [n for n in range(len(targets)) if cut[n].argmax() != own[n].argmax()]
    first = others[0] if others else -1
    return change, kl, int((cut if others else own)[max(first, 0)].argmax()), first


def agrees(found, place, want, rel=2e-3, absolute=5e-5):
    """Whether a variant is what was expected."""
    change, kl, top1, first = want
    return (
        found.logprob_change[place] == pytest.approx(change, rel=rel, abs=absolute)
        and found.kl_divergence[place] == pytest.approx(kl, rel=rel, abs=absolute)
        and (int(found.top1[place]), int(found.differs[place])) == (top1, first)
    )


@pytest.fixture(scope="module", params=["qwen3", "gemma3_text", "qwen3_vl", "qwen3_vl_moe"])
def case(request):
    return Case(request.param)


def test_sets_are_hidden_from_every_query_in_all_layers(case):
    sets = [(2,), (case.n_prompt - 1,), (1, 4, 6), (0,), tuple(range(3, 8)), (case.n_prompt,)]
    some = case.hiding()
    found = some.measure(sets)
    own = case.logprobs(case.targets)
    tokens = [one.token for one in case.targets]
    assert found.probability == pytest.approx(float(own[range(3), tokens].sum().exp()), rel=1e-3)
    for place, positions in enumerate(sets):
        assert agrees(found, place, expected(case, case.targets, keys=positions)), positions
    for place, positions in enumerate(sets[:2]):
        assert not agrees(found, place, expected(case, case.targets, keys=[at + 1 for at in positions])), positions
    assert np.abs(found.logprob_change).min() > 1e-3


def test_the_image_can_be_hidden_whole():
    case = Case("qwen3_vl")
    image = torch.nonzero(case.inputs["mm_token_type_ids"][0] == 1).flatten().tolist()
    some = case.hiding()
    found = some.measure([image, image[:1]])
    assert len(image) == 4
    for place, positions in enumerate((image, image[:1])):
        assert agrees(found, place, expected(case, case.targets, keys=positions))


def test_targets_may_be_any_rows_in_any_order():
    case = Case("qwen3")
    for chosen in (case.targets[1:2], case.targets[2:], case.targets[::-1], [case.targets[0], case.targets[2]]):
        some = case.hiding(chosen)
        found = some.measure([(2,), (case.n_prompt,)])
        for place, positions in enumerate([(2,), (case.n_prompt,)]):
            assert agrees(found, place, expected(case, chosen, keys=positions))


def test_a_set_is_measured_alike_alone_and_among_others():
    case = Case("qwen3")
    some = case.hiding()
    together = some.measure([(1,), (2, 3), (6,)]).logprob_change
    alone = [some.measure([one]).logprob_change[0] for one in ((1,), (2, 3), (6,))]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_what_it_takes_is_what_stands_behind_the_first_hidden_position():
    case, told = Case("qwen3"), Told()
    some = case.hiding(observer=told)
    assert (some.n_layers, some.n_positions, some.forwards) == (case.n_layers, case.n, 0.0)
    costs = [some.cost(first) for first in range(case.n)]
    assert costs == [pytest.approx((case.n - first) / case.n) for first in range(case.n)]
    sets = [(0,), (3, 7), (5,), (5, 6, 8)]
    some.measure(sets)
    with_nothing_hidden = costs[0]
    assert some.forwards == pytest.approx(with_nothing_hidden + sum(costs[one[0]] for one in sets))
    before = some.forwards
    some.measure([(8,)])
    assert some.forwards - before == pytest.approx(2 * costs[8])
    before = some.forwards
    some.ask([(8,)])
    assert some.forwards - before == pytest.approx(costs[8])
    before = some.forwards
    some.cut([1], [case.n_prompt - 1], (1, 1))
    assert 0 < some.forwards - before < 1  # in the last layers, from that row on
    assert sum(told.forwards) == pytest.approx(some.forwards)


@pytest.mark.parametrize("layers", [(0, 0), (1, 2), (2, 2), (0, 2)])
def test_a_cut_hides_the_source_from_the_target_s_queries_alone_in_these_layers(layers):
    case = Case("qwen3")
    source, target = [1, 4], [5, case.n_prompt - 1]
    edges = {"keys": source, "queries": target, "layers": range(layers[0], layers[1] + 1)}
    some = case.hiding()
    found = some.cut(source, target, layers)
    everyone = some.cut(source, range(case.n), layers)
    whole = some.measure([source])
    assert len(found.logprob_change) == 1
    assert agrees(found, 0, expected(case, case.targets, **edges))
    assert not agrees(found, 0, expected(case, case.targets, **edges | {"queries": target[:1]}))
    if layers == (0, case.n_layers - 1):
        np.testing.assert_allclose(everyone.logprob_change, whole.logprob_change, rtol=1e-4, atol=1e-6)


def test_heads_are_cut_each_where_it_is_named_and_nothing_else():
    case = Case("qwen3")
    source, target = range(case.n_prompt - 1), [case.n_prompt - 1]
    variants = [[(1, 0), (1, 3)], [(0, 2)], [], [(1, head) for head in range(4)]]
    some = case.hiding(case.targets[:1])
    found = some.cut(source, target, (0, case.n_layers - 1), variants)
    layer = some.cut(source, target, (1, 1))
    for place, heads in enumerate(variants):
        edges = {"keys": source, "queries": target, "layers": {layer for layer, _ in heads}}
        want = expected(case, case.targets[:1], **edges, heads=[head for _, head in heads])
        assert agrees(found, place, want), heads
    assert found.logprob_change[3] == pytest.approx(layer.logprob_change[0], rel=1e-4)
    assert (found.logprob_change[2], found.differs[2]) == (0, -1)


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return model.config._attn_implementation, hooks, [parameter.requires_grad for parameter in model.parameters()]


def test_the_model_is_as_it_was_whatever_happens(monkeypatch):
    case = Case("qwen3")
    before, enabled = state(case.model), torch.is_grad_enabled()
    some = case.hiding()
    assert state(case.model) == before
    some.measure([(2,)])
    assert state(case.model) == before

    def fails(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(case.model.lm_head, "forward", fails)
    for run in (case.hiding, lambda: some.measure([(2,)])):
        with pytest.raises(RuntimeError, match="no memory"):
            run()
        assert state(case.model) == before
    assert torch.is_grad_enabled() == enabled


def test_a_set_that_is_hidden_in_part_would_be_seen(monkeypatch):
    case = Case("qwen3")
    real = hiding.each_window_and_group
    monkeypatch.setattr(hiding, "each_window_and_group", lambda sets, *how: real([one[:1] for one in sets], *how))
    some = case.hiding()
    found = some.measure([(2, 4)])
    assert not agrees(found, 0, expected(case, case.targets, keys=(2, 4)))
    assert agrees(found, 0, expected(case, case.targets, keys=(2,)))
