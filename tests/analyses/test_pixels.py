"""Pixels that are replaced: against the model run plainly on the changed picture, in total and by each way; the search; files."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import eye_oracle
import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from observers import Counting
from PIL import Image
from pixels_oracle import NATS, PixelsOracle
from tiny_models import tiny_image_inputs, tiny_model

import mask_impact
from mask_impact.analyses import fills
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.picture_regions import Regions, coarse_to_fine, quarters, search
from mask_impact.commands.main import main
from mask_impact.engine.features import FeaturePass, Features
from mask_impact.errors import (
    DeviceError,
    ExactnessError,
    InputError,
    ModelError,
    UnsupportedArchitecture,
    UsageError,
)
from mask_impact.models import loading
from mask_impact.prompts.patches import PatchGrid
from mask_impact.results.patch_files import PATCH_COLUMNS, save_patches
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL
from mask_impact.results.stored import read_stored
from mask_impact.views.pixels import pixels_figure

PROMPT = "the cat sat"
N_TOKENS = 2
CELL, PATCH = 8, 4  # pixels of the tiny model's image tokens and patches
SHAPES = Path(__file__).parents[2] / "examples" / "shapes.png"


def noise(rows, columns, seed=0):
    """A picture of so many image tokens."""
    return np.random.default_rng(seed).integers(0, 256, (rows * CELL, columns * CELL, 3), dtype=np.uint8)


PICTURE, SMALL = noise(3, 4), noise(2, 3)


@pytest.fixture(scope="module")
def loaded(vl_checkpoint):
    return loading.load(str(vl_checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pixels(loaded):
    """The analysis of PICTURE unless told otherwise."""
    return lambda **given: mask_impact.pixels(loaded, PROMPT, **{"images": PICTURE, "num_tokens": N_TOKENS} | given)


class Plain(PixelsOracle):
    """The oracle for one result: what another picture does to its targets."""

    def __init__(self, loaded, found, pictures=(PICTURE,)):
        self.loaded, self.pictures = loaded, list(pictures)
        self.text = found.meta["templated_prompt"]
        super().__init__(loaded, found, eye_oracle.processed(loaded, self.text, self.pictures))

    def changed(self, region, fill):
        """The model's inputs with a rectangle of pixels replaced."""
        box = tuple(round(edge) for edge in region.box)
        pictures = list(self.pictures)
        pictures[region.image] = eye_oracle.filled(pictures[region.image], box, fill)
        return eye_oracle.processed(self.loaded, self.text, pictures)


# --- against the model on the changed picture -------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["border", "mean", "blur", "grey"])
def test_replaced_image_tokens_agree_with_the_model_on_the_changed_picture(fill, loaded, pixels):
    Plain(loaded, pixels(images=SMALL, by="tokens", fills=fill), [SMALL]).assert_agrees()


def test_replaced_patches_agree_with_the_model_on_the_changed_picture(loaded, pixels):
    found = pixels(images=SMALL, by="patches", fills="mean", num_tokens=1)
    assert len(found.regions) == 24
    assert {region.size for region in found.regions} == {(PATCH, PATCH)}
    Plain(loaded, found, [SMALL]).assert_agrees()


def test_each_way_of_a_box_s_effect_agrees_with_features_put_in_by_hooks_and_with_masks(loaded, pixels):
    """A box that cuts through image tokens and patches; each produced token by itself."""
    found = pixels(boxes=(5, 3, 18, 13), target="each", num_tokens=3)
    (region,) = found.regions
    first = int(np.flatnonzero(found.tokens.image == 0)[0])
    assert region.positions == tuple(first + place for place in (0, 1, 2, 4, 5, 6))
    assert len(found.targets) == 3
    for target in found.targets:
        assert list(zip(target.fill, target.route, strict=True)) == [
            ("border", TOTAL), ("border", OWN), ("border", OTHERS), ("mean", TOTAL), ("", HIDDEN),
        ]  # fmt: skip
    Plain(loaded, found).assert_agrees()


