"""Which produced tokens a target stands for."""

import pytest
from checkpoints import make_tokenizer

from mask_impact.analyses.targets import resolve, thinking_end
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


def test_a_template_may_have_begun_the_thinking():
    """Then only its end is produced."""
    texts = ["Hm", "\n", "m", "</think>", "\n\n", "Blue", " sky"]
    assert thinking_end(texts) == 5
    assert steps("thinking", texts) == [(0, 2)]
    assert steps("answer", texts) == [(5, 6)]


def test_the_last_end_of_thinking_counts_and_special_tokens_within_an_answer_do_not():
    texts = ["a", "</think>", "b", "</think>", "c", "<|x|>", "d", "<|im_end|>"]
    assert steps("answer", texts) == [(4, 6)]
    assert steps("thinking", texts) == [(0, 2)]
    marks = ["<think>", "\n", "</think>", "\n", "yes"]
    with pytest.raises(InputError, match="did not think"):
        steps("thinking", marks)  # nothing between the marks
    assert steps("answer", marks) == [(4,)]
    assert steps("answer", ["Hm", "</think>", "\n"]) == [(0,)]  # nothing behind it, which is the first token then


def test_thinking_that_was_not_finished_is_the_answer():
    assert thinking_end(["<think>", "Hm", "m"]) == 0
    assert steps("answer", ["<think>", "Hm", "m"]) == [(0, 1, 2)]


def test_numbers_are_of_produced_tokens():
    assert steps("3") == [(3,)]
    assert steps("0") == [(0,)]
    assert steps("6") == [(6,)]  # the one that ends it, too
    assert steps("1-4") == [(1, 2, 3, 4)]
    assert steps("2-2") == [(2,)]
    assert steps("0-6") == steps("all")
    for spec in ("7", "4-2", "5-9"):
        with pytest.raises(UsageError, match=f"`target` {spec} is not there: 7 tokens were produced, 0 to 6"):
            steps(spec)
    with pytest.raises(UsageError, match="1 token was produced, 0 to 0"):
        steps("1", ["a"])


def test_text_of_the_answer_is_found_across_tokens():
    assert steps("orange") == [(3, 4)]
    assert steps(" star is") == [(1, 2)]
    assert steps("'ang'") == [(4,)]
    assert steps("e.") == [(4, 5)]
    assert steps("The star is orange.") == [tuple(range(6))]
    assert steps('"3"', ["3", "4"]) == [(0,)]  # in quotes a number is text
    assert steps("'answer'", ["the", " answer"]) == [(1,)]  # and so is a name
    assert steps("star", [" star", " and", " star"]) == [(0,)]  # the first of several places
    assert steps("it's", ["it", "'s"]) == [(0, 1)]  # a quote within
    assert steps("orange", ["or", "", "ange"]) == [(0, 2)]  # a token without text has no part in it
    with pytest.raises(InputError, match="is not in the answer"):
        steps("blue")


@pytest.mark.parametrize("spec", ["thinking", "9", "blue", "two\nlines", "x" * 5000])
def test_what_is_wrong_is_said_in_one_line(spec):
    with pytest.raises((InputError, UsageError)) as caught:
        steps(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "`target`" in str(caught.value)


def test_a_character_of_several_tokens_belongs_to_all_of_them():
    """As of a byte-level tokenizer: its first tokens give no text of their own."""
    parts = {0: "", 1: "a", 2: "a\N{REPLACEMENT CHARACTER}", 3: "a\N{SNOWMAN}", 4: "a\N{SNOWMAN}b"}

    def decode(ids):
        return parts[len(ids)]

    def found(spec):
        return resolve(spec, [0, 1, 2, 3], ["a", "?", "?", "b"], ["text"] * 4, decode)

    assert found("a") == [(0,)]
    assert found("\N{SNOWMAN}") == [(1, 2)]
    assert found("b") == [(3,)]
    assert found("a\N{SNOWMAN}") == [(0, 1, 2)]
    assert found("\N{SNOWMAN}b") == [(1, 2, 3)]


def tokens_of(tokenizer, ids):
    """[(first, behind)] of each token's bytes in the whole text, by the alphabet of a byte-level tokenizer."""
    spans, at = [], 0
    for one in ids:
        length = len(tokenizer.convert_ids_to_tokens(one))  # one character of the alphabet for each byte
        spans.append((at, at + length))
        at += length
    return spans


@pytest.mark.parametrize("text", ["a\N{SNOWMAN}b the cat", "日本語 mat", "the \N{SLIGHTLY SMILING FACE} house é"])
def test_each_piece_of_an_answer_is_the_tokens_that_have_a_byte_of_it(text):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = [tokenizer.decode([one]) for one in ids]
    spans = tokens_of(tokenizer, ids)
    assert spans[-1][1] == len(text.encode())
    for first in range(len(text)):
        for behind in range(first + 1, len(text) + 1):
            phrase = text[first:behind]
            if phrase.strip() != phrase or text.find(phrase) != first:
                continue
            begin, end = (len(text[:at].encode()) for at in (first, behind))
            expected = tuple(n for n, span in enumerate(spans) if span[0] < end and span[1] > begin)
            assert resolve(f"'{phrase}'", ids, texts, ["text"] * len(ids), tokenizer.decode) == [expected], phrase


def test_an_answer_that_ends_within_a_character_can_be_asked_about():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("mat \N{SNOWMAN}", add_special_tokens=False)[:-1]
    texts = [tokenizer.decode([one]) for one in ids]
    (found,) = resolve("mat", ids, texts, ["text"] * len(ids), tokenizer.decode)
    assert "".join(texts[one] for one in found) == "mat"
