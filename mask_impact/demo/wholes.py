"""Pictures whose answer no cell gives alone: a large figure over 2x2 cells, two figures of different sizes, two equal ones.

A large figure is told by its four corners, each round or square and in a cell of its own. Whatever one of them is, two or three
of the shapes have it so, and their cells look the same (but for edges of less than a pixel where it stands aside). Cells and
the split are those of `pictures`. Knows pictures and words, not models.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw

from mask_impact.demo.held_out import Cell, is_held_out
from mask_impact.demo.pictures import (
    CELL_PIXELS,
    COLORS,
    SHAPES,
    Figure,
    ImageSample,
    Scene,
    ask_scene,
    color_question,
    random_scene,
)

ROUND_CORNERS = {  # of a large figure: upper left, upper right, lower left, lower right
    "circle": (True, True, True, True),
    "square": (False, False, False, False),
    "arch": (True, True, False, False),
    "bowl": (False, False, True, True),
    "leaf": (False, True, True, False),
}
WHOLE_TASKS = ("large", "larger", "equal")
LARGE_QUESTION = "What is the large shape?"
LARGE_COLOR_QUESTION = "What color is the large shape?"
LARGER_QUESTION = "Which shape is larger?"
SMALL, BIG = (5, 7), (11, 13)  # radii of two figures that are compared, in pixels
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True)
class LargeFigure:
    """A coloured figure over the four cells whose upper left one is `cell`. radius, dx and dy (offset of the centre from where
    the four meet) in pixels."""

    cell: Cell
    shape: str
    color: str
    radius: int = 24
    dx: int = 0
    dy: int = 0

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The four, in reading order."""
        row, column = self.cell
        return tuple((row + down, column + right) for down, right in _CORNERS)


