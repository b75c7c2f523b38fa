"""Flows by which an answer came: where they are cut, and what cutting them does, against full forwards with the edges masked."""

from contextlib import ExitStack
from itertools import pairwise

import effect_oracle
import numpy as np
import pytest
import torch
from checkpoints import tiny_loaded

from mask_impact.analyses import explain
from mask_impact.analyses.explain import extended
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.routes import MOST_OF_IT, carrying, cut_heads, placed_flows
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.backward import RULES, estimate
from mask_impact.engine.kept import keep
from mask_impact.engine.targets import Target
from mask_impact.errors import InputError, UsageError

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tiny():
    return tiny_loaded()


@pytest.fixture(scope="module")
def deep():
    """With 32 heads, so that ten of them are a choice."""
    return tiny_loaded(num_hidden_layers=8)


def settings(routes, **others):
    return RunSettings(**{"raw": True, "num_tokens": 1, "budget": 100, "groups": "tokens", "routes": routes} | others)


def placed(tiny, routes):
    return placed_flows(tiny, prepare(tiny, PROMPT, settings(routes)))


# --- flows ----------------------------------------------------------------------------------------------------------------------


def test_flows_are_those_asked_for_or_the_usual_ones_that_there_are(tiny, tmp_path):
    for usual in (None, "auto"):
        assert [one.flow.name for one in placed(tiny, usual)] == ["question -> last"]
    found = placed(tiny, "cat -> mat; tokens 0-1 -> last;")
    assert [one.flow.name for one in found] == ["cat -> mat", "tokens 0-1 -> last"]
    assert found[1].source == (0, 1)
    assert found[1].target is None
    (tmp_path / "f.yaml").write_text("flows:\n  - {source: cat, target: last}\n")
    assert [one.flow.source for one in placed(tiny, str(tmp_path / "f.yaml"))] == ["cat"]


@pytest.mark.parametrize(
    ("routes", "kind", "said"),
    [
        ("cat", UsageError, "`routes`: a flow is 'source -> target'"),
        ("cat -> last; -> mat", UsageError, "`routes`: a flow is 'source -> target'"),
        ("nowhere.yaml", UsageError, "`routes` nowhere.yaml is not there; give auto, flows such as image -> last"),
        ("nowhere.yml", UsageError, "is not there"),
        ("dog -> last", InputError, "flow 'dog -> last': 'dog': this text is not in the prompt"),
        ("cat -> dog", InputError, "flow 'cat -> dog': 'dog': this text is not in the prompt"),
        ("image -> last", InputError, "flow 'image -> last': 'image': the prompt has no image"),
        ("tokens 90 -> last", InputError, "flow 'tokens 90 -> last'"),
        ("mat -> cat", InputError, "flow 'mat -> cat' is empty by causality"),
    ],
)
def test_flows_that_can_t_be_are_refused_in_one_line(tiny, routes, kind, said):
    with pytest.raises(kind) as caught:
        placed(tiny, routes)
    assert str(caught.value).startswith(said) or (said in str(caught.value) and routes.endswith("yml"))
    assert "\n" not in str(caught.value)


def test_a_flow_whose_ends_overlap_runs_forwards_as_far_as_it_goes(tiny):
    (one,) = placed(tiny, "tokens 1-4 -> tokens 2-3")
    assert (one.source, one.target) == ((1, 2, 3, 4), (2, 3))
    (one,) = placed(tiny, "cat -> cat")
    assert one.source == one.target


