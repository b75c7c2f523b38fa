"""The demo's tokenizer and chat template: Qwen's form, a vocabulary of its own.

Byte-level BPE with Qwen's pre-tokenizer pattern (digits one by one) and Qwen's special tokens, trained on the words of
the demo's tasks. All 256 bytes are in the vocabulary and nothing is normalised, so any text comes back exactly.
"""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mask_impact.demo import pictures, tasks

VOCABULARY_LIMIT = 1500
MAX_TOKENS = 4096

# The pattern of Qwen's own tokenizers.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# Words of the last stages: behind all others, so that no number and no split of an earlier prompt changes.
LATER_ANSWERS = (
    "arch",
    "bowl",
    "leaf",
    "left",
    "right",
    "up",
    "down",
    "yes",
    "no",
    "rectangle",
    "gray",
    "teal",
    "brown",
)
LATER_STARTS = ("Which", "Where", "what", "is", "does")
LATER_WORDS = (
    "large", "larger", "appears", "comes", "first", "move", "seconds", "color", "shape", "there", "not", "image", "contain",
    "present", "of",
)  # fmt: skip

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SETTINGS = {
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": MAX_TOKENS,
    "padding_side": "left",
}


def corpus() -> list[str]:
    """Every word of the tasks, each both at the start of a text and behind a space, often enough to become one token."""
    words = [
        *tasks.NAMES,
        *tasks.OBJECTS,
        *tasks.STORY_COLORS,
        *pictures.SHAPES,
        *tasks.CAPITALS,
        *tasks.CAPITALS.values(),
    ]
    lines = []
    for word in words:
        lines += [word, f"the {word}"] * 20
    for task in ("sum", "capital", "definition", "greeting"):
        lines += [f"{sample.prompt}\n{sample.answer}\n {sample.answer}" for sample in tasks.facts(task)] * 2
    figures = [f"A {color} {shape}, an {color} {shape}." for color in pictures.COLORS for shape in pictures.SHAPES]
    questions = [pictures.color_question(shape) for shape in pictures.SHAPES]
    questions += [pictures.shape_question(color) for color in pictures.COLORS]
    questions += [" belongs to", "The red ball belongs to Tom."]
    chat = ["user\n", "assistant\n", "system\nYou are a helpful assistant."]
    lines += (figures + questions + [pictures.COUNT_QUESTION, *pictures.DESCRIBE_QUESTIONS] + chat) * 20
    lines += [f"{sample.prompt}" for sample in tasks.text_samples("recall_name", 300, held_out=False)]
    lines += [f"{sample.prompt}" for sample in tasks.text_samples("recall_object", 300, held_out=False)]
    return lines


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The trained tokenizer with special tokens (numbered behind the vocabulary, as Qwen does) and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT, initial_alphabet=alphabet, min_frequency=4, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **SETTINGS)


def extended(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the later words as tokens behind all that it has. What it splits otherwise it splits as before."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    vocabulary |= {one["content"]: one["id"] for one in parts["added_tokens"]}  # so that the numbers go on behind these
    words = [f"{space}{word}" for word in LATER_ANSWERS for space in ("", " ")]
    for word in (*words, *LATER_STARTS, *(f" {word}" for word in LATER_WORDS)):
        pieces = Tokenizer.from_str(json.dumps(parts)).encode(word).tokens
        while len(pieces) > 1:
            merges.append(pieces[:2])
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), chat_template=CHAT_TEMPLATE, **SETTINGS
    )
