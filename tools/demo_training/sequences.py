"""Training sequences: what the models read, and at which tokens they are told the answer.

A sequence asks several questions about one story or picture, one after the other (a chat of several turns): that is
several times the supervision for one reading, and what gets the small models off their plateau. The first turn is
always in the exact form that is measured: one question, one answer. Only answers and their end token carry a loss.

Two forms: chat (ChatML, ended by <|im_end|>) and raw (the prompt continued, ended by <|endoftext|>).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mask_impact.demo import moving, pictures, tasks
from mask_impact.prompts.clips import patched

IGNORED = -100
PADS = ("<|image_pad|>", "<|video_pad|>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# Grids (rows, columns) beside the usual (4, 4), so that other picture sizes are not wholly new to the model.
OTHER_GRIDS = ((2, 2), (2, 4), (3, 3), (3, 5), (4, 3), (5, 3), (4, 6), (6, 4), (5, 5), (2, 3), (3, 4))
FACT_TASKS = ("sum", "capital", "definition", "greeting")
FACT_WEIGHTS = (6, 3, 2, 1)
SYSTEM_SHARE = 0.1
EXACT = [fact for task in FACT_TASKS for fact in tasks.facts(task) if fact.prompt in tasks.ALWAYS_IN_TRAINING]


@dataclass(frozen=True)
class Sequence:
    """pieces: (text, whether it carries a loss), in order. image: None, or the picture the text has a place for; frames: those of
    the video it has places for. hidden: numbers of the image's tokens that no other token sees in the decoder."""

    pieces: tuple[tuple[str, bool], ...]
    image: object = None
    frames: tuple = ()
    hidden: tuple[int, ...] = ()


class Picture(Protocol):
    """What a sequence shows: a scene, or a picture of another origin."""

    grid: tuple[int, int]  # (rows, columns) of tokens

    def image(self) -> object:
        """The picture, RGB."""


def chat(
    turns: list[tuple[str, str]],
    scene: Picture | None = None,
    system: bool = False,
    hidden: tuple[tuple[int, int], ...] = (),
) -> Sequence:
    """(question, answer) pairs as one conversation; the picture stands before the first question. hidden: cells of it."""
    shown = picture_text(scene)
    numbers = tuple(row * scene.grid[1] + column for row, column in hidden)
    return Sequence(_turns(turns, shown, system), scene.image() if scene else None, hidden=numbers)


def film_chat(turns: list[tuple[str, str]], film: moving.Film, fps: float = 2.0) -> Sequence:
    """(question, answer) pairs about a film, whose frames follow each other at `fps`."""
    n_cells, n_frames = film.grid[0] * film.grid[1], len(film.frames())
    times = [(first + min(first + 1, n_frames - 1)) / 2 / fps for first in range(0, n_frames, 2)]
    shown = (f"<{time:.1f} seconds><|vision_start|>{'<|video_pad|>' * n_cells}<|vision_end|>" for time in times)
    return Sequence(_turns(turns, "".join(shown), system=False), frames=film.frames())


def raw(prompt: str, raw_answer: str, scene: Picture | None = None) -> Sequence:
    pieces = ((picture_text(scene) + prompt, False), (f"{raw_answer}<|endoftext|>", True))
    return Sequence(pieces, scene.image() if scene else None)


def _turns(turns: list[tuple[str, str]], shown: str, system: bool) -> tuple[tuple[str, bool], ...]:
    pieces = [(SYSTEM, False)] if system else []
    for number, (question, answer) in enumerate(turns):
        start, before = ("\n", "") if number else ("", shown)
        pieces.append((f"{start}<|im_start|>user\n{before}{question}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{answer}<|im_end|>", True))
    return tuple(pieces)


def picture_text(scene: Picture | None) -> str:
    """The place of a picture in the text, one mark to a token."""
    return f"<|vision_start|>{'<|image_pad|>' * (scene.grid[0] * scene.grid[1])}<|vision_end|>" if scene else ""


def text_sequences(
    rng: random.Random, n: int, weights: tuple[int, int, int, int], raw_share: float, exact_share: float
) -> list[Sequence]:
    """`n` training sequences of words, of one kind and so of similar length: facts, recaps, recall or quizzes."""
    kind = rng.choices(("facts", "recap", "recall", "quiz"), weights)[0]
    if kind == "facts":
        return [fact_sequence(rng, raw_share, exact_share) for _ in range(n)]
    n_people = rng.choice((2, 3, 4, 4))
    if kind == "recall":
        return [recall_sequence(rng, n_people, raw_share) for _ in range(n)]
    return [(recap_sequence if kind == "recap" else quiz_sequence)(rng, n_people) for _ in range(n)]


def recap_sequence(rng: random.Random, n_people: int) -> Sequence:
    """A story told, and told again three times in other order and words. What the first telling determines carries a loss.

    Looking up is easier to learn here, where every fourth token needs it, than from questions; and once the model can do
    it, questions are quickly learned too.
    """
    story = tasks.random_story(rng, held_out=False, n_people=n_people)
    pieces = [(story.text, False)]
    for name, color, thing in [person for _ in range(3) for person in rng.sample(story.people, n_people)]:
        form = rng.randrange(3)
        if form == 0:
            pieces += [(f" {name} has the", False), (f" {color} {thing}", True)]
        elif form == 1:
            pieces += [(f" The {color}", False), (f" {thing}", True), (" belongs to", False), (f" {name}", True)]
        else:
            pieces += [(f" The {thing} is", False), (f" {color}", True)]
        pieces.append((".", False))
    return Sequence(tuple(pieces))


