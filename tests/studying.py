"""Files of many prompts, and what a study of them leaves."""

import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).parent.parent


def write_config(path, prompts, **top):
    """A configuration of a list of texts, or of mappings; names p0, p1, .. where a mapping has none."""
    entries = [entry if isinstance(entry, dict) else {"prompt": entry} for entry in prompts]
    entries = [{"name": f"p{number}"} | entry for number, entry in enumerate(entries)]
    path.write_text(yaml.safe_dump(top | {"prompts": entries}))
    return path


def sentences(n, seed=0):
    """Prompts of different lengths."""
    rng = random.Random(seed)
    return [
        " ".join(["the", *rng.choices(["cat", "mat", "sat", "on"], k=rng.randint(1, 8)), str(number)])
        for number in range(n)
    ]


def data_files(folder):
    """Content of all tables by file name; and none is half-written."""
    names = sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))
    whole = (".csv", ".json", ".parquet", ".jsonl", ".png", ".html")
    assert not [name for name in names if not name.endswith(whole)]
    return {name: (Path(folder) / name).read_bytes() for name in names if name.endswith((".csv", ".parquet"))}


def study_files(folder):
    """Content of all parts of a dataset's study by table and file name, that of prompts without their seconds; and none is
    half-written."""
    files = [path for path in sorted(Path(folder).glob("*/*")) if not path.name.startswith(".")]
    assert all(re.fullmatch(r"part-\d{6}\.parquet", path.name) for path in files), files
    return {
        f"{path.parent.name}/{path.name}": pq.read_table(path).drop_columns(["seconds"]).to_pylist()
        if path.parent.name == "prompts"
        else path.read_bytes()
        for path in files
    }


def write_dataset(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path
