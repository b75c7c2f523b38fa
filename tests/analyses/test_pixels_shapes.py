"""Regions of any shape: segments and mask images; their true pixels are replaced, stored and drawn."""

import builtins
import json
import re
import subprocess
from pathlib import Path

import eye_oracle
import numpy as np
import pytest
from looked import make_patches
from PIL import Image

import mask_impact
from mask_impact.commands.main import main
from mask_impact.errors import InputError, ModelError, OutputError, UsageError
from mask_impact.findings.outlines import outline
from mask_impact.models import loading
from mask_impact.prompts.label_images import read_labels
from mask_impact.results.patch_files import load_patches, save_patches
from mask_impact.results.patches import TOTAL
from mask_impact.views.patches_html import patches_html
from mask_impact.views.pixels import pixels_figure

PROMPT, NATS, CELL = "the cat sat", 1e-4, 8
HIGH, WIDE = 3 * CELL, 4 * CELL


def picture(seed=0):
    """Two halves of other colours with some noise."""
    pixels = np.random.default_rng(seed).integers(0, 30, (HIGH, WIDE, 3), dtype=np.uint8)
    pixels[:, : WIDE // 2] += np.array([200, 20, 60], dtype=np.uint8)
    pixels[10:, 20:] += np.array([0, 150, 0], dtype=np.uint8)
    return pixels


def labels():
    """Two regions that are no rectangles, which share image tokens, and one that is."""
    found = np.zeros((HIGH, WIDE), dtype=np.uint8)
    y, x = np.mgrid[:HIGH, :WIDE]
    found[(y - 11) ** 2 + (x - 12) ** 2 < 60] = 7
    found[(y - 11) ** 2 + (x - 12) ** 2 < 9] = 0
    found[(x - y > 12) & (found == 0)] = 200
    found[20:23, 1:6] = 9
    return found


@pytest.fixture(scope="module")
def loaded(vl_checkpoint):
    return loading.load(str(vl_checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pixels(loaded):
    return lambda **given: mask_impact.pixels(loaded, PROMPT, **{"images": picture(), "num_tokens": 1} | given)


@pytest.fixture(scope="module")
def found(pixels):
    return pixels(regions=labels(), fills=("grey", "mean"), split=True)


def replaced(mask, fill):
    """The picture with the pixels of a mask replaced, one by one."""
    changed, colour = picture(), np.round(picture().reshape(-1, 3).mean(axis=0)) if fill == "mean" else np.full(3, 128)
    for y, x in zip(*np.nonzero(mask), strict=True):
        changed[y, x] = colour
    return changed


def disagreements(loaded, found, mask_of):
    """By how much each total effect differs from that of the model on the changed picture."""
    text, produced = found.meta["templated_prompt"], found.tokens.ids[found.n_prompt :].tolist()
    before = eye_oracle.logits(loaded.model, eye_oracle.processed(loaded, text, [picture()]), produced)
    target = found.targets[0]
    for row in target.rows(route=TOTAL):
        changed = replaced(mask_of(int(target.place[row])), target.fill[row])
        after = eye_oracle.logits(loaded.model, eye_oracle.processed(loaded, text, [changed]), produced)
        yield abs(target.logprob_change[row] - eye_oracle.effect(before, after, produced, (0,))[0])


VALUES = (7, 9, 200)


def test_each_value_of_a_mask_image_is_a_region_whose_pixels_alone_are_replaced(loaded, found):
    assert [region.name for region in found.regions] == ["region 7", "region 9", "region 200"]
    assert max(disagreements(loaded, found, lambda place: labels() == VALUES[place])) < NATS


def test_the_box_around_a_region_in_its_place_is_told_from_it(loaded, found):
    def boxed(place):
        left, top, right, bottom = map(round, found.regions[place].box)
        mask = np.zeros((HIGH, WIDE), dtype=bool)
        mask[top:bottom, left:right] = True
        return mask

    assert max(disagreements(loaded, found, boxed)) > 0.01


def test_what_is_found_is_split_where_that_is_asked_for(found):
    (split,) = {int(found.targets[0].place[row]) for row in found.targets[0].rows(route="own tokens")}
    assert split == found.targets[0].found


def test_shapes_are_kept_but_for_rectangles(found):
    assert [*found.shapes] == [0, 2]
    for place, mask in found.shapes.items():
        np.testing.assert_array_equal(mask, labels() == VALUES[place])


# --- segments ---------------------------------------------------------------------------------------------------------------


def test_segments_are_the_picture_once_and_are_replaced_as_they_are(loaded, pixels):
    pytest.importorskip("skimage")
    found = pixels(regions="segments:6", fills="grey")
    n = len(found.regions)
    assert 2 <= n <= 12
    assert {region.level for region in found.regions} == {"segment"}
    masks = [found.shapes.get(place) for place in range(n)]
    whole = np.zeros((HIGH, WIDE), dtype=int)
    for place, mask in enumerate(masks):
        if mask is None:
            left, top, right, bottom = map(round, found.regions[place].box)
            masks[place] = np.zeros((HIGH, WIDE), dtype=bool)
            masks[place][top:bottom, left:right] = True
        whole += masks[place]
    assert (whole == 1).all()
    assert max(disagreements(loaded, found, masks.__getitem__)) < NATS


def test_grey_and_transparent_pictures_have_segments(loaded):
    pytest.importorskip("skimage")
    grey = picture()[..., 0]
    clear = np.dstack([picture(), np.where(np.arange(WIDE) < 9, 0, 255)[None].repeat(HIGH, axis=0).astype(np.uint8)])
    for one in (grey, Image.fromarray(clear, "RGBA")):
        found = mask_impact.pixels(loaded, PROMPT, images=one, regions="segments", num_tokens=1, fills="grey")
        assert len(found.regions) > 1


def test_without_scikit_image_one_line_says_what_to_install(pixels, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match=re.escape("segments need scikit-image: pip install 'mask-impact[segments]'")):
        pixels(regions="segments")


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"regions": "segments:1"}, UsageError, "must have a whole number from 2 to 256"),
    ({"regions": "segments:x"}, UsageError, "must have a whole number from 2 to 256"),
    ({"regions": "segments", "by": "tokens"}, UsageError, "give one of them, not 'tokens' too"),
    ({"regions": "nothing.png"}, InputError, "the regions 'nothing.png' are not there"),
    ({"regions": np.zeros((HIGH, WIDE), np.uint8)}, InputError, "are black all over"),
    ({"regions": np.arange(HIGH * WIDE).reshape(HIGH, WIDE)}, InputError, "an image of 767 values, and 256 at most"),
    ({"regions": labels()[:-1]}, InputError, "have 32 x 23 pixels and image 0 32 x 24"),
    ({"regions": np.zeros(5, np.uint8)}, InputError, "has no regions"),
    ({"regions": -labels().astype(np.int16)}, InputError, "have values below 0"),
])  # fmt: skip
def test_what_cannot_be_regions_is_one_line(given, kind, said, pixels):
    with pytest.raises(kind, match=re.escape(said)):
        pixels(**given)


