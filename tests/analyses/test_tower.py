"""The vision tower: effects against the model run plainly with a mask; reads against matters; files, text, what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import eye_oracle
import numpy as np
import pytest
import torch
import tower_oracle
from checkpoints import make_tokenizer
from observers import Counting
from PIL import Image
from tiny_models import tiny_image_inputs, tiny_model
from transformers.models.smolvlm import processing_smolvlm
from vision_families import FAMILIES, family_checkpoint

import mask_impact
from mask_impact.commands.main import main
from mask_impact.engine.features import FeaturePass
from mask_impact.errors import InputError, ModelError, UnsupportedArchitecture, UsageError
from mask_impact.findings.looked import matters, read_by_region
from mask_impact.models import loading
from mask_impact.prompts.patches import PatchGrid
from mask_impact.results.stored import read_stored
from mask_impact.results.tower_files import EFFECT_COLUMNS, READING_COLUMNS, load_tower
from mask_impact.views.tower_html import tower_html
from mask_impact.views.tower_plot import tower_figure

PROMPT = "the cat sat"
PATCH = 4  # pixels
GRIDS = ((1, 4, 6), (1, 4, 4))
NATS = {torch.float32: 1e-4, torch.float64: 1e-6}
SHAPES = Path(__file__).parents[2] / "examples" / "shapes.png"


def noise(rows, columns, seed=0):
    """A picture of so many image tokens."""
    return np.random.default_rng(seed).integers(0, 256, (rows * 8, columns * 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded(vl_checkpoint):
    return loading.load(str(vl_checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tower(loaded):
    """The analysis of a picture unless told otherwise."""
    return lambda **given: mask_impact.tower(loaded, PROMPT, **{"images": noise(3, 4), "num_tokens": 2} | given)


def of_inputs(name="qwen3_vl", n_images=1, dtype=torch.float32, backend="sdpa", **given):
    """(model, its inputs, the analysis)"""
    model = tiny_model(name, dtype=dtype)
    model.set_attn_implementation(backend)
    inputs = tiny_image_inputs(model, n_images=n_images, grids=GRIDS)
    found = mask_impact.tower(loading.wrap(model, make_tokenizer()), inputs, **{"num_tokens": 2} | given)
    return model, inputs, found


def patches_in(box, size, grid):
    """bool [P], in the tower's order, of the patches that have a pixel of a box in the image; counted by loops."""
    rows, columns = grid
    tall, wide = size[1] / rows, size[0] / columns
    found = []
    for row in range(0, rows, 2):
        for column in range(0, columns, 2):
            for y, x in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                left, top, right, bottom = x * wide, y * tall, (x + 1) * wide, (y + 1) * tall
                inside = (
                    left < box[2] - 1e-6 and right > box[0] + 1e-6 and top < box[3] - 1e-6 and bottom > box[1] + 1e-6
                )
                found.append(inside)
    return torch.tensor(found)


def assert_effects_agree(model, inputs, found, most=None):
    """Every row of the result, or some, against the whole model run again with a mask in its tower."""
    produced = found.tokens.ids[found.n_prompt :].tolist()
    with tower_oracle.masked(model):
        before = eye_oracle.logits(model, inputs, produced)
    nats, changes = NATS[model.dtype], []
    for target in found.targets:
        for row, place in enumerate(target.place.tolist()[:most]):
            region = found.regions[place]
            image, grid = found.images[region.image], inputs["image_grid_thw"][region.image].tolist()[1:]
            keys = patches_in(region.box, image.size, grid)
            with tower_oracle.masked(model, tower_oracle.hiding(keys), target.layers[row], region.image):
                after = eye_oracle.logits(model, inputs, produced)
            change, kl, top1 = eye_oracle.effect(before, after, produced, target.steps)
            where = (region.name, target.layers[row])
            assert abs(target.logprob_change[row] - change) < nats, f"{where} differs from a run with a mask"
            assert abs(target.kl_divergence[row] - kl) < nats, f"{where} differs from a run with a mask"
            assert target.differs[row] == (top1 is not None), where
            assert top1 in (None, target.top1[row]), where
            changes.append(change)
    assert max(map(abs, changes)) > 0.02
    assert found.floor < nats


