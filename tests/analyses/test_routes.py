"""Flows by which an answer came: where they are cut, and what cutting them does, against full forwards with the edges masked."""

from itertools import pairwise

import effect_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from tiny_models import tiny_model

from mask_impact.analyses import explain
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.routes import MOST_OF_IT, carrying, placed_flows
from mask_impact.analyses.settings import RunSettings
from mask_impact.errors import InputError, UsageError
from mask_impact.models import loading

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tiny():
    tokenizer = make_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=64)
    return loading.wrap(model, tokenizer, name="tiny")


def settings(routes, **others):
    return RunSettings(raw=True, num_tokens=1, budget=100, groups="tokens", routes=routes, **others)


def placed(tiny, routes):
    return placed_flows(tiny, prepare(tiny, PROMPT, settings(routes)))


def test_flows_are_those_asked_for_or_the_usual_ones_that_there_are(tiny, tmp_path):
    assert [one.flow.name for one in placed(tiny, None)] == ["question -> last"]
    found = placed(tiny, "cat -> mat; tokens 0-1 -> last")
    assert [one.flow.name for one in found] == ["cat -> mat", "tokens 0-1 -> last"]
    assert found[1].source == (0, 1)
    assert found[1].target is None
    (tmp_path / "f.yaml").write_text("flows:\n  - {source: cat, target: last}\n")
    assert [one.flow.source for one in placed(tiny, str(tmp_path / "f.yaml"))] == ["cat"]
    for wrong, said in (("cat", "a flow is 'source -> target'"), ("nowhere.yaml", "is not there")):
        with pytest.raises(UsageError, match=said):
            placed(tiny, wrong)
    with pytest.raises(InputError, match="this text is not in the prompt"):
        placed(tiny, "dog -> last")
    with pytest.raises(InputError, match="runs backwards"):
        placed(tiny, "mat -> cat")


def test_the_layers_that_carry_are_the_fewest_in_a_row_with_most_of_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        estimate = rng.normal(size=9)
        carried = np.maximum(-estimate, 0)
        first, last = carrying(estimate)
        assert carried[first : last + 1].sum() >= MOST_OF_IT * carried.sum() - 1e-9
        shorter = last - first
        for begin in range(9 - shorter + 1):
            assert carried[begin : begin + shorter].sum() < MOST_OF_IT * carried.sum()
    assert carrying(np.array([0.0, -2.0, 0.0])) == (1, 1)
    assert carrying(np.array([0.5, 1.0])) is None


def logprob(tiny, token, **edges):
    inputs = {k: v for k, v in tiny.tokenizer(PROMPT, return_tensors="pt").items() if k != "token_type_ids"}
    return float(torch.log_softmax(effect_oracle.masked_logits(tiny.model, inputs, [], **edges), -1)[token])


def test_what_cutting_does_is_what_full_forwards_with_these_edges_masked_give(tiny):
    found = explain.run(tiny, PROMPT, settings("cat -> last; the #1 -> sat"))
    (target,) = found.targets
    n, token = found.n_prompt, target.token_ids[0]
    own = logprob(tiny, token, layers=(), keys=(), queries=())
    ends = {"cat -> last": ("cat", [n - 1]), "the #1 -> sat": ("the #1", None)}
    names = [text.strip() for text in found.tokens.texts[:n]]
    for route in target.routes:
        if route.layers is None:
            continue
        source = [names.index("cat")] if route.name == "cat -> last" else [0]
        queries = ends[route.name][1] or [names.index("sat")]
        first, last = route.layers
        cut = logprob(tiny, token, layers=range(first, last + 1), keys=source, queries=queries)
        assert route.logprob_change == pytest.approx(cut - own, rel=2e-3, abs=2e-5)
        whole = logprob(tiny, token, layers=range(tiny.config.num_hidden_layers), keys=source, queries=queries)
        assert route.whole_change == pytest.approx(whole - own, rel=2e-3, abs=2e-5)
    assert any(route.layers for route in target.routes)
    assert target.routes[0].estimate.shape == (tiny.config.num_hidden_layers, tiny.config.num_attention_heads)


def test_heads_that_are_cut_read_their_own_position_alone(tiny):
    (target,) = explain.run(tiny, PROMPT, settings("auto")).targets
    n = len(tiny.tokenizer(PROMPT)["input_ids"])
    layers, heads = tiny.config.num_hidden_layers, tiny.config.num_attention_heads
    assert len(target.heads.heads) == min(10, layers * heads // 2)
    assert len(set(target.heads.heads)) == len(target.heads.heads)
    # The oracle cuts heads of one layer at a time: so compare a run in which one layer alone has heads cut.
    from mask_impact.analyses.hiding import Hiding
    from mask_impact.analyses.observer import Observer
    from mask_impact.engine.targets import Target

    inputs = {k: v for k, v in tiny.tokenizer(PROMPT, return_tensors="pt").items() if k != "token_type_ids"}
    token = target.token_ids[0]
    own = logprob(tiny, token, layers=(), keys=(), queries=())
    with Hiding(tiny, inputs, [Target(n - 1, token)], Observer()) as hiding:
        found = hiding.cut(range(n - 1), [n - 1], (0, layers - 1), [[(1, 0), (1, 3)], [(0, 2)], []])
    for place, (layer, some) in enumerate([(1, (0, 3)), (0, (2,))]):
        cut = logprob(tiny, token, layers=[layer], heads=some, keys=range(n - 1), queries=[n - 1])
        assert found.logprob_change[place] == pytest.approx(cut - own, rel=2e-3, abs=2e-5)
    assert found.logprob_change[2] == 0


def test_strongest_heads_are_sorted_by_what_they_carry(tiny):
    from mask_impact.engine.backward import estimate, keep_forward
    from mask_impact.engine.targets import Target

    (target,) = explain.run(tiny, PROMPT, settings("auto")).targets
    inputs = {k: v for k, v in tiny.tokenizer(PROMPT, return_tensors="pt").items() if k != "token_type_ids"}
    n = inputs["input_ids"].shape[1]
    carried = estimate(keep_forward(tiny.model, inputs), [Target(n - 1, target.token_ids[0])], "gradient").last
    values = [float(carried[layer, head, : n - 1].sum()) for layer, head in target.heads.heads]
    assert all(one <= other + 1e-9 for one, other in pairwise(values))
    assert max(values) <= float(carried[..., : n - 1].sum(-1).flatten().sort().values[len(values) - 1]) + 1e-6
