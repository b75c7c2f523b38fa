"""What stands for an image in a vision-language model's prompt and among its inputs: read from its processor and config."""

import inspect
from collections.abc import Collection
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedConfig

from mask_impact.errors import InputError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.marks import IMAGE_MARK

_AROUND = (("vision_start_token_id", "vision_end_token_id"), ("image_start_token_id", "image_end_token_id"))


def taken_inputs(loaded: Reader) -> Collection[str]:
    """The names of what the model's forward takes; works without its weights."""
    if isinstance(loaded, LoadedModel):
        return inspect.signature(loaded.model.forward).parameters
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if loaded.kind == "vl" else MODEL_FOR_CAUSAL_LM_MAPPING
    return inspect.signature(mapping[type(loaded.config)].forward).parameters


def _placeholders(processor: Any) -> list[str]:
    owners = (processor, getattr(processor, "tokenizer", None))
    found = [getattr(owner, name, None) for name in ("image_token", "boi_token") for owner in owners]
    return [token for token in dict.fromkeys(found) if isinstance(token, str) and token]


def image_placeholder(processor: Any, text: str | None = None) -> str:
    """What the processor replaces by the tokens of an image; text: one with images, where it is one of several.

    InputError for a processor that has none.
    """
    known = _placeholders(processor)
    if not known:
        raise InputError(f"{type(processor).__name__} names no token for an image; use the model with text alone")
    return next((token for token in known if text and token in text), known[0])


def image_text(config: PreTrainedConfig, processor: Any) -> str:
    """An image in a prompt that is used as it is: its placeholder, between the tokens that begin and end an image where a
    template writes these."""
    placeholder = image_placeholder(processor)
    for around in _AROUND:
        ids = [getattr(config, name, None) for name in around]
        if set(ids) <= processor.tokenizer.added_tokens_decoder.keys():
            start, end = processor.tokenizer.convert_ids_to_tokens(ids)
            return f"{start}{placeholder}{end}"
    return placeholder


def refuse_placeholders(processor: Any, prompt: str) -> None:
    """InputError for a prompt with a token of the model's own that stands for an image."""
    strange = next((token for token in _placeholders(processor) if token != IMAGE_MARK and token in prompt), None)
    if strange:
        raise InputError(f"the prompt has the model's own token {strange}; write {IMAGE_MARK} where an image goes")
