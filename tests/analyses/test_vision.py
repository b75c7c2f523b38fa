"""Prompts with images: the files against the oracle, in both mask modes; and what would be wrong with another model.

Images make positions three-dimensional and add DeepStack's features between the first decoder layers. All of it is the
model's own, so a measurement can only be right if it took place in the model as it is: a decoder that runs otherwise, in one
of the ways that older descriptions of Qwen3-VL get wrong, must be told from it.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from checkpoints import make_tokenizer
from PIL import Image
from tiny_models import tiny_image_inputs, tiny_inputs, tiny_model
from transformers.models.qwen3_vl import modeling_qwen3_vl

from mask_impact.api.functions import analyze as analyze_all
from mask_impact.demo import pictures
from mask_impact.engine.plans import Masked, SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import InputError, UsageError
from mask_impact.models import loading

N_TOKENS = 3
analyze = partial(analyze_all, answer=False)  # local maps alone


def wrapped(name):
    return loading.wrap(tiny_model(name), make_tokenizer())


def is_image(inputs):
    return inputs["mm_token_type_ids"][0].bool().numpy()


def expected_positions(inputs, mask_mode, step):
    of_prompt = {"text": ~is_image(inputs), "vision": is_image(inputs), "both": np.ones_like(is_image(inputs))}[
        mask_mode
    ]
    produced = np.full(step, mask_mode != "vision")
    return np.flatnonzero(np.concatenate([of_prompt, produced]))


# --- the files against the oracle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_images"), [("qwen3_vl", 2), ("qwen3_vl_moe", 1)])
def test_the_files_agree_with_the_oracle_in_every_mask_mode(name, n_images, tmp_path):
    """Four layers, of which DeepStack follows the first three; prefill and two decoding steps; every row of the CSV."""
    loaded = wrapped(name)
    inputs = tiny_image_inputs(loaded.model, n_images=n_images)
    expected = oracle.measure(loaded.model, inputs, N_TOKENS)
    for mask_mode in ("text", "vision", "both"):
        result = analyze(loaded, inputs, num_tokens=N_TOKENS, mask_mode=mask_mode)
        result.save(tmp_path / mask_mode, formats=("csv",))
        table = pd.read_csv(tmp_path / f"{mask_mode}.csv")
        assert table.variant[: len(expected.variants)].tolist() == list(expected.variants)
        for step, (l2, cosine) in enumerate(zip(expected.l2, expected.cosine, strict=True)):
            rows = table[table.generation_step == step]
            positions = expected_positions(inputs, mask_mode, step)
            shape = (len(l2), len(positions), len(expected.variants))
            measured = rows.l2_distance.to_numpy().reshape(shape)
            # Of Full, where full states had to ride (mixture of experts), within its noise floor; the rest exactly.
            floor = np.nan_to_num(result.steps[step].noise_floor)[:, None]
            wanted, wanted_cosine = l2[:, positions].copy(), cosine[:, positions].copy()
            assert (np.abs(measured - wanted)[..., 0] <= 1e-4 * wanted[..., 0] + 10 * floor).all()
            noisy = floor[:, 0] > 0
            wanted[noisy, :, 0] = measured[noisy, :, 0]
            cosines = rows.cosine_distance.to_numpy().reshape(shape)
            wanted_cosine[noisy, :, 0] = cosines[noisy, :, 0]
            assert (rows.token_position.to_numpy().reshape(shape) == positions[None, :, None]).all()
            oracle.assert_l2_close([measured], [wanted])
            oracle.assert_cosine_close([cosines], [wanted_cosine])
            assert (measured > 0).all()
        assert result.tokens.ids[result.n_prompt :].tolist() == list(expected.token_ids)


@pytest.mark.parametrize(("mask_mode", "max_rows"), [("text", 1), ("text", 5), ("vision", 2), ("vision", 5)])
def test_some_positions_are_measured_as_among_all_of_them(mask_mode, max_rows):
    """Chunks of any size, keys with nearly all the weight: the same numbers but for rounding, which is float64's."""
    model = tiny_model("qwen3_vl", sharpness=10.0, dtype=torch.float64)
    inputs = tiny_image_inputs(model, n_images=2)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    masked = Masked(torch.from_numpy(is_image(inputs) == (mask_mode == "vision")), produced=mask_mode == "text")
    engines = RidingEngine(model), RidingEngine(model, plans=[SequencePlan(masked=masked)], max_rows=max_rows)
    for engine in engines:
        with torch.no_grad(), oracle.float32_becomes(torch.float64), engine:
            model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)
    for number, (all_of_them, some) in enumerate(zip(engines[0].steps, engines[1].steps, strict=True)):
        assert some.positions.tolist() == expected_positions(inputs, mask_mode, number).tolist()
        oracle.assert_l2_close([some.l2], [all_of_them.l2[:, some.positions]])
        oracle.assert_cosine_close([some.cosine], [all_of_them.cosine[:, some.positions]])
        torch.testing.assert_close(some.attention, all_of_them.attention)
        torch.testing.assert_close(some.baseline_norm, all_of_them.baseline_norm, rtol=1e-5, atol=1e-5)