def test_of_several_images_the_one_that_is_asked_about_changes(loaded, pixels):
    pictures = [noise(2, 2, 1), noise(2, 3, 2)]
    found = pixels(images=pictures, boxes=[(8, 0, 16, 8)], image_number=1)
    assert found.regions[0].name == "image 1 box 8,0,16,8"
    Plain(loaded, found, pictures).assert_agrees()
    both = pixels(images=pictures, by="tokens", fills="grey", num_tokens=1)
    assert [region.name for region in both.regions][3:5] == ["image 0 [1, 1]", "image 1 [0, 0]"]
    Plain(loaded, both, pictures).assert_agrees()


def test_a_mask_is_a_region_of_any_shape(loaded, pixels):
    """A box as a mask gives what the box gives."""
    mask = np.zeros(PICTURE.shape[:2], dtype=np.uint8)
    mask[3:13, 5:18] = 255
    one, other = pixels(mask=mask), pixels(boxes=[(5, 3, 18, 13)])
    np.testing.assert_array_equal(one.targets[0].logprob_change, other.targets[0].logprob_change)
    assert (one.regions[0].name, one.regions[0].positions) == ("mask", other.regions[0].positions)
    assert one.regions[0].box == other.regions[0].box


def test_the_picture_that_is_asked_about_is_the_resized_one(loaded, pixels):
    """A box in pixels of the original: its pixels in what the vision tower saw."""
    large = np.kron(PICTURE[:16, :24], np.ones((10, 10, 1), dtype=np.uint8))
    found = pixels(images=large, boxes=[(80, 80, 160, 160)])
    (image,), (region,) = found.images, found.regions
    assert (image.size, image.resized, region.box) == ((240, 160), (32, 16), (80, 80, 160, 160))
    assert region.size == (10, 8)  # columns 11 to 20 of 32 have their middles within, rows 8 to 15 of 16
    inputs = eye_oracle.processed(loaded, found.meta["templated_prompt"], [large])
    small = one_grid(loaded, inputs).picture(inputs["pixel_values"]).round().byte().permute(1, 2, 0).numpy()
    other = pixels(images=small, boxes=[(11, 8, 21, 16)])
    np.testing.assert_allclose(found.targets[0].logprob_change, other.targets[0].logprob_change, atol=NATS)
    assert abs(found.targets[0].logprob_change).max() > 0.01


def one_grid(loaded, inputs):
    """How the patches of the only picture lie."""
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    images = loaded.processor.image_processor
    return PatchGrid(rows, columns, PATCH, 2, 2, tuple(images.image_mean), tuple(images.image_std))


def test_a_mixture_of_experts_is_measured_too():
    """With ready inputs, which have no picture and no processor: against the same numbers computed from pixel_values."""
    model = tiny_model("qwen3_vl_moe")
    inputs = tiny_image_inputs(model)
    found = mask_impact.pixels(loading.wrap(model, make_tokenizer()), inputs, by="tokens", fills="grey", num_tokens=1)
    before = eye_oracle.logits(model, inputs, found.tokens.ids[-1:].tolist())
    for row, place in enumerate(found.targets[0].place):
        changed = dict(inputs, pixel_values=inputs["pixel_values"].clone())
        token = found.regions[place].row * 3 + found.regions[place].column
        changed["pixel_values"][4 * token : 4 * token + 4] = (128 / 255 - 0.5) / 0.5
        after = eye_oracle.logits(model, changed, found.tokens.ids[-1:].tolist())
        change, _, _ = eye_oracle.effect(before, after, found.tokens.ids[-1:].tolist(), (0,))
        assert abs(found.targets[0].logprob_change[row] - change) < NATS


# --- broken versions --------------------------------------------------------------------------------------------------------


def in_row_order(grid, pixels):
    """Patches row by row over the whole picture, not merge block by merge block."""
    pixels = pixels[:, 0] if pixels.ndim == 5 else pixels  # an image has one picture
    n, channels, p = *pixels.shape[:2], grid.patch
    rows = pixels.reshape(n, channels, grid.rows, p, grid.columns, p).permute(0, 2, 4, 1, 3, 5)
    rows = rows.unsqueeze(4).expand(*rows.shape[:4], grid.times, p, p)
    return rows.reshape(n, grid.rows * grid.columns, -1)