# --- effects against the model run again with a mask ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend", "dtype"), [
    ("qwen3_vl", "sdpa", torch.float32),
    ("qwen3_vl", "sdpa", torch.float64),
    pytest.param("qwen3_vl", "eager", torch.float32, marks=pytest.mark.slow),
    pytest.param("qwen3_vl_moe", "sdpa", torch.float32, marks=pytest.mark.slow),
])  # fmt: skip
def test_hidden_tokens_and_windows_agree_with_the_model_run_with_a_mask(name, backend, dtype):
    model, inputs, found = of_inputs(name, dtype=dtype, backend=backend, by="tokens", windows=2)
    assert len(found.regions) == 7  # six tokens, and the patch that is read most
    assert {layers for target in found.targets for layers in target.layers} == {
        (0, 1, 2, 3),
        (0, 1),
        (1, 2),
        (2, 3),
        (3,),
    }
    assert_effects_agree(model, inputs, found)


@pytest.mark.parametrize("by", ["search", pytest.param("patches", marks=pytest.mark.slow)])
def test_regions_of_two_images_agree_with_the_model_run_with_a_mask(by):
    model, inputs, found = of_inputs(n_images=2, by=by, num_tokens=1, layers=(1, 2))
    assert {region.image for region in found.regions} == {0, 1}
    assert {*found.readings} == {0, 1}
    assert_effects_agree(model, inputs, found, most=None if by == "search" else 12)


def test_a_box_of_one_image_of_two_and_every_target_agree(loaded):
    pictures = [noise(2, 3), noise(2, 2, seed=1)]
    found = mask_impact.tower(
        loaded, PROMPT, images=pictures, boxes=(3, 3, 11, 9), image_number=1, num_tokens=3, target="each", windows=1
    )
    (region, _) = found.regions
    assert region.positions
    assert len(found.targets) == 3
    assert [*found.readings] == [1]
    inputs = eye_oracle.processed(loaded, found.meta["templated_prompt"], pictures)
    assert_effects_agree(loaded.model, inputs, found)


