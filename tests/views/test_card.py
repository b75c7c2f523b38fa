"""The evidence card: what it says in words and in lengths, held against the explanation it is made from; texts stay texts."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from explained import explained
from pages import HOSTILE
from synthetic import make_explanation, make_result

from mask_impact.results.explanations import Evidence, TokenSet
from mask_impact.views.card import Card, question_of
from mask_impact.views.card_html import card_document, cards_html


class Elements(HTMLParser):
    """Elements of a fragment as (tag, attributes), and the text in those of a class."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        one = [tag, dict(attributes), ""]
        self.elements.append(one)
        if tag not in ("path", "rect", "use", "image", "meta"):
            self.open.append(one)

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for one in self.open:
            one[2] += data

    def of(self, name):
        """(attributes, text) of each element of a class."""
        return [(a, text) for _, a, text in self.elements if name in (a.get("class") or "").split()]


def picture(effects, needed=(), becomes=None, grid=(3, 3), **changes):
    """A question about a picture of nine cells, positions 1 to 9, explained."""
    result = make_result(["", "Where", " is", " it", "?"], grids=(grid,), generated_text=" here", produced=(" here",))
    return explained(result, effects, needed=needed, becomes=becomes, **changes).answer


def words(effects, texts=("The", " cat", " sat", "."), **changes):
    return explained(make_result(list(texts), generated_text=" mat", produced=(" mat",)), effects, **changes).answer


# --- what it says -----------------------------------------------------------------------------------------------------------


def test_one_sentence_says_what_decides_and_what_becomes_of_the_answer():
    found = words({1: -3.0, 2: -1.0}, needed=(1,), becomes={1: " dog"})
    assert Card(found).sentence == "Mat: because of the word “cat”. Without the word “cat” the model says “else”."


def test_without_evidence_the_next_token_stands_in_the_sentence():
    found = words({1: -3.0, 2: -1.0}, becomes={1: " dog"})
    assert Card(found).sentence == "Mat: because of the word “cat”. Without the word “cat” the next token is “dog”."


def test_where_nothing_changes_the_answer_the_sentence_says_so():
    assert Card(words({1: -3.0, 2: -1.0})).sentence == (
        "Mat: most of all because of the word “cat” and the word “sat”. Nothing that was hidden changes the answer."
    )
    assert Card(words({1: -0.01, 2: 0.5})).sentence == "Mat: nothing that was hidden changes it."


def test_the_word_that_is_named_is_the_one_whose_loss_is_told():
    """A mark is no reason, however much it changes: what becomes of the answer without it is not told of the word."""
    found = words({3: -4.0, 1: -3.0}, becomes={3: " five", 1: " dog"})
    assert Card(found).sentence == "Mat: because of the word “cat”. Without the word “cat” the next token is “dog”."


def test_a_change_by_what_is_not_among_the_first_five_is_not_denied():
    texts = ("a", " b", " c", " d", " e", " f")
    found = words({place: -2.0 + 0.1 * place for place in range(6)}, texts=texts, becomes={5: " dog"})
    assert Card(found).sentence == "Mat: most of all because of the word “a” and the word “b”."


def test_a_set_is_not_named_again_by_its_parts():
    found = words(
        dict.fromkeys(range(5), -2.0),
        texts=("a", " b", " c", " d", " e"),
        needed=(0, 1, 2, 3),
        becomes={1: "x", 4: "y"},
    )
    assert Card(found).sentence.startswith(
        "Mat: because of the word “a”, the word “b” and 2 more and the word “e”. Without"
    )


def test_a_set_that_generate_does_not_confirm_is_no_reason():
    found = words({1: -3.0}, needed=(1,), confirmed=False)
    assert "because of" in Card(found).sentence
    assert "the model says" not in Card(found).sentence


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (1, "the cell at the upper left"), (2, "the cell at the top"), (3, "the cell at the upper right"),
        (4, "the cell at the left"), (5, "the cell in the middle"), (6, "the cell at the right"),
        (7, "the cell at the lower left"), (8, "the cell at the bottom"), (9, "the cell at the lower right"),
    ],
)  # fmt: skip
def test_a_cell_is_named_by_where_it_is(cell, name):
    assert Card(picture({cell: -2.0})).rows[0].name == name


