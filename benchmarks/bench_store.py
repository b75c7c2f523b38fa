"""How long writing and reading a large result takes, against pandas on the same table, in one run.

    python benchmarks/bench_store.py [--repeats 3] [--folder DIR]

The result has the shape of a real run with images: 36 layers, 1,053 tokens, 34 variants, 2 steps = 2.6 million rows,
with made-up distances. `pandas` writes the finished DataFrame with its defaults (making the DataFrame is not timed);
`save` is timed whole, with checks, meta file, fsync and renames. The ways take turns, so that a busy machine disturbs
all alike. Printed: the median in seconds, how many times faster than pandas' faster CSV, the size of the file.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from synthetic import make_result  # noqa: E402

from mask_impact.results.store import load_result, save  # noqa: E402
from mask_impact.results.tables import to_table  # noqa: E402


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    options = parser.parse_args(argv)

    texts = ["<|image_pad|>"] * 1024 + [f" word{position}" for position in range(29)]
    result = make_result(texts, n_steps=2, n_layers=36, n_heads=32)
    frame = to_table(result).to_pandas()
    plain = frame.astype({"token_masked": str, "variant": str})
    print(f"{result!r}, median of {options.repeats}")

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        out = Path(folder)
        ways = {
            "pandas to_csv": (lambda: plain.to_csv(out / "p.csv", index=False), out / "p.csv"),
            "pandas to_csv, categories": (lambda: frame.to_csv(out / "p.csv", index=False), out / "p.csv"),
            "pandas to_json": (lambda: plain.to_json(out / "p.json", orient="records"), out / "p.json"),
            "to_table": (lambda: to_table(result), None),
            "save csv": (lambda: save(result, out / "csv", ["csv"]), out / "csv.csv"),
            "save json": (lambda: save(result, out / "json", ["json"]), out / "json.json"),
            "save parquet": (lambda: save(result, out / "pq", ["parquet"]), out / "pq.parquet"),
            "load csv": (lambda: load_result(out / "csv"), None),
            "load json": (lambda: load_result(out / "json"), None),
            "load parquet": (lambda: load_result(out / "pq"), None),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, (action, _file) in ways.items():
                times[name].append(seconds(action))
        medians = {name: statistics.median(values) for name, values in times.items()}
        fastest_pandas = min(medians["pandas to_csv"], medians["pandas to_csv, categories"])
        print(f"{'':<27}{'seconds':>9}{'times faster':>14}{'MB':>8}")
        for name, (_action, file) in ways.items():
            ratio = f"{fastest_pandas / medians[name]:.1f}" if name.startswith("save") else ""
            size = f"{file.stat().st_size / 1e6:.1f}" if file else ""
            print(f"{name:<27}{medians[name]:>9.2f}{ratio:>14}{size:>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