def test_the_layers_that_carry_are_the_fewest_in_a_row_with_most_of_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        estimate = rng.normal(size=9)
        carried = np.maximum(-estimate, 0)
        spans = {
            (first, last): carried[first : last + 1].sum() for first in range(9) for last in range(first, 9)
        }  # of all, the shortest that are enough; of these the first
        enough = [span for span, share in spans.items() if share >= MOST_OF_IT * carried.sum() - 1e-9]
        assert carrying(estimate) == min(enough, key=lambda span: (span[1] - span[0], span[0]))
    assert carrying(np.array([0.0, -2.0, 0.0])) == (1, 1)
    assert carrying(np.array([-4.0, -1.0, -5.0, 99.0])) == (0, 2)
    assert carrying(np.array([-4.0, -1.0, 0.0])) == (0, 0)  # 80 % is enough
    assert carrying(np.array([-3.9, -1.1, 0.0])) == (0, 1)
    assert carrying(np.array([-1.0, 0.0, -1.0])) == (0, 2)
    assert carrying(np.array([0.5, 1.0])) is None
    assert carrying(np.zeros(3)) is None


# --- cut ------------------------------------------------------------------------------------------------------------------------


def inputs_of(tiny):
    return {k: v for k, v in tiny.tokenizer(PROMPT, return_tensors="pt").items() if k != "token_type_ids"}


def change_of(tiny, produced, rows, edges):
    """Of the produced tokens' log-probabilities, added, by two full forwards: with some edges cut, and with none.

    rows: whose outputs give the tokens; edges: (layer, heads or None, source, target) of each cut.
    """
    duplicate = effect_oracle.computing_copy(tiny.model)
    arguments, _ = effect_oracle.full_inputs(duplicate, inputs_of(tiny), produced[:-1])
    sums = []
    for cut in (edges, ()):
        with ExitStack() as stack, torch.no_grad():
            for layer, heads, source, target in cut:
                some = effect_oracle.Edges((layer,), tuple(target), tuple(source), heads)
                for handle in effect_oracle.cut_by_mask(effect_oracle.decoder_layers(duplicate)[layer], some):
                    stack.callback(handle.remove)
            with effect_oracle.float32_becomes(torch.float64):
                logits = duplicate(**arguments, use_cache=False).logits[0].double()
        scores = torch.log_softmax(logits, -1)
        sums.append(sum(float(scores[row, token]) for row, token in zip(rows, produced, strict=True)))
    return sums[0] - sums[1]


def in_layers(first, last, source, target):
    return [(layer, None, source, target) for layer in range(first, last + 1)]


def explained(tiny, routes, num_tokens=1):
    """(target, its tokens, the rows that give them, number of layers)"""
    found = explain.run(tiny, PROMPT, settings(routes, num_tokens=num_tokens, target="all"))
    (target,) = found.targets
    rows = [found.n_prompt - 1 + step for step in target.steps]
    return target, list(target.token_ids), rows, tiny.config.num_hidden_layers


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_what_cutting_does_is_what_full_forwards_with_these_edges_masked_give(tiny, num_tokens):
    """At a target of several tokens each of them is cut from the source; it goes on seeing itself."""
    target, produced, rows, n_layers = explained(tiny, "cat -> last; the #1 -> sat; question -> last", num_tokens)
    n = rows[0] + 1
    names = [text.strip() for text in target.names[:n]]
    cat, sat = (names.index(word) for word in ("cat", "sat"))
    ends = {
        "cat -> last": ([cat], rows),
        "the #1 -> sat": ([0], [sat]),
        "question -> last": (range(n - 1), rows),
    }
    assert [route.name for route in target.routes] == list(ends)
    for route in target.routes:
        whole = change_of(tiny, produced, rows, in_layers(0, n_layers - 1, *ends[route.name]))
        assert route.whole_change == pytest.approx(whole, rel=2e-3, abs=2e-5)
        assert route.layers is not None
        cut = change_of(tiny, produced, rows, in_layers(*route.layers, *ends[route.name]))
        assert route.logprob_change == pytest.approx(cut, rel=2e-3, abs=2e-5)
        assert route.estimate.shape == (n_layers, tiny.config.num_attention_heads)


