"""Text and pictures become Qwen3-VL's inputs, with and without torchvision."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import vision_families
from family_models import NotHere, family_config
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen3VLMoeConfig, Qwen3VLProcessor
from transformers.models.smolvlm import processing_smolvlm

from mask_impact import demo
from mask_impact.errors import ModelError
from mask_impact.models import processing

PICTURE = Image.new("RGB", (160, 96), (200, 10, 10))  # 10 x 6 patches, 5 x 3 tokens


@pytest.fixture(scope="module")
def processor():
    return processing.load_picture_text_processor(demo.VL_PATH)


def conversation(*pictures, text="What is this?"):
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def templated(processor, messages):
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def test_every_picture_gets_a_quarter_of_its_patches_as_tokens(processor):
    inputs = templated(processor, conversation(PICTURE, Image.new("RGB", (64, 128))))
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 10], [1, 8, 4]]
    n_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    assert n_tokens == 6 * 10 // 4 + 8 * 4 // 4
    assert len(inputs["pixel_values"]) == 4 * n_tokens


def test_token_types_mark_exactly_the_picture_tokens(processor):
    inputs = templated(processor, conversation(PICTURE))
    assert torch.equal(inputs["mm_token_type_ids"].bool(), inputs["input_ids"] == processor.image_token_id)


def test_pixels_arrive_as_the_checkpoint_s_own_settings_say(processor):
    """Mean and standard deviation 0.5: a channel value c becomes 2c/255 - 1, and a plain picture stays plain."""
    red, green, _ = templated(processor, conversation(PICTURE))["pixel_values"].unflatten(1, (3, -1)).unbind(1)
    assert red.allclose(torch.tensor(2 * 200 / 255 - 1))
    assert green.allclose(torch.tensor(2 * 10 / 255 - 1))


def test_text_alone_needs_no_picture(processor):
    inputs = templated(processor, [{"role": "user", "content": "What is 2+2?"}])
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_template_spells_roles_and_the_picture_s_place(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]},
        {"role": "assistant", "content": "red"},
    ]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nLook: <|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
    )


def test_raw_text_with_a_picture_needs_no_template(processor):
    inputs = processor(text=["<|vision_start|><|image_pad|><|vision_end|>Hi"], images=[PICTURE], return_tensors="pt")
    assert int(inputs["mm_token_type_ids"].sum()) == 15


def test_small_and_large_pictures_are_brought_into_the_checkpoint_s_range(processor):
    for size in ((20, 20), (1000, 700)):
        grid = templated(processor, conversation(Image.new("RGB", size)))["image_grid_thw"][0]
        n_pixels = int(grid.prod()) * 16 * 16
        assert 64 * 64 <= n_pixels <= 256 * 256


def test_load_processor_gives_a_qwen3_vl_processor_here():
    loaded = processing.load_processor(demo.VL_PATH)
    assert isinstance(loaded, Qwen3VLProcessor)
    without_torchvision = processing.TORCHVISION_PROBLEM is not None
    assert isinstance(loaded, processing.PictureTextProcessor) == without_torchvision


def test_mixture_of_experts_checkpoint_gets_the_same_processor(tmp_path):
    shutil.copytree(demo.VL_PATH, tmp_path / "moe", ignore=shutil.ignore_patterns("*.safetensors"))
    Qwen3VLMoeConfig().save_pretrained(tmp_path / "moe")
    assert AutoConfig.from_pretrained(tmp_path / "moe").model_type == "qwen3_vl_moe"
    loaded = processing.load_processor(tmp_path / "moe")
    assert templated(loaded, conversation(PICTURE))["image_grid_thw"].tolist() == [[1, 6, 10]]


def test_template_in_the_older_file_form_is_read(tmp_path):
    """Qwen3-VL's published checkpoints carry chat_template.json and a preprocessor named after the torchvision class."""
    path = tmp_path / "older"
    shutil.copytree(demo.VL_PATH, path, ignore=shutil.ignore_patterns("*.safetensors"))
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").unlink()
    (path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings = json.loads((path / "preprocessor_config.json").read_text())
    settings |= {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(path).chat_template is None
    older = templated(processing.load_processor(path), conversation(PICTURE))
    assert int(older["mm_token_type_ids"].sum()) == 15


def test_checkpoint_without_preprocessor_settings_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no processor can be made"):
        processing.load_processor(demo.TEXT_PATH)
    with pytest.raises(ModelError, match=str(tmp_path)):
        processing.load_processor(tmp_path)


@pytest.mark.slow
def test_broken_torchvision_does_not_keep_pictures_from_working(tmp_path):
    """A torchvision built for another torch raises when imported, and the library's processors with it."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    metadata = tmp_path / "torchvision-0.99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    code = (
        "from mask_impact.models import processing; "
        f"processor = processing.load_processor({str(demo.VL_PATH)!r}); "
        "print(processing.TORCHVISION_PROBLEM, type(processor).__name__)"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{demo.VL_PATH.parents[2]}", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torchvision::nms does not exist PictureTextProcessor" in run.stdout


def test_same_inputs_with_and_without_torchvision(processor):
    """The same to the bit but where the picture is resized: Pillow and torch round a value between two levels of 0..255 each
    in their own way."""
    if processing.TORCHVISION_PROBLEM is not None:
        pytest.skip(f"torchvision can't be used here: {processing.TORCHVISION_PROBLEM}")
    the_library_s = processing.load_processor(demo.VL_PATH)
    for size in ((160, 96), (96, 160), (500, 300), (64, 200), (1500, 900), (20, 30)):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        other = templated(the_library_s, conversation(Image.fromarray(noise)))
        mine = templated(processor, conversation(Image.fromarray(noise)))
        assert set(mine) == set(other)
        level = 1 / 127.5  # pixel values are from -1 to 1
        distances = (mine.pop("pixel_values") - other.pop("pixel_values")).abs()
        resized = size[0] % 32 or size[1] % 32 or size[0] * size[1] > 65536
        assert distances.max() <= (2.01 * level if resized else 1e-6), size
        assert distances.mean() <= 0.02 * level, size
        for name, value in mine.items():
            assert torch.equal(value, other[name]), (size, name)


# --- other families ---------------------------------------------------------------------------------------------------------


# Some processors hand a tensor to numpy.
TO_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def numbers_in_words(monkeypatch):
    """SmolVLM's processor needs a package for the words of a video's prompt."""
    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)


def settings_of(folder, name):
    """A checkpoint's tokenizer and processor without its model."""
    family = vision_families.FAMILIES[name]
    try:
        family_config(name).save_pretrained(folder)
    except NotHere as reason:
        pytest.skip(str(reason))
    vision_families.family_tokenizer(name).save_pretrained(folder)
    vision_families.write_processor(folder, family)
    return folder


@TO_NUMPY
@pytest.mark.usefixtures("numbers_in_words")
@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_a_family_s_own_processor_is_made_from_its_files(tmp_path, name):
    """Of the class that they name, with or without torchvision; the parts for videos and sounds are never asked."""
    found = processing.load_processor(settings_of(tmp_path, name))
    of = vision_families.FAMILIES[name]["processor"]
    if processing.TORCHVISION_PROBLEM is not None:
        of = {"PixtralProcessor": "RowsProcessor", "Qwen3VLProcessor": "PictureTextProcessor"}.get(of, of)
    assert type(found).__name__ == of
    assert repr(found)
    text = vision_families.FAMILIES[name].get("image", "<image>").strip()
    inputs = found(text=[text], images=[[PICTURE]], return_tensors="pt")
    assert (inputs["input_ids"] >= 0).all()
    assert torch.isfinite(inputs["pixel_values"]).all()


@TO_NUMPY
@pytest.mark.usefixtures("numbers_in_words")
@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_a_family_s_inputs_are_the_same_without_the_parts_for_videos(tmp_path, name):
    if processing.TORCHVISION_PROBLEM is not None:
        pytest.skip(f"torchvision can't be used here: {processing.TORCHVISION_PROBLEM}")
    folder = settings_of(tmp_path, name)
    own, without = processing.load_processor(folder), processing.without_torchvision(folder)
    text = vision_families.FAMILIES[name].get("image", "<image>").strip()
    one, other = (make(text=[text], images=[[PICTURE]], return_tensors="pt") for make in (own, without))
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert one["pixel_values"].shape == other["pixel_values"].shape
    assert (one["pixel_values"] - other["pixel_values"]).abs().max() < 0.02


def test_a_processor_that_can_t_be_had_without_torchvision_is_one_line(tmp_path):
    if processing.TORCHVISION_PROBLEM is None:
        pytest.skip("torchvision is there")
    settings_of(tmp_path, "gemma3")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Sam2ImageProcessor"}')
    with pytest.raises(
        ModelError, match=r"it needs torchvision, which can't be used here \(.*\); install it: pip"
    ) as caught:
        processing.load_processor(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_package_that_is_missing_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="pip install num2words"):
        processing.load_processor(settings_of(tmp_path, "smolvlm"))
