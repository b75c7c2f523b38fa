"""Tiny random models of many families of transformers, built from the config classes that are installed.

A line of `_SPECIAL` or `_IMAGE_SPECIAL` has the few keys that a family needs to be tiny, beside those of all families.
Weights are strong enough that hiding a token matters: norm weights differ from what they are in a new model, biases
and sink logits from 0, a sliding window (5 keys) is shorter than a prompt of nine tokens, softcaps are small.

In comes a family's name, out come a model and inputs for it. This module does not know what is measured.
"""

import inspect

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

WINDOW = 5  # keys that a layer with a sliding window sees, the query's own included
N_TOKENS = 9  # of a text prompt
N_PLAIN_TOKENS = 140  # ids below this one are text
VOCABULARY = 160
IMAGE, VIDEO, START, END = 150, 151, 152, 153  # ids of the vision-language models; none of them is ever produced

_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}
# Multi-head latent attention: a value is wider than a query's part without position, and narrower than the whole query.
_LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "chunk_size": 16,
}
MROPE = {
    "rope_type": "default",
    "rope_theta": 10_000.0,
    "mrope_section": [4, 2, 2],
    "partial_rotary_factor": 1.0,
}
_MROPE = {"rope_parameters": MROPE}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_MULTIPLIERS = {
    "embedding_multiplier": 1.5,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}
_SOFTCAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20}
# Gemma 4: the last two layers read the keys and values of the first two.
_GEMMA4 = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 32,
    "final_logit_softcapping": 3.0,
    "pad_token_id": 0,
}

