"""What is content of a prompt, by templates as their makers write them."""

import numpy as np
import pytest

from mask_impact.prompts.content import content_positions
from mask_impact.results.tokens import TokenTable


def table(*parts):
    """Tokens of texts; what stands in < > or [ ] is special unless it is a pair (text, kind)."""
    entries = [part if isinstance(part, tuple) else (part, "special" if part[0] == "<" else "text") for part in parts]
    n = len(entries)
    outside = np.full(n, -1, dtype=np.int32)
    image = np.array([0 if kind == "image" else -1 for _, kind in entries], dtype=np.int32)
    return TokenTable(
        np.arange(n), tuple(text for text, _ in entries), tuple(kind for _, kind in entries), image, outside, outside
    )


def kept(*parts):
    found = table(*parts)
    return [text for text, content in zip(found.texts, content_positions(found, len(found)), strict=True) if content]


def test_chatml_leaves_what_is_in_the_turns():
    parts = [
        "<|im_start|>", "system", "\n", "You", " help", "<|im_end|>", "\n", "<|im_start|>", "user", "\n", "<|vision_start|>",
        ("<|image_pad|>", "image"), "<|vision_end|>", "What", " is", "\n", "user", "?", "<|im_end|>", "\n", "<|im_start|>",
        "assistant", "\n",
    ]  # fmt: skip
    assert kept(*parts) == ["You", " help", "<|image_pad|>", "What", " is", "\n", "user", "?"]


def test_a_role_of_several_tokens_and_a_word_that_only_begins_like_one():
    assert kept("<|im_start|>", "assist", "ant", "\n", "Yes", "<|im_end|>") == ["Yes"]
    assert kept("<|im_start|>", "users", "\n", "Yes") == ["users", "\n", "Yes"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Hi", "<|eot_id|>"], ["Hi"]),
        (["<bos>", "<start_of_turn>", "user", "\n", "Hi", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"], ["Hi"]),
        (["<|user|>", "\n", "Hi", "<|end|>", "\n", "<|assistant|>", "\n"], ["Hi"]),
        (["<s>", ("[INST]", "text"), " Hi", ("[/INST]", "text")], [" Hi"]),
        (["<|im_start|>", "assistant", "\n", ("<think>", "text"), "\n", "Hm", ("</think>", "text"), "Yes"], ["\n", "Hm", "Yes"]),
    ],
)  # fmt: skip
def test_templates_of_other_families(parts, expected):
    assert kept(*parts) == expected


def test_text_without_a_template_is_content_with_its_line_breaks_and_role_names():
    assert kept("user", "\n", "said", " assistant") == ["user", "\n", "said", " assistant"]


def test_nothing_is_never_all_that_is_left():
    assert kept("<|im_start|>", "user", "\n", "<|im_end|>") == ["<|im_start|>", "user", "\n", "<|im_end|>"]


def test_what_was_produced_does_not_count():
    found = table("<|im_start|>", "user", "\n", "Hi", "there")
    assert content_positions(found, 4).tolist() == [False, False, False, True]