def beside(place):
    """A region with the pixels of the cell on its right."""
    return dataclasses.replace(place, mask=place.mask.roll(CELL, dims=1))


AS_OUTPUTS = Features.as_outputs


def levels_turned(feature, **how):
    """DeepStack's levels each added behind the next one's layer."""
    main, *levels = feature.parts
    return AS_OUTPUTS(Features((main, *levels[1:], levels[0])), **how)


def test_patches_in_row_order_are_told_from_the_model(loaded, pixels, monkeypatch):
    monkeypatch.setattr(PatchGrid, "patched", in_row_order)
    with pytest.raises(AssertionError):
        Plain(loaded, pixels(by="tokens", fills="grey")).assert_agrees()


def test_cells_whose_pixels_are_those_of_others_are_told_from_the_model(loaded, pixels, monkeypatch):
    token = Regions.token
    monkeypatch.setattr(Regions, "token", lambda *args: beside(token(*args)))
    with pytest.raises(AssertionError):
        Plain(loaded, pixels(by="tokens", fills="grey")).assert_agrees()


def test_a_level_that_is_added_behind_the_wrong_layer_gives_no_numbers(pixels, monkeypatch):
    """The run with the model's own features is held against the answer."""
    monkeypatch.setattr(Features, "as_outputs", levels_turned)
    with pytest.raises(ExactnessError, match="the model run with its own features differs from its answer"):
        pixels(by="tokens")


def test_own_and_other_tokens_are_not_taken_for_each_other(loaded, pixels, monkeypatch):
    taking = Features.taking
    monkeypatch.setattr(Features, "taking", lambda own, others, tokens: taking(own, others, ~tokens))
    with pytest.raises(AssertionError):
        Plain(loaded, pixels(boxes=[(5, 3, 18, 13)])).assert_agrees()


# --- how it runs ------------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_many_run_at_once(pixels, monkeypatch):
    whole = pixels(by="tokens").targets[0]
    monkeypatch.setattr("mask_impact.engine.features.ROWS_AT_ONCE", 1)
    np.testing.assert_allclose(pixels(by="tokens").targets[0].logprob_change, whole.logprob_change, atol=1e-5)


def test_out_of_memory_goes_on_with_smaller_batches_and_ends_in_one_line(pixels, monkeypatch):
    seen, run = [], FeaturePass.logits

    def limited(self, some, most):
        if len(some) > most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        seen.append(len(some))
        return run(self, some)

    expected = pixels(by="tokens", fills="grey").targets[0].logprob_change
    monkeypatch.setattr(FeaturePass, "logits", lambda self, some: limited(self, some, 5))
    np.testing.assert_allclose(pixels(by="tokens", fills="grey").targets[0].logprob_change, expected, atol=1e-5)
    assert max(seen) <= 5
    first = iter([9])
    monkeypatch.setattr(FeaturePass, "logits", lambda self, some: limited(self, some, next(first, 0)))
    with pytest.raises(DeviceError, match="out of memory with a single changed image"):
        pixels(by="tokens")


