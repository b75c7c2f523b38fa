"""Pictures of coloured figures in a grid, the questions about them, and in which cells each answer stands.

Cells are (row, column), counted from the upper left, of 32x32 pixels each, which is one decoder token after the 2x2 merge of
16x16 patches. Knows pictures and words, not models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import lru_cache

from PIL import Image, ImageDraw

from mask_impact.demo.held_out import Cell, is_held_out

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (245, 220, 40),
    "purple": (150, 50, 180),
    "orange": (245, 135, 20),
}


SHAPES = ("circle", "square", "triangle", "star", "cross")


IMAGE_TASKS = ("color", "shape", "count", "describe")


CELL_PIXELS = 32


@dataclass(frozen=True)
class Figure:
    """One coloured shape, wholly inside its cell. radius, dx and dy (offset of the centre) in pixels."""

    cell: Cell
    shape: str
    color: str
    radius: int = 12
    dx: int = 0
    dy: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture as a list of figures in reading order, at most one to a cell, on a plain grey background.

    grid: (rows, columns) of cells of 32x32 pixels. background: grey level 0..255.
    """

    figures: tuple[Figure, ...]
    background: int = 200
    grid: tuple[int, int] = (4, 4)

    def __post_init__(self):
        cells = [figure.cell for figure in self.figures]
        if cells != sorted(set(cells)):
            raise ValueError(f"figures must stand in reading order, one to a cell, got cells {cells}")
        for row, column in cells:
            if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
                raise ValueError(f"cell ({row}, {column}) is outside the grid {self.grid}")

    @property
    def held_out(self) -> bool:
        return is_held_out(repr(self))

    def image(self) -> Image.Image:
        """The picture, RGB, 32 * columns wide and 32 * rows high."""
        rows, columns = self.grid
        picture = Image.new("RGB", (CELL_PIXELS * columns, CELL_PIXELS * rows), (self.background,) * 3)
        for figure in self.figures:
            row, column = figure.cell
            mask = _shape_mask(figure.shape, figure.radius, figure.dx, figure.dy)
            picture.paste(COLORS[figure.color], (CELL_PIXELS * column, CELL_PIXELS * row), mask)
        return picture

    def without(self, cell: Cell) -> Scene:
        """The scene with the figure in `cell` painted over by the background."""
        return replace(self, figures=tuple(figure for figure in self.figures if figure.cell != cell))

    def repainted(self, cell: Cell, color: str | None = None, shape: str | None = None) -> Scene:
        """The scene with the figure in `cell` in another colour or shape."""
        changed = {"color": color, "shape": shape}
        changed = {name: value for name, value in changed.items() if value is not None}
        return replace(self, figures=tuple(replace(f, **changed) if f.cell == cell else f for f in self.figures))

    def answer(self, question: str) -> tuple[str, tuple[Cell, ...]] | None:
        """The true answer and the cells that carry it; None where the scene doesn't give exactly one answer."""
        if question in DESCRIBE_QUESTIONS:
            parts = [f"{_article(figure.color)} {figure.color} {figure.shape}" for figure in self.figures]
            text = ", ".join(parts) + "."
            return text[0].upper() + text[1:], tuple(figure.cell for figure in self.figures)
        if question == COUNT_QUESTION:
            return str(len(self.figures)), tuple(figure.cell for figure in self.figures)
        for figure in self.figures:
            if question == color_question(figure.shape) and [f.shape for f in self.figures].count(figure.shape) == 1:
                return figure.color, (figure.cell,)
            if question == shape_question(figure.color) and [f.color for f in self.figures].count(figure.color) == 1:
                return figure.shape, (figure.cell,)
        return None

    def questions(self, task: str) -> list[str]:
        """All questions of one of IMAGE_TASKS that this scene answers unambiguously."""
        candidates = {
            "color": [color_question(figure.shape) for figure in self.figures],
            "shape": [shape_question(figure.color) for figure in self.figures],
            "count": [COUNT_QUESTION],
            "describe": list(DESCRIBE_QUESTIONS),
        }[task]
        return [question for question in dict.fromkeys(candidates) if self.answer(question)]


