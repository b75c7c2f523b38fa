"""Both engines beside a plain `generate()`, in one process and in turns: what the ride through any module code costs.

    OMP_NUM_THREADS=1 python benchmarks/bench_ride.py --dtype bfloat16 --layers 2 --tokens 16 64

Random weights of the layers of Qwen3's 4B model (or of its 0.6B, `--small`), a few of them, with a small vocabulary. Processor
time of the process, medians: with one thread, other people's load on the machine counts little. A row for each prompt length
N, and one for several generated tokens.
"""

import argparse
import statistics
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mask_impact.engine.riding.engine import RidingEngine

SHAPES = {  # hidden, intermediate, heads, groups of heads
    False: (2560, 9728, 32, 8),
    True: (1024, 3072, 16, 8),
}
N_WORDS = 2000


def build(layers: int, small: bool, dtype: torch.dtype) -> Qwen3ForCausalLM:
    hidden, intermediate, heads, groups = SHAPES[small]
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=128,
        num_hidden_layers=layers,
        vocab_size=N_WORDS,
        eos_token_id=None,
    )
    return Qwen3ForCausalLM._from_config(config, dtype=dtype).eval()


def generate(model, inputs, n_tokens: int) -> None:
    model.generate(**inputs, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False)


def measured(engine_class, model, inputs, n_tokens: int) -> None:
    with engine_class(model) as engine:
        generate(model, inputs, n_tokens)
    assert len(engine.steps) == n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 256, 1024], help="prompt lengths")
    parser.add_argument("--small", action="store_true", help="the shape of the 0.6B model")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers")
    parser.add_argument("--repeats", type=int, default=5, help="each figure is the median of this many runs")
    parser.add_argument(
        "--generate", type=int, default=5, help="generated tokens of the last row, at 16 (0: no such row)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float64"])
    args = parser.parse_args()
    torch.manual_seed(0)
    cases = [(n, 1) for n in args.tokens] + ([(16, args.generate)] if args.generate else [])
    with torch.no_grad():
        model = build(args.layers, args.small, getattr(torch, args.dtype))
        print(f"{args.layers} layers, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{'N':>5} {'tokens':>6} {'plain s':>8} {'engine':>7} {'ride':>6} {'ride / engine':>14}")
        for n_prompt, n_tokens in cases:
            ids = torch.randint(0, N_WORDS, (1, n_prompt), generator=torch.Generator().manual_seed(n_prompt))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            runs = {
                "plain": lambda: generate(model, inputs, n_tokens),  # noqa: B023
                "engine": lambda: measured(RidingEngine, model, inputs, n_tokens),  # noqa: B023
                "ride": lambda: measured(RidingEngine, model, inputs, n_tokens),  # noqa: B023
            }
            times = {name: [] for name in runs}
            for turn in range(args.repeats + 1):
                for name, run in runs.items():
                    start = time.process_time()
                    run()
                    if turn:
                        times[name].append(time.process_time() - start)
            plain = statistics.median(times["plain"])
            engine, ride = (
                statistics.median(one / base for one, base in zip(times[name], times["plain"], strict=True))
                for name in ("engine", "ride")
            )
            paired = statistics.median(r / e for r, e in zip(times["ride"], times["engine"], strict=True))
            print(f"{n_prompt:5} {n_tokens:6} {plain:8.2f} {engine:7.2f} {ride:6.2f} {paired:14.3f}", flush=True)


if __name__ == "__main__":
    main()