def test_a_word_that_stands_twice_is_told_apart_and_a_mark_is_no_word():
    found = words({1: -3.0, 3: -2.0, 4: -1.0}, texts=("a", " Ann", " met", " Ann", "."))
    assert [row.name for row in Card(found).rows[:3]] == ["the first word “Ann”", "the second word “Ann”", "“.”"]


def test_cells_of_one_place_are_counted():
    found = picture({1: -2.0}, grid=(6, 6))
    assert Card(found).names([1, 2]) == "2 cells at the upper left"
    assert Card(found).names([1, 36]) == "the cell at the upper left and the cell at the lower right"


def test_what_is_called_alike_is_counted_by_what_it_is():
    found = words({0: -1.0, 2: -1.0}, texts=("\n", "a", "\n", " ", " "))
    assert Card(found).names([0, 2]) == "2 line breaks"
    assert Card(found).names([3, 4]) == "2 spaces"
    result = make_result(["", "What"], grids=((6, 6),), generated_text=" x", produced=(" x",))
    regions = [
        ("image 0 rows 0-0 columns 0-1", (1, 2), -2.0, -2.0),
        ("image 0 rows 1-1 columns 0-1", (7, 8), -2.0, -2.0),
    ]
    found = explained(result, {}, extra=regions).answer
    assert (
        Card(found).names([len(found.targets[0].names) - 2, len(found.targets[0].names) - 1])
        == "2 regions at the upper left"
    )


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "first"), (2, "third"), (3, "4th"), (10, "11th"), (20, "21st"), (21, "22nd"), (22, "23rd"), (110, "111th")],
)
def test_ordinals_are_english(number, name):
    found = words({number: -3.0}, texts=[" a"] * 112)
    assert Card(found).name(number) == f"the {name} word “a”"


def test_a_produced_token_is_the_answer_s_own_and_no_word_of_the_question():
    result = make_result(["Ann", " met"], n_steps=2, produced=(" Ann", " left"))
    found = explained(result, {0: -1.0}, steps=(1,), answer=" left", extra=[(" Ann", (2,), -3.0, -3.0)]).answer
    card = Card(found)
    assert [row.name for row in card.rows[:2]] == ["the answer's own word “Ann”", "the word “Ann”"]


def test_of_a_later_token_the_sentence_tells_the_next_token_and_not_a_whole_answer():
    """For the whole answer generate() begins anew, and may still come to say that token."""
    result = make_result(["Ann", " met"], n_steps=2, produced=(" Ann", " left"))
    found = explained(result, {0: -3.0}, needed=(0,), becomes={0: " came"}, steps=(1,), answer=" left").answer
    assert Card(found).sentence == "Left: because of the word “Ann”. Without the word “Ann” the next token is “came”."
    unsure = explained(result, {0: -3.0}, needed=(0,), steps=(1,), answer=" left", confirmed=False).answer
    assert "the answer begins anew" in card_document(unsure)
    assert "rounding" not in card_document(unsure)


def test_held_against_another_token_the_numbers_are_of_both():
    found = words({0: -3.0})
    (target,) = found.targets
    found = replace(found, targets=(replace(target, instead=(9, " B"), text=" b"),))
    assert Card(found).sentence.startswith("“b” rather than “B”: most of all because of the word “The”.")
    text = " ".join(Elements(card_document(found)).of("mi-note")[0][1].split())
    assert "change of the log-probability of “b” over that of “B” in nats" in text


