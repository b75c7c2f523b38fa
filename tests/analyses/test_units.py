"""What is hidden together, and the way from coarse to fine: on prompts and images that are made up, against plain loops."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import tiny_loaded

from mask_impact.analyses import units
from mask_impact.analyses.measured import Measured
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.analyses.units import (
    Unit,
    answer_units,
    coarse_units,
    effect_groups,
    finer_units,
    produced_units,
    summed,
)
from mask_impact.errors import InputError
from mask_impact.findings.regions import Rectangle
from mask_impact.results.tokens import ImageRecord, TokenTable

PROMPT = "zigzag cat, the mat"


@pytest.fixture(scope="module")
def tiny():
    return tiny_loaded()


def prepared(tiny, prompt=PROMPT, **settings):
    return prepare(tiny, prompt, RunSettings(**{"raw": True} | settings))


def table(words=(), grids=(), behind=()):
    """(tokens, images, units): words, then the cells of each image, then further words, each a token."""
    texts, image, row, column = list(words), [-1] * len(words), [-1] * len(words), [-1] * len(words)
    for number, (rows, columns) in enumerate(grids):
        for place in range(rows * columns):
            texts.append("<|image_pad|>")
            image.append(number)
            row.append(place // columns)
            column.append(place % columns)
    texts += behind
    for values in (image, row, column):
        values += [-1] * len(behind)
    kinds = tuple("special" if re.fullmatch(r"<\|.*\|>", text) else "text" for text in texts)
    kinds = tuple("image" if number >= 0 else kind for kind, number in zip(kinds, image, strict=True))
    arrays = (np.array(values, dtype=np.int32) for values in (image, row, column))
    tokens = TokenTable(np.zeros(len(texts), dtype=np.int64), tuple(texts), kinds, *arrays)
    images = [ImageRecord("made up", (64, 64), (64, 64), grid) for grid in grids]
    singles = [
        Unit(f"image {n} [{r}, {c}]" if n >= 0 else text, (at,), kind)
        for at, (text, kind, n, r, c) in enumerate(zip(texts, kinds, image, row, column, strict=True))
    ]
    return tokens, images, singles


# --- the units of a prompt ----------------------------------------------------------------------------------------------------


def test_units_are_words_or_tokens_and_each_position_stands_in_one(tiny):
    words, tokens = (answer_units(tiny, prepared(tiny, groups=groups)) for groups in ("words", "tokens"))
    n = prepared(tiny).encoded.n_tokens
    assert [unit.name for unit in words] == ["zigzag", " cat", ",", " the", " mat"]
    for found in (words, tokens):
        assert [position for unit in found for position in unit.positions] == list(range(n))
    assert [len(unit.positions) for unit in tokens] == [1] * n
    assert {unit.kind for unit in words} == {"word", "text"}
    assert all((unit.kind == "word") == (len(unit.positions) > 1) for unit in words)
    assert answer_units(tiny, prepared(tiny)) == words  # as nothing is said


def test_special_tokens_are_units_of_their_own_kind(tiny):
    found = answer_units(tiny, prepared(tiny, "the cat", raw=False))
    assert {unit.name for unit in found if unit.kind == "special"} == {"<|im_start|>", "<|im_end|>"}
    assert all(len(unit.positions) == 1 for unit in found if unit.kind == "special")


def test_groups_of_a_file_are_units_and_may_leave_something_out(tiny, tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("animal: [zigzag, cat]\nplace: mat\nboth: cat + mat\n")
    found = answer_units(tiny, prepared(tiny, groups=str(path)))
    assert [(unit.name, unit.kind) for unit in found] == [("animal", "group"), ("place", "group"), ("both", "group")]
    words = {unit.name.strip(): unit.positions for unit in answer_units(tiny, prepared(tiny))}
    assert found[0].positions == (*words["zigzag"], *words["cat"])
    assert found[2].positions == (*words["cat"], *words["mat"])  # groups may share positions
    path.write_text("everything: text\n")
    with pytest.raises(InputError, match="is the whole prompt: nothing would be left to see"):
        answer_units(tiny, prepared(tiny, groups=str(path)))


def test_the_groups_of_effects_are_those_that_are_hidden_as_a_whole(tiny):
    assert effect_groups(tiny, prepared(tiny)) is None
    assert effect_groups(tiny, prepared(tiny, groups="words")) is None  # without effects
    assert effect_groups(tiny, prepared(tiny, effect=True, groups="tokens")) is None
    words = effect_groups(tiny, prepared(tiny, effect=True, groups="words"))
    assert [group.name for group in words] == ["zigzag", " cat", ",", " the", " mat"]


def test_produced_tokens_are_units_up_to_the_one_that_is_asked_about():
    tokens, _, _ = table(["a", "b", "c", "d", "<|im_end|>"])
    found = produced_units(tokens, 2, 5)
    assert [(unit.name, unit.positions, unit.kind) for unit in found] == [
        ("c", (2,), "text"), ("d", (3,), "text"), ("<|im_end|>", (4,), "special"),
    ]  # fmt: skip
    assert len(produced_units(tokens, 2, 2)) == 0


def test_a_unit_s_value_is_the_sum_over_its_positions():
    values = np.random.default_rng(0).normal(size=9)
    some = [Unit("a", (0, 3, 8), "word"), Unit("b", (4,), "text"), Unit("c", (3, 4), "group")]
    assert summed(values, some).tolist() == [sum(values[at] for at in unit.positions) for unit in some]


# --- coarse units -------------------------------------------------------------------------------------------------------------


def of_kind(found, kind):
    return [unit for unit in found if unit.kind == kind]


def test_few_cells_and_few_words_stay_as_they_are():
    tokens, images, singles = table(["a"] * 100, [(10, 10)])
    found, fine = coarse_units(singles, tokens, images, np.zeros(len(tokens)))
    assert found == singles
    assert not fine.any()


def test_many_cells_are_too_fine_and_regions_and_blocks_cover_them_once():
    rng = np.random.default_rng(0)
    tokens, images, singles = table(["a", "b"], [(10, 11)], ["c"])
    contribution = rng.normal(size=len(tokens)) * 0.01
    cells = np.flatnonzero(tokens.image == 0)
    figure = [at for at in cells if tokens.row[at] in (3, 4) and tokens.column[at] in (5, 6, 7)]
    contribution[figure] -= 1
    found, fine = coarse_units(singles, tokens, images, contribution)
    assert found[: len(singles)][:2] == singles[:2]
    assert set(np.flatnonzero(fine)) <= {*cells}
    regions, blocks = of_kind(found, "region"), of_kind(found, "block")
    assert regions[0].positions == tuple(figure)
    assert regions[0].name == "image 0 rows 3-4 columns 5-7"
    for unit in (*regions, *blocks):
        inside = [
            at
            for at in cells
            if unit.region.first_row <= tokens.row[at] <= unit.region.last_row
            and unit.region.first_column <= tokens.column[at] <= unit.region.last_column
        ]
        assert unit.positions == tuple(inside)
        assert len(unit.positions) > 1 or unit.kind == "block"
    in_regions = {at for unit in regions for at in unit.positions}
    alone = {at for at, unit in enumerate(found[: len(singles)]) if unit.region is not None}
    assert not fine[[*alone]].any()
    assert fine.sum() == len(cells) - len(alone)
    for unit in blocks:
        assert not {*unit.positions} & in_regions
        assert not {*unit.positions} & alone


def test_a_cell_that_is_a_region_by_itself_is_measured_as_that_cell():
    tokens, images, singles = table((), [(11, 10)])
    contribution = np.zeros(len(tokens))
    contribution[37] = -2.0
    found, fine = coarse_units(singles, tokens, images, contribution)
    assert found[37].name == singles[37].name
    assert found[37].region == Rectangle(0, 3, 3, 7, 7)
    assert not fine[37]
    assert fine.sum() == len(tokens) - 1
    assert of_kind(found, "region") == []
    assert all(37 not in unit.positions for unit in of_kind(found, "block"))


def test_only_the_image_that_has_many_cells_becomes_coarse():
    tokens, images, singles = table((), [(3, 3), (12, 12), (2, 2)])
    contribution = np.where(tokens.image == 1, -0.1, -5.0)
    found, fine = coarse_units(singles, tokens, images, contribution)
    assert {unit.region.image for unit in found if unit.region} == {1}
    assert not fine[np.flatnonzero(tokens.image != 1)].any()
    positions = {position for unit in found[len(singles) :] for position in unit.positions}
    assert positions <= {*np.flatnonzero(tokens.image == 1)}


def test_cells_that_are_hidden_in_groups_stay_in_them():
    """As with the groups of a file: there is no unit for each cell, so nothing is made of cells."""
    tokens, images, singles = table((), [(12, 12)])
    groups = [Unit("left", tuple(range(72)), "group"), Unit("right", tuple(range(72, 144)), "group")]
    found, fine = coarse_units(groups, tokens, images, np.full(len(tokens), -1.0))
    assert (found, fine.tolist()) == (groups, [False, False])
    assert len(coarse_units(singles, tokens, images, np.full(len(tokens), -1.0))[0]) > len(singles)


def sentences_of(words, kinds=None):
    tokens, images, singles = table(words)
    found, fine = coarse_units(singles, tokens, images, np.zeros(len(tokens)))
    return of_kind(found, "sentence"), fine


def test_many_words_become_sentences_which_end_with_a_mark_or_a_line_or_something_in_between():
    filler = ["x", "y."] * 51  # so that there are many
    found, fine = sentences_of(["The", " cat", " sat", ".", " Why", "?", "\n", " It", " ran\n", " off", *filler])
    assert [unit.name for unit in found[:4]] == ["The cat sat.", " Why?", " It ran\n", " offxy."]  # "\n" alone is none
    assert all(unit.kind == "sentence" for unit in found)
    assert fine[:10].all()
    special, _ = sentences_of(["The", " cat", "<|x|>", " sat", " here", *filler])
    assert [unit.name for unit in special[:2]] == ["The cat", " sat herexy."]
    assert all(2 not in unit.positions for unit in special)
    assert [unit.positions for unit in special[:2]] == [(0, 1), (3, 4, 5, 6)]


@pytest.mark.parametrize("mark", [".", "!", "?", "\N{HORIZONTAL ELLIPSIS}", "\u3002", "\uff01", "\uff1f"])
def test_marks_of_several_scripts_end_a_sentence(mark):
    found, _ = sentences_of(["a", "b" + mark] + ["c"] * 101)
    assert found[0].positions == (0, 1)


def test_a_sentence_without_an_end_is_cut_at_forty_words():
    found, _ = sentences_of(["a"] * 101)
    assert [len(unit.positions) for unit in found] == [40, 40, 21]
    found, _ = sentences_of(["a"] * 121)
    assert [len(unit.positions) for unit in found] == [40, 40, 40]  # a last word alone stays a word
    found, _ = sentences_of(["a"] * 100)
    assert found == []  # not many


def test_words_of_several_tokens_count_as_one_and_stay_whole():
    tokens, images, _ = table(["wo", "rd"] * 101)
    words = [Unit("word", (2 * at, 2 * at + 1), "word") for at in range(101)]
    found, fine = coarse_units(words, tokens, images, np.zeros(len(tokens)))
    sentences = of_kind(found, "sentence")
    assert sentences[0].positions == tuple(range(80))
    assert fine.sum() == 101


def test_what_is_finer_than_a_region_are_its_quarters_and_than_a_sentence_its_words():
    tokens, images, singles = table((), [(12, 12)])
    region = units._region_unit(Rectangle(0, 2, 4, 3, 6), tokens, "region")
    parts = finer_units(region, singles, tokens)
    assert sorted(position for part in parts for position in part.positions) == sorted(region.positions)
    assert {part.kind for part in parts} == {"region"}
    assert len(parts) == 4
    assert finer_units(units._region_unit(Rectangle(0, 2, 2, 3, 3), tokens, "region"), singles, tokens) == []
    block = units._region_unit(Rectangle(0, 0, 3, 0, 3), tokens, "block")
    assert finer_units(block, singles, tokens) == []
    tokens, images, singles = table(["a", " b", " c.", "<|x|>"] * 40)
    found, _ = coarse_units(singles, tokens, images, np.zeros(len(tokens)))
    sentence = of_kind(found, "sentence")[1]
    assert [unit.positions for unit in finer_units(sentence, found, tokens)] == [(4,), (5,), (6,)]
    assert finer_units(singles[0], found, tokens) == []


# --- from coarse to fine ------------------------------------------------------------------------------------------------------


class MadeUp:
    """Hides sets of positions whose effects add; keeps what it was asked, and what that cost."""

    def __init__(self, effects):
        self.effects, self.n, self.forwards, self.asked = effects, len(effects), 0.0, []

    def cost(self, first):
        return 1 - first / self.n

    def measure(self, sets):
        self.asked += [tuple(one) for one in sets]
        self.forwards += sum(self.cost(one[0]) for one in sets)
        change = np.array([self.effects[list(one)].sum() for one in sets], dtype=np.float32)
        return SimpleNamespace(
            logprob_change=change,
            kl_divergence=np.abs(change) / 2,
            top1=np.arange(len(sets)),
            differs=np.where(change < -1, 0, -1),
            probability=0.25,
        )


def region_of(tokens, *place):
    return units._region_unit(Rectangle(0, *place), tokens, "region")


def test_what_was_measured_stands_in_columns_and_the_rest_is_left_open():
    _, _, singles = table(["a", "b", "c"])
    hiding = MadeUp(np.array([-2.0, 0.5, -0.25]))
    found = Measured(singles, hiding)
    found.hide([2, 0])
    assert hiding.asked == [(2,), (0,)]
    assert found.column(0, np.nan, np.float32)[[0, 2]].tolist() == [-2.0, -0.25]
    assert np.isnan(found.column(0, np.nan, np.float32)[1])
    assert found.column(2, -1, np.int64).tolist() == [1, -1, 0]
    assert found.column(3, 0, bool).tolist() == [True, False, False]
    assert found.probability == 0.25


def test_a_region_is_followed_down_to_the_cell_that_has_nearly_all_of_it():
    tokens, _, singles = table((), [(8, 8)])
    cells = np.zeros(64)
    cells[8 * 5 + 2] = -3.0
    cells[0] = -0.2
    start = region_of(tokens, 0, 7, 0, 7)
    found = Measured([*singles, start], MadeUp(cells))
    found.hide([64])
    found.refine(cells, tokens, 100.0)
    last = found.hiding.asked[-1]
    assert last == (42,)
    assert [len(one) for one in found.hiding.asked] == [64, 16, 4, 1]
    assert found.effects[42][0] == -3.0  # under the number of the unit that the cell was before
    assert len(found.units) == 64 + 1 + 2  # the quarters that are no units before
    assert len({unit.positions for unit in found.units}) == len(found.units)


def test_the_part_that_is_estimated_strongest_is_measured_and_no_further_where_it_has_little():
    tokens, _, singles = table((), [(8, 8)])
    cells = np.zeros(64)
    cells[[0, 7, 56, 63]] = -1.0  # one in each quarter
    estimate = np.zeros(64)
    estimate[63] = -5.0
    found = Measured([*singles, region_of(tokens, 0, 7, 0, 7)], MadeUp(cells))
    found.hide([64])
    found.refine(estimate, tokens, 100.0)
    assert [one[0] for one in found.hiding.asked[1:]] == [36]  # the last quarter; it has a fourth of it
    assert len(found.hiding.asked) == 2


def test_what_speaks_against_the_answer_is_not_looked_into():
    tokens, _, singles = table((), [(8, 8)])
    found = Measured([*singles, region_of(tokens, 0, 3, 0, 3)], MadeUp(np.full(64, 0.5)))
    found.hide([64])
    found.refine(np.zeros(64), tokens, 100.0)
    assert len(found.hiding.asked) == 1


def test_the_strongest_comes_first_and_others_after_it():
    tokens, _, singles = table((), [(8, 8)])
    cells = np.zeros(64)
    cells[0], cells[63] = -1.0, -2.0
    found = Measured([*singles, region_of(tokens, 0, 1, 0, 1), region_of(tokens, 6, 7, 6, 7)], MadeUp(cells))
    found.hide([64, 65])
    found.refine(cells, tokens, 100.0)
    assert found.hiding.asked[2:] == [(63,), (0,)]


@pytest.mark.parametrize("limit", [0.0, 1.5, 2.0, 2.4, 3.0])
def test_the_limit_of_forward_passes_is_kept(limit):
    tokens, _, singles = table((), [(8, 8)])
    cells = np.zeros(64)
    cells[42] = -3.0
    found = Measured([*singles, region_of(tokens, 0, 7, 0, 7)], MadeUp(cells))
    found.hide([64])
    spent = found.hiding.forwards
    found.refine(cells, tokens, limit)
    assert found.hiding.forwards <= max(limit, spent)


def test_three_words_of_the_strongest_sentence_are_measured():
    words = ["a", "b", "c", "d", "e."] * 21
    tokens, images, singles = table(words)
    effects = np.zeros(len(words))
    effects[5:10] = [-1.0, -0.1, -2.0, 0.0, -3.0]
    found, _ = coarse_units(singles, tokens, images, effects)
    sentences = [at for at, unit in enumerate(found) if unit.kind == "sentence"]
    seen = Measured(found, MadeUp(effects))
    seen.hide(sentences[:2])
    seen.refine(effects, tokens, 100.0)
    assert seen.hiding.asked[2:] == [(9,), (7,), (5,)]
    assert len(seen.units) == len(found)  # words are units already


def test_an_estimate_that_points_elsewhere_leads_elsewhere():
    """So that the tests above could fail."""
    tokens, _, singles = table((), [(8, 8)])
    cells, elsewhere = np.zeros(64), np.zeros(64)
    cells[42] = elsewhere[0] = -3.0
    found = Measured([*singles, region_of(tokens, 0, 7, 0, 7)], MadeUp(cells))
    found.hide([64])
    found.refine(elsewhere, tokens, 100.0)
    assert [one[0] for one in found.hiding.asked] == [0, 0]
