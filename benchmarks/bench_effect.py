"""What `--effect` costs: all (layer, token) effects of a step, in plain forward passes of the same prompt.

    python benchmarks/bench_effect.py                  random weights of the Qwen3-VL-4B shape, bf16: some minutes
    python benchmarks/bench_effect.py --tokens 16 --repeats 1

The straightforward way takes one forward pass of the whole prompt for each (layer, token), so their number is its cost in
the same unit. The extra memory is the peak above what the model and its own pass hold.
"""

import argparse
import os
import statistics

import torch
from bench_engine import build_model, make_inputs, peak_mib, seconds

from mask_impact.engine.effects import measure_effects
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.variants import each_window_and_group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64], help="prompt lengths")
    parser.add_argument("--layers", type=int, default=36, help="decoder layers (36: the real depth)")
    parser.add_argument("--repeats", type=int, default=3, help="each figure is the median of this many runs")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(args.layers, device)
    print(f"{args.layers} layers, bf16, {device}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(
        f"{'tokens':>7}{'effects':>9}{'forward s':>11}{'effects s':>11}{'in forwards':>13}{'one by one':>12}{'extra MiB':>11}"
    )
    for n_tokens in args.tokens:
        inputs = make_inputs(n_tokens, device)
        with torch.no_grad(), RidingEngine(model, keep_states="last") as engine:
            logits = model(**inputs).logits[0, -1]
            variants = each_window_and_group([[i] for i in range(n_tokens)], n_tokens, args.layers)

            def effects(engine=engine, variants=variants, logits=logits) -> None:
                measure_effects(engine, variants, logits)

            extra = peak_mib(effects, device)
            taken = [seconds(effects, device) for _ in range(args.repeats)]
        with torch.no_grad():
            plain = [seconds(lambda inputs=inputs: model(**inputs), device) for _ in range(args.repeats + 2)]
        forward, effect = statistics.median(plain), statistics.median(taken)
        ratio, n = effect / forward, len(variants)
        print(f"{n_tokens:7}{n:9,}{forward:11.2f}{effect:11.2f}{ratio:13.1f}{n:12,}{extra:11.0f}", flush=True)


if __name__ == "__main__":
    main()
