"""What a page shows of pixels, parts of features and the vision tower, without a browser: who is in it, texts that run nothing,
one file."""

import dataclasses
import re

import numpy as np
import pytest
from looked import META, make_deepstack, make_patches, make_tower
from pages import HOSTILE, Page, cleaned
from stored_samples import make_knockouts

from mask_impact.commands.main import main
from mask_impact.findings.looked import by_window, read_by_region, read_in_all
from mask_impact.results.deepstack_files import save_deepstack
from mask_impact.results.flow_files import save_flows
from mask_impact.results.patch_files import save_patches
from mask_impact.results.stored import Stored
from mask_impact.results.tower_files import save_tower
from mask_impact.views.overview import overview_row
from mask_impact.views.patches_html import patches_html
from mask_impact.views.report import build_report
from mask_impact.views.tower_html import readings_html, tower_html, tower_said


@pytest.fixture
def folder(tmp_path):
    """A name with pixels, features, a tower and cut flows; one with pixels, one with a tower alone."""
    save_patches(make_patches(), tmp_path / "all", ["csv"])
    save_deepstack(make_deepstack(), tmp_path / "all", ["parquet"])
    save_flows(make_knockouts(images=["picture0.png"]), tmp_path / "all", ["json"])
    save_tower(make_tower(), tmp_path / "all", ["json"])
    save_patches(make_patches(meta=META | {"prompt": "What else?"}), tmp_path / "only", ["json"])
    save_tower(make_tower(meta=META | {"prompt": "And the tower?"}, effects=False), tmp_path / "tower", ["csv"])
    return tmp_path


def test_report_opens_a_name_alone_and_with_others_and_a_folder(folder, capsys):
    assert main(["report", str(folder / "all")]) == 0
    page = Page((folder / "all.html").read_bytes())
    (one,) = page.data["prompts"]
    every = ["flows", "patches", "deepstack", "tower"]
    assert one["tables"] == every
    assert [one["looked"][kind]["targets"] for kind in every[1:]] == [[" Paris", "."]] * 3
    assert main(["report", str(folder), "--output", str(folder / "both.html")]) == 0
    page = Page((folder / "both.html").read_bytes())
    assert [one["tables"] for one in page.data["prompts"]] == [every, ["patches"], ["tower"]]
    text = (folder / "both.html").read_text()
    assert text.count("Of 7 regions, token [1, 0] matters most.") >= 2  # rows of the table, and a section
    assert "What else?" in text
    assert "Whether the answer needs what is read was not asked (--no-effects)." in text
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["patches", "deepstack", "tower"])
def test_a_damaged_file_is_one_line_and_what_else_there_is_is_shown(folder, capsys, kind):
    (folder / f"all.{kind}.meta.json").write_text('{"schema_version": 1, "run": 5}')
    assert main(["report", str(folder / f"all.{kind}.meta.json")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"mask-impact report: error: \S+all.{kind}.meta.json is not the meta file of a result: .*\n", said
    )
    assert main(["report", str(folder / "all")]) == 0
    assert f"Left out: {folder / f'all.{kind}.meta.json'} is not the meta file" in capsys.readouterr().err


def hostile(one, text):
    """The record with a text in every place that has one."""
    targets = [
        dataclasses.replace(target, text=text, top1_texts=dict.fromkeys(target.top1_texts, text))
        for target in one.targets
    ]
    given = {"targets": tuple(targets), "generated_text": text, "meta": {**one.meta, "prompt": text, "model": text}}
    if hasattr(one, "regions"):
        given["regions"] = tuple(
            dataclasses.replace(region, name=f"{text}{at}") for at, region in enumerate(one.regions)
        )
    if hasattr(one, "answers"):
        given |= {"region": text, "answers": dict.fromkeys(one.answers, text)}
    return dataclasses.replace(one, **given)


def saying(text):
    """A stored result of all kinds with a text in every place that has one, and its page."""
    made = {"patches": make_patches(), "deepstack": make_deepstack(), "tower": make_tower()}
    stored = Stored(**{kind: hostile(one, text) for kind, one in made.items()})
    return stored, Page(build_report(stored).html)


@pytest.fixture(scope="module")
def plain_tags():
    return [tag for tag, _, _ in saying("x")[1].elements]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text, plain_tags):
    stored, page = saying(text)
    assert [tag for tag, _, _ in page.elements] == plain_tags
    assert page.data["prompts"][0]["looked"]["patches"]["targets"][0] == cleaned(text)
    assert overview_row("a", stored)["how"] == "measured"


def covered(svg_path, x, y):
    """Whether a point is inside a path of rectangles `MxyhWvHh-Wz`, by the even-odd rule."""
    n = 0
    for left, top, wide, high in re.findall(r"M(\S+) (\S+?)h([^v]+)v([^h]+)h-[^z]+z", svg_path):
        n += float(left) < x < float(left) + float(wide) and float(top) < y < float(top) + float(high)
    return n % 2 == 1


def smallest(found, target, fill, x, y):
    """Of the regions that were asked about, patches left out, the row of the smallest around a point."""
    rows = [row for row in range(len(target.place)) if (target.fill[row], target.route[row]) == (fill, "total")]
    areas = {}
    for row in rows:
        region = found.regions[target.place[row]]
        left, top, right, bottom = region.box
        if region.level != "patch" and left < x < right and top < y < bottom:
            areas[row] = (right - left) * (bottom - top)
    return min(areas, key=areas.get)


