"""Which produced tokens a target stands for."""

import pytest

from mask_impact.analyses.targets import resolve
from mask_impact.errors import InputError, UsageError

TEXTS = ["The", " star", " is", " or", "ange", ".", "<|im_end|>"]
KINDS = ["text"] * 6 + ["special"]
THOUGHT = ["<think>", "\n", "Hm", "m", "</think>", "\n\n", "Blue", "<|im_end|>"]


def steps(spec, texts=TEXTS, kinds=None):
    kinds = kinds or ["special" if text.startswith("<|") else "text" for text in texts]

    def decode(ids):
        return "".join(texts[one] for one in ids)

    return resolve(spec, list(range(len(texts))), texts, kinds, decode)


def test_the_answer_is_what_is_said_without_thinking_and_without_the_token_that_ends_it():
    assert steps("answer") == [(0, 1, 2, 3, 4, 5)]
    assert steps("all") == [(0, 1, 2, 3, 4, 5, 6)]
    assert steps("each") == [(step,) for step in range(7)]
    assert steps("answer", THOUGHT) == [(6,)]
    assert steps("thinking", THOUGHT) == [(2, 3)]
    assert steps("all", THOUGHT) == [tuple(range(8))]
    assert steps("answer", ["<|im_end|>"]) == [(0,)]  # where nothing else was said
    with pytest.raises(InputError, match="the model did not think here"):
        steps("thinking")


def test_numbers_are_of_produced_tokens():
    assert steps("3") == [(3,)]
    assert steps("1-4") == [(1, 2, 3, 4)]
    for spec in ("7", "4-2", "5-9"):
        with pytest.raises(UsageError, match=f"`target` {spec} is not there: 7 tokens were produced, 0 to 6"):
            steps(spec)
    with pytest.raises(UsageError, match="1 token was produced, 0 to 0"):
        steps("1", ["a"])


def test_text_of_the_answer_is_found_across_tokens():
    assert steps("orange") == [(3, 4)]
    assert steps(" star is") == [(1, 2)]
    assert steps("'ang'") == [(4,)]
    assert steps('"3"', ["3", "4"]) == [(0,)]  # in quotes a number is text
    with pytest.raises(InputError, match="is not in the answer"):
        steps("blue")


def test_a_character_of_several_tokens_belongs_to_all_of_them():
    """As of a byte-level tokenizer: its first token gives no text of its own."""
    parts = {1: "a", 2: "a\N{REPLACEMENT CHARACTER}", 3: "a\N{SNOWMAN}", 4: "a\N{SNOWMAN}b"}

    def decode(ids):
        return parts[len(ids)]

    found = resolve("\N{SNOWMAN}", [0, 1, 2, 3], ["a", "?", "?", "b"], ["text"] * 4, decode)
    assert found in ([(1, 2)], [(1,)], [(2,)])
    assert resolve("b", [0, 1, 2, 3], ["a", "?", "?", "b"], ["text"] * 4, decode) == [(3,)]
