"""Videos of coloured figures in a grid, the questions about them, and where in which frames each answer stands.

Places are (pair, row, column): the pair of frames that is one layer of patches, counted from 0, and the cell as in `pictures`.
What happens begins with a pair. Knows pictures and words, not models.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from mask_impact.demo.held_out import Cell, is_held_out
from mask_impact.demo.pictures import COLORS, SHAPES, Figure, Scene

Place = tuple[int, int, int]

MOVING_TASKS = ("appears", "first")
UNTRAINED_MOVING_TASKS = ("moves",)
"""Tasks with a known truth that the demo checkpoint did not learn ("Where does the star move?"), for larger models."""
APPEARS_QUESTION = "What appears?"
FIRST_QUESTION = "Which color comes first?"
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
GRIDS = ((2, 2), (2, 3), (3, 2))  # small enough that no processor scales eight frames down
N_PAIRS = (2, 3, 4)


def moves_question(shape: str) -> str:
    """The question whose answer is the direction in which the video's one `shape` goes."""
    return f"Where does the {shape} move?"


@dataclass(frozen=True)
class Film:
    """A video of one scene for each pair of frames. alone: whether the last frame is the only one of its pair."""

    scenes: tuple[Scene, ...]
    alone: bool = False

    def __post_init__(self):
        if len({scene.grid for scene in self.scenes}) != 1:
            raise ValueError("the scenes of a film must be one or more, and of one grid")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.scenes[0].grid

    @property
    def held_out(self) -> bool:
        """Which side of the split it is on."""
        return is_held_out(repr(self))

    def frames(self) -> tuple[Image.Image, ...]:
        """The frames, RGB, two of each scene."""
        each = [scene.image() for scene in self.scenes for _ in range(2)]
        return tuple(each[: len(each) - self.alone])

    def without(self, places: tuple[Place, ...]) -> Film:
        """The film with the figures in these places painted over by the background."""
        scenes = list(self.scenes)
        for pair, row, column in places:
            scenes[pair] = scenes[pair].without((row, column))
        return replace(self, scenes=tuple(scenes))

    def answer(self, question: str) -> tuple[str, tuple[Place, ...]] | None:
        """The true answer and the places that carry it; None where the film doesn't give exactly one answer."""
        if question == APPEARS_QUESTION:
            return self._appears()
        if question == FIRST_QUESTION:
            return self._first()
        asked = [shape for shape in SHAPES if question == moves_question(shape)]
        return self._moves(asked[0]) if asked else None

    def needed_pairs(self, question: str) -> tuple[int, ...]:
        """The pairs of frames without each of which the others don't give the answer. ValueError where there is none."""
        found = self.answer(question)
        if found is None:
            raise ValueError(f"the film has no answer to {question!r}")
        return tuple(pair for pair in range(len(self.scenes)) if self._left(pair, question) != found[0])

    def _left(self, pair: int, question: str) -> str | None:
        """The answer that the other pairs give."""
        others = self.scenes[:pair] + self.scenes[pair + 1 :]
        if question == FIRST_QUESTION:  # which one color alone answers, too
            first = next((scene.figures for scene in others if scene.figures), ())
            return first[0].color if len(first) == 1 else None
        found = replace(self, scenes=others, alone=False).answer(question) if others else None
        return found and found[0]

    def _seen(self, shape: str) -> list[Place]:
        return [
            (pair, *one.cell) for pair, scene in enumerate(self.scenes) for one in scene.figures if one.shape == shape
        ]

    def _appears(self) -> tuple[str, tuple[Place, ...]] | None:
        at_first = {figure.shape for figure in self.scenes[0].figures}
        new = dict.fromkeys(one.shape for scene in self.scenes for one in scene.figures if one.shape not in at_first)
        if len(new) != 1 or not at_first:
            return None
        (shape,) = new
        return shape, tuple(self._seen(shape))

    def _first(self) -> tuple[str, tuple[Place, ...]] | None:
        shown = [pair for pair, scene in enumerate(self.scenes) if scene.figures]
        if not shown or len(self.scenes[shown[0]].figures) != 1:
            return None
        (first,) = self.scenes[shown[0]].figures
        alone = [pair for pair in shown if self.scenes[pair].figures == (first,)]
        later = {one.color for pair in shown if pair not in alone for one in self.scenes[pair].figures} - {first.color}
        return (first.color, tuple((pair, *first.cell) for pair in alone)) if later else None

    def _moves(self, shape: str) -> tuple[str, tuple[Place, ...]] | None:
        seen = self._seen(shape)
        cells = list(dict.fromkeys((row, column) for _, row, column in seen))
        if [pair for pair, *_ in seen] != list(range(len(self.scenes))) or len(cells) != 2:
            return None
        (row, column), (then_row, then_column) = cells
        by = then_row - row, then_column - column
        return next(((word, tuple(seen)) for word, step in DIRECTIONS.items() if step == by), None)


