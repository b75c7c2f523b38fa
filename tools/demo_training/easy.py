"""easy-VQA, data made by others: pictures of 64x64 pixels with one shape, and questions about them.

    pip install easy-vqa

The package is needed for training the last stages and for measuring, and by nothing else. Its test split is for measuring only.
"""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

GRID = (2, 2)
COLORS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPES = ("rectangle", "circle", "triangle")
SHAPE_QUESTIONS = (
    "what shape is in the image?", "what shape does the image contain?", "what shape is present?", "what is the {color} shape?",
)  # fmt: skip
COLOR_QUESTIONS = (
    "what color is the shape?", "what color is the {shape}?",
    "what is the color of the shape?", "what is the color of the {shape}?",
)  # fmt: skip
CLAIMS = ("is there a {}?", "is there a {} in the image?", "is a {} present?", "does the image contain a {}?")
DENIALS = (
    "is there not a {}?", "is there not a {} in the image?", "is no {} present?", "does the image not contain a {}?",
)  # fmt: skip
DIRECT_SHARE = 0.4  # of the questions trained on; a quarter of easy-VQA's own


@dataclass(frozen=True)
class Picture:
    """One picture and all its questions. turns: (question, answer)."""

    path: str
    turns: tuple[tuple[str, str], ...]
    grid: tuple[int, int] = GRID

    def image(self) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(_pixels(self.path))


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("easy_vqa") is not None


@lru_cache
def pictures(split: str) -> tuple[Picture, ...]:
    """All pictures of a split, "train" or "test", in the order of their numbers. SystemExit where the package is missing."""
    if not installed():
        raise SystemExit("training on easy-VQA needs its package: pip install easy-vqa")
    import easy_vqa

    read = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    questions, paths = (one() for one in read[split])
    turns: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in zip(*questions, strict=True):
        turns.setdefault(number, []).append((question, answer))
    return tuple(Picture(paths[number], tuple(turns[number])) for number in sorted(turns))


def samples(split: str, n: int, seed: int = 0) -> list[tuple[Picture, str, str]]:
    """`n` (picture, question, answer), drawn from all questions of a split."""
    every = [(picture, *turn) for picture in pictures(split) for turn in picture.turns]
    return random.Random(f"easy/{split}/{seed}").sample(every, min(n, len(every)))


def watched_samples(n: int, seed: int = 0) -> list[tuple[Picture, str, str]]:
    """`n` (picture, question, answer), drawn from all questions of the train split's held-out pictures."""
    every = [(picture, *turn) for picture in pictures("train")[::10] for turn in picture.turns]
    return random.Random(f"easy/watched/{seed}").sample(every, min(n, len(every)))


@dataclass(frozen=True)
class Known:
    """A picture whose shape and color its questions tell."""

    path: str
    shape: str
    color: str


@lru_cache
def known(held_out: bool = False) -> tuple[Known, ...]:
    """The pictures of the train split whose shape and color are known: every tenth is held out, for watching a training."""
    found = (_known(picture) for picture in pictures("train")[:: 10 if held_out else 1])
    watched = {picture.path for picture in pictures("train")[::10]}
    return tuple(one for one in found if one and (held_out or one.path not in watched))


def _known(picture: Picture) -> Known | None:
    said = set()
    for question, answer in picture.turns:
        if answer in ("yes", "no"):
            denied = bool({"not", "no"} & set(question.split()))
            said |= _named(question) if (answer == "yes") != denied else set()
        else:
            said |= {answer} | _named(question)
    values = [next((one for one in all_of_them if one in said), None) for all_of_them in (SHAPES, COLORS)]
    return Known(picture.path, *values) if all(values) else None


def _named(question: str) -> set[str]:
    return set(question.rstrip("?").split()) & {*SHAPES, *COLORS}


@lru_cache(maxsize=8192)
def _pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True)
class Shown:
    """A picture of easy-VQA, perhaps mirrored, its figure moved by `by` = (down, right) pixels."""

    picture: Known
    mirrored: bool = False
    by: tuple[int, int] = (0, 0)
    grid: tuple[int, int] = GRID

    def image(self) -> Image.Image:
        """The picture, RGB."""
        pixels = np.roll(_pixels(self.picture.path), self.by, axis=(0, 1))
        return Image.fromarray(pixels[:, ::-1] if self.mirrored else pixels)


def random_shown(rng: random.Random) -> Shown:
    """A picture that is trained on, its figure anywhere."""
    picture = rng.choice(known())
    pixels = _pixels(picture.path)
    figure = (pixels != np.median(pixels, axis=(0, 1))).any(-1)  # (height, width)
    by = []
    for axis in (1, 0):
        covered = figure.any(axis).nonzero()[0]
        by.append(rng.randint(-int(covered[0]), len(figure) - 1 - int(covered[-1])))
    return Shown(picture, rng.random() < 0.5, (by[0], by[1]))


def question_about(shown: Shown, rng: random.Random) -> tuple[str, str]:
    """A question in the words of easy-VQA, and its answer: about shape and color alike, and as often yes as no."""
    shape, color = shown.picture.shape, shown.picture.color
    asks_shape = rng.random() < 0.5
    if rng.random() < DIRECT_SHARE:
        words = rng.choice(SHAPE_QUESTIONS if asks_shape else COLOR_QUESTIONS)
        return words.format(shape=shape, color=color), shape if asks_shape else color
    true, every = (shape, SHAPES) if asks_shape else (color, COLORS)
    is_true = rng.random() < 0.5
    return _claim(true if is_true else rng.choice([one for one in every if one != true]), is_true, rng)


def _claim(asked: str, is_true: bool, rng: random.Random) -> tuple[str, str]:
    """A question for yes or no about a shape or a color, and its answer."""
    denied = rng.random() < 0.5
    words = rng.choice(DENIALS if denied else CLAIMS)
    return words.format(asked if asked in SHAPES else f"{asked} shape"), "yes" if is_true != denied else "no"


def quiz_about(shown: Shown, rng: random.Random, short: bool) -> list[tuple[str, str]]:
    """Several questions for yes or no, each about another shape or color; short: the questions are the words alone."""
    true = {shown.picture.shape, shown.picture.color}
    others = [one for one in COLORS if one not in true]
    asked = [*SHAPES, shown.picture.color, *rng.sample(others, 3)]
    rng.shuffle(asked)
    if short:
        return [(f" {one}?", "yes" if one in true else "no") for one in asked]
    return [_claim(one, one in true, rng) for one in asked[:4]]
