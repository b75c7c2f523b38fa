"""Which models of transformers are taken, by the `model_type` of their configuration, before any weight is read.

Text models, and models of images and text whose images become tokens of a decoder. Where a model's layers are is found when it
is here (`engine.riding.layers`).
"""

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from mask_impact.errors import UnsupportedArchitecture

# Architectures that everything is tested on, by `model_type`, and what has them.
EXAMPLES = {
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL, mixture of experts",
    "qwen3": "Qwen3",
    "qwen2": "Qwen2 and Qwen2.5",
    "llama": "Llama 2 and 3, SmolLM",
    "mistral": "Mistral",
    "phi3": "Phi-3 and Phi-4",
    "gemma3_text": "Gemma 3, text",
    "olmo2": "OLMo 2",
}

_TEXT_MODELS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_VISION_LANGUAGE = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
_WITH_OTHER_INPUT = _VISION_LANGUAGE | frozenset(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


def parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """A module's own parameter, or None where it has none of that name; also where accelerate keeps it on a disk or another
    device until the module runs."""
    value = getattr(module, name, None)
    if isinstance(value, torch.Tensor) and value.is_meta:
        from accelerate.utils import align_module_device

        with align_module_device(module):
            return getattr(module, name).detach().clone()
    return value


def is_vision_language(model_type: str) -> bool:
    """Whether transformers has it as a model of images and text."""
    return model_type in _VISION_LANGUAGE


def check_supported(model_type: str) -> None:
    """Refuse an architecture by the `model_type` of its config, before any weight is read."""
    if model_type not in (_TEXT_MODELS - _WITH_OTHER_INPUT) | _VISION_LANGUAGE:
        raise UnsupportedArchitecture(
            f"architecture '{model_type}' is not supported: it is no model of text, or of images and text, of transformers "
            f"{transformers.__version__}; use one that is, such as {', '.join(sorted(EXAMPLES))}"
        )


def check_described(config: PreTrainedConfig) -> None:
    """UnsupportedArchitecture where a configuration does not say how many layers and heads there are, and how large, or where
    images do not become tokens of a decoder."""
    check_supported(config.model_type)
    if is_vision_language(config.model_type):
        _check_image_tokens(config)
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        try:
            getattr(config.get_text_config(), name)
        except (
            AttributeError,
            ValueError,
            RuntimeError,
        ) as error:  # not there, of several decoders, another in each layer
            raise UnsupportedArchitecture(
                f"architecture '{config.model_type}' is not supported: its configuration has no {name} of a decoder"
            ) from error


def _check_image_tokens(config: PreTrainedConfig) -> None:
    apart = hasattr(config.get_text_config(), "cross_attention_layers")  # images stay outside of the sequence
    if config.is_encoder_decoder or apart or getattr(config, "image_token_id", None) is None:
        raise UnsupportedArchitecture(
            f"architecture '{config.model_type}' is not supported: its configuration has no image tokens in a decoder's sequence"
        )