COUNT_QUESTION = "How many shapes are there?"


DESCRIBE_QUESTIONS = ("Describe the image.", "What is this?", "What is in the image?")


def color_question(shape: str) -> str:
    """The question whose answer is the color of the picture's one `shape`."""
    return f"What color is the {shape}?"


def shape_question(color: str) -> str:
    """The question whose answer is the shape of the picture's one thing of that `color`."""
    return f"What shape is {color}?"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True)
class ImageSample:
    """One question about one picture.

    cells: (row, column) of the cells that carry the answer: the figure's own for colour and shape, all figures' for
        counting and describing (in the answer's order).
    """

    image: Image.Image = field(compare=False, repr=False)
    question: str
    answer: str
    cells: tuple[Cell, ...]
    task: str
    scene: Scene

    @property
    def held_out(self) -> bool:
        return self.scene.held_out


@lru_cache(maxsize=1024)
def _shape_mask(shape: str, radius: int, dx: int, dy: int) -> Image.Image:
    """Coverage (mode "L", one cell in size) of a shape, drawn four times larger and scaled down for smooth edges."""
    scale = 4
    mask = Image.new("L", (CELL_PIXELS * scale,) * 2, 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = (CELL_PIXELS / 2 + dx) * scale, (CELL_PIXELS / 2 + dy) * scale, radius * scale
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=255)
    elif shape == "star":
        # Corner radii alternate: sines and cosines of 36 degree steps, starting upwards.
        unit = [(0, -1), (0.588, -0.809), (0.951, -0.309), (0.951, 0.309), (0.588, 0.809), (0, 1), (-0.588, 0.809),
                (-0.951, 0.309), (-0.951, -0.309), (-0.588, -0.809)]  # fmt: skip
        lengths = [r if corner % 2 == 0 else 0.42 * r for corner in range(10)]
        draw.polygon([(x + ux * k, y + uy * k) for (ux, uy), k in zip(unit, lengths, strict=True)], fill=255)
    elif shape == "cross":
        draw.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=255)
        draw.rectangle((x - 0.35 * r, y - r, x + 0.35 * r, y + r), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    return mask.resize((CELL_PIXELS, CELL_PIXELS), Image.Resampling.BOX)


def random_scene(
    rng: random.Random, held_out: bool, n_figures: int | None = None, grid: tuple[int, int] = (4, 4)
) -> Scene:
    """A scene of `n_figures` (1 to 4, drawn if None) on the wanted side of the split."""
    all_cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    while True:
        cells = sorted(rng.sample(all_cells, min(n_figures or rng.randint(1, 4), len(all_cells))))
        figures = tuple(
            Figure(cell, rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.randint(10, 13), rng.randint(-2, 2),
                   rng.randint(-2, 2))
            for cell in cells
        )  # fmt: skip
        scene = Scene(figures, background=rng.randrange(16, 241, 8), grid=grid)
        if scene.held_out == held_out:
            return scene


def ask_scene(scene: Scene, question: str, task: str) -> ImageSample:
    """The question about the scene with its true answer. Raises ValueError where the scene gives none or several."""
    truth = scene.answer(question)
    if truth is None:
        raise ValueError(f"{question!r} has no single answer in {scene}")
    return ImageSample(scene.image(), question, truth[0], truth[1], task, scene)


def image_samples(
    task: str, n: int, seed: int = 0, held_out: bool = True, grid: tuple[int, int] = (4, 4)
) -> list[ImageSample]:
    """`n` samples, each with a scene of its own, of one of IMAGE_TASKS from one side of the split."""
    if task not in IMAGE_TASKS:
        raise ValueError(f"unknown image task {task!r}: expected one of {', '.join(IMAGE_TASKS)}")
    rng = random.Random(f"{task}/{seed}/{held_out}/{grid}")
    samples: dict[Scene, ImageSample] = {}
    while len(samples) < n:
        scene = random_scene(rng, held_out, grid=grid)
        questions = scene.questions(task)
        if questions:
            samples[scene] = ask_scene(scene, rng.choice(questions), task)
    return list(samples.values())
