"""Pixels of a video that are replaced, in space and time: against the model run plainly on the changed frames."""

import csv
import re

import eye_oracle
import numpy as np
import pytest
from checkpoints import save_checkpoint
from pixels_oracle import NATS, PixelsOracle

import mask_impact
from mask_impact.commands.main import main
from mask_impact.errors import InputError, OutputError, UsageError
from mask_impact.models import loading
from mask_impact.prompts.encoding import encode
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.patches import PatchGrid
from mask_impact.prompts.videos import read_video
from mask_impact.results.patch_files import load_patches
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL

PROMPT, N_TOKENS = "the cat sat", 2
ROWS, COLUMNS, CELL = 2, 3, 8  # image tokens of a pair of frames, and pixels of one
LARGE = {"size": {"shortest_edge": CELL**2, "longest_edge": 64 * CELL**2}}


def movie(n=5, seed=0):
    """uint8 [n, height, width, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (n, ROWS * CELL, COLUMNS * CELL, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A tiny model whose processor takes frames as they are."""
    folder = save_checkpoint(tmp_path_factory.mktemp("models") / "qwen3_vl", "qwen3_vl", max_position_embeddings=512)
    found = loading.load(str(folder), device="cpu", dtype="float32")
    found.processor.video_settings = dict(found.processor.video_settings) | LARGE
    return found


@pytest.fixture(scope="module")
def pixels(loaded):
    """The analysis of `movie()` unless told otherwise."""
    return lambda **given: mask_impact.pixels(loaded, PROMPT, **{"videos": movie(), "num_tokens": N_TOKENS} | given)


class Plain(PixelsOracle):
    """The oracle for one result: what frames that are changed one by one do to its targets."""

    def __init__(self, loaded, found, films=None, pictures=(), prompt=PROMPT):
        self.loaded, self.prompt = loaded, prompt
        self.films, self.pictures = [movie()] if films is None else films, list(pictures)
        super().__init__(loaded, found, self.encoded(self.films))

    def encoded(self, films):
        seen = [*map(read_picture, self.pictures), *map(read_video, films)]
        return dict(encode(self.loaded, self.prompt, seen).inputs)

    def changed(self, region, fill):
        """The model's inputs with a rectangle replaced in each frame of the region's pairs."""
        box = tuple(round(edge) for edge in region.box)
        films = [film.copy() for film in self.films]
        for number in region.every_image:
            moment = self.found.images[number].moment
            for frame in {*moment.frames}:
                films[moment.video][frame] = eye_oracle.filled(films[moment.video][frame], box, fill)
        return self.encoded(films)


# --- against the model on the changed frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["border", "blur"])
def test_replaced_tokens_of_pairs_agree_with_the_model_on_the_changed_frames(fill, loaded, pixels):
    """The last frame is one of an odd number, which its pair has twice."""
    found = pixels(by="tokens", fills=fill, videos=movie(3))
    assert len(found.regions) == 2 * ROWS * COLUMNS
    assert [region.name for region in found.regions][5:7] == ["frames 0-1 [1, 2]", "frame 2 [0, 0]"]
    Plain(loaded, found, [movie(3)]).assert_agrees()


def test_each_way_of_a_box_over_several_pairs_agrees_with_the_model(loaded, pixels):
    found = pixels(boxes=(3, 2, 14, 11), where="video 0 frames 1-3", target="each")
    (region,) = found.regions
    assert (region.name, region.image, region.images) == ("frames 0-3 box 3,2,14,11", 0, (0, 1))
    assert {int(image) for image in found.tokens.image[list(region.positions)]} == {0, 1}
    assert {*found.targets[0].route} == {TOTAL, OWN, OTHERS, HIDDEN}
    Plain(loaded, found).assert_agrees()


def test_the_search_asks_which_frames_matter_and_then_where_in_them(loaded, pixels):
    found = pixels(num_tokens=1)
    levels = [region.level for region in found.regions]
    assert levels[:3] == ["frames"] * 3
    strongest = int(np.argmin(found.targets[0].logprob_change[:3]))
    parts = [region for region in found.regions[3:] if region.level in ("block", "patch")]
    assert parts
    assert {region.image for region in parts} == {strongest}
    best = found.regions[found.targets[0].found]
    assert (best.level, best.image) == ("token", strongest)
    Plain(loaded, found).assert_agrees()


def test_an_image_and_two_videos_are_told_apart(loaded, pixels):
    picture = np.random.default_rng(3).integers(0, 256, (CELL, 2 * CELL, 3), dtype=np.uint8)
    prompt, films = "<video> the <image> cat <video> sat", [movie(2, 1), movie(4, 2)]
    found = mask_impact.pixels(
        loaded, prompt, images=picture, videos=films, where="video 1 seconds 1-1.5", boxes=(0, 0, 9, 9), num_tokens=1
    )
    assert (found.regions[0].name, found.regions[0].image) == ("video 1 frames 2-3 box 0,0,9,9", 3)
    Plain(loaded, found, films, [picture], prompt).assert_agrees([TOTAL, HIDDEN])
    both = mask_impact.pixels(loaded, prompt, images=picture, videos=films, by="tokens", fills="grey", num_tokens=1)
    assert [region.name for region in both.regions][1:3] == ["image 0 [0, 1]", "video 0 frames 0-1 [0, 0]"]
    of_films = [row for row, place in enumerate(both.targets[0].place) if both.regions[place].image > 0]
    plain = Plain(loaded, both, films, [picture], prompt)
    for row in of_films[::4]:
        after = plain.expected(both.regions[both.targets[0].place[row]], "grey", TOTAL)
        change, _, _ = eye_oracle.effect(plain.before, after, plain.produced, (0,))
        assert abs(both.targets[0].logprob_change[row] - change) < NATS


