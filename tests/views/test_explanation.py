"""The first lines of a run: what the answer used, its evidence, and texts that act on nothing."""

import re
from dataclasses import replace

import numpy as np
import pytest
from samples import NASTY_TEXTS
from synthetic import make_explanation as made
from synthetic import make_result

from mask_impact.results.explanations import Evidence, HeadCut, TokenSet
from mask_impact.views.explanation import render_explanation
from mask_impact.views.summary import render_summary
from mask_impact.views.summary_json import explanation_entry, result_entry, to_text
from mask_impact.views.text import columns


def page_of(*args, **changes):
    return render_explanation(made(**changes), *args)


def test_the_page_names_the_strongest_first_with_what_becomes_of_the_answer():
    page = page_of(["output/run.answer.csv"])
    lines = page.splitlines()
    rows = [line for line in lines if re.match(r" +[0-9]+  \S", line)]
    assert rows[0].split() == ["2", "image", "0", "[0,", "0]", "-2.5", "->", '"', '<b>"', "box", "0,0,32,32"]
    assert rows[1].split() == ["0", '"the"', "-0.4"]
    assert rows[2].split() == ["1", '"', 'cat"', "~0.25"]
    assert "2 of 3 were really hidden (1.5 forward passes), the others estimated; ~ is an estimate." in " ".join(
        page.split()
    )
    assert lines[-1] == "Results saved to: output/run.answer.csv"


def test_a_budget_that_measures_all_is_named_where_the_estimates_do_not_hold():
    page = page_of()
    assert "NOT RELIABLE here" in page
    # Hiding all takes 1 + 2/3 + 1/3 forward passes, which are to be seven tenths of the budget.
    assert "--budget 3 measures all." in " ".join(page.split())
    for reliable in (True, None):
        assert "NOT RELIABLE" not in page_of(reliable=reliable)
    assert "all but the template's" in page_of(reliable=None)
    assert "All 3 were really hidden" in render_explanation(made(measured=(True, True, True), reliable=None))


def test_the_question_comes_before_the_answer():
    found = replace(made(), meta={"prompt": "What is\x1b this?"})
    lines = render_explanation(found).splitlines()
    assert lines[0] == 'Question:  "What is\\x1b this?" (1 image)'
    assert lines[1] == 'Answer:    " mat" (75.0 %)'


def evidence_of(**changes):
    whole = made().targets[0].evidence[0]
    page = page_of(evidence=(replace(whole, **changes),))
    return " ".join(page[page.index("Evidence") :].split())


TILES = [f"tile {row * 3 + column} (row {row}, column {column} of 2 x 3)" for row in range(2) for column in range(3)]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["a.png"], "(1 image)"),
        (["a.png", "a.png"], "(2 images)"),
        ([f"a.png, {part}" for part in (*TILES, "thumbnail")], "(1 image)"),
        ([f"a, b.png, {part}" for part in (*TILES, "thumbnail")] * 2, "(2 images)"),
        ([f"{name}, {part}" for name in "ab" for part in ("thumbnail", "in detail")] + ["c"], "(3 images)"),
    ],
)
def test_the_parts_of_a_picture_are_one_image(parts, said):
    found = made()
    images = tuple(replace(found.images[0], source=part) for part in parts)
    heading = render_explanation(replace(found, images=images, meta=found.meta | {"prompt": "Where?"})).splitlines()
    assert [line for line in heading if line.startswith("Question:")] == [f'Question:  "Where?" {said}']


def test_evidence_is_said_in_sentences():
    assert 'Without image 0 [0, 0] it is " <b>".' in evidence_of()
    assert 'With image 0 [0, 0] alone, all other cells of the image hidden, it is " mat".' in evidence_of()
    assert 'With all cells of the image hidden it still is " mat".' in evidence_of(matters=False, sufficient=None)
    assert "The budget ended the search among cells of the image: --budget 24 goes on." in evidence_of(exhausted=True)
    doubtful = TokenSet((2, 0), True, " mat", False)
    said = evidence_of(necessary=doubtful)
    assert 'Without "the" and image 0 [0, 0] it is " mat". (generate() does not confirm it' in said
    assert "Evidence" not in page_of(evidence=())
    words = Evidence("text", True, TokenSet((0,), True, "no", True), None, False, 1.0)
    assert 'Without "the" it is "no".' in " ".join(page_of(evidence=(words,)).split())


