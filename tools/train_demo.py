"""Train the bundled demo checkpoints (`mask_impact/demo/vl` and `mask_impact/demo/text`), or measure those that exist.

    python tools/train_demo.py                          # both models, resuming what build/demo holds
    python tools/train_demo.py --which text --work DIR
    python tools/train_demo.py --evaluate-only
    python tools/train_demo.py --which vl --given vl=mask_impact/demo/vl    the stages behind `vl`, from the weights of a folder

Twenty-three stages, each starting from the weights of another:

    words (6 decoder layers) -> lookup -> recall -> quiz -> phrases (6) -> deep_text (28) -> text    text only
                             -> pictures (6, vision tower added)                                     pictures and text
                                pictures + quiz -> both (6) -> deep_vl (36) -> raw_vl -> facts_vl
                                                -> all_vl -> vl -> tower -> seeing
                                                -> easy_tower -> asked -> quizzed -> answered -> finished -> settled -> balanced

`both` starts from the sum of what `quiz` and `pictures` have each learned since `words`, which the two have in common.
`tower` trains the vision tower alone, on figures larger than a cell (`demo_training/tower.py`), and `seeing` the whole
model, on them, videos and easy-VQA too (`pip install easy-vqa`); both know a few words more (`tokenizer.extended`). After
them three of four questions of easy-VQA are answered, because the tower does not tell the shapes of its pictures.
`easy_tower` trains the tower alone on these while the features of all other pictures stay; `asked` the whole model on
questions about them, of which those for yes or no stay near chance; `quizzed` on many of these about one picture, which is
where the model learns to compare; `answered` on everything; `finished` shortly on words and pictures above all; `settled`
on facts in raw form, of which some had been lost; and `balanced` on both, since counting had suffered. The bundled
checkpoint had other shares of the lessons in the course of `seeing` and in the first 100 steps of `quizzed` (at 7e-4,
falling over 1250 steps), and the first 800 steps of `easy_tower` had the learning rates of a stage of 800. The stages up to
`text` and `vl` took about an hour of two CPU cores.

The state of the running stage is kept in the work folder, so the same command goes on after an interruption and takes
the same steps: what is trained on at a step follows from the seed, the stage and the step's number alone.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from demo_training import evaluation, lessons, models, sequences  # noqa: E402
from demo_training.tokenizer import build_tokenizer, extended  # noqa: E402
from demo_training.tower import EasyTowerLesson, LargeTowerLesson  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer  # noqa: E402

from mask_impact import demo  # noqa: E402

BATCH_SIZE = 32
WARMUP_STEPS = 50
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Stage:
    """One training run. image_share: share of the steps that are on pictures, the others being on text.
    kinds: weights of facts, recaps, recall and quizzes among the latter.
    raw_share: share of the facts and recall sequences without chat template; a third of it for pictures.
    exact_share: share of the facts that are one of the few prompts of the documentation.
    add: (stage, earlier stage): what the one has learned since the other is added to the decoder before the first step.
    n_decay_steps: length of the learning rate's half cosine; a stage may end before it does.
    lessons: what stands in for image_share: weights of "text", "images" and those of `lessons.lesson`; a step is on one.
    tower: what the vision tower is trained on alone, one of TOWER_LESSONS. knows_more: the tokenizer has the later words."""

    name: str
    which: str
    n_layers: int
    start_from: str | None
    n_steps: int
    n_decay_steps: int
    learning_rate: float
    image_share: float = 0.0
    kinds: tuple[int, int, int, int] = (2, 4, 4, 0)
    raw_share: float = 0.3
    exact_share: float = 0.0
    add: tuple[str, str] | None = None
    lessons: Mapping[str, float] = field(default_factory=dict)
    tower: str | None = None
    knows_more: bool = False
    batch_size: int = BATCH_SIZE


TOWER_LESSONS = {"large": LargeTowerLesson, "easy": EasyTowerLesson}
SEEING_LESSONS = {
    "text": 0.18, "images": 0.2, "large": 0.13, "larger": 0.05, "equal": 0.02, "appears": 0.11, "first": 0.04, "easy": 0.27,
}  # fmt: skip
ASKED_LESSONS = {
    "text": 0.1, "images": 0.15, "large": 0.07, "larger": 0.03, "equal": 0.02, "appears": 0.06, "first": 0.03, "easy": 0.54,
}  # fmt: skip
QUIZZED_LESSONS = {
    "text": 0.06, "images": 0.1, "large": 0.04, "larger": 0.02, "appears": 0.03, "first": 0.02, "easy": 0.13, "easy_quiz": 0.6,
}  # fmt: skip
ANSWERED_LESSONS = {
    "text": 0.15, "images": 0.2, "large": 0.09, "larger": 0.04, "equal": 0.02, "appears": 0.07, "first": 0.03,
    "easy": 0.33, "easy_quiz": 0.07,
}  # fmt: skip
FINISHED_LESSONS = {
    "text": 0.33, "images": 0.37, "large": 0.07, "larger": 0.03, "appears": 0.04, "first": 0.03, "easy": 0.13,
}  # fmt: skip
SETTLED_LESSONS = {
    "text": 0.52, "images": 0.12, "large": 0.12, "larger": 0.02, "appears": 0.04, "first": 0.02, "easy": 0.16,
}  # fmt: skip
BALANCED_LESSONS = {
    "text": 0.38, "images": 0.38, "large": 0.05, "larger": 0.02, "appears": 0.03, "first": 0.02, "easy": 0.12,
}  # fmt: skip


def _everything(
    name: str, start_from: str, n_steps: int, n_decay_steps: int, rate: float, lessons: Mapping[str, float], *,
    kinds: tuple[int, int, int, int] = (8, 0, 2, 0), raw_share: float = 0.5, exact_share: float = 0.25,
) -> Stage:  # fmt: skip
    """One of the late stages of the whole model, on lessons of every kind."""
    return Stage(
        name, "vl", models.GROWN_LAYERS["vl"], start_from, n_steps, n_decay_steps, rate, 0.0, kinds, raw_share, exact_share,
        lessons=lessons, knows_more=True, batch_size=16,
    )  # fmt: skip


STAGES = {
    stage.name: stage
    for stage in (
        Stage("words", "text", models.SEED_LAYERS, None, 1000, 4000, 2e-3),
        Stage("lookup", "text", models.SEED_LAYERS, "words", 800, 1200, 2e-3),
        Stage("recall", "text", models.SEED_LAYERS, "lookup", 900, 1000, 2e-3, kinds=(3, 1, 6, 0)),
        Stage("quiz", "text", models.SEED_LAYERS, "recall", 500, 500, 2e-3, kinds=(2, 0, 3, 5)),
        Stage("phrases", "text", models.SEED_LAYERS, "quiz", 250, 250, 1.5e-3, kinds=(2, 1, 5, 2)),
        Stage("deep_text", "text", models.GROWN_LAYERS["text"], "phrases", 300, 300, 1e-3, kinds=(4, 1, 4, 1)),
        Stage("text", "text", models.GROWN_LAYERS["text"], "deep_text", 240, 240, 8e-4, 0.0, (8, 0, 2, 0), 0.75),
        Stage("pictures", "vl", models.SEED_LAYERS, "words", 1500, 2000, 2e-3, image_share=0.7),
        Stage("both", "vl", models.SEED_LAYERS, "pictures", 500, 500, 2e-3, 0.5, (3, 0, 5, 2), add=("quiz", "words")),
        Stage("deep_vl", "vl", models.GROWN_LAYERS["vl"], "both", 300, 300, 1e-3, 0.45, (6, 0, 3, 1)),
        Stage("raw_vl", "vl", models.GROWN_LAYERS["vl"], "deep_vl", 160, 160, 7e-4, 0.55, (8, 0, 2, 0), 0.9),
        Stage("facts_vl", "vl", models.GROWN_LAYERS["vl"], "raw_vl", 160, 160, 7e-4, 0.35, (8, 0, 1, 0), 0.9),
        Stage("all_vl", "vl", models.GROWN_LAYERS["vl"], "facts_vl", 300, 300, 8e-4, 0.75, (7, 0, 2, 0), 0.75),
        Stage("vl", "vl", models.GROWN_LAYERS["vl"], "all_vl", 300, 300, 1e-3, 0.75, (8, 0, 2, 0), 0.6, 0.25),
        Stage("tower", "vl", models.GROWN_LAYERS["vl"], "vl", 700, 740, 3e-3, tower="large", knows_more=True),
        _everything("seeing", "tower", 1700, 1700, 8e-4, SEEING_LESSONS),
        Stage("easy_tower", "vl", models.GROWN_LAYERS["vl"], "seeing", 1600, 1600, 3e-3, tower="easy", knows_more=True),
        _everything("asked", "easy_tower", 400, 1600, 7e-4, ASKED_LESSONS),
        _everything("quizzed", "asked", 400, 1600, 1e-3, QUIZZED_LESSONS),
        _everything("answered", "quizzed", 800, 800, 8e-4, ANSWERED_LESSONS),
        _everything("finished", "answered", 110, 110, 4e-4, FINISHED_LESSONS, raw_share=0.6),
        _everything("settled", "finished", 200, 200, 5e-4, SETTLED_LESSONS, kinds=(8, 0, 1, 0), raw_share=0.85, exact_share=0.15),
        _everything("balanced", "settled", 180, 180, 5e-4, BALANCED_LESSONS, kinds=(8, 0, 1, 0), raw_share=0.8, exact_share=0.15),
    )
}  # fmt: skip
FINAL_STAGES = {"text": "text", "vl": "balanced"}
FINAL_PATHS = {"text": demo.TEXT_PATH, "vl": demo.VL_PATH}


def learning_rate(stage: Stage, step: int) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return stage.learning_rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage.n_decay_steps)))


def training_batch(stage: Stage, step: int, seed: int, tokenizer, processor, device: str) -> sequences.Batch:
    rng = random.Random(f"{seed}/{stage.name}/{step}")
    if stage.lessons:
        kind = rng.choices(list(stage.lessons), list(stage.lessons.values()))[0]
    else:
        kind = "images" if rng.random() < stage.image_share else "text"
    if kind == "images":
        drawn = sequences.image_sequences(rng, stage.batch_size, stage.raw_share / 3)
    elif kind == "text":
        drawn = sequences.text_sequences(rng, stage.batch_size, stage.kinds, stage.raw_share, stage.exact_share)
    else:
        drawn = lessons.lesson(kind, rng, stage.batch_size)
    return sequences.collate(drawn, tokenizer, processor, device)


def answer_loss(model, batch: sequences.Batch) -> torch.Tensor:
    """The mean loss per supervised token."""
    wanted = batch.labels != sequences.IGNORED
    logits = model.lm_head(evaluation.last_hidden_state(model, batch)[wanted])  # (supervised tokens, vocabulary)
    return torch.nn.functional.cross_entropy(logits, batch.labels[wanted])


def training_step(optimizer, loss: torch.Tensor) -> float:
    """One optimizer step; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], CLIP_NORM)
    optimizer.step()
    return loss.item()