def test_groups_have_their_own_numbers_and_leave_the_template_out():
    result = make_result(
        ["", "<|im_start|>", "user", "\n", "Where", "?"], grids=((2, 2),), generated_text=" up", produced=(" up",)
    )
    kinds = list(result.tokens.kinds)
    kinds[5] = "special"
    result = replace(result, tokens=replace(result.tokens, kinds=tuple(kinds)))
    at = [position for position in range(len(result.tokens)) if result.tokens.image[position] >= 0]
    found = explained(
        result, {}, extra=[("top half", tuple(at[:2]), -4.0, -4.0), ("bottom", tuple(at[2:]), -1.0, -1.0)]
    ).answer
    (target,) = found.targets
    keep = slice(len(target.names) - 2, None)
    parts = {name: getattr(target, name)[keep] for name in (
        "names", "positions", "contribution", "estimate_local", "logprob_change", "kl_divergence", "top1", "differs", "control",
        "content",
    )}  # fmt: skip
    found = replace(found, targets=(replace(target, kinds=("group", "group"), **parts),))
    html = card_document(found)
    assert "top half: −4.00 nats, really hidden" in html
    assert "2 of 2 groups were really hidden" in html
    assert "user" not in "".join(word.text for word in Card(found).words)
    assert "Where" in "".join(word.text for word in Card(found).words)


def test_many_names_are_cut():
    found = words(dict.fromkeys(range(6), -1.0), texts=("a", " b", " c", " d", " e", " f"))
    assert Card(found).names(range(6)) == "the word “a”, the word “b” and 4 more"


def test_the_question_is_the_prompt_without_marks_of_images():
    found = picture({1: -1.0})
    assert question_of(replace(found, meta={"prompt": "<image> Where\nis it?"})) == "Where is it?"
    assert question_of(replace(found, meta={})) == "Where is it?"


# --- lengths and colours ----------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_changes_and_hollow_where_estimated():
    found = words({0: -4.0, 1: 1.0}, estimated={2: -2.0, 3: 0.0})
    html = Elements(card_document(found))
    bars = [(a["style"], a["class"]) for tag, a, _ in html.elements if tag == "i"]
    assert bars == [
        ("width:100.0%", "mi-for"), ("width:25.0%", "mi-against"), ("width:50.0%", "mi-for mi-hollow"),
        ("width:0.0%", "mi-for mi-hollow"),
    ]  # fmt: skip
    assert [text for _, text in html.of("mi-number")] == ["−4.00", "1.00", "~−2.00", "~0"]


def test_words_and_cells_are_shaded_on_one_scale():
    """A word of 2 nats is half as strong as the strongest cell, of 4: a scale of its own would make it 1."""
    found = picture({5: -4.0, 6: -1.0, 11: -2.0})
    html = Elements(card_document(found))
    shades = {text.strip(): float(a["style"].removeprefix("--s:")) for a, text in html.of("mi-word")}
    assert {word: shade for word, shade in shades.items() if word} == {"Where": 0.0, "is": 0.5, "it": 0.0, "?": 0.0}
    cells = {a["data-place"]: float(a["style"].removeprefix("--s:")) for a, _ in html.of("mi-cell")}
    assert cells == {"5": 1.0, "6": 0.25}


def test_where_nothing_matters_nothing_is_drawn_as_strong():
    html = Elements(card_document(words({0: -0.25, 1: -0.1})))
    assert [a["style"] for tag, a, _ in html.elements if tag == "i"][:2] == ["width:25.0%", "width:10.0%"]


def test_evidence_is_outlined_around_neighbours_and_not_between_them():
    found = picture({4: -4.0, 5: -3.0}, needed=(4, 5))
    (attributes,) = [a for a, _ in Elements(card_document(found)).of("mi-under")]
    edges = {tuple(map(float, re.findall(r"[\d.]+", edge))) for edge in attributes["d"].split("M")[1:]}
    left, middle, right, top, bottom = 0.0, 50.0, 100.0, 40.0, 80.0
    assert edges == {
        (left, top, middle, top), (middle, top, right, top), (left, bottom, middle, bottom), (middle, bottom, right, bottom),
        (left, top, left, bottom), (right, top, right, bottom),
    }  # fmt: skip


