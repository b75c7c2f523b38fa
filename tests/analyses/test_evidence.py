"""The search for what decides an answer, on answers that are made up: against brute force over all sets."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from mask_impact.analyses import evidence
from mask_impact.analyses.evidence import Exhausted, Found, Questions, necessary, search, sufficient

N = 8
MEMBERS = (np.arange(2**N)[:, None] >> np.arange(N) & 1).astype(bool)  # of each set of units, bool [2**N, N]
SIZES = MEMBERS.sum(axis=1)


class Answer:
    """An answer that changes by a rule on the hidden units; counts what it is asked, and what that costs.

    change: of its log-probability, from the hidden units; known: units that were measured before.
    """

    def __init__(self, rule, n=N, budget=1000.0, known=(), change=lambda hidden: -float(len(hidden)), cost=None):
        self.rule, self.n, self.change, self.asked = rule, n, change, []
        self.units = [(2 * at, 2 * at + 1) for at in range(n)]
        self.cost = cost or (lambda positions: 1.0)
        self.questions = Questions(self.ask, self.cost, budget)
        for one in known:
            self.questions.known[frozenset(self.units[one])] = (rule({one}), change({one}))

    def ask(self, sets):
        self.asked += sets
        found = []
        for positions in sets:
            assert all(positions.count(2 * (one // 2)) for one in positions)  # whole units
            hidden = {one // 2 for one in positions}
            found.append((self.rule(hidden), self.change(hidden)))
        return found

    @property
    def paid(self):
        """What the questions cost, counted here."""
        return sum(self.cost(positions) for positions in self.asked)

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


def test_a_beam_finds_a_set_of_three_and_no_larger_one_than_there_was():
    def rule(hidden):
        return {4, 5, 6} <= hidden or {0, 1, 2, 3} <= hidden

    def change(hidden):  # each of the three speaks for the answer, so that the pairs of them are kept
        return -float(len(hidden & {4, 5, 6})) - 0.1 * len(hidden)

    answer = Answer(rule, change=change)
    assert set(necessary(answer.questions, list(range(N)), answer.units, True).places) == {4, 5, 6}
    shallow, alone = (Answer(lambda hidden: {0, 1, 2, 3} <= hidden) for _ in range(2))
    for one, deep in ((shallow, False), (alone, True)):
        assert set(necessary(one.questions, list(range(N)), one.units, deep).places) == {0, 1, 2, 3}
    beam = {*alone.asked} - {*shallow.asked}
    assert {len(positions) // 2 for positions in beam} == {2, 3}  # it looks for smaller ones alone


def test_of_a_pair_there_is_nothing_smaller_to_look_for():
    shallow, deep = (Answer(RULES["two that say the same"][0]) for _ in range(2))
    for one, looks in ((shallow, False), (deep, True)):
        necessary(one.questions, list(range(N)), one.units, looks)
    assert deep.asked == shallow.asked


def test_what_was_tried_to_the_end_stays_minimal_where_a_beam_can_t_be_paid():
    rule, ranking = RULES["three together"]
    shallow = Answer(rule)
    best = necessary(shallow.questions, ranking, shallow.units, False)
    poor = Answer(rule, budget=shallow.paid + 5)
    assert necessary(poor.questions, ranking, poor.units, True) == Found(best.places, True, True)
    assert poor.paid == shallow.paid  # a beam asks about all pairs together


def test_what_a_beam_finds_has_no_member_too_many_either():
    """The one that decides alone was not measured, and stands behind a beginning that decides: pairs with it come first."""
    answer = Answer(lambda hidden: {0, 1, 2} <= hidden or 5 in hidden)
    found = necessary(answer.questions, list(range(N)), answer.units, True)
    assert (found.places, found.minimal, found.exhausted) == ((5,), True, False)


def test_a_beam_s_set_that_could_not_be_tried_to_the_end_is_not_called_minimal():
    def of(budget):
        answer = Answer(lambda hidden: {0, 1, 2} <= hidden or 5 in hidden, budget=budget)
        return necessary(answer.questions, list(range(N)), answer.units, True), answer

    whole, answer = of(1000.0)
    assert whole.places == (5,)
    found, short = of(answer.paid - 1)  # the last question can't be paid
    assert short.paid <= answer.paid - 1
    assert (found.minimal, found.exhausted) == (False, True)
    assert answer.rule({*found.places})


def test_a_unit_that_was_measured_and_decides_is_taken_at_once_the_smallest_first():
    answer = Answer(RULES["one"][0], known=(0, 1))
    assert necessary(answer.questions, [1, 0, 2], answer.units, False) == Found((0,), True, False)
    assert not answer.asked
    nested = [(0, 1, 2, 3), (0,)]
    questions = Questions(lambda sets: [], lambda positions: 1.0, 0.0)
    questions.known = {frozenset(nested[0]): (True, -9.0), frozenset(nested[1]): (True, -5.0)}
    assert necessary(questions, [0, 1], nested, False).places == (1,)
    questions.known[frozenset((4,))] = (True, -7.0)  # as small, and stronger
    assert necessary(questions, [0, 1, 2], [*nested, (4,)], False).places == (2,)


@pytest.mark.parametrize("needed", [{3}, {0, 4}, {1, 2, 6}])
def test_what_suffices_keeps_the_answer_with_all_else_hidden(needed):
    answer = Answer(lambda hidden: bool(needed & hidden))
    ranking = [4, 3, 0, 6, 1, 2, 5, 7]
    found = sufficient(answer.questions, ranking, answer.units, answer.everything())
    assert set(found.places) == needed
    assert found.minimal


# --- random rules, against all sets -----------------------------------------------------------------------------------------


def scores_of(kind, rng):
    """float [2**N], of each set: the answer changes where it is above 0."""
    weights = rng.exponential(size=N)
    if kind == "additive":
        return MEMBERS @ weights - rng.uniform(0.2, 0.9) * weights.sum()
    if kind == "non-monotonic":  # two may help or undo each other
        pairs = np.triu(rng.normal(size=(N, N)), 1)
        of_pairs = np.einsum("sa,ab,sb->s", MEMBERS, pairs, MEMBERS)
        return MEMBERS @ weights + of_pairs - rng.uniform(0.3, 0.8) * weights.sum()
    number, size = {"two redundant": (1, 2), "three together": (1, 3), "one of several sets": (3, None)}[kind]
    sets = [rng.permutation(N)[: size or rng.integers(2, 5)] for _ in range(number)]
    return np.max([MEMBERS[:, one].mean(axis=1) for one in sets], axis=0) - 1 + 1e-9


KINDS = ("additive", "two redundant", "three together", "one of several sets", "non-monotonic")
MONOTONIC = KINDS[:-1]


def ranked(scores, rng, noise):
    """Units by what leaving them out does on average; noise: of it, in standard deviations."""
    places = np.arange(2**N)
    means = [(scores[places[~MEMBERS[:, one]] | 1 << one] - scores[~MEMBERS[:, one]]).mean() for one in range(N)]
    return np.argsort(-(np.array(means) + noise * np.std(means) * rng.normal(size=N)), kind="stable").tolist()


def number_of(hidden):
    return sum(1 << one for one in hidden)


def answer_of(scores, **how):
    """The answer that changes as the scores say, the more so the higher they are."""
    return Answer(
        lambda hidden: bool(scores[number_of(hidden)] > 0),
        change=lambda hidden: -float(scores[number_of(hidden)]),
        **how,
    )


def smallest_of(decides):
    """The true size; None where no set decides. decides: bool [2**N]"""
    return min((int(size) for size in SIZES[decides] if size), default=None)


def wrong(found, decides, monotonic):
    """What is wrong with a set that was found, by the table of all sets; monotonic: minimal means no member too many."""
    if found.places is None:
        missed = monotonic and not found.exhausted and smallest_of(decides) is not None
        return ["there is one"] if missed else []
    said = [] if decides[number_of(found.places)] else ["does not decide"]
    left = [number_of({*found.places} - {one}) for one in found.places]
    if found.minimal and monotonic and len(left) > 1 and decides[left].any():
        said.append("has one too many")
    return said


def trials(kind, n, noise, seed=0):
    """(scores, ranking) of n random rules; the same for everyone who asks."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    for _ in range(n):
        scores = scores_of(kind, rng)
        yield scores, ranked(scores, rng, noise)


