"""What answers used, in studies: of a configuration beside each result, of a dataset in folders of its own."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mask_impact.analyses.settings import RunSettings
from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text
from mask_impact.models import loading
from mask_impact.results.store import load_result
from mask_impact.results.stored import read_stored
from mask_impact.studies import digest as digests
from mask_impact.studies.jobs import Job
from mask_impact.views.card import Card


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_configuration_says_so_for_all_or_for_one(text_checkpoint):
    prompts = [{"name": "a", "prompt": "the cat sat"}, {"name": "b", "prompt": "the mat", "answer": False}]
    common = {"answer": True, "raw": True, "budget": 30, "routes": "flows.yaml"}
    Path("flows.yaml").write_text("flows:\n  - {source: the, target: last}\n")
    Path("study.yaml").write_text(yaml.safe_dump({"prompts": prompts, "defaults": common}))
    argv = ["--config", "study.yaml", "--model", str(text_checkpoint), "--quiet"]
    assert main_text(argv) == 0
    assert (load_result("output/a_results").answer is None, load_result("output/b_results").answer) == (False, None)
    (target,) = load_result("output/a_results").answer.targets
    assert target.routes[0].name == "the -> last"
    assert Path("output/a_results.routes.csv").is_file()
    before = Path("output/a_results.answer.meta.json").stat().st_mtime_ns
    assert main_text([*argv, "--resume"]) == 0
    assert Path("output/a_results.answer.meta.json").stat().st_mtime_ns == before
    Path("flows.yaml").write_text("flows:\n  - {source: cat, target: last}\n")
    assert main_text([*argv, "--resume"]) == 0  # other flows are another study
    assert load_result("output/a_results").answer.targets[0].routes[0].name == "cat -> last"


def rows(n):
    Path("study.jsonl").write_text(
        "".join(json.dumps({"name": f"r{i}", "prompt": f"the cat {i}"}) + "\n" for i in range(n))
    )


def test_a_dataset_has_a_folder_for_each_kind_of_table(text_checkpoint):
    rows(3)
    argv = ["--dataset", "study.jsonl", "--model", str(text_checkpoint), "--quiet", "--raw"]
    assert main_text([*argv, "--answer", "--effect", "--budget", "30", "--matrix", "--routes", "question -> last"]) == 0
    frames = {
        kind: pd.read_parquet(f"output/study/{kind}/part-000000.parquet")
        for kind in ("impact", "prompts", "answer", "card", "effect", "flows", "routes", "matrix")
    }
    for frame in frames.values():
        assert frame["prompt_name"].unique().tolist() == ["r0", "r1", "r2"]
        assert frame["generated_text"].notna().all()
    assert {"contribution", "logprob_change", "necessary"} <= set(frames["answer"].columns)
    assert "logprob_change" in frames["effect"].columns
    # What was measured and what is estimated are apart: each flow was cut once in all layers.
    flows = frames["flows"]
    assert flows[flows.cut == "all layers"].groupby("prompt_name", observed=True).flow.nunique().eq(1).all()
    assert flows.logprob_change.notna().all()
    assert not {"cut", "logprob_change", "whole_change"} & {*frames["routes"].columns}
    # The next one asks for less: what it does not write again is taken away.
    assert main_text(argv) == 0
    assert not list(Path("output/study/answer").glob("*.parquet"))
    assert Path("output/study/impact/part-000000.parquet").is_file()


def test_a_dataset_keeps_what_its_cards_need_and_opens_as_one_page(text_checkpoint, capsys):
    """The card of a dataset's prompt is the one that the same prompt has by itself."""
    rows(3)
    settings = ["--answer", "--budget", "30", "--raw", "--model", str(text_checkpoint), "--quiet"]
    assert main_text(["--dataset", "study.jsonl", *settings]) == 0
    kept = read_stored("output/study")["r1"].answer
    prompts = [{"name": "r1", "prompt": "the cat 1"}]
    Path("one.yaml").write_text(yaml.safe_dump({"prompts": prompts}))
    assert main_text(["--config", "one.yaml", *settings]) == 0
    alone = load_result("output/r1_results").answer
    for name in ("contribution", "logprob_change"):
        np.testing.assert_allclose(
            getattr(kept.targets[0], name), getattr(alone.targets[0], name), rtol=1e-3, atol=1e-5
        )
    assert Card(kept).sentence == Card(alone).sentence
    assert kept.targets[0].evidence == alone.targets[0].evidence
    assert main(["report", "output/study"]) == 0
    assert "Report: output/study.html" in capsys.readouterr().out
    page = Path("output/study.html").read_text(encoding="utf-8")
    assert [f'data-row="{row}"' in page for row in range(4)] == [True, True, True, False]


def test_a_shorter_dataset_leaves_no_parts_of_a_longer_one(text_checkpoint, monkeypatch):
    argv = ["--dataset", "study.jsonl", "--model", str(text_checkpoint), "--quiet", "--raw", "--answer"]
    monkeypatch.setattr("mask_impact.studies.dataset_study.MAX_TOGETHER", 2)
    rows(4)
    assert main_text(argv) == 0
    assert len(list(Path("output/study/answer").iterdir())) == 2
    rows(2)
    assert main_text([*argv, "--resume"]) == 0
    assert [path.name for path in Path("output/study/answer").iterdir()] == ["part-000000.parquet"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "all"], "--target is about what the answer used: give --answer too"),
        (["--window", "3"], "--window says how the effect is measured: give --effect too"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, said, capsys):
    rows(1)
    assert main_text(["--dataset", "study.jsonl", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_job_without_answers_is_known_by_the_digest_it_always_had(text_checkpoint):
    """The settings as they stood in digests before there were any of answers."""
    loaded = loading.load(str(text_checkpoint), kind="text")
    plain = Job("a", "the cat", (), RunSettings(), {})
    kept = ("num_tokens", "variants", "mask_mode", "ablation", "raw", "max_image_resolution", "effect", "batch_size")
    old = {name: value for name, value in asdict(plain.settings).items() if name in kept} | {"n_verify": 0}
    seen = {}
    real = digests.json.dumps

    def look(ingredients, **how):
        seen.update(ingredients)
        return real(ingredients, **how)

    digests.json.dumps, before = look, real
    try:
        digests.digest(loaded, plain)
        assert seen["settings"] == old
        effect = replace(plain, settings=RunSettings(effect=True))
        digests.digest(loaded, effect)
        assert seen["settings"] == old | {"effect": True, "window": 1, "queries": "last", "groups": "tokens"}
        one = digests.digest(loaded, replace(plain, settings=RunSettings(answer=True)))
        other = digests.digest(loaded, replace(plain, settings=RunSettings(answer=True, target="all")))
        assert len({one, other, digests.digest(loaded, plain)}) == 3
    finally:
        digests.json.dumps = before
