"""Regions of an image: neighbouring cells that together carry much of an answer, found coarse to fine.

A real picture has hundreds of cells, and one among a thousand carries little. The block of 4 x 4 cells that carries most,
wherever it begins, is the start. It is cut to size, one side's strip after the other: a strip goes while a cell of it carries
less than SHARE of what one of the rectangle carries on average, and comes in while it carries at least that. Contributions of
both signs are added, so that noise takes itself away. Regions do not overlap.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 4
SHARE = 0.3


@dataclass(frozen=True)
class Rectangle:
    """Cells of one image; rows and columns inclusive, from 0."""

    image: int
    first_row: int
    last_row: int
    first_column: int
    last_column: int

    @property
    def n_cells(self) -> int:
        """How many cells it has."""
        return (self.last_row - self.first_row + 1) * (self.last_column - self.first_column + 1)

    @property
    def spec(self) -> str:
        """What it is called, as `prompts.groups` reads it."""
        rows, columns = _span(self.first_row, self.last_row), _span(self.first_column, self.last_column)
        return f"image {self.image} rows {rows} columns {columns}"

    def cells(self) -> Iterator[tuple[int, int]]:
        """(row, column) of each cell, in reading order."""
        for row in range(self.first_row, self.last_row + 1):
            for column in range(self.first_column, self.last_column + 1):
                yield row, column


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def grown(contribution: np.ndarray, image: int, n: int) -> list[Rectangle]:
    """The n regions that speak most for the answer, strongest first, disjoint; fewer where nothing else does.

    contribution: float [rows, columns], nats, negative: the cell speaks for the answer.
    """
    carried = -contribution.astype(float)
    free = np.ones(carried.shape, dtype=bool)
    found = []
    while len(found) < n and (carried * free > 0).any():
        place = _cut_to_size(carried, free, _strongest_block(carried * free))
        rows, columns = slice(place[0], place[1] + 1), slice(place[2], place[3] + 1)
        free[rows, columns] = False
        found.append((carried[rows, columns].sum(), Rectangle(image, *place)))
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def _strongest_block(carried: np.ndarray) -> list[int]:
    """[first row, last row, first column, last column] of the block that carries most; of equal ones the first."""
    height, width = (min(BLOCK, side) for side in carried.shape)
    table = np.pad(carried.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return [int(row), int(row) + height - 1, int(column), int(column) + width - 1]


def _cut_to_size(carried: np.ndarray, free: np.ndarray, place: list[int]) -> list[int]:
    """The rectangle without strips that carry little, and with those beside it that carry as much; of cells that are free."""
    while weak := _weakest_side(carried, place):
        place = weak
    peak = np.zeros_like(free)
    peak[place[0] : place[1] + 1, place[2] : place[3] + 1] = True
    if not free[peak].all():  # the block overlaps another region: its strongest free cell alone
        row, column = np.unravel_index(int((carried * free * peak).argmax()), carried.shape)
        place = [int(row), int(row), int(column), int(column)]
    while wider := _next_strip(carried, free, place):
        place = wider
    return place


def _strip(place: list[int], side: int, outside: bool) -> tuple[slice, slice]:
    """The cells of a side's outermost strip, or of the one beside it. side: 0 top, 1 bottom, 2 left, 3 right."""
    at = place[side] + (0 if not outside else (1 if side % 2 else -1))
    line = slice(at, at + 1)
    rows, columns = slice(place[0], place[1] + 1), slice(place[2], place[3] + 1)
    return (line, columns) if side < 2 else (rows, line)


def _mean_per_cell(carried: np.ndarray, place: list[int]) -> float:
    return float(carried[place[0] : place[1] + 1, place[2] : place[3] + 1].mean())


def _weakest_side(carried: np.ndarray, place: list[int]) -> list[int] | None:
    """The rectangle without its weakest strip, where that carries too little; None where none does."""
    enough = SHARE * _mean_per_cell(carried, place)
    sides = [side for side in range(4) if place[side // 2 * 2] < place[side // 2 * 2 + 1]]
    weak = min(((carried[_strip(place, side, False)].mean(), side) for side in sides), default=(enough, 0))
    if weak[0] >= enough:
        return None
    return [edge + (1 if side % 2 == 0 else -1) * (side == weak[1]) for side, edge in enumerate(place)]


def _next_strip(carried: np.ndarray, free: np.ndarray, place: list[int]) -> list[int] | None:
    """The rectangle with the strongest strip beside it, where that is free and carries enough; None where none does."""
    enough = SHARE * _mean_per_cell(carried, place)
    limits = (0, carried.shape[0] - 1, 0, carried.shape[1] - 1)
    strips = []
    for side in range(4):
        if place[side] != limits[side] and free[_strip(place, side, True)].all():
            strips.append((float(carried[_strip(place, side, True)].mean()), -side))
    best = max(strips, default=(0.0, 0))
    if not strips or best[0] < enough or best[0] <= 0:
        return None
    return [edge + (-1 if side % 2 == 0 else 1) * (side == -best[1]) for side, edge in enumerate(place)]


def parts(one: Rectangle) -> list[Rectangle]:
    """The quarters of a rectangle, or its halves where it is one row or column; none of a single cell."""
    rows, columns = _halves(one.first_row, one.last_row), _halves(one.first_column, one.last_column)
    if len(rows) == len(columns) == 1:
        return []
    return [Rectangle(one.image, *row, *column) for row in rows for column in columns]


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(first, last)] if first == last else [(first, middle), (middle + 1, last)]


def blocks(image: int, grid: tuple[int, int], size: int = BLOCK) -> list[Rectangle]:
    """The whole grid (rows, columns) in blocks, the last ones smaller."""
    rows, columns = grid
    return [
        Rectangle(image, row, min(row + size, rows) - 1, column, min(column + size, columns) - 1)
        for row in range(0, rows, size)
        for column in range(0, columns, size)
    ]