def test_a_flow_of_some_heads_is_cut_in_these_alone(tiny, tmp_path):
    (tmp_path / "flows.yaml").write_text("flows:\n- {source: cat, target: last, heads: [2, 0]}\n")
    target, produced, rows, n_layers = explained(tiny, str(tmp_path / "flows.yaml"))
    (route,) = target.routes
    cat = [text.strip() for text in target.names[: rows[0] + 1]].index("cat")
    for heads, same in (((0, 2), True), ((0, 1), False), (None, False)):
        edges = [(layer, heads, [cat], rows) for layer in range(n_layers)]
        whole = change_of(tiny, produced, rows, edges)
        assert (route.whole_change == pytest.approx(whole, rel=2e-3, abs=2e-5)) is same
    assert not route.estimate[:, [1, 3]].any()
    assert route.estimate[:, [0, 2]].all()
    (tmp_path / "wrong.yaml").write_text("flows:\n- {source: cat, target: last, heads: [4]}\n")
    with pytest.raises(UsageError, match="head 4 is not there: the model has heads 0 to 3"):
        placed(tiny, str(tmp_path / "wrong.yaml"))


def test_cutting_in_other_layers_or_from_another_query_would_be_seen(tiny):
    target, produced, rows, n_layers = explained(tiny, "question -> last")
    (route,) = target.routes
    source = range(rows[0])
    for edges in (
        in_layers(0, n_layers - 1, source, [rows[0] - 1]),
        in_layers(0, n_layers - 2, source, rows),
        in_layers(1, n_layers - 1, source, rows),
        in_layers(0, n_layers - 1, range(1, rows[0]), rows),
    ):
        assert route.whole_change != pytest.approx(change_of(tiny, produced, rows, edges), rel=2e-3, abs=2e-5)


def test_of_the_layers_by_either_estimate_those_are_kept_whose_cut_takes_more(deep):
    target, produced, rows, _ = explained(deep, "cat -> last; sat -> last; on -> last; the #1 -> last; the #2 -> last")
    differ = 0
    for route in target.routes:
        spans = {carrying(values.sum(axis=1)) for values in (route.estimate, route.contribution)} - {None}
        source = placed(deep, route.name)[0].source
        changes = {span: change_of(deep, produced, rows, in_layers(*span, source, rows)) for span in spans}
        assert route.layers == min(changes, key=changes.get, default=None)
        differ += len(changes) > 1
    assert differ > 1


def test_what_a_flow_is_estimated_to_carry_is_the_sum_over_its_edges(tiny):
    target, produced, rows, n_layers = explained(tiny, "cat -> last; tokens 0-2 -> tokens 2-4", num_tokens=2)
    forward = keep(tiny.model, extended(inputs_of(tiny), produced[:-1]))
    wanted = [Target(row, token) for row, token in zip(rows, produced, strict=True)]
    cat = placed(tiny, "cat -> last")[0].source
    edges = {
        "cat -> last": [(key, query) for key in cat for query in rows],
        "tokens 0-2 -> tokens 2-4": [(key, query) for key in range(3) for query in range(2, 5)],
    }
    for rule in RULES:
        maps = estimate(forward, wanted, rule, layers=range(n_layers)).maps
        for route in target.routes:
            sums = np.array(
                [
                    [sum(float(maps[layer][head, query, key]) for key, query in edges[route.name]) for head in range(4)]
                    for layer in range(n_layers)
                ]
            )
            values = route.contribution if rule == "frozen" else route.estimate
            np.testing.assert_allclose(values, sums, rtol=1e-3, atol=1e-5)


def test_what_carries_nothing_for_the_target_is_cut_in_all_layers_only(tiny):
    """As the last position's own edge, which goes on where there is nothing else to hide."""
    target, produced, rows, n_layers = explained(tiny, "last -> last")
    (route,) = target.routes
    whole = change_of(tiny, produced, rows, in_layers(0, n_layers - 1, rows, rows))
    assert route.whole_change == pytest.approx(whole, rel=2e-3, abs=2e-5)