def save_state(path: Path, **state) -> None:
    """Write beside the place and rename, so that an interruption leaves the previous state whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def initial_model(stage: Stage, tokenizer, options: argparse.Namespace):
    """The stage's model before its first step: untrained, or grown from the stage that it starts from."""
    torch.manual_seed(options.seed)
    model = models.build_model(stage.which, stage.n_layers, tokenizer)
    if stage.start_from is None:
        models.start_with_lookback_heads(model)
        return model
    source = STAGES[stage.start_from]
    if source.name in options.given:
        seed_model = _automatic(source.which).from_pretrained(options.given[source.name], dtype=torch.float32)
    else:
        seed_model = models.build_model(source.which, source.n_layers, _tokenizer(source))
        seed_model.load_state_dict(torch.load(options.work / f"{source.name}.pt", map_location="cpu")["model"])
    if stage.add:
        later, earlier = (torch.load(options.work / f"{name}.pt", map_location="cpu")["model"] for name in stage.add)
        models.add_difference(seed_model, later, earlier)
    models.grow(seed_model, model, torch.Generator().manual_seed(options.seed))
    return model


def _tokenizer(stage: Stage):
    return extended(build_tokenizer()) if stage.knows_more else build_tokenizer()


def _automatic(which: str):
    return AutoModelForImageTextToText if which == "vl" else AutoModelForCausalLM


