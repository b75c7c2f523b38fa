"""Pixels, parts of an image's features and the vision tower in a report's page: every number that is shown is one of the record,
each fill, route, layer and target can be chosen by pointer, key and link, files hold the same, and the page fits a telephone.

Screenshots go to the folder that REPORT_SCREENSHOTS names.
"""

import csv
import io
import math

import browser
import numpy as np
import pytest
from looked import make_deepstack, make_patches, make_tower
from PIL import Image
from tab import percent, table_of

from mask_impact.results.deepstack_files import save_deepstack
from mask_impact.results.patch_files import save_patches
from mask_impact.results.stored import Stored
from mask_impact.results.tower_files import save_tower
from mask_impact.views.report import write_report
from mask_impact.views.text import escape

pytestmark = browser.MARKS
VIEWS = [("total", "blur"), ("total", "gray"), ("own tokens", "blur"), ("other tokens", "blur"), ("keys hidden", "")]
PATCHES, DEEPSTACK, TOWER = make_patches(), make_deepstack(), make_tower()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    stored = Stored(patches=PATCHES, deepstack=DEEPSTACK, tower=TOWER)
    return write_report(stored, tmp_path_factory.mktemp("looked") / "page.html")


def said(value):
    """A number of nats as cards say it."""
    text = f"{value:.2f}" if abs(value) >= 0.995 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def name_of(region):
    return escape(f"{region.level} {region.name}" if region.level in ("token", "block") else region.name)


def expected_rows(target, route, fill):
    """Of each region in their order [name, number, probabilities, what becomes of the answer]."""
    rows = [row for row in range(len(target.place)) if (target.route[row], target.fill[row]) == (route, fill)]
    found = []
    for row in sorted(rows, key=lambda row: target.logprob_change[row]):
        change = float(target.logprob_change[row])
        then = min(target.probability * math.exp(change), 1)
        text = escape(target.top1_texts[target.top1[row]]).strip()
        becomes = f"without it: “{text}”" if target.differs[row] else "the answer stays"
        left = f"{percent(target.probability)} → {percent(then)}"
        found.append([name_of(PATCHES.regions[target.place[row]]), said(change), left, becomes])
    return found


def shown_rows(tab):
    return tab.page.evaluate(
        """[...document.querySelectorAll("#patches .mi-row")].filter((row) => row.offsetHeight).map((row) => {
            const then = row.querySelector(".mi-then").cloneNode(true), small = then.querySelector("small");
            small.remove();
            return [row.querySelector("b").textContent, row.querySelector(".mi-number").textContent,
                    small.textContent, then.textContent.trim()];
        })"""
    )


def choose(tab, group, value):
    tab.page.locator(f"#{group} input[value='{value}']").check(force=True)
    tab.settle()


@pytest.mark.parametrize("number", [0, 1])
def test_every_number_of_pixels_is_one_of_the_record(page, open_page, number):
    tab, target = open_page(page, f"#looked={number}"), PATCHES.targets[number]
    for route, fill in VIEWS:
        choose(tab, "route", route)
        if fill:
            choose(tab, "fill", fill)
        assert shown_rows(tab) == expected_rows(target, route, fill), (route, fill)
        assert [*tab.page.locator("#fill").is_visible() * ["fill"]] == [*bool(fill) * ["fill"]]
    other = PATCHES.targets[1 - number]
    assert shown_rows(tab) != expected_rows(other, "keys hidden", "")  # other numbers would be found


def test_under_the_pointer_is_the_smallest_region_and_its_row_is_lit(page, open_page):
    tab = open_page(page)
    tab["patches-card"].scroll_into_view_if_needed()
    (svg,) = [one for one in tab.page.locator("#patches svg.mi-picture").all() if one.is_visible()]
    box = svg.bounding_box()
    target = PATCHES.targets[0]
    for (x, y), place in {(20, 20): 2, (20, 70): 3, (95, 70): 1, (75, 20): 6, (20, 50): 4}.items():
        tab.page.mouse.move(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 80)
        lit = [
            one.locator(".mi-name b").text_content()
            for one in tab.page.locator("#patches .mi-row.mi-lit").all()
            if one.is_visible()
        ]
        assert lit == [name_of(PATCHES.regions[place])], (x, y)
        row = next(row for row in range(len(target.place)) if target.place[row] == place)
        tip = tab.page.locator("#patches path.mi-lit title").first.text_content()
        assert tip.startswith(f"{name_of(PATCHES.regions[place])}: {said(float(target.logprob_change[row]))} nats, KL ")


