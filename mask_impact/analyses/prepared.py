"""One prompt, ready for a model: encoded and checked against it, and what a meta file says of such a run."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

import mask_impact
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.errors import InputError, UsageError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import EncodedPrompt, encode, encode_inputs
from mask_impact.prompts.images import Picture
from mask_impact.prompts.videos import Clip


@dataclass(frozen=True)
class Prepared:
    """One prompt, ready to be run: encoded, and checked against the model and its settings."""

    prompt: str | Mapping[str, Any]
    encoded: EncodedPrompt
    settings: RunSettings


def prepare(
    loaded: Reader, prompt: str | Mapping[str, Any], settings: RunSettings, pictures: Sequence[Picture | Clip] = ()
) -> Prepared:
    """Encode a prompt and check what can be checked before the model runs, or is loaded."""
    if not isinstance(prompt, Mapping):
        encoded = encode(loaded, prompt, pictures, raw=settings.raw)
    elif pictures:
        raise InputError("ready model inputs hold their images as pixel_values; leave `images` and `videos` out")
    else:
        encoded = encode_inputs(loaded, prompt)
    if not encoded.tokens.masked(settings.mask_mode).any():
        kind = "an image or video: give one" if settings.mask_mode == "vision" else "text: give some"
        raise InputError(f"mask mode {settings.mask_mode} needs a prompt with {kind}, or another mask mode")
    if settings.effect and settings.top is not None and settings.ablation != "mask":
        raise UsageError(f"`top` estimates what `ablation` mask does, not {settings.ablation}: leave one of them out")
    has_videos = any(image.moment is not None for image in encoded.images)
    _check_context(loaded.config, encoded.n_tokens, settings.num_tokens, has_videos)
    return Prepared(prompt, encoded, settings)


def _check_context(config: PreTrainedConfig, n_tokens: int, num_tokens: int, has_videos: bool) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    # The last produced token is never fed back.
    if limit is not None and n_tokens + num_tokens - 1 > limit:
        raise InputError(
            f"the prompt has {n_tokens} tokens and {num_tokens} are to be produced, but the model's context is {limit}; "
            f"shorten the prompt, lower `num_tokens`, or shrink its images (`max_image_resolution`)"
            + ", or take fewer frames (`video_frames`)"
            * has_videos
        )


def describe_run(loaded: LoadedModel, prepared: Prepared) -> dict[str, Any]:
    """What a meta file says of a run besides the measurements; JSON types only."""
    prompt, encoded, settings = prepared.prompt, prepared.encoded, prepared.settings
    model = loaded.model
    notices = [*([loaded.note] if loaded.note else []), *encoded.notes]
    if (
        loaded.kind == "vl"
        and encoded.images
        and not (loaded.processor and loaded.processor.chat_template)
        and encoded.text
    ):
        notices.append(
            "The model has no chat template: the prompt is taken as it is, with its images where they are marked, or before it"
        )
    return {
        "tool_version": mask_impact.__version__,
        "model": loaded.name,
        "revision": loaded.revision,
        "model_class": type(model).__name__,
        "architecture": loaded.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor(),
        "attention_backend": decoder_of(model).configs[0]._attn_implementation,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "prompt": prompt if isinstance(prompt, str) else None,
        "templated_prompt": encoded.text,
        "num_tokens": settings.num_tokens,
        "max_image_resolution": settings.max_image_resolution,
        "notices": notices,
        "ablation": settings.ablation,
    }  # fmt: skip
