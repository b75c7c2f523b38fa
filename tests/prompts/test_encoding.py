"""Prompts become the tokens that the model's own template makes of them, and the token table says what stands where."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import CHATML, make_tokenizer
from tiny_models import IMAGE_PAD, N_PLAIN_TOKENS, VIDEO_PAD, VISION_START, tiny_image_inputs, tiny_inputs, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mask_impact.api.functions import analyze
from mask_impact.errors import InputError
from mask_impact.findings.alignment import align
from mask_impact.models import loading
from mask_impact.models.processing import PictureTextProcessor
from mask_impact.prompts.encoding import _BYTES, encode, encode_inputs, token_texts
from mask_impact.prompts.images import read_pictures
from mask_impact.prompts.limits import tokenizing
from mask_impact.prompts.templating import parse_chatml

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
    with pytest.raises(InputError, match=r"has no chat template; use the prompt as it is \(`raw`\)"):
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


def test_chatml_is_taken_as_the_conversation_it_spells():
    for prompt, turns in CONVERSATIONS.values():
        assert [(turn["role"], turn["content"]) for turn in parse_chatml(prompt)] == turns


def test_a_chatml_model_gets_the_very_tokens_that_a_chatml_prompt_spells(either):
    for prompt, _ in CONVERSATIONS.values():
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


def test_text_outside_of_chatml_turns_is_refused_rather_than_lost(either):
    for prompt in ("<|im_start|>user\nthe cat<|im_end|> and more", "<|im_start|>\nthe cat<|im_end|>"):
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


def test_an_empty_prompt_is_refused(either):
    for prompt in ("", "  \n"):
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


def test_a_piece_of_a_character_is_shown_by_its_bytes(text):
    """é is two bytes, and a token each here; U+FFFD is three, and stands for itself as a whole token only."""
    tokens = encode(text, "é", raw=True).tokens
    assert tokens.texts == ("<0xC3>", "<0xA9>")
    assert tokens.kinds == ("text", "text")
    whole = make_tokenizer()
    whole.add_tokens(["\ufffd"])
    assert token_texts(whole, whole("a\ufffd")["input_ids"])[0] == ["a", "\ufffd"]


def test_bytes_of_sentencepiece_are_shown_as_they_are():
    vocabulary = {"<unk>": 0, "▁": 1, "<0xF0>": 2, "<0x9F>": 3, "<0x61>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False)
    assert token_texts(tokenizer, [2, 3, 4])[0] == ["<0xF0>", "<0x9F>", "a"]


def test_the_bytes_of_a_token_are_read_as_the_vocabulary_writes_them():
    """Against the tokenizers library's own table: each byte alone, and a token of a whole and a broken character."""
    tokenizer = make_tokenizer()
    for byte in range(256):
        written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        expected = chr(byte) if byte < 128 else f"<0x{byte:02X}>"
        piece = next(char for char in pre_tokenizers.ByteLevel.alphabet() if _BYTES[char] == byte)
        assert token_texts(tokenizer, [tokenizer.convert_tokens_to_ids(piece)])[0] == [expected]
        assert byte >= 128 or written(chr(byte))[0][0] == piece
    assert "".join(written("é🦄")[0][0]) == "".join(
        piece for byte in "é🦄".encode() for piece in _BYTES if _BYTES[piece] == byte
    )


def test_prompts_with_different_emoji_are_not_the_same_tokens(text):
    results = [analyze(text, f"a {emoji}", raw=True) for emoji in ("😀", "🦄")]
    everything = [np.arange(result.n_prompt) for result in results]
    pairs = align(results[0], everything[0], results[1], everything[1])
    ids = [[result.tokens.ids[at] for at in column] for result, column in zip(results, pairs.T, strict=True)]
    assert len(pairs) < results[0].n_prompt
    assert ids[0] == ids[1]
    older = [
        replace(
            one, tokens=replace(one.tokens, texts=tuple(re.sub("<0x..>", "\ufffd", text) for text in one.tokens.texts))
        )
        for one in results
    ]
    assert (align(older[0], everything[0], older[1], everything[1]) == pairs).all()


