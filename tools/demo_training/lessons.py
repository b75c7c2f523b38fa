"""Training sequences of the last stages: whole figures, comparisons, equal figures, videos and easy-VQA.

A large figure's cells are partly hidden from the decoder in half of the sequences: what it sees of them has to tell the whole,
so that the vision tower goes on carrying it between patches.
"""

from __future__ import annotations

import random

from mask_impact.demo import moving, pictures, wholes

from . import easy
from .sequences import Sequence, chat, film_chat, picture_text

FPS = (2.0, 2.0, 2.0, 1.0, 4.0, 8.0)  # of films; the program's own is 2
HIDDEN_SHARE = 0.5
MORE_SHARE = 0.2  # of the sequences with a second question
MANY = 2  # as many times more of the sequences that have one question
MANY_EASY = 3  # these pictures have four tokens
SHORT_SHARE = 0.5  # of the quizzes, whose questions are words alone
LARGE_GRIDS = ((2, 2), (3, 3), (3, 4), (4, 4), (4, 4))


def large_sequence(rng: random.Random, grid: tuple[int, int]) -> Sequence:
    """The large figure's shape, and sometimes a question about the rest."""
    scene = wholes.random_large_scene(rng, held_out=False, grid=grid)
    turns = [(wholes.LARGE_QUESTION, scene.large.shape)]
    if rng.random() < MORE_SHARE:
        questions = [question for task in ("color", "shape") for question in scene.scene.questions(task)]
        questions = [question for question in questions if scene.large.shape not in question]  # which of the two?
        others = [(question, scene.scene.answer(question)[0]) for question in questions]
        turns.append(rng.choice([*others, (wholes.LARGE_COLOR_QUESTION, scene.large.color)]))
        rng.shuffle(turns)
    hidden = rng.sample(scene.large.cells, rng.randint(2, 3)) if rng.random() < HIDDEN_SHARE else ()
    return chat(turns, scene, hidden=tuple(hidden))


def larger_sequence(rng: random.Random) -> Sequence:
    """Which of two figures is larger."""
    scene = wholes.random_unequal_scene(rng, held_out=False)
    return chat([(wholes.LARGER_QUESTION, wholes.larger(scene)[0])], scene)


def equal_sequence(rng: random.Random) -> Sequence:
    """The color and the shape of two equal figures, and the third one's."""
    scene, figure = wholes.random_equal_scene(rng, held_out=False)
    other = next(one for one in scene.figures if one.shape != figure.shape)
    turns = [
        (pictures.color_question(figure.shape), figure.color),
        (pictures.shape_question(figure.color), figure.shape),
        (pictures.color_question(other.shape), other.color),
    ]
    rng.shuffle(turns)
    return chat(turns, scene)


def film_sequence(rng: random.Random, task: str, n_pairs: int) -> Sequence:
    """The question of `task` about a film of `n_pairs` pairs of frames, and sometimes another that it answers."""
    sample = moving.random_film(rng, task, held_out=False, n_pairs=n_pairs)
    turns = [(sample.question, sample.answer)]
    if rng.random() < MORE_SHARE:
        (other,) = {moving.APPEARS_QUESTION, moving.FIRST_QUESTION} - {sample.question}
        found = sample.film.answer(other)
        turns += [(other, found[0])] if found else []
    return film_chat(turns, sample.film, rng.choice(FPS))


def easy_sequence(rng: random.Random) -> Sequence:
    """A question of easy-VQA about one of its pictures."""
    shown = easy.random_shown(rng)
    return chat([easy.question_about(shown, rng)], shown)


def easy_quiz_sequence(rng: random.Random, short: bool) -> Sequence:
    """A picture of easy-VQA and several questions for yes or no, with nothing between. Comparing what is asked with what is shown
    is learned here, where every third token needs it, and then asked in a chat."""
    shown = easy.random_shown(rng)
    pieces = [(picture_text(shown), False)]
    for question, answer in easy.quiz_about(shown, rng, short):
        pieces += [(question, False), (answer, True)]
    return Sequence(tuple(pieces), shown.image())


LESSONS = ("large", "larger", "equal", "easy", "easy_quiz", *moving.MOVING_TASKS)


def lesson(kind: str, rng: random.Random, n: int) -> list[Sequence]:
    """`n` sequences of one of LESSONS, all of about one length; more where they are short."""
    if kind in moving.MOVING_TASKS:
        n_pairs = rng.choices(moving.N_PAIRS, (4, 2, 2))[0]
        return [film_sequence(rng, kind, n_pairs) for _ in range(n * MANY)]
    if kind == "large":
        grid = rng.choice(LARGE_GRIDS)
        return [large_sequence(rng, grid) for _ in range(n * MANY)]
    if kind == "larger":
        return [larger_sequence(rng) for _ in range(n * MANY)]
    if kind == "easy":
        return [easy_sequence(rng) for _ in range(n * MANY_EASY)]
    if kind == "easy_quiz":
        short = rng.random() < SHORT_SHARE
        return [easy_quiz_sequence(rng, short) for _ in range(n * MANY_EASY)]
    return [equal_sequence(rng) for _ in range(n)]