def test_values_are_taken_as_files_have_them(tmp_path):
    """16-bit greys, palettes, colours, and what is transparent."""
    wide = labels().astype(np.uint16) * 3
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "wide.png").labels, np.searchsorted([0, 21, 27, 600], wide))
    assert read_labels(tmp_path / "wide.png").names == ("21", "27", "600")
    colours = np.zeros((HIGH, WIDE, 4), dtype=np.uint8)
    colours[:5] = 255, 0, 0, 255
    colours[5:9] = 0, 0, 255, 255
    colours[9:12] = 0, 255, 0, 0
    Image.fromarray(colours, "RGBA").save(tmp_path / "colours.png")
    assert read_labels(str(tmp_path / "colours.png")).names == ("#0000ff", "#ff0000")
    Image.fromarray(colours[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert len(read_labels(tmp_path / "palette.png").names) == 3
    (tmp_path / "damaged.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    with pytest.raises(InputError, match="can't be read"):
        read_labels(tmp_path / "damaged.png")


# --- files ------------------------------------------------------------------------------------------------------------------


def test_shapes_are_written_and_read_again(found, tmp_path):
    paths = save_patches(found, tmp_path / "x", ["csv"])
    assert tmp_path / "x.patches.regions.png" in paths
    again = load_patches(tmp_path / "x")
    assert [*again.shapes] == [0, 2]
    for place, mask in found.shapes.items():
        np.testing.assert_array_equal(again.shapes[place], mask)
    save_patches(make_patches(meta=found.meta), tmp_path / "x", ["csv"])
    assert not (tmp_path / "x.patches.regions.png").exists()


def test_regions_that_share_pixels_are_kept_apart(pixels, tmp_path):
    circle = (labels() == 7).astype(np.uint8) * 255
    found = pixels(regions=labels(), mask=circle, fills="grey")
    save_patches(found, tmp_path / "x", ["csv"])
    again = load_patches(tmp_path / "x")
    assert len(again.shapes) == 3
    for place, mask in found.shapes.items():
        np.testing.assert_array_equal(again.shapes[place], mask)


def broken(folder, what):
    """Damages the stored regions."""
    png, meta = folder / "x.patches.regions.png", folder / "x.patches.meta.json"
    if what == "gone":
        png.unlink()
    elif what == "cut":
        png.write_bytes(png.read_bytes()[:50])
    elif what == "elsewhere":
        meta.write_text(meta.read_text().replace('"patches.regions.png"', '"../x.patches.regions.png"'))
    elif what == "other":
        pixels = np.array(Image.open(png))
        pixels[0, 0] = 3 if pixels[0, 0] != 3 else 1
        Image.fromarray(pixels).save(png)
    elif what == "size":
        Image.fromarray(np.zeros((5, 5), np.uint16)).save(png)
    elif what == "pipe":
        png.unlink()
        subprocess.run(["mkfifo", str(png)], check=True)


@pytest.mark.parametrize("what", ["gone", "cut", "elsewhere", "other", "size", "pipe"])
def test_regions_that_do_not_belong_to_a_result_are_one_line(found, tmp_path, what):
    save_patches(found, tmp_path / "x", ["csv"])
    broken(tmp_path, what)
    with pytest.raises(OutputError) as raised:
        load_patches(tmp_path / "x")
    assert "\n" not in str(raised.value)
    assert "x.patches." in str(raised.value)


# --- drawing ----------------------------------------------------------------------------------------------------------------


def inside(lines, y, x):
    """Whether the middle of a pixel is inside closed lines, by the even-odd rule."""
    crossed = 0
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line, (*line[1:], line[0]), strict=True):
            crossed += x0 == x1 and min(y0, y1) <= y < max(y0, y1) and x0 > x
    return crossed % 2 == 1


def test_an_outline_has_the_pixels_of_its_mask_inside():
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random((rng.integers(1, 8), rng.integers(1, 8))) < rng.random()
        lines = outline(mask)
        drawn = [[inside(lines, y, x) for x in range(mask.shape[1])] for y in range(mask.shape[0])]
        np.testing.assert_array_equal(np.array(drawn), mask)
    assert outline(np.ones((2, 3), dtype=bool)) == (((0, 0), (3, 0), (3, 2), (0, 2)),)


def test_the_page_has_the_true_outlines(found):
    html = patches_html(found)[0]
    lines = outline(labels() == 7)
    assert len(lines) == 2  # a ring
    path = "".join("M" + " ".join(f"{x} {y}" for x, y in line) + "z" for line in lines)
    assert html.count(path) >= 3  # on the picture, and under and over the edge of a thumbnail


def test_the_figure_has_the_true_outlines_and_tints(found):
    figure = pixels_figure(found)
    (ring,) = [one for axes in figure.axes for one in axes.patches if one.get_gid() == "region-0"]
    corners = {tuple(corner) for corner in ring.get_path().vertices.round(6).tolist()}
    assert {(float(x), float(y)) for line in outline(labels() == 7) for x, y in line} <= corners
    (overlay,) = [
        image.get_array() for axes in figure.axes for image in axes.images if image.get_array().shape[-1] == 4
    ]
    fine = overlay.shape[0] // HIGH
    tinted = overlay[fine // 2 :: fine, fine // 2 :: fine, 3] > 0
    np.testing.assert_array_equal(tinted, labels() > 0)


def test_the_command_takes_a_mask_image(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("a.png")
    Image.fromarray(labels()).save("mask.png")
    argv = ["pixels", PROMPT, "-i", "a.png", "-m", loaded.name, "-n", "1", "--regions", "mask.png", "--fills", "grey"]
    assert main([*argv, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert [one["region"] for one in entry["targets"][0]["regions"]] == ["region 7", "region 9", "region 200"]
    assert Path("output/result.patches.regions.png").is_file()
    assert main(["report", "output/result"]) == 0
    assert "region 200" in Path("output/result.html").read_text()