def test_a_tokenizer_that_breaks_down_is_one_line(text, capfd, rehearsed):
    """Its library raises no Exception then, and writes where it broke down: here it cuts texts into pieces of no characters."""
    broken = make_tokenizer()
    written = json.loads(broken.backend_tokenizer.to_str())
    written["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    broken = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)), chat_template=CHATML)
    with pytest.raises(
        InputError, match=r"^the tokenizer of model 'tiny' breaks down with this prompt; get the checkpoint"
    ):
        encode(loading.wrap(text.model, broken, name="tiny"), "the cat")
    assert capfd.readouterr() == ("", "")
    said = "^the tokenizer of model 'tiny' breaks down on the prompt: chunk size must be non-zero; its tokenizer.json"
    with pytest.raises(InputError, match=said), tokenizing("tiny"):
        broken("the cat")


def test_a_token_without_an_embedding_is_named():
    """Tokens were added and the embeddings not resized."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["unicorn"])
    loaded = loading.wrap(tiny_model("qwen3", vocab_size=len(tokenizer) - 1), tokenizer, name="tiny")
    said = r"token 296 \('unicorn'\) at position 2 has no embedding in model 'tiny', which has 296; take"
    with pytest.raises(InputError, match=said):
        analyze(loaded, "a unicorn", raw=True)


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


def test_images_and_image_tokens_that_do_not_match_are_refused(tiny_vl):
    for n_removed in (1, 6):
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


def test_inputs_of_another_form_are_refused(text):
    for change, said in (
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[2, 4\]"),
        ({"input_ids": torch.zeros(4, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[4\]"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, r"shape \[1, n\] with n >= 1, not \[1, 0\]"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "attention_mask hides tokens"),
        ({"attention_mask": [[1, 1, 1]]}, r"attention_mask must have the shape \[1, 4\] of input_ids, not \[1, 3\]"),
        ({"input_ids": [[1.5, 2.0]]}, r"input_ids must be whole numbers, .* not \[1, 2\] of float32"),
        ({"input_ids": [["a"]]}, "input_ids of ready model inputs must be a tensor of numbers, not list"),
        ({"input_ids": None}, "input_ids of ready model inputs must be a tensor of numbers, not NoneType"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids of ready model inputs must be a tensor of numbers, not list"),
        ({"input_ids": [[-1, 2, 3, 4]]}, "token -1 at position 0 has no embedding in model"),
        ({"input_ids": [[1, 2, 99999, 4]]}, "token 99999 at position 2 has no embedding in model"),
        (
            {"token_type_ids": [[0, 0, 0, 0]]},
            "the model takes no input 'token_type_ids'; it takes input_ids, attention_mask",
        ),
        ({"past_key_values": [[0, 0, 0, 0]]}, "the model takes no input 'past_key_values'; it takes"),
        (
            {"pixel_values_videos": [[0.0]]},
            r"hold a video \(pixel_values_videos\), which is not known by its times then; give text",
        ),
    ):
        with pytest.raises(InputError, match=said):
            analyze(text, tiny_inputs(text.model, 4) | change)


def test_tokens_of_a_video_are_no_text(tiny_vl):
    for inputs in (tiny_inputs(tiny_vl.model, 4), tiny_image_inputs(tiny_vl.model)):
        inputs["input_ids"][0, 1] = VIDEO_PAD
        with pytest.raises(InputError, match="position 1 stands for a video, and none is given; give one"):
            analyze(tiny_vl, inputs)
    with pytest.raises(InputError, match=r"hold a video \(video_grid_thw\)"):
        analyze(tiny_vl, tiny_inputs(tiny_vl.model, 4) | {"video_grid_thw": torch.ones(1, 3)})


def test_token_tables_of_ready_inputs_name_their_tokens(text):
    tokens = encode_inputs(text, tiny_inputs(text.model, 8)).tokens
    assert len(tokens) == 8
    assert max(tokens.ids) < N_PLAIN_TOKENS
    assert list(tokens.texts) == [text.tokenizer.decode([id]) for id in tokens.ids]


# --- images in the prompt ---------------------------------------------------------------------------------------------------

CHATML_WITH_IMAGES = (
    "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\nIs <image> like <image>?<|im_end|>\n"
    "<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nAnd<image><|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def demo_vl():
    return loading.load("demo", kind="vl")


def pictures_of(*sizes):
    """Pictures of noise, all different."""
    rng = np.random.default_rng(0)
    return read_pictures([rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes])


def image_part(picture):
    return {"type": "image", "image": picture.image}


def text_part(text):
    return {"type": "text", "text": text}


def by_the_library(loaded, messages, **options):
    """The model inputs that transformers itself makes of a conversation."""
    return loaded.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **options
    )


def assert_same_inputs(encoded, expected):
    assert set(encoded.inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(encoded.inputs[name], value), name


def test_images_go_where_the_prompt_marks_them_or_before_the_text(demo_vl):
    for prompt, content in (
        ("<image>What is this?", "0What is this?"),
        ("What is this?", "0What is this?"),
        ("What is <image>?", "What is 0?"),
        ("What is this? <image>", "What is this? 0"),
        ("<|vision_start|><|image_pad|><|vision_end|>What is this?", "0What is this?"),
        ("Is <image> like <image>?", "Is 0 like 1?"),
        ("<image><image>Are they alike?", "01Are they alike?"),
        ("Are they alike?", "01Are they alike?"),
        ("<image>\nA\n<image>\nB", "0\nA\n1\nB"),
    ):
        pictures = pictures_of((96, 64), (64, 128))[: 2 if "1" in content else 1]
        parts = [
            image_part(pictures[int(part)]) if part in "01" else text_part(part)
            for part in re.split("([01])", content)
            if part
        ]
        encoded = encode(demo_vl, prompt, pictures)
        assert_same_inputs(encoded, by_the_library(demo_vl, [{"role": "user", "content": parts}]))
        assert [image.grid for image in encoded.images] == [(2, 3), (4, 2)][: len(pictures)]


def test_a_conversation_in_chatml_has_its_images_in_their_turns(demo_vl):
    pictures = pictures_of((96, 64), (64, 128), (32, 32))
    messages = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [text_part("Is "), image_part(pictures[0]), text_part(" like "), image_part(pictures[1]),
                                     text_part("?")]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [text_part("And"), image_part(pictures[2])]},
    ]  # fmt: skip
    assert_same_inputs(encode(demo_vl, CHATML_WITH_IMAGES, pictures), by_the_library(demo_vl, messages))


def test_without_marks_a_conversation_has_its_images_before_the_first_users_text(demo_vl):
    pictures = pictures_of((32, 32))
    prompt = CHATML_WITH_IMAGES.replace("<image>", "it")
    expected = prompt.replace("user\nIs it like", "user\n<image>Is it like")
    assert_same_inputs(encode(demo_vl, prompt, pictures), encode(demo_vl, expected, pictures).inputs)


def test_a_raw_prompt_has_images_too(demo_vl):
    pictures = pictures_of((96, 64))
    for prompt in ("Is <image> red?", "<image>Is it red?", "Is it red?"):
        marked = prompt if "<image>" in prompt else f"<image>{prompt}"
        encoded = encode(demo_vl, prompt, pictures, raw=True)
        assert encoded.text == marked.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
        pads = marked.replace("<image>", f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>")
        assert "".join(encoded.tokens.texts) == pads


def test_the_token_table_says_what_stands_where(demo_vl):
    """Two sizes, one picture used twice: kinds, image numbers, rows and columns against the grids."""
    wide, tall = pictures_of((160, 32), (64, 96))
    encoded = encode(demo_vl, "a<image>b<image>c<image>", [wide, tall, wide])
    tokens = encoded.tokens
    expected = (
        [(0, 0, c) for c in range(5)] + [(1, r, c) for r in range(3) for c in range(2)] + [(2, 0, c) for c in range(5)]
    )
    cells = zip(tokens.image.tolist(), tokens.row.tolist(), tokens.column.tolist(), strict=True)
    assert [cell for cell in cells if cell != (-1, -1, -1)] == expected
    for kind, text, image in zip(tokens.kinds, tokens.texts, tokens.image, strict=True):
        assert (kind == "image") == (text == "<|image_pad|>") == (image >= 0)
        assert (kind == "special") == (text.startswith("<|") and image < 0)
    assert encoded.images[0] == encoded.images[2] != encoded.images[1]
    assert (tokens.masked("vision") == (tokens.image >= 0)).all()
    assert (tokens.masked("text") != tokens.masked("vision")).all()


def test_marks_and_images_that_do_not_match_are_refused(demo_vl):
    for prompt, n_pictures, said in (
        ("<image> or <image>?", 1, r"marks 2 places for an image \(<image>\), and the number of images given is 1"),
        ("<image>", 0, r"marks 1 place for an image \(<image>\), and the number of images given is 0"),
        ("<image>?", 2, "marks 1 place for an image"),
        ("what is <|image_pad|>", 1, r"the model's own token <\|image_pad\|>; write <image> where an image goes"),
        ("what is <|video_pad|>", 0, r"the model's own token <\|video_pad\|>"),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<image>x<|im_end|>\n", 2, "marks 1 place"),
    ):
        with pytest.raises(InputError, match=said):
            encode(demo_vl, prompt, pictures_of(*[(32, 32)] * n_pictures))


def test_a_text_model_takes_no_images(text):
    with pytest.raises(InputError, match="is a text model and takes no images"):
        encode(text, "the cat", pictures_of((32, 32)))
    assert encode(text, "the <image>").text.startswith("<|im_start|>user\nthe <image>")  # only words to it


def test_a_template_that_leaves_images_out_is_noticed(demo_vl):
    template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
        "{{ message.content | selectattr('text') | map(attribute='text') | join }}{% endif %}{% endfor %}"
    )
    processor = PictureTextProcessor(demo_vl.processor.image_processor, demo_vl.tokenizer, chat_template=template)
    with pytest.raises(InputError, match="template leaves out images: it keeps 0 of 1"):
        encode(loading.wrap(demo_vl.model, processor), "the cat", pictures_of((32, 32)))


def test_images_need_a_processor(demo_vl):
    with pytest.raises(InputError, match="images need the processor of model"):
        encode(loading.wrap(demo_vl.model, demo_vl.tokenizer), "the cat", pictures_of((32, 32)))


def test_an_image_that_the_processor_does_not_take_is_named(demo_vl):
    for width, height in ((8, 4000), (4000, 8), (20, 4001)):
        said = rf"image 1 \('image', {width} x {height} pixels\) is beyond .*aspect ratio.*crop it"
        with pytest.raises(InputError, match=said):
            encode(demo_vl, "the cat", pictures_of((32, 32), (width, height)))


def test_odd_sizes_have_a_grid_that_the_processor_chose(demo_vl):
    for size in ((1, 1), (20, 4000), (4000, 20), (7, 1400), (31, 33), (1500, 1400)):
        pictures = read_pictures([np.zeros(size[::-1], dtype=np.uint8)], max_resolution=1000)
        encoded = encode(demo_vl, "the cat", pictures)
        image, (_, height, width) = encoded.images[0], encoded.inputs["image_grid_thw"][0].tolist()
        assert image.size == size
        assert image.grid == (height // 2, width // 2)
        assert image.box(image.grid[0] - 1, image.grid[1] - 1)[2:] == size


def test_ready_images_whose_parts_do_not_match_are_refused(tiny_vl):
    for change, said in (
        (lambda inputs: inputs | {"pixel_values": inputs["pixel_values"][:-4]}, "24 patches and pixel_values 20"),
        (lambda inputs: {k: v for k, v in inputs.items() if k != "pixel_values"}, "24 patches and pixel_values 0"),
        (lambda inputs: inputs | {"image_grid_thw": torch.tensor([[2, 2, 6]])}, r"must be \[1, height, width\]"),
        (lambda inputs: inputs | {"image_grid_thw": torch.tensor([[1, 3, 8]])}, r"must be \[1, height, width\]"),
        (lambda inputs: inputs | {"image_grid_thw": torch.tensor([[1, 4, 4]])}, "16 patches and pixel_values 24"),
    ):
        with pytest.raises(InputError, match=said):
            analyze(tiny_vl, change(tiny_image_inputs(tiny_vl.model)))


def test_image_tokens_that_do_not_stand_in_one_piece_are_refused(tiny_vl):
    """Two images of 2 and 6 tokens with the grids given the other way round: the counts match, the order does not."""
    inputs = tiny_image_inputs(tiny_vl.model, n_images=2, grids=((1, 4, 2), (1, 4, 6)))
    inputs["image_grid_thw"] = inputs["image_grid_thw"].flip(0)
    with pytest.raises(InputError, match="tokens of image 0 do not stand in one piece"):
        analyze(tiny_vl, inputs)
