"""Held-out accuracy, and each decoder layer's share of the residual stream.

Accuracy: the whole answer up to and including its end token is what greedy decoding gives. That holds exactly where the
model's first choice at every position of the true answer is the next token of it, so one forward pass decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mask_impact.demo import moving, pictures, tasks, wholes

from . import easy
from .models import decoder
from .sequences import IGNORED, Batch, Sequence, chat, collate, film_chat, raw

BATCH_SIZE = 64
SEEING_TASKS = (*wholes.WHOLE_TASKS, *moving.MOVING_TASKS, "easy")
WATCHED_TASK = "easy, train split"  # its held-out pictures; the test split is for measuring the end
REQUIRED_SHARE = 0.05


def required_accuracy(task: str, form: str) -> float:
    """What a checkpoint must reach to be bundled. Raw prompts with pictures are measured, but nothing is promised."""
    if form == "raw":
        return 0.9 if task in tasks.TEXT_TASKS else 0.0
    if task in SEEING_TASKS:
        return 0.95
    if task in ("color", "shape"):
        return 0.97
    if task == "describe":
        return 0.85
    return 0.95 if task == "count" or task.startswith("recall") else 0.98


@dataclass(frozen=True)
class Score:
    """n_right of n_samples answered; form is "chat" or "raw"."""

    task: str
    form: str
    n_right: int
    n_samples: int

    @property
    def accuracy(self) -> float:
        return self.n_right / self.n_samples

    def __str__(self) -> str:
        return f"{self.task:14s} {self.form:4s} {self.accuracy:7.2%}  ({self.n_right} of {self.n_samples})"


def held_out_sequences(task: str, form: str, n_samples: int, seed: int) -> list[Sequence]:
    """Held-out samples of one task, one question each, in the form that is measured."""
    if task == WATCHED_TASK:
        return [chat([(question, answer)], shown) for shown, question, answer in easy.watched_samples(n_samples, seed)]
    if task == "easy":
        return [chat([(question, answer)], shown) for shown, question, answer in easy.samples("test", n_samples, seed)]
    if task in moving.MOVING_TASKS:
        films = moving.moving_samples(task, n_samples, seed)
        return [film_chat([(sample.question, sample.answer)], sample.film) for sample in films]
    if task in pictures.IMAGE_TASKS + wholes.WHOLE_TASKS:
        draw = pictures.image_samples if task in pictures.IMAGE_TASKS else wholes.whole_samples
        drawn = draw(task, n_samples, seed)
        if form == "chat":
            return [chat([(sample.question, sample.answer)], sample.scene) for sample in drawn]
        return [raw(sample.question, f" {sample.answer}", sample.scene) for sample in drawn]
    samples = tasks.text_samples(task, n_samples, seed)
    if form == "chat":
        return [chat([(sample.prompt, sample.answer)]) for sample in samples]
    return [raw(sample.prompt, sample.raw_answer) for sample in samples]


def last_hidden_state(model, batch: Batch) -> torch.Tensor:
    """(batch, length, hidden), after the final norm."""
    inputs = dict(batch.inputs)
    if (
        batch.hidden is not None
    ):  # the model takes a mask for padding, and would leave out the positions of what is hidden
        known = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        positions, _ = model.model.get_rope_index(**{name: inputs[name] for name in known if name in inputs})
        inputs |= {"attention_mask": (~batch.hidden).long(), "position_ids": positions}
    return model.model(**inputs, use_cache=False).last_hidden_state


def tasks_of(which: str, seeing: bool) -> tuple[str, ...]:
    """What a model is made for. seeing: whether it is one of the last stages."""
    if which == "text":
        return tasks.TEXT_TASKS
    late = [task for task in SEEING_TASKS if task != "easy" or easy.installed()] if seeing else []
    return (*tasks.TEXT_TASKS, *pictures.IMAGE_TASKS, *late)


@torch.no_grad()
def count_right(model, batch: Batch) -> int:
    wanted = batch.labels != IGNORED  # (batch, length)
    choice = model.lm_head(last_hidden_state(model, batch)[wanted]).argmax(-1)  # (all answer tokens,)
    wrong = torch.zeros_like(wanted)
    wrong[wanted] = choice != batch.labels[wanted]
    return int((~wrong.any(dim=1)).sum())


@torch.no_grad()
def evaluate(
    model,
    names: tuple[str, ...],
    tokenizer,
    processor,
    n_samples: int = 300,
    seed: int = 0,
    forms: tuple[str, ...] = ("chat", "raw"),
) -> list[Score]:
    """Scores of each of the tasks `names` in each of `forms`, on held-out samples. Videos and easy-VQA have no raw form."""
    model.eval()
    device = str(model.device)
    scores = []
    for task in names:
        for form in forms:
            if form == "raw" and task in (*moving.MOVING_TASKS, "easy", WATCHED_TASK):
                continue
            sequences = held_out_sequences(task, form, n_samples, seed)
            batches = [sequences[start : start + BATCH_SIZE] for start in range(0, len(sequences), BATCH_SIZE)]
            n_right = sum(count_right(model, collate(part, tokenizer, processor, device)) for part in batches)
            scores.append(Score(task, form, n_right, len(sequences)))
    return scores


def layer_updates(model, batch: Batch) -> torch.Tensor:
    """(layers, batch): norm of each layer's update over that of its input, where the first answer token is predicted."""
    positions = (batch.labels != IGNORED).int().argmax(dim=1)  # (batch,)
    rows = torch.arange(len(positions), device=positions.device)
    shares = []

    def record(_layer, arguments, output):
        before, after = arguments[0][rows, positions].float(), output[rows, positions].float()
        shares.append((after - before).norm(dim=-1) / before.norm(dim=-1))

    hooks = [layer.register_forward_hook(record) for layer in decoder(model).layers]
    try:
        last_hidden_state(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(shares)


@torch.no_grad()
def layer_shares(
    model, which: str, tokenizer, processor, n_samples: int = 32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """For each kind of prompt ("text", "image") the mean share of every decoder layer, (layers,)."""
    model.eval()
    kinds = {"text": tasks.TEXT_TASKS} | ({"image": pictures.IMAGE_TASKS} if which == "vl" else {})
    shares = {}
    for kind, names in kinds.items():
        sequences = [sequence for task in names for sequence in held_out_sequences(task, "chat", n_samples, seed)]
        batch = collate(sequences, tokenizer, processor, str(model.device))
        shares[kind] = layer_updates(model, batch).mean(dim=1).cpu()
    return shares