def test_verification_masks_only_what_was_measured():
    loaded = wrapped("qwen3_vl")
    inputs = tiny_image_inputs(loaded.model, n_images=2)
    for mask_mode in ("text", "vision"):
        result = analyze(loaded, inputs, num_tokens=2, mask_mode=mask_mode, verify=20)
        assert result.meta["verification"]["error"] < 1e-2
        for step, _, position in result.meta["verification"]["triples"]:
            assert position in result.steps[step].positions


# --- decoders that are not the model's --------------------------------------------------------------------------------------


def one_dimensional_positions(model, monkeypatch):
    def arange(input_ids, **kwargs):
        positions = torch.arange(input_ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        return positions, torch.zeros(1, 1, dtype=torch.long)

    monkeypatch.setattr(model.model, "get_rope_index", arange)


def no_rope_deltas_in_decoding(model, monkeypatch):
    """Counts on from the number of tokens, where the text continues from the largest position that an image used."""

    def count_on(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] == 1:
            past = kwargs["past_key_values"].get_seq_length()
            return args, kwargs | {"position_ids": torch.full((3, 1, 1), past)}
        return None

    model.model.language_model.register_forward_pre_hook(count_on, with_kwargs=True)


def no_deepstack(model, monkeypatch):
    monkeypatch.setattr(
        model.model.language_model, "_deepstack_process", lambda hidden_states, *args, **kwargs: hidden_states
    )


def bidirectional_vision_tokens(model, monkeypatch):
    causal = modeling_qwen3_vl.create_causal_mask
    image = torch.from_numpy(is_image(tiny_image_inputs(model, n_images=2)))

    def mask_of(**kwargs):
        mask = causal(**kwargs)
        n = kwargs["inputs_embeds"].shape[1]
        if n == 1:
            return mask
        allowed = torch.ones(n, n, dtype=torch.bool).tril() | (image[:, None] & image[None, :])
        return allowed[None, None]

    monkeypatch.setattr(modeling_qwen3_vl, "create_causal_mask", mask_of)


@pytest.fixture(scope="module")
def expected_of_two():
    """What is right of a prompt with two images."""
    model = tiny_model("qwen3_vl")
    return oracle.measure(model, tiny_image_inputs(model, n_images=2), N_TOKENS)


@pytest.mark.parametrize(
    "breakage", [one_dimensional_positions, no_rope_deltas_in_decoding, no_deepstack, bidirectional_vision_tokens]
)
def test_a_decoder_that_treats_images_otherwise_is_rejected(breakage, expected_of_two, monkeypatch):
    """Each changes the positions, or what a layer is given."""
    loaded = wrapped("qwen3_vl")
    inputs = tiny_image_inputs(loaded.model, n_images=2)
    own = [step.l2 for step in analyze(loaded, inputs, num_tokens=N_TOKENS).steps]
    oracle.assert_l2_close(own, expected_of_two)
    breakage(loaded.model, monkeypatch)
    broken = [step.l2 for step in analyze(loaded, inputs, num_tokens=N_TOKENS).steps]
    with pytest.raises(AssertionError, match="differ from the oracle"):
        oracle.assert_l2_close(broken, expected_of_two)


# --- one run after the other ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_images_of_the_one_before():
    """The model keeps rope deltas between prefill and decoding; those of another prompt would shift every position."""
    grids = (((1, 4, 6),), ((1, 8, 2), (1, 2, 2)))
    model = tiny_model("qwen3_vl")
    prompts = [tiny_image_inputs(model, n_images=len(grid), grids=grid, seed=7) for grid in grids]
    prompts.append(tiny_inputs(model, 9))
    fresh = [analyze(wrapped("qwen3_vl"), prompt, num_tokens=N_TOKENS) for prompt in prompts]
    for order in itertools.permutations(range(3)):
        loaded = wrapped("qwen3_vl")
        for number in order:
            used = analyze(loaded, prompts[number], num_tokens=N_TOKENS)
            for one, other in zip(fresh[number].steps, used.steps, strict=True):
                assert np.array_equal(one.l2, other.l2)


# --- the demo model and its own processor -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_model():
    return loading.load("demo", kind="vl", dtype="float32")


def test_a_picture_by_path_array_or_object_is_the_same_prompt(demo_model, tmp_path):
    sample = pictures.image_samples("color", 1)[0]
    sample.image.save(tmp_path / "picture.png")
    results = [
        analyze(demo_model, sample.question, images=[picture])
        for picture in (tmp_path / "picture.png", str(tmp_path / "picture.png"), sample.image, np.asarray(sample.image))
    ]
    assert all(np.array_equal(results[0].steps[0].l2, result.steps[0].l2) for result in results)
    assert results[0].generated_text == sample.answer
    image = results[0].images[0]
    assert (image.size, image.resized, image.grid) == ((128, 128), (128, 128), (4, 4))
    assert image.source == str(tmp_path / "picture.png")


def test_the_pixel_box_of_a_token_is_where_its_pixels_were(demo_model):
    """Painting over one cell of a picture of another size changes the vision features of its token most of all."""
    picture = Image.new("RGB", (500, 300), (128, 128, 128))
    result = analyze(demo_model, "What is this?", images=[picture])
    image = result.images[0]
    rows, columns = image.grid
    features = []
    for row, column in (None, None), (0, 0), (rows - 1, columns - 1), (1, 2):
        changed = picture.copy()
        if row is not None:
            box = image.box(row, column)
            changed.paste((255, 0, 0), tuple(round(edge) for edge in box))
        inputs = demo_model.processor(text=["<|image_pad|>"], images=[changed], return_tensors="pt")
        patches = inputs["pixel_values"].view(rows * columns, -1)  # merged 2 x 2, in the order of the tokens
        features.append(patches)
        if row is not None:
            change = (patches - features[0]).abs().sum(dim=1)
            assert int(change.argmax()) == row * columns + column


def test_max_resolution_changes_what_the_model_sees_and_leaves_the_boxes_in_the_original(demo_model, tmp_path):
    picture = Image.new("RGB", (512, 256), (20, 90, 200))
    before = set(Path(tmp_path).iterdir())
    large = analyze(demo_model, "What is this?", images=[picture])
    small = analyze(demo_model, "What is this?", images=[picture], max_image_resolution=128)
    assert small.images[0].grid == (2, 4)
    assert large.images[0].n_tokens > small.images[0].n_tokens
    assert small.images[0].size == large.images[0].size == (512, 256)
    assert small.images[0].box(1, 3) == (384, 128, 512, 256)
    assert set(Path(tmp_path).iterdir()) == before


# --- what cannot be right ---------------------------------------------------------------------------------------------------


def test_masking_vision_without_an_image_is_refused():
    model = loading.wrap(tiny_model("qwen3_vl", vocab_size=320), make_tokenizer())
    with pytest.raises(InputError, match="mask mode vision needs a prompt with an image"):
        analyze(model, "the cat", mask_mode="vision")


def test_an_unknown_mask_mode_is_refused():
    with pytest.raises(UsageError, match=r"^mask_mode must be text, vision, both or all, not 'images'$"):
        analyze(wrapped("qwen3_vl"), "the cat", mask_mode="images")


def test_ready_inputs_bring_their_own_images():
    loaded = wrapped("qwen3_vl")
    with pytest.raises(InputError, match="leave `images` and `videos` out"):
        analyze(loaded, tiny_image_inputs(loaded.model), images=[Image.new("RGB", (8, 8))])