# What a family adds to _TINY.
_SPECIAL = {
    "qwen3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},  # the layers from 1 on
    "llama": {},
    "mistral": {},
    "phi3": {},
    "gemma3_text": _SLIDING | {"query_pre_attn_scalar": 20},
    "olmo2": {},
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "olmo": {"clip_qkv": 2.0},
    "olmo3": _SLIDING,
    "gemma": {},
    "gemma2": _SLIDING | _SOFTCAPS,
    "gemma4_text": _GEMMA4,
    "glm": {},
    "glm4": {},
    "glm4_moe": _EXPERTS,
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "seed_oss": {},
    "ernie4_5": {},
    "helium": {},
    "ministral": _SLIDING,
    "granite": _MULTIPLIERS,
    "granitemoe": _EXPERTS | _MULTIPLIERS,
    "exaone4": _SLIDING,
    "cohere": {"logit_scale": 0.5, "use_qk_norm": True},
    "cohere2": _SLIDING | {"logit_scale": 0.5},
    "gpt2": {"n_inner": 96, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {},
    "phi": {"qk_layernorm": True},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "starcoder2": {},
    "stablelm": {"use_parallel_residual": True, "qk_layernorm": True},
    "nemotron": {},
    "arcee": {},
    "apertus": {},
    "gpt_oss": _EXPERTS | _SLIDING,
    "llama4_text": _EXPERTS
    | {"intermediate_size_mlp": 96, "attention_chunk_size": WINDOW, "num_hidden_layers": 4, "floor_scale": 2},
    "deepseek_v3": _EXPERTS | _LATENT,
    "minicpm3": _LATENT | {"scale_emb": 2, "dim_model_base": 32},
    "qwen3_next": _EXPERTS | _LINEAR,
    "qwen3_5_text": _LINEAR | _MROPE,
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "granitemoehybrid": _EXPERTS
    | _MAMBA
    | _MULTIPLIERS
    | {"layer_types": ["mamba", "attention", "attention"], "shared_intermediate_size": 32},
    "nemotron_h": _EXPERTS
    | _MAMBA
    | {
        "layers_block_type": ["mamba", "attention", "moe", "attention"],
        "mamba_n_groups": 2,
        # transformers holds time steps above this number in one pass, and does not where it decodes with a cache
        "time_step_min": 1e-12,
        "num_hidden_layers": 4,
        "moe_shared_expert_intermediate_size": 32,
    },
}
FAMILIES = tuple(_SPECIAL)

# Vision-language models: two kinds of vision tower, and what a family adds.
_GRID = {  # an image of 4 x 6 patches, of which 2 x 2 become a token
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 64,
}
_SQUARE = {  # an image of 4 x 4 patches
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
# text, vision: what the two configs have beside _TINY. Everything else is a key of the whole config.
_IMAGE_SPECIAL = {
    "qwen3_vl": {
        "text": _MROPE,
        "vision": _GRID | {"depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen2_vl": {
        "text": _MROPE,
        "vision": _GRID | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {"text": _MROPE, "vision": _GRID | {"fullatt_block_indexes": [1], "window_size": 16}},
    "qwen3_5": {"text": _MROPE | _LINEAR, "vision": _GRID | {"num_position_embeddings": 16}},
    "gemma3": {"text": _SLIDING | {"query_pre_attn_scalar": 20}, "vision": _SQUARE, "mm_tokens_per_image": 4},
    "gemma4": {
        "text": _GEMMA4,
        "vision": _SQUARE
        | {"num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 16},
    },
    "llava": {
        "text": {"model_type": "llama"},
        "vision": _SQUARE | {"model_type": "clip_vision_model", "projection_dim": 32},
    },
    "llava_onevision": {
        "text": {"model_type": "qwen2"},
        "vision": _SQUARE | {"model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False},
        "image_grid_pinpoints": [[16, 16]],
    },
    "internvl": {
        "text": {"model_type": "qwen2"},
        "vision": _SQUARE | {"image_size": [16, 16], "patch_size": [4, 4]},
    },
    "idefics3": {"text": {"model_type": "llama"}, "vision": _SQUARE},
    "smolvlm": {"text": {"model_type": "llama"}, "vision": _SQUARE},
    "mistral3": {
        "text": {"model_type": "mistral"},
        "vision": _SQUARE | {"model_type": "pixtral", "head_dim": 16},
    },
    "paligemma": {
        "text": {"model_type": "gemma", "sliding_window": None},
        "vision": _SQUARE | {"model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False},
        "projection_dim": 64,
        "hidden_size": 64,
    },
    "aya_vision": {
        "text": _SLIDING | {"model_type": "cohere2", "logit_scale": 0.5},
        "vision": _SQUARE | {"model_type": "siglip_vision_model", "vision_use_head": False},
    },
    "glm4v": {"text": _MROPE, "vision": _GRID | {"image_size": 16}},
}
VISION_LANGUAGE_FAMILIES = tuple(_IMAGE_SPECIAL)
# 1 at an image's tokens; in PaliGemma 0 in the whole prompt, where every token sees every other.
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "tie_word_embeddings": False,
}


class NotHere(Exception):
    """The installed transformers has no such family."""


def family_config(name, **other):
    """The tiny config of a family; raises NotHere. other: what a text model's has besides, or in place of what the table says."""
    if name not in CONFIG_MAPPING:
        raise NotHere(f"this transformers has no model_type {name!r}")
    if name in _SPECIAL:
        return CONFIG_MAPPING[name](**_tiny(name) | _SPECIAL[name] | other)
    special = dict(_IMAGE_SPECIAL[name])
    text, vision = special.pop("text"), special.pop("vision")
    text = _tiny(text.get("model_type", f"{name}_text")) | text
    return CONFIG_MAPPING[name](text_config=text, vision_config=vision, **_IDS | special)


def _tiny(name):
    """What of _TINY a text config knows. It would keep other keys too, and the cache would take one for a window."""
    config_class = CONFIG_MAPPING[name]
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    return {key: value for key, value in _TINY.items() if key in known}


def family_model(name, *, dtype=torch.float32, seed=0, **other):
    """A tiny random model of a family, on CPU, in evaluation mode; raises NotHere.

    name: one of FAMILIES or VISION_LANGUAGE_FAMILIES; other: see `family_config`. The weights depend on `seed` and the config
    alone; the global random state is left as it was. As in a loaded checkpoint, only parameters take `dtype`: rotary frequencies
    stay float32.
    """
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if name in _SPECIAL else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    config = family_config(name, **other)
    if type(config) not in mapping:
        raise NotHere(f"this transformers has no model of {name!r}")
    return build(config, mapping, dtype=dtype, seed=seed)


def family_inputs(model, *, n_tokens=N_TOKENS, text_only=False, seed=0):
    """Inputs of a random prompt: `n_tokens` of text, around one image for a vision-language model (unless `text_only`).

    input_ids and attention_mask [1, P], ones everywhere; with an image its pixel_values, token types (1 at the image), and
    what else the model takes.
    """
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(4, N_PLAIN_TOKENS, (n_tokens,), generator=generator).tolist()  # ids below 4 may be padding
    image = image_inputs(model, generator) if hasattr(model.config, "vision_config") and not text_only else None
    if image:
        with torch.no_grad():
            features = model.get_image_features(**image, return_dict=True).pooler_output
        n_features = sum(one.numel() // one.shape[-1] for one in features)
        text[3:3] = [START, *[IMAGE] * n_features, END]
    input_ids = torch.tensor([text])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if image:
        taken = inspect.signature(model.forward).parameters
        is_image = (input_ids == IMAGE).long()
        types = torch.zeros_like(input_ids) if model.config.model_type == "paligemma" else is_image
        inputs |= {name: types for name in _TOKEN_TYPES if name in taken}
    return inputs | (image or {})


def image_inputs(model, generator):
    """What a vision-language model takes of one image, without its tokens."""
    kind = model.config.model_type

    def values(*shape):
        return torch.randn(*shape, generator=generator).to(model.dtype)

    if "spatial_merge_size" in model.config.vision_config:
        return {"pixel_values": values(24, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    if kind == "gemma4":
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        return {"pixel_values": values(1, 16, 3 * 4 * 4), "image_position_ids": places[None]}
    if kind in ("idefics3", "smolvlm"):
        return {"pixel_values": values(1, 1, 3, 16, 16)}
    if kind == "llava_onevision":  # the whole image, and the one piece that it is cut into
        return {"pixel_values": values(1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    if kind == "mistral3":
        return {"pixel_values": values(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    return {"pixel_values": values(1, 3, 16, 16)}


def build(config, mapping, *, dtype=torch.float32, seed=0):
    """The model of `mapping` for a config, with random weights as the header says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mapping[type(config)]._from_config(config)
    randomize(model, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    model.config.dtype = dtype
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default's matrix products take no float64
    return model.eval()


@torch.no_grad()
def randomize(model, seed=0):
    """Draw every parameter anew; see the header for what the draw has to achieve."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in sorted(model.named_modules()):
        for leaf, parameter in sorted(module.named_parameters(recurse=False)):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_lively(name, module, leaf, parameter, noise))
    head = model.get_output_embeddings()
    if head is not None and hasattr(model.config, "vision_config"):
        head.weight[N_PLAIN_TOKENS:VOCABULARY] = 0
        if head.bias is not None:
            head.bias[N_PLAIN_TOKENS:VOCABULARY] = -10


def _lively(name, module, leaf, parameter, noise):
    if leaf == "sinks":
        return noise
    if leaf.endswith("bias") and leaf != "dt_bias":
        return 0.3 * noise
    if noise.dim() <= 1 or "Norm" in type(module).__name__:  # a norm's weight, or a constant of a state space
        sharper = 0.0
        if name.endswith(("q_norm", "k_norm")):
            sharper = -0.3 if "Gemma4" in type(module).__name__ else 0.4  # Gemma 4 does not scale its scores down
        if "1P" in type(module).__name__:
            sharper = -1.0  # Nemotron's norms multiply by 1 + weight, and a new one's weight is 1
        return parameter.nan_to_num() + sharper + 0.3 * noise
    if isinstance(module, nn.Embedding):
        scaled_by_model = "Scaled" in type(module).__name__  # Gemma multiplies by sqrt(hidden)
        return noise / noise.shape[-1] ** 0.5 if scaled_by_model else noise
    n_inputs = noise[0].numel() if noise.dim() > 3 else noise.shape[-1]  # convolution; linear map or stacked experts
    return 1.3 * noise / n_inputs**0.5
