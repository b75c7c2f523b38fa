"""The truth of pictures whose answer no cell gives alone is true, and the bundled checkpoint knows them."""

import random
from dataclasses import replace

import pytest
from PIL import ImageChops, ImageStat

from mask_impact.demo import wholes
from mask_impact.demo.pictures import CELL_PIXELS, Figure, Scene

SEED = 2024


def box_of(cell):
    row, column = cell
    return CELL_PIXELS * column, CELL_PIXELS * row, CELL_PIXELS * (column + 1), CELL_PIXELS * (row + 1)


def apart(scene, other, cell):
    """By how many levels of grey a cell of two scenes differs, mean over its pixels."""
    difference = ImageChops.difference(scene.image(), other.image()).crop(box_of(cell))
    return sum(ImageStat.Stat(difference).mean) / 3


@pytest.mark.parametrize("task", wholes.WHOLE_TASKS)
def test_samples_are_on_their_side_and_come_again_with_the_seed(task):
    held_out, training = (wholes.whole_samples(task, 30, SEED, held_out=side) for side in (True, False))
    assert all(sample.held_out for sample in held_out)
    assert not any(sample.held_out for sample in training)
    assert held_out == wholes.whole_samples(task, 30, SEED)
    assert held_out != wholes.whole_samples(task, 30, SEED + 1)


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="'color': expected one of large, larger, equal"):
        wholes.whole_samples("color", 1)


# -- large ------------------------------------------------------------------------------------------------------------


def test_a_large_figure_fills_parts_of_its_four_cells_and_nothing_else():
    for sample in wholes.whole_samples("large", 40, SEED):
        scene = sample.scene
        difference = ImageChops.difference(scene.image(), scene.scene.image())
        (top, left), *_, (bottom, right) = sample.cells
        outer = (*box_of((top, left))[:2], *box_of((bottom, right))[2:])
        x0, y0, x1, y1 = difference.getbbox()
        assert outer[0] <= x0 < x1 <= outer[2]
        assert outer[1] <= y0 < y1 <= outer[3]
        assert all(difference.crop(box_of(cell)).getbbox() for cell in sample.cells)


def test_no_cell_of_a_large_figure_tells_its_shape():
    """Of each cell there is another shape that looks the same there, but for edges of less than a pixel where the figure stands
    aside; and each other shape looks different in one of the four."""
    for sample in wholes.whole_samples("large", 20, SEED):
        others = [sample.scene.reshaped(shape) for shape in wholes.ROUND_CORNERS if shape != sample.answer]
        table = [[apart(sample.scene, other, cell) for cell in sample.cells] for other in others]
        assert all(min(of_cell) < 0.5 for of_cell in zip(*table, strict=True))
        assert all(max(of_shape) > 2 for of_shape in table)


def test_a_shape_of_its_own_corners_would_be_told_by_one_cell(monkeypatch):
    """So that the test above could fail."""
    monkeypatch.setattr(wholes, "ROUND_CORNERS", {"circle": (True,) * 4, "square": (False,) * 4})
    scene = wholes.random_large_scene(random.Random(SEED), held_out=True)
    other = scene.reshaped("circle" if scene.large.shape == "square" else "square")
    assert all(apart(scene, other, cell) > 2 for cell in scene.large.cells)


def test_the_answer_about_a_large_figure_is_its_shape():
    for sample in wholes.whole_samples("large", 20, SEED):
        assert sample.answer == sample.scene.large.shape
        assert sample.scene.reshaped("leaf").answer(sample.question) == ("leaf", sample.cells)
        assert sample.scene.answer(wholes.LARGE_COLOR_QUESTION)[0] == sample.scene.large.color
        assert sample.scene.answer("What color is the star?") is None


def test_a_large_figure_stays_inside_and_covers_no_other():
    large = wholes.LargeFigure((2, 2), "arch", "red")
    assert wholes.LargeScene(Scene(()), large).large.cells == ((2, 2), (2, 3), (3, 2), (3, 3))
    with pytest.raises(ValueError, match="not wholly inside"):
        wholes.LargeScene(Scene(()), replace(large, cell=(3, 2)))
    with pytest.raises(ValueError, match=r"covers the figures in cells \[\(3, 3\)\]"):
        wholes.LargeScene(Scene((Figure((3, 3), "star", "blue"),)), large)


# -- larger -----------------------------------------------------------------------------------------------------------


def painted(scene, figure):
    """How many pixels a figure has."""
    difference = ImageChops.difference(scene.image(), scene.without(figure.cell).image()).convert("L")
    return sum(difference.histogram()[1:])


def test_the_larger_shape_has_more_pixels_and_both_cells_are_needed():
    for sample in wholes.whole_samples("larger", 40, SEED):
        sizes = {figure.shape: painted(sample.scene, figure) for figure in sample.scene.figures}
        (other,) = set(sizes) - {sample.answer}
        assert sizes[sample.answer] > sizes[other]
        assert set(sample.cells) == {figure.cell for figure in sample.scene.figures}
        assert all(wholes.larger(sample.scene.without(cell)) is None for cell in sample.cells)
        radii = [figure.radius for figure in sample.scene.figures]
        turned = zip(sample.scene.figures, reversed(radii), strict=True)
        scene = replace(sample.scene, figures=tuple(replace(figure, radius=radius) for figure, radius in turned))
        assert wholes.larger(scene)[0] == other


def test_figures_of_about_one_size_have_no_larger_one():
    scene = Scene((Figure((0, 0), "star", "red", 11), Figure((0, 1), "cross", "blue", 12)))
    assert wholes.larger(scene) is None


# -- equal ------------------------------------------------------------------------------------------------------------


def test_either_of_two_equal_figures_gives_the_answer_and_no_other_does():
    for sample in wholes.whole_samples("equal", 40, SEED):
        assert len(sample.cells) == 2
        for cell in sample.cells:
            (other,) = set(sample.cells) - {cell}
            assert sample.scene.without(cell).answer(sample.question) == (sample.answer, (other,))
        neither = sample.scene.without(sample.cells[0]).without(sample.cells[1])
        assert neither.answer(sample.question) is None
        (third,) = neither.figures
        assert sample.answer != third.color
