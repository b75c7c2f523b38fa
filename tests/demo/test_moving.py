"""The truth of the demo's videos is true."""

from dataclasses import replace

import pytest
from PIL import ImageChops

from mask_impact.demo import moving
from mask_impact.demo.pictures import Figure, Scene

SEED = 2024
TASKS = (*moving.MOVING_TASKS, *moving.UNTRAINED_MOVING_TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_on_their_side_and_come_again_with_the_seed(task):
    held_out, training = (moving.moving_samples(task, 30, SEED, held_out=side) for side in (True, False))
    assert all(sample.held_out for sample in held_out)
    assert not any(sample.held_out for sample in training)
    assert held_out == moving.moving_samples(task, 30, SEED)
    assert held_out != moving.moving_samples(task, 30, SEED + 1)


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="'color': expected one of appears, first, moves"):
        moving.moving_samples("color", 1)


@pytest.mark.parametrize("task", TASKS)
def test_films_have_four_to_eight_frames_of_which_a_pair_shows_one_scene(task):
    lengths = set()
    for sample in moving.moving_samples(task, 60, SEED):
        frames = sample.film.frames()
        lengths.add(len(frames))
        for number in range(0, len(frames) - 1, 2):
            assert ImageChops.difference(frames[number], frames[number + 1]).getbbox() is None
        assert {frame.size for frame in frames} == {(32 * sample.film.grid[1], 32 * sample.film.grid[0])}
    assert lengths == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("task", TASKS)
def test_the_places_show_the_figure_and_without_them_there_is_no_answer(task):
    for sample in moving.moving_samples(task, 60, SEED):
        gone = sample.film.without(sample.places)
        if task != "first":  # there the other figure is first then, and nothing says that it comes
            assert gone.answer(sample.question) is None
        for pair, row, column in sample.places:
            before, after = sample.film.scenes[pair].image(), gone.scenes[pair].image()
            box = ImageChops.difference(before, after).getbbox()
            assert 32 * column <= box[0] < box[2] <= 32 * (column + 1)
            assert 32 * row <= box[1] < box[3] <= 32 * (row + 1)
        untouched = [one for one in range(len(gone.scenes)) if one not in {pair for pair, *_ in sample.places}]
        assert all(gone.scenes[one] == sample.film.scenes[one] for one in untouched)


def test_what_appears_is_not_there_at_the_start_and_is_at_the_end():
    for sample in moving.moving_samples("appears", 60, SEED):
        first, last = ({one.shape for one in sample.film.scenes[at].figures} for at in (0, -1))
        assert last - first == {sample.answer}
        assert first
        assert sample.places[-1][0] == len(sample.film.scenes) - 1


def test_the_first_color_is_alone_before_the_other_comes():
    for sample in moving.moving_samples("first", 60, SEED):
        for pair, *cell in sample.places:
            (one,) = sample.film.scenes[pair].figures
            assert (one.color, list(one.cell)) == (sample.answer, cell)
        later = sample.film.scenes[sample.places[-1][0] + 1]
        assert len({one.color for one in later.figures}) == 2


def test_the_same_frames_backwards_give_the_other_answer():
    turned = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for sample in moving.moving_samples("moves", 60, SEED):
        film = replace(sample.film, scenes=sample.film.scenes[::-1])
        assert film.answer(sample.question)[0] == turned[sample.answer]
    for sample in moving.moving_samples("appears", 60, SEED):
        assert replace(sample.film, scenes=sample.film.scenes[::-1]).answer(sample.question) is None


@pytest.mark.parametrize(("cell", "word"), [((0, 1), "right"), ((1, 0), "down"), ((1, 1), None), ((0, 0), None)])
def test_a_move_is_to_a_neighbouring_cell(cell, word):
    scenes = [Scene((Figure(one, "star", "red"),), grid=(2, 2)) for one in ((0, 0), cell)]
    found = moving.Film(tuple(scenes)).answer(moving.moves_question("star"))
    assert found == (word and (word, ((0, 0, 0), (1, *cell))))


def test_a_film_without_one_answer_gives_none():
    figures = Figure((0, 0), "star", "red"), Figure((0, 1), "cross", "blue"), Figure((1, 0), "circle", "green")
    empty, one, two, three = (Scene(figures[:n], grid=(2, 2)) for n in range(4))
    assert moving.Film((one, three)).answer(moving.APPEARS_QUESTION) is None
    assert moving.Film((empty, one)).answer(moving.APPEARS_QUESTION) is None
    assert moving.Film((empty, two)).answer(moving.FIRST_QUESTION) is None
    assert moving.Film((empty, one)).answer(moving.FIRST_QUESTION) is None
    assert moving.Film((one, two)).answer(moving.FIRST_QUESTION) == ("red", ((0, 0, 0),))
    assert moving.Film((one, one)).answer("What is this?") is None
    with pytest.raises(ValueError, match="of one grid"):
        moving.Film((one, replace(one, grid=(2, 3))))


STAR, CROSS = Figure((0, 0), "star", "red"), Figure((0, 1), "cross", "blue")
NONE, ONE, BOTH = (Scene(figures, grid=(2, 2)) for figures in ((), (STAR,), (STAR, CROSS)))


@pytest.mark.parametrize(
    ("question", "scenes", "needed"),
    [
        (moving.APPEARS_QUESTION, (ONE, BOTH), (0, 1)),
        (moving.APPEARS_QUESTION, (ONE, BOTH, BOTH), (0,)),
        (moving.APPEARS_QUESTION, (ONE, ONE, BOTH), (2,)),
        (moving.APPEARS_QUESTION, (ONE, ONE, BOTH, BOTH), ()),
        (moving.FIRST_QUESTION, (ONE, BOTH), (0,)),
        (moving.FIRST_QUESTION, (NONE, ONE, BOTH), (1,)),
        (moving.FIRST_QUESTION, (ONE, ONE, BOTH), ()),
    ],
)
def test_a_pair_is_needed_where_the_others_do_not_give_the_answer(question, scenes, needed):
    assert moving.Film(scenes).needed_pairs(question) == needed


def test_no_pair_is_needed_for_a_question_without_an_answer():
    with pytest.raises(ValueError, match="no answer"):
        moving.Film((NONE, BOTH)).needed_pairs(moving.FIRST_QUESTION)