def quiz_sequence(rng: random.Random, n_people: int) -> Sequence:
    """A story and all its questions in raw form, each answer carrying a loss and followed by the next question."""
    story = tasks.random_story(rng, held_out=False, n_people=n_people)
    pieces = [(story.text, False)]
    for sample in rng.sample(story.questions(), 2 * n_people):
        pieces += [(sample.prompt.removeprefix(story.text), False), (f" {sample.answer}", True)]
    return Sequence(tuple(pieces))


def recall_sequence(rng: random.Random, n_people: int, raw_share: float) -> Sequence:
    story = tasks.random_story(rng, held_out=False, n_people=n_people)
    questions = rng.sample(story.questions(), 4)
    if rng.random() < raw_share:
        return raw(questions[0].prompt, questions[0].raw_answer)
    turns = [(sample.prompt.removeprefix(f"{story.text} "), sample.answer) for sample in questions]
    turns[0] = (questions[0].prompt, questions[0].answer)
    return chat(turns, system=rng.random() < SYSTEM_SHARE)


def fact_sequence(rng: random.Random, raw_share: float, exact_share: float) -> Sequence:
    samples = [random_fact(rng, exact_share) for _ in range(3)]
    if rng.random() < raw_share:
        return raw(samples[0].prompt, samples[0].raw_answer)
    return chat([(sample.prompt, sample.answer) for sample in samples], system=rng.random() < SYSTEM_SHARE)


def random_fact(rng: random.Random, exact_share: float) -> tasks.TextSample:
    """A fact of the training side; exact_share of them are one of the documentation's prompts, each as likely."""
    if exact_share and rng.random() < exact_share:
        return rng.choice(EXACT)
    while True:
        task = rng.choices(FACT_TASKS, FACT_WEIGHTS)[0]
        sample = rng.choice(tasks.facts(task))
        if not sample.held_out:
            return sample


def image_sequences(rng: random.Random, n: int, raw_share: float) -> list[Sequence]:
    """`n` training sequences about pictures of one size."""
    grid = (4, 4) if rng.random() < 0.85 else rng.choice(OTHER_GRIDS)
    return [image_sequence(rng, grid, raw_share) for _ in range(n)]


def image_sequence(rng: random.Random, grid: tuple[int, int], raw_share: float) -> Sequence:
    """Two questions and a description of one picture, in random order."""
    scene = pictures.random_scene(rng, held_out=False, grid=grid)
    questions = [question for task in ("color", "shape", "count") for question in scene.questions(task)]
    chosen = [*rng.sample(questions, min(2, len(questions))), rng.choice(pictures.DESCRIBE_QUESTIONS)]
    rng.shuffle(chosen)
    turns = [(question, scene.answer(question)[0]) for question in chosen]
    if rng.random() < raw_share:
        return raw(turns[0][0], f" {turns[0][1]}", scene)
    return chat(turns, scene, system=rng.random() < SYSTEM_SHARE)


@dataclass(frozen=True)
class Batch:
    """inputs: the model's keyword arguments, right-padded. labels: (batch, length); the id that position must predict
    next, IGNORED elsewhere. hidden: (batch, length), the positions that no other sees, or None."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    hidden: torch.Tensor | None = None


def collate(sequences: list[Sequence], tokenizer, processor, device: str = "cpu") -> Batch:
    """Tokenize piece by piece and pad on the right (a causal model needs no mask for that)."""
    ids, targets = [], []
    for sequence in sequences:
        row, wanted = [], []
        for text, carries_loss in sequence.pieces:
            piece = tokenizer(text)["input_ids"]
            row += piece
            wanted += piece if carries_loss else [IGNORED] * len(piece)
        ids.append(row)
        targets.append([*wanted[1:], IGNORED])
    length = max(map(len, ids))
    pad = tokenizer.pad_token_id
    inputs = {"input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in ids])}
    labels = torch.tensor([row + [IGNORED] * (length - len(row)) for row in targets])
    of_image, of_video = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids(name) for name in PADS)
    inputs |= _pixels(sequences, processor)
    if len(inputs) > 1:
        inputs["mm_token_type_ids"] = of_image.int() + 2 * of_video.int()
    hidden = None
    if any(sequence.hidden for sequence in sequences):
        hidden = torch.zeros_like(of_image)
        for number, sequence in enumerate(sequences):
            hidden[number, of_image[number].nonzero()[list(sequence.hidden), 0]] = True
        hidden = hidden.to(device)
    return Batch({name: value.to(device) for name, value in inputs.items()}, labels.to(device), hidden)


def _pixels(sequences: list[Sequence], processor) -> dict[str, torch.Tensor]:
    found = {}
    images = [sequence.image for sequence in sequences if sequence.image is not None]
    if images:
        found |= processor(images=images, return_tensors="pt")
    films = [film_pixels(sequence.frames, processor) for sequence in sequences if sequence.frames]
    if films:
        found["pixel_values_videos"] = torch.from_numpy(np.concatenate([pixels for pixels, _ in films]))
        found["video_grid_thw"] = torch.tensor([grid for _, grid in films])
    return found


def film_pixels(frames: tuple, processor) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The patches of frames that keep their size, and their grid; the last one is repeated where it is alone."""
    frames = (*frames, *frames[-1:]) if len(frames) % processor.temporal_patch_size else frames
    pixels = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]) / 255
    pixels = (pixels - np.float32(processor.image_mean)) / np.float32(processor.image_std)
    return patched(pixels, processor.patch_size, processor.merge_size, processor.temporal_patch_size)
