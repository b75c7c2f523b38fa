"""The page of many prompts in a browser: rows that are found by words, opened by keys and clicks, each with its own card."""

import csv
import io

import browser
import pytest
from explained import explained
from synthetic import make_result

from mask_impact.views import report
from mask_impact.views.report import write_report

pytestmark = [*browser.MARKS, pytest.mark.slow]

N = 300


def answers():
    """Every fifth prompt is about rivers and has an image."""
    found = {}
    for number in range(N):
        texts = ["", "The", " river" if number % 5 == 0 else " city", f" n{number}"]
        made = make_result(
            texts, grids=((2, 2),) if number % 5 == 0 else (), produced=(f" says {number}",), seed=number
        )
        found[f"p{number}"] = explained(made, {made.n_prompt - 1: -2.0}, becomes={made.n_prompt - 1: " no"})
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(answers(), tmp_path_factory.mktemp("overview") / "many.html")


def shown(tab):
    return tab.texts("#overview-rows tbody tr:not([hidden]) td:first-child")


def card_text(tab):
    (card,) = [one for one in tab.page.locator("#card .mi-card").all() if one.is_visible()]
    return card.inner_text()


def test_a_prompt_is_found_by_words_and_opened_by_keys(page, open_page):
    tab = open_page(page)
    assert shown(tab) == [f"p{number}" for number in range(N)]
    assert "says 0" in card_text(tab)
    tab["overview-filter"].fill("RIVER n1")
    assert shown(tab) == [f"p{number}" for number in range(0, N, 5) if str(number).startswith("1")]
    assert tab.texts("#overview-count") == ["22 of 300 prompts"]
    tab["overview-filter"].press("ArrowDown")
    tab.press("ArrowDown", "Enter")
    assert "says 15" in card_text(tab)
    assert tab.page.evaluate("document.activeElement.textContent") == "p15"
    assert tab.page.locator("#overview-rows tr.current td").first.text_content() == "p15"
    assert tab["prompt"].input_value() == "15"
    tab.press("End", "Enter")
    assert "says 195" in card_text(tab)
    tab.press("Home", "ArrowUp")
    assert tab.page.evaluate("document.activeElement.id") == "overview-filter"
    assert tab.faults == []


def test_a_click_opens_a_card_with_its_image_and_the_address_leads_back_to_it(page, open_page):
    tab = open_page(page)
    tab.click("#overview-rows tr:nth-child(6) td:nth-child(3)")
    assert "says 5" in card_text(tab)
    picture = tab.page.locator("#card .mi-card:visible svg.mi-picture use")
    assert tab.page.locator(picture.get_attribute("href")).get_attribute("href").startswith("data:image/jpeg;base64,")
    tab.click("#overview-rows tr:nth-child(7) td:nth-child(3)")
    assert not tab.page.locator("#card .mi-card:visible svg.mi-picture").count()
    fragment = tab.page.evaluate("location.hash")
    assert "says 6" in card_text(open_page(page, fragment))
    tab["prompt"].select_option("5")  # one that was open before
    tab.settle()
    assert "says 5" in card_text(tab)
    assert tab.faults == []


def test_the_rows_that_are_shown_are_saved_as_they_are(page, open_page):
    tab = open_page(page)
    tab["overview-filter"].fill("n29")
    content, name = tab.download("#overview .exports button:has-text('CSV')")
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert rows[0][:3] == ["prompt", "question", "answer"]
    assert [row[0] for row in rows[1:]] == ["p29", *(f"p{number}" for number in range(290, 300))]
    assert name == "p0-overview.csv"


def test_a_table_of_many_rows_is_shown_piece_by_piece(tmp_path, open_page):
    (one,) = list(answers().values())[1:2]
    tab = open_page(write_report({f"p{number}": one for number in range(900)}, tmp_path / "x.html"))
    assert tab.texts("#overview-count") == ["900 prompts, the first 400 below"]
    assert len(shown(tab)) == 400
    tab.click("#overview-more")
    tab.click("#overview-more")
    assert len(shown(tab)) == 900
    assert not tab["overview-more"].is_visible()
    tab["overview-filter"].fill("p77")
    assert tab.texts("#overview-count") == ["11 of 900 prompts"]
    tab["overview-filter"].fill("")
    assert len(shown(tab)) == 400


def test_prompts_with_distances_are_told_apart_as_well(tmp_path, open_page, monkeypatch):
    monkeypatch.setattr(report, "MAX_PROMPTS", 3)
    tab = open_page(write_report(dict(list(answers().items())[4:6]), tmp_path / "two.html"))
    assert shown(tab) == ["p4", "p5"]
    assert not tab["images-card"].is_visible()
    tab.click("#overview-rows tr:nth-child(2) button")
    assert tab["images-card"].is_visible()
    assert tab.page.locator("#images img").get_attribute("src").startswith("data:image/jpeg;base64,/9j/")
    assert tab.faults == []
