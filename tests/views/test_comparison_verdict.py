"""The verdict of a comparison in words, in JSON and on the page: what is said of the same and of different evidence, of different
answers, of depths, of estimates, and of results that say nothing of their answers."""

import dataclasses
import json

import browser
import numpy as np
import pytest
from explained import explained, read_at
from pages import HOSTILE
from running import compare as run
from samples import FEW, OTHER, WORDS
from synthetic import make_result, with_effects
from tab import table_of

from mask_impact.findings.comparison import compare_results
from mask_impact.results.store import save
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_page import build_page
from mask_impact.views.comparison_text import render
from mask_impact.views.comparison_verdict import told, verdict_text
from mask_impact.views.text import columns

GRID = (2, 3)
CELL, STAR = 3, 10  # positions of the cell at the upper right, and of the word “star” in SENTENCE
SENTENCE = ["Look", "What", " color", " is", " star", "?"]  # six cells stand behind the first
SURE = "By local impact alone (what layers read, not what the answer needs),"


def picture(name_seed, layers=20, at=10, words=(CELL, STAR), answer=" orange", **changes):
    """A result that needs a cell and a word, read in one layer."""
    result = make_result(SENTENCE, n_layers=layers, grids=(GRID,), seed=name_seed, produced=[answer], sinks=())
    result = read_at(result, {position: {at: 1.0} for position in words})
    effects = {position: -5.0 - position / 10 for position in words}
    return explained(result, effects, becomes=dict.fromkeys(words, " blue"), **changes)


def said(**results):
    comparison = compare_results(results, FEW)
    return verdict_text(comparison, told(comparison))


# --- in words ---------------------------------------------------------------------------------------------------------------


def test_the_same_evidence_that_one_reads_later():
    assert said(star28=picture(0, layers=10, at=3), star36=picture(1, layers=25, at=14)) == (
        "Both answer “orange”. Both use the cell at the upper right and the word “star”; star36 reads them later: "
        "58 % against 35 % of the depth (centre of the local impact)."
    )


def test_the_same_evidence_at_about_the_same_depth():
    found = said(one=picture(0, at=10, words=(CELL,)), other=picture(1, at=10, words=(CELL,)))
    assert found.endswith(
        "Both use the cell at the upper right; both read it at about the same depth (52 % and 52 %, centre of the local impact)."
    )
    nearly = said(one=picture(0, layers=40, at=10), other=picture(1, layers=40, at=11))
    assert "both read them at about the same depth (26 % and 29 %" in nearly


def test_shared_evidence_that_is_not_read_in_one_order():
    one = read_at(picture(0), {CELL: {2: 1.0}, STAR: {8: 1.0}})
    other = read_at(picture(1), {CELL: {16: 1.0}, STAR: {4: 1.0}})
    assert (
        "; which of the two reads later is not the same for each of them (28 % and 52 % together, centre of the local impact)."
        in said(one=one, other=other)
    )


def test_different_evidence_for_different_answers():
    one, other = picture(0, at=4, words=(CELL,)), picture(1, at=14, words=(STAR,), answer=" blue")
    assert said(one=one, other=other) == (
        "They answer differently: “orange” and “blue”. one uses the cell at the upper right; other uses the word “star”. "
        "other reads its own later: 72 % against 22 % of the depth (centre of the local impact)."
    )


def test_what_one_needs_and_the_other_uses_less():
    one = picture(0)
    other = explained(picture(1), {CELL: -4.0, STAR: -0.75}, becomes={CELL: " blue"})
    found = said(one=one, other=other)
    assert "Both use the cell at the upper right;" in found
    assert "one also uses the word “star”, which other uses less (−0.75 against −6.00 nats)." in found


def test_effects_by_layer_are_named_as_such():
    found = said(one=with_effects(picture(0)), other=with_effects(picture(1), seed=1))
    assert "centre of the effect by layer" in found
    assert "local impact" not in found


@pytest.mark.parametrize("reliable", [True, False])
def test_what_is_only_estimated_is_called_so(reliable):
    one = explained(picture(0), {}, {CELL: -3.0}, reliable=reliable)
    other = explained(picture(1), {CELL: -4.0}, becomes={CELL: " blue"})
    found = said(one=one, other=other)
    assert "Both use the cell at the upper right (by estimate in one);" in found
    assert ("The estimates of one are not reliable." in found) == (not reliable)
    alone = said(one=explained(picture(0), {}, {CELL: -3.0}), other=explained(picture(1), {STAR: -1.0}))
    assert "one uses the cell at the upper right (by estimate); " in alone
    both = said(one=one, other=explained(picture(1), {}, {CELL: -2.0}))
    assert "Both use the cell at the upper right (by estimate);" in both


