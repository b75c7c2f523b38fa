"""Whether what a run says the answer used is the truth, on held-out demo pictures where that is known.

    python benchmarks/bench_answer.py                         three draws of 200 pictures: some ten minutes
    python benchmarks/bench_answer.py --pictures 40 --draws 1 a first look

Each picture is explained as `mask-impact run` does it, with its default budget. Held against it: in which cell the answer stands,
and what hiding each cell really does, all of them measured. A question that the model answers wrongly is left out.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_truth as truth

import mask_impact
from mask_impact.analyses import explain
from mask_impact.analyses.settings import RunSettings
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.images import read_picture
from mask_impact.results.explanations import ExplainedTarget, TokenSet

AT = 5  # of recall


def mass(scores: np.ndarray, true: int) -> float:
    """The share of the positive scores that is on the true cell; scores: [V]."""
    positive = np.maximum(scores, 0)
    return float(positive[true] / positive.sum()) if positive.any() else 0.0


def look(loaded: LoadedModel, case: truth.Case, budget: int) -> dict[str, float]:
    """One picture: what is said of it against what is true; 1 for yes, NaN where a question does not arise."""
    picture = read_picture(case.sample.image)
    settings = RunSettings(num_tokens=1, budget=budget)
    started = time.perf_counter()
    (target,) = explain.run(loaded, case.sample.question, settings, [picture]).targets
    seconds = time.perf_counter() - started
    cells = [target.positions.index((position,)) for position in range(case.vision.start, case.vision.stop)]
    exact = truth.effects_of(loaded, truth.inputs_of(loaded, case), [target.positions[place] for place in cells])
    contribution, winner = -target.contribution[cells], int(exact.logprob_change.argmin())
    measured = np.nan_to_num(-target.logprob_change[cells], nan=0.0)
    ranked = [place for place in target.ranked(content_only=True) if place in cells]
    strongest = np.argsort(-contribution, kind="stable")
    return {
        "contribution: true cell first": float(strongest[0] == case.truth),
        f"contribution: true cell among {AT}": float(case.truth in strongest[:AT]),
        "contribution: mass on it": mass(contribution, case.truth),
        "gradient: true cell first": float((-target.estimate_local[cells]).argmax() == case.truth),
        "gradient: mass on it": mass(-target.estimate_local[cells], case.truth),
        "measured: the exact winner first": float(ranked[0] == cells[winner]),
        "measured: mass on the true cell": mass(measured, case.truth),
        "exact: true cell first": float(winner == case.truth),
        "exact: mass on it": mass(-exact.logprob_change, case.truth),
        "forward passes that measuring took": target.forwards,
        "said to be reliable": float(target.reliable is not False),
        "seconds": seconds,
        **of_evidence(target, cells[case.truth], bool((exact.top1 != exact.likeliest)[case.truth])),
    }


def of_evidence(target: ExplainedTarget, true: int, changes: bool) -> dict[str, float]:
    """Of the cells that decide the answer. changes: whether hiding the true cell changes it."""
    nan = float("nan")
    found = [one for one in target.evidence if one.kind == "image"]
    needed, enough = (found[0].necessary, found[0].sufficient) if found else (None, None)

    def has(chosen: TokenSet | None) -> float:
        return nan if chosen is None else float(true in chosen.places)

    return {
        "evidence: searched": float(bool(found)),
        "evidence: a necessary set is found, of those searched": nan if not found else float(needed is not None),
        "evidence: it contains the true cell": has(needed),
        "evidence: at most 2 cells, where hiding the true one changes": nan
        if not changes
        else float(needed is not None and len(needed.places) <= 2),
        "evidence: a sufficient set is found, of those searched": nan if not found else float(enough is not None),
        "evidence: that contains the true cell": has(enough),
        "evidence: confirmed by generate()": nan
        if needed is None and enough is None
        else float(all(one.confirmed for one in (needed, enough) if one is not None)),
        "evidence: forward passes": nan if not found else found[0].forwards,
    }


def report(title: str, looks: Sequence[dict[str, float]]) -> None:
    """The means over the pictures, and of how many."""
    print(f"\n== {title}: {len(looks)} pictures that are answered right")
    for name in looks[0]:
        values = np.array([one[name] for one in looks])
        values = values[np.isfinite(values)]
        if values.size:
            print(f"  {name:62}{values.mean():8.3f}   n = {values.size}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=200, help="of each draw (default: 200)")
    parser.add_argument("--draws", type=int, default=3, help="how many, each of another seed (default: 3)")
    parser.add_argument("--seed", type=int, default=100, help="of the first draw (default: 100)")
    parser.add_argument("--budget", type=int, default=12, help="forward passes (default: 12)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = mask_impact.load("demo", kind="vl", dtype="float32")
    for seed in range(args.seed, args.seed + args.draws):
        cases = [truth.prepare(loaded, sample) for sample in truth.draw_samples(args.pictures, seed)]
        looks = [look(loaded, case, args.budget) for case in truth.answered(loaded, cases)]
        report(f"seed {seed}, budget {args.budget}", looks)


if __name__ == "__main__":
    main()
