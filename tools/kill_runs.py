"""Kill runs at random moments and see what they leave: python tools/kill_runs.py [NUMBER] [SEED]

Single runs with a page, knockouts, studies and datasets, into empty folders and over the files of another question. After each
kill all that is there under its name has to load, nothing may be lost that was said to be written, and the same command once
more has to end with the files of an undisturbed run. Runs are forked from a process that has read all modules, so that one is
quick; it runs nothing itself, because threads do not survive a fork.
"""

import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from transformers.models.qwen3_vl import modeling_qwen3_vl, processing_qwen3_vl  # noqa: F401  read before the fork

import mask_impact
from mask_impact.commands.entry import main_vl
from mask_impact.commands.main import main
from mask_impact.models import loading
from mask_impact.results.stored import read_stored

MODEL = ("-m", "demo", "--output-dir", "out")
SHAPES = Path(__file__).resolve().parent.parent / "examples" / "shapes.png"
QUESTIONS = ("What is 2+2?", "Say red")
KINDS = ("run", "knockout", "study", "dataset", "pictures")


def arguments(kind: str, variant: int) -> list[str]:
    """Of a command, about one question or the other; files that it reads are made in the current folder."""
    question = QUESTIONS[variant]
    if kind == "run":
        return ["run", question, "-o", "x", "--report", "--plots", "-n", "1", "--no-answer", *MODEL]
    if kind == "knockout":
        return ["knockout", question, "question -> last", "-o", "x", "-n", "1", *MODEL]
    if kind == "pictures":
        row = {"prompt": f"{'What color is the star?' if variant else 'What shape is blue?'}", "image": str(SHAPES)}
        Path("data.jsonl").write_text("".join(json.dumps(row | {"name": f"r{number}"}) + "\n" for number in range(2)))
        return ["study", "data.jsonl", "--deepstack", "--pixels", *MODEL]
    prompts = [{"name": f"p{number}", "prompt": f"{question} {number}", "num_tokens": 1} for number in range(3)]
    if kind == "study":
        Path("study.yaml").write_text(yaml.safe_dump({"prompts": prompts}))
        return [
            "--config",
            "study.yaml",
            "--report",
            "--model",
            *MODEL[1:],
        ]  # of mask_impact_vl.py: files of each prompt
    rows = [prompts[number % 3] | {"name": f"r{number}"} for number in range(18)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["study", "data.jsonl", *MODEL]


def start(argv: Sequence[str]) -> int:
    """The id of a forked process that runs the command and says in said.txt what it says."""
    child = os.fork()
    if child == 0:
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os._exit((main_vl if argv[0] == "--config" else main)(argv))
    return child


def finish(argv: Sequence[str]) -> None:
    """Runs the command undisturbed; AssertionError with what it said where it fails."""
    _, status = os.waitpid(start(argv), 0)
    assert os.waitstatus_to_exitcode(status) == 0, Path("said.txt").read_text()


def content() -> dict[str, bytes]:
    """Of tables and pictures by name; meta files and pages have times in them, and are only to be there, as the prompts of a
    dataset but for their seconds."""
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    return {str(path): _content(path) for path in sorted(files)}


def _content(path: Path) -> bytes:
    if path.suffix in (".json", ".html") and path.name != "manifest.json":
        return b""
    if path.parent.name == "prompts":
        return repr(pq.read_table(path).drop_columns(["seconds"]).to_pylist()).encode()
    return path.read_bytes()


def check_whole(folder: Path) -> None:
    """All that has its name loads, and belongs together."""
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.name.endswith(("meta.json", "whatif.json")):
            for stored in read_stored(path).values():
                assert stored.notes == (), stored.notes
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n"), path
            assert path.with_name(path.name.replace(".csv", ".meta.json")).exists(), path


def check_kept(said: str, folder: Path) -> None:
    """What was said to be written is there."""
    for name in re.findall(r"^\s*(p\d+)\b.* -> ", said, re.MULTILINE):
        assert any(folder.glob(f"{name}_results.meta.json")), f"{name} is lost"
    for path in re.findall(r"out/\S+\.(?:csv|json|png|html|parquet)", said.partition("Saved")[2]):
        assert (folder.parent / path).exists() or (folder / Path(path).name).exists(), f"{path} is lost"


def main_tool(number: int, seed: int) -> int:
    """Exit code: 1 where a kill did harm."""
    rng, failures, states, seconds = random.Random(seed), 0, {}, {}
    loading.quieten(progress_bars=False)
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(mask_impact.__path__, "mask_impact."):
        if not module.name.startswith(("mask_impact.app", "mask_impact.__main__")):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as base:
        for kind in KINDS:
            for variant in (1, 0):
                place = Path(base, kind, str(variant))
                place.mkdir(parents=True)
                os.chdir(place)
                began = time.perf_counter()
                finish(arguments(kind, variant))
                seconds[kind] = time.perf_counter() - began
            states[kind] = content()
        for kill in range(number):
            kind, over = KINDS[kill % len(KINDS)], kill // len(KINDS) % 2 == 1
            place = Path(base, f"kill{kill}")
            place.mkdir()
            os.chdir(place)
            if over:
                shutil.copytree(Path(base, kind, "1", "out"), "out")
            # One in each stratum of the run's time, so that few kills are spread over it, too.
            strata = max(1, number // len(KINDS))
            moment = seconds[kind] * (kill // len(KINDS) % strata + rng.random()) / strata
            try:
                argv = arguments(kind, 0)
                child = start(argv)
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                if Path("out").exists():
                    shutil.copytree("out", "seen", symlinks=True)
                    check_whole(Path("seen"))
                    check_kept(Path("said.txt").read_text(), Path("seen"))
                finish([*argv, "--resume"] if argv[0] in ("study", "--config") else argv)
                assert content() == states[kind], sorted({*content()} ^ {*states[kind]}) or "other numbers"
            except Exception as error:
                failures += 1
                print(
                    f"kill {kill}, {kind}{' over another' * over}, after {moment:.2f} s: {type(error).__name__}: {error}"
                )
            os.chdir(base)
            shutil.rmtree(place)
        spread = ", ".join(f"{kind} {seconds[kind]:.1f} s" for kind in KINDS)
    print(f"{number} kills in runs of {spread}: {failures} did harm")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main_tool(int((sys.argv[1:2] or ["100"])[0]), int((sys.argv[2:3] or ["0"])[0])))
