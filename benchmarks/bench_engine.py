"""What the analysis costs beside the model's own forward, on random weights of the exact Qwen3-VL-4B shape.

    python benchmarks/bench_engine.py                      the whole table: medians of 5, about 20 minutes on 2 cores
    python benchmarks/bench_engine.py --layers 6 --tokens 64 256       a quick look
    git worktree add DIR COMMIT; python benchmarks/bench_engine.py --against DIR      beside the engine of another commit

For each prompt length N, in one run: a plain forward (`generate` of one token), the same with the engine riding, the ratio
of the medians, the layer-re-run method (each masked token re-runs one layer with a 4D mask, everything else cached; timed
on a few tokens of one layer and scaled to all), the speed-up over it, and the extra peak memory of the analysis. The same
for prompts with one image (N counts its tokens), where the plain forward has the vision tower in it. Then generation of
several tokens with full maps against plain `generate`. Memory is the peak resident set on the CPU (Linux)
and the allocator's peak on CUDA. Only ratios within one run mean anything.

With `--against` another process has the same model and the other checkout's engine, and both take turns. `to other` is the
median of the ratios of their times: of the processor on a CPU, where other people's load counts little then.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

try:
    from mask_impact.engine.masking import MaskingEngine as Engine  # of an older checkout
except ImportError:
    from mask_impact.engine.riding.engine import RidingEngine as Engine

QWEN3_VL_4B = {
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "tie_word_embeddings": True,
}
SMALL = {  # that of the 0.6B model's text layers, with few words and next to no tower
    "text_config": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "vocab_size": 2000},
    "vision_config": {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 1024,
                      "deepstack_visual_indexes": [0]},
}  # fmt: skip
N_ORDINARY_TOKENS = 1_500
VISION_START, VISION_END, IMAGE_PAD = 151_652, 151_653, 151_655
PATCH_VALUES = 3 * 2 * 16 * 16  # colours, frames, pixels


def build_model(n_layers: int, device: str, small: bool = False) -> Qwen3VLForConditionalGeneration:
    """Random weights, bf16; standard deviation 0.02 as at initialisation."""
    settings = QWEN3_VL_4B | {"text_config": QWEN3_VL_4B["text_config"] | {"num_hidden_layers": n_layers}}
    if small:
        settings |= {part: settings[part] | changed for part, changed in SMALL.items()}
    config = Qwen3VLConfig(**settings)
    config.dtype = config.text_config.dtype = config.vision_config.dtype = torch.bfloat16
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    return model.eval()


def make_inputs(n_tokens: int, device: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, N_ORDINARY_TOKENS, (1, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "mm_token_type_ids": torch.zeros_like(ids).to(device),
    }


def make_image_inputs(n_tokens: int, device: str) -> dict[str, torch.Tensor]:
    """A prompt of n_tokens with one square image in it, as large as fits beside at least 20 tokens of text."""
    side = 2 * int((n_tokens - 22) ** 0.5)  # in patches; 2 x 2 of them are a token
    n_cells = (side // 2) ** 2
    inputs = make_inputs(n_tokens, device)
    ids, types = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
    ids[4], ids[5 + n_cells] = VISION_START, VISION_END
    ids[5 : 5 + n_cells] = IMAGE_PAD
    types[5 : 5 + n_cells] = 1
    pixels = torch.randn(side * side, PATCH_VALUES, generator=torch.Generator().manual_seed(n_tokens))
    return inputs | {
        "pixel_values": pixels.to(device, torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, side, side]], device=device),
    }


def generate(model, inputs, n_tokens: int) -> None:
    model.generate(**inputs, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False)


def analyse(model, inputs, n_tokens: int) -> None:
    with Engine(model) as engine:
        generate(model, inputs, n_tokens)
    assert len(engine.steps) == n_tokens


def seconds(run, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def worked(run, device: str) -> float:
    """Processor seconds that a run takes; on a GPU seconds."""
    if device == "cuda":
        return seconds(run, device)
    start = time.process_time()
    run()
    return time.process_time() - start


class Other:
    """Another checkout's engine with the same model, in a process of its own."""

    def __init__(self, folder: str, n_layers: int, small: bool) -> None:
        words = [sys.executable, __file__, "--serve", "--layers", str(n_layers), *(["--small"] if small else [])]
        environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve())}
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def worked(self, kind: str, n_prompt: int, n_tokens: int) -> float:
        """As `worked` has it there, of an analysis."""
        print(kind, n_prompt, n_tokens, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


MAKERS = {"text": make_inputs, "image": make_image_inputs}


def serve(model, device: str) -> None:
    """Answers an Other's questions, a line each, until there are no more."""
    for line in sys.stdin:
        kind, n_prompt, n_tokens = line.split()
        inputs = MAKERS[kind](int(n_prompt), device)
        print(worked(lambda: analyse(model, inputs, int(n_tokens)), device), flush=True)  # noqa: B023


def peak_mib(run, device: str) -> float:
    """Peak memory while `run` runs, above what is in use before it, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or it would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_kib("VmRSS")
    run()
    return (_status_kib("VmHWM") - before) / 2**10


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def rerun_seconds(model, inputs, device: str, n_timed: int = 5) -> float:
    """The layer-re-run method for all layers and tokens, scaled from the median of a few re-runs of one layer."""
    captured = {}

    def keep(module, args, kwargs):
        captured["args"] = args
        captured["kwargs"] = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "attention_mask")}

    layers = model.model.language_model.layers
    handle = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        generate(model, inputs, 1)
    finally:
        handle.remove()
    n = inputs["input_ids"].shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()

    def rerun():
        mask = causal.clone()
        mask[1:, 0] = False
        layers[0](*captured["args"], attention_mask=mask[None, None], **captured["kwargs"])

    times = [seconds(rerun, device) for _ in range(n_timed)]
    return statistics.median(times) * n * len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256, 1024], help="prompt lengths")
    parser.add_argument(
        "--image-tokens",
        type=int,
        nargs="*",
        default=[300, 1050],
        help="lengths of prompts with an image (none: no such row)",
    )
    parser.add_argument("--layers", type=int, default=36, help="decoder layers (36: the real depth)")
    parser.add_argument("--repeats", type=int, default=5, help="each figure is the median of this many runs")
    parser.add_argument(
        "--generate", type=int, default=5, help="generated tokens of the second table (0: leave it out)"
    )
    parser.add_argument("--generate-prompt", type=int, nargs="+", default=[16, 64], help="its prompt lengths")
    parser.add_argument("--small", action="store_true", help="the shape of the 0.6B model, for text alone")
    parser.add_argument("--against", metavar="DIR", help="a checkout of another commit, to be compared with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.no_grad():
        model = build_model(args.layers, device, args.small)
        if args.serve:
            serve(model, device)
            return
        other = Other(args.against, args.layers, args.small) if args.against else None
        print(
            f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters, {args.layers} layers, bf16, {device}, "
            f"{os.cpu_count()} cores, torch {torch.__version__}, built in {time.perf_counter() - start:.0f} s"
        )
        more = "" if other is None else f" {'to other':>8}"
        print(
            f"{'N':>5} {'plain s':>8} {'analysis s':>10} {'ratio':>6} {'re-run s':>9} {'speed-up':>9} {'extra MiB':>9}{more}"
        )
        prompts = [("text", n) for n in args.tokens] + [("image", n) for n in args.image_tokens if not args.small]
        for kind, n_tokens in prompts:
            inputs = MAKERS[kind](n_tokens, device)
            row = measure(model, kind, inputs, 1, args.repeats, device, other)
            rerun = rerun_seconds(model, inputs, device)
            print(
                f"{n_tokens:5} {row['plain']:8.2f} {row['analysis']:10.2f} {row['ratio']:6.2f} {rerun:9.1f} "
                f"{rerun / row['analysis']:8.0f}x {row['extra']:9.0f}{row['against']}"
                f"{image_size(inputs)}",
                flush=True,
            )
        if args.generate:
            print(f"\n{args.generate} generated tokens with full maps against plain generate")
            print(f"{'N':>5} {'plain s':>8} {'analysis s':>10} {'ratio':>6}{more}")
            for n_tokens in args.generate_prompt:
                row = measure(model, "text", make_inputs(n_tokens, device), args.generate, args.repeats, device, other)
                print(
                    f"{n_tokens:5} {row['plain']:8.2f} {row['analysis']:10.2f} {row['ratio']:6.2f}{row['against']}",
                    flush=True,
                )
    if other is not None:
        other.close()


def image_size(inputs: dict[str, torch.Tensor]) -> str:
    if "image_grid_thw" not in inputs:
        return ""
    _, height, width = inputs["image_grid_thw"][0].tolist()
    return f"  with an image of {height // 2} x {width // 2} tokens"


def measure(
    model, kind: str, inputs, n_tokens: int, repeats: int, device: str, other: Other | None
) -> dict[str, float | str]:
    """Medians of plain and analysis, run in turns so that both see the same machine; against: what is said of another engine."""
    generate(model, inputs, n_tokens)
    analyse(model, inputs, n_tokens)
    n_prompt = inputs["input_ids"].shape[1]
    asked = (kind, n_prompt, n_tokens)
    if other is not None:
        other.worked(*asked)
    plain, analysis, ratios = [], [], []
    for _ in range(repeats):
        plain.append(seconds(lambda: generate(model, inputs, n_tokens), device))
        own = 0.0

        def counted() -> None:
            nonlocal own
            own = worked(lambda: analyse(model, inputs, n_tokens), device)

        analysis.append(seconds(counted, device))
        if other is not None:
            ratios.append(own / other.worked(*asked))
    extra = peak_mib(lambda: analyse(model, inputs, n_tokens), device) - peak_mib(
        lambda: generate(model, inputs, n_tokens), device
    )
    plain_median, analysis_median = statistics.median(plain), statistics.median(analysis)
    against = f" {statistics.median(ratios):8.3f}" if ratios else ""
    return {
        "plain": plain_median,
        "analysis": analysis_median,
        "ratio": analysis_median / plain_median,
        "extra": extra,
        "against": against,
    }


if __name__ == "__main__":
    main()
