"""How often the pair of frames that a question needs is the one that matters most, in videos where it is known.

    python benchmarks/bench_truth.py --parts video

Of held-out films of the demo it is known without which pairs of frames the others don't give the answer: "What appears?" needs
the last frames before the figure comes, if there are no others, as much as those that show it. Films that need no single pair
are left out. Each pair is hidden; the film is explained as a run does it; pixels are replaced from coarse to fine. Whether
the model itself needs the pair is found without any measure, by leaving its frames out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from truth_pieces import effects_of, first_word, percent

from mask_impact.analyses import explain, pixels
from mask_impact.analyses.settings import RunSettings
from mask_impact.demo import moving
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import EncodedPrompt, encode
from mask_impact.prompts.videos import Clip, read_video

HOW = ("hidden", "said", "searched")


@dataclass(frozen=True)
class FilmCase:
    """A question about a film as the model gets it. pairs: the positions of the tokens of each pair of frames;
    needed: the pairs without each of which the others don't give the answer."""

    sample: moving.FilmSample
    video: Clip
    encoded: EncodedPrompt
    pairs: tuple[tuple[int, ...], ...]
    needed: tuple[int, ...]

    def pair_of(self, positions: Sequence[int]) -> int | None:
        """The one pair that holds all of these positions; None where there is none."""
        return next((number for number, pair in enumerate(self.pairs) if {*positions} <= {*pair}), None)


def prepare(loaded: LoadedModel, sample: moving.FilmSample) -> FilmCase:
    """Encode a film and find its pairs among the tokens. ValueError where tokens are not cells of pairs of frames."""
    video = read_video(list(sample.film.frames()))
    encoded = encode(loaded, sample.question, [video])
    positions = [position for position, kind in enumerate(encoded.tokens.kinds) if kind == "video"]
    rows, columns = sample.film.grid
    if len(positions) != len(sample.film.scenes) * rows * columns:
        raise ValueError(
            f"'{loaded.name}' sees {len(positions)} tokens in {len(sample.film.scenes)} pairs of {rows}x{columns}"
        )
    pairs = tuple(map(tuple, np.array(positions).reshape(len(sample.film.scenes), -1).tolist()))
    return FilmCase(sample, video, encoded, pairs, sample.film.needed_pairs(sample.question))


def changes_without(loaded: LoadedModel, case: FilmCase) -> bool:
    """Whether the model answers otherwise when the frames of a pair that is needed are left out of the film."""
    frames, n = case.sample.film.frames(), 2
    for pair in case.needed:
        left = frames[: pair * n] + frames[pair * n + n :]
        if (
            not left
            or first_word(loaded, encode(loaded, case.sample.question, [read_video(list(left))])) != case.sample.answer
        ):
            return True
    return False


@dataclass(frozen=True)
class FilmHits:
    """Of one film: whether the pair of frames that comes first is a needed one.

    hidden: that which costs the answer most when it is hidden; said: that of the first vision token of a run's ranking;
    searched: that which the search by pixels finds, at the cost of `forwards` forward passes. changes: whether the answer
    changes without a needed pair's frames; chance: the share of needed pairs.
    """

    hidden: bool
    said: bool
    searched: bool
    changes: bool
    chance: float
    forwards: float


def look(loaded: LoadedModel, case: FilmCase) -> FilmHits:
    """What hiding, a run and a search by pixels say of one film that is answered right."""
    inputs = {name: value.to(loaded.model.device) for name, value in case.encoded.inputs.items()}
    hidden = int(effects_of(loaded, inputs, case.pairs).logprob_change.argmin())
    (target,) = explain.run(loaded, case.sample.question, RunSettings(num_tokens=1), [case.video]).targets
    ranked = (case.pair_of(target.positions[place]) for place in target.ranked(content_only=True))
    found = pixels.run(loaded, case.sample.question, pixels.Question(), RunSettings(), [case.video])
    return FilmHits(
        hidden=hidden in case.needed,
        said=next(pair for pair in ranked if pair is not None) in case.needed,
        searched=case.pair_of(found.regions[found.targets[0].found].positions) in case.needed,
        changes=changes_without(loaded, case),
        chance=len(case.needed) / len(case.pairs),
        forwards=found.forwards,
    )


def report_video(loaded: LoadedModel, n: int, seed: int) -> None:
    """How often what matters most is a needed pair, in `n` films, half of each task."""
    print(
        "\n== Videos: whether the pair of frames that comes first is one that the answer needs\n"
        "hidden: costs the answer most of all pairs; said: holds the first cell of a run's ranking; searched: found by\n"
        "replacing pixels from coarse to fine. Then of the films whose answer changes when a needed pair is left out of the film"
    )
    every: list[FilmHits] = []
    for task in moving.MOVING_TASKS:
        drawn = [prepare(loaded, sample) for sample in moving.moving_samples(task, n // len(moving.MOVING_TASKS), seed)]
        right = [case for case in drawn if first_word(loaded, case.encoded) == case.sample.answer]
        hits = [look(loaded, case) for case in right if case.needed]
        print(f"{task:8} {len(right)} of {len(drawn)} right, {len(hits)} need a single pair", flush=True)
        print_hits(hits)
        every += hits
    print("both")
    print_hits(every)
    passes = np.mean([one.forwards for one in every])
    print(
        f"    the search took {passes:.1f} forward passes, with {' and '.join(pixels.DEFAULT_FILLS)} for what is found"
    )


def print_hits(hits: Sequence[FilmHits]) -> None:
    """A line of all films, and one of those whose answer changes without a needed pair."""
    for name, part in (("all", hits), ("changes", [one for one in hits if one.changes])):
        if part:
            shares = (f"{how} {percent(np.array([getattr(one, how) for one in part]), digits=1)}" for how in HOW)
            chance = 100 * np.mean([one.chance for one in part])
            print(f"    {name:8} n {len(part):3}: {'; '.join(shares)} (chance {chance:.1f})", flush=True)
