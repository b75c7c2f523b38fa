"""How often the vision token that carries the answer is the one with the largest score, on pictures where it is known.

    python benchmarks/bench_truth.py                   distances, and effects on the answer: some four minutes
    python benchmarks/bench_truth.py --parts effects   the effects alone: two or three
    python benchmarks/bench_truth.py --parts pixels    pixels replaced, cell by cell and by a search: some four
    python benchmarks/bench_truth.py --parts search    the search alone: one or two
    python benchmarks/bench_truth.py --parts deepstack what each part of the true cell's features does: some four
    python benchmarks/bench_truth.py --parts tower     what the vision tower reads, and what matters: some four
    python benchmarks/bench_truth.py --parts mixing    whether what the tower carries between patches matters, by task: one
    python benchmarks/bench_truth.py --parts video     which frames matter, in videos: some six
    python benchmarks/bench_truth.py --queries         also distances at each position of the question: some ten

The pictures are held-out demo pictures with a question each, whose answer stands in one cell of several that show a
figure. The measures of the package and raw attention weights are held against that truth, in the same ways of going
from layers to one score for each vision token. Where a layer or a head is chosen, it is chosen on other pictures than
those counted. A question that the model answers wrongly is left out: its answer came from somewhere else.

An answer can be read at one position and produced at a later one, so `--queries` also finds out, without any measure,
at which position the model reads the picture: by hiding it from a position in all layers and asking for the answer.

The effect on the answer is asked for twice: which cell costs the right answer most, and whether the answer changes when
a cell is hidden. The model may say the same without it, so its answer to the picture with the figure painted over, which is
asked for without hiding anything, tells what there is to find. `bench_deletion.py` has deletion and insertion curves;
`bench_answer.py` what the answer used as a run says it: estimates, what is measured within a budget, evidence.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import truth_of_films
from truth_pieces import effects_of, first_word, percent

import mask_impact
from mask_impact.analyses import deepstack, pixels, tower
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.settings import RunSettings
from mask_impact.demo import moving, pictures, wholes
from mask_impact.engine.choices import FILLS
from mask_impact.engine.recording import RawStep
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import EncodedPrompt, encode
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.videos import read_video

PARTS = ("distances", "effects", "pixels", "search", "deepstack", "tower", "mixing", "video")
OF_ALL_TASKS = {"mixing", "video"}
USUAL = PARTS[:2]
TASKS = ("color", "shape")
FULL, ATTENTION = "Full L2", "Attention weight"
BEST_HEAD, ATTENTION_BEST_HEAD = "Head L2, best head", "Attention, best head"
RIVALS = {
    FULL: ATTENTION,
    "Full cosine": ATTENTION,
    "Attn L2": ATTENTION,
    "Attn cosine": ATTENTION,
    "Head L2, all heads": ATTENTION,
    BEST_HEAD: ATTENTION_BEST_HEAD,
}
"""Each measure, and the baseline that has the same freedom: the mean over heads, or a head that is chosen."""


# -- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A question about a picture as the model gets it, with V vision tokens: one for each cell, in reading order.

    first: position of the first of them, which stand in one piece; truth: index of the one that carries the answer;
    figures: bool [V], those that show a figure.
    """

    sample: pictures.ImageSample
    encoded: EncodedPrompt
    first: int
    truth: int
    figures: np.ndarray

    @property
    def vision(self) -> slice:
        """The positions of the vision tokens."""
        return slice(self.first, self.first + len(self.figures))

    def length(self, position: int) -> int:
        """Tokens of the prompt up to a position, itself included; -1 is the last position."""
        return self.encoded.n_tokens + position + 1


def draw_samples(n: int, seed: int, exclude: Sequence[pictures.ImageSample] = ()) -> list[pictures.ImageSample]:
    """`n` held-out samples, half of each task, with one true cell among two or more figures; no scene of `exclude`."""
    seen = {sample.scene for sample in exclude}
    samples: list[pictures.ImageSample] = []
    for number, task in enumerate(TASKS):
        wanted, n_drawn = (n + 1 - number) // 2, n
        usable: list[pictures.ImageSample] = []
        while len(usable) < wanted:  # a larger draw begins with the smaller one
            drawn = pictures.image_samples(task, n_drawn, seed, held_out=True)
            usable = [s for s in drawn if len(s.cells) == 1 and len(s.scene.figures) > 1 and s.scene not in seen]
            n_drawn *= 2
        samples += usable[:wanted]
        seen.update(sample.scene for sample in samples)
    return samples


