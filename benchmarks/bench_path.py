"""Whether estimates add up: the whole change when all cells of a picture are taken away together, divided among the cells.

    python benchmarks/bench_path.py                 100 held-out demo pictures: some two minutes

A cell's weight in every softmax is multiplied by `keep`, which goes from 1 (all there) to 0 (all hidden, renormalised). The
gradient of the target's log-odds by each cell's keep, integrated along the way, divides the whole change exactly; with few
points it does so nearly. Points are spread evenly over keep, or over t with keep = t^3, since most changes near 0. Complete is 1:
the sum over the cells as a part of the change. Beside it the contribution, which no path is taken for and which need not add up.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_truth as truth

import mask_impact
from mask_impact.engine.backward import estimate
from mask_impact.engine.kept import keep as keep_pass
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.taps import tapped, up_to_own
from mask_impact.engine.targets import Target, value_of
from mask_impact.models.loading import LoadedModel

POINTS = (2, 4)


def odds(model, inputs: dict[str, torch.Tensor], token: int, cells: slice, share: torch.Tensor) -> torch.Tensor:
    """The token's log-odds with the cells' weights multiplied by share, [V]."""
    n = inputs["input_ids"].shape[1]
    kept = torch.cat([share.new_ones(cells.start), share, share.new_ones(n - cells.stop)])
    seen = up_to_own(n, n, share.device)

    def attend(own, module, query, key, value, mask, *args, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        logits = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf"))
        weights = (logits - logits.amax(dim=-1, keepdim=True).detach()).exp() * kept
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return (weights @ value).transpose(1, 2), None

    with tapped(decoder_of(model), attend):
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[0]
    return value_of(logits, [Target(n - 1, token)])[0]


def along(model, inputs, token: int, cells: slice, n_points: int, power: int) -> np.ndarray:
    """float64 [V], the integral by the midpoints of Gauss and Legendre over t from 0 to 1, with keep = t^power."""
    nodes, weights = np.polynomial.legendre.leggauss(n_points)
    total = np.zeros(cells.stop - cells.start)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        share = torch.full((len(total),), float(t**power), requires_grad=True)
        (gradient,) = torch.autograd.grad(odds(model, inputs, token, cells, share), share)
        total += weight * power * t ** (power - 1) * gradient.double().numpy()
    return total


def look(loaded: LoadedModel, case: truth.Case) -> dict[str, tuple[float, float]]:
    """By way of estimating: how complete it is, and whether the true cell is first."""
    inputs, cells, model = truth.inputs_of(loaded, case), case.vision, loaded.model
    kept = keep_pass(model, inputs)
    token = int(kept.logits[-1].argmax())
    n_cells = cells.stop - cells.start
    with torch.no_grad():
        ends = [float(odds(model, inputs, token, cells, torch.full((n_cells,), one))) for one in (1.0, 0.0)]
    own = float(value_of(kept.logits[-1:], [Target(kept.n_positions - 1, token)])[0])
    assert abs(own - ends[0]) < 1e-2 * abs(own)
    found = {
        f"{n} points, {name}": along(model, inputs, token, cells, n, power)
        for n in POINTS
        for name, power in (("even", 1), ("t^3", 3))
    }
    frozen = estimate(kept, [Target(kept.n_positions - 1, token)]).every.sum(dim=(0, 1))
    found["contribution"] = -frozen.double().numpy()[cells]
    whole = ends[0] - ends[1]
    return {name: (float(one.sum() / whole), float(one.argmax() == case.truth)) for name, one in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=100, help="(default: 100)")
    parser.add_argument("--seed", type=int, default=31, help="(default: 31)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    cases = [truth.prepare(loaded, one) for one in truth.draw_samples(args.pictures, args.seed)]
    looks = [look(loaded, case) for case in truth.answered(loaded, cases)]
    print(f"{len(looks)} pictures that are answered right, seed {args.seed}")
    for name in looks[0]:
        complete, first = np.array([one[name] for one in looks]).T
        low, middle, high = np.percentile(complete, (25, 50, 75))
        print(f"  {name:20} complete to {middle:6.2f} ({low:.2f} to {high:.2f})   true cell first {first.mean():.1%}")


if __name__ == "__main__":
    main()
