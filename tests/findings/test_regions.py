"""Regions of a map of contributions: on maps whose regions are known, and against plain loops."""

import numpy as np
import pytest

from mask_impact.findings import regions
from mask_impact.findings.regions import Rectangle, blocks, grown, parts


def overlap(one, cells):
    own = set(one.cells())
    return len(own & cells) / len(own | cells)


def planted(rng, shape, noise):
    """A map of 32 x 32 with one figure that carries 5 nats, and the figure's cells."""
    values = rng.normal(size=(32, 32)) * noise
    (height, width) = shape
    row, column = rng.integers(0, 33 - height), rng.integers(0, 33 - width)
    figure = (slice(row, row + height), slice(column, column + width))
    values[figure] -= rng.uniform(0.5, 1.5, shape) * 5 / (height * width)
    return values, {(r, c) for r in range(row, row + height) for c in range(column, column + width)}


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (6, 7), (1, 6), (12, 9)])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_figure_of_any_shape_is_found_whole(shape, noise):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(30):
        values, cells = planted(rng, shape, noise)
        found.append(overlap(grown(values, 0, 3)[0], cells))
    assert np.mean(found) > 0.97


def test_two_figures_are_two_regions_and_none_overlaps():
    values = np.zeros((20, 20))
    values[2:4, 2:5], values[12:17, 9:12] = -0.5, -0.4
    first, second = grown(values, 3, 5)
    assert (first.spec, second.spec) == ("image 3 rows 12-16 columns 9-11", "image 3 rows 2-3 columns 2-4")
    assert not set(first.cells()) & set(second.cells())


def test_regions_are_disjoint_and_strongest_first_in_noise():
    rng = np.random.default_rng(2)
    for _ in range(20):
        values = rng.normal(size=(15, 23))
        found = grown(values, 0, 8)
        cells = [cell for one in found for cell in one.cells()]
        assert len(cells) == len(set(cells))
        sums = [-sum(values[cell] for cell in one.cells()) for one in found]
        assert sums == sorted(sums, reverse=True)


def test_what_speaks_against_the_answer_is_no_region():
    assert grown(np.ones((6, 6)), 0, 4) == []
    assert grown(np.zeros((6, 6)), 0, 4) == []
    assert [one.n_cells for one in grown(np.array([[1.0, -2.0]]), 0, 4)] == [1]


def test_the_strongest_block_is_that_of_plain_loops():
    rng = np.random.default_rng(3)
    for rows, columns in ((4, 4), (9, 6), (3, 11), (1, 5)):
        values = rng.normal(size=(rows, columns))
        height, width = min(4, rows), min(4, columns)
        sums = {
            (r, c): values[r : r + height, c : c + width].sum()
            for r in range(rows - height + 1)
            for c in range(columns - width + 1)
        }
        row, column = max(sums, key=sums.get)
        assert regions._strongest_block(values) == [row, row + height - 1, column, column + width - 1]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (2, 5, 1, 7), (0, 0, 3, 8), (4, 6, 2, 2)])
def test_parts_make_up_the_whole(place):
    whole = Rectangle(0, *place)
    found = parts(whole)
    cells = [cell for one in found for cell in one.cells()]
    assert sorted(cells) == ([] if whole.n_cells == 1 else sorted(whole.cells()))
    assert len(found) in (0, 2, 4)


def test_blocks_make_up_the_grid():
    found = blocks(0, (9, 14))
    assert sorted(cell for one in found for cell in one.cells()) == [(r, c) for r in range(9) for c in range(14)]
    assert {one.n_cells for one in found} == {16, 4, 8, 2}


def test_regions_of_positive_parts_alone_would_run_away(monkeypatch):
    """Why both signs are added: noise would hold every strip together."""
    rng = np.random.default_rng(4)
    values, cells = planted(rng, (2, 2), 0.05)
    assert overlap(grown(values, 0, 1)[0], cells) > 0.5
    assert overlap(grown(np.minimum(values, 0), 0, 3)[0], cells) < 0.5