def test_cells_by_their_words_are_one_region_over_their_frames(loaded, pixels):
    found = pixels(where="video 0 frames 2-4  rows 1", fills="mean")
    (region,) = found.regions
    assert (region.name, region.images, region.size) == ("video 0 frames 2-4 rows 1", (1, 2), (COLUMNS * CELL, CELL))
    Plain(loaded, found).assert_agrees()


# --- broken versions --------------------------------------------------------------------------------------------------------


def swapped(grid, values):
    """The two frames of each time in the wrong order."""
    return PICTURES(grid, values).flip(0)


PICTURES, PATCHED = PatchGrid.pictures, PatchGrid.patched


def swapped_again(grid, pixels):
    """The same where frames become patches."""
    return PATCHED(grid, pixels.flip(1) if pixels.dim() == 5 else pixels)


@pytest.mark.parametrize(("name", "broken"), [("pictures", swapped), ("patched", swapped_again)])
def test_swapped_frames_of_one_time_are_told_from_the_model(name, broken, loaded, pixels, monkeypatch):
    monkeypatch.setattr(PatchGrid, name, broken)
    with pytest.raises(AssertionError):
        Plain(loaded, pixels(by="tokens", fills="border", num_tokens=1)).assert_agrees()


def test_a_fill_that_is_the_first_frame_s_for_both_is_told_from_the_model(loaded, pixels, monkeypatch):
    monkeypatch.setattr(PatchGrid, "pictures", lambda grid, values: PICTURES(grid, values)[:1].expand(2, -1, -1, -1))
    with pytest.raises(AssertionError):
        Plain(loaded, pixels(by="tokens", fills="border", num_tokens=1)).assert_agrees()


# --- what is asked, and what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"where": "video 1"}, InputError, "there is no video 1; the prompt has one video, which is 0"),
    ({"where": "question"}, InputError, "has tokens that are no part of an image"),
    ({"where": "video 0 frames 0-9"}, InputError, "there is no frame 9; video 0 has frames 0 to 4"),
    ({"where": "video 0"}, InputError, "the region is the whole video"),
    ({"where": "video 0 frames 0-1 rows 0", "boxes": (0, 0, 8, 8)}, UsageError, "names some cells of its frames"),
    ({"where": "video 0 frames 0-1 rows 0 + video 0 frames 2-3 rows 1"}, UsageError, "names other cells in one pair of frames"),
    ({"where": "video 0 frames 0-1", "image_number": 2}, UsageError, "is not in image 2"),
    ({"where": 3}, UsageError, "`where` must be text"),
    ({"videos": [movie(2), movie(2)], "boxes": (0, 0, 8, 8)}, UsageError, "the prompt has 2 images: say with `image_number` or"),
])  # fmt: skip
def test_what_cannot_be_asked_of_a_video_is_one_line(given, kind, said, pixels):
    with pytest.raises(kind, match=said):
        pixels(**given)


def test_where_limits_what_is_searched(pixels):
    found = pixels(by="search", where="video 0 frames 2-4", num_tokens=1, fills="grey")
    assert {region.image for region in found.regions} == {1, 2}
    found = pixels(by="tokens", where="video 0 frame 4", num_tokens=1, fills="grey")
    assert [region.image for region in found.regions] == [2] * ROWS * COLUMNS


def test_a_video_of_one_pair_is_searched_by_its_quarters(pixels):
    found = pixels(videos=movie(2), num_tokens=1, fills="grey")
    assert {region.level for region in found.regions} == {"block", "token", "patch"}


def test_the_table_says_when_and_the_files_are_read_again(pixels, tmp_path):
    found = pixels(boxes=(3, 2, 14, 11), where="video 0 frames 2-4", by="tokens", fills="grey", num_tokens=1)
    found.save(tmp_path / "x")
    with open(tmp_path / "x.patches.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    whens = [(row["video"], row["frame"], row["time_s"]) for row in rows]
    assert whens[0] == ("0", "2", "1.625")  # frames at 1 and 1.5 s, and one at 2
    assert {*whens[-ROWS * COLUMNS :]} == {("0", "4", "2")}
    again = load_patches(tmp_path / "x")
    assert again.regions == found.regions
    meta = tmp_path / "x.patches.meta.json"
    meta.write_text(re.sub(r'"images": ?\[1, ?2\]', '"images": [2, 1]', meta.read_text()))
    with pytest.raises(OutputError, match="images"):
        load_patches(tmp_path / "x")


def test_the_command_takes_videos(loaded, tmp_path, monkeypatch, capsys):
    from PIL import Image

    folder = tmp_path / "film"
    folder.mkdir()
    for number, frame in enumerate(movie(4)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    argv = ["pixels", PROMPT, "--video", str(folder), "-m", loaded.name, "-n", "1", "--where", "video 0 frames 2-3"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "with video 0 frames 2-3 replaced, the answer" in " ".join(out.split())
    assert main(["pixels", PROMPT, "-m", "demo"]) == 2
    assert "give --image FILE or --video FILE" in capsys.readouterr().err
