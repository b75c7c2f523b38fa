"""The evidence card and what stands beside it in the page, in a browser: what is shown of which result, and by which click; that
nobody is shut out.

Screenshots go to the folder that REPORT_SCREENSHOTS names.
"""

import dataclasses
import html
import io
import shutil
import subprocess
from xml.etree import ElementTree

import browser
import numpy as np
import pytest
from explained import explained
from pages import HOSTILE
from PIL import Image
from synthetic import make_explanation, make_result, with_effects
from tab import Tab

from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts
from mask_impact.results.stored import Stored
from mask_impact.views.report import write_report

pytestmark = browser.MARKS

SVG = "{http://www.w3.org/2000/svg}"
AXE = "axe-core@4.14.1"
META = {"window": 1, "ablation": "mask", "model": "tiny"}
SIZES = ((1440, 900), (390, 844))


def two_targets():
    """A picture of four cells and three words; two produced tokens, each asked about by itself."""
    result = make_result(["", "Where", " is", " it"], n_steps=2, grids=((2, 2),), produced=(" up", " left"))
    one = explained(result, {2: -4.0, 6: -2.0}, needed=(2,), becomes={2: " down"}, answer=" up")
    other = explained(result, {3: -1.0, 7: -3.0}, answer=" left", steps=(1,))
    answer = dataclasses.replace(one.answer, targets=(*one.answer.targets, *other.answer.targets))
    return dataclasses.replace(result, answer=answer, meta={**result.meta, "prompt": "Where is it"})


def knockouts():
    change = -np.arange(8, dtype=np.float32).reshape(2, 4)
    step = FlowStep(0, 7, " up", 0.9, change, np.abs(change), np.full((2, 4), 7), {7: " up"}, (0.0, 0.0, 0.0), 7)
    flows = tuple(
        FlowPositions(Flow(name, *name.split(" -> ")), (1,), None) for name in ("image -> last", "question -> last")
    )
    tokens = make_result().tokens
    return Knockouts(
        flows, (step,), np.arange(4), np.arange(4), " up", tokens, {"window": 1, "ablation": "mask", "model": "tiny"}
    )


def whatif(text=" up"):
    def answer(spec, said, differs):
        return Answer(spec, () if spec is None else (1,), (7,), (said,), (0.5,), said, 0.5, differs)

    return WhatIf(
        answer(None, text, None), (answer(text, " down", 0),), (0, 1), make_result().tokens, 2, {"model": "tiny"}
    )


def shown(tab):
    """The sections that are there to see."""
    return tab.page.evaluate(
        "[...document.querySelectorAll('main > section, main > div')].filter((one) => one.offsetHeight > 0).map((one) => one.id)"
    )


def cards(tab):
    return [card for card in tab.page.locator("#card .mi-card").all() if card.is_visible()]


# --- what is shown ----------------------------------------------------------------------------------------------------------


def test_the_question_is_the_title_and_the_card_fits_the_first_screen(tmp_path, open_page):
    tab = open_page(write_report(two_targets(), tmp_path / "x.html"))
    assert tab.page.title() == "Where is it · mask-impact"
    assert tab.texts("h1") == ["Where is it"]
    (card,) = cards(tab)
    assert card.locator(".mi-sentence").text_content().startswith("Up: because of the cell at the upper right")
    assert card.locator(".mi-rows").bounding_box()["y"] < 600
    assert card.locator(".mi-picture").bounding_box()["width"] > 200


def test_a_produced_token_shows_its_own_card_and_its_own_step(tmp_path, open_page):
    tab = open_page(write_report(two_targets(), tmp_path / "x.html"))
    tab.click("#card .mi-card:visible .mi-step[data-step='1']")
    (card,) = cards(tab)
    assert card.locator(".mi-sentence").text_content().startswith("Left: most of all because of the word “it” and")
    assert tab["candidates-title"].text_content() == 'Candidates for " left"'
    assert "target=1" in tab.page.url
    card.locator(".mi-step[data-step='0']").focus()
    tab.press("Enter")
    assert cards(tab)[0].locator(".mi-sentence").text_content().startswith("Up:")
    again = open_page(tab.path, "#target=1&step=1")
    assert cards(again)[0].locator(".mi-sentence").text_content().startswith("Left:")


