"""Videos: each pair of frames has its time before it and its cells where its pixels are; numbers are those of really hiding."""

import copy
import dataclasses
import inspect
import json
import types

import family_oracle
import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint
from family_models import NotHere
from PIL import Image
from transformers import Glm4vProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from vision_families import family_checkpoint

from mask_impact.api.functions import analyze, analyze_many, explain, knockout, without
from mask_impact.commands.main import main
from mask_impact.errors import InputError
from mask_impact.models import loading
from mask_impact.prompts.clips import patched, prepare_clip
from mask_impact.prompts.encoding import encode, join, layout_of
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.videos import read_video
from mask_impact.results.store import load_result
from mask_impact.views.card import Card
from mask_impact.views.card_parts import by_image
from mask_impact.views.film_strip import strips, totals

SIZE = (48, 32)
PROMPT = "What is it?"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_5", "glm4v")


def movie(n=4, size=SIZE, seed=0):
    """uint8 [n, height, width, 3]"""
    return np.random.default_rng(seed).integers(40, 216, (n, size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny Qwen3-VL in float64, with a tokenizer, a template and a processor."""
    folder = save_checkpoint(tmp_path_factory.mktemp("models") / "qwen3_vl", "qwen3_vl", max_position_embeddings=512)
    loaded = loading.load(str(folder), dtype="float32")
    return dataclasses.replace(loaded, model=loaded.model.double())


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A tiny model of another family, loaded."""
    models = {}

    def of(name):
        if name not in models:
            folder = tmp_path_factory.mktemp("models") / name
            folder.mkdir()
            try:
                models[name] = loading.load(str(family_checkpoint(folder, name)), dtype="float32")
            except NotHere as reason:
                pytest.skip(str(reason))
        return models[name]

    return of


def encoded_with(loaded, *videos, prompt=PROMPT, **how):
    return encode(loaded, prompt, [read_video(one, **how) for one in videos])


# --- the prompt -------------------------------------------------------------------------------------------------------------


def text_of(encoded):
    """The tokens' texts, runs of cells as one <cells>."""
    parts = []
    for text, kind in zip(encoded.tokens.texts, encoded.tokens.kinds, strict=True):
        text = "<cells>" if kind == "video" else text
        if not (text == "<cells>" and parts[-1:] == ["<cells>"]):
            parts.append(text)
    return "".join(parts)


def test_each_pair_of_frames_has_its_time_and_its_own_marks(tiny):
    pair = "<|vision_start|><cells><|vision_end|>"
    expected = f"<|im_start|>user\n<0.2 seconds>{pair}<1.2 seconds>{pair}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(encoded_with(tiny, movie())) == expected


def test_a_model_without_timestamps_has_a_video_in_one_piece_and_is_told_its_seconds(family):
    encoded = encoded_with(family("qwen2_5_vl"), movie(6), fps=4)
    assert "user\n<|vision_start|><cells><|vision_end|>What" in text_of(encoded)
    assert encoded.inputs["second_per_grid_ts"].tolist() == [0.5]
    with pytest.raises(InputError, match="the prompt says no times of its video"):
        layout_of(family("qwen2_5_vl"), encoded).resolve("timestamps")


def its_own(loaded, encoded):
    """(text, token types) that GLM-V's own processor makes, whose video processor itself needs torchvision."""
    parts = {"video_processor": types.SimpleNamespace(merge_size=2)}
    processor = loaded.processor
    seconds = [second for image in encoded.images for second in image.moment.seconds]
    told = types.SimpleNamespace(fps=1.0, timestamps=seconds)
    made = types.SimpleNamespace(image_token=processor.image_token, **parts)
    made.replace_frame_token_id = processor.replace_frame_token_id.__func__.__get__(made)
    given = {"video_grid_thw": encoded.inputs["video_grid_thw"], "video_metadata": [told]}
    text = Glm4vProcessor.replace_video_token(made, given, 0)
    return text, processor.create_mm_token_type_ids(encoded.inputs["input_ids"].tolist())


def test_glm_v_s_patches_are_in_the_order_of_its_own_processor():
    frames = np.random.default_rng(0).normal(size=(5, 16, 24, 3)).astype(np.float32)
    videos = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    wanted, *grid = Glm4vVideoProcessor.patchify(None, videos, patch_size=4, merge_size=2, temporal_patch_size=2)
    found, made = patched(np.concatenate([frames, frames[-1:]]), 4, 2, 2)
    assert list(made) == grid
    assert np.array_equal(found, wanted[0].numpy())


def test_glm_v_has_each_pair_as_an_image_with_its_second_behind_it_as_its_own_processor_writes(family):
    loaded = family("glm4v")
    encoded = encoded_with(loaded, movie(5), fps=1)
    text, types_of = its_own(loaded, encoded)
    assert [image.moment.seconds[0] for image in encoded.images] == [0, 2, 4]
    spelled = loaded.tokenizer.decode(encoded.inputs["input_ids"][0])
    assert f"user\n<|begin_of_video|>{text}<|end_of_video|>{PROMPT}" in spelled
    assert encoded.inputs["mm_token_type_ids"].tolist() == types_of
    layout = layout_of(loaded, encoded)
    assert [encoded.tokens.texts[at] for at in layout.resolve("timestamps")] == ["0", "2", "4"]
    flows = knockout(loaded, PROMPT, videos=movie(), window=2).flows
    assert [one.flow.name for one in flows][2:4] == ["timestamps -> video", "timestamps -> question"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its own processor
def test_glm_v_takes_images_or_videos_in_a_pass_and_not_both(family):
    """It counts their cells together."""
    loaded = family("glm4v")
    image = read_picture(Image.fromarray(movie()[0]))
    with pytest.raises(InputError, match="takes images or videos in a prompt, not both"):
        encode(loaded, PROMPT, [image, read_video(movie())])
    prompts = [{"prompt": PROMPT, "images": [movie()[0]]}, {"prompt": PROMPT, "videos": movie(2)}]
    for one, alone in zip(analyze_many(loaded, prompts, answer=False), prompts, strict=True):
        expected = analyze(loaded, **alone, answer=False)
        assert np.abs(one.steps[0].l2 - expected.steps[0].l2).max() < 1e-9


def test_marks_say_where_videos_and_images_go(tiny):
    image = Image.fromarray(movie()[0])
    seen = [read_picture(image), read_video(movie(2)), read_video(movie(2, seed=1))]
    encoded = encode(tiny, "a <video> b <image> c <video> d", seen)
    kinds, numbers = np.array(encoded.tokens.kinds), encoded.tokens.image
    assert [one.moment and one.moment.video for one in encoded.images] == [None, 0, 1]
    first = [np.flatnonzero(numbers == number)[0] for number in (1, 0, 2)]
    assert first == sorted(first)
    assert kinds[first].tolist() == ["video", "image", "video"]
    with pytest.raises(InputError, match=r"marks 1 place for a video \(<video>\), and the number of videos given is 2"):
        encode(tiny, "a <video> b", seen[1:])


def positions_by_hand(encoded):
    """int [3, n] as the table says: a pair stands at one time, its cells at their row and column; text goes on behind the largest
    of these."""
    tokens, found, at, position = encoded.tokens, [], 0, 0
    while position < len(tokens):
        image = tokens.image[position]
        if image < 0:
            found.append([at] * 3)
            at, position = at + 1, position + 1
            continue
        own = np.flatnonzero(tokens.image == image)
        found += [[at, at + int(tokens.row[one]), at + int(tokens.column[one])] for one in own]
        at, position = at + max(encoded.images[image].grid), own[-1] + 1
    return np.array(found).T


def own_positions(loaded, encoded):
    inputs = {name: value for name, value in encoded.inputs.items() if not name.startswith("pixel")}
    return loaded.model.model.get_rope_index(**inputs)[0][:, 0].numpy()


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v"])
def test_positions_and_placeholders_are_the_model_s_own(tiny, family, name):
    loaded = tiny if name == "qwen3_vl" else family(name)
    encoded = encoded_with(loaded, movie(5), movie(2, (32, 48)), prompt="<video> and <video>?")
    assert (own_positions(loaded, encoded) == positions_by_hand(encoded)).all()
    ids = encoded.inputs["input_ids"]
    embedded = loaded.model.get_input_embeddings()(ids)
    features = torch.cat(
        loaded.model.model.get_video_features(
            encoded.inputs["pixel_values_videos"].to(loaded.model.dtype), encoded.inputs["video_grid_thw"]
        ).pooler_output
    )
    _, mask = loaded.model.model.get_placeholder_mask(ids, inputs_embeds=embedded, video_features=features)
    assert mask[0, :, 0].tolist() == [kind == "video" for kind in encoded.tokens.kinds]


def test_positions_in_another_order_of_rows_would_be_found(tiny):
    encoded = encoded_with(tiny, movie())
    swapped = dataclasses.replace(encoded.tokens, row=encoded.tokens.column, column=encoded.tokens.row)
    assert not (own_positions(tiny, encoded) == positions_by_hand(dataclasses.replace(encoded, tokens=swapped))).all()


# --- the pixels -------------------------------------------------------------------------------------------------------------


def patches_one_by_one(frames, patch, merged):
    """[P, d] of float frames [n, height, width, 3], n even: number by number."""
    found = []
    n, height, width, _ = frames.shape
    token = patch * merged
    for time in range(0, n, 2):
        for top in range(0, height, token):
            for left in range(0, width, token):
                for down in range(merged):
                    for across in range(merged):
                        y, x = top + down * patch, left + across * patch
                        block = frames[time : time + 2, y : y + patch, x : x + patch]
                        found.append(
                            [
                                block[t, i, j, c]
                                for c in range(3)
                                for t in range(2)
                                for i in range(patch)
                                for j in range(patch)
                            ]
                        )
    return np.array(found)


def as_seen(loaded, frames):
    """The pixel values of frames that need no resizing, by hand."""
    vision = loaded.config.vision_config
    images = loaded.processor.image_processor
    normal = (frames / 255 - np.array(images.image_mean)) / np.array(images.image_std)
    return patches_one_by_one(normal, vision.patch_size, vision.spatial_merge_size)


def test_patches_are_those_of_the_frames_merge_block_by_merge_block(tiny):
    clip = read_video(movie())
    made = prepare_clip(tiny, clip, 0)
    resized = np.stack(
        [np.asarray(one.resize(made.images[0].resized, Image.Resampling.BICUBIC)) for one in clip.frames]
    )
    wanted = as_seen(tiny, resized)
    assert np.abs(made.pixels.numpy() - wanted).max() < 1e-5
    swapped = resized[[1, 0, 3, 2]]  # the two frames of each time
    assert np.abs(made.pixels.numpy() - as_seen(tiny, swapped)).max() > 0.1
    rows, columns = made.grid[1:]
    row_order = (
        wanted.reshape(made.grid[0], rows // 2, columns // 2, 2, 2, -1)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(wanted.shape)
    )
    assert np.abs(made.pixels.numpy() - row_order).max() > 0.1


def test_an_odd_last_frame_stands_twice(tiny):
    one, two = (prepare_clip(tiny, read_video(frames), 0) for frames in (movie(5), movie(5)[[0, 1, 2, 3, 4, 4]]))
    assert torch.equal(one.pixels, two.pixels)
    assert one.images[-1].moment.frames == (4, 4)


@torch.no_grad()
def local_features(model, inputs):
    """[n, hidden], what the decoder gets of each cell, from a vision tower in which no patch sees another."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name in ("out_proj", "o_proj", "proj"):
            if "Attention" in type(module).__name__ and "Text" not in type(module).__name__ and hasattr(module, name):
                for parameter in getattr(module, name).parameters():
                    parameter.zero_()
    taken = inspect.signature(model.model.get_video_features).parameters
    given = {name: value for name, value in inputs.items() if name in taken}
    given["pixel_values_videos"] = given["pixel_values_videos"].to(model.dtype)
    return torch.cat(list(model.model.get_video_features(**given).pooler_output))


@pytest.mark.parametrize("name", ["qwen3_vl", *FAMILIES])
def test_a_cell_is_where_its_pixels_are_and_of_its_frames(tiny, family, name):
    """A place is painted over in one frame of four: the token of that place and pair changes most, and none of the other pair."""
    loaded = tiny if name == "qwen3_vl" else family(name)
    frames = movie()
    encoded = encoded_with(loaded, frames)
    before = local_features(loaded.model, encoded.inputs)
    tokens = encoded.tokens
    own = np.flatnonzero(tokens.image >= 0)
    for position in own[:: max(1, len(own) // 4)]:
        image = encoded.images[tokens.image[position]]
        left, top, right, bottom = map(round, image.box(int(tokens.row[position]), int(tokens.column[position])))
        for frame in image.moment.frames:
            changed = frames.copy()
            inner = slice(top + 2, bottom - 2), slice(left + 2, right - 2)
            changed[frame][inner] = 255, 0, 0
            after = local_features(loaded.model, encoded_with(loaded, changed).inputs)
            moved = (after - before).norm(dim=-1).numpy()
            assert own[moved.argmax()] == position
            assert (moved[tokens.image[own] != tokens.image[position]] == 0).all()


# --- the numbers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tiny):
    """(result, inputs, per step the oracle's distances)."""
    with family_oracle.in_float64():
        result = analyze(tiny, PROMPT, videos=movie(), num_tokens=2, answer=False, effect=True)
    inputs = encoded_with(tiny, movie()).inputs
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].double()
    produced = result.tokens.ids[result.n_prompt :].tolist()
    oracle = family_oracle.Oracle(tiny.model)
    return result, inputs, produced, oracle


def error_of(l2, expected):
    """The largest relative error of a step's distances [layer, position, variant]."""
    worst = 0.0
    for layer, one in enumerate(expected):
        for got, wanted in (
            (l2[layer, :, 0], one.full),
            (l2[layer, :, 1], one.attn),
            (l2[layer, :, 2:], one.heads.T),
        ):
            worst = max(worst, float((np.abs(got - wanted) / np.maximum(wanted, 1e-6 * wanted.max())).max()))
    return worst


def test_distances_are_those_of_really_hiding_in_prefill_and_decode(measured):
    result, inputs, produced, oracle = measured
    for number, step in enumerate(result.steps):
        assert error_of(step.l2, oracle.measure(inputs, produced[:number])) < 1e-9


def test_a_table_with_the_frames_of_two_times_swapped_would_be_found(measured, tiny):
    result, _, _, oracle = measured
    other = encoded_with(tiny, movie()[[2, 3, 0, 1]]).inputs
    other["pixel_values_videos"] = other["pixel_values_videos"].double()
    assert error_of(result.steps[0].l2, oracle.measure(other, [])) > 1e-3


def logprob(logits, token):
    return float(torch.log_softmax(logits, dim=-1)[token])


def effect_errors(measured, positions_of):
    """The largest error of the effects at some positions of each step, in nats. They are kept in float32."""
    result, inputs, produced, oracle = measured
    for number, step in enumerate(result.steps):
        before = logprob(oracle.logits(inputs, produced[:number]), produced[number])
        for layer in range(result.n_layers):
            for at in positions_of(result, step):
                hidden = oracle.logits(inputs, produced[:number], {layer: (at,)})
                wanted = logprob(hidden, produced[number]) - before
                yield abs(float(step.effect.logprob_change[layer, at]) - wanted)


def test_effects_are_those_of_really_hiding(measured):
    """Of a cell of each pair, and of a token of each time."""
    found = [
        *effect_errors(
            measured, lambda result, step: [4, 11, *(result.tokens.kinds.index("video") + n for n in (0, 1))]
        )
    ]
    assert max(found) < 1e-7


@pytest.mark.slow
def test_effects_of_every_third_position_are_those_of_really_hiding(measured):
    assert max(effect_errors(measured, lambda result, step: range(0, step.n_positions, 3))) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_distances_of_other_families_are_those_of_really_hiding(family, name):
    loaded = family(name)
    loaded = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).double())
    with family_oracle.in_float64():
        result = analyze(loaded, PROMPT, videos=movie(), answer=False)
    expected = family_oracle.measure(loaded.model, encoded_with(loaded, movie()).inputs)
    layers = [layer for layer, one in enumerate(expected) if one is not None]
    assert list(result.layers) == layers
    assert error_of(result.steps[0].l2[layers], [expected[layer] for layer in layers]) < 1e-6


def test_the_mode_vision_hides_the_cells_of_videos(tiny):
    result = analyze(tiny, PROMPT, videos=movie(), answer=False, mask_mode="vision")
    assert {result.tokens.kinds[at] for at in result.steps[0].positions} == {"video"}


def test_prompts_with_videos_share_a_pass(tiny):
    prompts = [{"prompt": PROMPT, "videos": movie(n)} for n in (2, 5)]
    for one, alone in zip(analyze_many(tiny, prompts, answer=False), prompts, strict=True):
        expected = analyze(tiny, alone["prompt"], videos=alone["videos"], answer=False)
        assert np.abs(one.steps[0].l2 - expected.steps[0].l2).max() < 1e-9
    inputs, _ = join([encoded_with(tiny, one["videos"]) for one in prompts], 0)
    assert inputs["video_grid_thw"][:, 0].tolist() == [1, 3]


# --- what else is done with images ------------------------------------------------------------------------------------------


def test_specs_name_videos_frames_seconds_and_timestamps(tiny):
    encoded = encoded_with(tiny, movie(6), movie(2, seed=1), prompt="<video> then <video>?")
    layout = layout_of(tiny, encoded)

    def images(spec):
        return sorted({int(encoded.tokens.image[at]) for at in layout.resolve(spec)})

    assert images("video") == [0, 1, 2, 3]
    assert images("video 0") == [0, 1, 2]
    assert images("video 1") == [3]
    assert images("video 0 frames 3-4") == [1, 2]
    assert images("video 0 frame 0") == [0]
    assert images("video 0 seconds 1.2-1.6") == [1]
    assert images("video 0 seconds 2") == [2]
    assert images("image 2 rows 0") == [2]
    (first,) = layout.resolve("video 1 frames 0-1 rows 1 columns 0")
    assert (encoded.tokens.image[first], encoded.tokens.row[first], encoded.tokens.column[first]) == (3, 1, 0)
    times = "".join(encoded.tokens.texts[at] for at in layout.resolve("timestamps"))
    assert times == "<0.2 seconds><1.2 seconds><2.2 seconds><0.2 seconds>"
    for spec, said in (
        ("video 2", "there is no video 2; the prompt has 2 videos, 0 to 1"),
        ("video rows 0", "the prompt has 2 videos: say which, video 0 to video 1"),
        ("video 0 frames 4-6", "there is no frame 6; video 0 has frames 0 to 5"),
        ("video 0 seconds 9", "no frames of video 0 are seen within seconds 9; the nearest are at 2-2.5"),
        ("video 0 seconds 3-1", "run backwards"),
        ("image", "the prompt has no image; its video is called video"),
    ):
        with pytest.raises(InputError, match=said):
            layout.resolve(spec)


def test_flows_hidden_parts_and_explanations_take_videos(tiny):
    found = knockout(tiny, PROMPT, videos=movie(), window=2)
    names = [one.flow.name for one in found.flows]
    assert names == [
        *("video -> question", "video -> last", "timestamps -> video", "timestamps -> question", "question -> last"),
    ]
    changed = without(tiny, PROMPT, ["video 0 frames 0-1", "timestamps"], videos=movie(), num_tokens=2)
    assert len(changed.others) == 2
    told = explain(tiny, PROMPT, videos=movie(), num_tokens=1, budget=4)
    cells = [place for place, kind in enumerate(told.targets[0].kinds) if kind == "video"]
    assert told.targets[0].names[cells[0]] == "frames 0-1 [0, 0]"
    assert len(cells) == sum(image.n_tokens for image in told.images)


def test_what_does_not_take_videos_says_so(tiny, family):
    with pytest.raises(
        InputError, match=r"is gemma3, and videos are taken by qwen3_vl, .* only; give frames as images"
    ):
        analyze(family("gemma3"), PROMPT, videos=movie())
    inputs = encoded_with(tiny, movie()).inputs
    with pytest.raises(InputError, match="hold a video"):
        analyze(tiny, inputs)


def test_frames_that_were_left_out_are_said(tiny):
    result = analyze(tiny, PROMPT, videos=movie(9), video_frames=2, answer=False)
    (notice,) = (one for one in result.meta["notices"] if "frames" in one)
    assert notice == "Of the 9 frames of video 'video' 2 are taken, evenly by time, all that video_frames allows"


def test_a_result_is_read_back_with_its_videos(tiny, tmp_path):
    result = analyze(tiny, PROMPT, videos=movie(3), budget=3)
    result.save(tmp_path / "r")
    again = load_result(tmp_path / "r")
    assert again.tokens.kinds == result.tokens.kinds
    assert [one.moment for one in again.images] == [one.moment for one in result.images]
    assert again.images[0].source == "video, 0.2 s"


# --- the command line -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, an animation and a dataset that names it."""
    folder = tmp_path_factory.mktemp("line")
    save_checkpoint(folder / "model", "qwen3_vl", max_position_embeddings=512)
    frames = [Image.fromarray(frame) for frame in movie()]
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:], duration=500, lossless=True)
    rows = [
        {"name": "one", "prompt": PROMPT, "video": "a.webp", "video_frames": 2},
        {"prompt": PROMPT, "video": "b.gif"},
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_command_run_draws_a_video_over_time(folder, tmp_path, capsys):
    """Also in the page, by its frames."""
    how = ["-m", str(folder / "model"), "--output-dir", str(tmp_path), "--dtype", "float32", "--budget", "2"]
    how += ["--plots", "--report"]
    assert main(["run", PROMPT, "--video", str(folder / "a.webp"), *how]) == 0
    said = capsys.readouterr().out
    assert "(1 video of 4 frames)" in said
    assert "frames 2-3" in (tmp_path / "result.html").read_text()
    found = load_result(tmp_path / "result")
    assert [one.moment.time_s for one in found.images] == [0.25, 1.25]
    assert (tmp_path / "result.card.png").stat().st_size > 10_000


def test_a_dataset_names_videos(folder, tmp_path, capsys):
    how = ["-m", str(folder / "model"), "--output-dir", str(tmp_path), "--dtype", "float32"]
    assert main(["study", str(folder / "data.jsonl"), *how]) == 3
    (failure,) = (json.loads(line) for line in (tmp_path / "data.errors.jsonl").read_text().splitlines())
    assert "b.gif" in failure["message"]
    assert "does not exist; give a file, or a folder of frames" in failure["message"]


def test_the_strip_of_a_card_adds_up_the_cells_of_each_pair(tiny):
    card = Card(explain(tiny, PROMPT, videos=movie(), num_tokens=1, budget=4))
    cells = by_image(card)
    expected = [sum(one.change for one in card.cells if one.image == pair) for pair in (0, 1)]
    assert totals(cells, [0, 1]) == pytest.approx(expected)
    assert len(strips(card, 6.0)) == 1
    assert card.name(card.cells[-1].place).endswith("of frames 2-3")
