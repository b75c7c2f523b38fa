"""What a map of the vision tower costs, in passes of the tower, with the shapes of Qwen3-VL-4B's tower and random weights.

    python benchmarks/bench_tower.py                     1,024 patches, 4 of its 24 layers: some two minutes
    python benchmarks/bench_tower.py --patches 256 --layers 24 --probes 8

The map is `engine.tower.readings`, the pass that it rides on included. Passes and maps take turns, so that what else the machine
does meets both; a ratio is of the processor time of neighbours. The decoder is tiny: it does not run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.tower import readings, tower_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "num_position_embeddings": 2304, "out_hidden_size": 64, "deepstack_visual_indexes": [0],
}  # fmt: skip
TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4], "mrope_interleaved": True},
}  # fmt: skip


def build(layers: int, dtype: torch.dtype, sharpness: float, seed: int) -> Qwen3VLForConditionalGeneration:
    """The model; sharpness: a factor of its queries and keys. At 1 a patch's largest weight is some fifth, at 4 nearly all."""
    torch.manual_seed(seed)
    config = Qwen3VLConfig(text_config=TEXT, vision_config=VISION | {"depth": layers})
    model = Qwen3VLForConditionalGeneration(config).eval().to(dtype)
    with torch.no_grad():
        for block in model.model.visual.blocks:
            block.attn.qkv.weight[: 2 * VISION["hidden_size"]] *= sharpness
    return model


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(processor time, seconds)"""
    processor, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--patches", type=int, default=1024, help="of the picture, a square of even sides (default: 1024)"
    )
    parser.add_argument("--layers", type=int, default=4, help="of the tower (default: 4)")
    parser.add_argument("--probes", type=int, default=0, help="for the layers' whole update (default: 0)")
    parser.add_argument("--rounds", type=int, default=5, help="of a pass and a map each (default: 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default: float32)")
    parser.add_argument("--sharpness", type=float, default=1.0, help="of attention (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    side = round(args.patches**0.5)
    if side * side != args.patches or side % 2:
        parser.error("--patches must be the square of an even number, such as 256 or 1024")
    model = build(args.layers, DTYPES[args.dtype], args.sharpness, args.seed)
    values = torch.randn(args.patches, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(args.seed))
    values, grid = values.to(model.dtype), torch.tensor([[1, side, side]])
    decoder, tower = decoder_of(model), tower_of(model)

    @torch.no_grad()
    def once() -> None:
        model.model.visual(values, grid_thw=grid)

    @torch.no_grad()
    def mapped(unit: int) -> None:
        readings(decoder, tower, once, unit, args.probes)

    once()
    ways = {"patches": lambda: mapped(1), "image tokens": lambda: mapped(4)}
    print(f"{args.patches} patches, {args.layers} layers, {args.dtype}, {args.probes} probes, one thread")
    passes, maps = [], {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            passes.append(timed(once))
            maps[name].append((timed(run), passes[-1]))
    print(f"a pass of the tower: {statistics.median(one[0] for one in passes):.2f} s of processor time")
    for name, pairs in maps.items():
        processor, wall = (sorted(found[which] / own[which] for found, own in pairs) for which in (0, 1))
        print(
            f"map of {name}, the pass that it rides on included: {statistics.median(processor):.2f} passes "
            f"(of {len(pairs)}: {processor[0]:.2f} to {processor[-1]:.2f}; by the clock {statistics.median(wall):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
