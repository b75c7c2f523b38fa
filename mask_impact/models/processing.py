"""Turn text and pictures into a vision-language model's inputs, with or without torchvision.

The library's own processors of many families also prepare videos, need torchvision for them, and so can't be made at all where
torchvision is missing or doesn't match torch. Pictures need Pillow only. `load_processor` takes the library's processor where
it can be had, and one for text and pictures otherwise; both read the checkpoint's own settings and chat template, and both
give `input_ids`, `attention_mask` and, with pictures, `pixel_values` and what else the model takes.

This module does not know what is measured, and runs no code that a checkpoint brings along.
"""

from __future__ import annotations

import importlib
import os
import re
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

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, Qwen3VLProcessor  # noqa: E402
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin  # noqa: E402
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name  # noqa: E402
from transformers.models.auto.tokenization_auto import get_tokenizer_config  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402
from transformers.processing_utils import ProcessorMixin  # noqa: E402
from transformers.video_processing_utils import BaseVideoProcessor  # noqa: E402

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


class RowsProcessor(ProcessorMixin):
    """Pixtral's and Mistral 3's processor, which the library makes with torchvision only: a token for each square of pixels, one
    that ends each row, and another that ends the image."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=16,
        spatial_merge_size=1,
        chat_template=None,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    ):
        self.side = patch_size * spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors="pt", **options):
        """input_ids and attention_mask of texts and, of the images in them, pixel_values [n, 3, height, width] and image_sizes
        [n, 2] (height, width); more options go to the tokenizer."""
        pixels = {}
        if images:
            flat = [image for one in images for image in (one if isinstance(one, list | tuple) else [one])]
            pixels = self.image_processor(flat, patch_size=self.side, return_tensors=return_tensors)
            sizes = iter(pixels["image_sizes"].tolist())
            text = [re.sub(re.escape(self.image_token), lambda _: self._tokens_of(*next(sizes)), one) for one in text]
        return BatchFeature({**self.tokenizer(text, return_tensors=return_tensors, **options), **pixels})

    def _tokens_of(self, height: int, width: int) -> str:
        row = self.image_token * (width // self.side)
        return self.image_break_token.join([row] * (height // self.side)) + self.image_end_token


class NotHere:
    """Stands in a processor for the part that prepares videos or sounds, which can't be made here and is never asked."""

    model_input_names = ()
    num_frames = fps = None


def _pictures_only(of: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class of processor, which also takes NotHere for a part."""

    class PicturesOnly(of):
        def check_argument_for_proper_class(self, argument_name, argument):
            if isinstance(argument, NotHere):
                return NotHere
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self):
            return {name: value for name, value in super().to_dict().items() if not isinstance(value, NotHere)}

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = of.__name__
    return PicturesOnly


def load_processor(path: str | os.PathLike, *, revision: str | None = None, local_files_only: bool = False):
    """The processor of a vision-language checkpoint, from a local directory or a model id.

    Raises ModelError where the checkpoint has no usable tokenizer or preprocessor settings, or its processor needs a package that
    is not installed.
    """
    options = {"revision": revision or "main", "local_files_only": local_files_only, "trust_remote_code": False}
    load = AutoProcessor.from_pretrained if TORCHVISION_PROBLEM is None else without_torchvision
    try:
        processor = load(path, **options)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"{path}: no processor can be made of this checkpoint: {_reason(error)}") from error
    if hasattr(processor, "image_processor") and hasattr(processor, "tokenizer"):
        processor.video_settings = _read_video_settings(path, options)
        return processor
    raise ModelError(
        f"{path}: no processor can be made of this checkpoint: its own is {type(processor).__name__}, which takes no images"
    )


def video_settings(processor) -> dict:
    """The `size`, `image_mean` and `image_std` that a processor has for videos: the checkpoint's own, else those for its
    images."""
    found = dict(getattr(processor, "video_settings", None) or {})
    for part in (getattr(processor, "video_processor", None), processor.image_processor):
        for name in ("size", "image_mean", "image_std"):
            value = getattr(part, name, None)
            found.setdefault(name, value) if value is not None else None
    size = dict(found["size"])
    limits = {
        "shortest_edge": found.get("min_pixels"),
        "longest_edge": found.get("max_pixels"),
    }  # as older files call them
    return found | {"size": size | {name: value for name, value in limits.items() if value and not size.get(name)}}


def _read_video_settings(path: str | os.PathLike, options: dict) -> dict:
    """What the checkpoint's files say of videos; nothing where they say nothing."""
    try:
        return BaseVideoProcessor.get_video_processor_dict(path, **options)[0]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _reason(error: Exception) -> str:
    """In one line, and with what to install where that is missing; the library's own lines about torchvision fill a page."""
    text = " ".join(str(error).split())
    if TORCHVISION_PROBLEM is not None and "torchvision" in text.lower():
        return f"it needs torchvision, which can't be used here ({TORCHVISION_PROBLEM}); install it: pip install torchvision"
    return text[:300] if isinstance(error, ImportError) else _first_line(error)


def without_torchvision(path: str | os.PathLike, **options) -> ProcessorMixin:
    """The checkpoint's own processor, without the parts that prepare videos or sounds where it has some."""
    of = _processor_class(path, options)
    if of is None:
        return AutoProcessor.from_pretrained(path, **options)
    if of is Qwen3VLProcessor:
        return load_picture_text_processor(path, **options)
    if of.__name__ == "PixtralProcessor":  # what stands for it without torchvision can't be asked anything
        of = RowsProcessor
    parts = of.get_attributes()
    if not {"video_processor", "feature_extractor"} & set(parts):
        return of.from_pretrained(path, **options)
    known = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    of = _pictures_only(of)
    settings, _ = of.get_processor_dict(path, **options)
    loaded = [known[part].from_pretrained(path, **options) if part in known else NotHere() for part in parts]
    processor = of.from_args_and_dict(loaded, settings)
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return processor


def _processor_class(path: str | os.PathLike, options: dict) -> type[ProcessorMixin] | None:
    """The class that the checkpoint's settings name, else that of its architecture; None where there is none."""
    for read in (
        lambda: ProcessorMixin.get_processor_dict(path, **options)[0],
        lambda: ImageProcessingMixin.get_image_processor_dict(path, **options)[0],
        lambda: get_tokenizer_config(path, **options),
    ):
        try:
            name = read().get("processor_class")
        except (OSError, ValueError):  # it has no such file
            continue
        if name and (found := processor_class_from_name(name)) is not None:
            return found
    return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(path, **options)), None)


def load_picture_text_processor(path: str | os.PathLike, **options) -> PictureTextProcessor:
    """Qwen3-VL's processor that needs no torchvision. `options` go to the library's `from_pretrained`."""
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, **options)
    settings, _ = Qwen3VLProcessor.get_processor_dict(path, **options)
    template = settings.get("chat_template") or tokenizer.chat_template
    return PictureTextProcessor(image_processor, tokenizer, chat_template=template)