def test_keys_and_links_choose_and_a_focused_row_lights_its_region(page, open_page):
    tab = open_page(page, "#route=total&fill=gray&looked=1")
    assert shown_rows(tab) == expected_rows(PATCHES.targets[1], "total", "gray")
    tab.page.locator("#fill input:checked").focus()
    tab.press("ArrowLeft")
    assert shown_rows(tab) == expected_rows(PATCHES.targets[1], "total", "blur")
    tab.page.locator("#route input:checked").focus()
    tab.press("ArrowRight", "ArrowRight")
    assert shown_rows(tab) == expected_rows(PATCHES.targets[1], "other tokens", "blur")
    tab.press("ArrowLeft")
    assert shown_rows(tab) == expected_rows(PATCHES.targets[1], "own tokens", "blur")
    assert "route=own+tokens" in tab.page.url
    for _ in range(2):  # a picture that can be scrolled takes the focus as well
        tab.press("Tab")
        if tab.page.locator("#patches .mi-row:focus").count():
            break
    focused = tab.page.locator("#patches .mi-row:focus .mi-name b").text_content()
    assert focused == expected_rows(PATCHES.targets[1], "own tokens", "blur")[0][0]
    assert [one.is_visible() for one in tab.page.locator("#patches path.mi-lit").all()].count(True) == 1
    tab.select("patches-target", 0)
    assert shown_rows(tab) == expected_rows(PATCHES.targets[0], "own tokens", "blur")


def answer_of(target, kept):
    text = escape(DEEPSTACK.answers[kept]).strip()
    return f"“{text}”{' (as with all)' * (DEEPSTACK.answers[kept] == DEEPSTACK.generated_text)}" if text else "nothing"


