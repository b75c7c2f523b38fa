"""Checkpoints of tiny random vision-language models of many families, each with a tokenizer and its family's own processor.

The processor's files are written as a published checkpoint has them, so that loading has to find and read them. A picture of
48 x 32 pixels becomes a few cells. In comes a family's name, out comes a folder. This module does not know what is measured.
"""

import json

import pytest
import transformers
from checkpoints import CHATML
from family_models import NotHere, build, family_config
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedTokenizerFast

from mask_impact.errors import ModelError
from mask_impact.models.processing import load_processor

SIZE = (48, 32)  # of the pictures: 3 x 2 tiles of 16 pixels, 6 x 4 cells of 8
_COMMON = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TILE = {"height": 16, "width": 16}
_QWEN = {
    "processor": "Qwen2VLProcessor",
    "images": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 64 * 24},
    },
    "tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "ids": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
}
_GOT = {"image_processor_type": "GotOcr2ImageProcessor", "size": _TILE, "min_patches": 1, "max_patches": 6}
_IDEFICS = {
    "processor": "Idefics3Processor",
    "settings": {"image_seq_len": 4},
    "images": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 48},
        "max_image_size": {"longest_edge": 16},
    },
    "tokens": [
        *("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
        *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
    ],
    "image": "<image>",
}

# processor: its class; settings: its own; images: the image processor's; tokens: special ones; named: those with a name in the
# tokenizer; image: what the template writes for one; ids: the config's, by their token; vision, text: what the tiny config has
# beside that of family_models.
FAMILIES = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN | {"processor": "Qwen2_5_VLProcessor"},
    "qwen3_5": _QWEN | {"processor": "Qwen3VLProcessor"},
    "glm4v": _QWEN
    | {
        "processor": "Glm4vProcessor",
        "images": _QWEN["images"] | {"image_processor_type": "Glm4vImageProcessor"},
        "tokens": [
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|image|>",
            "<|video|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ],
        "image": "<|begin_of_image|><|image|><|end_of_image|>",
        "ids": {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
    },
    "gemma3": {
        "processor": "Gemma3Processor",
        "settings": {"image_seq_length": 9},
        "images": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 24, "width": 24}},
        "named": {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        "image": "<start_of_image>",
        "ids": {
            "image_token_id": "<image_soft_token>",
            "boi_token_id": "<start_of_image>",
            "eoi_token_id": "<end_of_image>",
        },
        "vision": {"image_size": 24},
        "config": {"mm_tokens_per_image": 9},
    },
    "gemma4": {
        "processor": "Gemma4Processor",
        "images": {
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "max_soft_tokens": 70,
        },
        "named": {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        "tokens": ["<|video|>"],
        "image": "<|image|>",
        "ids": {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "audio_token_id": "<|audio|>"},
        "vision": {"position_embedding_size": 64},
    },
    "llava": {
        "processor": "LlavaProcessor",
        "settings": {
            "patch_size": 4,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        "images": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": _TILE,
        },
        "named": {"image_token": "<image>"},
        "image": "<image>\n",
        "ids": {"image_token_id": "<image>"},
    },
    "llava_onevision": {
        "processor": "LlavaOnevisionProcessor",
        "settings": {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        "images": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": _TILE,
            "image_grid_pinpoints": [[16, 16], [32, 32], [48, 48]],
        },
        "named": {"image_token": "<image>", "video_token": "<video>"},
        "image": "<image>\n",
        "ids": {"image_token_id": "<image>", "video_token_id": "<video>"},
        "config": {"image_grid_pinpoints": [[16, 16], [32, 32], [48, 48]]},
    },
    "internvl": {
        "processor": "InternVLProcessor",
        "settings": {"image_seq_length": 4},
        "images": _GOT,
        "named": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "image": "<IMG_CONTEXT>\n",
        "ids": {"image_token_id": "<IMG_CONTEXT>"},
    },
    "idefics3": _IDEFICS | {"ids": {"image_token_id": "<image>"}},
    "smolvlm": _IDEFICS
    | {
        "processor": "SmolVLMProcessor",
        "images": _IDEFICS["images"] | {"image_processor_type": "SmolVLMImageProcessor"},
        "ids": {"image_token_id": "<image>"},
    },
    "mistral3": {
        "processor": "PixtralProcessor",
        "settings": {"patch_size": 4, "spatial_merge_size": 2},
        "images": {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": {"height": 4, "width": 4},
            "size": {"longest_edge": 48},
        },
        "tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        "image": "[IMG]",
        "ids": {"image_token_id": "[IMG]"},
        "vision": {"image_size": 48},
        "text": {"sliding_window": None},
    },
    "paligemma": {
        "processor": "PaliGemmaProcessor",
        "images": {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 24, "width": 24},
            "image_seq_length": 9,
        },
        "named": {"image_token": "<image>"},
        "ids": {"image_token_id": "<image>"},
        "vision": {"image_size": 24},
    },
    "aya_vision": {
        "processor": "AyaVisionProcessor",
        "settings": {"patch_size": 4, "img_size": 16, "downsample_factor": 2},
        "images": _GOT,
        "tokens": ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL"],
        "image": "<image>",
        "ids": {"image_token_id": "<|IMG_PATCH|>"},
    },
}


def family_tokenizer(name):
    """A byte-level tokenizer that knows no word, with the family's special tokens."""
    family = FAMILIES[name]
    named = family.get("named", {})
    special = [*_COMMON, *family.get("tokens", ()), *named.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate([*special, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
        **named,
    )


def family_checkpoint(folder, name, *, config=(), seed=0):
    """Write a tiny model of a family into a folder, with its tokenizer and processor; returns the folder.

    config: more keys of the whole config. Raises NotHere where the installed transformers has no such family.
    """
    family, settings = FAMILIES[name], family_config(name)
    if type(settings) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise NotHere(f"this transformers has no model of {name!r}")
    tokenizer = family_tokenizer(name)
    text = settings.get_text_config()
    text.vocab_size, text.max_position_embeddings = len(tokenizer), 512
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = len(tokenizer)
    for part, more in ((text, family.get("text", {})), (settings.vision_config, family.get("vision", {}))):
        for key, value in more.items():
            setattr(part, key, value)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in family["ids"].items()}
    for key, value in (ids | family.get("config", {}) | dict(config)).items():
        setattr(settings, key, value)
    model = build(settings, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, seed=seed)
    head = model.get_output_embeddings()
    head.weight[: len(_COMMON) + len(family.get("tokens", ())) + len(family.get("named", ()))] = (
        0  # none is ever produced
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_processor(folder, family)
    return folder


def write_processor(folder, family):
    """The settings of a processor and its image processor, and the chat template, as a published checkpoint has them."""
    written = {
        "preprocessor_config.json": family["images"],
        "processor_config.json": {"processor_class": family["processor"]} | family.get("settings", {}),
    }
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content))
    if "image" in family:
        template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", family["image"].replace("\n", "\\n"))
        (folder / "chat_template.jinja").write_text(template)
    skip_where_older(folder)


def skip_where_older(folder):
    """Transformers before 5.23 makes many a processor with torchvision only, or not from such files."""
    if Version(transformers.__version__) < Version("5.23"):
        try:
            load_processor(folder)
        except ModelError as error:
            pytest.skip(str(error))
