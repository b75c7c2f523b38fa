"""What is said over many prompts whose truth is planted: means, groups, two studies, heads, odd prompts, correct answers."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from mask_impact.errors import UsageError
from mask_impact.findings.correctness import expected_column, is_correct
from mask_impact.findings.over_prompts import EVERY, Question, over_prompts
from mask_impact.findings.prompt_numbers import (
    CORRECT,
    DEPTH,
    EFFECT,
    HEADS,
    IMAGE_SHARE,
    IMPACT,
    LARGEST,
    Kind,
    PromptNumbers,
)

SHARE = Kind(IMAGE_SHARE, IMPACT, 4)
TOP = Kind(LARGEST, EFFECT, 4, "window 1, last query")


def prompt(name, share, labels=None, answer="yes", largest=1.0, heads=None, kind=SHARE):
    numbers = {TOP: largest, kind._replace(quantity=DEPTH): float(np.mean(share))}
    return PromptNumbers(
        name, answer, labels or {}, kind.n_layers, {kind: np.asarray(share, dtype=float)}, numbers,
        {} if heads is None else {Kind(HEADS, IMPACT, kind.n_layers): np.asarray(heads, dtype=np.float32)},
    )  # fmt: skip


def two_groups(n=12, planted=0.3, seed=0, **shift):
    """Prompts of categories a and b in turn; in layer 2 the image has `planted` more in b."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        share = 0.3 + 0.02 * rng.normal(size=4)
        share[2] += planted * (number % 2)
        found.append(prompt(f"p{number}", share, {"category": "ab"[number % 2]}, **shift))
    return found


def of(found, what, kind, name=EVERY, study=0):
    (one,) = [one for one in getattr(found, what) if (one.kind, one.group.name, one.group.study) == (kind, name, study)]
    return one


# --- means and groups -------------------------------------------------------------------------------------------------------


def test_a_planted_difference_of_two_groups_is_found_in_its_layer_alone():
    prompts = two_groups(24)
    found = over_prompts({"study": prompts}, Question(by=("category",)))
    assert [(group.name, len(group.prompts)) for group in found.groups] == [
        (EVERY, 24), ("category=a", 12), ("category=b", 12),
    ]  # fmt: skip
    values = np.stack([one.curves[SHARE] for one in prompts])
    np.testing.assert_allclose(of(found, "curves", SHARE).means.mean, values.mean(axis=0))
    np.testing.assert_allclose(of(found, "curves", SHARE, "category=b").means.mean, values[1::2].mean(axis=0))
    (tested,) = [one for one in found.against if one.kind == SHARE]
    assert (tested.first.name, tested.second.name, tested.paired) == ("category=a", "category=b", False)
    assert (tested.p_holm <= 0.05).tolist() == [False, False, True, False]
    assert tested.low[2] < -0.3 < tested.high[2]
    assert (tested.p_holm >= tested.p).all()
    assert tested.n.tolist() == [[12] * 4, [12] * 4]


def test_without_a_difference_none_is_said():
    found = over_prompts({"study": two_groups(24, planted=0.0)}, Question(by=("category",)))
    (tested,) = [one for one in found.against if one.kind == SHARE]
    assert (tested.p_holm > 0.05).all()


def test_two_studies_are_paired_by_the_prompts_names_in_any_order():
    """Prompts differ far more from each other than the studies do: only pairs show it."""
    rng = np.random.default_rng(1)
    base = rng.random((10, 4))
    first = [prompt(f"p{n}", row) for n, row in enumerate(base)]
    second = [prompt(f"p{n}", row + 0.02 + 0.002 * rng.normal(size=4)) for n, row in enumerate(base)]
    found = over_prompts({"A": first, "B": second[::-1]}, Question())
    (tested,) = [one for one in found.against if one.kind == SHARE]
    assert tested.paired
    assert (tested.p_holm <= 0.05).all()
    np.testing.assert_allclose(tested.difference, -0.02, atol=0.002)
    renamed = [prompt(f"q{n}", one.curves[SHARE]) for n, one in enumerate(second)]
    (tested,) = [one for one in over_prompts({"A": first, "B": renamed}, Question()).against if one.kind == SHARE]
    assert not tested.paired
    assert (tested.p_holm > 0.05).all()


