"""Turn text and pictures into Qwen3-VL's inputs, with or without torchvision.

The library's own processor for Qwen3-VL also prepares videos, needs torchvision for them, and so can't be made at all where
torchvision is missing or doesn't match torch. Pictures need Pillow only. `load_processor` takes the library's processor where
it can be had, and one for text and pictures otherwise; both read the checkpoint's own settings and chat template, and both
give `input_ids`, `attention_mask`, `mm_token_type_ids` and, with pictures, `pixel_values` and `image_grid_thw`.

This module does not know what is measured, and runs no code that a checkpoint brings along.
"""

from __future__ import annotations

import importlib
import os
import sys

import transformers.utils.import_utils as library_imports


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def torchvision_problem() -> str | None:
    """Why torchvision can't be used here, in one line; None where it can."""
    try:
        importlib.import_module("torchvision.transforms.v2.functional")
    # A torchvision that was built for another torch fails with whatever its compiled part runs into.
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def hide_torchvision() -> None:
    """Make this process, and with it the transformers library, take torchvision as not installed.

    A torchvision that is installed and can't be imported otherwise breaks every processor of the library, also those that
    have no use for it: the library imports it wherever it finds the package.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None
    for name in ("_is_package_available", "is_torchvision_available", "is_torchvision_v2_available"):
        function = getattr(library_imports, name, None)
        if hasattr(function, "cache_clear"):
            function.cache_clear()


TORCHVISION_PROBLEM = torchvision_problem()
if TORCHVISION_PROBLEM is not None:
    hide_torchvision()  # before the imports below, which would run into it

from transformers import AutoProcessor, AutoTokenizer, Qwen3VLProcessor  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402
from transformers.processing_utils import ProcessorMixin  # noqa: E402

from mask_impact.errors import ModelError  # noqa: E402


class PictureTextProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its video part: the same templating, picture tokens and token types.

    What it can prepare is decided by the arguments of `__init__`: the base class reads their names.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        for name in ("image", "video", "vision_start", "vision_end"):
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(getattr(self, f"{name}_token")))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(path: str | os.PathLike, *, revision: str | None = None, local_files_only: bool = False):
    """The processor of a Qwen3-VL checkpoint (`qwen3_vl` or `qwen3_vl_moe`), from a local directory or a model id.

    Raises ModelError where the checkpoint has no usable tokenizer or preprocessor settings.
    """
    options = {"revision": revision or "main", "local_files_only": local_files_only, "trust_remote_code": False}
    if TORCHVISION_PROBLEM is None:
        try:
            processor = AutoProcessor.from_pretrained(path, **options)
        except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ModelError(f"{path}: no processor can be made of this checkpoint: {_first_line(error)}") from error
        if isinstance(processor, Qwen3VLProcessor):
            return processor
        raise ModelError(
            f"{path}: no processor can be made of this checkpoint: its own is {type(processor).__name__}, not Qwen3-VL's"
        )
    return load_picture_text_processor(path, **options)


def load_picture_text_processor(path: str | os.PathLike, **options) -> PictureTextProcessor:
    """The processor that needs no torchvision. `options` go to the library's `from_pretrained`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, **options)
        settings, _ = Qwen3VLProcessor.get_processor_dict(path, **options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ModelError(f"{path}: no processor can be made of this checkpoint: {_first_line(error)}") from error
    template = settings.get("chat_template") or tokenizer.chat_template
    return PictureTextProcessor(image_processor, tokenizer, chat_template=template)