def test_without_evidence_nothing_is_outlined_and_what_does_nothing_is_not_drawn():
    html = Elements(card_document(picture({1: -4.0, 2: -0.001})))
    assert html.of("mi-edge") == []
    assert [a["data-place"] for a, _ in html.of("mi-cell")] == ["1"]


def test_a_thumbnail_shows_the_cell():
    html = Elements(card_document(picture({6: -4.0})))
    (thumb, *_) = html.of("mi-thumb")
    assert thumb[0]["viewbox"] == "100.0 40.0 50.0 40.0"  # the parser makes names lower case
    keys = [a["href"] for tag, a, _ in html.elements if tag == "use"]
    assert keys == ["#" + a["id"] for tag, a, _ in html.elements if tag == "image"] * len(keys)


def test_the_probability_that_is_left_follows_from_the_change():
    html = Elements(card_document(words({1: math.log(0.5), 2: -20.0})))
    assert [text for _, text in html.of("mi-then")][:2] == [
        "the answer stays75.0 % → <0.1 %",
        "the answer stays75.0 % → 37.5 %",
    ]


def test_evidence_is_told_with_the_answers_that_were_generated():
    kept = TokenSet((2,), True, " mat", False)
    found = make_explanation()
    (target,) = found.targets
    both = (
        Evidence("image", True, TokenSet((2,), True, " dog", True), kept, True, 1.0),
        Evidence("text", False, None, None, False, 1.0),
    )
    html = Elements(card_document(replace(found, targets=(replace(target, evidence=both),))))
    (said,) = [text for _, text in html.of("mi-evidence-list")]
    assert " ".join(said.split()) == (
        "Without the cell in the middle the model says “dog”. With the cell in the middle alone, all other cells hidden, it says "
        "“mat” (generate() does not confirm it: rounding decides here). With all words hidden it still says “mat”. The budget "
        "ended the search among cells."
    )


def test_estimates_that_do_not_hold_are_called_so():
    assert "NOT RELIABLE" in Elements(card_document(make_explanation())).of("mi-warn")[0][1]
    assert Elements(card_document(make_explanation(reliable=True))).of("mi-warn") == []


# --- texts, sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_texts(text):
    """Elements are those of a harmless text, whatever a token, an answer or a file is called."""

    def tags(said):
        found = words({0: -2.0, 1: -1.0}, texts=(said, "b", "c"), becomes={0: said}, answer=said, needed=(0,))
        html = Elements(card_document(replace(found, meta={"prompt": said, "model": said})))
        return [(tag, sorted(set(a) - {"title"})) for tag, a, _ in html.elements]

    assert tags(text) == tags("x")


def test_many_cells_and_tokens_make_a_card_of_bearable_size():
    texts = [" word"] * 2000
    effects = {at: -1.0 / (1 + at) for at in range(2600)}
    result = make_result(["", *texts], grids=((32, 32),), generated_text=" x")
    html = card_document(explained(result, effects).answer)
    assert len(html) < 900_000
    assert Elements(html).of("mi-row")


def test_images_stand_once_for_all_targets():
    found = make_explanation()
    found = replace(found, targets=found.targets * 3)
    images, cards = cards_html(found)
    assert len(cards) == 3
    assert images.count("<image ") <= 1
    assert all("<image " not in card for card in cards)


def test_no_preview_and_one_token_and_nothing_of_content_still_make_a_card():
    assert Elements(card_document(make_explanation())).of("mi-picture")
    alone = words({0: -1.0}, texts=("a",))
    assert [text for _, text in Elements(card_document(alone)).of("mi-name")] == ["“a”"]
    (target,) = alone.targets
    empty = replace(alone, targets=(replace(target, content=np.zeros(1, dtype=bool), names=("a",)),))
    assert Card(empty).sentence