def test_a_use_that_the_other_was_only_estimated_to_make_is_called_so():
    one = explained(picture(0), {CELL: -4.0}, becomes={CELL: " blue"})
    other = explained(picture(1), {STAR: -4.0}, {CELL: -0.5}, becomes={STAR: " blue"})
    found = said(one=one, other=other)
    assert found.startswith(
        "Both answer “orange”. one uses the cell at the upper right, which by estimate other uses less "
        "(~−0.50 against −4.00 nats); other uses the word “star”."
    )


def test_of_several_that_one_needs_the_strongest_is_said_of_the_other():
    one = picture(0)
    other = explained(picture(1), {CELL: -0.5, STAR: -0.75, 8: -4.0}, becomes={8: " blue"})
    found = said(one=one, other=other)
    assert "one uses the cell at the upper right and the word “star”; other uses the word “color”." in found
    assert ". other uses the word “star” less (−0.75 against −6.00 nats)." in found
    other = explained(picture(1), {CELL: -0.5, STAR: -7.5, 8: -4.0}, becomes={8: " blue"}, needed=(8,))
    assert ". other uses the word “star” too (−7.50 against −6.00 nats)." in said(one=one, other=other)


def test_answers_that_nothing_changes():
    found = said(one=explained(picture(0), {CELL: -0.05}), other=explained(picture(1), {}))
    assert found == "Both answer “orange”. Nothing that was hidden changes either answer."
    found = said(one=explained(picture(0), {CELL: -0.05}), other=picture(1))
    assert (
        "other uses the cell at the upper right and the word “star”; nothing that was hidden changes the answer of one."
        in found
    )


def without_answer(result):
    return dataclasses.replace(result, answer=None)


def test_without_explanations_local_impact_is_all_that_is_said():
    one, other = (make_result(words, n_layers=7, seed=seed) for seed, words in enumerate((WORDS, OTHER)))
    found = said(one=one, other=other)
    assert found.startswith(f"Both answer “Paris”. What either answer used was not measured. {SURE} ")
    assert " use " not in found
    assert "the common tokens matter no more alike than by chance (rho " in found
    same = said(one=one, other=one)
    assert "the common tokens matter alike (rho 1.00, p 0.01), most of all “" in same
    assert "” in both; it lies at about the same depth (" in same
    early, late = read_at(one, {4: {0: 1.0}}), read_at(one, {4: {6: 1.0}})
    assert "; it lies later in late: 93 % against 7 % of the depth." in said(early=early, late=late)


def test_one_that_is_explained_beside_one_that_is_not():
    found = said(new=picture(0), old=without_answer(picture(1)))
    assert (
        "new uses the cell at the upper right and the word “star”. What the answer of old used was not measured. By "
        in found
    )
    assert "Both use" not in found
    text = render(compare_results({"new": picture(0), "old": without_answer(picture(1))}, FEW))
    assert [line.split()[-4:] for line in text.splitlines() if line.startswith("  the word “star”")] == [
        ["->", '"blue"', "not", "measured"]
    ]
    other_token = explained(make_result(SENTENCE, grids=(GRID,), n_steps=3, seed=1), {STAR: -4.0}, steps=(2,))
    found = said(new=picture(0), other=other_token)
    assert "What the answer of other used was not measured for this produced token (but for token 2)." in found


def test_no_token_in_common_and_no_ranks():
    one, other = make_result(["a", "b", "c"]), make_result(["x", "y", "z"], seed=1)
    assert said(one=one, other=other).endswith(
        "What either answer used was not measured. They have no token in common."
    )
    one, other = explained(one, {1: -2.0}), explained(other, {2: -3.0}, answer=" Rome")
    assert said(one=one, other=other).startswith(
        "They answer differently: “Paris” and “Rome”. one uses the word “b”; other uses the word “z”."
    )
    one, other = make_result(["a", "b"], sinks=()), make_result(["a", "c"], sinks=(), seed=1)
    assert "with 1 common tokens there is nothing to rank." in said(one=one, other=other)