def test_what_belongs_together_lights_up(tmp_path, open_page):
    tab = open_page(write_report(two_targets(), tmp_path / "x.html"))
    (card,) = cards(tab)
    row = card.locator(".mi-row").nth(1)
    row.hover()
    assert card.locator(".mi-word.mi-lit").text_content() == "is"
    assert row.get_attribute("data-place") == card.locator(".mi-word.mi-lit").get_attribute("data-place")
    tab.page.mouse.move(2, 2)
    card.locator(".mi-row").nth(0).focus()
    lit = card.locator(".mi-lit")
    assert {one.get_attribute("data-place") for one in lit.all()} == {"2"}


def test_a_question_from_right_to_left_reads_so_and_each_word_has_its_own_numbers(tmp_path, open_page):
    said = ["", " מה", " הצבע", " של", " הכוכב"]
    result = make_result(said, produced=(" כחול",))
    one = explained(result, {2: -4.0, 4: -2.0, 1: -1.0}, needed=(2,), becomes={2: " אדום"}, answer=" כחול")
    tab = open_page(write_report(dataclasses.replace(result, answer=one.answer), tmp_path / "x.html"))
    (card,) = cards(tab)
    found = card.locator(".mi-question .mi-word").evaluate_all(
        "words => words.map((word) => [word.textContent, word.getBoundingClientRect().left, "
        "+word.style.getPropertyValue('--s'), word.title])"
    )
    found = found[1:]  # behind the token that begins the text
    assert [text for text, *_ in found] == [text.strip() for text in said[1:]]
    assert np.all(np.diff([left for _, left, *_ in found]) < 0)  # the first word on the right
    assert np.argsort([strength for *_, strength, _ in found]).tolist()[1:] == [0, 3, 1]
    assert ["4" in found[1][3], "2" in found[3][3], "1" in found[0][3]] == [True] * 3
    rows = card.locator(".mi-row").all()[:3]
    assert [row.locator(".mi-name").text_content().strip() for row in rows] == ["“הצבע”", "“הכוכב”", "“מה”"]
    widths = [row.locator(".mi-bar i").bounding_box()["width"] for row in rows]
    np.testing.assert_allclose(np.array(widths) / widths[0], [1, 0.5, 0.25], atol=0.03)


def test_a_word_that_is_clicked_is_chosen_in_every_part(tmp_path, open_page):
    """By click and by key; another click lets it go."""
    tab = open_page(write_report(two_targets(), tmp_path / "x.html"))
    (card,) = cards(tab)
    card.locator(".mi-word", has_text="is").click()
    tab.settle()
    assert "tokens=6" in tab.page.url
    assert tab.page.locator("#text .token.chosen").all_text_contents() == [" is"]
    chosen = card.locator(".mi-chosen")
    assert {one.get_attribute("data-positions") for one in chosen.all()} == {"6"}
    assert chosen.count() == 2  # the word and its row
    card.locator(".mi-row").first.focus()
    tab.press("Enter")
    assert "tokens=2" in tab.page.url
    tab.press("Enter")
    assert "tokens" not in tab.page.url


@pytest.mark.parametrize(
    ("stored", "sections"),
    [
        (lambda: make_explanation(), ["card", "routes-card"]),
        (lambda: knockouts(), ["knockouts-card"]),
        (lambda: whatif(), ["whatif-card"]),
        (lambda: Stored(answer=make_explanation(), flows=knockouts(), whatif=whatif()),
         ["card", "routes-card", "knockouts-card", "whatif-card"]),
        (lambda: make_result(), ["distances"]),
        (lambda: two_targets(), ["card", "distances"]),
    ],
    ids=["answer", "flows", "whatif", "three", "distances", "both"],
)  # fmt: skip
def test_each_result_shows_the_sections_it_has_tables_for(tmp_path, open_page, stored, sections):
    tab = open_page(write_report(stored(), tmp_path / "x.html"))
    assert shown(tab) == sections
    tab.press("ArrowLeft", "m", "e")  # which do nothing without distances


def test_prompts_of_other_kinds_share_a_page(tmp_path, open_page):
    tab = open_page(write_report({"a": two_targets(), "b": make_explanation(), "c": whatif()}, tmp_path / "x.html"))
    found = {}
    for number, name in enumerate("abc"):
        tab.select("prompt", number)
        found[name] = (shown(tab), len(cards(tab)), tab.texts("h1"))
    assert found["a"][:2] == (["overview", "card", "distances"], 1)
    assert found["b"][:2] == (["overview", "card", "routes-card"], 1)
    assert found["c"] == (["overview", "whatif-card"], 0, ["c"])


