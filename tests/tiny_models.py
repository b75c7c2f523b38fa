"""Tiny random models of the supported architectures, built from a config: no download, well under a second each.

They are small but not tame. Weights are drawn so that attention is far from uniform, norm weights differ from 1 (from 0
where the norm adds one), biases are not zero wherever a bias exists, there are fewer key/value heads than heads, the
head size is not hidden / heads where the architecture lets it be chosen, and a sliding window is shorter than a prompt
of ten tokens. What a measurement could get wrong on a real model has an effect here.

This module does not know what is measured.
"""

import torch
import transformers
from torch import nn

ARCHITECTURES = (
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3",
    "qwen2",
    "llama",
    "mistral",
    "gemma3_text",
    "olmo2",
    "phi3",
)

VOCABULARY = 120
WINDOW = 5  # keys a sliding-window layer sees, the query's own included
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = 114, 115, 116, 117  # special ids of the vision-language models
N_PLAIN_TOKENS = 110  # ids below this one are ordinary text

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,  # generation runs to the number of tokens asked for
    "tie_word_embeddings": False,
}
_MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
_VISION_LANGUAGE_DECODER = {"num_hidden_layers": 4, "head_dim": 16, "rope_parameters": _MROPE}

# What an architecture adds to _DECODER.
_SPECIAL = {
    "qwen3_vl": _VISION_LANGUAGE_DECODER,
    "qwen3_vl_moe": _VISION_LANGUAGE_DECODER
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],  # layers 0, 2, 3 are sparse, layer 1 is dense
    },
    "qwen3": {"head_dim": 16},
    "qwen2": {},
    "llama": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": WINDOW},
    "gemma3_text": {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "query_pre_attn_scalar": 20,  # the scores' scale is not head_dim ** -0.5
        "sliding_window": WINDOW,
    },
    "olmo2": {},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
}

_VISION_TOWER = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 16,  # a learned 4 x 4 grid, interpolated to the image's grid
    "deepstack_visual_indexes": [0, 1, 2],  # three feature maps, added after decoder layers 0, 1, 2
}

_CLASSES = {
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
    "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
}


def tiny_model(name, *, seed=0, dtype=torch.float32, sharpness=1.0, **overrides):
    """A tiny random model of one architecture, on CPU, in evaluation mode.

    name: one of ARCHITECTURES.
    sharpness: factor on the attention scores of the decoder. 1 is lively; at 10 most queries give one key nearly all
        their weight and others less than a millionth.
    overrides: keys of the decoder's config (`num_hidden_layers=2`, `attention_bias=True` for a bias in the attention's
        output projection, `mlp_bias=True` for llama, `sliding_window=None` for mistral, ...). For the vision-language
        models `vision_config={...}` changes keys of the vision tower.

    The weights depend on `seed` and the config alone; the global random state is left as it was. As in a loaded
    checkpoint, only parameters take `dtype`: the rotary frequencies stay float32.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    config_class, model_class = (getattr(transformers, class_name) for class_name in _CLASSES[name])
    with torch.random.fork_rng(devices=[]):
        model = model_class(config_class(**_config_arguments(name, overrides)))
    _randomize(model, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    model.config.dtype = dtype
    for layer in getattr(model.model, "language_model", model.model).layers:
        layer.self_attn.scaling *= sharpness
    return model.eval()


def tiny_inputs(model, n_tokens, seed=0):
    """Model inputs for a random text prompt: input_ids and attention_mask [1, n_tokens], ones everywhere.

    Vision-language models also get mm_token_type_ids [1, n_tokens], zeros: every token is text.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(N_PLAIN_TOKENS, (1, n_tokens), generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if is_vision_language(model):
        inputs["mm_token_type_ids"] = torch.zeros_like(input_ids)
    return inputs


def tiny_image_inputs(model, *, n_images=1, n_text=3, grids=((1, 4, 6), (1, 4, 4)), seed=0):
    """Model inputs for a prompt with images: text, then per image <start> pads <end> text.

    n_text: ordinary tokens before, between and after the images.
    grids: per image (time, height, width) in patches, height and width even; the decoder sees time * height * width / 4
        tokens of it. The first `n_images` are used.
    Returns input_ids, attention_mask, mm_token_type_ids (1 at image tokens) [1, N], pixel_values
    [patches, 3 * time patch * patch * patch], image_grid_thw [n_images, 3].
    """
    if not is_vision_language(model):
        raise ValueError(f"{type(model).__name__} takes no images")
    generator = torch.Generator().manual_seed(seed)

    def text():
        return torch.randint(N_PLAIN_TOKENS, (n_text,), generator=generator).tolist()

    vision = model.config.vision_config
    grids = grids[:n_images]
    token_ids = text()
    for time, height, width in grids:
        n_image_tokens = time * height * width // vision.spatial_merge_size**2
        token_ids += [VISION_START] + [IMAGE_PAD] * n_image_tokens + [VISION_END] + text()
    input_ids = torch.tensor([token_ids])
    n_patches = sum(time * height * width for time, height, width in grids)
    patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE_PAD).long(),
        "pixel_values": torch.randn(n_patches, patch_values, generator=generator).to(model.dtype),
        "image_grid_thw": torch.tensor(grids),
    }


def is_vision_language(model):
    """Whether the model has a vision tower."""
    return hasattr(model.config, "vision_config")


def _config_arguments(name, overrides):
    overrides = dict(overrides)
    vision_overrides = overrides.pop("vision_config", {})
    decoder = _DECODER | _SPECIAL[name] | overrides
    if name == "gemma3_text":
        alternating = ["sliding_attention", "full_attention"] * decoder["num_hidden_layers"]
        decoder.setdefault("layer_types", alternating[: decoder["num_hidden_layers"]])
    if not name.startswith("qwen3_vl"):
        return decoder
    return {
        "text_config": decoder,
        "vision_config": _VISION_TOWER | {"out_hidden_size": decoder["hidden_size"]} | vision_overrides,
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": decoder["tie_word_embeddings"],
    }


@torch.no_grad()
def _randomize(model, seed):
    """Draw every parameter anew; see the header for what the draw has to achieve."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in sorted(model.named_modules()):
        for leaf, parameter in sorted(module.named_parameters(recurse=False)):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_lively(name, module, leaf, noise))


def _lively(name, module, leaf, noise):
    if leaf == "bias":
        return 0.3 * noise
    if "Norm" in type(module).__name__:
        center = 0.0 if "Gemma" in type(module).__name__ else 1.0  # Gemma's norms multiply by 1 + weight
        if name.endswith(("q_norm", "k_norm")):
            center += 0.4  # with queries and keys of norm 1 per coordinate the scores would be tame
        return center + 0.3 * noise
    if isinstance(module, nn.Embedding):
        scaled_by_model = "Scaled" in type(module).__name__  # Gemma multiplies embeddings by sqrt(hidden)
        return noise / noise.shape[-1] ** 0.5 if scaled_by_model else noise
    n_inputs = noise[0].numel() if noise.dim() > 3 else noise.shape[-1]  # convolution; linear map or stacked experts
    return 1.3 * noise / n_inputs**0.5