def tinted_rows(html, x, y):
    """The rows of the paths with a tint that cover a point, in the first view."""
    first = html.split("data-route=")[1]
    paths = re.findall(r'<path class="mi-cell ([^"]*)"[^>]* d="([^"]*)"[^>]*data-place="(\d+)"', first)
    return [int(row) for look, path, row in paths if "mi-clear" not in look and covered(path, x, y)]


def test_each_point_of_an_image_has_the_colour_of_its_smallest_region_alone():
    found = make_patches()
    target = found.targets[0]
    html = patches_html(found)[0]
    strong = target.logprob_change / abs(target.logprob_change).max()
    n = 0
    for x in range(3, 100, 7):
        for y in range(3, 80, 7):
            row = smallest(found, target, "blur", x, y)
            expected = [row] if abs(strong[row]) >= 0.02 else []
            assert tinted_rows(html, x, y) == expected, (x, y)
            n += bool(expected)
    assert n > 50
    without_holes = re.sub(r'd="(M[^M"]*)M[^"]*"', r'd="\1"', html)
    assert len(tinted_rows(without_holes, 20, 60)) > 1  # a drawing without them would be found


def test_patches_alone_have_tints_of_their_own():
    found = make_patches()
    rows = [row for row, place in enumerate(found.targets[0].place) if found.regions[place].level == "patch"]
    target = found.targets[0]
    fields = {
        name: getattr(target, name)[rows] for name in ("place", "logprob_change", "kl_divergence", "top1", "differs")
    }
    texts = {name: tuple(getattr(target, name)[row] for row in rows) for name in ("fill", "route")}
    alone = dataclasses.replace(target, **fields, **texts, found=5)
    html = patches_html(dataclasses.replace(found, targets=(alone,)))[0]
    assert tinted_rows(html, 30, 50) != []
    assert tinted_rows(html, 80, 20) == []


def test_a_sentence_tells_what_is_read_from_what_matters():
    found = make_tower()
    target = found.targets[0]
    read = "Read most over all layers: patch [2, 1]. Hidden, it changes “Paris” by \N{MINUS SIGN}0.002 nats: it is read, and "
    said = tower_said(found, target)
    assert (
        said
        == f"{read}it does not matter. Of 7 regions, token [1, 0] matters most: with it hidden, the answer becomes “<b>”."
    )
    calm = dataclasses.replace(target, logprob_change=0.001 * target.logprob_change, differs=target.differs & False)
    assert tower_said(found, calm).endswith("None of the 7 regions that were hidden matters: 0.0013 nats at most.")
    needed = dataclasses.replace(found, most_read=3)
    assert "by \N{MINUS SIGN}1.25 nats: it is read, and it matters." in tower_said(needed, target)
    likelier = dataclasses.replace(
        target, logprob_change=abs(target.logprob_change), differs=target.differs & False, found=5
    )
    assert tower_said(found, likelier).endswith("The answer needs none of the 7 regions that were hidden.")


def test_the_bars_over_layers_are_the_sum_and_the_means_of_regions_and_the_rest():
    found = make_tower()
    numbers = found.readings[0].attention
    np.testing.assert_allclose(read_in_all(found.readings[0]), [layer.sum() for layer in numbers], rtol=1e-6)
    (_, inside), (name, rest) = read_by_region(found, 0)
    own = [[layer[row][column] for row, column in ((0, 2), (0, 3), (1, 3))] for layer in numbers]
    np.testing.assert_allclose(inside, np.mean(own, axis=1), rtol=1e-6)
    assert name == "the rest"
    np.testing.assert_allclose(rest, (numbers.sum(axis=(1, 2)) - np.sum(own, axis=1)) / 13, rtol=1e-5)
    # The box 60-90 x 10-30 has some of columns 2 and 3, rows 0 and 1, of 4 x 4 patches of 25 x 20 pixels.
    (_, boxed), _ = read_by_region(dataclasses.replace(found, patches={}), 0)
    np.testing.assert_allclose(boxed, numbers[:, :2, 2:].mean(axis=(1, 2)), rtol=1e-6)
    ((region, change),) = by_window(found, found.targets[0])
    assert (region.called, change.tolist()) == ("token [1, 0]", [-0.5, 0.125, -0.25])
    html = readings_html(found)
    heights = [float(one) for one in re.findall(r'mi-read" style="height:([0-9.]+)%', html)]
    totals = read_in_all(found.readings[0])
    assert heights[:3] == pytest.approx((100 * totals / totals.max()).tolist(), abs=0.01)


def test_where_no_window_matters_no_bars_are_drawn():
    found = make_tower()
    assert "mi-layers" in tower_html(found)[0]
    target = found.targets[0]
    calm = dataclasses.replace(
        target, logprob_change=target.logprob_change * np.float32(0.001), differs=target.differs & False
    )
    html = tower_html(dataclasses.replace(found, targets=(calm,)))[0]
    assert "mi-layers" not in html
    assert "Hidden in the 2 layers of the tower around a layer, nothing matters: 0.0005 nats at most." in html
