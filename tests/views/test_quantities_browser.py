"""What the map, the prompt and the images of a report's page show: measured effect, contribution, estimated effect or local
impact. Every number is one that is computed here from the record."""

import dataclasses

import browser
import numpy as np
import pytest
from explained import explained
from synthetic import make_result, with_effects
from tab import cell_place, close_to, level, percent, table_of

from mask_impact.results.explanations import LayerEstimates
from mask_impact.results.store import load_result, save
from mask_impact.results.stored import Stored
from mask_impact.views.report import write_report

pytestmark = browser.MARKS

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
N_LAYERS = 4
WORD = (7, 8)  # "un" "seen", joined


def estimates(n, seed):
    rng = np.random.default_rng(seed)
    return LayerEstimates(*(rng.normal(size=(2, N_LAYERS, n)) * [[[3.0]], [[0.01]]]).astype(np.float32))


def make(effects=False):
    """An image of six cells, a word of two tokens, a sink at 0; two produced tokens, of which the first alone is explained."""
    result = make_result(["The", "un", "seen", " cat"], n_steps=2, n_layers=N_LAYERS, grids=((2, 3),))
    found = explained(result, {9: -2.0}, extra=(("unseen", WORD, -1.0, -0.5),), by_layer=estimates(10, 5))
    return with_effects(found, texts=(" other",)) if effects else found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """As it is stored and read again."""
    folder = tmp_path_factory.mktemp("quantities")
    save(make(), folder / "run", ["csv"])
    result = load_result(folder / "run")
    return result, write_report(folder / "run")


def values_of(result, name):
    """[layer, position], NaN for the sink."""
    values = getattr(result.answer.targets[0].by_layer, name).astype(float)
    values[:, 0] = np.nan
    return values


def columns(values, unfolded=False):
    """The sink, the image's cells together (or each), the word's tokens together, the last one."""
    image = list(values[:, 1:7].T) if unfolded else [values[:, 1:7].sum(axis=1)]
    return np.stack([values[:, 0], *image, values[:, 7:9].sum(axis=1), values[:, 9]], axis=1)


def shown(tab):
    return tab.page.evaluate(
        "['effect', 'estimates', 'heat'].filter((name) => document.getElementById(`${name}-card`).offsetHeight > 0)"
    )


def choices(tab):
    return [
        text for label in tab.page.locator("#shown label").all() if label.is_visible() for text in [label.inner_text()]
    ]


def test_estimates_are_stored_and_read_again(files, tmp_path):
    (target,) = make().answer.targets
    for form in ("csv", "json", "parquet"):
        save(make(), tmp_path / form, [form])
        (read,) = load_result(tmp_path / form).answer.targets
        for name in ("contribution", "estimate"):
            np.testing.assert_array_equal(getattr(read.by_layer, name), getattr(target.by_layer, name))


@pytest.mark.parametrize("name", ["contribution", "estimate"])
@pytest.mark.parametrize("unfolded", [False, True])
def test_the_map_of_estimates_adds_up_images_and_words(tab, files, name, unfolded):
    result, _ = files
    tab.choose("shown", name)
    if unfolded:
        tab.page.locator("#estimates-card .folds button").click()
        tab.settle()
    assert shown(tab) == ["estimates"]
    expected = columns(values_of(result, name), unfolded)
    np.testing.assert_allclose(tab.matrix("estimates"), expected, rtol=1e-5)
    levels = tab.matrix("estimates", "z")
    most = np.nanmax(np.abs(expected))
    np.testing.assert_allclose(np.abs(levels), level(np.abs(expected), "sqrt", 0, most), rtol=1e-5)
    assert (np.sign(levels[:, 1:]) == np.sign(expected[:, 1:])).all()


def test_contribution_comes_first_and_the_prompt_and_image_are_shaded_by_it(tab, files):
    result, _ = files
    assert choices(tab) == ["Contribution", "Estimated effect", "Local impact"]
    for layers, where in ((slice(None), f"layers 0{DASH}3"), ([2], "layer 2")):
        if layers == [2]:
            tab.drag("layer", 2)
        scores = values_of(result, "contribution")[layers].sum(axis=0)
        scores[7:9] = scores[7:9].sum()
        for position, label in tab.labels().items():
            if position in (7, 8, 9):
                assert f"contribution {signed(scores[position])}, estimated, {where}" in label
        assert "attention sink, left out" in tab.labels()[0]
        assert signed(values_of(result, "contribution")[layers][:, 1:7].sum()) in tab["images"].text_content()
        shades = {position: shade(tab, position) for position in (8, 9)}
        for position, (red, _, blue) in shades.items():
            assert (red > blue) == (scores[position] < 0)  # orange speaks for the answer, blue against it


def signed(value):
    size = float(f"{abs(value):.3g}")
    return f"{MINUS if value < 0 else '+'}{size:g} nats"