def test_what_stands_before_the_image_runs_once_and_is_the_same(loaded, pixels):
    """A long system prompt; and a raw prompt in which the image comes first."""
    long = (
        f"<|im_start|>system\n{PROMPT}<|im_end|>\n<|im_start|>user\n<image>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    picture = noise(2, 2)
    found = mask_impact.pixels(loaded, long, images=picture, by="tokens", num_tokens=2)
    Plain(loaded, found, [picture]).assert_agrees()
    model = loaded.model
    inputs = eye_oracle.processed(loaded, "<|vision_start|><|image_pad|><|vision_end|>the cat", [picture])
    inputs = {name: value[:, 1:] if name in ("input_ids", "attention_mask", "mm_token_type_ids") else value
              for name, value in inputs.items()}  # fmt: skip
    again = FeaturePass(model, inputs, 1)
    assert again.first == 0
    torch.testing.assert_close(
        again.logits(again.own())[0].double(), eye_oracle.logits(model, inputs, [0]), atol=1e-5, rtol=1e-5
    )


# --- the search -------------------------------------------------------------------------------------------------------------


def parts_of(wholes):
    """The quarters of each."""
    return [(number, part) for number, whole in enumerate(wholes) for part in quarters(whole)]


def strongest_of(scores, wholes, beam):
    """What the search finds where a rectangle's effect is that of its strongest token; and what it has asked about."""
    asked = []

    def ask(cuts):
        asked.extend(cuts)
        return [scores[number][top:bottom, left:right].min() for number, (left, top, right, bottom) in cuts]

    return search(parts_of(wholes), beam, ask), asked


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (8, 8), (16, 9)])
def test_the_search_finds_the_strongest_token_of_any_grid(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    whole = (0, 0, shape[1], shape[0])
    ((number, (left, top, right, bottom)),), asked = strongest_of([scores], [whole], 1)
    assert (number, right - left, bottom - top) == (0, 1, 1)
    assert scores[top, left] == scores.min()
    assert len(asked) <= 4 * max(1, int(np.ceil(np.log2(max(shape)))))
    assert len({*asked}) == len(asked)


def test_a_beam_goes_on_from_several_rectangles_and_images():
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=(4, 4)), rng.normal(size=(3, 5))]
    found, _ = strongest_of(scores, [(0, 0, 4, 4), (0, 0, 5, 3)], 3)
    values = [scores[number][top, left] for number, (left, top, *_) in found]
    assert len(found) == 3
    assert values[0] == min(one.min() for one in scores)
    assert values == sorted(values)


def test_quarters_are_the_whole_once():
    for whole in [(0, 0, 1, 1), (2, 3, 3, 9), (0, 0, 5, 4)]:
        left, top, right, bottom = whole
        seen = np.zeros((bottom, right), dtype=int)
        for x0, y0, x1, y1 in quarters(whole):
            seen[y0:y1, x0:x1] += 1
        assert (seen[top:, left:] == 1).all()


def test_the_regions_of_a_search_agree_with_the_model_on_the_changed_picture(loaded, pixels):
    found = pixels(split=True, beam=2)
    assert {region.level for region in found.regions} == {"block", "token", "patch"}
    assert found.regions[found.targets[0].found].level == "token"
    Plain(loaded, found).assert_agrees()


def test_256_patches_take_twenty_forward_passes():
    """With both fills of what is found, and the pass that all is held against."""
    model = tiny_model("qwen3_vl")
    inputs = tiny_image_inputs(model, grids=((1, 16, 16),))
    found = mask_impact.pixels(loading.wrap(model, make_tokenizer()), inputs, num_tokens=1)
    assert found.images[0].n_tokens == 64
    assert found.forwards <= 20
    (row,) = found.targets[0].rows(found.targets[0].found, "mean")
    assert found.targets[0].route[row] == TOTAL
    assert sum(region.level == "patch" for region in found.regions) == 4


def test_no_search_runs_more_often_than_it_said(pixels):
    for given in ({}, {"split": True, "beam": 3}, {"by": "tokens"}, {"boxes": [(0, 0, 9, 9), (3, 3, 5, 5)]}):
        observer = Counting()
        pixels(observer=observer, num_tokens=1, **given)
        assert 0 < observer.done <= observer.most, given
        assert observer.done >= 0.6 * observer.most, given


# --- fills ------------------------------------------------------------------------------------------------------------------


def test_a_fill_is_of_the_picture_and_whole_steps_of_brightness():
    picture = torch.from_numpy(PICTURE).permute(2, 0, 1).double()
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[8:16, 8:24] = True
    for fill in ("border", "mean", "blur", "grey"):
        found = fills.filled(picture, mask, fill)
        changed = torch.where(mask, found, picture).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(changed, eye_oracle.filled(PICTURE, (8, 8, 24, 16), fill))


