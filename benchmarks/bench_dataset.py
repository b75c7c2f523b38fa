"""Memory over a long dataset: what the process holds after every thousand prompts.

    python benchmarks/bench_dataset.py               10,000 prompts through a model of two layers: a few minutes
    python benchmarks/bench_dataset.py --rows 2000

The model is tiny so that ten thousand prompts pass in minutes; what a study holds beside the model does not depend on it
but for the part at work. The results of all prompts would take the size that is printed last.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mask_impact.models import loading
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.dataset_study import run_dataset
from mask_impact.studies.progress import StudyObserver
from mask_impact.studies.writer import writing


class Memory(StudyObserver):
    """Prints the resident memory every `every` prompts."""

    def __init__(self, every: int) -> None:
        self.every, self.n_done, self.started = every, 0, time.perf_counter()

    def job_done(self, job, done, saved) -> None:
        self.n_done += 1
        if self.n_done == 100 or self.n_done % self.every == 0:
            resident = psutil.Process().memory_info().rss / 2**20
            print(f"{self.n_done:10,d}{resident:14.0f}{time.perf_counter() - self.started:12.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = loading.load("demo", kind="text").tokenizer
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    loaded = loading.wrap(Qwen3ForCausalLM(config).eval(), tokenizer, name="tiny")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "data.jsonl"
        rows = ({"prompt": f"Mia has the red ball. Tom has the blue cup. Who has cup {n}?"} for n in range(args.rows))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{'prompts':>10}{'resident MiB':>14}{'seconds':>12}")
        with writing(Path(temporary), "results") as writer:
            run_dataset(loaded, read_dataset(path, kind="text"), writer, reduce="none", observer=Memory(1000))
        size = sum(part.stat().st_size for part in (Path(temporary) / "results").iterdir())
        print(f"{size / 2**20:.0f} MiB of Parquet in {len(list((Path(temporary) / 'results').iterdir()))} parts")


if __name__ == "__main__":
    main()
