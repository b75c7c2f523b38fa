"""A study has the same folder whatever its prompts are read from: a configuration as well as a dataset."""

import json
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from studying import sentences, study_files, write_config, write_dataset

from mask_impact.commands.main import main
from mask_impact.findings.prompt_numbers import IMAGE_SHARE, READING
from mask_impact.studies.manifest import read_manifest
from mask_impact.studies.reading import find_study

PROMPTS = [{"prompt": text, "kind": "ab"[number % 2], "expected": "no"} for number, text in enumerate(sentences(18))]


def entries(rows, **own):
    """The same prompts as a configuration has them. own: further keys of a prompt, by its number."""
    return [
        {"name": f"p{n}", "prompt": row["prompt"], "labels": {"kind": row["kind"]}, "expected": row["expected"]}
        | own.get(f"p{n}", {})
        for n, row in enumerate(rows)
    ]


@pytest.fixture
def study(tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)

    def call(file, *argv):
        code = main(["study", str(file), "-m", str(text_checkpoint), *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_configuration_and_a_dataset_of_the_same_prompts_have_the_same_files(study, tmp_path, capsys):
    write_config(tmp_path / "study.yaml", entries(PROMPTS))
    write_dataset(tmp_path / "study.jsonl", [row | {"name": f"p{n}"} for n, row in enumerate(PROMPTS)])
    for file in ("study.yaml", "study.jsonl"):
        assert study(file, "--output-dir", file.partition(".")[2], "--resume")[0] == 0
    one, other = study_files("yaml/study"), study_files("jsonl/study")
    assert one == other
    assert sorted(one) == [f"{table}/part-00000{n}.parquet" for table in ("impact", "prompts") for n in (0, 1)]
    assert read_manifest(Path("yaml/study")) == read_manifest(Path("jsonl/study"))
    prompts = pd.read_parquet("yaml/study/prompts")
    assert prompts.correct.tolist() == [False] * 18
    assert {json.loads(text)["kind"] for text in prompts.carried} == {"a", "b"}
    assert main(["study", "report", "yaml/study", "--by", "kind"]) == 0
    assert "kind=a minus kind=b" in capsys.readouterr().out


def test_a_configuration_may_grow_go_to_a_store_and_be_shared(study, tmp_path):
    store = fsspec.filesystem("memory")
    store.store.clear()
    write_config(tmp_path / "study.yaml", entries(PROMPTS[:16]), output_dir="memory://bucket/out")
    assert "16 prompts: 16 written" in study("study.yaml")[1]
    write_config(tmp_path / "study.yaml", entries(PROMPTS), output_dir="memory://bucket/out")
    assert "18 prompts: 2 written; 16 were there already" in study("study.yaml", "--resume")[1]
    for share in ("1/2", "2/2"):
        study("study.yaml", "--shard", share, "--output-dir", "memory://bucket/shares")
    whole, shares = (
        {
            path.removeprefix(f"/bucket/{one}/"): store.cat_file(path)
            for path in store.find(f"bucket/{one}/study/impact")
        }
        for one in ("out", "shares")
    )
    assert whole == shares
    assert len(whole) == 2
    assert json.loads(store.cat_file("bucket/shares/study/manifest.json"))["complete"]
    store.store.clear()


def test_settings_that_prompts_have_of_their_own_are_theirs_and_are_not_averaged(study, tmp_path):
    own = {f"p{n}": {"effect": True, "window": "all" if n % 2 else 3} for n in range(4)}
    write_config(tmp_path / "study.yaml", entries(PROMPTS[:4], **own), defaults={"num_tokens": 1})
    assert study("study.yaml")[0] == 0
    manifest = read_manifest(Path("output/study"))["settings"]
    assert (manifest["effect"], "window" in manifest) == (True, False)
    windows = [json.loads(text)["window"] for text in pd.read_parquet("output/study/prompts").settings]
    assert windows == [3, "all", 3, "all"]
    found = {one.name: one for one in find_study(Path("output/study")).prompts()}
    hows = [{kind.how for kind in one.curves if kind.quantity == READING} for one in found.values()]
    assert hows == [{"window 3, last query"}, {""}] * 2
    assert not any(kind.quantity == IMAGE_SHARE for one in found.values() for kind in one.curves)
    del own["p3"]["window"], own["p1"]["window"]
    write_config(tmp_path / "study.yaml", entries(PROMPTS[:4], **own), defaults={"num_tokens": 1, "window": 3})
    _, out, err = study(
        "study.yaml", "--resume"
    )  # a part is of all its prompts; nothing is said to have been otherwise
    assert ("4 written" in out, "measured otherwise" in err) == (True, False)