def test_effects_stay_a_part_of_distances(tmp_path, open_page):
    tab = open_page(write_report(with_effects(make_result()), tmp_path / "x.html"))
    assert tab["effect-part"].is_visible()


def test_cut_flows_are_drawn_as_long_as_they_are(tmp_path, open_page):
    tab = open_page(write_report(knockouts(), tmp_path / "x.html"))
    bars = tab.page.locator("#knockouts .mi-flow-bar").all()
    heights = [float(bar.get_attribute("height")) for bar in bars]
    assert len(heights) == 7  # the first of eight changes is 0
    np.testing.assert_allclose(np.array(heights) / heights[-1], np.arange(1, 8) / 7, atol=1e-3)


# --- saving -------------------------------------------------------------------------------------------------------------------


def picture_of(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


PARTS = ("card", "routes", "matrix", "knockouts", "whatif", "text", "images")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with all parts that are not charts."""
    found = two_targets()
    answer = dataclasses.replace(
        found.answer,
        matrix=np.ones((2, found.n_prompt), dtype=np.float32),
        targets=tuple(
            dataclasses.replace(one, routes=make_explanation().targets[0].routes) for one in found.answer.targets
        ),
    )
    stored = Stored(dataclasses.replace(found, answer=answer), answer, knockouts(), whatif())
    return write_report(stored, tmp_path_factory.mktemp("whole") / "x.html")


@pytest.fixture(scope="module")
def opened_as(chromium, whole):
    """The page with all parts, light at twice the size or dark, opened once each."""
    tabs = {"light": Tab(chromium, whole, color_scheme="light", device_scale_factor=2)}
    tabs["dark"] = Tab(chromium, whole, color_scheme="dark")
    yield tabs
    for tab in tabs.values():
        assert tab.faults == []
        tab.close()


@pytest.mark.parametrize("card", PARTS)
def test_every_part_is_saved_light_whatever_the_page_is(opened_as, card):
    tab = opened_as["dark"]
    content, name = tab.download(f"[data-card={card}] button >> nth=0")
    assert name == f"x-step0-{card}.png" or name == f"result-step0-{card}.png"
    pixels = picture_of(content)
    assert (pixels.reshape(-1, 3).min(axis=1) > 240).mean() > 0.3  # white
    assert len(np.unique(pixels.reshape(-1, 3) @ [2**16, 2**8, 1])) > 20  # not empty
    tab.settle()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"


def away(one, other):
    """How far two pictures are from each other, at half their size: edges are drawn a little differently."""
    difference = abs(one - other)[: len(one) // 2 * 2, : one.shape[1] // 2 * 2].mean(axis=-1)
    return float(difference.reshape(len(difference) // 2, 2, -1, 2).mean(axis=(1, 3)).mean())


@pytest.mark.parametrize("card", PARTS)
def test_a_saved_part_looks_as_it_does_in_the_page(opened_as, card):
    """Against the browser's own picture of it."""
    tab = opened_as["light"]
    saved = picture_of(tab.download(f"[data-card={card}] button >> nth=0")[0])
    unseen = tab.page.add_style_tag(content=".exports, .control, .mi-smoothing { visibility: hidden }")
    section = tab.page.locator(f"section:has([data-card={card}])").last
    with Image.open(io.BytesIO(section.screenshot())) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    unseen.evaluate("(style) => style.remove()")
    rows, columns = (min(one.shape[axis], seen.shape[axis]) for one in [saved] for axis in (0, 1))
    saved, seen = saved[:rows, :columns], seen[:rows, :columns]

    def apart(down, right):
        return away(np.roll(saved, (down, right), axis=(0, 1)), seen)

    here = min(apart(down, 0) for down in range(-3, 4))  # a picture of the page begins at whole pixels
    moved = min(apart(*by) for by in ((-8, 0), (8, 0), (0, -8), (0, 8)))  # by four pixels of the page
    assert here < 0.4 * moved


@pytest.mark.parametrize("card", PARTS)
def test_a_part_saved_as_vectors_is_shapes_and_texts(opened_as, card):
    tab = opened_as["dark"]
    content, name = tab.download(f"[data-card={card}] button:text-is('SVG')")
    assert name == f"result-step0-{card}.svg"
    drawing = ElementTree.fromstring(content)
    names = {one.tag.removeprefix(SVG) for one in drawing.iter()}
    assert "text" in names
    assert not names & {"foreignObject", "script", "style", "div", "span"}
    said = "".join("".join(one.itertext()) for one in drawing.iter(f"{SVG}text"))
    section = tab.page.locator(f"section:has([data-card={card}])").last
    there = section.evaluate("""(node) => {
        const copy = node.cloneNode(true);
        const unseen = "[hidden], .exports, .control, .mi-smoothing, title, .visually-hidden";
        for (const one of copy.querySelectorAll(unseen)) one.remove();
        return copy.textContent;
    }""")  # fmt: skip
    assert set(there.split())
    assert not [word for word in there.split() if word not in said]


def test_texts_saved_as_vectors_stand_where_the_page_has_them(tmp_path, open_page):
    result = make_result(["", "\u05e9\u05dc\u05d5\u05dd", " where", " is<b>"], grids=((2, 2),), produced=(" up",))
    found = explained(result, {5: -4.0, 6: -2.0}, answer=" up")
    tab = open_page(write_report(found, tmp_path / "x.html"))
    drawing = ElementTree.fromstring(tab.download("[data-card=card] button:text-is('SVG')")[0])
    section = tab.page.locator("section:has([data-card=card])").last.bounding_box()
    words = [word for word in tab.page.locator("#card .mi-word").all() if word.inner_text().strip()]
    for word in words:
        box, text = word.bounding_box(), word.inner_text().strip()
        same = [one for one in drawing.iter(f"{SVG}text") if "".join(one.itertext()) == text]
        middle = box["x"] + box["width"] / 2 - section["x"]
        assert min(abs(float(one.get("x")) - middle) for one in same) < 4, text
        assert all(abs(float(one.get("textLength")) - box["width"]) < 12 for one in same[:1]), text
    assert len(words) == 3
    assert "is<b>" in {word.inner_text().strip() for word in words}


def test_a_saved_picture_of_images_has_what_lies_over_them(tmp_path, open_page):
    tab = open_page(write_report(make_result(grids=((2, 2),)), tmp_path / "x.html"))
    tab.drag("opacity", 100)
    over = picture_of(tab.download("[data-card=images] button >> nth=0")[0])
    tab.drag("opacity", 0)
    bare = picture_of(tab.download("[data-card=images] button >> nth=0")[0])
    assert (abs(over - bare).max(axis=-1) > 8).sum() > 1000


def test_a_chart_is_saved_as_vectors_with_title_and_source(tmp_path, open_page):
    result = make_result()
    result = dataclasses.replace(result, meta={**result.meta, "model": "<b>tiny", "command": "mask-impact run x"})
    tab = open_page(write_report(result, tmp_path / "x.html"))
    content, name = tab.download("[data-card=heat] button:text-is('SVG')")
    assert name == "result-step0-heat.svg"
    text = content.decode()
    assert "Layers and tokens" in text
    assert "mask-impact \u00b7 <b>tiny \u00b7 mask-impact run x" in html.unescape(text)
    assert "<b>" not in text
    assert "<image" in text or text.count("<path") > 20


@pytest.mark.parametrize(("card", "section"), [("card", "card"), ("routes", "routes-card"), ("heat", "heat-card")])
def test_a_part_is_printed_alone(tmp_path, open_page, card, section):
    found = two_targets()
    stored = Stored(found, found.answer, knockouts(), whatif())
    tab = open_page(write_report({"x": stored, "y": make_explanation()}, tmp_path / "x.html"))
    if card == "routes":
        tab.select("prompt", 1)
    tab.page.emulate_media(media="print")
    tab.page.evaluate("""() => { window.print = () => {
        const visible = (one) => one.checkVisibility() && one.offsetHeight > 0;
        const parts = [...document.querySelectorAll("main section, header, footer")].filter(visible);
        window.printed = parts.map((one) => one.id || one.querySelector(".chart, h1")?.id || one.tagName);
    }; }""")
    tab.page.locator(f"[data-card={card}] button:text-is('PDF')").evaluate("(button) => button.click()")
    tab.wait_until("window.printed !== undefined")
    assert tab.page.evaluate("window.printed") == [section]
    tab.settle()
    tab.page.emulate_media(media="screen")
    assert len(shown(tab)) > 1


# --- for everyone -----------------------------------------------------------------------------------------------------------


def hostile():
    text = HOSTILE[0]
    found = make_explanation(names=(text, HOSTILE[4], "<|image_pad|>"))
    return Stored(
        answer=dataclasses.replace(found, meta={"prompt": text, "model": text}), flows=knockouts(), whatif=whatif(text)
    )


def test_texts_show_as_text_and_run_nothing(tmp_path, open_page):
    tab = open_page(write_report({text: hostile() for text in HOSTILE[:3]}, tmp_path / "x.html"))
    assert tab.texts("h1") == [HOSTILE[0]]
    for tag in ("img", "b > *", "script", "main svg script"):
        assert tab.page.locator(f"main {tag}").count() == 0, tag
    assert HOSTILE[0] in tab.texts("#card .mi-question")[0]


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script of axe-core, fetched by npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which fetches axe-core")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        [npm, "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if packed.returncode:
        pytest.skip(f"{AXE} is not to be had from the npm registry")
    shutil.unpack_archive(folder / packed.stdout.split()[-1], folder, "gztar", filter="data")
    return folder / "package" / "axe.min.js"


@pytest.mark.parametrize(("scheme", "size"), [*zip(("light", "dark"), SIZES, strict=True)], ids=["wide", "phone"])
def test_axe_finds_nothing_serious(tmp_path, chromium, axe, scheme, size):
    result = dataclasses.replace(with_effects(two_targets()), answer=two_targets().answer)
    stored = Stored(result=result, answer=result.answer, flows=knockouts(), whatif=whatif())
    path = write_report(stored, tmp_path / "x.html")
    tab = Tab(chromium, path, color_scheme=scheme, bypass_csp=True)
    tab.page.set_viewport_size({"width": size[0], "height": size[1]})
    tab.settle()
    tab.page.add_script_tag(path=axe)
    found = tab.page.evaluate("axe.run().then((found) => found.violations)")
    tab.close()
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []


def test_nothing_sticks_out_at_the_side(tmp_path, open_page):
    """In both schemes; a screenshot is kept where it is asked for."""
    stored = Stored(result=two_targets(), answer=two_targets().answer, flows=knockouts(), whatif=whatif())
    tab = open_page(write_report(stored, tmp_path / "x.html"), color_scheme="light")
    for (width, height), scheme in zip([*SIZES, (1024, 768)], ("light", "dark", "light"), strict=True):
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.wait_for_timeout(300)
        tab.keep_screenshot(f"card-{width}-{scheme}")
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_a_long_question_is_scrolled_to_its_strongest_word(tmp_path, open_page):
    result = make_result([f" w{number}" for number in range(900)], n_layers=2, n_heads=1)
    tab = open_page(write_report(explained(result, {870: -3.0, 5: -1.0}), tmp_path / "x.html"))
    box, word = (
        tab.page.locator(f"#card {one}").bounding_box() for one in (".mi-question", "[data-place='870'].mi-word")
    )
    assert box["y"] < word["y"] < box["y"] + box["height"]


# --- sizes ------------------------------------------------------------------------------------------------------------------


def one_token():
    return explained(make_result(["a"], sinks=()), {0: -2.0}, becomes={0: "b"})


def many():
    """3,000 tokens and 40 images of 16 cells."""
    result = make_result(["", *[f" w{number}" for number in range(2360)]], n_layers=2, n_heads=1, grids=((4, 4),) * 40)
    return explained(result, {at: -3.0 / (1 + at % 97) for at in range(0, 3000, 7)}, needed=(7, 700), becomes={7: "b"})


def nothing():
    """No unit is content, and nothing was measured."""
    found = make_explanation()
    (target,) = found.targets
    nan = np.full(3, np.nan, dtype=np.float32)
    none = np.zeros(3, dtype=bool)
    bare = dataclasses.replace(
        target,
        logprob_change=nan,
        kl_divergence=nan,
        top1=np.full(3, -1),
        differs=none,
        control=none,
        evidence=(),
        routes=(),
    )
    return dataclasses.replace(found, targets=(bare,))


@pytest.mark.parametrize("make", [one_token, many, nothing])
def test_little_and_much_fit_the_page(tmp_path, open_page, make):
    tab = open_page(write_report(make(), tmp_path / "x.html"))
    (card,) = cards(tab)
    assert card.locator(".mi-sentence").text_content()
    assert len(tab.texts("h1")[0]) < 170
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.wait_for_timeout(200)
        assert card.locator(".mi-sentence").bounding_box()["y"] < 1.2 * height
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.keep_screenshot(f"card-{make.__name__}-{width}")
