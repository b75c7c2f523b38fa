"""The search for what decides an answer, on answers that are made up: against brute force over all sets."""

from itertools import combinations

import numpy as np
import pytest

from mask_impact.analyses import evidence
from mask_impact.analyses.evidence import Exhausted, Questions, necessary, search, sufficient


class Answer:
    """An answer that changes by a rule on the hidden units; counts what it is asked."""

    def __init__(self, rule, n=8, budget=1000.0, known=()):
        self.rule, self.n, self.asked = rule, n, []
        self.units = [(2 * at, 2 * at + 1) for at in range(n)]
        self.questions = Questions(self.ask, lambda positions: 1.0, budget)
        for one in known:
            self.questions.known[frozenset(self.units[one])] = (rule({one}), -1.0)

    def ask(self, sets):
        self.asked += sets
        found = []
        for positions in sets:
            assert all(positions.count(2 * (one // 2)) for one in positions)  # whole units
            hidden = {one // 2 for one in positions}
            found.append((self.rule(hidden), -float(len(hidden))))
        return found

    def smallest(self):
        return next(
            (size for size in range(1, self.n + 1) for one in combinations(range(self.n), size) if self.rule({*one})),
            None,
        )

    def everything(self):
        return [position for unit in self.units for position in unit]


def additive(weights, threshold):
    return lambda hidden: sum(weights[one] for one in hidden) >= threshold


RULES = {
    "one": (additive([5, 1, 1, 1, 0, 0, 0, 0], 5), [0, 1, 2, 3, 4, 5, 6, 7]),
    "two that say the same": (lambda hidden: {0, 1} <= hidden, [0, 1, 2, 3, 4, 5, 6, 7]),
    "three together": (lambda hidden: {1, 3, 4} <= hidden, [4, 1, 0, 3, 2, 5, 6, 7]),
    "many small ones": (additive([1] * 8, 6), list(range(8))),
    "either of two pairs": (lambda hidden: {0, 5} <= hidden or {2, 3} <= hidden, [0, 2, 3, 1, 5, 4, 6, 7]),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("deep", [False, True])
def test_what_is_found_decides_and_has_no_member_too_many(name, deep):
    rule, ranking = RULES[name]
    answer = Answer(rule)
    found = necessary(answer.questions, ranking, answer.units, deep)
    assert rule({*found.places})
    assert found.minimal
    assert not found.exhausted
    assert not any(rule({*found.places} - {one}) for one in found.places)
    assert len(found.places) == answer.smallest()


def test_a_beam_finds_a_pair_that_the_beginning_of_the_ranking_hides():
    def rule(hidden):  # the pair of the last ones, or any five
        return {5, 6} <= hidden or len(hidden) >= 5

    ranking = [0, 1, 2, 3, 5, 6, 4, 7]
    shallow, deep = (Answer(rule) for _ in range(2))
    assert len(necessary(shallow.questions, ranking, shallow.units, False).places) == 5
    assert set(necessary(deep.questions, ranking, deep.units, True).places) == {5, 6}


def test_a_unit_that_was_measured_and_decides_is_taken_at_once_the_smallest_first():
    answer = Answer(RULES["one"][0], known=(0, 1))
    assert necessary(answer.questions, [1, 0, 2], answer.units, False).places == (0,)
    assert not answer.asked
    nested = [(0, 1, 2, 3), (0,)]
    questions = Questions(lambda sets: [], lambda positions: 1.0, 0.0)
    questions.known = {frozenset(nested[0]): (True, -9.0), frozenset(nested[1]): (True, -5.0)}
    assert necessary(questions, [0, 1], nested, False).places == (1,)


@pytest.mark.parametrize("needed", [{3}, {0, 4}, {1, 2, 6}])
def test_what_suffices_keeps_the_answer_with_all_else_hidden(needed):
    answer = Answer(lambda hidden: bool(needed & hidden))
    ranking = [4, 3, 0, 6, 1, 2, 5, 7]
    found = sufficient(answer.questions, ranking, answer.units, answer.everything())
    assert set(found.places) == needed
    assert found.minimal


def test_random_rules_against_all_sets():
    """Monotonic ones, ranked by their weights: what is found is never too large by more than what was not tried."""
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(200):
        weights = rng.exponential(size=8)
        answer = Answer(additive(weights, rng.uniform(0.2, 0.9) * weights.sum()))
        found = necessary(answer.questions, np.argsort(-weights).tolist(), answer.units, True)
        assert answer.rule({*found.places})
        assert not any(answer.rule({*found.places} - {one}) for one in found.places)
        equal += len(found.places) == answer.smallest()
    assert equal == 200  # of additive ones the first that suffice are the fewest


@pytest.mark.parametrize("budget", range(8))
def test_the_budget_is_kept_and_what_was_found_by_then_is_given(budget):
    rule, ranking = RULES["many small ones"]
    answer = Answer(rule, budget=float(budget))
    found = necessary(answer.questions, ranking, answer.units, True)
    assert len(answer.asked) <= budget
    assert answer.questions.spent == len(answer.asked)
    assert found.exhausted
    assert found.places is None or rule({*found.places})
    assert not found.minimal


def test_nothing_is_asked_twice_and_what_can_t_be_paid_is_not_asked():
    answer = Answer(lambda hidden: False, budget=1.5)
    assert not answer.questions.changes((0, 1))
    assert not answer.questions.changes((1, 0))
    assert len(answer.asked) == 1
    with pytest.raises(Exhausted):
        answer.questions.changes((2, 3))
    assert not answer.questions.changes(())  # hiding nothing changes nothing, for nothing


def test_where_hiding_all_changes_nothing_a_part_may():
    answer = Answer(lambda hidden: hidden == {2})
    found = search("image", [0, 2, 1, 3, 4, 5, 6, 7], answer.units, answer.everything(), answer.questions, False)
    assert (found.matters, found.needed.places, found.enough.places) == (False, None, None)
    answer = Answer(lambda hidden: hidden == {2}, known=(2,))
    found = search("image", [0, 2, 1, 3, 4, 5, 6, 7], answer.units, answer.everything(), answer.questions, False)
    assert (found.matters, found.needed.places) == (False, (2,))
    poor = Answer(lambda hidden: True, budget=0.5)
    assert search("text", [0], poor.units, poor.everything(), poor.questions, False) is None


def test_a_search_that_skips_leaving_out_is_noticed(monkeypatch):
    rule, ranking = RULES["three together"]
    real = evidence._smallest

    def broken(decides, ranking, smaller):
        size = next(size for size in range(1, 9) if decides(ranking[:size]))
        return evidence.Found(tuple(ranking[:size]), True, False)

    monkeypatch.setattr(evidence, "_smallest", broken)
    answer = Answer(rule)
    found = necessary(answer.questions, ranking, answer.units, False)
    assert any(rule({*found.places} - {one}) for one in found.places)
    monkeypatch.setattr(evidence, "_smallest", real)
