"""Training sequences: what the models read, and at which tokens they are told the answer.

A sequence asks several questions about one story or picture, one after the other (a chat of several turns): that is
several times the supervision for one reading, and what gets the small models off their plateau. The first turn is
always in the exact form that is measured: one question, one answer. Only answers and their end token carry a loss.

Two forms: chat (ChatML, ended by <|im_end|>) and raw (the prompt continued, ended by <|endoftext|>).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from mask_impact.demo import tasks

IGNORED = -100
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# Grids (rows, columns) beside the usual (4, 4), so that other picture sizes are not wholly new to the model.
OTHER_GRIDS = ((2, 2), (2, 4), (3, 3), (3, 5), (4, 3), (5, 3), (4, 6), (6, 4), (5, 5), (2, 3), (3, 4))
FACT_TASKS = ("sum", "capital", "definition", "greeting")
FACT_WEIGHTS = (6, 3, 2, 1)
SYSTEM_SHARE = 0.1
EXACT = [fact for task in FACT_TASKS for fact in tasks.facts(task) if fact.prompt in tasks.ALWAYS_IN_TRAINING]


@dataclass(frozen=True)
class Sequence:
    """pieces: (text, whether it carries a loss), in order. image: None, or the picture the text has a place for."""

    pieces: tuple[tuple[str, bool], ...]
    image: object = None
    n_image_tokens: int = 0


def chat(turns: list[tuple[str, str]], scene: tasks.Scene | None = None, system: bool = False) -> Sequence:
    """(question, answer) pairs as one conversation; the picture stands before the first question."""
    n_cells = scene.grid[0] * scene.grid[1] if scene else 0
    pieces = [(SYSTEM, False)] if system else []
    for number, (question, answer) in enumerate(turns):
        picture = _picture(n_cells) if number == 0 else ""
        start = "\n" if number else ""
        pieces.append((f"{start}<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{answer}<|im_end|>", True))
    return Sequence(tuple(pieces), scene.image() if scene else None, n_cells)


def raw(prompt: str, raw_answer: str, scene: tasks.Scene | None = None) -> Sequence:
    n_cells = scene.grid[0] * scene.grid[1] if scene else 0
    pieces = ((_picture(n_cells) + prompt, False), (f"{raw_answer}<|endoftext|>", True))
    return Sequence(pieces, scene.image() if scene else None, n_cells)


def _picture(n_cells: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * n_cells + "<|vision_end|>" if n_cells else ""


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
    scene = tasks.random_scene(rng, held_out=False, grid=grid)
    questions = [question for task in ("color", "shape", "count") for question in scene.questions(task)]
    chosen = [*rng.sample(questions, min(2, len(questions))), rng.choice(tasks.DESCRIBE_QUESTIONS)]
    rng.shuffle(chosen)
    turns = [(question, scene.answer(question)[0]) for question in chosen]
    if rng.random() < raw_share:
        return raw(turns[0][0], f" {turns[0][1]}", scene)
    return chat(turns, scene, system=rng.random() < SYSTEM_SHARE)


@dataclass(frozen=True)
class Batch:
    """inputs: the model's keyword arguments, right-padded. labels: (batch, length); the id that position must predict
    next, IGNORED elsewhere."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


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
    images = [sequence.image for sequence in sequences if sequence.image is not None]
    if images:
        inputs |= processor(images=images, return_tensors="pt")
        image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_token).int()
    return Batch({name: value.to(device) for name, value in inputs.items()}, labels.to(device))