def test_what_changes_the_answer_by_itself_is_said_beside_the_strongest():
    first = TokenSet((0,), True, "no", True)
    for each, said in (
        ((0, 1), 'It is another, too, without " cat" alone.'),
        ((0, 1, 2), 'without " cat" or image 0 [0, 0], each by itself.'),
    ):
        one = Evidence("text", True, first, None, False, 1.0, each)
        assert said in " ".join(page_of(evidence=(one,)).split())
    assert "another, too" not in page_of(evidence=(Evidence("text", True, first, None, False, 1.0, (0,)),))


def test_names_that_are_alike_are_told_apart_by_their_positions():
    found = made(names=("cat", " cat", "<|image_pad|>"))
    both = Evidence("text", True, TokenSet((0, 1), True, "no", True), None, False, 1.0)
    page = render_explanation(replace(found, targets=(replace(found.targets[0], evidence=(both,)),)))
    assert 'Without "cat" (token 0) and " cat" (token 1) it is "no".' in page


def test_many_members_are_counted():
    (target,) = made().targets
    n = 9
    arrays = {
        name: np.zeros(n, dtype=np.float32)
        for name in ("contribution", "estimate_local", "logprob_change", "kl_divergence")
    }
    many = replace(
        target, names=tuple(map(str, range(n))), positions=tuple((0,) for _ in range(n)), kinds=("text",) * n, **arrays,
        top1=np.full(n, 7), differs=np.zeros(n, dtype=bool), control=np.zeros(n, dtype=bool), content=np.ones(n, dtype=bool),
        evidence=(Evidence("text", True, TokenSet(tuple(range(n)), False, "no", True), None, False, 1.0),),
    )  # fmt: skip
    assert 'and "5" and 3 more it is' in " ".join(render_explanation(replace(made(), targets=(many,))).split())


def test_why_one_rather_than_another_and_a_part_of_an_answer():
    page = page_of(instead=(5, " dog"))
    assert 'Used for this answer rather than " dog"' in page
    found = replace(made(), generated_text="on the mat")
    assert 'Used for " mat" (75.0 %)' in render_explanation(found)


def test_routes_and_agreement_stand_where_they_are_asked_for():
    assert "Routes" not in page_of()
    verbose = render_explanation(made(), verbose=True)
    assert "image -> last carries most in layers 0, 1" in " ".join(verbose.split())
    assert "rank correlation 1.00" in verbose
    cut = made(heads=HeadCut(((5, 1), (2, 0)), -1.25, " <b>", -0.125))
    route = replace(cut.targets[0].routes[0], layers=(3, 7), logprob_change=-2.5, whole_change=-4.0)
    page = " ".join(render_explanation(replace(cut, targets=(replace(cut.targets[0], routes=(route,)),))).split())
    assert "image -> last in all layers -4, in layers 3-7 -2.5" in page
    assert (
        'heads that carry most (layer.head): 5.1, 2.0 Without them: -1.25, then " <b>"; without as many at random: -0.125'
        in page
    )


def test_a_run_begins_with_what_its_answer_used_and_then_says_where_it_is_read():
    result = make_result()
    page = render_summary(replace(result, answer=made()))
    order = [page.index(said) for said in ("Answer:", "Used for", "Evidence", "Where it is read")]
    assert order == sorted(order)
    assert "Candidates for the first token" not in page
    verbose = render_summary(replace(result, answer=made()), verbose=True)
    for said in ("Candidates for the first token", "Where it is read"):
        assert said in verbose
    assert verbose.index("Evidence") < verbose.index("Candidates")
    assert "Candidates for the first token" in render_summary(result)  # without an answer all is shown
    assert [one["text"] for one in result_entry(replace(result, answer=made()))["answer"]] == [" mat"]
    assert result_entry(result)["answer"] is None


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_no_text_acts_on_the_terminal_or_leaves_the_page(text):
    found = made(names=(text, text * 20, "<|image_pad|>"), instead=(3, text))
    (target,) = found.targets
    texts = dict.fromkeys(target.top1_texts, text * 3)
    sets = TokenSet((0, 1, 2), True, text * 9, False)
    target = replace(
        target, top1_texts=texts, evidence=(Evidence("image", True, sets, sets, True, 1.0),), text=text * 4,
        routes=(replace(target.routes[0], name=text * 5),), heads=HeadCut(((0, 1),) * 10, -1.0, text, -1.0),
    )  # fmt: skip
    found = replace(found, targets=(target,), generated_text=text * 9, meta={"prompt": text * 30, "model": text})
    page = render_explanation(found, verbose=True)
    assert all(char == "\n" or char.isprintable() for char in page)
    assert max(columns(line) for line in page.splitlines()) <= 80
    assert to_text(explanation_entry(found)).isascii()
