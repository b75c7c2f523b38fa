"""What specs stand for in a prompt that is written out here, token by token, and in the demo's; and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mask_impact.errors import InputError
from mask_impact.prompts.group_files import FlowSet, default_flows, read_flows, read_groups
from mask_impact.prompts.groups import Group, Layout
from mask_impact.prompts.yaml_file import ConfigError
from mask_impact.results.flows import Flow
from mask_impact.results.tokens import ImageRecord, TokenTable

REPOSITORY = Path(__file__).parents[2]
SPECIAL = {"<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"}


def image(*size, grid):
    return ImageRecord(source="here", size=size, resized=(32 * grid[1], 32 * grid[0]), grid=grid)


IMAGES = (image(90, 40, grid=(2, 3)), image(64, 32, grid=(1, 2)))  # cells of 30 x 20 and of 32 x 32 pixels
CELLS = [[(number, *cell) for cell in np.ndindex(*one.grid)] for number, one in enumerate(IMAGES)]
PROMPT = [
    "<|im_start|>", "system", "\n", "Be", " kind", ".", "<|im_end|>", "\n",  # 0-7
    "<|im_start|>", "user", "\n", "<|vision_start|>", *CELLS[0], "<|vision_end|>",  # 8-18, of which 12-17 are cells
    "First", ",", "<|vision_start|>", *CELLS[1], "<|vision_end|>",  # 19-24, of which 22-23 are cells
    "Is", " Tom", "cat", "'s", " cat", " ", b"\xf0\x9f", b"\xa6", b"\x84",  # 25-33
    " 2", "+", "2", " +", " 2", "?", "<|im_end|>", "\n",  # 34-41
    "<|im_start|>", "assistant", "\n",  # 42-44
]  # fmt: skip
USER = tuple(range(11, 40))


def layout(pieces, images=(), produced=()):
    """The layout of tokens that are text, bytes of text (which decode alone to whatever they make), or cells."""
    everything = [*pieces, *produced]
    data = [piece.encode() if isinstance(piece, str) else piece for piece in everything]
    cells = [piece if isinstance(piece, tuple) else (-1, -1, -1) for piece in everything]
    table = TokenTable(
        ids=np.arange(100, 100 + len(data)),
        texts=tuple("<|image_pad|>" if isinstance(one, tuple) else one.decode(errors="replace") for one in data),
        kinds=tuple(
            "image" if isinstance(one, tuple) else "special" if one in SPECIAL else "text" for one in everything
        ),
        image=np.array([cell[0] for cell in cells], dtype=np.int32),
        row=np.array([cell[1] for cell in cells], dtype=np.int32),
        column=np.array([cell[2] for cell in cells], dtype=np.int32),
    )

    def decode(ids):
        assert isinstance(ids, list)
        assert all(type(id) is int for id in ids)
        return b"".join(data[id - 100] for id in ids).decode(errors="replace")

    return Layout(table, images, len(pieces), decode)


@pytest.fixture(scope="module")
def prompt():
    return layout(PROMPT, IMAGES, produced=["Tom", " Tom", "<|im_start|>", "user", "\n", "cat"])


def refusal(where, spec):
    with pytest.raises(InputError) as caught:
        where.resolve(spec)
    assert str(caught.value).isprintable(), "one line, with nothing in it that a terminal acts on"
    return str(caught.value)


# --- what specs stand for -------------------------------------------------------------------------------------------------


def resolved(where, cases):
    """What each spec of the cases stands for, beside what it has to."""
    return {spec: where.resolve(spec) for spec, _ in cases}, {spec: tuple(positions) for spec, positions in cases}


def test_names_of_parts_of_the_prompt(prompt):
    found, expected = resolved(prompt, [
        ("tokens 5", [5]),
        ("tokens 5-9", range(5, 10)),
        ("tokens 3,5-9", [3, *range(5, 10)]),
        ("tokens 7-7, 44 , 0", [0, 7, 44]),
        ("system", [3, 4, 5]),
        ("user", USER),
        ("question", range(25, 40)),
        ("text", [1, 2, 3, 4, 5, 7, 9, 10, 19, 20, *range(25, 40), 41, 43, 44]),
        ("special", [0, 6, 8, 11, 18, 21, 24, 40, 42]),
        ("last", [44]),
        ("image", [*range(12, 18), 22, 23]),
        ("image 0", range(12, 18)),
        ("image 1", [22, 23]),
        ("image 0 rows 1", [15, 16, 17]),
        ("image 0 rows 0-1", range(12, 18)),
        ("image 0 columns 1-2", [13, 14, 16, 17]),
        ("image 0 rows 1 columns 0-1", [15, 16]),
        ("image  1   columns 1", [23]),
        ("image + system", [3, 4, 5, *range(12, 18), 22, 23]),
        ("last + tokens 44,2 + last", [2, 44]),
        ("  last  +  tokens 1  ", [1, 44]),
    ])  # fmt: skip
    assert found == expected


def test_a_box_has_the_cells_that_share_area_with_it_in_the_original_s_pixels(prompt):
    found, expected = resolved(prompt, [
        ("image 0 box 0,0,90,40", range(12, 18)),
        ("image 0 box 0,0,30,20", [12]),  # touches the cells beside it and below
        ("image 0 box 0,0,30.1,20", [12, 13]),
        ("image 0 box 0, 0, 30, 20.5", [12, 15]),
        ("image 0 box 29,19,31,21", [12, 13, 15, 16]),
        ("image 0 box 30,20,60,40", [16]),
        ("image 0 box 60.5,1,61,2", [14]),
    ])  # fmt: skip
    assert found == expected


def test_the_only_image_needs_no_number():
    one = layout(["What", *CELLS[0], "?"], IMAGES[:1])
    assert one.resolve("image rows 1") == one.resolve("image 0 rows 1") == (4, 5, 6)
    assert one.resolve("image columns 2") == (3, 6)
    assert one.resolve("image box 0,0,1,1") == (1,)
    assert one.resolve("image") == one.resolve("image 0") == tuple(range(1, 7))


def test_phrases_are_the_tokens_that_have_a_character_of_them(prompt):
    found, expected = resolved(prompt, [
        ("Tom", [26]),  # which is " Tom", as a token
        ("Tomcat", [26, 27]),
        ("omc", [26, 27]),
        ("  Tom  ", [26]),
        ('" Tom"', [26]),
        ("'Is '", [25, 26]),
        ("Is", [25]),
        ("Is Tom", [25, 26]),
        ("First,", [19, 20]),
        ("2+2", [34, 35, 36]),
        ('"2 + 2"', [36, 37, 38]),
        ("'2 + 2' + Tom", [26, 36, 37, 38]),
        ('Tom + "2 + 2" + "Is" + last', [25, 26, 36, 37, 38, 44]),
        ("cat #1", [27]),
        ("cat #2", [29]),
        ('"cat"#2', [29]),
        ("'cat' #2 + Tom", [26, 29]),
        ("Tom #1", [26]),
        ("cat's", [27, 28]),
        ("'s", [28]),  # a quote that is not closed is part of the text
        ("🦄", [31, 32, 33]),
        ("' 🦄 '", [30, 31, 32, 33, 34]),
        ("'🦄'#1", [31, 32, 33]),
        ('"system"', [1]),
        ("'user'", [9]),
        ('"user" + system', [3, 4, 5, 9]),
        ("+ 2?", [37, 38, 39]),
        ('"\n"#2', [7]),
    ])  # fmt: skip
    assert found == expected


def test_what_is_written_like_something_else():
    cases = [
        (["Item", " #2", " of", " two"], "#2", [1]),
        (["Item", " #2", " of", " two"], '"Item #2"', [0, 1]),
        (["Item", " #2", " of", " two"], "Item #2 of", [0, 1, 2]),
        (["He", ' "', "is", '"', " in"], "\"is\"", [2]),
        (["He", ' "', "is", '"', " in"], "'\"is\"'", [1, 2, 3]),
        (["He", ' "', "is", '"', " in"], '"is" in', [1, 2, 3, 4]),
        (["He", ' "', "is", '"', " in"], '"He "is""', [0, 1, 2, 3]),
        (['"a"', " +", ' "b"'], "'\"a\" + \"b\"'", [0, 1, 2]),
        (['"a"', " +", ' "b"'], '"a" + "b"', [0, 2]),
        (["image", " ", "5"], '"image 5"', [0, 1, 2]),
        (["last"], '"last"', [0]),
        (["last", " one"], "last", [1]),
        (["tokens", " 5", "-"], "tokens 5-", [0, 1, 2]),
        (["Image", " 0", " rows"], "Image 0", [0, 1]),
        (["banana"], "a", [0]),  # three places, all of them in the same token
        (["ba", "na", "na"], "ana #2", [1, 2]),
        (["a.c", " abc"], "a.c", [0]),
        (["a", "", "b"], "ab", [0, 2]),  # a token without text has no character of it
        (["a\n", "b", "a\n", "b"], "a\nb #2", [2, 3]),
    ]  # fmt: skip
    assert [(text, spec, list(layout(text).resolve(spec))) for text, spec, _ in cases] == cases


def test_a_role_s_content_are_all_its_turns_without_their_markup():
    talk = layout([
        "<|im_start|>", "us", "er\n", "Hi", "<|im_end|>", "\n",  # 0-5
        "<|im_start|>", "assistant", "\n\n", "Yes", "?", "<|im_end|>", "\n",  # 6-12
        "<|im_start|>", "user", "\nGo", " on", "<|im_end|>", "\n",  # 13-18
        "<|im_start|>", "assistant", "\n", "We",  # 19-22, not closed
    ])  # fmt: skip
    assert talk.resolve("user") == (3, 15, 16)
    assert talk.resolve("assistant") == (9, 10, 22)
    assert talk.resolve("question") == (15, 16)


def test_a_turn_ends_where_the_next_begins_and_a_header_where_its_text_does():
    talk = layout(["<|im_start|>", "system", "\n", "A", "<|im_start|>", "user", *CELLS[1], "B"], [IMAGES[1]])
    assert talk.resolve("system") == (3,)
    assert talk.resolve("user") == (6, 7, 8)


def test_the_question_is_the_text_behind_the_last_image_of_the_last_user_turn():
    for pieces, positions in (
        (["A", *CELLS[1], "B", " C"], [6, 7]),
        (["A", *CELLS[1], "<|vision_end|>"], [3]),
        (["A", " B", *CELLS[1], "\n"], [3, 4, 7]),  # white space is no question
        (["A", *CELLS[1], "B", *CELLS[1], "C"], [9]),
        (["A", "B"], [3, 4]),
    ):
        images = [IMAGES[1]]
        earlier = ["<|im_start|>", "user", "\n"]
        assert layout([*earlier, *pieces, "<|im_end|>", "\n"], images).resolve("question") == tuple(positions)
        two = layout([*earlier, "X", "<|im_end|>", *earlier, *pieces, "<|im_end|>"], images)
        assert two.resolve("question") == tuple(position + 5 for position in positions)


def test_without_chatml_the_question_is_all_text():
    assert layout(["<|vision_start|>", *CELLS[1], "Is", " it", "?"], [IMAGES[1]]).resolve("question") == (3, 4, 5)


def test_what_was_produced_is_no_part_of_the_prompt(prompt):
    assert prompt.resolve("Tom") == (26,)
    assert "tokens 0 to 44" in refusal(prompt, "tokens 45")
    assert prompt.resolve("last") == (44,)
    assert len(prompt.each_token()) == 45
    assert prompt.words()[-1] == Group("\n", (44,))
    assert layout(["a", (0, 0, 0)], [IMAGES[1]], produced=[(0, 0, 1)]).resolve("image") == (1,)


# --- pieces of characters -------------------------------------------------------------------------------------------------


def test_tokens_with_parts_of_two_characters_share_both():
    e, n = "é".encode(), "ñ".encode()
    spread = layout(["x", e[:1], e[1:] + n[:1], n[1:], "y"])
    assert spread.resolve("é") == spread.resolve("ñ") == (1, 2, 3)
    assert spread.resolve("ñy") == (1, 2, 3, 4)
    assert spread.words() == [Group("xéñy", (0, 1, 2, 3, 4))]


def test_neighbouring_characters_do_not_share_their_pieces():
    pieces = [bytes([byte]) for byte in "é🦄".encode()]
    both = layout(pieces)
    assert both.resolve("é") == (0, 1)
    assert both.resolve("🦄") == (2, 3, 4, 5)


def test_a_replacement_character_that_was_written_stands_alone():
    written = layout(["a", "\ufffd", b"\xc3", b"\xa9", "b"])
    assert written.resolve("\ufffd") == (1,)
    assert written.resolve("é") == (2, 3)


def test_pieces_that_make_no_character_stay_alone():
    broken = layout(["a", b"\xf0", b"\x9f", "b", b"\xa6", b"\x84"])
    assert broken.resolve("tokens 1") == (1,)
    assert [group.positions for group in broken.words()] == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert broken.resolve("\ufffd #2") == (2,)
    cut = layout(["a", b"\xc3"], produced=[b"\xa9"])
    assert cut.words() == [Group("a", (0,)), Group("\ufffd", (1,))]


def test_many_pieces_that_make_no_character_are_no_burden():
    decoded = []
    table = layout([b"\xf0"] * 500).tokens
    Layout(table, (), 500, lambda ids: decoded.append(len(ids)) or "\ufffd" * len(ids))
    assert sum(decoded) < 500 * 16 * 16


def test_whole_tokens_are_not_decoded_again():
    def decode(ids):
        raise AssertionError("only pieces of characters need to be decoded together")

    table = layout(["a", " b", b"\xf0", "c"]).tokens
    assert Layout(table, (), 4, decode).resolve("a b") == (0, 1)


def test_a_layout_of_more_tokens_than_there_are_is_a_mistake():
    table = layout(["a", " b"]).tokens
    for n_prompt in (0, 3):
        with pytest.raises(ValueError, match=f"n_prompt is {n_prompt}, expected 1 to 2"):
            Layout(table, (), n_prompt, str)


# --- what is refused ------------------------------------------------------------------------------------------------------

IN_ALL = "; give left,top,right,bottom with left < right and top < bottom, image 0 has 90 x 40 pixels"
HOW_TOKENS = "; tokens are given as in tokens 3,5-9"
HOW_IMAGE = "; parts of an image are given as in image 0 rows 1-2 columns 3-4, or image 0 box 10,20,90,80 in pixels"
MISSING = "this text is not in the prompt"
EMPTY = "the spec is empty; give a phrase of the prompt, question, image, or tokens 3-9 for example"
HALF = "nothing stands before or behind a ' + '; put a phrase with it in quotes"


def test_what_cannot_be_resolved_is_said_in_a_line(prompt):
    cases = [
        ("", EMPTY),
        (" \n ", EMPTY),
        ("image + ", f"'image + ': {HALF}"),
        (" + image", f"' + image': {HALF}"),
        ("image +  + last", f"'image +  + last': {HALF}"),
        ('""', "'\"\"': there is nothing in the quotes; give text of the prompt"),
        ("tokens 45", "'tokens 45': there is no token 45; the prompt has tokens 0 to 44"),
        ("tokens 3,40-45", "'tokens 3,40-45': there is no token 45; the prompt has tokens 0 to 44"),
        ("tokens 9-5", "'tokens 9-5': tokens 9-5 run backwards; give the smaller number first"),
        ("tokens " + 5000 * "9", f"'tokens {53 * '9'}...': the number '{60 * '9'}...' is too large"),
        ("tokens 5-", f"'tokens 5-': {MISSING}{HOW_TOKENS}"),
        ("tokens", f"'tokens': {MISSING}{HOW_TOKENS}"),
        ("image 2", "'image 2': there is no image 2; the prompt has 2 images, 0 to 1"),
        ("image rows 1", "'image rows 1': the prompt has 2 images: say which, image 0 to image 1"),
        ("image box 1,1,2,2", "'image box 1,1,2,2': the prompt has 2 images: say which, image 0 to image 1"),
        ("image 0 rows 2", "'image 0 rows 2': there is no row 2; image 0 has rows 0 to 1"),
        ("image 0 rows 1-2", "'image 0 rows 1-2': there is no row 2; image 0 has rows 0 to 1"),
        ("image 1 columns 2", "'image 1 columns 2': there is no column 2; image 1 has columns 0 to 1"),
        ("image 0 rows 1-0", "'image 0 rows 1-0': rows 1-0 run backwards; give the smaller number first"),
        ("image 0 row 1", f"'image 0 row 1': {MISSING}{HOW_IMAGE}"),
        ("image #1", f"'image #1': {MISSING}{HOW_IMAGE}"),
        ("image 0 box 1,2,3", f"'image 0 box 1,2,3': {MISSING}{HOW_IMAGE}"),
        ("image 0 box 0,0,91,40", "'image 0 box 0,0,91,40': the box reaches beyond the image; image 0 has 90 x 40 pixels"),
        ("image 0 box 0,0,9,40.5", "'image 0 box 0,0,9,40.5': the box reaches beyond the image; image 0 has 90 x 40 pixels"),
        ("image 0 box -1,0,9,9", "'image 0 box -1,0,9,9': the box reaches beyond the image; image 0 has 90 x 40 pixels"),
        ("image 0 box 0,-1,9,9", "'image 0 box 0,-1,9,9': the box reaches beyond the image; image 0 has 90 x 40 pixels"),
        ("image 1 box 0,0,90,9", "'image 1 box 0,0,90,9': the box reaches beyond the image; image 1 has 64 x 32 pixels"),
        ("image 0 box 9,1,9,3", f"'image 0 box 9,1,9,3': the box is empty{IN_ALL}"),
        ("image 0 box 1,9,2,9", f"'image 0 box 1,9,2,9': the box is empty{IN_ALL}"),
        ("image 0 box 9,1,2,3", f"'image 0 box 9,1,2,3': the box is empty{IN_ALL}"),
        ("assistant", "'assistant': there is nothing in the prompt's assistant turn"),
        ("dog", f"'dog': {MISSING}"),
        ("tom", f"'tom': {MISSING}, but 'Tom' is: upper and lower case count"),
        ("'IS TOM'", f"\"'IS TOM'\": {MISSING}, but 'Is Tom' is: upper and lower case count"),
        ("Is  Tom", f"'Is  Tom': {MISSING}"),
        ("First,Is", f"'First,Is': {MISSING}; did you mean 'First'?"),  # an image is between them
        ("<|im_start|>", f"'<|im_start|>': {MISSING}"),
        ("'<|image_pad|>'", f"\"'<|image_pad|>'\": {MISSING}"),
        ("#2", f"'#2': {MISSING}"),
        ("a\n\x1b[31m\u202e", f"'a\\n\\x1b[31m\\u202e': {MISSING}"),
        ("Tom + dog", f"'dog': {MISSING}"),
        ("cat", "'cat': this text is in the prompt 2 times: #1 at token 27 in \"Is Tomcat's cat 🦄 2+2\", "
                "#2 at token 29 in \"Is Tomcat's cat 🦄 2+2 + 2?\"; choose one by adding #1, #2, ..."),
        ("cat #3", "'cat #3': there is no #3; the text has 2 places, #1 to #2"),
        ('"cat"#0', "'\"cat\"#0': there is no #0; the text has 2 places, #1 to #2"),
        ("Tom #2", "'Tom #2': there is no #2; the text has one place, which is #1"),
        ("Tom #9999999999", "'Tom #9999999999': the number '9999999999' is too large"),
    ]  # fmt: skip
    assert [(spec, refusal(prompt, spec)) for spec, _ in cases] == cases


def test_what_was_probably_meant_is_escaped_too():
    assert refusal(layout(["a\x1bb"]), "a\x1bbc") == f"'a\\x1bbc': {MISSING}; did you mean 'a\\x1bb'?"


def test_at_most_five_places_are_listed_and_what_the_prompt_has_is_escaped():
    several = layout(["\x1b", *(["\nha", "\u202eha"] * 4)])
    message = refusal(several, "ha")
    assert "in the prompt 8 times: #1 at token 1 in '\\x1b\\nha\\u202eha" in message
    assert "#5 at token 5 in " in message
    assert "#6" not in message
    assert message.endswith(" and 3 more; choose one by adding #1, #2, ...")
    assert several.resolve("ha #8") == (8,)
    assert "more" not in refusal(layout(["ha", "ha", "ha", "ha", "ha"]), "ha")
    assert "but 'H\\x07A' is" in refusal(layout(["H", "\x07", "A"]), "h\x07a")


def test_names_that_stand_for_nothing_in_other_prompts():
    plain = layout(["Is", " it", "?"])
    for role in ("system", "user", "assistant"):
        assert refusal(plain, role) == (
            f"'{role}': the prompt has no turns in ChatML (<|im_start|>{role}), which this needs; give a phrase of it, or "
            "token positions (tokens 3-9)"
        )
    for spec in ("image", "image 0", "image rows 1", "image box 0,0,1,1"):
        assert refusal(plain, spec) == f"'{spec}': the prompt has no image"
    assert refusal(plain, "special") == "'special': the prompt has no special tokens"
    only_image = layout(["<|vision_start|>", *CELLS[1]], [IMAGES[1]])
    assert refusal(only_image, "text") == "'text': the prompt has no text tokens"
    assert refusal(only_image, "question") == "'question': the prompt has no text tokens"
    assert refusal(only_image, "image 1") == "'image 1': there is no image 1; the prompt has one image, which is 0"


def test_turns_that_are_not_there_or_have_nothing_in_them():
    turn = ["<|im_start|>", "user", "\n"]
    talk = layout([*turn, "<|im_end|>", *turn, *CELLS[1], "<|im_end|>", "<|im_start|>", "a\x1b", "\n"], [IMAGES[1]])
    assert refusal(talk, "system") == "'system': the prompt has no system turn; it has 'user', 'a\\x1b'"
    assert refusal(talk, "question") == "'question': there is no text in the prompt's last user turn"
    assert refusal(layout([*turn, "<|im_end|>", *turn]), "user") == (
        "'user': there is nothing in the prompt's user turns"
    )
    assert refusal(layout(["<|im_start|>", "system", "\n", "A"]), "question") == (
        "'question': the prompt has no user turn; it has 'system'"
    )


# --- words and tokens -----------------------------------------------------------------------------------------------------


def test_words_of_the_whole_prompt(prompt):
    cells = [(f"image {number} [{row}, {column}]", 1) for one in CELLS for number, row, column in one]
    names = [
        ("<|im_start|>", 1), ("system", 1), ("\n", 1), ("Be", 1), (" kind", 1), (".", 1), ("<|im_end|>", 1), ("\n", 1),
        ("<|im_start|>", 1), ("user", 1), ("\n", 1), ("<|vision_start|>", 1), *cells[:6], ("<|vision_end|>", 1),
        ("First", 1), (",", 1), ("<|vision_start|>", 1), *cells[6:], ("<|vision_end|>", 1),
        ("Is", 1), (" Tomcat", 2), ("'s", 1), (" cat", 1), (" ", 1), ("🦄", 3),
        (" 2", 1), ("+", 1), ("2", 1), (" +", 1), (" 2", 1), ("?", 1), ("<|im_end|>", 1), ("\n", 1),
        ("<|im_start|>", 1), ("assistant", 1), ("\n", 1),
    ]  # fmt: skip
    words = prompt.words()
    assert [(group.name, len(group.positions)) for group in words] == names
    assert [position for group in words for position in group.positions] == list(range(45))


def test_where_words_begin():
    cases = [
        (["un", "believ", "able"], ["unbelievable"]),
        (["un", " believ", "able"], ["un", " believable"]),
        (["say", " ", "so"], ["say", " ", "so"]),
        (["(", "Tom", ")", "."], ["(", "Tom", ")", "."]),
        (["a", " (", "b"], ["a", " (", "b"]),
        (["a", "\n", "\n\n", "b"], ["a", "\n", "\n\n", "b"]),
        (["x", "1", "2"], ["x12"]),
        (["na", b"\xc3", b"\xaf", "ve"], ["naïve"]),
        (["a", "", "b"], ["a", "", "b"]),
        (["हि", "न्", "दी", " में"], ["हिन्दी", " में"]),  # vowel signs are marks, not letters
        (["中", "文", "字", "。", "好"], ["中文字", "。", "好"]),
        (["A", "<|im_end|>", "b", "c"], ["A", "<|im_end|>", "bc"]),
        (["A", (0, 0, 0), (0, 0, 1), "b"], ["A", "image 0 [0, 0]", "image 0 [0, 1]", "b"]),
    ]
    assert [(pieces, [group.name for group in layout(pieces, [IMAGES[1]]).words()]) for pieces, _ in cases] == cases


def test_each_token_is_a_group_of_its_own(prompt):
    groups = prompt.each_token()
    assert [group.positions for group in groups] == [(position,) for position in range(45)]
    assert [groups[position].name for position in (0, 4, 16, 23, 31, 44)] == [
        "<|im_start|>", " kind", "image 0 [1, 1]", "image 1 [0, 1]", "\ufffd", "\n"
    ]  # fmt: skip


def test_a_group_has_ascending_positions():
    for positions in ((), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="not ascending, or there are none"):
            Group("a", positions)


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """text -> the path of a file with it"""

    def file(text):
        (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "f.yaml"

    return file


def problems(path, read):
    """What is wrong in the file, "LINE: problem" each."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert isinstance(caught.value, InputError)
    assert all(problem.startswith(f"{path}:") and problem.isprintable() for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_groups_from_a_file(prompt, file):
    found = read_groups(
        file("""
the picture: image 1
sum: "2+2"
both: [last, 'image 1', system + last]
"cat": '"cat"#2'
2: |
  cat #1
"""),
        prompt,
    )
    assert found == [
        Group("the picture", (22, 23)),
        Group("sum", (34, 35, 36)),
        Group("both", (3, 4, 5, 22, 23, 44)),
        Group("cat", (29,)),
        Group("2", (27,)),
    ]


def test_everything_that_is_wrong_with_groups_is_said_at_once(prompt, file):
    path = file("""\
a: dog
b: [last, cats, 5]
c: 7
d: []
" ": last
e: last
e: image
f:
  - last
  - image 7
g: {x: last}
h:
i: !!python/name:os.system last
j: true
"k\\e": '"\\e"'
l: ""
""")
    assert problems(path, lambda path: read_groups(path, prompt)) == [
        f"1: group 'a': 'dog': {MISSING}",
        f"2: group 'b': 'cats': {MISSING}; did you mean 'cat'?",
        "2: group 'b' must be a spec or a list of specs, not the number 5 (in quotes it is text)",
        "3: group 'c' must be a spec or a list of specs, not the number 7 (in quotes it is text)",
        "4: group 'd' is an empty list; give at least one spec",
        "5: a group has no name; give it one",
        "7: the key 'e' is given twice, first in line 6; keep one",
        "10: group 'f': 'image 7': there is no image 7; the prompt has 2 images, 0 to 1",
        "11: group 'g' must be a spec or a list of specs, not a mapping",
        "12: group 'h' must be a spec or a list of specs, not null",
        "13: the tag '!!python/name:os.system' is not accepted; leave tags out",
        "14: group 'j' must be a spec or a list of specs, not true (in quotes it is text)",
        f"15: group 'k\\x1b': '\"\\\\e\"': {MISSING}",
        f"16: group 'l': {EMPTY}",
    ]


def test_a_file_that_has_no_groups(prompt, file):
    for text, problem in (
        ("", "1: the file is empty; a mapping with names of groups and their specs is accepted"),
        ("- image", "1: no mapping; one with names of groups and their specs is accepted"),
        ("{}", "1: there are no groups; a mapping with names of groups and their specs is accepted"),
        ("a: last\n--- b", "2: column 1: a second document (---) begins here; one is accepted"),
    ):
        assert problems(file(text), lambda path: read_groups(path, prompt)) == [problem]


def test_a_file_that_is_not_there_or_too_large(prompt, tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file or directory; give the path"):
        read_groups(path, prompt)
    path.write_bytes(b"#" * (10 * 2**20 + 1))
    for read, what in ((lambda path: read_groups(path, prompt), "groups"), (read_flows, "flows")):
        with pytest.raises(ConfigError, match=f"larger than 10 MiB, the most that is read; give fewer {what}$"):
            read(path)


def test_flows_from_a_file(file):
    found = read_flows(
        file("""
window: 5
flows:
  - name: to the question
    source: image
    target: question
    heads: [3, 0]
  - {source: '"cat"#2', target: last}
  - {source: nowhere in the prompt, target: last, name: null, heads: null}
""")
    )
    assert found == FlowSet(
        5,
        (
            Flow("to the question", "image", "question", (0, 3)),
            Flow('"cat"#2 -> last', '"cat"#2', "last", None),
            Flow("nowhere in the prompt -> last", "nowhere in the prompt", "last", None),
        ),
    )


def test_the_window_has_nine_layers_where_the_file_says_nothing(file):
    for window in ("", "window: null"):
        found = read_flows(file(f"flows: [{{source: image, target: last}}]\n{window}"))
        assert found == FlowSet(9, (Flow("image -> last", "image", "last"),))


def test_everything_that_is_wrong_with_flows_is_said_at_once(file):
    path = file("""\
window: 0
windows: 3
flows:
  - source: image
  - {source: 5, target: " "}
  - image -> last
  - source: image
    target: last
    head: [1]
    heads: [0, -1, 1.5, true]
  - {source: image, target: last}
  - {name: x, source: image, target: last, heads: []}
  - {name: x, source: image, target: last, heads: 3}
  - {name: y, source: a, target: b, heads: [2, 7, 2]}
  - {name: [1], source: a, target: b}
  - {name: "", source: a, target: b}
  - {name: "x", target: "b"}
""")
    heads = "heads must be a list, not empty, of numbers of heads, from 0, not "
    assert problems(path, read_flows) == [
        "1: window must be a whole number of layers, at least 1, not the number 0",
        "2: unknown key 'windows'; did you mean 'window'? accepted are flows, window",
        "4: target is missing; it must be text that is a spec, such as question or last",
        "5: source must be text that is a spec, such as image, not the number 5 (in quotes it is text)",
        "5: target must be text that is a spec, such as question or last, not the text ' '",
        "6: flows must be a list, not empty, of mappings with source and target, not the text 'image -> last'",
        "9: unknown key 'head'; did you mean 'heads'? accepted are source, target, name, heads",
        f"10: {heads}the number -1",
        f"10: {heads}the number 1.5",
        f"10: {heads}true",
        "11: the name 'image -> last' is taken, in line 7; give another",
        f"12: {heads}an empty list",
        f"13: {heads}the number 3",
        "13: the name 'x' is taken, in line 12; give another",
        "14: head 2 is given twice; keep one",
        "15: name must be text that is not blank, not a list",
        "16: name must be text that is not blank, not the text ''",
        "17: source is missing; it must be text that is a spec, such as image",
        "17: the name 'x' is taken, in line 12; give another",
    ]


def test_a_file_that_has_no_flows(file):
    for text, problem in (
        ("", "1: the file is empty; a mapping with flows is accepted"),
        ("a", "1: no mapping; one with flows is accepted"),
        (
            "window: 3",
            "1: flows is missing; it must be a list, not empty, of mappings with source and target",
        ),
        ("flows: []", "1: flows must be a list, not empty, of mappings with source and target, not an empty list"),
        ("flows: 3", "1: flows must be a list, not empty, of mappings with source and target, not the number 3"),
        (
            "flows: [{source: a, target: b, heads: !!python/tuple [1]}]",
            "1: the tag '!!python/tuple' is not accepted; leave tags out",
        ),
        ("window: '9'\nflows: [{source: a, target: b}]", "1: window must be a whole number of layers, at least 1, "
                                                         "not the text '9'"),
    ):  # fmt: skip
        assert problems(file(text), read_flows) == [problem]


def test_what_aliases_stand_for_is_limited(prompt, file):
    (problem,) = problems(file("flows: &a [*a]"), read_flows)
    assert "an alias inside of what it stands for" in problem
    bomb = "a: &a [last]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{last}'] * 99)}]\n" for last, name in ("ab", "bc", "cd")
    )
    (problem,) = problems(file(bomb), lambda path: read_groups(path, prompt))
    assert "more than 100,000 keys and values" in problem


def test_the_flows_that_are_measured_by_default():
    to_the_end = Flow("question -> last", "question", "last")
    assert default_flows([]) == FlowSet(9, (to_the_end,))
    assert default_flows(["image"]) == FlowSet(
        9, (Flow("image -> question", "image", "question"), Flow("image -> last", "image", "last"), to_the_end)
    )


def test_yaml_and_pydantic_come_only_with_a_file():
    heavy = {"yaml", "pydantic", "torch", "mask_impact.studies.config"}
    code = f"import sys, mask_impact.prompts.groups; print(*({heavy} & set(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stdout.strip(), process.stderr) == (0, "", "")


# --- the demo's tokenizers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vl", "text"])
def test_prompts_of_the_bundled_models(kind):
    """The real thing: templates, byte pieces, and images as the processor lays them out."""
    import mask_impact
    from mask_impact.prompts.encoding import encode
    from mask_impact.prompts.images import read_picture

    loaded = mask_impact.load("demo", kind=kind, device="cpu")
    pictures = [read_picture(REPOSITORY / "examples" / "shapes.png")] if kind == "vl" else []
    encoded = encode(loaded, "What color is the naïve star? 🦄", pictures)
    where = Layout(encoded.tokens, encoded.images, encoded.n_tokens, loaded.tokenizer.decode)
    texts, ids = encoded.tokens.texts, encoded.tokens.ids

    def spelled(positions):
        return loaded.tokenizer.decode([int(ids[position]) for position in positions])

    assert spelled(where.resolve("question")) == "What color is the naïve star? 🦄"
    assert [texts[position] for position in where.resolve("star")] == [" star"]
    unicorn = where.resolve("🦄")
    assert len(unicorn) > 1
    assert spelled(unicorn).strip() == "🦄"
    words = where.words()
    assert {" color", " star", "?"} <= {group.name for group in words}
    assert "naïve" in {group.name.strip() for group in words}
    assert [position for group in words for position in group.positions] == list(range(encoded.n_tokens))
    assert spelled(where.resolve("special")) == (
        "<|im_start|><|vision_start|><|vision_end|><|im_end|><|im_start|>" if pictures
        else "<|im_start|><|im_end|><|im_start|>"
    )  # fmt: skip
    assert where.resolve("last") == (encoded.n_tokens - 1,)
    if not pictures:
        assert spelled(where.resolve("user")) == spelled(where.resolve("question"))
        assert refusal(where, "image") == "'image': the prompt has no image"
        return
    rows, columns = encoded.images[0].grid
    width, height = encoded.images[0].size
    cells = where.resolve("image")
    assert len(cells) == rows * columns
    assert where.resolve(f"image box 0,0,{width},{height}") == cells
    assert where.resolve("image rows 1") == cells[columns : 2 * columns]
    assert where.resolve("image columns 0") == cells[::columns]
    inside = (width / columns * 2 + 1, height / rows + 1, width / columns * 3 - 1, height / rows * 2 - 1)
    assert where.resolve("image box {:.2f},{:.2f},{:.2f},{:.2f}".format(*inside)) == (cells[columns + 2],)
    user = where.resolve("user")
    assert set(cells) | set(where.resolve("question")) < set(user)
    assert (texts[user[0]], texts[user[-1] + 1]) == ("<|vision_start|>", "<|im_end|>")
