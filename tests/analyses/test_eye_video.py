"""DeepStack's parts and the vision tower on videos: against the model run plainly, pair of frames by pair of frames."""

import eye_oracle
import numpy as np
import pytest
import torch
import tower_oracle
from checkpoints import save_checkpoint
from observers import Counting
from transformers.models.qwen3_vl import modeling_qwen3_vl

import mask_impact
from mask_impact.commands.main import main
from mask_impact.engine.feature_sets import EverySet
from mask_impact.engine.features import FeaturePass
from mask_impact.errors import ExactnessError, InputError, UsageError
from mask_impact.models import loading
from mask_impact.prompts.encoding import encode
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.patches import PatchGrid
from mask_impact.prompts.videos import read_video

PROMPT, N_TOKENS, NATS = "the cat sat", 2, 1e-4
ROWS, COLUMNS, CELL = 2, 3, 8  # image tokens of a pair of frames, and pixels of one
LARGE = {"size": {"shortest_edge": CELL**2, "longest_edge": 64 * CELL**2}}
MIXED = "a <video> b <image> c"


def movie(n=4, seed=0):
    """uint8 [n, height, width, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (n, ROWS * CELL, COLUMNS * CELL, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A tiny model of six decoder layers whose processor takes frames as they are."""
    folder = tmp_path_factory.mktemp("models") / "qwen3_vl"
    save_checkpoint(folder, "qwen3_vl", max_position_embeddings=512, num_hidden_layers=6)
    found = loading.load(str(folder), device="cpu", dtype="float32")
    found.processor.video_settings = dict(found.processor.video_settings) | LARGE
    return found


@pytest.fixture(scope="module")
def deepstack(loaded):
    """The analysis of a film unless told otherwise."""
    usual = {"videos": movie(), "num_tokens": N_TOKENS, "answers": False}
    return lambda prompt=PROMPT, **given: mask_impact.deepstack(loaded, prompt, **usual | given)


@pytest.fixture(scope="module")
def tower(loaded):
    """The analysis of a film unless told otherwise."""
    usual = {"videos": movie(), "num_tokens": N_TOKENS}
    return lambda prompt=PROMPT, **given: mask_impact.tower(loaded, prompt, **usual | given)


def inputs_of(loaded, film, pictures=(), prompt=PROMPT):
    return dict(encode(loaded, prompt, [*map(read_picture, pictures), read_video(film)]).inputs)


# --- DeepStack ----------------------------------------------------------------------------------------------------------------