def by_all_signs(first, second):
    """Of [n, C] each: p of all ways to exchange the values of prompts, by scipy, and corrected by closed testing, which is what
    Holm's steps stand for."""
    p = stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    ).pvalue
    sets = [chosen for size in range(1, len(p) + 1) for chosen in combinations(range(len(p)), size)]
    corrected = [max(min(1.0, len(one) * p[list(one)].min()) for one in sets if at in one) for at in range(len(p))]
    return p, np.array(corrected)


def test_paired_studies_have_scipy_s_p_and_holm_s_over_each_curve_and_over_all_single_numbers():
    rng = np.random.default_rng(8)
    curves = [rng.random((9, 4)), rng.random((9, 4))]
    curves[1] += [0.5, 0.3, 0.2, 0.0]
    largest = [rng.random(9), rng.random(9) + 0.4]
    studies = {
        name: [prompt(f"p{n}", row, largest=value) for n, (row, value) in enumerate(zip(*of_study, strict=True))]
        for name, *of_study in zip("AB", curves, largest, strict=True)
    }
    against = over_prompts(studies, Question()).against
    (curve,) = [one for one in against if one.kind == SHARE]
    p, corrected = by_all_signs(*curves)
    np.testing.assert_allclose(curve.p, p, rtol=1e-12)
    np.testing.assert_allclose(curve.p_holm, corrected, rtol=1e-12)
    assert not np.allclose(corrected, np.minimum(1, 4 * p))  # Bonferroni's would be found
    single = [one for one in against if len(one.p) == 1]
    values = {DEPTH: [one.mean(axis=1) for one in curves], LARGEST: largest}
    p, corrected = by_all_signs(
        *(np.stack([values[one.kind.quantity][study] for one in single], 1) for study in (0, 1))
    )
    np.testing.assert_allclose([one.p[0] for one in single], p, rtol=1e-12)
    np.testing.assert_allclose([one.p_holm[0] for one in single], corrected, rtol=1e-12)
    assert len(single) == 2
    assert all(one.paired for one in against)


def test_prompts_of_one_study_only_take_no_part_in_pairs():
    first, second = two_groups(9), two_groups(7, seed=2)
    (tested,) = [one for one in over_prompts({"A": first, "B": second}, Question()).against if one.kind == SHARE]
    assert (tested.paired, tested.n.tolist()) == (True, [[7] * 4] * 2)


@pytest.mark.parametrize("other", [SHARE._replace(n_layers=6), SHARE._replace(how="window 3, last query")])
def test_what_differs_in_layers_or_window_is_never_averaged(other):
    prompts = two_groups(8) + [prompt(f"o{n}", np.full(other.n_layers, 0.9), kind=other) for n in range(6)]
    found = over_prompts({"study": prompts}, Question())
    assert of(found, "curves", SHARE).means.n.tolist() == [8] * 4
    assert of(found, "curves", other).means.n.tolist() == [6] * other.n_layers
    np.testing.assert_allclose(of(found, "curves", other).means.mean, 0.9)
    apart = over_prompts({"A": prompts[:8], "B": prompts[8:]}, Question())
    assert [one for one in apart.against if one.kind.quantity == IMAGE_SHARE] == []
    assert any(note.startswith("Of image share not everything is compared") for note in apart.notes)