def train(stage: Stage, options: argparse.Namespace, processor):
    """Train one stage to its end, from its saved state where there is one; returns the model (float32)."""
    path, tokenizer = options.work / f"{stage.name}.pt", _tokenizer(stage)
    state = torch.load(path, map_location="cpu") if path.exists() else None
    if state is None:
        for needed in (stage.start_from, *(stage.add or ())):
            if needed and needed not in options.given:
                train(STAGES[needed], options, processor)
        model = initial_model(stage, tokenizer, options)
    else:
        model = models.build_model(stage.which, stage.n_layers, tokenizer)
        model.load_state_dict(state["model"])
    model.to(options.device)
    lesson = TOWER_LESSONS[stage.tower](model, processor, options.device) if stage.tower else None
    if lesson and state:
        lesson.load_state_dict(state["lesson"])
    trained = lesson.parameters() if lesson else list(model.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    first_step = state["step"] if state else 0
    running = None
    bar = tqdm(
        range(first_step, stage.n_steps), initial=first_step, total=stage.n_steps, desc=stage.name, mininterval=5
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        model.train()
        if lesson:
            loss = lesson.loss(random.Random(f"{options.seed}/{stage.name}/{step}"))
        else:
            batch = training_batch(stage, step, options.seed, tokenizer, processor, options.device)
            loss = answer_loss(model, batch)
        loss = training_step(optimizer, loss)
        running = loss if running is None else 0.98 * running + 0.02 * loss
        bar.set_postfix(loss=f"{running:.3f}", refresh=False)
        done = step + 1
        if done % options.evaluate_every == 0:
            line = lesson.told() if lesson else _told(model, stage, tokenizer, processor, options)
            tqdm.write(f"{stage.name} step {done}: loss {running:.3f}; {line}", file=sys.stderr)
        if done % options.save_every == 0 or done == stage.n_steps:
            more = {"lesson": lesson.state_dict()} if lesson else {}
            save_state(path, step=done, model=model.state_dict(), optimizer=optimizer.state_dict(), **more)
    return model


def _told(model, stage: Stage, tokenizer, processor, options: argparse.Namespace) -> str:
    """The accuracies of a stage while it runs, on few samples."""
    names = evaluation.tasks_of(stage.which, stage.knows_more)
    names = tuple(evaluation.WATCHED_TASK if name == "easy" else name for name in names)
    scores = evaluation.evaluate(model, names, tokenizer, processor, options.n_watched, seed=1, forms=("chat",))
    return ", ".join(f"{score.task} {score.accuracy:.0%}" for score in scores)


def write_checkpoint(model, which: str, tokenizer, processor) -> None:
    """The final directory in bfloat16; the old one is replaced only when the new one is complete."""
    final = FINAL_PATHS[which]
    part, old = final.with_name(f"{which}.part"), final.with_name(f"{which}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    if which == "vl":
        processor.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)
    if final.exists():
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def report(which: str, options: argparse.Namespace) -> bool:
    """Measure the checkpoint as it lies on the disk, in its own dtype; print; True if it is good enough."""
    path = FINAL_PATHS[which]
    model = _automatic(which).from_pretrained(path, dtype="auto").to(options.device)
    tokenizer, processor = AutoTokenizer.from_pretrained(path), models.image_processor()
    names = evaluation.tasks_of(which, STAGES[FINAL_STAGES[which]].knows_more)
    scores = evaluation.evaluate(model, names, tokenizer, processor, options.n_samples)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{which}: {path}, {size / 1e6:.2f} MB, {model.dtype}, {len(tokenizer)} tokens; held-out accuracy:")
    good = True
    for score in scores:
        required = evaluation.required_accuracy(score.task, score.form)
        enough = score.accuracy >= required
        good &= enough
        print(f"  {score}{'' if enough else f'  BELOW {required:.0%}'}")
    for kind, shares in evaluation.layer_shares(model, which, tokenizer, processor).items():
        print(f"  each layer's update over its input at the last position, {kind} prompts, in %:")
        print("   ", " ".join(f"{100 * share:.0f}" for share in shares.tolist()))
        lowest = int(shares.argmin())
        good &= bool(shares.min() >= evaluation.REQUIRED_SHARE)
        print(f"    lowest {shares.min():.1%} (layer {lowest}), highest {shares.max():.1%}")
    return good


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--which", choices=("vl", "text", "both"), default="both")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo", help="folder for the states (build/demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (torch's own choice)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n-samples", type=int, default=300, help="held-out samples of each task and form (300)")
    parser.add_argument("--n-watched", type=int, default=64, help="samples of each task while a stage runs (64)")
    parser.add_argument(
        "--given", type=_given, nargs="+", default=(), metavar="STAGE=DIR", help="checkpoints that stand in for stages"
    )
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--evaluate-every", type=int, default=250, metavar="STEPS")
    parser.add_argument(
        "--only-stage", choices=tuple(STAGES), help="train this stage (and what it needs), write nothing"
    )
    parser.add_argument("--evaluate-only", action="store_true", help="measure the checkpoints that exist")
    options = parser.parse_args(argv)
    options.given = dict(options.given)
    return options


def _given(text: str) -> tuple[str, Path]:
    stage, _, folder = text.partition("=")
    if stage not in STAGES or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(
            f"'{text}' is no stage and folder; STAGE=DIR is accepted, such as vl=mask_impact/demo/vl"
        )
    return stage, Path(folder)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = ("text", "vl") if options.which == "both" else (options.which,)
    if not options.evaluate_only:
        processor = models.image_processor()
        if options.only_stage:
            train(STAGES[options.only_stage], options, processor)
            return 0
        for which in wanted:
            stage = STAGES[FINAL_STAGES[which]]
            write_checkpoint(train(stage, options, processor), which, _tokenizer(stage), processor)
    good = [report(which, options) for which in wanted]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
