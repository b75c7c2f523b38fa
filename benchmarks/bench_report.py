"""How large the page of a large result is, how long it takes to write, and how soon it is there in a browser.

    python benchmarks/bench_report.py [--repeats 3] [--chromium /usr/bin/chromium] [--folder DIR] [RESULT ...]

The result has the shape of a real run with an image: 36 layers, 1,053 tokens, 34 variants, 2 steps = 2.6 million rows. Its
distances are made up: a scale for each layer, token and head, and what is left, all log-normal, so that mantissas are as
random as real ones. RESULT names stored results with an answer to take in its place. Printed: the page in MB, seconds to write
it, and milliseconds from the start of loading it (from disk, headless Chromium, nothing cached) to the evidence card, to all
text and pictures, and to all charts; and of the slowest of four keys until all that is in sight is drawn again, at the top of
the page and at its charts, and until everything is. Without a browser these are left out.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import open_browser  # noqa: E402
from explained import explained  # noqa: E402
from synthetic import make_result  # noqa: E402

from mask_impact.results.stored import read_stored  # noqa: E402
from mask_impact.views.report import build_report  # noqa: E402


def realistic(seed: int = 0):
    """The result that this benchmark is about."""
    rng = np.random.default_rng(seed)
    words = [f" word{position}" for position in range(29)]
    result = make_result(words, n_steps=2, n_layers=36, n_heads=32, grids=((32, 32),))
    steps = []
    for step in result.steps:
        n_layers, n_positions, n_variants = step.l2.shape
        level = np.linspace(-2, 2, n_layers)[:, None, None] + rng.normal(size=(1, n_positions, 1)) * 1.5
        level = level + rng.normal(size=(1, 1, n_variants)) * 0.7 + rng.normal(size=step.l2.shape) * 0.8 - 3
        l2 = np.exp(level).astype(np.float32)
        cosine = (l2**2 * np.exp(rng.normal(size=step.l2.shape) * 0.5) / 50).astype(np.float32)
        steps.append(dataclasses.replace(step, l2=l2, cosine=cosine))
    result = dataclasses.replace(result, steps=tuple(steps), sinks=(0,))
    effects = dict(enumerate((-np.exp(rng.normal(size=result.n_prompt) * 2 - 3)).tolist()))
    return explained(result, effects, needed=(1, 2), becomes={1: " other"})


WATCH = """const look = () => {
  const rows = document.querySelector(".mi-evidence-list");
  if (rows && rows.offsetHeight) requestAnimationFrame(() => performance.mark("card"));
  else requestAnimationFrame(look);
};
look();"""
CLICK = """async (key) => {
  const start = performance.now();
  const until = async (states) => {
    while (!states.includes(document.documentElement.dataset.drawn)) await new Promise((resolve) => setTimeout(resolve, 1));
    return performance.now() - start;
  };
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return [await until(["seen", "true"]), await until(["true"])];
}"""
KEYS = ("ArrowRight", "m", "s", "ArrowUp")
BACK = ("ArrowRight", "m", "s", "ArrowDown")


def slowest(tab, keys) -> tuple[float, float]:
    """Of some keys, until what is in sight is drawn again and until everything is, in milliseconds."""
    times = []
    for key in keys:
        tab.wait_for_timeout(300)
        times.append(tab.evaluate(CLICK, key))
    return tuple(max(one) for one in zip(*times, strict=True))


def first_views(browser, page: Path) -> tuple[float, float, float, float, float, float]:
    """(the card, text and pictures, all charts; of the slowest key what is in sight at the top, what is in sight at the charts,
    everything) in milliseconds."""
    with contextlib.closing(browser.new_page(viewport={"width": 1400, "height": 900})) as tab:
        tab.add_init_script(WATCH)
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn=true]", state="attached", timeout=60_000)
        marks = (
            "performance.getEntriesByName('card')[0].startTime",
            "performance.getEntriesByName('text')[0].startTime",
            "performance.getEntriesByName('charts')[0].startTime",
        )
        views = [tab.evaluate(mark) for mark in marks]
        tab.wait_for_timeout(1000)  # somebody looks at it first
        above, all_above = slowest(tab, KEYS)
        tab.evaluate("document.getElementById('heat-card').scrollIntoView()")
        below, all_below = slowest(tab, BACK)
        return (*views, above, below, max(all_above, all_below))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", metavar="RESULT")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chromium", help="path of the browser; default: the one on the path")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    options = parser.parse_args(argv)

    sources = {path: read_stored(path) for path in options.results} or {"36 x 1,053 x 34 x 2": realistic()}
    print(
        f"{'':<32}{'MB':>7}{'digits of heads':>17}{'written, s':>12}{'card, ms':>10}{'text, ms':>10}{'charts, ms':>12}"
        f"{'a key, ms':>11}{'at charts':>11}{'all of it':>11}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, open_browser(options.chromium) as browser:
        for name, source in sources.items():
            start = time.perf_counter()
            report = build_report(source)
            seconds = time.perf_counter() - start
            page = Path(folder) / "page.html"
            page.write_bytes(report.html)
            line = f"{name[-31:]:<32}{len(report.html) / 1e6:>7.2f}{report.digits + 1:>17}{seconds:>12.2f}"
            if browser is not None:
                times = [first_views(browser, page) for _ in range(options.repeats)]
                card, text, charts, *keys = (statistics.median(one) for one in zip(*times, strict=True))
                line += f"{card:>10.0f}{text:>10.0f}{charts:>12.0f}" + "".join(f"{key:>11.0f}" for key in keys)
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
