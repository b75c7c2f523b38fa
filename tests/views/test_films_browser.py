"""Videos in a report's page: a strip over time in the card and among the images, with overlays, bars and times; a pair of frames
that is opened stands large, and the strip plays."""

import browser
import numpy as np
import pytest
from explained import explained
from synthetic import filmed, make_result

from mask_impact.views.card_html import card_document
from mask_impact.views.report import write_report

pytestmark = browser.MARKS
N_PAIRS = 12
OPENED = ".mi-frame.mi-open"


@pytest.fixture(scope="module")
def result():
    made = filmed(make_result(n_layers=3, grids=[(2, 2)] * N_PAIRS, groups=("full",)))
    cells = {at: [-0.25, 1.0, -0.5, -3.0][at % 4] * (at // 4) for at in range(1, 4 * N_PAIRS + 1)}
    return explained(made, cells)


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    return write_report(result, tmp_path_factory.mktemp("films") / "page.html")


def opened(tab, part):
    return int(tab.page.locator(f"#{part} {OPENED}").get_attribute("data-frame"))


def bars(tab, part):
    return tab.page.locator(f"#{part} .mi-frame .mi-bar").evaluate_all(
        """bars => bars.map((bar) => {
            const one = bar.querySelector("i");
            const sign = one?.className === "mi-for" ? -1 : 1;
            return one ? sign * parseFloat(one.style.width) : 0;
        })"""
    )


def test_the_card_s_strip_adds_what_the_cells_do_and_the_strongest_pair_stands_large(result, page, open_page):
    tab = open_page(page)
    target, image = result.answer.targets[0], result.tokens.image
    sums = np.array([
        sum(target.logprob_change[place] for place, (at,) in enumerate(target.positions) if image[at] == pair)
        for pair in range(N_PAIRS)
    ])  # fmt: skip
    np.testing.assert_allclose(bars(tab, "cards"), 100 * sums / abs(sums).max(), atol=0.02)
    strongest = max(range(N_PAIRS), key=lambda pair: max(abs(target.logprob_change[image[: result.n_prompt] == pair])))
    assert opened(tab, "cards") == strongest
    assert tab.page.locator("#cards .mi-stage figcaption").text_content() == (
        f"frames {2 * strongest}-{2 * strongest + 1} · {0.5 * strongest + 0.125:.1f} s"
    )
    assert tab.page.locator("#cards .mi-frames").evaluate("strip => strip.scrollWidth > strip.clientWidth + 100")
    tab.keep_screenshot("film-card")


def test_a_card_without_a_script_opens_a_pair_by_a_click_or_a_key(result, tmp_path, open_page):
    """As a notebook and the local page show it."""
    document = card_document(result.answer)
    assert "<script" not in document
    whole = f'<!doctype html><html data-drawn="true"><meta charset="utf-8">{document}'
    (tmp_path / "card.html").write_text(whole, encoding="utf-8")
    page = open_page(tmp_path / "card.html").page
    large = lambda: page.locator(".mi-stage:visible").evaluate_all("all => all.map((one) => one.dataset.frame)")  # noqa: E731
    (strongest,) = large()
    assert strongest == page.locator(".mi-film").get_attribute("data-opened")
    page.locator('.mi-frame[data-frame="2"]').click()
    assert large() == ["2"]
    page.keyboard.press("ArrowRight")
    assert large() == ["3"]
    page.keyboard.press("Enter")
    assert large() == ["3"]


def test_a_click_or_a_key_opens_a_pair_in_the_card_and_among_the_images_with_its_overlay(result, page, open_page):
    tab = open_page(page)
    figures = tab.page.locator("#images .stage figure")
    tab.click("#cards .mi-frame[data-frame='2']")
    assert (opened(tab, "cards"), opened(tab, "images"), "frame=2" in tab.page.url) == (2, 2, True)
    assert figures.get_attribute("data-image") == "2"
    tab.page.locator("#images .mi-frames").focus()
    tab.press("ArrowRight")
    assert (opened(tab, "cards"), opened(tab, "images")) == (3, 3)
    assert "frames 6-7" in figures.locator("figcaption").text_content()
    tips = tab.page.locator("#cards .mi-stage title").all_text_contents()
    assert tips == tab.page.locator("#cards .mi-frame[data-frame='3'] title").all_text_contents() != []
    small, large = (tab.page.locator(f"#images {one} canvas") for one in (OPENED, ".stage"))
    colour = """canvas => {
        const context = new OffscreenCanvas(4, 4).getContext("2d", { willReadFrequently: true });
        context.imageSmoothingEnabled = false;
        context.drawImage(canvas, 0, 0, 4, 4);
        return [...context.getImageData(1, 1, 1, 1).data];
    }"""
    np.testing.assert_allclose(small.evaluate(colour), large.evaluate(colour), atol=40)
    assert open_page(page, "#frame=5").page.locator(f"#cards {OPENED}").get_attribute("data-frame") == "5"


def test_the_strip_plays_by_its_button_and_by_space_where_nothing_has_the_focus(page, open_page):
    tab = open_page(page)
    before = opened(tab, "cards")
    tab.page.locator("#cards .mi-play").click()
    tab.wait_until(f"Number(document.querySelector('#cards {OPENED}').dataset.frame) === {(before + 3) % N_PAIRS}")
    tab.page.locator("#cards .mi-play").click()
    stopped = opened(tab, "cards")
    tab.page.wait_for_timeout(800)
    assert opened(tab, "cards") == stopped
    tab.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    tab.page.keyboard.press(" ")
    tab.wait_until("document.querySelector('#cards .mi-play').getAttribute('aria-pressed') === 'true'")
    tab.page.keyboard.press(" ")
    tab.wait_until("document.querySelector('#cards .mi-play').getAttribute('aria-pressed') === 'false'")
    assert tab.page.evaluate("scrollY") == 0
    tab.page.locator("#images .mi-play").focus()
    tab.page.keyboard.press(" ")  # a button's own key: its strip plays, and no other
    tab.wait_until("document.querySelector('#images .mi-play').getAttribute('aria-pressed') === 'true'")
    assert tab.page.locator("#cards .mi-play").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize(("width", "theme"), [(1024, "dark"), (390, "light")])
def test_strips_scroll_by_themselves_and_the_page_does_not(page, open_page, width, theme):
    tab = open_page(page, f"#theme={theme}")
    tab.page.set_viewport_size({"width": width, "height": 900})
    tab.wait_until(f"document.documentElement.scrollWidth === {width}")  # charts follow the window a little later
    for part in ("cards", "images"):
        strip = tab.page.locator(f"#{part} .mi-frames")
        assert strip.evaluate("strip => strip.scrollWidth > strip.clientWidth + 100"), part
    tab["images-card"].scroll_into_view_if_needed()
    tab.keep_screenshot(f"film-images-{width}")
