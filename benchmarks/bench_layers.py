"""How well one row's gradient says what hiding a token from the last query does, in a single layer or head.

    python benchmarks/bench_layers.py                 40 demo pictures and 30 texts of SmolLM2: some five minutes
    python benchmarks/bench_layers.py --pictures 10 --texts 5

Exact is what really hiding each token in each layer from the last query changes of the most probable token's log-odds
(`engine.effects`), and for the token that matters most the same in each head of each layer. Held against it: the estimate of
`engine.backward.estimate_last`. Candidates are the strongest by the estimate and the strongest by the local distance (`Full`);
the exact winner is to be one of them.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_recall as recall
import bench_truth as truth

import mask_impact
from mask_impact.engine.backward import estimate_last
from mask_impact.engine.effects import measure_effects
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.targets import Target
from mask_impact.engine.variants import Masks, each_window_and_group, in_each
from mask_impact.models.loading import LoadedModel

TOP = 16  # by each ranking
NEGLIGIBLE = 1e-3  # of log-odds, in nats; the order of smaller effects says nothing


def of_odds(change: np.ndarray, logits: torch.Tensor) -> np.ndarray:
    """Changes of the most probable token's log-odds, from those of its log-probability."""
    wide = logits.double()
    token = int(wide.argmax())
    own = torch.log_softmax(wide, dim=-1)
    others = float(torch.cat([own[:token], own[token + 1 :]]).exp().sum())
    change = change.astype(float)
    return change - np.log1p(-np.exp(float(own[token])) * np.expm1(change) / others)


@torch.no_grad()
def look(loaded: LoadedModel, inputs: Mapping[str, Any]) -> dict[str, float]:
    """One prompt."""
    n = inputs["input_ids"].shape[1]
    with RidingEngine(loaded.model, groups=("full",), keep_states="last") as engine:
        logits = loaded.model(**inputs, logits_to_keep=1).logits[0, -1]
        n_layers, n_heads = len(engine.decoder.layers), engine.decoder.n_heads
        variants = each_window_and_group([(one,) for one in range(n - 1)], n, n_layers)
        exact = measure_effects(engine, variants, logits).logprob_change
        exact = of_odds(exact, logits).reshape(n_layers, n - 1)
        found = estimate_last(engine, Target(n - 1, int(logits.argmax())))[..., : n - 1].numpy()
        local = engine.steps[0].l2[:, : n - 1, 0].cpu().numpy()
        best = int(np.abs(exact).sum(axis=0).argmax())
        keys = torch.zeros(n_layers * n_heads, n, dtype=torch.bool)
        keys[:, best] = True
        heads = torch.zeros(n_layers * n_heads, n_layers, n_heads, dtype=torch.bool)
        heads.view(-1, n_layers * n_heads).fill_diagonal_(True)
        every = in_each(Masks(keys, heads=heads), (torch.tensor([0]), torch.tensor([n_layers - 1])))
        by_head = of_odds(measure_effects(engine, every, logits).logprob_change, logits)
    estimate, of_head = found.sum(axis=1), found[..., best].ravel()
    chosen = {int(one) for order in (np.abs(estimate), local) for one in np.argsort(-order, axis=None)[:TOP]}
    few = {int(one) for one in np.argsort(-np.abs(of_head))[:TOP]}
    there, head_there = np.abs(exact) > NEGLIGIBLE, np.abs(by_head) > NEGLIGIBLE
    return {
        "tokens": float(n),
        "(layer, token): rank correlation": float(spearmanr(estimate[there], exact[there])[0]),
        "(layer, token): the exact winner is a candidate": float(int(np.abs(exact).argmax()) in chosen),
        "(layer, token): the exact winner is first": float(np.abs(exact).argmax() == np.abs(estimate).argmax()),
        "(layer, head): rank correlation": float(spearmanr(of_head[head_there], by_head[head_there])[0]),
        "(layer, head): the exact winner is a candidate": float(int(np.abs(by_head).argmax()) in few),
        "(layer, head): the exact winner is first": float(np.abs(by_head).argmax() == np.abs(of_head).argmax()),
    }


def show(name: str, looks: list[dict[str, float]]) -> None:
    """Means, and the least."""
    print(f"\n== {name}: {len(looks)}")
    for key in looks[0]:
        values = np.array([one[key] for one in looks])
        print(f"  {key:52}{values.mean():8.3f}   median {np.median(values):.3f}, least {values.min():.3f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=40, help="(default: 40)")
    parser.add_argument("--texts", type=int, default=30, help="(default: 30)")
    parser.add_argument("--seed", type=int, default=5, help="of both (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")
    cases = truth.answered(demo, [truth.prepare(demo, one) for one in truth.draw_samples(args.pictures, args.seed)])
    show("demo pictures that are answered right", [look(demo, truth.inputs_of(demo, one)) for one in cases])
    smollm2 = mask_impact.load("smollm2", kind="text", device="cpu")
    prompts = [one.prompt for one in recall.draw(args.texts, args.seed)]
    texts = [dict(smollm2.tokenizer(f"{one} The answer is", return_tensors="pt")) for one in prompts]
    show("SmolLM2, in-context recall", [look(smollm2, one) for one in texts])


if __name__ == "__main__":
    main()
