"""Vision-language families beside Qwen3-VL, each with its own processor: a picture goes in through the command line or Python,
its cells are where its pixels were, its numbers those of really hiding."""

import copy
import dataclasses
import inspect
import json

import family_oracle
import numpy as np
import pytest
import torch
from family_models import NotHere, family_config, family_inputs, family_model
from marks import slow_but
from PIL import Image
from tokenizers import processors
from transformers.models.smolvlm import processing_smolvlm
from vision_families import FAMILIES, SIZE, family_checkpoint

import mask_impact
from mask_impact.analyses.explain import extended
from mask_impact.commands.main import main
from mask_impact.errors import InputError
from mask_impact.models import loading
from mask_impact.models.processing import load_processor
from mask_impact.prompts.encoding import encode, join, layout_of
from mask_impact.prompts.images import Picture, read_pictures
from mask_impact.results.tokens import original_box_of

# Some processors hand a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "What is it?"
N_TOKENS = 2
TILED = ("internvl", "aya_vision", "idefics3", "smolvlm")


def picture(size=SIZE, seed=0):
    pixels = np.random.default_rng(seed).integers(40, 216, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def numbers_in_words(monkeypatch):
    """SmolVLM's processor needs a package for the words of a video's prompt."""
    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a family's checkpoint."""
    folders = {}

    def of(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp("models") / name
            folder.mkdir()
            try:
                folders[name] = family_checkpoint(folder, name)
            except NotHere as reason:
                pytest.skip(str(reason))
        return folders[name]

    return of


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """A family's model, loaded."""
    models = {}

    def of(name):
        if name not in models:
            models[name] = loading.load(str(checkpoint(name)), dtype="float32")
        return models[name]

    return of


# --- where cells are --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def local_features(model, inputs):
    """[n, hidden], what the decoder gets of each image token, from a vision tower in which no patch sees another."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name in ("out_proj", "o_proj", "proj", "projection_layer"):
            if "Attention" in type(module).__name__ and "Text" not in type(module).__name__ and hasattr(module, name):
                for parameter in getattr(module, name).parameters():
                    parameter.zero_()
    taken = inspect.signature(model.get_image_features).parameters
    features = model.get_image_features(
        **{name: value for name, value in inputs.items() if name in taken}, return_dict=True
    ).pooler_output
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in features])


def encoded_with(loaded, images):
    """The prompt with pictures that are named by their number."""
    return encode(loaded, PROMPT, [Picture(image, f"{number}.png", image.size) for number, image in enumerate(images)])


def inside_of(box):
    """What is painted over of a box: its inner quarter, in whole pixels."""
    left, top, right, bottom = box
    across, down = (right - left) / 4, (bottom - top) / 4
    return tuple(map(round, (left + across, top + down, right - across, bottom - down)))


def painted(image, box):
    """The picture with the inside of a box painted over."""
    changed = image.copy()
    changed.paste((255, 0, 0), inside_of(box))
    return changed


def holding(encoded, number, box):
    """The position of the cell of an image, or part of one, that holds all that is painted of a box; None where none does."""
    left, top, right, bottom = inside_of(box)
    for position in np.flatnonzero(encoded.tokens.image == number):
        cell = original_box_of(encoded.tokens, encoded.images, [position])
        if cell[0] <= left and cell[1] <= top and right <= cell[2] and bottom <= cell[3]:
            return position
    return None


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def check_cells(loaded, pictures, at=(0.0, 0.3, 0.55, 0.99)):
    """Paint over some cells of each image: the token of the cell changes most, and in other parts of the same picture that of the
    cell which holds the painted place. No token of another picture changes, and the order of parts does not matter to that."""
    encoded = encoded_with(loaded, pictures)
    tokens, images = encoded.tokens, encoded.images
    is_image = encoded.inputs["input_ids"][0] == loaded.config.image_token_id
    features = local_features(loaded.model, encoded.inputs)
    for number, image in enumerate(images):
        of = int(image.source.partition(".")[0])
        rows, columns = image.grid
        for share in at:
            row, column = int(share * rows), int((1 - share) * columns * 0.999)
            left, top, right, bottom = box = image.in_original(image.box(row, column))
            if not (left >= -1 and top >= -1 and right <= pictures[of].width + 1 and bottom <= pictures[of].height + 1):
                continue  # it has a part of the border
            changed = [painted(one, box) if place == of else one for place, one in enumerate(pictures)]
            others = local_features(loaded.model, encoded_with(loaded, changed).inputs)
            change = np.zeros(encoded.n_tokens)
            change[is_image] = (others - features).norm(dim=1) / features.norm(dim=1)
            (own,) = np.flatnonzero((tokens.image == number) & (tokens.row == row) & (tokens.column == column))
            assert change[tokens.image < 0].max() == 0
            assert np.where(tokens.image == number, change, -1).argmax() == own
            for part, record in enumerate(images):
                mine = np.flatnonzero(tokens.image == part)
                if record.source.partition(".")[0] != str(of):
                    assert change[mine].max() == 0
                elif (position := holding(encoded, part, box)) is not None:
                    assert mine[change[mine].argmax()] == position
                elif apart(box, record.in_original((0, 0, *record.size))):
                    assert change[mine].max() < change[own] / 5
    return encoded


@pytest.mark.parametrize("name", slow_but(("qwen2_5_vl", "gemma3", "internvl", "llava_onevision"), FAMILIES))
def test_painting_over_a_cell_changes_its_own_token_most(loaded, name):
    """In a vision tower in which no patch sees another, by what the model itself makes of the processor's pixels."""
    encoded = check_cells(loaded(name), [picture()])
    assert len(encoded.images) == {"llava_onevision": 2}.get(name, 7 if name in TILED else 1)
    n_image = sum(kind == "image" for kind in encoded.tokens.kinds)
    assert n_image == sum(image.n_tokens for image in encoded.images) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_so_it_does_in_other_shapes_and_in_the_second_of_two_pictures(loaded, name):
    check_cells(loaded(name), [picture((61, 90))], at=(0.2, 0.7))
    check_cells(loaded(name), [picture((100, 37), seed=1), picture((40, 52), seed=2)], at=(0.4,))


def test_a_broken_order_of_cells_is_told(loaded, monkeypatch):
    """The same check where rows and columns are exchanged."""
    from mask_impact.prompts import cells

    own = cells.Grid.places

    def exchanged(self):
        rows, columns = self.shape
        return [cell and divmod(cell[1] * rows + cell[0], columns) for cell in own(self)]

    monkeypatch.setattr(cells.Grid, "places", exchanged)
    with pytest.raises(AssertionError):
        check_cells(loaded("internvl"), [picture()])


def test_what_is_more_than_fits_is_interpolated_and_stays_in_its_place(tmp_path):
    """LLaVA-OneVision: 4 x 6 cells in detail, of which `anyres_max_1` allows about four."""
    family_checkpoint(tmp_path, "llava_onevision", config={"vision_aspect_ratio": "anyres_max_2"})
    changed_settings(tmp_path, "processor_config.json", vision_aspect_ratio="anyres_max_2")
    encoded = check_cells(loading.load(str(tmp_path)), [picture()], at=(0.0, 0.6, 0.99))
    assert [image.grid for image in encoded.images] == [(2, 2), (2, 3)]


def changed_settings(folder, file, **settings):
    """Write other settings into a checkpoint's file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.slow
def test_a_class_token_that_llava_keeps_is_no_cell(tmp_path):
    family_checkpoint(tmp_path, "llava", config={"vision_feature_select_strategy": "full"})
    changed_settings(tmp_path, "processor_config.json", vision_feature_select_strategy="full")
    encoded = check_cells(loading.load(str(tmp_path)), [picture()], at=(0.3,))
    first = encoded.tokens.kinds.index("image")
    assert encoded.tokens.ids[first - 1] == encoded.tokens.ids[first]
    assert encoded.tokens.kinds[first - 1] == "special"
    assert encoded.images[0].grid == (4, 4)


def test_a_picture_that_llava_makes_square_has_cells_in_the_border(tmp_path):
    """All of it is seen, and the cells above and below it lie beyond its edges."""
    family_checkpoint(tmp_path, "llava")
    changed_settings(tmp_path, "preprocessor_config.json", image_processor_type="LlavaImageProcessor", do_pad=True)
    encoded = check_cells(loading.load(str(tmp_path)), [picture((64, 32))], at=(0.3, 0.5))
    assert encoded.images[0].region == (0, -16, 64, 48)


@pytest.mark.slow
def test_a_llava_with_the_tower_of_pixtral_has_rows(tmp_path):
    """A published checkpoint of Pixtral is one."""
    tower = family_config("mistral3").vision_config
    tower.image_size = 48
    family_checkpoint(
        tmp_path,
        "llava",
        config={"vision_config": tower, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    )
    breaks = {"image_token": "<image>", "image_break_token": "<|im_start|>", "image_end_token": "<|im_end|>"}
    of_pixtral = {"processor_class": "PixtralProcessor", "patch_size": 4} | breaks
    (tmp_path / "processor_config.json").write_text(json.dumps(of_pixtral))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FAMILIES["mistral3"]["images"]))
    encoded = check_cells(loading.load(str(tmp_path)), [picture()], at=(0.0, 0.6))
    assert encoded.images[0].grid == (8, 12)


def test_cells_are_known_before_the_weights_are_read(loaded):
    one = loaded("internvl")
    reader = loading.Reader(one.tokenizer, one.processor, one.kind, one.name, one.config)
    first, second = (encode(of, PROMPT, read_pictures([picture()])) for of in (reader, one))
    assert first.images == second.images
    assert first.tokens.kinds == second.tokens.kinds
    assert first.inputs.keys() == second.inputs.keys()


def test_what_stands_between_cells_is_special(loaded):
    """Ends of rows, and the tags of tiles."""
    for name, n_special in (("mistral3", 4), ("llava_onevision", 4), ("idefics3", 6)):
        tokens = encode(loaded(name), PROMPT, read_pictures([picture()])).tokens
        first, last = (at(i for i, kind in enumerate(tokens.kinds) if kind == "image") for at in (min, max))
        assert "text" not in tokens.kinds[first : last + 1]
        assert tokens.kinds[first : last + 2].count("special") >= n_special


@pytest.mark.parametrize("begin", ["", "<|endoftext|>"])
@pytest.mark.parametrize("pictures", [(), (picture(),)])
def test_a_prompt_begins_once_whether_its_template_says_so_or_not(checkpoint, loaded, begin, pictures):
    """LLaVA's template leaves the beginning-of-sequence token to the tokenizer, Gemma's writes it itself."""
    processor = load_processor(checkpoint("gemma3"))
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    processor.chat_template = begin + processor.chat_template
    one = dataclasses.replace(loaded("gemma3"), processor=processor, tokenizer=processor.tokenizer)
    ids = encode(one, PROMPT, read_pictures(pictures)).tokens.ids
    assert ids[0] == 0
    assert (ids == 0).sum() == 1


# --- numbers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(("internvl",), FAMILIES))
def test_the_command_line_measures_what_really_hiding_gives(checkpoint, loaded, name, tmp_path, capsys):
    """At the first and the last step; saved and read back, with summary and page."""
    picture().save(tmp_path / "picture.png")
    argv = ["run", PROMPT, "-m", str(checkpoint(name)), "--image", str(tmp_path / "picture.png"), "-n", str(N_TOKENS)]
    argv += [] if name == "internvl" else ["--no-answer"]
    assert main([*argv, "--dtype", "float32", "--output-dir", str(tmp_path), "--report"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "Where it is read for the first token" in printed
    result = mask_impact.load_result(tmp_path / "result")
    page = (tmp_path / "result.html").read_text(encoding="utf-8")
    for image in result.images:
        assert image.source.startswith(str(tmp_path / "picture.png"))
        assert image.preview[:2] == b"\xff\xd8"
        assert image.source.rpartition("/")[2] in page
    encoded = encode(loaded(name), PROMPT, read_pictures([tmp_path / "picture.png"]))
    assert encoded.tokens.kinds == result.tokens.kinds[: encoded.n_tokens]
    ids = [step.token_id for step in result.steps]
    for step in (0, N_TOKENS - 1):
        expected = family_oracle.measure(loaded(name).model, encoded.inputs, ids[:step])
        found = result.steps[step].l2
        assert len(found) == len(expected)
        for layer, distances in enumerate(expected):
            if distances is None:  # without softmax attention
                assert layer not in result.layers
                continue
            wanted = {"Full": distances.full, "Attn": distances.attn}
            wanted |= {f"Head_{head}": row for head, row in enumerate(distances.heads)}
            for variant, values in wanted.items():
                place = result.variants.index(variant)
                np.testing.assert_allclose(found[layer, :, place], values, rtol=2e-3, atol=1e-4 * values.max())


@pytest.mark.parametrize("name", slow_but(("gemma3",), [name for name in FAMILIES if name != "qwen3_5"]))
def test_an_answer_without_some_cells_is_that_with_their_keys_masked_as_padding(loaded, name):
    """At every step, with the positions that they have. Padding would be taken out of Qwen 3.5's linear attention, too."""
    one = loaded(name)
    encoded = encode(one, PROMPT, read_pictures([picture()]))
    cells = [place for place, kind in enumerate(encoded.tokens.kinds) if kind == "image"][1:4]
    spec = f"tokens {','.join(map(str, cells))}"
    found = mask_impact.without(one, PROMPT, spec, images=[picture()], num_tokens=N_TOKENS)
    for answer in (found.answer, *found.others):
        ids = torch.tensor([answer.token_ids])
        for step, (token, probability) in enumerate(zip(answer.token_ids, answer.probabilities, strict=True)):
            own = masked_logits(one.model, encoded.inputs, ids[:, :step], answer.positions).softmax(-1)
            assert int(own.argmax()) == token
            assert probability == pytest.approx(float(own[token]), rel=1e-3)
    assert found.others[0].probabilities != found.answer.probabilities


@torch.no_grad()
def masked_logits(model, inputs, produced, hidden):
    """float64 [vocabulary], of the last position of one pass in which some keys are masked as padding is."""
    per_position = family_oracle.PER_POSITION | family_oracle.PER_POSITION_OF.get(model.config.model_type, {})
    given = inputs | {"input_ids": torch.cat([inputs["input_ids"], produced], dim=1)}
    for name, value in per_position.items():
        if name in inputs:
            given[name] = torch.cat([inputs[name], torch.full_like(produced, value)], dim=1)
    positions = [
        torch.arange(given["input_ids"].shape[1])[None]
    ]  # replaced by those that the model makes itself, if it does

    def keep(module, args, kwargs):
        positions.append(positions[0] if kwargs.get("position_ids") is None else kwargs["position_ids"])

    hook = model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(**given, use_cache=False)
    finally:
        hook.remove()
    given["attention_mask"] = given["attention_mask"].clone()
    given["attention_mask"][0, list(hidden)] = 0
    return model(**given, position_ids=positions[1], use_cache=False).logits[0, -1].double()


@pytest.mark.parametrize("name", slow_but(("llava_onevision",), FAMILIES))
def test_prompts_that_share_passes_are_each_as_alone(loaded, name):
    """Pictures of other shapes, more tiles, and no picture."""
    one = loaded(name)
    prompts = [(PROMPT, [picture((40, 64))]), ("Say it again:", [picture(seed=3)])]
    if name != "paligemma":
        prompts.append(("Hm.", []))
    encoded = [encode(one, prompt, read_pictures(pictures)) for prompt, pictures in prompts]
    inputs, paddings = join(encoded, 0)
    assert min(paddings) == 0
    assert len(inputs["input_ids"]) == len(prompts)
    together = mask_impact.analyze_many(
        one,
        [{"prompt": prompt, "images": pictures} for prompt, pictures in prompts],
        num_tokens=2,
        answer=False,
    )
    for (prompt, pictures), found in zip(prompts, together, strict=True):
        alone = mask_impact.analyze(one, prompt, images=pictures, num_tokens=2, answer=False)
        assert found.generated_text == alone.generated_text
        for step, other in zip(found.steps, alone.steps, strict=True):
            np.testing.assert_allclose(step.l2, other.l2, rtol=5e-3, atol=1e-4 * np.nanmax(other.l2))


def test_image_tokens_of_gemma_see_each_other(loaded):
    """The last query reads states that are made that way: with causal ones the numbers are others."""
    one = loaded("gemma3")
    inputs = encode(one, PROMPT, read_pictures([picture()])).inputs
    own = mask_impact.analyze(one, inputs, num_tokens=1, answer=False).steps[0].l2
    causal = mask_impact.analyze(
        one, inputs | {"token_type_ids": 0 * inputs["token_type_ids"]}, num_tokens=1, answer=False
    )
    assert np.abs(own - causal.steps[0].l2).max() > 1e-3 * own.max()


# --- what can't be had ------------------------------------------------------------------------------------------------------


def test_other_counts_of_tokens_and_cells_are_one_line(loaded):
    for name in ("gemma3", "llava_onevision", "idefics3", "mistral3"):
        inputs = encode(loaded(name), PROMPT, read_pictures([picture()])).inputs
        position = int((inputs["input_ids"][0] == loaded(name).config.image_token_id).nonzero()[0])
        keep = torch.arange(inputs["input_ids"].shape[1]) != position
        shorter = {
            key: value[:, keep] if value.shape[:2] == (1, len(keep)) and value.dim() == 2 else value
            for key, value in inputs.items()
        }
        with pytest.raises(InputError, match=r"image tokens|no square of cells") as caught:
            mask_impact.analyze(loaded(name), shorter)
        assert "\n" not in str(caught.value)


def test_images_of_no_pixels_are_one_line(loaded):
    for name in ("gemma3", "idefics3", "mistral3", "qwen2_5_vl"):
        inputs = encode(loaded(name), PROMPT, read_pictures([picture()])).inputs
        sizes = {key: value[:0] for key, value in inputs.items() if key in ("image_sizes", "image_grid_thw")}
        with pytest.raises(InputError, match="image"):
            mask_impact.analyze(loaded(name), inputs | sizes | {"pixel_values": inputs["pixel_values"][:0]})


def test_the_model_s_own_image_token_in_a_prompt_is_one_line(loaded):
    with pytest.raises(InputError, match=r"^the prompt has the model's own token <IMG_CONTEXT>; write <image> where"):
        mask_impact.analyze(loaded("internvl"), "What is <IMG_CONTEXT>?", images=[picture()])


def test_paligemma_takes_the_prompt_as_it_is_behind_the_image_tokens(loaded):
    result = mask_impact.analyze(loaded("paligemma"), "cat?", images=[picture()], num_tokens=1)
    assert result.tokens.kinds[:9] == ("image",) * 9
    assert "".join(result.tokens.texts[10 : result.n_prompt]) == "cat?\n"
    assert any("no chat template" in notice for notice in result.meta["notices"])


def test_a_picture_that_is_made_smaller_has_the_tiles_of_the_smaller_one(loaded):
    """InternVL takes as many tiles as the picture that it gets has pixels for."""
    large = mask_impact.analyze(loaded("internvl"), PROMPT, images=[picture((48, 48))], num_tokens=1)
    small = mask_impact.analyze(
        loaded("internvl"), PROMPT, images=[picture((48, 48))], num_tokens=1, max_image_resolution=16
    )
    assert (len(large.images), len(small.images)) == (5, 1)
    assert small.images[0].in_original(small.images[0].box(1, 1)) == (24, 24, 48, 48)
    boxes = [original_box_of(large.tokens, large.images, [place]) for place in np.flatnonzero(large.tokens.image == 3)]
    assert (boxes[0], boxes[-1]) == ((24, 24, 36, 36), (36, 36, 48, 48))


def test_crops_of_pan_and_scan_are_one_line(loaded, monkeypatch):
    """Where they lie is not among what Gemma 3's processor says."""
    one = loaded("gemma3")
    if not hasattr(one.processor, "images_kwargs"):
        pytest.skip("the settings of older processors stand elsewhere")
    panned = one.processor.images_kwargs | {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
    monkeypatch.setattr(one.processor, "images_kwargs", panned)
    with pytest.raises(
        InputError, match=r"^the model's processor made 4 squares of 1 image, and where they lie .*\(pan and scan"
    ):
        encode(one, PROMPT, read_pictures([picture((90, 30))]))


def test_a_family_whose_cells_are_not_known_takes_text_alone(loaded, monkeypatch):
    from mask_impact.prompts import cells

    monkeypatch.setattr(cells, "KNOWN", frozenset())
    assert mask_impact.analyze(loaded("gemma3"), PROMPT, num_tokens=1).images == ()
    with pytest.raises(
        InputError, match=r"^where the image tokens of architecture 'gemma3' lie in their picture is not"
    ):
        mask_impact.analyze(loaded("gemma3"), PROMPT, images=[picture()], num_tokens=1)


def test_cells_of_a_tile_have_boxes_in_the_whole_picture(loaded, tmp_path):
    """In files, in tables, in what a spec means; and a box of the picture finds its cells there."""
    one = loaded("internvl")
    result = mask_impact.analyze(one, PROMPT, images=[picture()], num_tokens=1)
    result.save(tmp_path / "tiled")
    again = mask_impact.load_result(tmp_path / "tiled")
    assert again.images == result.images
    assert [image.region for image in again.images] == [
        *((16 * column, 16 * row, 16 * column + 16, 16 * row + 16) for row in range(2) for column in range(3)),
        None,
    ]
    encoded = encode(one, PROMPT, read_pictures([picture()]))
    layout = layout_of(one, encoded)
    (position,) = layout.resolve("image 4 box 17,17,18,18")
    assert (encoded.tokens.image[position], encoded.tokens.row[position], encoded.tokens.column[position]) == (4, 0, 0)
    with pytest.raises(InputError, match="image 4 is 16,16,32,32 of its picture"):
        layout.resolve("image 4 box 0,0,8,8")


@pytest.mark.parametrize("name", slow_but(("internvl",), FAMILIES))
def test_effects_of_cells_and_words_are_those_of_the_whole_model_with_them_hidden(loaded, name):
    """Each third position hidden from the last query in each layer alone; and what the answer used is there."""
    result = mask_impact.analyze(loaded(name), PROMPT, images=[picture()], effect=True)
    encoded = encode(loaded(name), PROMPT, read_pictures([picture()]))
    (step,) = result.steps
    hidden = range(encoded.n_tokens - 1, -1, -3)
    expected = family_oracle.Oracle(loaded(name).model).effects(encoded.inputs, (), step.token_id, hidden)
    expected = np.stack([np.zeros(len(hidden)) if layer is None else layer for layer in expected])
    assert {"image", "text"} <= {encoded.tokens.kinds[position] for position in hidden}
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(step.effect.logprob_change[:, hidden], expected, atol=1e-4)
    (target,) = result.answer.targets
    assert {"image", "text"} <= set(target.kinds)


@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
def test_a_sequence_with_its_answer_behind_it_is_what_generate_saw(name):
    """PaliGemma's prompt sees all of itself, what it produces does not see ahead."""
    model = family_model(name)
    inputs = family_inputs(model)
    found = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    produced = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    with torch.no_grad():
        logits = model(**extended(inputs, produced[:-1], name), use_cache=False, logits_to_keep=4).logits[0]
    torch.testing.assert_close(logits, torch.cat(found.logits), rtol=1e-4, atol=1e-4)