class Plain:
    """The oracle for one result: every set of parts by hooks before the decoder's layers."""

    def __init__(self, loaded, found, film, pictures=(), prompt=PROMPT):
        self.model, self.found = loaded.model, found
        self.inputs = inputs_of(loaded, film, pictures, prompt)
        self.produced = found.tokens.ids[found.n_prompt :].tolist()
        self.before = eye_oracle.logits(self.model, self.inputs, self.produced)
        self.own = self.parts(self.inputs)
        chosen = found.tokens.image[list(found.positions)]
        if found.baseline == "blank":
            self.others = self.parts(inputs_of(loaded, self.blanked(film), pictures, prompt))
        else:
            self.others = [self.replaced(part) for part in self.own]
        numbers = np.concatenate([np.full(image.n_tokens, at) for at, image in enumerate(found.images)])
        ranks = [list(found.tokens.image[: at + 1]).count(found.tokens.image[at]) - 1 for at in found.positions]
        self.tokens = [int(np.flatnonzero(numbers == one)[rank]) for one, rank in zip(chosen, ranks, strict=True)]

    def parts(self, inputs):
        """[M, hidden] of each part, of all calls of the tower: images first, then videos."""
        found = []

        def keep(module, args, output):
            found.append([output.pooler_output.clone(), *(level.clone() for level in output.deepstack_features)])

        eye_oracle.logits(self.model, inputs, [0], [(self.model.model.visual, keep)])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def replaced(self, part):
        if self.found.baseline == "zero":
            return torch.zeros_like(part)
        each = part.split([image.n_tokens for image in self.found.images])
        return torch.cat([one.mean(dim=0).expand_as(one) for one in each])

    def blanked(self, film):
        """Frame by frame: the region's cells in its pairs."""
        film, tokens = film.copy(), self.found.tokens
        for number in {*tokens.image[list(self.found.positions)].tolist()}:
            mine = [at for at in self.found.positions if tokens.image[at] == number]
            rows, columns = tokens.row[mine], tokens.column[mine]
            box = tuple(int(edge) * CELL for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            for frame in {*self.found.images[number].moment.frames}:
                if len(mine) == ROWS * COLUMNS:
                    pixels = np.sort(film[frame].reshape(-1, 3), axis=0)
                    film[frame] = pixels[(len(pixels) - 1) // 2]
                else:
                    film[frame] = eye_oracle.filled(film[frame], box, "border")
        return film

    def assert_agrees(self):
        """Every set."""
        where = list(self.found.positions), self.tokens
        for target in self.found.targets:
            for number in range(16):
                taken = [part for part in range(4) if not number >> part & 1]
                before = eye_oracle.differing(self.model, self.own, self.others, *where, taken)
                after = eye_oracle.logits(self.model, self.inputs, self.produced, before=before)
                change, kl, top1 = eye_oracle.effect(self.before, after, self.produced, target.steps)
                assert abs(target.logprob_change[number] - change) < NATS, self.found.kept(number)
                assert abs(target.kl_divergence[number] - kl) < NATS, self.found.kept(number)
                assert target.differs[number] == (top1 is not None)
            assert abs(target.logprob_change).max() > 0.05


@pytest.mark.parametrize(("region", "given", "n"), [
    ("image", {}, 12),
    ("video 0 frames 0-3 rows 1 columns 1-2", {}, 4),
    pytest.param("video 0 frames 2-3", {"baseline": "mean"}, 6, marks=pytest.mark.slow),
    pytest.param("video 0 seconds 0-0.4", {}, 6, marks=pytest.mark.slow),
    pytest.param("video 0 frames 2-3 rows 0", {"baseline": "zero"}, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_parts_of_pairs_of_frames_agree_with_hooks_before_decoder_layers(region, given, n, loaded, deepstack):
    found = deepstack(region=region, **given)
    assert len(found.positions) == n
    assert found.region == ("video" if region == "image" else region)
    Plain(loaded, found, movie()).assert_agrees()


@pytest.mark.slow
def test_an_odd_number_of_frames_has_the_last_one_twice(loaded, deepstack):
    found = deepstack(region="video 0 frames 2 rows 1", videos=movie(3))
    assert found.images[1].moment.frames == (2, 2)
    Plain(loaded, found, movie(3)).assert_agrees()


@pytest.mark.parametrize(
    "region", [pytest.param("image 0 rows 0", marks=pytest.mark.slow), "video 0 frames 2-3 rows 1"]
)
def test_a_video_before_an_image_keeps_its_features_behind_the_image_s(region, loaded, deepstack):
    """Features of images come first, whatever stands first in the prompt."""
    picture = movie(1, seed=3)[0]
    found = deepstack(MIXED, region=region, images=picture, baseline="zero", num_tokens=1)
    assert found.tokens.image[list(found.positions)].tolist() == [0 if "image" in region else 2] * 3
    Plain(loaded, found, movie(), [picture], MIXED).assert_agrees()


@pytest.mark.slow
def test_answers_with_parts_of_a_video_are_generated(loaded, deepstack):
    found = deepstack(region="video 0 frames 2-3", answers=True)
    assert len(found.answers) == 9
    texts = {text for number, text in found.answers.items() if not found.targets[0].differs[number]}
    assert texts & {found.generated_text} or not texts


def test_frames_of_one_time_that_are_swapped_are_told_from_the_model(loaded, deepstack, monkeypatch):
    pictures = PatchGrid.pictures
    monkeypatch.setattr(PatchGrid, "pictures", lambda grid, values: pictures(grid, values).flip(0))
    with pytest.raises(AssertionError):
        Plain(loaded, deepstack(region="video 0 frames 2-3 rows 1"), movie()).assert_agrees()


def test_pairs_whose_features_are_swapped_are_told_from_the_model(loaded, deepstack, monkeypatch):
    made = EverySet.__init__

    def swapped(self, again, keys, own, base, positions, tokens, rows):
        made(self, again, keys, own, base, positions.roll(ROWS * COLUMNS), tokens.roll(ROWS * COLUMNS), rows)

    monkeypatch.setattr(EverySet, "__init__", swapped)
    with pytest.raises(ExactnessError, match="is given other states than in the model's own run"):
        deepstack()


def test_a_level_of_a_video_behind_the_wrong_decoder_layer_is_told_from_the_model(loaded, deepstack, monkeypatch):
    made = EverySet.__init__

    def turned(self, *given):
        made(self, *given)
        self._parts[0][1:] = [*self._parts[0][2:], self._parts[0][1]]

    monkeypatch.setattr(EverySet, "__init__", turned)
    with pytest.raises(AssertionError):
        Plain(loaded, deepstack(region="video 0 frames 2-3"), movie()).assert_agrees()


def test_a_region_in_two_pairs_takes_no_picture_for_its_baseline(deepstack):
    with pytest.raises(UsageError, match="another picture stands for one image, and the region 'video' is in 2"):
        deepstack(other=movie(1)[0])
    with pytest.raises(InputError, match="'question' has tokens that are no part of an image"):
        deepstack(region="question")


# --- the tower ------------------------------------------------------------------------------------------------------------------


def keys_in(region, image):
    """bool [P], in the tower's order, of the patches that have a pixel of the region; four in each token."""
    left, top, right, bottom = region.box
    tall, wide = image.size[1] / (2 * ROWS), image.size[0] / (2 * COLUMNS)
    order = [
        (2 * row + y, 2 * column + x)
        for row in range(ROWS)
        for column in range(COLUMNS)
        for y in (0, 1)
        for x in (0, 1)
    ]
    inside = [
        x * wide < right - 1e-6
        and (x + 1) * wide > left + 1e-6
        and y * tall < bottom - 1e-6
        and (y + 1) * tall > top + 1e-6
        for y, x in order
    ]
    return torch.tensor(inside)


def assert_effects_agree(loaded, found, film):
    """Every row of the result against the whole model run again with a mask in its tower."""
    model, inputs = loaded.model, inputs_of(loaded, film)
    produced = found.tokens.ids[found.n_prompt :].tolist()
    with tower_oracle.masked(model):
        before = eye_oracle.logits(model, inputs, produced)
    changes = []
    for target in found.targets:
        for row, place in enumerate(target.place.tolist()):
            region = found.regions[place]
            keys = keys_in(region, found.images[region.image])
            if keys.all():  # a pair without what it could see: hiding nothing
                continue
            with tower_oracle.masked(model, tower_oracle.hiding(keys), target.layers[row], *region.every_image):
                after = eye_oracle.logits(model, inputs, produced)
            change, kl, _ = eye_oracle.effect(before, after, produced, target.steps)
            assert abs(target.logprob_change[row] - change) < NATS, f"{region.name} differs from a run with a mask"
            assert abs(target.kl_divergence[row] - kl) < NATS, f"{region.name} differs from a run with a mask"
            changes.append(change)
    assert max(map(abs, changes)) > 0.005


def assert_maps_agree(loaded, found, film):
    """Of each pair, against patches that are hidden one at a time while the tower sees the whole video."""
    inputs = inputs_of(loaded, film)
    n = 4 * ROWS * COLUMNS
    grid = PatchGrid(2 * ROWS, 2 * COLUMNS, CELL // 2, 2, 2, (0.5,) * 3, (0.5,) * 3)
    for number, reading in found.readings.items():
        wanted = tower_oracle.local_map(
            loaded.model,
            inputs["pixel_values_videos"],
            inputs["video_grid_thw"],
            number,
            torch.eye(n, dtype=torch.bool),
        )
        np.testing.assert_allclose(reading.attention, grid.placed(wanted).numpy(), rtol=2e-4)


def test_hidden_tokens_and_the_map_of_pairs_agree_with_the_model_run_with_a_mask(loaded, tower):
    found = tower(by="tokens", layers=(1, 2))
    assert [*found.readings] == [0, 1]
    assert len(found.regions) >= 12
    assert_effects_agree(loaded, found, movie())
    assert_maps_agree(loaded, found, movie())


@pytest.mark.parametrize("given", [
    pytest.param({"where": "video 0 frames 2-3 rows 1"}, marks=pytest.mark.slow),
    {"where": "video 0 seconds 0-9 rows 1 columns 0-1"},
    {"boxes": (3, 2, 14, 11), "where": "video 0 frames 1-3", "windows": 2},
])  # fmt: skip
def test_regions_over_frames_or_seconds_agree_with_the_model_run_with_a_mask(given, loaded, tower):
    found = tower(num_tokens=1, **given)
    assert found.regions[0].every_image == ((1,) if "2-3" in given["where"] else (0, 1))
    assert_effects_agree(loaded, found, movie())


def test_a_search_in_a_video_begins_with_quarters_of_the_pairs_that_are_read_most(loaded, tower):
    """Of four of them in a video of any length: it runs as often. A pair hidden as a whole would change nothing."""
    told = []
    for n in (8, 10):
        film, observer = movie(n), Counting()
        found = tower(videos=film, num_tokens=1, observer=observer, video_frames=n)
        read = {number: one.attention.mean(axis=0).max() for number, one in found.readings.items()}
        largest = sorted(read, key=read.get)[-4:]
        assert [one.image for one in found.regions[:16]] == [number for number in sorted(largest) for _ in range(4)]
        assert "frames" not in {one.level for one in found.regions}
        assert 0 < observer.done <= observer.most
        told.append(observer.most)
    assert told[0] == told[1]
    assert_effects_agree(loaded, found, film)


@pytest.mark.parametrize("swapped", ["frames", pytest.param("pairs", marks=pytest.mark.slow)])
def test_frames_that_the_tower_sees_at_another_time_are_told_from_the_model(swapped, loaded, tower, monkeypatch):
    values = FeaturePass.pixel_values

    def wrong(self, image):
        if swapped == "pairs":
            return values(self, 1 - image)
        own = values(self, image)
        return own.view(len(own), 3, 2, -1).flip(2).reshape(own.shape)

    monkeypatch.setattr(FeaturePass, "pixel_values", wrong)
    found = tower(by="tokens", num_tokens=1, layers=(1, 2))
    with pytest.raises(AssertionError):
        assert_maps_agree(loaded, found, movie())
    with pytest.raises(AssertionError):
        assert_effects_agree(loaded, found, movie())


def test_pairs_that_see_each_other_in_the_tower_are_told_from_the_answer(tower, monkeypatch):
    """Where the edges of pairs, cu_seqlens, are ignored in what is run again."""
    run, attend = FeaturePass._tower, modeling_qwen3_vl.Qwen3VLVisionAttention.forward

    def together(self, hidden_states, cu_seqlens, **how):
        return attend(self, hidden_states, cu_seqlens=cu_seqlens[[0, -1]], **how)

    def wrong(self, *given):
        with monkeypatch.context() as patch:
            patch.setattr(modeling_qwen3_vl.Qwen3VLVisionAttention, "forward", together)
            return run(self, *given)

    monkeypatch.setattr(FeaturePass, "_tower", wrong)
    with pytest.raises(ExactnessError, match="differs from its answer"):
        tower(by="tokens", num_tokens=1)


# --- the commands -------------------------------------------------------------------------------------------------------------


def test_the_commands_take_a_video(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [read_picture(one).image for one in movie()]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:], duration=500)
    argv = [PROMPT, "--video", "film.gif", "-m", loaded.name, "-n", "1"]
    assert main(["deepstack", *argv, "--region", "video 0 frames 2-3", "--no-answers"]) == 0
    assert "Region: video 0 frames 2-3" in capsys.readouterr().out
    assert main(["tower", *argv, "--where", "video 0 frames 2-3 rows 0", "--plots"]) == 0
    assert "  video 0 frames 2-3 r" in capsys.readouterr().out  # as much as the column holds
    assert (tmp_path / "output" / "result.tower.png").is_file()