@pytest.mark.parametrize("number", [0, 1])
def test_every_number_of_features_is_one_of_the_record(page, open_page, number):
    tab, target = open_page(page, f"#looked={number}"), DEEPSTACK.targets[number]
    (shown,) = [one for one in tab.page.locator("#deepstack > div").all() if one.is_visible()]
    rows = shown.locator(".mi-parts tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    expected = []
    for place, where in enumerate(("the tower's end, in the place of embeddings", "vision layer 5, behind decoder layer 0",
                                   "vision layer 11, behind decoder layer 1")):  # fmt: skip
        alone, without = 2**place, 7 - 2**place
        numbers = [said(float(target.logprob_change[kept])) for kept in (alone, without)]
        answers = [answer_of(target, kept) for kept in (alone, without)]
        share = percent(DEEPSTACK.norm_share[place])
        name = DEEPSTACK.parts[place].name + where
        expected.append([name, "", said(target.shapley[place]), numbers[0], answers[0], numbers[1], answers[1], share])
    assert rows == expected
    widths = shown.locator(".mi-parts .mi-bar i").evaluate_all(
        "bars => bars.map((bar) => parseFloat(bar.style.width) / 100)"
    )
    assert widths == pytest.approx(abs(target.shapley) / abs(target.shapley).max(), abs=1e-4)
    cells = shown.locator(".mi-together tbody td").all_text_contents()
    assert cells == [
        "–" if one == other else said(target.interaction[one, other]) for one in range(3) for other in range(3)
    ]
    text = shown.inner_text()
    assert "replaced by the same picture with the region blanked" in text
    assert "image 0 rows 0 columns 1 (2 image tokens)" in text
    shown.locator("summary").click()
    sets = shown.locator("details tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    for kept, (name, change, kl, left, says) in enumerate(sets):
        assert name == DEEPSTACK.kept(kept)
        assert change == (said(float(target.logprob_change[kept])) if kept < 7 else "0")
        assert kl == (said(float(target.kl_divergence[kept])) if kept < 7 else "0")
        assert left == percent(target.probability * math.exp(float(target.logprob_change[kept])))
        assert says == answer_of(target, kept)


@pytest.mark.parametrize("kind", ["patches", "deepstack"])
def test_saved_files_hold_the_table_and_the_picture(page, open_page, tmp_path, kind):
    tab = open_page(page)
    content, name = tab.download(f"[data-card={kind}] button:text-is('CSV')")
    assert name == f"result-{kind}.csv"
    {"patches": save_patches, "deepstack": save_deepstack}[kind](
        {"patches": PATCHES, "deepstack": DEEPSTACK}[kind], tmp_path / "x", ["csv"]
    )
    with (tmp_path / f"x.{kind}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    shown_header, shown = table_of(content)
    assert shown_header == header
    numbers = {"logprob_change", "kl_divergence", "shapley", "norm_share"}
    for one, other in zip(shown, rows, strict=True):
        for column, a, b in zip(header, one, other, strict=True):
            assert (float(a or "nan") == float(b or "nan") or a == b) if column in numbers else a == b, column
    content, name = tab.download(f"[data-card={kind}] button:text-is('PNG')")
    with Image.open(io.BytesIO(content)) as picture:
        assert (name, picture.format) == (f"result-{kind}.png", "PNG")
        assert len(picture.convert("RGB").resize((90, 60)).getcolors(5400)) > 20
    content, name = tab.download(f"[data-card={kind}] button:text-is('SVG')")
    text = content.decode()
    assert ("token [1, 0]" if kind == "patches" else "level 1") in text
    assert (text.count("<image") >= 1) == (kind == "patches")
    assert "Pixels replaced by" not in text  # what chooses is left out


@pytest.mark.parametrize(("theme", "width", "height"), [("light", 1440, 900), ("dark", 390, 844)])
def test_the_sections_fit_the_window(page, open_page, width, height, theme):
    tab = open_page(page, f"#theme={theme}")
    tab.page.set_viewport_size({"width": width, "height": height})
    for kind in ("patches", "deepstack", "tower"):
        tab.page.evaluate(f"document.getElementById('{kind}-card').scrollIntoView()")
        tab.keep_screenshot(f"{kind}-{width}-{theme}")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    cut = tab.page.evaluate(
        """[...document.querySelectorAll("#patches .mi-number, #tower .mi-number, #deepstack :is(.number, .mi-together td)")]
            .filter((one) => one.offsetHeight && one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"""
    )
    assert cut == []


def most_said(numbers, error=None):
    """What is said below a map of one layer, or of their mean."""
    row, column = np.unravel_index(int(numbers.argmax()), numbers.shape)
    doubt = "" if error is None else f" ± {error[row, column]:.3f}"
    return f"read most patch [{row}, {column}], {numbers.max():.3f}{doubt}; median {np.median(numbers):.3f}"


def test_a_map_of_the_tower_is_of_the_layer_and_the_kind_that_are_chosen(page, open_page):
    tab, one = open_page(page), TOWER.readings[0]
    most = tab.page.locator("#tower-reads .mi-most")
    assert most.text_content() == f"mean of all layers: {most_said(one.attention.mean(axis=0))}"
    opacities = []
    for layer in range(3):
        tab.press("ArrowRight")  # without distances, keys choose the tower's layer
        assert most.text_content() == f"layer {layer}: {most_said(one.attention[layer])}"
        opacities.append(
            tab.page.evaluate(
                """(() => {
                    const canvas = document.querySelector("#tower-reads canvas");
                    const [wide, high] = [canvas.width / 4, canvas.height / 4];
                    const context = new OffscreenCanvas(canvas.width, canvas.height)
                        .getContext("2d", { willReadFrequently: true });
                    context.drawImage(canvas, 0, 0);
                    const at = (row, column) => context
                        .getImageData((column + 0.5) * wide, (row + 0.5) * high, 1, 1).data[3];
                    return [0, 1, 2, 3].map((row) => [0, 1, 2, 3].map((column) => at(row, column)));
                })()"""
            )
        )
    expected = 0.8 * np.sqrt(one.attention / one.attention.max())  # one scale for all layers
    np.testing.assert_allclose(np.array(opacities) / 255, expected, atol=0.006)
    assert not np.allclose(np.array(opacities)[::-1] / 255, expected, atol=0.006)
    assert "tower=2" in tab.page.url
    tab.choose("tower-shown", "full")
    assert most.text_content() == f"layer 2: {most_said(one.full[2], one.error[2])}"
    tab.click("#tower-reads [data-layer='1'] >> nth=0")
    assert most.text_content() == f"layer 1: {most_said(one.full[1], one.error[1])}"
    assert tab.page.locator("#tower-reads .mi-now").count() == 3  # of each row of bars the layer's
    tab.drag("tower-layer", 0)
    assert most.text_content() == f"layer 0: {most_said(one.full[0], one.error[0])}"
    tab.choose("tower-range", "all")
    assert most.text_content() == f"mean of all layers: {most_said(one.full.mean(axis=0))}"


def test_what_matters_in_the_tower_is_shown_of_each_target_beside_what_is_read(page, open_page):
    tab = open_page(page)
    for number, target in enumerate(TOWER.targets):
        tab.select("tower-target", number)
        (shown,) = [one for one in tab.page.locator("#tower > div").all() if one.is_visible()]
        rows = sorted(range(7), key=lambda row: target.logprob_change[row])
        assert shown.locator(".mi-row .mi-name b").all_text_contents() == [
            name_of(TOWER.regions[target.place[row]]) for row in rows
        ]
        numbers = [said(float(target.logprob_change[row])) for row in rows]
        assert shown.locator(".mi-row .mi-number").all_text_contents() == numbers
        bars = shown.locator(".mi-layers .mi-lane-bar i").evaluate_all(
            "bars => bars.map((bar) => [bar.className, parseFloat(bar.style.height)])"
        )
        assert bars == [["mi-for", 100.0], ["mi-against", 25.0], ["mi-for", 50.0]]
    assert "it is read, and it does not matter" in tab["tower"].inner_text()


def test_the_tower_s_two_tables_are_saved_as_its_files_have_them(page, open_page, tmp_path):
    tab = open_page(page)
    save_tower(TOWER, tmp_path / "x", ["csv"])
    for card, table in (("tower-reads", "tower"), ("tower", "tower_effects")):
        content, name = tab.download(f"[data-card={card}] button:text-is('CSV')")
        assert name == f"result-{card}.csv"
        with (tmp_path / f"x.{table}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        shown_header, shown = table_of(content)
        assert (shown_header, len(shown)) == (header, len(rows))
        for one, other in zip(shown, rows, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a == b or np.float32(a) == np.float32(b)
    content, _ = tab.download("[data-card=tower-reads] button:text-is('SVG')")
    text = content.decode()
    assert text.count("<image") >= 2  # the picture and its map
    assert "What matters to the answer" not in text
