"""Whether what a run says the answer used is the truth, on texts that a real language model recalls a fact from.

    python benchmarks/bench_recall.py                 50 prompts of some 40 to 230 tokens, SmolLM2: some fifteen minutes
    python benchmarks/bench_recall.py --prompts 8     a first look
    python benchmarks/bench_recall.py --chat          the model's own answers, in a chat: some thirty minutes
    python benchmarks/bench_recall.py --on demo       the bundled text model, whose truth is known: some two minutes

A prompt tells of several people where they live and what they keep, and asks where one of them lives. The answer is begun ("Anna
lives in"), and what is asked about is the token that the model goes on with, whether that is right or wrong; in a chat, the first
town that is named in the model's own answer. Every token is really hidden, from all
queries in all layers: the exact winner is the content token that costs that town most. Held against it, among content: the
contribution, the plain gradient, and evidence as `mask-impact run` finds it with its default budget.

The demo's stories say where the word stands that carries the answer. There evidence is held against that word; a question that
the model answers wrongly is left out.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mask_impact
from mask_impact.analyses import explain
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.demo import tasks
from mask_impact.engine.backward import estimates
from mask_impact.engine.kept import keep
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.content import content_positions
from mask_impact.prompts.encoding import encode
from mask_impact.results.sinks import find_sinks

PEOPLE = ("Anna", "Peter", "Maria", "John", "Emma", "David", "Laura", "Simon", "Julia", "Martin", "Helen", "Oscar")
TOWNS = (
    "Paris",
    "London",
    "Rome",
    "Berlin",
    "Madrid",
    "Vienna",
    "Oslo",
    "Dublin",
    "Lisbon",
    "Prague",
    "Warsaw",
    "Athens",
)
FILLERS = (
    "The weather was mild, and the trains were on time for most of the week.",
    "Some of them met at a small market on Saturday and talked about music and books.",
    "A new bridge was opened in spring, and people came from far away to see it.",
)
PETS = ("cat", "dog", "horse", "parrot", "rabbit", "snake", "goat", "turtle", "hamster", "pig", "cow", "fish")
TOP = 8  # candidates in which the exact top three are looked for
ANSWER = 12  # tokens
COST = "exact: what hiding the winner costs, nats"
CLEAR = 1.0  # nats: where nothing costs as much, no token carries the answer by itself


@dataclass(frozen=True)
class Recall:
    """A prompt, the town that would be right, and how an answer begins."""

    prompt: str
    answer: str
    begun: str


def draw(n: int, seed: int) -> list[Recall]:
    """n prompts, of four to twelve people, with and without sentences between."""
    rng = random.Random(seed)
    return [_one(rng, 4 + number % 9, FILLERS[: number % 4]) for number in range(n)]


def _one(rng: random.Random, n: int, fillers: tuple[str, ...]) -> Recall:
    people, towns, pets = rng.sample(PEOPLE, n), rng.sample(TOWNS, n), rng.sample(PETS, n)
    facts = [f"{one} lives in {town} and has a {pet}." for one, town, pet in zip(people, towns, pets, strict=True)]
    asked = rng.randrange(n)
    sentences = [*facts, *fillers]
    rng.shuffle(sentences)
    return Recall(
        " ".join([*sentences, f"Where does {people[asked]} live?"]), towns[asked], f"{people[asked]} lives in"
    )


def town_of(loaded: LoadedModel, case: Recall) -> str | None:
    """The first town that the model's answer names; None where it names none."""
    said = mask_impact.without(loaded, case.prompt, [], num_tokens=ANSWER).answer.text
    named = [town for town in TOWNS if town in said]
    return min(named, key=said.index, default=None)


@dataclass(frozen=True)
class Truth:
    """What hiding each content token really does to the target's log-probability, and what is estimated, float64 [n]; negative:
    the token speaks for it. positions, names: of the tokens; town: the target's text; n_tokens: of the prompt."""

    positions: list[int]
    names: list[str]
    exact: np.ndarray
    estimated: dict[str, np.ndarray]
    town: str
    n_tokens: int