def prepare(loaded: LoadedModel, sample: pictures.ImageSample) -> Case:
    """Encode a sample and find its cells among the tokens. ValueError where tokens are not cells."""
    encoded = encode(loaded, sample.question, [read_picture(sample.image)])
    grid, cells = encoded.images[0].grid, sample.scene.grid
    if grid != cells:
        raise ValueError(f"'{loaded.name}' sees {grid} tokens in a picture of {cells} cells: a token has to be a cell")
    columns = grid[1]
    (truth,) = (row * columns + column for row, column in sample.cells)
    figures = np.zeros(grid[0] * columns, dtype=bool)
    figures[[figure.cell[0] * columns + figure.cell[1] for figure in sample.scene.figures]] = True
    return Case(sample, encoded, int(np.flatnonzero(encoded.tokens.image == 0)[0]), truth, figures)


def answered(loaded: LoadedModel, cases: Sequence[Case]) -> list[Case]:
    """The cases that the model answers right."""
    return [case for case in cases if is_right(loaded, case)]


def is_right(loaded: LoadedModel, case: Case, blind: Sequence[int] = ()) -> bool:
    """Whether the model answers right, with the picture hidden from some positions (-1 is the last one)."""
    token = int(blinded_logits(loaded, case, blind).argmax())
    return loaded.tokenizer.decode([token]).strip() == case.sample.answer


def painted_over(loaded: LoadedModel, case: Case) -> Case:
    """The same question about the picture without the figure that it asks for; the answer stays what it was."""
    (cell,) = case.sample.cells
    return prepare(loaded, replace(case.sample, image=case.sample.scene.without(cell).image()))


@torch.no_grad()
def blinded_logits(loaded: LoadedModel, case: Case, blind: Sequence[int] = ()) -> torch.Tensor:
    """Logits of the next token where the positions `blind` (-1 is the last one) see no vision token in any layer."""
    visible = torch.ones(case.encoded.n_tokens, case.encoded.n_tokens, dtype=torch.bool).tril()
    for position in blind:
        visible[position, case.vision] = False
    mask = torch.zeros(visible.shape, dtype=loaded.model.dtype).masked_fill(~visible, -torch.inf)
    mask = mask[None, None].to(loaded.model.device)

    def replace_mask(module, args, kwargs):
        return args, kwargs | {"attention_mask": mask}

    with ExitStack() as stack:
        for layer in decoder_of(loaded.model).layers:
            handle = layer.module.register_forward_pre_hook(replace_mask, with_kwargs=True)
            stack.callback(handle.remove)
        return loaded.model(**inputs_of(loaded, case), use_cache=False, logits_to_keep=1).logits[0, -1]


def reading(loaded: LoadedModel, cases: Sequence[Case]) -> tuple[dict[int, tuple[float, float]], int]:
    """Where the model reads the picture, told by hiding it: nothing is measured. The cases are of one task.

    For each position behind the picture (-1 is the last one), the share of right answers where it alone does not see
    the picture, and where it alone does; and the position that matters most: the second less the first is largest.
    """
    n_behind = cases[0].encoded.n_tokens - cases[0].vision.stop
    positions = range(-n_behind, 0)
    table = {}
    for position in positions:
        others = [other for other in positions if other != position]
        without, alone = (np.mean([is_right(loaded, case, blind) for case in cases]) for blind in ([position], others))
        table[position] = float(without), float(alone)
    return table, max(positions, key=lambda position: table[position][1] - table[position][0])


# -- measuring --------------------------------------------------------------------------------------------------------


def inputs_of(loaded: LoadedModel, case: Case, position: int = -1) -> dict[str, torch.Tensor]:
    """The model's inputs, cut behind a position (-1: not cut) that is behind the picture.

    Attention is causal, so the last position of the cut prompt computes what that position of the whole prompt does.
    """
    length, per_token = case.length(position), ("input_ids", "attention_mask", "mm_token_type_ids")
    return {
        name: (value[:, :length] if name in per_token else value).to(loaded.model.device)
        for name, value in case.encoded.inputs.items()
    }


@torch.no_grad()
def measure(loaded: LoadedModel, case: Case, position: int = -1) -> RawStep:
    """What the engine measures at a position (-1 is the last one), of all tokens up to it."""
    config = greedy_config(loaded.model, num_tokens=1)
    with RidingEngine(loaded.model) as engine:
        loaded.model.generate(**inputs_of(loaded, case, position), generation_config=config)
    return engine.steps[0]


@contextmanager
def eager(loaded: LoadedModel) -> Iterator[None]:
    """The model with the attention backend that gives out its weights."""
    backend = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        loaded.model.set_attn_implementation(backend)


@torch.no_grad()
def head_weights(loaded: LoadedModel, case: Case) -> np.ndarray:
    """Attention weights as the model itself gives them out: [H, L, query, key]. Needs `eager`."""
    output = loaded.model(**inputs_of(loaded, case), output_attentions=True, use_cache=False)
    return torch.stack([weights[0] for weights in output.attentions], dim=1).float().cpu().numpy()


