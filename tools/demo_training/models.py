"""The two demo models, from configuration, and growing a shallow trained one into a deep one.

A decoder as deep as the real models' (36 and 28 layers) and 64 wide does not get off its plateau when trained from
scratch; a six-layer one does within minutes. So a shallow *seed* is trained first and then grown: each layer is replaced by
several copies of itself whose output projections are divided by the number of copies, so that together they do about what
the one did, and training goes on. Every layer works then; layers added as identities stay idle (1-2 % of the residual
stream).
"""

from __future__ import annotations

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from .tokenizer import MAX_TOKENS

WEIGHT_NOISE = 0.05  # relative; copies of a layer that start equal would otherwise learn the same
CONSTANT = 0.3  # what all embeddings have in common at the start; their spread is 0.05 in each dimension
SHARPNESS = 1.7  # scale of the first layer's normalised queries and keys at the start
SEED_LAYERS = 6
GROWN_LAYERS = {"text": 28, "vl": 36}

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.05,
}
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_heads": 4,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [0, 1, 2],
    "initializer_range": 0.05,
}


def build_model(which: str, n_layers: int, tokenizer: PreTrainedTokenizerFast):
    """An untrained "vl" or "text" model of `n_layers` decoder layers, float32."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    decoder = DECODER | {"vocab_size": len(tokenizer), "num_hidden_layers": n_layers}
    if which == "text":
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        config = Qwen3Config(**decoder, rope_parameters=rope, tie_word_embeddings=True, **_token_ids(ids))
        model = Qwen3ForCausalLM(config)
    else:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
        config = Qwen3VLConfig(
            text_config=decoder | {"rope_parameters": rope, "tie_word_embeddings": True} | _token_ids(ids),
            vision_config=VISION | {"out_hidden_size": decoder["hidden_size"]},
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


def _token_ids(ids: dict[str, int]) -> dict[str, int]:
    return {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": None}


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen3-VL's preprocessing. Pictures of 64x64 to 256x256 pixels (4 to 64 cells) keep their size."""
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": 64 * 64, "longest_edge": 256 * 256},
    )


def decoder(model) -> torch.nn.Module:
    """The module with `embed_tokens`, `layers` and `norm`."""
    return model.model.language_model if hasattr(model.model, "visual") else model.model


@torch.no_grad()
def start_with_lookback_heads(model) -> None:
    """Let the heads of the first layer start out attending to the token 1, 2, 3 and 4 places back.

    Looking something up in a story needs a layer that tells each token what stood before it, and then one that searches by
    it. Neither is of use alone, which is why small models sit on a plateau for long; with the first given, the second is
    learned at once. These are only initial weights: they are trained on like all others, and then copied by `grow`.

    A constant in dimension 0 of every embedding is what queries and keys are made from; the keys are the same everywhere
    and the queries turned by `offset` steps of the rotary angles, so that their product is largest at that distance.
    """
    core = decoder(model)
    config = model.config.get_text_config()
    core.embed_tokens.weight[:, 0] = CONSTANT
    attention = core.layers[0].self_attn
    half = config.head_dim // 2
    angles = 10000.0 ** (-torch.arange(half) / half)  # radians per position
    strength = torch.zeros(half)
    strength[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).sqrt()  # high frequencies tell neighbours apart
    key = torch.cat([strength, torch.zeros(half)])  # (head_dim,)
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight.mul_(0.4)
    for head in range(config.num_key_value_heads):
        attention.k_proj.weight[head * config.head_dim : (head + 1) * config.head_dim, 0] = key
    for head in range(config.num_attention_heads):
        turned = angles * (head + 1)
        query = torch.cat([strength * turned.cos(), -strength * turned.sin()])
        attention.q_proj.weight[head * config.head_dim : (head + 1) * config.head_dim, 0] = query
    attention.q_norm.weight.fill_(SHARPNESS)
    attention.k_norm.weight.fill_(SHARPNESS)


def copies_of_each(n_seed: int, n_grown: int) -> list[int]:
    """How many copies each seed layer becomes, as even as it goes: 6 to 28 layers is [5, 5, 5, 5, 4, 4]."""
    return [n_grown // n_seed + (index < n_grown % n_seed) for index in range(n_seed)]


@torch.no_grad()
def grow(seed_model, grown_model, generator: torch.Generator) -> None:
    """Copy the seed's weights into the deeper model, each layer becoming several neighbouring ones.

    `o_proj` and `down_proj` are divided by the number of copies; weight matrices get 5 % noise (relative to their own
    spread). What the seed doesn't have (the vision tower, when words grow into pictures) keeps its initial weights.
    """
    seed_decoder, grown_decoder = decoder(seed_model), decoder(grown_model)
    known, words = seed_decoder.embed_tokens.weight, grown_decoder.embed_tokens.weight
    words[: len(known)] = known
    if len(words) > len(known):  # a later tokenizer knows more of them
        noise = torch.randn(len(words) - len(known), known.shape[1], generator=generator).to(words.device)
        words[len(known) :] = known.mean(dim=0) + noise * known.std(dim=0)
    grown_decoder.norm.load_state_dict(seed_decoder.norm.state_dict())
    if hasattr(seed_model.model, "visual"):
        grown_model.model.visual.load_state_dict(seed_model.model.visual.state_dict())
    counts = copies_of_each(len(seed_decoder.layers), len(grown_decoder.layers))
    sources = [(layer, count) for layer, count in zip(seed_decoder.layers, counts, strict=True) for _ in range(count)]
    for grown_layer, (seed_layer, n_copies) in zip(grown_decoder.layers, sources, strict=True):
        grown_layer.load_state_dict(seed_layer.state_dict())
        if n_copies > 1:
            _become_one_of(grown_layer, n_copies, generator)


def _become_one_of(layer: torch.nn.Module, n_copies: int, generator: torch.Generator) -> None:
    for name, weight in layer.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.div_(n_copies)
        if weight.ndim == 2:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(noise * weight.std() * WEIGHT_NOISE)


MERGED_SHARE = 0.8  # of each of two differences; the whole of both is too much, half too little


@torch.no_grad()
def add_difference(model, later: dict[str, torch.Tensor], earlier: dict[str, torch.Tensor]) -> None:
    """Join what two branches of one ancestor have learned: decoder = earlier + 0.8 (model - earlier) + 0.8 (later - earlier).

    later, earlier: state dicts of text models. The vision tower of `model` stays as it is. What results is worse than either
    branch at its own task but within a few hundred steps of being as good as both.
    """
    for name, weight in decoder(model).named_parameters():
        base = earlier[f"model.{name}"]
        weight.copy_(base + MERGED_SHARE * (weight - base) + MERGED_SHARE * (later[f"model.{name}"] - base))


def multiply_patches(tower: torch.nn.Module) -> None:
    """Let a vision tower embed patches by one matrix product, as its convolution does, which is several times slower backward."""
    embedding = tower.patch_embed
    weight, bias = embedding.proj.weight, embedding.proj.bias
    embedding.forward = lambda patches: torch.nn.functional.linear(patches.to(weight.dtype), weight.flatten(1), bias)