def shade(tab, position):
    text = tab.page.locator(f"#text [data-position='{position}']").evaluate(
        "(one) => getComputedStyle(one).backgroundColor"
    )
    return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]


def test_the_chosen_are_those_that_speak_most_for_the_answer_and_the_profile_is_theirs(tab, files):
    result, _ = files
    values = values_of(result, "contribution")
    totals = np.nan_to_num(values.sum(axis=0))
    expected = [j for j in np.argsort(totals, kind="stable") if totals[j] < 0][:3]
    assert [int(text.split()[0]) for text in tab.texts("#chips button:first-child")] == expected
    for nth, position in enumerate(expected):
        np.testing.assert_allclose(tab.chart("profile", nth)["y"], values[:, position], rtol=1e-6)
    assert not tab["profile-unit"].is_visible()
    tab.choose("shown", "impact")
    assert tab["profile-unit"].is_visible()


def test_a_word_is_chosen_whole(tab):
    tab.click("#text [data-position='8']")
    assert tab.texts("#chips button:first-child") == ['7 "un"', '8 "seen"']
    assert tab.page.locator("#text .chosen").count() == 2
    tab.click("#text [data-position='7']")
    assert len(tab.texts("#chips button:first-child")) == 3


def test_in_the_map_of_impact_a_word_shows_its_strongest_token(tab, files):
    result, _ = files
    tab.choose("shown", "impact")
    l2 = result.steps[0].l2[:, :, 0].astype(float)
    close_to(tab.matrix("heat")[:, 2], l2[:, 7:9].max(axis=1))
    tab.page.mouse.move(*cell_place(tab, 1, 2))
    tab["tip"].wait_for(state="visible")
    lines = tab["tip"].text_content().split("\n")
    assert lines[0] == f'layer 1 · positions 7{DASH}8 · "unseen"'
    total = l2[1, 1:].sum()
    assert lines[-1] == f"together {percent(l2[1, 7:9].sum() / total)} of the layer"


def test_a_token_that_is_not_explained_has_local_impact_alone(tab):
    tab.press("ArrowUp")
    assert shown(tab) == ["heat"]
    assert choices(tab) == []
    tab.press("ArrowDown")
    assert shown(tab) == ["estimates"]


def test_its_numbers_are_saved(tab, files):
    result, _ = files
    header, rows = table_of(tab.download("[data-card=estimates] button >> nth=1")[0])
    assert header == ["generation_step", "layer", "token_masked", "token_position", "contribution", "estimate_local"]
    (target,) = result.answer.targets
    for column, name in ((4, "contribution"), (5, "estimate")):
        saved = np.array([row[column] for row in rows], dtype=np.float32).reshape(N_LAYERS, 10)
        np.testing.assert_array_equal(saved, getattr(target.by_layer, name))
    header, rows = table_of(tab.download("[data-card=text] button >> nth=1")[0])
    scores = {int(row[4]): row for row in rows}
    assert scores[9][header.index("quantity")] == "contribution"
    expected = values_of(result, "contribution")[:, 9].sum()
    assert float(scores[9][-1]) == pytest.approx(expected, rel=1e-6)


def test_a_measured_effect_comes_before_all_others(tmp_path, open_page):
    result = make(effects=True)
    tab = open_page(write_report(result, tmp_path / "x.html"))
    assert choices(tab) == ["Measured effect", "Contribution", "Estimated effect", "Local impact"]
    assert shown(tab) == ["effect"]
    change = result.steps[0].effect.logprob_change[:, 9].astype(float)
    strongest = max(np.where(np.abs(change) > np.float32(1e-4), change, 0), key=abs)
    assert f"effect {signed(strongest)}, strongest of layers 0{DASH}3" in tab.labels()[9]
    for position, nth in zip(
        (text.split()[0] for text in tab.texts("#chips button:first-child")), range(3), strict=True
    ):
        close_to(tab.chart("profile", nth)["y"], result.steps[0].effect.logprob_change[:, int(position)])
    for name in ("contribution", "impact", "estimate", "effect"):
        tab.choose("shown", name)
        wanted = {"impact": "heat", "effect": "effect"}.get(name, "estimates")
        assert shown(tab) == [wanted]


def test_several_targets_have_each_its_own(tmp_path, open_page):
    """The estimates are those of the target that has the produced token."""
    result = make()
    other = explained(result, {2: -1.0}, steps=(1,), by_layer=estimates(11, 6)).answer.targets
    answer = dataclasses.replace(result.answer, targets=(*result.answer.targets, *other))
    result = dataclasses.replace(result, answer=answer)
    tab = open_page(write_report({"x": Stored(result, answer)}, tmp_path / "x.html"))
    for step, target in enumerate(answer.targets):
        np.testing.assert_allclose(tab.matrix("estimates")[:, -1 - step], target.by_layer.contribution[:, 9], rtol=1e-6)
        tab.press("ArrowUp")