@dataclass(frozen=True)
class FilmSample:
    """One question about one film. places: where the answer stands, see `moving_samples`."""

    film: Film
    question: str
    answer: str
    places: tuple[Place, ...]
    task: str

    @property
    def held_out(self) -> bool:
        """Which side of the split it is on."""
        return self.film.held_out


def _figure(rng: random.Random, cell: Cell, shape: str, color: str) -> Figure:
    return Figure(cell, shape, color, rng.randint(10, 13), rng.randint(-2, 2), rng.randint(-2, 2))


def _figures(rng: random.Random, grid: tuple[int, int]) -> tuple[Figure, Figure]:
    """Two of different shapes, colors and cells."""
    cells = rng.sample([(row, column) for row in range(grid[0]) for column in range(grid[1])], 2)
    drawn = zip(cells, rng.sample(SHAPES, 2), rng.sample(sorted(COLORS), 2), strict=True)
    first, second = (_figure(rng, *one) for one in drawn)
    return first, second


def _film(rng: random.Random, grid: tuple[int, int], pairs: list[list[Figure]]) -> Film:
    background = rng.randrange(16, 241, 8)
    scenes = (Scene(tuple(sorted(one, key=lambda figure: figure.cell)), background, grid) for one in pairs)
    return Film(tuple(scenes), alone=len(pairs) > min(N_PAIRS) and rng.random() < 0.2)


def _appearing(rng: random.Random, grid: tuple[int, int], n_pairs: int) -> tuple[Film, str]:
    """One figure is there from the start, another comes and stays."""
    there, new = _figures(rng, grid)
    begin = rng.randrange(1, n_pairs)
    return _film(rng, grid, [[there, new] if pair >= begin else [there] for pair in range(n_pairs)]), APPEARS_QUESTION


def _coming(rng: random.Random, grid: tuple[int, int], n_pairs: int) -> tuple[Film, str]:
    """Two figures come one after the other, the first at the start or later."""
    first, second = _figures(rng, grid)
    begin, then = sorted(rng.sample(range(n_pairs), 2))
    pairs = [[first, second] if pair >= then else [first] if pair >= begin else [] for pair in range(n_pairs)]
    return _film(rng, grid, pairs), FIRST_QUESTION


def _moving(rng: random.Random, grid: tuple[int, int], n_pairs: int) -> tuple[Film, str]:
    """One figure goes to a neighbouring cell, another stays."""
    while True:
        mover, other = _figures(rng, grid)
        down, right = DIRECTIONS[rng.choice(tuple(DIRECTIONS))]
        cell = mover.cell[0] + down, mover.cell[1] + right
        if cell != other.cell and 0 <= cell[0] < grid[0] and 0 <= cell[1] < grid[1]:
            break
    begin = rng.randrange(1, n_pairs)
    moved = replace(mover, cell=cell)
    pairs = [[other, moved if pair >= begin else mover] for pair in range(n_pairs)]
    return _film(rng, grid, pairs), moves_question(mover.shape)


_FILMS: dict[str, Callable[[random.Random, tuple[int, int], int], tuple[Film, str]]] = {
    "appears": _appearing,
    "first": _coming,
    "moves": _moving,
}


def random_film(rng: random.Random, task: str, held_out: bool, n_pairs: int | None = None) -> FilmSample:
    """A question of `task` about a film of its own of `n_pairs` pairs (drawn if None), on the wanted side of the split."""
    while True:
        film, question = _FILMS[task](rng, rng.choice(GRIDS), n_pairs or rng.choice(N_PAIRS))
        if film.held_out == held_out:
            return FilmSample(film, question, *film.answer(question), task)


def moving_samples(task: str, n: int, seed: int = 0, held_out: bool = True) -> list[FilmSample]:
    """`n` samples, each with a film of four to eight frames of its own, of one of MOVING_TASKS or
    UNTRAINED_MOVING_TASKS from one side of the split.

    appears: the shape that is not there at the start; places: wherever it is seen. first: the color of the figure that comes
    first of two; places: where it is seen alone. moves: the direction in which the asked figure goes to the next cell; places:
    the figure's in all pairs.
    """
    if task not in _FILMS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(_FILMS)}")
    rng = random.Random(f"{task}/{seed}/{held_out}")
    samples: dict[Film, FilmSample] = {}
    while len(samples) < n:
        sample = random_film(rng, task, held_out)
        samples[sample.film] = sample
    return list(samples.values())
