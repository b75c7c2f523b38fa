"""Checkpoint folders of tiny models, with a tokenizer and what else a checkpoint has."""

import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mask_impact.models import loading

CONTEXT = 64  # tokens that the tiny checkpoints take


MAX_CELLS = 12  # tokens that an image becomes at most


SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


CHATML = """\
{%- for message in messages %}
{%- if message.role not in ('system', 'user', 'assistant') %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def make_tokenizer(chat_template=CHATML):
    """A byte-level BPE tokenizer that knows ' the', and most other words only letter by letter."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL_TOKENS) + 256 + 40,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["user assistant system the cat sat on the mat in the house"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def tiny_loaded(name="qwen3", tokenizer=None, **overrides):
    """A tiny model of an architecture with its tokenizer, as loading gives it."""
    tokenizer = tokenizer or make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    return loading.wrap(tiny_models.tiny_model(name, **sizes | overrides), tokenizer, name="tiny")


def save_checkpoint(folder, name, *, chat_template=CHATML, **overrides):
    """Write a tiny model of an architecture, with tokenizer and what else it needs, into a folder; returns the folder."""
    tokenizer = make_tokenizer(chat_template)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    model = tiny_models.tiny_model(name, **sizes | overrides)
    if tiny_models.is_vision_language(model):
        for part in ("image", "video", "vision_start", "vision_end"):
            pad = "_pad" if part in ("image", "video") else ""
            setattr(model.config, f"{part}_token_id", tokenizer.convert_tokens_to_ids(f"<|{part}{pad}|>"))
        vision = model.config.vision_config
        cell_pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
        images = Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            size={"shortest_edge": cell_pixels, "longest_edge": MAX_CELLS * cell_pixels},
        )
        images.save_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