def test_the_map_has_each_patch_in_its_place_and_tokens_too():
    """The grid is in reading order, the tower's patches are merge block by merge block."""
    for unit, size in (("patch", 1), ("token", 4)):
        model, inputs, found = of_inputs(dtype=torch.float64, unit=unit, effects=False)
        keys = torch.eye(24 // size, dtype=torch.bool).repeat_interleave(size, dim=1)
        wanted = tower_oracle.local_map(model, inputs["pixel_values"], inputs["image_grid_thw"], 0, keys).numpy()
        grid = found.readings[0].attention
        assert grid.shape == ((4, 4, 6) if unit == "patch" else (4, 2, 3))
        for number in range(len(keys)):
            if unit == "token":
                row, column = divmod(number, 3)
            else:
                block, within = divmod(number, 4)
                row, column = 2 * (block // 3) + within // 2, 2 * (block % 3) + within % 2
            np.testing.assert_allclose(grid[:, row, column], wanted[:, number], rtol=1e-6)
    assert found.targets[0].found == -1
    assert len(found.targets[0].place) == len(found.regions) == 0


# --- what is wrong is rejected --------------------------------------------------------------------------------------------


def test_patches_in_row_order_are_rejected(monkeypatch):
    monkeypatch.setattr(PatchGrid, "placed", lambda self, one: one.view(*one.shape[:-1], self.rows, self.columns))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_the_map_has_each_patch_in_its_place_and_tokens_too()
    monkeypatch.undo()
    monkeypatch.setattr(PatchGrid, "ordered", lambda self, one: one.flatten(-2))
    with pytest.raises(AssertionError, match="differs from a run with a mask"):
        test_hidden_tokens_and_windows_agree_with_the_model_run_with_a_mask("qwen3_vl", "sdpa", torch.float32)


def test_hiding_from_the_region_itself_too_is_rejected(monkeypatch):
    """As a mask of whole columns does."""
    from mask_impact.engine import tower as towers

    def columns(self, variant, layer, like):
        keys = self._keys[variant] & self._layers[variant, layer]
        keys = keys.expand(len(keys), -1)
        return torch.zeros(keys.shape, dtype=like.dtype).masked_fill_(keys, torch.finfo(like.dtype).min)[None, None]

    monkeypatch.setattr(towers._Hiding, "_mask", columns)
    model, inputs, found = of_inputs(by="tokens", num_tokens=1)
    with pytest.raises(AssertionError, match="differs from a run with a mask"):
        assert_effects_agree(model, inputs, found)


def test_another_image_s_patches_are_rejected(monkeypatch):
    own = FeaturePass.pixel_values
    monkeypatch.setattr(FeaturePass, "pixel_values", lambda self, image: own(self, 0)[: self.n_patches[image]])
    model, inputs, found = of_inputs(n_images=2, num_tokens=1, image_number=1)
    with pytest.raises(AssertionError, match="differs from a run with a mask"):
        assert_effects_agree(model, inputs, found)


def test_a_mask_counts_by_its_own_patches_against_the_rest(tower, tmp_path):
    """Not by the box around it, in what is read and on the page; read back, too."""
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[0:4], mask[:, 0:4] = 255, 255  # the first row and the first column of patches
    for unit, inside in (("patch", 13), ("token", 6)):
        found = tower(mask=mask, unit=unit, num_tokens=1)
        numbers = found.readings[0].attention
        step = 1 if unit == "patch" else 2
        own = np.array(
            [[row // step == 0 or column // step == 0 for column in range(0, 8, step)] for row in range(0, 6, step)]
        )
        assert own.sum() == inside
        ((name, of_region), (_, rest)) = read_by_region(found, 0)
        assert name == "mask"
        np.testing.assert_allclose(of_region, [layer[own].mean() for layer in numbers], rtol=1e-5)
        np.testing.assert_allclose(rest, [layer[~own].mean() for layer in numbers], rtol=1e-5)
        assert len(read_by_region(replace(found, patches={}), 0)) < 2  # the box around it is the whole image
        found.save(tmp_path / unit)
        again = load_tower(tmp_path / unit)
        assert np.array_equal(again.patches[0], found.patches[0])
        assert found.patches[0].sum() == 13
    assert 'd="M0 0 32 0 32 4 4 4 4 24 0 24z"' in tower_html(found)[0]


# --- reads is not matters ---------------------------------------------------------------------------------------------------


def test_what_is_read_most_is_hidden_in_every_run_and_the_summary_says_whether_it_matters(tower):
    found = tower()
    region, grid = found.regions[found.most_read], found.readings[0].attention.mean(axis=0)
    assert (region.level, region.row, region.column) == ("patch", *np.unravel_index(grid.argmax(), grid.shape))
    row = found.targets[0].row(found.most_read, found.layers)
    said = str(found)
    assert ("it is read, and it matters" in said) == matters(found.targets[0], row)
    assert "Reads is one question, matters another" in said
    assert max(map(len, said.splitlines())) <= 80
    assert "Whether the answer needs what is read was not asked" in " ".join(str(tower(effects=False)).split())


@pytest.mark.slow
def test_on_the_demo_s_picture_figures_are_read_and_do_not_matter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tower", "What color is the star?", "-i", str(SHAPES), "-m", "demo", "--plots"]) == 0
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert "regions that were hidden matters" in said
    assert "it is read, and it does not matter" in said
    assert "Hiding patches in the tower: at most" in err
    with Image.open("output/result.tower.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    with open("output/result.tower.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    share = np.array([float(row["attn_relative"]) for row in rows]).reshape(4, 8, 8).mean(axis=0)
    figures = share[[0, 1, 4, 5, 6, 7]][:, [0, 1, 6, 7]].max()
    assert figures > 10 * np.median(share)


# --- files and what is printed ----------------------------------------------------------------------------------------------


def test_the_files_have_all_that_was_measured(tower, tmp_path):
    found = tower(by="tokens", probes=3, windows=1, unit="token")
    paths = found.save(tmp_path / "x.tower.csv", "csv,json,parquet")
    names = {path.name for path in paths}
    tables = {f"x.{table}.{end}" for table in ("tower", "tower_effects") for end in ("csv", "json", "parquet")}
    assert names == tables | {"x.tower.png", "x.tower.meta.json"}
    read = {}
    for table in ("tower", "tower_effects"):
        with open(tmp_path / f"x.{table}.csv", encoding="utf-8", newline="") as file:
            read[table] = list(csv.DictReader(file))
    assert tuple(read["tower"][0]) == READING_COLUMNS
    assert tuple(read["tower_effects"][0]) == EFFECT_COLUMNS
    one = found.readings[0]
    assert one.attention.shape == (4, 3, 4)
    for name, values in (
        ("attn_relative", one.attention),
        ("full_first_order", one.full),
        ("full_standard_error", one.error),
    ):
        assert [float(row[name]) for row in read["tower"]] == pytest.approx(values.ravel().tolist(), rel=1e-6)
    assert {(row["unit"], row["probes"]) for row in read["tower"]} == {("token", "3")}
    last = read["tower"][-1]
    assert (last["image"], last["layer"], last["row"], last["column"]) == ("0", "3", "2", "3")
    target = found.targets[0]
    changes = [float(row["logprob_change"]) for row in read["tower_effects"]]
    assert changes == pytest.approx(target.logprob_change.tolist(), rel=1e-6)
    assert {row["layers"] for row in read["tower_effects"]} == {"0-3", "0", "1", "2", "3"}
    meta = json.loads((tmp_path / "x.tower.meta.json").read_text())
    assert "whether the answer needs it" in meta["answers_what"]
    assert meta["run"]["tower_attention_backend"] == "sdpa"
    assert (meta["unit"], meta["probes"], meta["layers"]) == ("token", 3, [0, 1, 2, 3])
    assert found.to_frame().columns.tolist() == list(READING_COLUMNS)
    assert found.effects_frame().columns.tolist() == list(EFFECT_COLUMNS)
    assert "<img" in found._repr_html_()
    for name in ("x.tower.csv", "x.tower_effects.json"):
        (stored,) = read_stored(tmp_path / name).values()
        assert (stored.tower.readings[0].full == one.full).all()
        assert stored.tower.targets[0].layers == target.layers


def test_without_probes_the_whole_update_is_empty_and_without_effects_there_is_one_table(tower, tmp_path):
    paths = tower(effects=False).save(tmp_path / "x", "csv")
    assert [path.name for path in paths] == ["x.tower.csv", "x.tower.png", "x.tower.meta.json"]
    with open(tmp_path / "x.tower.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["full_first_order"], row["full_standard_error"], row["probes"]) for row in rows} == {("", "", "0")}


def test_the_command_prints_json_and_replaces_what_it_wrote(vl_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(2, 3)).save("a.png")
    argv = ["tower", PROMPT, "-i", "a.png", "-m", str(vl_checkpoint), "-n", "1", "--json"]
    assert main([*argv, "--box", "0,0,8,8", "--layers", "1-2", "--plots"]) == 0
    entry = json.loads(capsys.readouterr().out)
    (target,) = entry["targets"]
    assert target["found"] == target["regions"][0]["region"] == "box 0,0,8,8"
    assert {tuple(one["layers"]) for one in target["regions"]} == {(1, 2)}
    assert len(entry["reads"]) == 4
    assert all(Path(path).is_file() for path in entry["files"])
    assert len(entry["files"]) == 6
    assert main([*argv, "--no-effects"]) == 0
    left = {path.name for path in Path("output").iterdir() if not path.name.startswith(".")}
    assert left == {"result.tower.csv", "result.tower.json", "result.tower.meta.json"}


def test_the_picture_frames_what_matters_alone(tower):
    found = tower(by="tokens")
    for figure, matter in ((tower_figure(found), None), (tower_figure(quiet_one(found)), False)):
        regions = [one for axes in figure.axes for one in axes.patches if (one.get_gid() or "").startswith("region-")]
        lines = [one.get_linewidth() for one in regions]
        target = found.targets[0]
        matter = matters(target, target.row(target.found, found.layers)) if matter is None else matter
        assert sum(line > 1 for line in lines) == matter
        assert len(lines) == len(found.regions)


def quiet_one(found):
    """The same result if nothing had mattered."""
    calm = tuple(
        replace(one, logprob_change=0 * one.logprob_change, differs=np.zeros_like(one.differs)) for one in found.targets
    )
    return replace(found, targets=calm)


def test_no_search_runs_more_often_than_it_said(tower):
    for given in (
        {"windows": 1, "beam": 2},
        {"by": "tokens"},
        {"boxes": [(0, 0, 9, 9), (3, 3, 5, 5)], "windows": 3},
    ):
        observer = Counting()
        tower(observer=observer, num_tokens=1, **given)
        assert 0 < observer.done <= observer.most, given


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"unit": "pixel"}, UsageError, "`unit` must be patch or token, not 'pixel'"),
    ({"probes": -1}, UsageError, "`probes` must be a whole number from 0 to 1024, not -1"),
    ({"windows": 0}, UsageError, "`windows` must be a whole number of layers, at least 1, not 0"),
    ({"layers": [4]}, UsageError, "layer 4 is not there: the vision tower has layers 0 to 3"),
    ({"layers": []}, UsageError, "no layers of the vision tower are given"),
    ({"by": "rows"}, UsageError, "`by` must be search, tokens or patches, not 'rows'"),
    ({"boxes": [(0, 0, 99, 8)]}, InputError, "box 0,0,99,8 is no region of image 0"),
    ({"images": ()}, InputError, "the prompt has no image"),
    ({"by": "tokens", "max_cost": 1000}, UsageError, "rows through layers, as many as"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(given, kind, said, tower):
    with pytest.raises(kind, match=said):
        tower(**given)


def test_frames_of_a_video_are_refused():
    model = tiny_model("qwen3_vl")
    inputs = tiny_image_inputs(model, grids=((2, 4, 4),))
    with pytest.raises(InputError, match=r"must be \[1, height, width\]"):
        mask_impact.tower(loading.wrap(model, make_tokenizer()), inputs, num_tokens=1)


def test_hooks_of_others_on_the_tower_are_refused(loaded, tower):
    block = loaded.model.model.visual.blocks[1]
    with (
        block.register_forward_hook(lambda *args: None),
        pytest.raises(ModelError, match=r"forward hooks are on visual.blocks.1"),
    ):
        tower(by="tokens")


def test_text_models_are_refused(text_checkpoint):
    with pytest.raises(UnsupportedArchitecture, match=r"of qwen3_vl and qwen3_vl_moe only, and .* is qwen3"):
        mask_impact.tower(str(text_checkpoint), PROMPT)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # some processors hand a tensor to numpy
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)
    model = mask_impact.load(str(family_checkpoint(tmp_path, name)), device="cpu", dtype="float32")
    with pytest.raises(UnsupportedArchitecture, match=f"is {model.config.model_type}$"):
        mask_impact.tower(model, PROMPT, images=noise(4, 6))


def test_a_tower_without_an_image_is_refused_before_anything_loads(capsys):
    assert main(["tower", PROMPT, "-m", "demo"]) == 2
    assert "the vision tower sees images: give --image FILE" in capsys.readouterr().err