def test_groups_are_of_all_columns_together_and_more_than_two_are_not_tested():
    prompts = [prompt(f"p{n}", np.ones(4), {"a": n % 2, "b": "xy"[n // 6]}) for n in range(12)]
    found = over_prompts({"study": prompts}, Question(by=("a", "b")))
    names = [group.name for group in found.groups]
    assert names == [EVERY, "a=0, b=x", "a=0, b=y", "a=1, b=x", "a=1, b=y"]
    assert found.against == ()
    assert found.notes == ("4 groups are not tested against each other; two are, of one column with two values",)


def test_a_prompt_without_a_label_is_in_no_group_and_counted():
    prompts = [*two_groups(6), prompt("none", np.ones(4))]
    found = over_prompts({"study": prompts}, Question(by=("category",)))
    assert sum(len(group.prompts) for group in found.groups[1:]) == 6
    assert found.notes == ("1 of 7 prompts of study lack a label, and are in no group",)


def test_a_column_that_is_not_there_is_told_what_there_is():
    with pytest.raises(UsageError, match=r"no column 'categry'; it has category; did you mean category\?"):
        over_prompts({"study": two_groups(4)}, Question(by=("categry",)))
    with pytest.raises(UsageError, match="no column 'right'"):
        over_prompts({"study": two_groups(4)}, Question(expected="right"))
    with pytest.raises(UsageError, match="no column 'correct'"):
        over_prompts({"study": two_groups(4)}, Question(by=("correct",)))


# --- heads and single prompts -----------------------------------------------------------------------------------------------


def test_the_share_of_prompts_in_which_a_head_is_among_the_strongest_is_counted():
    """2 layers of 6 heads: layer 1 head 3 is strong in every prompt, layer 0 head 0 in four of ten, others at random."""
    rng = np.random.default_rng(3)
    prompts = []
    for number in range(10):
        heads = 0.1 * rng.random((2, 6))
        heads[1, 3] = 0.9
        heads[0, 0] = 0.8 if number < 4 else 0.0
        prompts.append(prompt(f"p{number}", np.ones(2), heads=heads, kind=Kind(IMAGE_SHARE, IMPACT, 2)))
    (found,) = over_prompts({"study": prompts}, Question()).heads
    assert (found.in_top[1, 3], found.in_top[0, 0], found.n) == (10, 4, 10)
    assert found.in_top.sum() == 5 * 10
    assert found.low[0, 0] < 0.4 < found.high[0, 0]
    assert found.means.mean.reshape(2, 6)[1, 3] == pytest.approx(0.9)


def test_the_strongest_and_the_strangest_prompts_are_named():
    rng = np.random.default_rng(4)
    prompts = [prompt(f"p{n}", 0.5 + 0.01 * rng.normal(size=4), largest=1 + 0.1 * rng.random()) for n in range(20)]
    prompts[7] = prompt("odd", np.full(4, 0.9), largest=1.05)
    prompts[3] = prompt("strong", np.full(4, 0.5), largest=8.0)
    found = over_prompts({"study": prompts}, Question())
    assert (found.strongest[0][0].name, found.strongest[0][1]) == ("strong", 8.0)
    named = {odd.prompt.name: odd for odd in found.strangest}
    assert {*named} == {"odd", "strong"}
    assert (named["odd"].kind.quantity, named["odd"].value) == (DEPTH, pytest.approx(0.9))
    assert named["strong"].kind.quantity == LARGEST


# --- correct answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected", "match", "right"),
    [
        (" Paris.", "paris", "exact", True),
        ("It is Paris", "Paris", "exact", False),
        ("It is Paris.", "Paris", "contains", True),
        ("Parisian", "Paris", "contains", False),
        ("Rome", ["Paris", "Rome"], "exact", True),
        ("Rome", '["Paris", "Rome"]', "one-of", True),
        ("Oslo", ["Paris", "Rome"], "one-of", False),
        ("4", 4, "exact", True),
        ("4", 4.0, "exact", True),
        ("<think>5?</think> 4", "4", "exact", True),
        ("4", None, "exact", None),
        ("4", float("nan"), "exact", None),
        ("4", "", "contains", None),
    ],
)
def test_an_answer_is_held_against_what_was_expected(answer, expected, match, right):
    assert is_correct(answer, expected, match) is right


def test_the_share_of_correct_answers_is_of_those_that_have_an_expected_one():
    rows = [("yes", "yes")] * 6 + [("no", "yes")] * 3 + [("no", None)]
    prompts = [prompt(f"p{n}", np.ones(4), {"expected": e, "id": n}, a) for n, (a, e) in enumerate(rows)]
    found = over_prompts({"study": prompts}, Question(by=("correct",)))
    one = of(found, "numbers", Kind(CORRECT, "share of the answers", 0))
    assert (one.means.n[0], one.means.mean[0]) == (9, pytest.approx(6 / 9))
    assert one.means.low[0] < 6 / 9 < one.means.high[0]
    assert [(group.name, len(group.prompts)) for group in found.groups[1:]] == [("correct=no", 3), ("correct=yes", 6)]
    assert found.expected == "expected"
    tested = {against.kind.quantity for against in found.against}
    assert tested
    assert CORRECT not in tested  # the groups are made by it
    assert expected_column(["id", "answers", "expected_answer"]) == "expected_answer"
