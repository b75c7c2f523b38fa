"""The page of many prompts, without a browser: a row and a card of each, within its size, and what is left out is said."""

import base64
import gzip
import re

import pytest
from explained import explained
from pages import HOSTILE, Page
from synthetic import make_result

from mask_impact.commands.main import main
from mask_impact.results.store import save
from mask_impact.results.stored import Stored
from mask_impact.views import report
from mask_impact.views.overview import NOT_KEPT, overview_row
from mask_impact.views.report import build_report


def answers(n, **changes):
    """Results with answers, by name; every second one estimated only."""
    found = {}
    for number in range(n):
        made = make_result(seed=number, **changes)
        measured, estimated = ({}, {3: -2.0 - number}) if number % 2 else ({3: -2.0 - number}, {})
        needed = () if number % 2 else (3,)
        found[f"p{number}"] = explained(
            made, measured, estimated, becomes=dict.fromkeys(needed, " Rome"), needed=needed
        )
    return found


def cells(page):
    """The texts of the overview's rows."""
    start = page.elements.index(next(one for one in page.all("table") if one[1].get("id") == "overview-rows"))
    rows = []
    for tag, attributes, text in page.elements[start:]:
        if tag == "tr" and "data-row" in attributes:
            rows.append([])
        elif tag in ("td", "button") and rows and len(rows[-1]) < 7:
            rows[-1].append(text)
    return [[row[1], *row[2:]] for row in rows]


def packed(page):
    return {
        attributes["id"]: gzip.decompress(base64.b64decode(text)).decode()
        for _, attributes, text in page.all("script")
        if re.match(r"c-\d", attributes.get("id", ""))
    }


def test_a_row_says_what_was_asked_and_said_what_it_used_and_how_that_is_known():
    first, second = answers(2).values()
    row = overview_row("p0", Stored.of(first))
    assert row == {
        "name": "p0", "question": "The capital of France is", "answer": "Paris", "chance": "75.0 %", "how": "measured",
        "used": "because of the word “France”. Without the word “France” the model says “else”.",
    }  # fmt: skip
    other = overview_row("p1", Stored.of(second))
    assert (other["used"], other["how"]) == (
        "most of all because of the word “France”. Nothing that was hidden changes the answer.",
        "estimated",
    )
    assert overview_row("x", Stored.of(make_result()))["used"] == NOT_KEPT


def test_each_prompt_has_a_row_and_the_card_that_a_single_page_has():
    found = answers(3)
    page = Page(build_report(found).html)
    assert [row[0] for row in cells(page)] == list(found)
    assert [row[5] for row in cells(page)] == ["measured", "estimated", "measured"]
    parts = packed(page)
    assert list(parts) == ["c-1", "c-2"]  # the first stands in the page as it is
    for number in (1, 2):
        (article,) = re.findall(r"<article.*?</article>", parts[f"c-{number}"], re.DOTALL)
        assert article in build_report(found[f"p{number}"]).html.decode()


def test_an_image_of_many_prompts_stands_once_in_the_page():
    made = make_result(grids=((2, 2),))
    page = build_report({f"p{number}": explained(made, {5: -1.0 - number}) for number in range(4)}).html.decode()
    assert page.count('href="data:image/jpeg;base64,') == 1
    other = make_result(["", " b"], grids=((2, 2),))
    mixed = {"text": explained(make_result(), {1: -1.0})} | {f"p{n}": explained(other, {1: -1.0 - n}) for n in range(3)}
    page = Page(build_report(mixed).html)
    (block,) = [text for _, attributes, text in page.all("script") if attributes.get("id", "").startswith("i-mi-")]
    assert block.count("data:image/jpeg;base64,") == 1


def test_many_prompts_have_no_distances_and_the_page_says_how_to_see_them(monkeypatch):
    monkeypatch.setattr(report, "MAX_PROMPTS", 2)
    built = build_report(answers(5))
    page = Page(built.html)
    assert [row[0] for row in cells(page)] == [f"p{number}" for number in range(5)]
    assert page.blocks == {}
    assert all("distances" not in one["tables"] for one in page.data["prompts"])
    assert (
        built.notes[0]
        == "Distances of many prompts are left out; --prompt-name NAME opens one prompt with all of its numbers"
    )
    assert not any(attributes.get("id") == "plotly-source" for _, attributes, _ in page.all("script"))


def test_a_prompt_that_has_nothing_but_distances_has_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(report, "MAX_PROMPTS", 2)
    page = Page(build_report(answers(3) | {"bare": make_result()}).html)
    assert [row[4] for row in cells(page)][-1] == NOT_KEPT
    assert (page.data["prompts"][-1]["tables"], page.blocks) == ([], {})
    built = build_report(
        {"bare": make_result()} | answers(3)
    )  # where it comes first, distances are what the page is about
    assert (len(cells(Page(built.html))), built.notes[0][:14]) == (2, "The first 2 of")


def test_distances_are_left_out_where_they_do_not_fit():
    found = answers(3, n_layers=40)
    size = len(build_report(found, 100).html)
    built = build_report(found, size / 1e6 * 0.6)
    assert "Distances of many prompts are left out" in built.notes[0]
    assert len(cells(Page(built.html))) == 3


def test_a_page_holds_as_many_prompts_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(report, "MAX_PROMPTS", 2)
    found = answers(40)
    whole = len(build_report(found).html)
    most = (whole - 20_000) / 1e6
    built = build_report(found, most)
    n = len(cells(Page(built.html)))
    assert 0.5 * 40 < n < 40
    assert len(built.html) <= most * 1e6
    assert built.notes[0] == f"The first {n} of 40 prompts: a page has at most {most:g} MB"
    monkeypatch.setattr(report, "MOST_CARDS", 7)
    assert build_report(found).notes[0] == "The first 7 of 40 prompts: more are hard to look through"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_question_or_answer_becomes_markup(text):
    made = make_result(["a", " b"], produced=(text,), meta={"prompt": text})
    one = explained(made, {1: -3.0}, becomes={1: text})
    plain = build_report({"p": explained(make_result(["a", " b"]), {1: -3.0}), "q": made})
    hostile = build_report({text: one, "q": made})
    tags = [
        [tag for tag, *_ in Page(built.html).elements if tag in ("script", "img", "b")] for built in (plain, hostile)
    ]
    assert tags[1].count("img") == tags[0].count("img") == 0
    assert tags[1].count("script") == tags[0].count("script")


def test_the_command_opens_a_folder_of_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    for name, one in answers(2).items():
        save(one, f"output/{name}")
    assert main(["report", "output"]) == 0
    assert capsys.readouterr().out.startswith("Report: output.html")
    assert [row[0] for row in cells(Page((tmp_path / "output.html").read_bytes()))] == ["p0", "p1"]