def tried(kind, n, noise=1.0):
    """[(what is wrong, whether as small as can be)] of necessary, of it with a beam, and of sufficient, over n rules."""
    found = {"necessary": [], "beam": [], "sufficient": []}
    for scores, ranking in trials(kind, n, noise):
        removes, keeps = scores > 0, ~(scores > 0)[::-1]  # the complement of the first of all sets is the last
        for name, decides in (("necessary", removes), ("beam", removes), ("sufficient", keeps)):
            answer = answer_of(scores)
            one = (
                evidence.sufficient(answer.questions, ranking, answer.units, answer.everything())
                if name == "sufficient"
                else evidence.necessary(answer.questions, ranking, answer.units, name == "beam")
            )
            size = None if one.places is None else len(one.places)
            found[name].append((wrong(one, decides, kind in MONOTONIC), size == smallest_of(decides)))
    return found


# How many of 100 are as small as can be, with a ranking whose noise is as large as what it ranks: these, or more.
AS_SMALL = {
    "additive": (85, 97, 94),
    "two redundant": (100, 100, 100),
    "three together": (100, 100, 100),
    "one of several sets": (88, 98, 97),
    "non-monotonic": (69, 90, 88),
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_rules_against_all_sets(kind):
    found = tried(kind, 100)
    for name, least in zip(found, AS_SMALL[kind], strict=True):
        assert [said for said, _ in found[name] if said] == [], name
        assert sum(small for _, small in found[name]) >= least, name
    assert sum(small for _, small in found["beam"]) >= sum(small for _, small in found["necessary"])


def test_of_additive_rules_in_their_true_order_the_first_that_suffice_are_the_fewest():
    assert all(small for found in tried("additive", 100, noise=0.0).values() for _, small in found)


def test_the_complement_of_a_set_is_at_the_other_end_of_the_table():
    for number in (0, 1, 37, 255):
        assert (MEMBERS[::-1][number] == ~MEMBERS[number]).all()


def kept_all(decides, places, place):
    return places


def left_out_unasked(decides, places, place):
    return [other for other in places if other != place]


def first_half(decides, ranking, smaller):
    return Found(tuple(ranking[: len(ranking) // 2]), True, False)


def hides_what_suffices(questions, ranking, units, everything):
    return necessary(questions, ranking, units, False)


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("_without", kept_all, "has one too many"),
        ("_without", left_out_unasked, "does not decide"),
        ("_smallest", first_half, "does not decide"),
        ("sufficient", hides_what_suffices, "does not decide"),
    ],
)
def test_a_broken_search_is_told_from_the_real_one(monkeypatch, name, broken, said):
    monkeypatch.setattr(evidence, name, broken)
    seen = [one for found in tried("one of several sets", 30).values() for faults, _ in found for one in faults]
    assert said in seen


# --- the budget ---------------------------------------------------------------------------------------------------------------


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


def near_the_end_is_cheap(positions):
    return 1 - positions[0] / (2 * N)


def searched_within(scores, ranking, budget, deep):
    answer = answer_of(scores, budget=budget, cost=near_the_end_is_cheap)
    found = search("image", ranking, answer.units, answer.everything(), answer.questions, deep)
    return answer, found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deep", [False, True])
def test_whatever_the_budget_it_is_never_exceeded_and_more_of_it_finds_nothing_larger(kind, deep):
    for scores, ranking in trials(kind, 8, noise=1.0, seed=1):
        decides = scores > 0
        sizes = []
        for budget in (0.0, 0.9, 1.0, 2.5, 4.0, 6.0, 9.0, 14.0, 40.0, 1000.0):
            answer, found = searched_within(scores, ranking, budget, deep)
            assert answer.paid <= budget + 1e-9
            if found is None:
                assert budget < near_the_end_is_cheap((0,))
                assert not answer.asked
                continue
            assert found.spent == pytest.approx(answer.paid)
            assert found.matters == decides[-1]
            assert not wrong(found.needed, decides, kind in MONOTONIC)
            assert not wrong(found.enough, ~decides[::-1], kind in MONOTONIC)
            assert found.needed.minimal <= (found.needed.places is not None or not found.needed.exhausted)
            sizes.append(N + 1 if found.needed.places is None else len(found.needed.places))
        assert all(one >= other for one, other in pairwise(sizes))
        assert not any(one.exhausted for one in (found.needed, found.enough))


def test_spending_that_is_not_counted_would_be_seen(monkeypatch):
    real = Questions.of_all

    def careless(self, sets):
        before = self.spent
        try:
            return real(self, sets)
        finally:
            self.spent = before

    monkeypatch.setattr(Questions, "of_all", careless)
    scores, ranking = next(trials("additive", 1, 1.0))
    answer, _ = searched_within(scores, ranking, 2.5, False)
    assert answer.paid > 2.5


def test_nothing_is_asked_twice_and_what_can_t_be_paid_is_not_asked():
    answer = Answer(lambda hidden: False, budget=1.5)
    assert not answer.questions.changes((0, 1))
    assert not answer.questions.changes((1, 0))
    assert len(answer.asked) == 1
    with pytest.raises(Exhausted):
        answer.questions.changes((2, 3))
    assert not answer.questions.changes(())  # hiding nothing changes nothing, for nothing
    assert len(answer.asked) == 1
    assert answer.questions.of_all([frozenset((0, 1)), frozenset((0, 1))]) == [(False, -1.0)] * 2  # known: for nothing


def test_sets_are_asked_about_together_or_not_at_all():
    answer = Answer(lambda hidden: True, budget=2.0)
    sets = [frozenset(unit) for unit in answer.units[:3]]
    with pytest.raises(Exhausted):
        answer.questions.of_all(sets)
    assert (answer.asked, answer.questions.spent) == ([], 0.0)
    assert answer.questions.of_all([*sets[:2], sets[0]]) == [(True, -1.0)] * 3
    assert (len(answer.asked), answer.questions.spent) == (2, 2.0)


# --- both sets of a kind ------------------------------------------------------------------------------------------------------


def test_where_nothing_matters_there_is_no_set():
    answer = Answer(lambda hidden: False)
    found = search("text", list(range(N)), answer.units, answer.everything(), answer.questions, True)
    assert (found.kind, found.matters, found.whole) == ("text", False, tuple(range(2 * N)))
    for one in (found.needed, found.enough):
        assert (one.places, one.minimal, one.exhausted) == (None, True, False)


def test_where_everything_matters_one_is_necessary_and_all_suffice():
    answer = Answer(lambda hidden: bool(hidden))
    found = search("text", [3, *range(3), *range(4, N)], answer.units, answer.everything(), answer.questions, True)
    assert (found.matters, found.needed.places) == (True, (3,))
    assert sorted(found.enough.places) == list(range(N))
    assert found.enough.minimal


def test_two_that_say_the_same_are_necessary_together_and_one_suffices():
    answer = Answer(lambda hidden: {1, 4} <= hidden)
    found = search("image", [4, 0, 1, 2, 3, 5, 6, 7], answer.units, answer.everything(), answer.questions, False)
    assert (set(found.needed.places), found.enough.places) == ({1, 4}, (4,))


def test_each_search_says_what_it_took_itself():
    answer = Answer(lambda hidden: {1, 4} <= hidden)
    ranking = [4, 0, 1, 2, 3, 5, 6, 7]
    first = search("image", ranking, answer.units, answer.everything(), answer.questions, False)
    assert first.spent == answer.paid > 0
    second = search("text", [6, 7], answer.units, (15, 12, 14, 13), answer.questions, False)
    assert second.spent == answer.paid - first.spent > 0
    assert second.whole == (12, 13, 14, 15)
    again = search("image", ranking, answer.units, answer.everything(), answer.questions, False)
    assert (again.spent, again.needed, again.enough) == (0, first.needed, first.enough)


def test_units_that_leave_something_of_their_kind_over_are_held_against_all_of_it():
    """As regions, which do not cover the whole image: what is in none of them is hidden, too, where a set is to suffice."""
    answer = Answer(lambda hidden: {0, 1} & hidden)
    found = search("image", [0, 2], answer.units, answer.everything(), answer.questions, False)
    assert found.needed.places == (0,)
    assert (found.enough.places, found.enough.exhausted) == (None, False)


def test_where_hiding_all_changes_nothing_a_part_may():
    answer = Answer(lambda hidden: hidden == {2})
    found = search("image", [0, 2, 1, 3, 4, 5, 6, 7], answer.units, answer.everything(), answer.questions, False)
    assert (found.matters, found.needed.places, found.enough.places) == (False, None, None)
    answer = Answer(lambda hidden: hidden == {2}, known=(2,))
    found = search("image", [0, 2, 1, 3, 4, 5, 6, 7], answer.units, answer.everything(), answer.questions, False)
    assert (found.matters, found.needed.places) == (False, (2,))
    poor = Answer(lambda hidden: True, budget=0.5)
    assert search("text", [0], poor.units, poor.everything(), poor.questions, False) is None


def test_what_changes_the_answer_by_itself_is_named_the_strongest_first():
    """As far as it was measured; of units within each other the smallest."""
    answer = Answer(
        additive([3, 3, 1, 3, 0, 0, 0, 0], 3),
        known=(0, 1, 2),
        change=lambda hidden: -float(sum(10 + at for at in hidden)),
    )
    units = [*answer.units, (0, 1, 2, 3)]
    answer.questions.known[frozenset(units[8])] = (True, -50.0)
    found = search("text", [8, *range(8)], units, answer.everything(), answer.questions, deep=False)
    assert found.each == (1, 0)
    assert found.needed == Found((1,), True, False)
    nothing = Answer(lambda hidden: len(hidden) > 4, known=(0, 1))
    assert search("text", range(8), nothing.units, nothing.everything(), nothing.questions, deep=False).each == ()