def test_without_being_asked_for_nothing_is_cut(tiny):
    target, *_ = explained(tiny, None)
    (route,) = target.routes
    assert (route.name, route.whole_change, route.layers, route.logprob_change) == (
        "question -> last",
        None,
        None,
        None,
    )
    assert target.heads is None
    assert np.abs(route.contribution).max() > 0


# --- heads ----------------------------------------------------------------------------------------------------------------------


def heads_cut(deep, seed=0):
    """(what was found, the heads of each variant that was measured, token, row)"""
    target, (token,), (row,), _ = explained(deep, "auto")
    forward = keep(deep.model, inputs_of(deep))
    wanted = [Target(row, token)]
    estimates = estimate(forward, wanted, "gradient")
    asked = []

    class Watched(Hiding):
        def cut(self, source, target, layers, heads=None):
            asked.append((list(source), list(target), layers, heads))
            return super().cut(source, target, layers, heads)

    hiding = Watched(forward, wanted, Observer())
    found = cut_heads(deep, estimates, hiding, [row], seed)
    ((source, rows, layers, variants),) = asked
    assert (source, rows) == (list(range(row)), [row])
    assert layers == (0, deep.config.num_hidden_layers - 1)
    if seed == 0:
        assert target.heads == found  # the same in a run
    return found, variants, token, row


def of_heads(deep, heads, token, row):
    """By a full forward in which the heads of several layers see nothing but the row's own position."""
    layers = {layer for layer, _ in heads}
    edges = [(at, tuple(head for layer, head in heads if layer == at), range(row), [row]) for at in layers]
    return change_of(deep, [token], [row], edges)


def test_heads_that_are_cut_read_their_own_position_alone(deep):
    found, variants, token, row = heads_cut(deep)
    n_layers, n_heads = deep.config.num_hidden_layers, deep.config.num_attention_heads
    assert len(found.heads) == 10 < n_layers * n_heads // 2
    assert list(found.heads) == variants[0]
    assert len({layer for layer, _ in found.heads}) > 1
    changes = [of_heads(deep, heads, token, row) for heads in variants]
    assert found.logprob_change == pytest.approx(changes[0], rel=2e-3, abs=2e-5)
    assert found.random_change == pytest.approx(np.mean(changes[1:]), rel=2e-3, abs=2e-5)
    assert changes[0] < np.mean(changes[1:])
    fewer = of_heads(deep, variants[0][:-1], token, row)
    assert found.logprob_change != pytest.approx(fewer, rel=2e-3, abs=2e-5)


@pytest.mark.slow
def test_heads_drawn_at_random_are_others_than_the_strongest(deep):
    found, variants, *_ = heads_cut(deep)
    assert len(variants) == 9
    for heads in variants:
        assert len(set(heads)) == len(heads) == len(found.heads)
    assert all(not {*heads} & {*found.heads} for heads in variants[1:])
    assert heads_cut(deep)[:2] == (found, variants)
    _, other, *_ = heads_cut(deep, seed=1)
    assert other[0] == variants[0]
    assert other[1:] != variants[1:]


def test_strongest_heads_are_sorted_by_what_they_carry(deep):
    found, _, token, row = heads_cut(deep)
    carried = estimate(keep(deep.model, inputs_of(deep)), [Target(row, token)], "gradient").last
    values = [float(carried[layer, head, :row].sum()) for layer, head in found.heads]
    assert all(one <= other + 1e-9 for one, other in pairwise(values))
    assert max(values) <= float(carried[..., :row].sum(-1).flatten().sort().values[len(values) - 1]) + 1e-6


def test_of_a_model_with_few_heads_half_are_cut(tiny):
    (target,) = explain.run(tiny, PROMPT, settings("auto")).targets
    assert len(target.heads.heads) == tiny.config.num_hidden_layers * tiny.config.num_attention_heads // 2 == 6
