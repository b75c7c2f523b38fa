"""Prompts become the tokens that the model's own template makes of them, and the token table says what stands where."""

import re

import numpy as np
import pytest
import torch
from conftest import CHATML, make_tokenizer
from tiny_models import IMAGE_PAD, N_PLAIN_TOKENS, VISION_START, tiny_image_inputs, tiny_inputs, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mask_impact import loading
from mask_impact.analysis import analyze
from mask_impact.encoding import encode, encode_inputs, parse_chatml, token_texts
from mask_impact.errors import InputError

QUESTION = "<|im_start|>user\nthe cat<|im_end|>\n"
ANSWER_OPENED = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def text(text_checkpoint):
    return loading.load(str(text_checkpoint))


@pytest.fixture(scope="module")
def vl(vl_checkpoint):
    return loading.load(str(vl_checkpoint))


@pytest.fixture(params=["text", "vl"])
def either(request):
    return request.getfixturevalue(request.param)


def wrapped(name="qwen3", **tokenizer):
    return loading.wrap(tiny_model(name, vocab_size=320), make_tokenizer(**tokenizer))


# --- templates --------------------------------------------------------------------------------------------------------------


def test_a_plain_prompt_is_a_user_s_turn_and_the_answer_is_opened(either):
    assert encode(either, "the cat").text == QUESTION + ANSWER_OPENED


def test_the_encoded_text_is_what_the_token_table_spells(either):
    encoded = encode(either, "the cat sat")
    assert "".join(encoded.tokens.texts) == encoded.text
    assert encoded.tokens.ids.tolist() == encoded.inputs["input_ids"][0].tolist()
    assert encoded.n_tokens == len(encoded.tokens)


def test_raw_is_the_prompt_as_it_is(either):
    assert encode(either, " the cat\n", raw=True).text == " the cat\n"


def test_a_model_without_a_chat_template_takes_the_prompt_as_it_is():
    assert encode(wrapped(chat_template=None), "the cat").text == "the cat"


def test_a_template_that_is_asked_for_and_not_there_is_an_error():
    with pytest.raises(InputError, match=r"has no chat template; use the prompt as it is \(--raw\)"):
        encode(wrapped(chat_template=None), "the cat", raw=False)


def test_a_template_writes_the_beginning_of_sequence_itself_and_a_raw_prompt_gets_it_from_the_tokenizer():
    """Two of them, or none, would change every number."""
    loaded = wrapped(chat_template="<|endoftext|>" + CHATML)
    backend = loaded.tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<|endoftext|> $0", special_tokens=[("<|endoftext|>", 0)])
    assert encode(loaded, "the cat").tokens.ids.tolist().count(0) == 1
    assert encode(loaded, "the cat", raw=True).tokens.ids.tolist()[0] == 0


def test_thinking_is_switched_off_where_the_template_knows_the_switch():
    template = CHATML + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    assert encode(wrapped(chat_template=template), "the cat").text == QUESTION + ANSWER_OPENED + "<think></think>"


# --- ChatML -----------------------------------------------------------------------------------------------------------------

CONVERSATIONS = {
    "one turn": (QUESTION, [("user", "the cat")]),
    "one turn, answer opened": (QUESTION + ANSWER_OPENED, [("user", "the cat"), ("assistant", "")]),
    "system turn": (
        "<|im_start|>system\nsat<|im_end|>\n" + QUESTION + ANSWER_OPENED,
        [("system", "sat"), ("user", "the cat"), ("assistant", "")],
    ),
    "several turns": (
        QUESTION + "<|im_start|>assistant\nsat<|im_end|>\n<|im_start|>user\non\nthe mat<|im_end|>\n" + ANSWER_OPENED,
        [("user", "the cat"), ("assistant", "sat"), ("user", "on\nthe mat"), ("assistant", "")],
    ),
    "answer begun": (QUESTION + ANSWER_OPENED + "the mat", [("user", "the cat"), ("assistant", "the mat")]),
}


@pytest.mark.parametrize("spelled", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_chatml_is_taken_as_the_conversation_it_spells(spelled):
    prompt, turns = spelled
    assert [(turn["role"], turn["content"]) for turn in parse_chatml(prompt)] == turns


@pytest.mark.parametrize("prompt", [spelled[0] for spelled in CONVERSATIONS.values()], ids=CONVERSATIONS)
def test_a_chatml_model_gets_the_very_tokens_that_a_chatml_prompt_spells(prompt, either):
    expected = prompt if ANSWER_OPENED in prompt.split("<|im_end|>\n")[-1] else prompt + ANSWER_OPENED
    assert encode(either, prompt).text == expected


def test_another_template_says_the_same_conversation_in_its_own_way():
    turns = "{% for turn in messages %}[{{ turn.role }}: {{ turn.content }}]{% endfor %}"
    template = turns + "{% if add_generation_prompt %}[answer:{% endif %}"
    assert encode(wrapped(chat_template=template), QUESTION + ANSWER_OPENED).text == "[user: the cat][answer:"


def test_a_turn_need_not_be_closed():
    assert parse_chatml("<|im_start|>user\nthe cat\n<|im_start|>assistant\n")[0] == {
        "role": "user",
        "content": "the cat\n",
    }


def test_a_prompt_that_only_mentions_chatml_is_no_conversation(either):
    assert parse_chatml("what is <|im_start|>?") is None


@pytest.mark.parametrize("prompt", ["<|im_start|>user\nthe cat<|im_end|> and more", "<|im_start|>\nthe cat<|im_end|>"])
def test_text_outside_of_chatml_turns_is_refused_rather_than_lost(prompt, either):
    with pytest.raises(InputError, match="outside of its turns"):
        encode(either, prompt)


def test_a_conversation_that_only_opens_the_answer_is_refused(either):
    with pytest.raises(InputError, match="no turn with text"):
        encode(either, ANSWER_OPENED)


def test_a_role_that_the_template_refuses_is_one_line(either):
    with pytest.raises(InputError, match=re.escape("the model's chat template refuses the prompt: unknown role tool")):
        encode(either, "<|im_start|>tool\nthe cat<|im_end|>")


def test_a_template_that_is_broken_is_one_line():
    with pytest.raises(InputError, match="chat template refuses the prompt"):
        encode(wrapped(chat_template="{% for %}"), "the cat")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(prompt, either):
    with pytest.raises(InputError, match="the prompt is empty; give some text"):
        encode(either, prompt)


# --- what stands where ------------------------------------------------------------------------------------------------------


def test_special_tokens_are_told_from_text(either):
    tokens = encode(either, "the cat").tokens
    assert [text for text, kind in zip(tokens.texts, tokens.kinds, strict=True) if kind == "special"] == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>",
    ]  # fmt: skip
    assert set(tokens.kinds) == {"special", "text"}
    assert (tokens.image == -1).all()