@dataclass(frozen=True)
class Table:
    """The scores of n pictures at one query position, and their truth.

    scores: by measure [n, heads or 1, L, V]; truth: int [n]; figures: bool [n, V].
    """

    scores: dict[str, np.ndarray]
    truth: np.ndarray
    figures: np.ndarray

    def hits(self, scores: np.ndarray, among_figures: bool = False) -> np.ndarray:
        """bool [n, ...]: whether the true token's score is the largest of all, or of those that show a figure.

        scores: [n, ..., V]. A largest score that two tokens share is no hit.
        """
        shape = (len(scores), *[1] * (scores.ndim - 2), scores.shape[-1])
        is_true = (np.arange(scores.shape[-1]) == self.truth[:, None]).reshape(shape)
        rivals = ~is_true & self.figures.reshape(shape) if among_figures else ~is_true
        return np.where(is_true, scores, -np.inf).max(-1) > np.where(rivals, scores, -np.inf).max(-1)


def measure_all(loaded: LoadedModel, cases: Sequence[Case], positions: Sequence[int] = (-1,)) -> list[Table]:
    """A table for each position (-1 is the last one), with all measures and baselines."""
    with eager(loaded):
        weights = [head_weights(loaded, case)[..., case.vision] for case in cases]
    return [
        make_table(cases, [_scores(measure(loaded, case, position), case, own[:, :, position])
                           for case, own in zip(cases, weights, strict=True)])
        for position in positions
    ]  # fmt: skip


def _scores(step: RawStep, case: Case, weights: np.ndarray) -> dict[str, np.ndarray]:
    """By measure [heads or 1, L, V]; weights: the attention weights of every head, [H, L, V]."""
    # [Full, Attn and the heads; L, V]
    l2, cosine = (distances[:, case.vision].movedim(2, 0).numpy() for distances in (step.l2, step.cosine))
    return {
        FULL: l2[:1],
        "Full cosine": cosine[:1],
        "Attn L2": l2[1:2],
        "Attn cosine": cosine[1:2],
        "Head L2, all heads": l2[2:].mean(0, keepdims=True),
        ATTENTION: step.attention[None, :, case.vision].numpy(),
        BEST_HEAD: l2[2:],
        ATTENTION_BEST_HEAD: weights,
    }


def make_table(cases: Sequence[Case], scores: Sequence[dict[str, np.ndarray]]) -> Table:
    """The scores of several pictures in one table."""
    truth, figures = np.array([case.truth for case in cases]), np.stack([case.figures for case in cases])
    return Table({name: np.stack([one[name] for one in scores]) for name in scores[0]}, truth, figures)