def of_begun(loaded: LoadedModel, prompt: str) -> Truth:
    """Of the token that the model goes on with."""
    encoded = encode(loaded, prompt, raw=True)
    kept = keep(loaded.model, encoded.inputs)
    n = kept.n_positions
    target = Target(n - 1, int(kept.logits[-1].argmax()))
    by_rule = estimates(kept, [target])
    content = content_positions(encoded.tokens, n)
    content[list(find_sinks(by_rule["gradient"].received.numpy()))] = False
    positions = np.flatnonzero(content).tolist()
    variants = each_window_and_group([[one] for one in positions], n, len(kept.decoder.layers), "all", "all")
    exact = measure_targets(kept, variants, [target], kept.logits[-1:]).logprob_change.astype(float)
    estimated = {
        name: by_rule[rule].every.sum(dim=(0, 1)).double().numpy()[positions]
        for name, rule in (("contribution", "frozen"), ("gradient", "gradient"))
    }
    names = [encoded.tokens.texts[one] for one in positions]
    return Truth(positions, names, exact, estimated, loaded.tokenizer.decode([target.token]).strip(), n)


def of_chat(loaded: LoadedModel, prompt: str, town: str) -> Truth:
    """Of a town in the model's own answer."""
    settings = RunSettings(num_tokens=ANSWER, target=town, groups="tokens", content_only=True, budget=10**6)
    whole = explain.run(loaded, prompt, settings)
    (target,) = whole.targets
    single = [place for place, positions in enumerate(target.positions) if len(positions) == 1]  # no sentences
    estimated = {"contribution": target.contribution[single], "gradient": target.estimate_local[single]}
    positions = [target.positions[place][0] for place in single]
    names = [target.names[place] for place in single]
    return Truth(positions, names, target.logprob_change[single].astype(float), estimated, town, whole.n_prompt)


def look(loaded: LoadedModel, case: Recall, chat: bool) -> dict[str, float] | None:
    """One prompt: where the exact winner stands by each measure, from 1; NaN where a question does not arise."""
    if chat:
        town = town_of(loaded, case)
        if town is None:
            return None
        prompt, common = case.prompt, {"num_tokens": ANSWER, "target": town}
        true = of_chat(loaded, prompt, town)
    else:
        prompt, common = f"{case.prompt} {case.begun}", {"num_tokens": 1, "raw": True}
        true = of_begun(loaded, prompt)
    exact, winner = -true.exact, int(true.exact.argmin())
    at = true.positions[winner]
    (usual,) = explain.run(loaded, prompt, RunSettings(**common)).targets
    found = next((one for one in usual.evidence if one.kind == "text"), None)
    needed = None if found is None else found.necessary
    named = set() if needed is None else {*needed.places, *found.each}
    nan = float("nan")
    row = {
        "tokens": float(true.n_tokens),
        "right": float(case.answer.startswith(true.town)),
        COST: float(exact[winner]),
        "exact: the winner is the town that is named": float(true.names[winner].strip() == true.town),
        "measured: the exact winner is among what is named first": float(
            any(at in usual.positions[place] for place in usual.used(5))
        ),
        "evidence: a necessary set is found": float(needed is not None),
        "evidence: it contains the exact winner": nan
        if needed is None
        else float(any(at in usual.positions[place] for place in named)),
        "evidence: words": nan if needed is None else float(len(named)),
        "said to be reliable": float(usual.reliable is not False),
        "forward passes that measuring took": usual.forwards,
    }
    top = set(np.argsort(-exact)[:3].tolist())
    for name, estimated in true.estimated.items():
        score = -estimated
        order = np.argsort(-score, kind="stable").tolist()
        row[f"{name}: winner first"] = float(order[0] == winner)
        row[f"{name}: place of the winner"] = float(order.index(winner) + 1)
        row[f"{name}: of the exact top three among {TOP}"] = float(len(top & set(order[:TOP])))
        row[f"{name}: rank correlation"] = float(spearmanr(score, exact)[0])
    return row