def test_several_results_are_said_one_by_one():
    results = {
        "star": picture(0), "again": picture(1), "cross": picture(2, words=(STAR,), answer=" blue"),
        "old": without_answer(picture(3)),
    }  # fmt: skip
    found = said(**results)
    assert found.startswith("They answer differently: “orange” (A, B and D) and “blue” (C). A and B: Both use ")
    assert "A and C: Both use the word “star”" in found
    assert "A and D: star uses the cell at the upper right and the word “star”. What the answer of old used" in found
    text = render(compare_results(results, FEW))
    assert text.startswith("They answer differently: “orange” (A, B and D) and “blue” (C).\nA and B: Both use")
    assert said(a=picture(0), b=picture(1), c=picture(2)).startswith("All answer “orange”. A and B: ")


def test_long_names_are_letters_in_sentences():
    found = said(**{"n" * 25: picture(0, at=2), "b": picture(1, at=18)})
    assert "; B reads them later: 92 % against 12 %" in found


# --- on a terminal ----------------------------------------------------------------------------------------------------------


def test_the_text_leads_with_the_verdict_then_effects_evidence_and_impact():
    one = picture(0, needed=(CELL,))
    other = explained(picture(1, answer=" blue"), {STAR: -0.75}, {CELL: -0.25}, needed=(STAR,))
    lines = render(compare_results({"one": one, "other": other}, FEW)).splitlines()
    assert lines[0] == "They answer differently: “orange” and “blue”. Both use the word “star”; both"
    title = next(n for n, line in enumerate(lines) if line.startswith("What A and B use"))
    assert " ".join(line.strip() for line in lines[title : title + 2]) == (
        "What A and B use: change of the answer's log-probability (nats) where it is hidden, and the most probable token then; "
        "~ is an estimate:"
    )
    rows = [line.split("  ") for line in lines[title + 3 : title + 5]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows == [
        ["the word “star”", "−6.00", '-> "blue"', "−0.75"],
        ["the cell at the upper right", "−5.30", '-> "blue"', "~−0.25"],
    ]
    text = "\n".join(lines)
    order = [
        "They answer",
        "  A  one:",
        "What A and B use",
        "Evidence (",
        "Local impact:",
        "Importance for",
        "A and B: ",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "  A  Without the cell at the upper right it is “else”." in lines
    assert "  B  Without the word “star” it is “else”." in lines
    assert max(map(columns, lines)) <= 80


def test_many_units_are_told_apart_and_only_the_strongest_listed():
    made = [make_result(SENTENCE, n_layers=20, grids=((3, 6),), seed=seed) for seed in (0, 1)]
    cells = range(1, 15)
    results = {
        name: explained(one, {at: -20.0 + at for at in cells}, becomes=dict.fromkeys(cells, " x"), needed=cells)
        for name, one in zip("xy", made, strict=True)
    }
    lines = render(compare_results(results, FEW)).splitlines()
    rows = [line for line in lines if line.startswith("  the cell ")]
    assert len(rows) == 10
    assert len({row[:36] for row in rows}) == 10
    assert rows[0].startswith("  the cell at the upper left [0, 0] ")
    assert "  and 4 more, each of which matters less" in lines


def test_a_word_that_only_one_prompt_has_is_not_there_in_the_other():
    one = explained(make_result(WORDS), {WORDS.index("?"): -2.0})
    other = explained(make_result(OTHER, seed=1), {OTHER.index(" city"): -3.0})
    text = render(compare_results({"one": one, "other": other}, FEW))
    assert [line.split()[-2:] for line in text.splitlines() if "the word “city”" in line][-1] == ["there", "−3.00"]
    assert [line.split()[-3:] for line in text.splitlines() if line.startswith("  “?”")] == [["−2.00", "not", "there"]]


def test_results_without_explanations_have_no_such_tables():
    text = render(compare_results({"one": make_result(WORDS), "other": make_result(OTHER, seed=1)}, FEW))
    assert "What A and B use" not in text
    assert "Evidence" not in text


def test_the_command_and_its_json_say_the_same(capsys, tmp_path):
    one = picture(0, at=4, needed=(CELL,))
    other = explained(picture(1, at=15), {STAR: -0.75}, {CELL: -0.25}, needed=(STAR,))
    for name, result in (("one", one), ("other", other)):
        save(result, tmp_path / name, ["csv"])
    code, out, err = run(capsys, tmp_path / "one", tmp_path / "other", "--permutations", 99)
    assert (code, err) == (0, "")
    found = json.loads(run(capsys, tmp_path / "one", tmp_path / "other", "--permutations", 99, "--json")[1])["verdict"]
    assert " ".join(out.partition("\n\n")[0].split()) == found["text"]
    (pair,) = found["pairs"]
    assert pair["text"] == found["text"]
    assert (pair["answers"], pair["same_answer"], pair["explained"]) == (["orange", "orange"], True, [True, True])
    assert [row["name"] for row in pair["used"]] == ["the word “star”", "the cell at the upper right"]
    assert [row["positions"] for row in pair["used"]] == [[[STAR], [STAR]], [[CELL], [CELL]]]
    np.testing.assert_allclose(
        [row["logprob_change"] for row in pair["used"]], [[-6.0, -0.75], [-5.3, -0.25]], rtol=1e-6
    )
    assert [row["measured"] for row in pair["used"]] == [[True, True], [True, False]]
    assert [row["becomes"] for row in pair["used"]] == [["blue", None], ["blue", None]]
    assert [row["reason"] for row in pair["used"]] == [[True, True], [True, False]]
    assert pair["depth"] == {
        "measure": "local impact", "own": False, "centres": [pytest.approx(4.5 / 20), pytest.approx(15.5 / 20)], "least": 0.05,
        "agreed": True, "later": "second",
    }  # fmt: skip
    assert [[one["role"] for one in side] for side in pair["evidence"]] == [["without", "with"]] * 2
    assert [side[0]["positions"] for side in pair["evidence"]] == [[CELL], [STAR]]


def test_hostile_texts_are_safe_in_a_terminal(tmp_path):
    results = {}
    for seed, name in enumerate(("</script>\u202e", "b")):
        result = make_result(("first", *HOSTILE), seed=seed, sinks=(), produced=["\x1b[31m\u202e"])
        changes = {at: -1.0 - at for at in range(1, result.n_prompt)}
        results[name] = explained(result, changes, becomes=dict.fromkeys(changes, "\u202e<b>"), needed=(1, 2, 5))
    text = render(compare_results(results, FEW))
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert max(map(columns, text.splitlines())) <= 80
    assert json.dumps(as_json(compare_results(results, FEW)), allow_nan=False)


# --- on the page ------------------------------------------------------------------------------------------------------------


def write(path, **results):
    comparison = compare_results(results, FEW)
    path.write_bytes(build_page(comparison))
    return comparison


@browser.needed
def test_the_first_screen_has_the_verdict(tmp_path, open_page):
    one = picture(0, at=4, needed=(CELL,))
    other = explained(picture(1, at=15, answer=" blue"), {STAR: -0.75}, {CELL: -0.25}, needed=(STAR,))
    comparison = write(tmp_path / "page.html", one=one, other=other)
    tab = open_page(tmp_path / "page.html")
    (pair,) = told(comparison)
    assert tab["answers"].text_content() == pair.answers
    assert tab.texts("#said li") == [pair.rest.replace(" %", "\xa0%")]
    box = tab["said"].bounding_box()
    assert box["y"] + box["height"] < 450
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#used tbody tr").all()]
    assert rows == [
        ["the word “star”", '−6.00 → "blue"', "−0.75"],
        ["the cell at the upper right", '−5.30 → "blue"', "~−0.25"],
    ]
    hollow = "all => all.map((one) => getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)')"
    assert tab.page.locator("#used i").evaluate_all(hollow) == [False, False, False, True]
    widths = tab.page.locator("#used i").evaluate_all("all => all.map((one) => parseFloat(one.style.width))")
    assert widths == pytest.approx([100, 12.5, 100 * 5.3 / 6, 100 * 0.25 / 6], rel=1e-5)
    assert tab.texts("#evidence li") == [*pair.evidence(0), *pair.evidence(1)]
    outlined = tab.page.locator("#evidence > div").evaluate_all(
        "all => all.map((one) => one.querySelectorAll('.mi-evidence').length)"
    )
    assert outlined == [1, 0]  # the cell is evidence of the first alone
    assert tab.page.locator("#evidence .mi-picture:visible").count() == 2
    header, saved = table_of(tab.download("[data-card=used] button:text-is('CSV')")[0])
    assert header[0] == "hidden"
    assert saved[0] == ["the word “star”", "-6", "measured", "blue", "-0.75", "measured", ""]


@browser.needed
def test_the_difference_map_is_second_minus_first_on_one_scale(tmp_path, open_page):
    results = {
        "one": make_result(WORDS, n_layers=7),
        "other": make_result(OTHER, n_layers=12, seed=1),
        "third": make_result(WORDS, n_layers=5, seed=2),
    }
    comparison = write(tmp_path / "page.html", **results)
    tab = open_page(tmp_path / "page.html", "#scale=linear")
    most = 0.0
    expected = []
    for pair in comparison.pairs:
        compared = pair.matched[pair.compared]
        shares = []
        for which, side in enumerate((pair.first, pair.second)):
            rows = [
                [float(value) if at not in side.left_out else 0.0 for at, value in enumerate(row)] for row in side.bands
            ]
            shares.append([[row[place] / sum(row) for place in compared[:, which]] for row in rows])
        expected.append(np.array(shares[1]) - np.array(shares[0]))
        most = max(most, float(np.abs(expected[-1]).max()))
    for number, differences in enumerate(expected):
        tab.select("pair", number)
        np.testing.assert_allclose(tab.matrix("difference"), differences, atol=2e-4)
        np.testing.assert_allclose(tab.matrix("difference", "z"), differences / most, atol=2e-3)
    header, saved = table_of(tab.download("[data-card=difference] button >> nth=1")[0])
    assert header[-1] == "difference"
    np.testing.assert_allclose([float(row[-1]) for row in saved], expected[1].ravel(), atol=2e-4)


@browser.needed
def test_of_many_tokens_the_map_shows_those_that_differ_most_and_the_file_has_all(tmp_path, open_page):
    texts = [f" w{place}" for place in range(200)]
    results = {name: make_result(texts, n_layers=5, seed=seed) for seed, name in enumerate("xy")}
    comparison = write(tmp_path / "page.html", **results)
    tab = open_page(tmp_path / "page.html")
    (pair,) = comparison.pairs
    compared = pair.matched[pair.compared]
    first, second = (
        np.array([side.shares(row)[compared[:, which]] for row in side.bands])
        for which, side in enumerate((pair.first, pair.second))
    )
    drawn = tab.matrix("difference")
    n = drawn.shape[1]
    assert 30 <= n < len(compared) == 199
    assert f"The {n} of 199 tokens that differ most are shown" in tab["difference-hint"].text_content()
    most = np.sort(np.argsort(-np.abs(second - first).max(axis=0))[:n])
    np.testing.assert_allclose(drawn, (second - first)[:, most], atol=2e-4)
    saved = table_of(tab.download("[data-card=difference] button >> nth=1")[0])[1]
    assert len(saved) == 10 * 199


@browser.needed
def test_a_pair_is_chosen_in_the_verdict_too(tmp_path, open_page):
    write(tmp_path / "page.html", star=picture(0), again=picture(1), old=without_answer(picture(2)))
    tab = open_page(tmp_path / "page.html")
    assert tab.texts("#said button") == ["A and B", "A and C"]
    assert tab["used"].is_visible()
    tab.click("#said button >> nth=1")
    assert tab["pair"].input_value() == "1"
    assert tab.texts("#used td.none") == ["not measured"] * 2
    assert tab.page.locator("#said li[aria-current=true]").count() == 1
    assert "What the answer of old used was not measured" in tab.texts("#said li[aria-current=true]")[0]


@browser.needed
def test_hostile_texts_show_as_text(tmp_path, open_page):
    results = {}
    for seed, name in enumerate(("<img src=x onerror=alert(1)>", "b")):
        result = make_result(("first", *HOSTILE), seed=seed, sinks=(), produced=["<b>x</b>"])
        changes = {at: -1.0 - at for at in range(1, result.n_prompt)}
        becomes = dict.fromkeys(changes, "<img src=x>")
        results[name] = explained(result, changes, becomes=becomes, needed=(1, 2, 5))
    write(tmp_path / "page.html", **results)
    tab = open_page(tmp_path / "page.html")
    assert tab["answers"].text_content() == "Both answer “<b>x</b>”."
    assert '→ "<img src=x>"' in tab.texts("#used tbody td")[1]
    for tag in ("img", "#answers b", "#said b", "#used b", "#evidence b", "script"):
        assert tab.page.locator(f"main {tag}").count() == 0, tag