# -- the effect on the answer -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellEffects:
    """What hiding each cell of n pictures does to the answer, which is right with nothing hidden.

    cost: float32 [n, V], how many nats of log-probability the right answer loses; changes: bool [n, V], whether the answer
    becomes another. true, figures: bool [n, V], the cell that carries the answer, and all that show a figure.
    """

    KINDS: ClassVar = ("true", "other figure", "empty")

    cost: np.ndarray
    changes: np.ndarray
    true: np.ndarray
    figures: np.ndarray

    def __getitem__(self, which: np.ndarray) -> "CellEffects":
        """Those of the pictures; which: bool [n]."""
        return CellEffects(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @property
    def hits(self) -> np.ndarray:
        """bool [n]: whether hiding the true cell costs more than hiding any other."""
        return np.where(self.true, self.cost, -np.inf).max(1) > np.where(self.true, -np.inf, self.cost).max(1)

    def changed(self, kind: str) -> np.ndarray:
        """bool, one for each cell of one of KINDS, of all pictures: whether hiding it changes the answer."""
        cells = {"true": self.true, "other figure": self.figures & ~self.true, "empty": ~self.figures}[kind]
        return self.changes[cells]


def cell_effects(loaded: LoadedModel, cases: Sequence[Case], queries: str = "all") -> CellEffects:
    """The effects of hiding each cell; cases: those that are answered right."""
    found = []
    for case in cases:
        cells = [[position] for position in range(case.vision.start, case.vision.stop)]
        found.append(effects_of(loaded, inputs_of(loaded, case), cells, queries))
    return CellEffects(
        cost=np.stack([-one.logprob_change for one in found]),
        changes=np.stack([one.top1 != one.produced for one in found]),
        true=np.stack([np.arange(len(case.figures)) == case.truth for case in cases]),
        figures=np.stack([case.figures for case in cases]),
    )


# -- from layers to one score -----------------------------------------------------------------------------------------


def shares(scores: np.ndarray) -> np.ndarray:
    """Each layer's scores divided by their sum over the tokens given: every layer counts the same."""
    return scores / np.maximum(scores.sum(-1, keepdims=True), np.finfo(scores.dtype).tiny)


def largest_share(third: int) -> Callable[[np.ndarray], np.ndarray]:
    """The largest share within a third of the layers: 0 the early, 1 the middle, 2 the late ones."""

    def aggregate(scores: np.ndarray) -> np.ndarray:
        n_layers = scores.shape[2]
        return shares(scores[:, :, third * n_layers // 3 : (third + 1) * n_layers // 3]).max(2)

    return aggregate


AGGREGATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean of shares": lambda scores: shares(scores).mean(2),
    "plain mean": lambda scores: scores.mean(2),
    "best layer": lambda scores: scores,
    "early max": largest_share(0),
    "middle max": largest_share(1),
    "late max": largest_share(2),
}
"""From scores [n, heads or 1, L, V] to [n, heads or 1, V], or with the layers still there to choose from."""


def evaluate(
    counted: Table, others: Table, name: str, aggregation: str, among_figures: bool = False
) -> tuple[np.ndarray, str]:
    """bool [n], whether the true token of each of `counted` is on top; and which layer (L) and head (H) that is by.

    Both are those that have the most hits among `others`, the first of several.
    """
    aggregate = AGGREGATIONS[aggregation]
    shares_of_hits = others.hits(aggregate(others.scores[name]), among_figures).mean(0)  # [heads or 1] or [.., L]
    best = np.unravel_index(shares_of_hits.argmax(), shares_of_hits.shape)
    hits = counted.hits(aggregate(counted.scores[name])[(slice(None), *best)], among_figures)
    chosen = zip("HL", best, shares_of_hits.shape, strict=False)
    return hits, "".join(f"{letter}{index}" for letter, index, size in chosen if size > 1)


# -- printing ---------------------------------------------------------------------------------------------------------


def print_shares(counted: Table, others: Table, among_figures: bool) -> None:
    """Measures down, ways of going from layers to one score across."""
    print(f"{'measure':20}" + "".join(f"{aggregation:>19}" for aggregation in AGGREGATIONS))
    for name in counted.scores:
        line = f"{name:20}"
        for aggregation in AGGREGATIONS:
            hits, chosen = evaluate(counted, others, name, aggregation, among_figures)
            line += f"{f'{chosen} {percent(hits)}':>19}"
        print(line)


def print_rivals(counted: Table, others: Table) -> None:
    """Where a measure and its baseline differ on the same picture: which of the two is right."""
    print(f"{'measure':20}" + "".join(f"{aggregation:>19}" for aggregation in AGGREGATIONS))
    for name, rival in RIVALS.items():
        line = f"{name:20}"
        for aggregation in AGGREGATIONS:
            hits, rival_hits = (evaluate(counted, others, one, aggregation)[0] for one in (name, rival))
            line += f"{f'{(hits & ~rival_hits).sum()} : {(rival_hits & ~hits).sum()}':>19}"
        print(line)


def report(counted: Table, others: Table) -> None:
    """How often the true token is on top of all at one position, and where measures and attention weights differ."""
    n_tokens = counted.figures.shape[1]
    print(f"\nThe true cell has the largest score of all {n_tokens} vision tokens (chance: {100 / n_tokens:.1f})")
    print_shares(counted, others, among_figures=False)
    print("\nPictures where only the measure has the true cell on top of all tokens : only the attention weight has")
    print_rivals(counted, others)


def report_effects(loaded: LoadedModel, cases: Sequence[Case]) -> None:
    """What hiding a cell in all layers does to the answer, from all queries and from the last one alone."""
    print(
        "\n== Hiding one cell in all layers: the effect on the answer\n"
        "on top: hiding the true cell costs the right answer most. Then: how often the answer changes when what is hidden "
        "is\nthe true cell, a cell with another figure, an empty cell; and when the figure is painted over instead\n"
        f"{'hidden from':13}{'question':10}{'n':>4}{'on top':>16}"
        + "".join(f"{kind:>16}" for kind in (*CellEffects.KINDS, "painted over"))
    )
    asked = np.array([case.sample.task for case in cases])
    painted = np.array([not is_right(loaded, painted_over(loaded, case)) for case in cases])
    for queries, name in (("all", "all queries"), ("last", "the last one")):
        effects = cell_effects(loaded, cases, queries)
        for task in (*TASKS, "both"):
            chosen = (asked == task) | (task == "both")
            part = effects[chosen]
            columns = [part.hits, *map(part.changed, part.KINDS), painted[chosen]]
            line = f"{name:13}{task:10}{chosen.sum():4}"
            print(line + "".join(f"{percent(column, digits=1):>16}" for column in columns), flush=True)
        agree = (effects.changed("true") == painted).sum()
        print(
            f"{'':13}hiding and painting over agree on whether the answer changes in {agree} of {len(cases)}; of the "
            f"{painted.sum()} that\n{'':13}painting over changes, the true cell is on top in "
            f"{effects.hits[painted].sum()}"
        )
    cells = ", ".join(f"{len(effects.changed(kind))} {kind}" for kind in effects.KINDS)
    print(f"Cells that are hidden, each in its turn: {cells}")


def replaced(loaded: LoadedModel, case: Case, question: pixels.Question) -> pixels.PatchEffects:
    """What replacing pixels does to the first token of the answer."""
    picture = read_picture(case.sample.image)
    return pixels.run(loaded, case.sample.question, question, RunSettings(), [picture])


def true_found(cases: Sequence[Case], every: Sequence[pixels.PatchEffects]) -> np.ndarray:
    """bool [n], whether what matters most is the true cell."""
    found = [one.regions[one.targets[0].found].positions for one in every]
    return np.array([places == (case.first + case.truth,) for places, case in zip(found, cases, strict=True)])


def report_pixels(loaded: LoadedModel, cases: Sequence[Case], fills: Sequence[str], beams: Sequence[int]) -> None:
    """Each cell's pixels replaced, by each of the fills; and the search from coarse to fine, with each of the beams."""
    print(
        "\n== A cell's pixels replaced: the effect on the answer\n"
        "on top: replacing the true cell costs the right answer most. Then: how often the answer changes when the pixels of\n"
        "the true cell, of a cell with another figure, of an empty cell are replaced\n"
        f"{'replaced by':13}{'question':10}{'n':>4}{'on top':>16}"
        + "".join(f"{kind:>16}" for kind in CellEffects.KINDS)
    )
    every = [replaced(loaded, case, pixels.Question(fills=tuple(fills), by="tokens")) for case in cases]
    asked = np.array([case.sample.task for case in cases])
    true = np.stack([np.arange(len(case.figures)) == case.truth for case in cases])
    figures = np.stack([case.figures for case in cases])
    for fill in fills:
        rows = [found.targets[0].rows(fill=fill) for found in every]
        cost = -np.stack([found.targets[0].logprob_change[row] for found, row in zip(every, rows, strict=True)])
        changed = np.stack([found.targets[0].differs[row] for found, row in zip(every, rows, strict=True)])
        effects = CellEffects(cost, changed, true, figures)
        for task in (*TASKS, "both"):
            part = effects[(asked == task) | (task == "both")]
            columns = [part.hits, *map(part.changed, part.KINDS)]
            line = f"{fill:13}{task:10}{len(part.cost):4}"
            print(line + "".join(f"{percent(column, digits=1):>16}" for column in columns), flush=True)
    print(f"on top by the fill that does least: {percent(true_found(cases, every), digits=1)}")
    report_searches(loaded, cases, fills, beams)


def report_searches(loaded: LoadedModel, cases: Sequence[Case], fills: Sequence[str], beams: Sequence[int]) -> None:
    """How often a search finds the true cell, with each of the beams, and what it takes."""
    for beam in beams:
        found = [replaced(loaded, case, pixels.Question(fills=tuple(fills[:2]), beam=beam)) for case in cases]
        hits = true_found(cases, found)
        print(
            f"search, beam {beam}: the true cell in {hits.sum()} of {len(hits)}, {percent(hits, digits=1)}; "
            f"{np.mean([one.forwards for one in found]):.1f} forward passes with {' and '.join(fills[:2])} for what is found"
        )


def other_scenes(case: Case) -> Iterator[tuple[str, pictures.Scene]]:
    """The scene with what is asked for in the true cell in each colour or shape that no figure has, so that the answer is that
    one."""
    task, scene = case.sample.task, case.sample.scene
    used = {getattr(figure, task) for figure in scene.figures}
    for word in (word for word in (pictures.COLORS if task == "color" else pictures.SHAPES) if word not in used):
        other = scene.repainted(*case.sample.cells, **{task: word})
        if other.answer(case.sample.question) == (word, case.sample.cells):
            yield word, other


def parts_kept(loaded: LoadedModel, case: Case, other: pictures.Scene | None = None) -> deepstack.DeepstackEffects:
    """What each set of parts of the true cell's features does; other: a scene whose features stand in for the rest."""
    picture = None if other is None else read_picture(other.image())
    question = deepstack.Question(f"tokens {case.first + case.truth}", other=picture, answers=False)
    images = [read_picture(case.sample.image)]
    return deepstack.run(loaded, case.sample.question, question, RunSettings(), images)


def report_deepstack(loaded: LoadedModel, cases: Sequence[Case]) -> None:
    """What each part of the true cell's features adds, held against the cell blanked; and exchanged for a repainted cell's."""
    print(
        "\n== The true cell's features by parts. Baseline: the picture with the cell blanked. Shapley values in nats, mean"
    )
    for task in TASKS:
        of_task = [case for case in cases if case.sample.task == task]
        found = [parts_kept(loaded, case) for case in of_task]
        names, targets = [part.name for part in found[0].parts], [one.targets[0] for one in found]
        adds = np.stack([one.shapley for one in targets])
        largest = np.bincount(adds.argmax(axis=1), minlength=len(names))
        last, changed = len(targets[0].top1) - 1, np.stack([one.differs for one in targets])
        print(f"{task}, n {len(of_task)}: of {adds.sum(axis=1).mean():.2f}")
        for part, name in enumerate(names):
            print(
                f"    {name:9} {adds[:, part].mean():6.2f}, most in {largest[part]:2}; the answer changes without it in "
                f"{changed[:, last - (1 << part)].sum():2}, and stays with it alone in {(~changed[:, 1 << part]).sum():2}",
                flush=True,
            )
        for answer in sorted({case.sample.answer for case in of_task}):
            mine = adds[[case.sample.answer == answer for case in of_task]]
            print(f"    of {answer} ({len(mine)}): {', '.join(f'{one:.2f}' for one in mine.mean(axis=0))}", flush=True)
    print(
        "Parts exchanged for those of the cell in each other colour or shape: how often the answer becomes that one; and\n"
        "with the parts that do so most often alone or in pairs, by the answer without"
    )
    for task in TASKS:
        turned: dict[str, list[bool]] = {}
        answers: list[str] = []
        for case in (case for case in cases if case.sample.task == task):
            for word, scene in other_scenes(case):
                found = parts_kept(loaded, case, scene)
                target, last = found.targets[0], len(found.targets[0].top1) - 1
                texts = [target.top1_texts[int(token)].strip() for token in target.top1]
                if texts[0] != word:  # the model answers the repainted picture wrongly
                    continue
                answers.append(case.sample.answer)
                for exchanged in range(1, last + 1):
                    turned.setdefault(found.kept(exchanged), []).append(texts[last - exchanged] == word)
        parts = sorted(turned.items(), key=lambda one: one[0].count("+"))
        print(f"    {task}, n {len(answers)}: {'; '.join(f'{name} {sum(hits)}' for name, hits in parts)}", flush=True)
        few = [(name, hits) for name, hits in parts if name.count("+") < 2]
        for name, hits in sorted(few, key=lambda one: -sum(one[1]))[:3]:
            each = {
                answer: [hit for hit, own in zip(hits, answers, strict=True) if own == answer] for answer in answers
            }
            shown = (f"{answer} {sum(own)} of {len(own)}" for answer, own in sorted(each.items()))
            print(f"        {name}: {', '.join(shown)}", flush=True)


def report_tower(loaded: LoadedModel, cases: Sequence[Case]) -> None:
    """What the vision tower's layers read of each cell, and what hiding each cell in all of them does to the answer."""
    print(
        "\n== The vision tower: a cell hidden from all others in its layers\n"
        "reads: the true cell has the largest share of the attention's output, mean over the layers, of all cells and of those\n"
        "with a figure. Then what matters: how often the answer changes when the true cell, a cell with another figure, an\n"
        "empty cell is hidden in all layers of the tower; and the change of the answer's log-probability"
    )
    question = tower.Question(pixels.Question(by="tokens"), unit="token")
    found = [
        tower.run(loaded, case.sample.question, question, RunSettings(), [read_picture(case.sample.image)])
        for case in cases
    ]
    asked = np.array([case.sample.task for case in cases])
    reads = np.stack([one.readings[0].attention.mean(axis=0).ravel() for one in found])
    true = np.stack([np.arange(len(case.figures)) == case.truth for case in cases])
    figures = np.stack([case.figures for case in cases])
    targets = [
        one.targets[0] for one in found
    ]  # the cells in reading order: they were asked about first, all in one run
    cost = -np.stack([one.logprob_change[: figures.shape[1]] for one in targets])
    changed = np.stack([one.differs[: figures.shape[1]] for one in targets])
    effects = CellEffects(cost, changed, true, figures)
    chance = 100 * np.mean(1 / figures.sum(axis=1))
    for task in (*TASKS, "both"):
        chosen = (asked == task) | (task == "both")
        part, of_task = effects[chosen], reads[chosen]
        most = of_task.argmax(axis=1)
        rows = np.arange(len(of_task))
        print(
            f"{task:6} n {len(rows):3}: read most: the true cell {percent(true[chosen][rows, most], digits=1)}, a figure "
            f"{percent(figures[chosen][rows, most], digits=1)} (true among figures by chance: {chance:.1f}); hidden, the answer "
            f"changes: {', '.join(f'{kind} {percent(part.changed(kind), digits=1)}' for kind in part.KINDS)}",
            flush=True,
        )
    ratio = [np.median(read[here]) / np.median(read[~here]) for read, here in zip(reads, figures, strict=True)]
    print(f"cells with a figure are read {np.median(ratio):.1f} times as much as empty ones (quartiles "
          f"{np.quantile(ratio, 0.25):.1f} to {np.quantile(ratio, 0.75):.1f})")  # fmt: skip
    print(
        f"change of the answer's log-probability with the true cell hidden: median {-np.median(cost[true]):.1e} nats, largest "
        f"{np.abs(cost[true]).max():.1e}; with the cell that matters most: median {-np.median(cost.max(axis=1)):.1e}"
    )


@contextmanager
def patches_alone(loaded: LoadedModel) -> Iterator[None]:
    """The vision tower with each patch seeing only itself, in all of its layers."""

    def each_its_own(module, args, kwargs):
        n = len(args[0] if args else kwargs["hidden_states"])
        bounds = torch.arange(n + 1, dtype=torch.int32, device=kwargs["cu_seqlens"].device)
        return args, kwargs | {"cu_seqlens": bounds}

    with ExitStack() as stack:
        for block in loaded.model.model.visual.blocks:
            stack.callback(block.register_forward_pre_hook(each_its_own, with_kwargs=True).remove)
        yield


def draw_task(loaded: LoadedModel, task: str, n: int, seed: int) -> list[tuple[EncodedPrompt, str]]:
    """(prompt, true answer) of `n` held-out samples of a task of any module of the demo, whose answers are one word."""
    if task in moving.MOVING_TASKS:
        films = moving.moving_samples(task, n, seed)
        return [(encode(loaded, one.question, [read_video(list(one.film.frames()))]), one.answer) for one in films]
    draw = wholes.whole_samples if task in wholes.WHOLE_TASKS else pictures.image_samples
    return [(encode(loaded, one.question, [read_picture(one.image)]), one.answer) for one in draw(task, n, seed)]


def report_mixing(loaded: LoadedModel, n: int, seed: int) -> None:
    """Of each task, how often the answer is another where the tower carries nothing between patches."""
    print(
        "\n== The vision tower, each patch seeing only itself in all of its layers: how often a right answer becomes another\n"
        "large: a figure over 2x2 cells, whose shape no cell tells; appears and first: videos"
    )
    for task in (*TASKS, "count", *wholes.WHOLE_TASKS, *moving.MOVING_TASKS):
        drawn = draw_task(loaded, task, n, seed)
        right = [(encoded, answer) for encoded, answer in drawn if first_word(loaded, encoded) == answer]
        with patches_alone(loaded):
            changed = np.array([first_word(loaded, encoded) != answer for encoded, answer in right])
        share = percent(changed, digits=1) if len(changed) else "none to ask"
        print(f"    {task:8} {len(right):3} of {len(drawn)} right; changed: {share}", flush=True)


def report_last(loaded: LoadedModel, counted: Sequence[Case], others: Sequence[Case]) -> None:
    """The distances and attention weights at the position that produces the answer."""
    last = [measure_all(loaded, cases)[0] for cases in (counted, others)]
    print("\n== The last position, which produces the answer")
    report(*last)
    by_figures = 100 * np.mean(1 / last[0].figures.sum(1))
    print(f"\nThe true cell has the largest score of the cells that show a figure (chance: {by_figures:.1f})")
    print_shares(*last, among_figures=True)


def report_queries(
    loaded: LoadedModel, task: str, counted: Sequence[Case], others: Sequence[Case], n_pictures: int
) -> None:
    """Each position behind the picture: whether the model reads it there, and how often the true cell is on top.

    That is done on `n_pictures` of `counted`; then all of them at the position that matters most.
    """
    if len({case.encoded.n_tokens for case in (*counted, *others)}) > 1:
        raise ValueError(f"the questions of task {task} differ in length: positions can't be put side by side")
    few = counted[:n_pictures], others[:n_pictures]
    blinding, reads = reading(loaded, few[0])
    tables = [measure_all(loaded, cases, list(blinding)) for cases in few]
    chance, by_figures = 100 / len(few[0][0].figures), 100 * np.mean(1 / tables[0][0].figures.sum(1))
    print(
        f"\n== {task}: each position behind the picture, {len(few[0])} pictures, layers chosen on {len(few[1])}\n"
        f"The true cell has the largest score of all vision tokens (chance: {chance:.1f}, or {by_figures:.1f} where "
        f"all that is told is which cells show a figure).\n"
        f"without: right answers where this position alone does not see the picture; alone: where no other does"
    )
    columns = [(name, aggregation) for name in (FULL, ATTENTION) for aggregation in ("mean of shares", "best layer")]
    print(f"{'':34}{FULL:>34}{ATTENTION:>34}\n{'pos':>3} {'token':16}{'without':>8}{'alone':>6}", end="")
    print("".join(f"{aggregation:>17}" for _, aggregation in columns))
    for (position, (without, alone)), *pair in zip(blinding.items(), *tables, strict=True):
        texts = {case.encoded.tokens.texts[position] for case in few[0]}
        text = repr(texts.pop()) if len(texts) == 1 else "(asked word)"
        line = f"{counted[0].length(position) - 1:3} {text:16}{100 * without:8.0f}{100 * alone:6.0f}"
        for name, aggregation in columns:
            hits, chosen = evaluate(*pair, name, aggregation)
            line += f"{f'{chosen} {percent(hits)}':>17}"
        print(line)
    print(f"\n-- {task}: position {counted[0].length(reads) - 1}, which reads the picture; {len(counted)} pictures")
    steps = [measure(loaded, case) for case in few[0]]
    for name, scores in (
        (FULL, np.stack([step.l2[..., 0].numpy() for step in steps])),
        (ATTENTION, np.stack([step.attention.numpy() for step in steps])),
    ):
        ranks = shares(scores).mean(1).argsort(1)[:, ::-1] == scores.shape[-1] + reads
        top, top_three = (100 * ranks[:, :n].any(1).mean() for n in (1, 3))
        print(
            f"At the last position it is the top token by {name} in {top:.0f}, one of the top three in {top_three:.0f}"
        )
    report(*(measure_all(loaded, cases, [reads])[0] for cases in (counted, others)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="demo", help="a vision-language model whose tokens are cells of 32x32 pixels"
    )
    parser.add_argument(
        "--dtype", default="float32", help="number format (default: float32, as many processors are slow with bfloat16)"
    )
    parser.add_argument("--pictures", type=int, default=200, help="how many to count, half of each task")
    parser.add_argument("--choose-on", type=int, default=100, help="how many others to choose layers and heads on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=USUAL,
        help="distances, effects on the answer (default: both), pixels replaced, the search of them alone, DeepStack's "
        "levels, the vision tower, what it carries between patches, videos",
    )
    parser.add_argument("--fills", nargs="+", choices=FILLS, default=FILLS, help="what replaces pixels (default: all)")
    parser.add_argument(
        "--beams", nargs="*", type=int, default=[1, 2], help="of searches (default: 1 2; none: no search)"
    )
    parser.add_argument("--queries", action="store_true", help="also each position of the question and behind it")
    parser.add_argument("--query-pictures", type=int, default=60, help="how many of each for that, half of each task")
    args = parser.parse_args()
    if args.model == "demo":
        torch.set_num_threads(1)  # its layers are too small for more
    loaded = mask_impact.load(args.model, kind="vl", dtype=args.dtype)

    print("Shares in %, with their 95 % interval. Layers (L) and heads (H) are chosen on other pictures.")
    started = time.perf_counter()
    if "mixing" in args.parts:
        report_mixing(loaded, args.pictures, args.seed)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "video" in args.parts:
        truth_of_films.report_video(loaded, args.pictures, args.seed)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if set(args.parts) <= OF_ALL_TASKS and not args.queries:
        return
    counted = draw_cases(loaded, "to count", args.pictures, args.seed)
    others = []
    if "distances" in args.parts or args.queries:
        others = draw_cases(loaded, "to choose on", args.choose_on, args.seed + 1, exclude=counted)
    if "distances" in args.parts:
        report_last(loaded, counted, others)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "effects" in args.parts:
        report_effects(loaded, counted)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "pixels" in args.parts:
        report_pixels(loaded, counted, args.fills, args.beams)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "search" in args.parts:
        report_searches(loaded, counted, args.fills, args.beams)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "deepstack" in args.parts:
        report_deepstack(loaded, counted)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "tower" in args.parts:
        report_tower(loaded, counted)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if args.queries:
        for task in TASKS:
            of_task = ([case for case in cases if case.sample.task == task] for cases in (counted, others))
            report_queries(loaded, task, *of_task, max(1, args.query_pictures // len(TASKS)))
            print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def draw_cases(loaded: LoadedModel, purpose: str, n: int, seed: int, exclude: Sequence[Case] = ()) -> list[Case]:
    """Pictures that the model answers right, out of `n`; says how many."""
    samples = draw_samples(n, seed, [case.sample for case in exclude])
    cases = answered(loaded, [prepare(loaded, sample) for sample in samples])
    if {case.sample.task for case in cases} != set(TASKS):
        raise SystemExit(f"of {n} pictures {purpose}, '{loaded.name}' answers none of a task right: nothing to measure")
    print(f"{n} held-out pictures {purpose}: {len(cases)} answered right")
    return cases


if __name__ == "__main__":
    main()
