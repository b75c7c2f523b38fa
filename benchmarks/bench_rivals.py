"""What finds the cell of a picture that an answer used, and what it costs: this project's measures beside what others use.

    python benchmarks/bench_rivals.py                  60 held-out demo pictures: some ten minutes
    python benchmarks/bench_rivals.py --pictures 12    a first look

All run on the same pictures in the same run, each picture by all methods before the next. Costs are in forward passes of the same
prompt: the median of a method's times over the median of a plain forward's.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_truth as truth
from rivals import METHODS

import mask_impact
from mask_impact.models.loading import LoadedModel

AT = 5  # of recall


@torch.no_grad()
def forward(loaded: LoadedModel, case: truth.Case) -> None:
    """A plain forward pass."""
    loaded.model(**truth.inputs_of(loaded, case), use_cache=False, logits_to_keep=1)


def told(scores: np.ndarray, case: truth.Case) -> dict[str, float]:
    """What a method's scores say of one picture."""
    positive = np.maximum(scores, 0)
    order = np.argsort(-scores, kind="stable")
    share = positive / positive.sum() if positive.any() else positive
    return {
        "first": float(order[0] == case.truth),
        "mass": float(share[case.truth]),
        f"in {AT}": float(case.truth in order[:AT]),
        "figures": float(share[case.figures].sum()),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=60, help="(default: 60)")
    parser.add_argument("--seed", type=int, default=7, help="of the pictures (default: 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")
    samples = truth.draw_samples(args.pictures, args.seed)
    cases = truth.answered(loaded, [truth.prepare(loaded, sample) for sample in samples])
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", *METHODS)}
    for number, case in enumerate(cases, start=1):
        for name, method in (("forward", forward), *METHODS.items()):
            started = time.perf_counter()
            scores = method(loaded, case)
            seconds[name].append(time.perf_counter() - started)
            if name in rows:
                rows[name].append(told(scores, case))
        print(f"{number} of {len(cases)}", file=sys.stderr, flush=True)
    print(f"{len(cases)} of {args.pictures} pictures are answered right; seed {args.seed}, one core")
    columns = list(rows["contribution (this project)"][0])
    print(f"{'':36}" + "".join(f"{name:>9}" for name in columns) + f"{'forwards':>10}")
    for name, found in rows.items():
        means = (np.mean([one[column] for one in found]) for column in columns)
        cost = np.median(seconds[name]) / np.median(seconds["forward"])
        print(f"{name:36}" + "".join(f"{value:9.3f}" for value in means) + f"{cost:10.1f}")


if __name__ == "__main__":
    main()