def look_demo(loaded: LoadedModel, sample: tasks.TextSample) -> dict[str, float] | None:
    """One story: whether what carries the answer is found; None where the answer is wrong."""
    prepared = prepare(loaded, sample.prompt, RunSettings(num_tokens=ANSWER))
    found = explain.run(loaded, sample.prompt, RunSettings(num_tokens=ANSWER))
    if not found.generated_text.startswith(sample.answer):
        return None
    templated = prepared.encoded.text
    offsets = loaded.tokenizer(templated, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    (target,) = found.targets
    carry = set(tasks.evidence_positions(sample, templated, offsets))
    of_text = next((one for one in target.evidence if one.kind == "text"), None)
    needed = None if of_text is None else of_text.necessary
    places = set() if needed is None else {*needed.places, *of_text.each}
    named = {at for place in places for at in target.positions[place]}
    listed = {at for place in target.used(5) for at in target.positions[place]}
    nan = float("nan")
    return {
        "tokens": float(found.n_prompt),
        "measured: what carries the answer is among what is named first": float(bool(carry & listed)),
        "evidence: a necessary set is found": float(needed is not None),
        "evidence: what carries the answer is in it, or changes it alone": nan
        if needed is None
        else float(bool(carry & named)),
        "evidence: words": nan if needed is None else float(len(places)),
        "said to be reliable": float(target.reliable is not False),
        "forward passes that measuring took": target.forwards,
    }


def show(looks: list[dict[str, float]]) -> None:
    """Means."""
    for key in looks[0]:
        values = np.array([one[key] for one in looks])
        values = values[np.isfinite(values)]
        if values.size:
            middle = f"   median {np.median(values):g}" if "place" in key or key == "tokens" else ""
            print(f"  {key:62}{values.mean():8.3f}{middle}")


def on_demo(n: int, seed: int) -> None:
    """The demo's stories."""
    loaded = mask_impact.load("demo", kind="text", device="cpu")
    for task in tasks.RECALL_TASKS:
        samples = tasks.text_samples(task, n, seed)
        looks = [one for one in (look_demo(loaded, sample) for sample in samples) if one is not None]
        print(f"\n== demo, {task}: {len(looks)} of {n} that are answered right, seed {seed}")
        show(looks)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=50, help="(default: 50; of the demo, of each task)")
    parser.add_argument("--on", choices=("smollm2", "demo"), default="smollm2", help="(default: %(default)s)")
    parser.add_argument("--chat", action="store_true", help="the model's own answers, not begun ones")
    parser.add_argument("--seed", type=int, default=3, help="of the prompts (default: 3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.on == "demo":
        on_demo(args.prompts, args.seed)
        return
    loaded = mask_impact.load("smollm2", kind="text")
    looks = []
    for number, case in enumerate(draw(args.prompts, args.seed), start=1):
        found = look(loaded, case, args.chat)
        looks += [] if found is None else [found]
        print(f"{number} of {args.prompts}", file=sys.stderr, flush=True)
    print(f"{args.prompts - len(looks)} of {args.prompts} answers name no town and are left out")
    lengths = [int(one["tokens"]) for one in looks]
    print(f"\n== SmolLM2, {len(looks)} prompts of {min(lengths)} to {max(lengths)} tokens, seed {args.seed}")
    parts = {
        "all": looks,
        "right answers": [one for one in looks if one["right"]],
        "wrong answers": [one for one in looks if not one["right"]],
        f"hiding the winner costs at least {CLEAR:g} nat": [one for one in looks if one[COST] >= CLEAR],
    }
    for name, part in parts.items():
        print(f"\n{name}: {len(part)}")
        if part:
            show(part)


if __name__ == "__main__":
    main()
