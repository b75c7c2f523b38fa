"""easy-VQA, data made by others: pictures of 64x64 pixels with one shape, and questions about them.

    pip install easy-vqa

The package is needed for training the last stages and for measuring, and by nothing else. Its test split is for measuring only.
"""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image

GRID = (2, 2)
COLORS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPES = ("rectangle", "circle", "triangle")
TURNED = (None, *Image.Transpose)  # no question asks where something is


@dataclass(frozen=True)
class Picture:
    """One picture and all its questions. turns: (question, answer)."""

    path: str
    turns: tuple[tuple[str, str], ...]
    grid: tuple[int, int] = GRID
    turned: Image.Transpose | None = None

    def image(self) -> Image.Image:
        """The picture, RGB, turned or mirrored."""
        with Image.open(self.path) as picture:
            shown = picture.convert("RGB")
        return shown if self.turned is None else shown.transpose(self.turned)


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


def random_question(rng: random.Random) -> tuple[Picture, tuple[str, str]]:
    """A picture of the train split, turned anyhow, and one of its questions with its answer. Of several in one conversation the
    earlier ones would give away the answers of the later ones: "what color is the circle?" says what shape there is."""
    picture = rng.choice(pictures("train"))
    turn = rng.choice(picture.turns)
    if turn[1] in ("yes", "no") and rng.random() < 0.4:  # three quarters are of these
        turn = rng.choice([one for one in picture.turns if one[1] not in ("yes", "no")] or [turn])
    return replace(picture, turned=rng.choice(TURNED)), turn