def test_pixels_and_values_are_the_same_there_and_back(loaded):
    inputs = eye_oracle.processed(loaded, "<|vision_start|><|image_pad|><|vision_end|>", [PICTURE])
    grid = one_grid(loaded, inputs)
    values = inputs["pixel_values"]
    levels = grid.picture(values)
    np.testing.assert_allclose(levels.permute(1, 2, 0).numpy(), PICTURE, atol=1e-3)
    nothing, everything = (torch.full((1, 24, 32), flag) for flag in (False, True))
    assert torch.equal(grid.changed(values, nothing, levels[None])[0], values)
    torch.testing.assert_close(grid.changed(values, everything, levels[None])[0], values, atol=1e-5, rtol=0)


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"boxes": [(0, 0, 33, 8)]}, InputError, "box 0,0,33,8 is no region of image 0, which has 32 x 24 pixels"),
    ({"boxes": [(8, 0, 8, 8)]}, InputError, "left < right"),
    ({"boxes": [(0, 0, 32, 24)]}, InputError, "the region is the whole image"),
    ({"boxes": [(0.6, 0.6, 0.7, 0.7)]}, InputError, "has no pixel of image 0 as the model sees it"),
    ({"boxes": [(1, 2, 3)]}, UsageError, r"a box is \(left, top, right, bottom\)"),
    ({"mask": np.zeros((24, 32), np.uint8)}, InputError, "is black all over"),
    ({"mask": np.zeros((24, 30), np.uint8)}, InputError, "has 30 x 24 pixels and image 0 32 x 24"),
    ({"fills": "red"}, UsageError, "`fills` must be some of border, mean, blur, grey, not 'red'"),
    ({"fills": ["grey", "grey"]}, UsageError, "each once"),
    ({"by": "rows"}, UsageError, "`by` must be search, tokens or patches, not 'rows'"),
    ({"beam": 0}, UsageError, "`beam` must be a whole number from 1 to 64, not 0"),
    ({"image_number": 1}, UsageError, "`image_number` 1 is not there: the prompt has one image"),
    ({"images": [PICTURE[:16, :16]] * 2, "boxes": [(0, 0, 8, 8)]}, UsageError, "2 images: say with `image_number`"),
    ({"images": ()}, InputError, "the prompt has no image"),
    ({"by": "tokens", "max_cost": 1000}, UsageError, "rows through layers, as many as 2. forward passes of this prompt"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(given, kind, said, pixels):
    with pytest.raises(kind, match=said):
        pixels(**given)


def test_other_models_are_refused(text_checkpoint):
    with pytest.raises(UnsupportedArchitecture, match=r"of qwen3_vl and qwen3_vl_moe only, and .* is qwen3"):
        mask_impact.pixels(str(text_checkpoint), PROMPT)


def test_hooks_of_others_are_refused(loaded, pixels):
    layer = loaded.model.model.language_model.layers[1]
    with layer.register_forward_hook(lambda *args: None), pytest.raises(ModelError, match="forward hooks are on"):
        pixels(by="tokens")


# --- files and what is printed ----------------------------------------------------------------------------------------------


def test_the_files_have_all_that_was_measured(pixels, tmp_path):
    found = pixels(boxes=[(5, 3, 18, 13)], by="tokens", fills=("mean", "grey"))
    paths = save_patches(found, tmp_path / "x.patches.csv", "csv,json,parquet")
    assert {path.name for path in paths} == {f"x.patches.{end}" for end in ("csv", "json", "parquet", "meta.json")}
    with open(tmp_path / "x.patches.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == PATCH_COLUMNS
    target = found.targets[0]
    assert [float(row["logprob_change"]) for row in rows] == pytest.approx(target.logprob_change.tolist(), rel=1e-6)
    assert {(row["level"], row["size_px"], row["row"], row["column"]) for row in rows[:5]} == {
        ("region", "13x10", "", "")
    }
    last = rows[-1]
    assert (last["level"], last["row"], last["column"], last["fill"], last["route"]) == (
        "token",
        "2",
        "3",
        "grey",
        "total",
    )
    meta = json.loads((tmp_path / "x.patches.meta.json").read_text())
    assert meta["run"]["fills"] == ["mean", "grey"]
    assert len(meta["regions"]) == len(found.regions) == 13
    frame = found.to_frame()
    assert frame.columns.tolist() == list(PATCH_COLUMNS)
    assert found.save(tmp_path / "y")[-2].name == "y.pixels.png"
    assert "<img" in found._repr_html_()
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(("  token [", "  box 5,3,18,13")) for line in lines) == 13
    assert "    by all other image tokens alone" in "\n".join(lines)
    for name in ("x.patches.csv", "x.patches.meta.json"):
        again = read_stored(tmp_path / name)["x"].patches
        assert (again.fills, again.n_prompt, len(again.regions)) == (found.fills, found.n_prompt, 13)
        np.testing.assert_array_equal(again.targets[0].logprob_change, found.targets[0].logprob_change)


def test_a_run_s_picture_of_patches_and_these_files_do_not_take_each_other_s_names(
    vl_checkpoint, tmp_path, monkeypatch, capsys
):
    """NAME.patches.png is a run's; what is of another question goes."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("a.png")
    common = ["-i", "a.png", "-m", str(vl_checkpoint), "-n", "1", "-o", "x"]
    assert main(["run", PROMPT, *common, "--plots", "--no-answer"]) == 0
    assert main(["pixels", PROMPT, *common, "--formats", "csv"]) == 0
    names = {path.name for path in Path("output").iterdir() if not path.name.startswith(".")}
    assert {"x.patches.png", "x.patches.csv", "x.patches.meta.json", "x.pixels.png", "x.csv"} <= names
    assert main(["run", "the mat", *common, "--no-answer"]) == 0
    left = {path.name for path in Path("output").iterdir() if not path.name.startswith(".")}
    assert left == {"x.csv", "x.json", "x.meta.json"}
    assert main(["pixels", PROMPT, *common[:-1], "x.patches"]) == 2
    assert "'x.patches' ends in .patches" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_names_the_true_cell_of_the_demo_s_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["pixels", "What color is the star?", "-i", str(SHAPES), "-m", "demo", "--split"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert re.search(r'"orange" \(99\.\d %\): of \d+ regions, token \[0, 3\] matters most', out)
    assert 'the answer becomes "blue"' in out
    assert "by its own image tokens alone" in out
    assert "Replacing pixels: at most" in err
    with Image.open("output/result.pixels.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_json_has_every_measurement(vl_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("a.png")
    argv = [
        "pixels",
        PROMPT,
        "-i",
        "a.png",
        "-m",
        str(vl_checkpoint),
        "-n",
        "1",
        "--by",
        "tokens",
        "--fills",
        "grey,mean",
    ]
    assert main([*argv, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    (target,) = entry["targets"]
    assert [(one["fill"], one["route"]) for one in target["regions"]] == [("grey", "total"), ("mean", "total")] * 12
    weaker = {one["region"]: -9.0 for one in target["regions"]}
    for one in target["regions"]:
        weaker[one["region"]] = max(weaker[one["region"]], one["logprob_change"])
    assert target["found"] == min(weaker, key=weaker.get)
    assert all(Path(path).is_file() for path in entry["files"])


@pytest.mark.parametrize(("argv", "said"), [
    (["--box", "1,2,3"], "must be four numbers such as 96,0,128,32"),
    (["--fills", "red"], "must be some of border, mean, blur, grey, not 'red'"),
    (["--by", "token"], "did you mean tokens?"),
    (["--beam", "65"], "--beam must be a whole number of rectangles, at least 1, at most 64, not 65"),
])  # fmt: skip
def test_a_wrong_argument_is_one_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pixels", PROMPT, "-m", "demo", "-i", str(SHAPES), *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_pixels_without_an_image_are_refused_before_anything_loads(capsys):
    assert main(["pixels", PROMPT, "-m", "demo"]) == 2
    assert "pixels are those of an image or a video: give --image FILE or --video FILE" in capsys.readouterr().err


def test_the_picture_has_a_frame_for_each_region(pixels):
    found = pixels(by="tokens")
    regions = [one for axes in pixels_figure(found).axes for one in axes.patches if one.get_gid()]
    assert len(regions) == 12
    (framed,) = [one for one in regions if one.get_linewidth() > 1]
    left, top, right, bottom = found.regions[found.targets[0].found].box
    assert framed.get_bbox().bounds == (left, top, right - left, bottom - top)


# --- the search with an estimate --------------------------------------------------------------------------------------------


class Grid:
    """An image of so many tokens, whose regions are their rectangles."""

    def __init__(self, rows, columns):
        self.grid = self
        self.tokens, self.merge = (rows, columns), 2
        self.record = dataclasses.make_dataclass("Record", [("moment", object, None)])()

    def block(self, edges):
        return edges

    def patches_of(self, edges):
        return [edges] * self.merge**2


def searched(scores, weights, beam=1):
    """(the tokens that are found, how many regions were asked about) where a rectangle does what its strongest token does."""
    asked = []

    def changes(places):
        asked.extend(places)
        return [scores[top:bottom, left:right].min() for left, top, right, bottom in places]

    tokens, patches = coarse_to_fine([Grid(*scores.shape)], beam, changes, weights)
    assert len(patches) == 4 * len(tokens)
    return [(top, left) for left, top, *_ in tokens], {*asked}


def test_with_an_estimate_a_search_finds_the_strongest_token_by_fewer_regions():
    rng = np.random.default_rng(3)
    n_asked = {}
    for with_estimate in (True, False):
        n_asked[with_estimate] = 0
        for _ in range(20):
            scores = -(rng.random((8, 8)) ** 8)
            weights = [scores + rng.normal(size=(8, 8)) * 1e-4] if with_estimate else None
            found, asked = searched(scores, weights)
            assert scores[found[0]] == scores.min()
            n_asked[with_estimate] += len(asked)
    assert n_asked[True] <= 10 * 20 < n_asked[False] == 12 * 20


def test_a_token_that_its_quarters_hide_is_found_by_the_estimate():
    """Without its quarter the answer stays for another reason; the token alone changes it."""
    scores, weights = np.zeros((4, 4)), [np.zeros((4, 4))]
    scores[2, 1], weights[0][2, 1] = -3.0, -1.0

    def changes(places):
        alone = [(right - left, bottom - top) == (1, 1) for left, top, right, bottom in places]
        return [float(scores[top, left]) * one for (left, top, *_), one in zip(places, alone, strict=True)]

    tokens, _ = coarse_to_fine([Grid(4, 4)], 1, changes, weights)
    assert tokens == [(1, 2, 2, 3)]
    tokens, _ = coarse_to_fine([Grid(4, 4)], 1, changes)
    assert tokens != [(1, 2, 2, 3)]


def test_where_no_token_has_an_effect_the_estimate_says_which_is_the_strongest():
    scores, weights = np.full((4, 4), -1e-4), [np.zeros((4, 4))]
    scores[0, 0], weights[0][3, 2] = -2e-4, -0.5
    assert searched(scores, weights)[0] == [(3, 2)]
    scores[0, 0] = -2.0
    assert searched(scores, weights)[0] == [(0, 0)]


def test_a_wrong_estimate_does_not_hide_what_was_measured():
    """It says the opposite: what is found is the strongest of what was asked about."""
    scores = -np.random.default_rng(5).random((8, 8))
    found, asked = searched(scores, [-1 - scores], beam=3)
    alone = [scores[top, left] for left, top, right, bottom in asked if (right - left, bottom - top) == (1, 1)]
    assert [scores[one] for one in found] == sorted(alone)[:3]


def test_without_an_estimate_the_search_goes_on_and_says_so(loaded, pixels, monkeypatch):
    class Noting(Observer):
        notes = ()

        def note(self, text):
            self.notes = (*self.notes, text)

    def fails(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    observer = Noting()
    monkeypatch.setattr("mask_impact.analyses.picture_estimates.estimate", fails)
    found = pixels(num_tokens=1, observer=observer)
    assert "The search goes without an estimate: out of memory in a backward pass" in observer.notes
    assert found.regions[found.targets[0].found].level == "token"