def test_a_token_keeps_the_space_before_its_word(text):
    assert encode(text, "the cat sat", raw=True).tokens.texts == ("the", " cat", " sat")


def test_a_piece_of_a_character_is_shown_as_one_that_cannot_be_shown(text):
    """é is two bytes, and a token each here."""
    tokens = encode(text, "é", raw=True).tokens
    assert tokens.texts == ("\ufffd", "\ufffd")
    assert tokens.kinds == ("text", "text")


def test_a_sentencepiece_token_keeps_the_space_that_decoding_it_alone_drops():
    vocabulary = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False)
    assert tokenizer.decode([2]) == "cat"
    assert token_texts(tokenizer, [1, 2, 3, 0]) == ([" the", " cat", "s", "<unk>"], ["text", "text", "text", "special"])


def test_an_id_that_the_tokenizer_does_not_have_is_an_empty_text(text):
    """Checkpoints have more rows than tokens: their size is rounded up."""
    assert token_texts(text.tokenizer, [len(text.tokenizer) + 5]) == ([""], ["text"])


# --- ready inputs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_vl():
    """A vision-language model with the special ids of tiny_models."""
    return loading.wrap(tiny_model("qwen3_vl", vocab_size=320), make_tokenizer())


def test_each_image_token_knows_its_image_row_and_column(tiny_vl):
    """Two images of 2 x 3 and 2 x 2 cells, three tokens of text around each."""
    inputs = tiny_image_inputs(tiny_vl.model, n_images=2)
    tokens = encode_inputs(tiny_vl, inputs).tokens
    cells = [
        (image, row, column)
        for kind, image, row, column in zip(tokens.kinds, tokens.image, tokens.row, tokens.column, strict=True)
        if kind == "image"
    ]
    assert cells == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2),
        (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip
    assert [kind == "image" for kind in tokens.kinds] == (tokens.ids == IMAGE_PAD).tolist()
    assert set(tokens.image[tokens.ids == VISION_START]) == {-1}


def test_ready_inputs_with_images_are_analysed(tiny_vl):
    inputs = tiny_image_inputs(tiny_vl.model, n_images=2)
    result = analyze(tiny_vl, inputs, num_tokens=2)
    assert result.n_prompt == inputs["input_ids"].shape[1]
    assert result.tokens.kinds.count("image") == 10
    assert result.meta["prompt"] is None
    assert np.isfinite(result.steps[1].l2).all()


@pytest.mark.parametrize("n_removed", [1, 6])
def test_images_and_image_tokens_that_do_not_match_are_refused(n_removed, tiny_vl):
    inputs = tiny_image_inputs(tiny_vl.model)
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[(inputs["input_ids"][0] == IMAGE_PAD).nonzero()[:n_removed]] = False
    inputs |= {name: inputs[name][:, keep] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(InputError, match=rf"6 cells but the prompt has {6 - n_removed} image tokens.*processor"):
        analyze(tiny_vl, inputs)


def test_ready_inputs_may_be_lists_and_need_no_mask(text):
    ids = list(range(20, 26))
    by_list, by_tensor = analyze(text, {"input_ids": [ids]}), analyze(text, {"input_ids": torch.tensor([ids])})
    assert (by_list.steps[0].l2 == by_tensor.steps[0].l2).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[2, 4\]"),
        ({"input_ids": torch.zeros(4, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[4\]"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[1, 0\]"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "attention_mask hides tokens"),
    ],
    ids=["batch", "flat", "empty", "padding"],
)
def test_inputs_of_another_form_are_refused(change, said, text):
    with pytest.raises(InputError, match=said):
        analyze(text, tiny_inputs(text.model, 4) | change)


def test_token_tables_of_ready_inputs_name_their_tokens(text):
    tokens = encode_inputs(text, tiny_inputs(text.model, 8)).tokens
    assert len(tokens) == 8
    assert max(tokens.ids) < N_PLAIN_TOKENS
    assert list(tokens.texts) == [text.tokenizer.decode([id]) for id in tokens.ids]