@dataclass(frozen=True)
class LargeScene:
    """A large figure before a scene whose own figures stand in other cells."""

    scene: Scene
    large: LargeFigure

    def __post_init__(self):
        rows, columns = self.grid
        row, column = self.large.cell
        if not (0 <= row < rows - 1 and 0 <= column < columns - 1):
            raise ValueError(f"a large figure at cell ({row}, {column}) is not wholly inside the grid {self.grid}")
        if covered := set(self.large.cells) & {figure.cell for figure in self.scene.figures}:
            raise ValueError(f"the large figure covers the figures in cells {sorted(covered)}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.scene.grid

    @property
    def held_out(self) -> bool:
        """Which side of the split it is on."""
        return is_held_out(repr(self))

    def image(self) -> Image.Image:
        """The picture, RGB, 32 * columns wide and 32 * rows high."""
        picture = self.scene.image()
        row, column = self.large.cell
        mask = _large_mask(self.large.shape, self.large.radius, self.large.dx, self.large.dy)
        picture.paste(COLORS[self.large.color], (CELL_PIXELS * column, CELL_PIXELS * row), mask)
        return picture

    def reshaped(self, shape: str) -> LargeScene:
        """The scene with the large figure in another shape."""
        return replace(self, large=replace(self.large, shape=shape))

    def answer(self, question: str) -> tuple[str, tuple[Cell, ...]] | None:
        """The true answer and the cells that carry it; None for a question about something else."""
        answers = {LARGE_QUESTION: self.large.shape, LARGE_COLOR_QUESTION: self.large.color}
        return (answers[question], self.large.cells) if question in answers else None


@lru_cache(maxsize=4096)
def _large_mask(shape: str, radius: int, dx: int, dy: int) -> Image.Image:
    """Coverage (mode "L", 2x2 cells in size), drawn four times larger and scaled down for smooth edges."""
    if shape not in ROUND_CORNERS:
        raise ValueError(f"unknown large shape {shape!r}: expected one of {', '.join(ROUND_CORNERS)}")
    scale = 4
    mask = Image.new("L", (2 * CELL_PIXELS * scale,) * 2, 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = (CELL_PIXELS + dx) * scale, (CELL_PIXELS + dy) * scale, radius * scale
    draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    for (down, right), is_round in zip(_CORNERS, ROUND_CORNERS[shape], strict=True):
        if not is_round:
            left, top = x - r + right * r, y - r + down * r
            draw.rectangle((left, top, left + r, top + r), fill=255)
    return mask.resize((2 * CELL_PIXELS,) * 2, Image.Resampling.BOX)


def random_large_scene(rng: random.Random, held_out: bool, grid: tuple[int, int] = (4, 4)) -> LargeScene:
    """A large figure and up to two small ones of other colours, on the wanted side of the split."""
    while True:
        cell = rng.randrange(grid[0] - 1), rng.randrange(grid[1] - 1)
        color, *others = rng.sample(sorted(COLORS), len(COLORS))
        offsets = rng.randint(-4, 4), rng.randint(-4, 4)
        large = LargeFigure(cell, rng.choice(tuple(ROUND_CORNERS)), color, rng.randint(20, 26), *offsets)
        free = [
            (row, column) for row in range(grid[0]) for column in range(grid[1]) if (row, column) not in large.cells
        ]
        cells = sorted(rng.sample(free, min(rng.randint(0, 2), len(free))))
        figures = tuple(
            Figure(
                cell,
                rng.choice(SHAPES),
                rng.choice(others),
                rng.randint(10, 13),
                rng.randint(-2, 2),
                rng.randint(-2, 2),
            )
            for cell in cells
        )
        scene = LargeScene(Scene(figures, rng.randrange(16, 241, 8), grid), large)
        if scene.held_out == held_out:
            return scene


def random_unequal_scene(rng: random.Random, held_out: bool, grid: tuple[int, int] = (4, 4)) -> Scene:
    """Two figures of different shapes, one of which is about twice as large."""
    while True:
        scene = random_scene(rng, held_out, 2, grid)
        shapes, sizes = rng.sample(SHAPES, 2), [rng.randint(*SMALL), rng.randint(*BIG)]
        rng.shuffle(sizes)
        figures = [
            replace(figure, shape=shape, radius=radius)
            for figure, shape, radius in zip(scene.figures, shapes, sizes, strict=True)
        ]
        scene = replace(scene, figures=tuple(figures))
        if scene.held_out == held_out:
            return scene


def larger(scene: Scene) -> tuple[str, tuple[Cell, ...]] | None:
    """The shape of the larger of two figures, and the cells of both; None where there are not two that differ enough."""
    if len(scene.figures) != 2:
        return None
    small, big = sorted(scene.figures, key=lambda figure: figure.radius)
    if small.shape == big.shape or big.radius - small.radius < BIG[0] - SMALL[1]:
        return None
    return big.shape, tuple(figure.cell for figure in scene.figures)


def random_equal_scene(rng: random.Random, held_out: bool, grid: tuple[int, int] = (4, 4)) -> tuple[Scene, Figure]:
    """(scene, one of its two figures of one shape and colour); a third figure differs from them in both."""
    while True:
        scene = random_scene(rng, held_out, 3, grid)
        (shape, other), (color, second) = rng.sample(SHAPES, 2), rng.sample(sorted(COLORS), 2)
        which = rng.randrange(3)
        figures = tuple(
            replace(figure, shape=other if at == which else shape, color=second if at == which else color)
            for at, figure in enumerate(scene.figures)
        )
        scene = replace(scene, figures=figures)
        if scene.held_out == held_out:
            return scene, figures[which - 1]


def _large_sample(rng: random.Random, held_out: bool, grid: tuple[int, int]) -> ImageSample:
    return ask_scene(random_large_scene(rng, held_out, grid), LARGE_QUESTION, "large")


def _larger_sample(rng: random.Random, held_out: bool, grid: tuple[int, int]) -> ImageSample:
    scene = random_unequal_scene(rng, held_out, grid)
    return ImageSample(scene.image(), LARGER_QUESTION, *larger(scene), "larger", scene)


def _equal_sample(rng: random.Random, held_out: bool, grid: tuple[int, int]) -> ImageSample:
    scene, figure = random_equal_scene(rng, held_out, grid)
    cells = tuple(one.cell for one in scene.figures if one.shape == figure.shape)
    return ImageSample(scene.image(), color_question(figure.shape), figure.color, cells, "equal", scene)


_SAMPLES: dict[str, Callable[[random.Random, bool, tuple[int, int]], ImageSample]] = {
    "large": _large_sample,
    "larger": _larger_sample,
    "equal": _equal_sample,
}


def whole_samples(
    task: str, n: int, seed: int = 0, held_out: bool = True, grid: tuple[int, int] = (4, 4)
) -> list[ImageSample]:
    """`n` samples, each with a picture of its own, of one of WHOLE_TASKS from one side of the split.

    large: which shape the large figure has; its four cells carry the answer together. larger: the shape of the larger of two
    figures; the cells of both. equal: the color of two equal figures; either of the two cells is enough.
    """
    if task not in WHOLE_TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(WHOLE_TASKS)}")
    rng = random.Random(f"{task}/{seed}/{held_out}/{grid}")
    samples: dict[object, ImageSample] = {}
    while len(samples) < n:
        sample = _SAMPLES[task](rng, held_out, grid)
        samples[sample.scene] = sample
    return list(samples.values())
