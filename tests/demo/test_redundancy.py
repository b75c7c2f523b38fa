"""Two equal figures, either of which is enough: hiding one alone finds neither, and evidence finds both."""

import random

import pytest

import mask_impact
from mask_impact.analyses import explain
from mask_impact.analyses.settings import RunSettings
from mask_impact.demo.pictures import COLORS, SHAPES, Figure, Scene, color_question
from mask_impact.prompts.images import read_picture


@pytest.fixture(scope="module")
def demo():
    return mask_impact.load("demo", kind="vl")


def picture(rng):
    """(image, question, answer, the two cells): two figures of one shape and colour, and one of another."""
    (shape, other), (color, second) = rng.sample(SHAPES, 2), rng.sample(sorted(COLORS), 2)
    cells = rng.sample([(row, column) for row in range(4) for column in range(4)], 3)
    figures = [Figure(cells[0], shape, color), Figure(cells[1], shape, color), Figure(cells[2], other, second)]
    image = Scene(tuple(sorted(figures, key=lambda figure: figure.cell))).image()
    return image, color_question(shape), color, [f"image 0 [{row}, {column}]" for row, column in cells[:2]]


def looked_at(demo, n, seed, budget):
    """Of n pictures that are answered right: how many have a single figure that decides, both in the necessary set and no other,
    and one of both as sufficient."""
    rng = random.Random(seed)
    single = both = one = answered = 0
    while answered < n:
        image, question, color, names = picture(rng)
        settings = RunSettings(num_tokens=1, budget=budget, groups="words")
        (target,) = explain.run(demo, question, settings, [read_picture(image)]).targets
        if target.text != color:
            continue
        answered += 1
        places = {target.names.index(name) for name in names}
        single += any(target.differs[place] for place in places)
        found = next(found for found in target.evidence if found.kind == "image")
        both += found.necessary is not None and set(found.necessary.places) == places and found.necessary.confirmed
        one += found.sufficient is not None and set(found.sufficient.places) < places and found.sufficient.confirmed
    return single, both, one


def test_hiding_one_of_two_equal_figures_changes_nothing_and_evidence_names_both(demo):
    single, both, one = looked_at(demo, n=4, seed=1, budget=60)
    assert single == 0
    assert both >= 3
    assert one >= 3


@pytest.mark.slow
def test_on_more_pictures_and_within_the_usual_budget(demo):
    single, both, one = looked_at(demo, n=30, seed=2, budget=12)
    assert single <= 2
    assert both >= 21
    assert one >= 21
