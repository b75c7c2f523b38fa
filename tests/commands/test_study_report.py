"""`mask-impact study report`, from studies of a tiny model and of made-up tables, to text, JSON, tables and a page."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from looked import make_deepstack
from pages import Page
from studying import write_dataset
from synthetic import make_result

from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text
from mask_impact.results.deepstack_files import deepstack_table
from mask_impact.results.tables import to_dataset_table, with_prompt

FILES = {"report.html", *(f"report.{name}.csv" for name in ("layers", "flows", "images", "heads", "tests", "prompts"))}


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """words -> (exit code, stdout, stderr) of `mask-impact study report`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["study", "report", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def planted(folder, n=12, layer=1, factor=4.0, prefix="p", seed=0):
    """A dataset of n prompts with an image. In every second, of category b, the image's cells weigh `factor` times as much in
    a layer."""
    folder.mkdir(parents=True)
    tables = []
    for number in range(n):
        result = make_result(n_layers=3, grids=[(2, 2)], generated_text="no" if number == 0 else "yes")
        step, rng = result.steps[0], np.random.default_rng(seed + number)
        l2 = np.exp(0.1 * rng.normal(size=step.l2.shape)).astype(np.float32)
        cells = result.tokens.image[step.positions] >= 0
        l2[layer, cells] *= factor if number % 2 else 1.0
        result = replace(result, steps=(replace(step, l2=l2),), sinks=())
        labels = json.dumps({"category": "ab"[number % 2], "expected": "yes"})
        tables.append(to_dataset_table(result, f"{prefix}{number}", labels, "none"))
    for part, first in enumerate(range(0, n, 8)):
        some = pa.concat_tables([one.unify_dictionaries() for one in tables[first : first + 8]]).unify_dictionaries()
        pq.write_table(some, folder / f"part-{part:06d}.parquet")
    return folder


# --- what is said -----------------------------------------------------------------------------------------------------------


def test_a_planted_difference_is_in_the_summary_the_json_the_tables_and_the_page(report, tmp_path):
    """4 cells of 1 each and 5 words of 1 each: the image has 4/9, and 16/21 where a cell weighs 4 times as much."""
    planted(tmp_path / "study")
    code, out, err = report("study", "--by", "category")
    assert (code, err) == (0, "")
    assert "All prompts (12)" in out
    assert re.search(r"correct answers: 91\.7 % \(61\.5 to 99\.8 %, n 12\)", out)
    assert "category=a minus category=b" in out
    said = " ".join(out.split())
    assert re.search(r"image, of image and text, by layer: layers 1 differ, most of all layer 1: -3\d\.\d %", said)
    rows = table("study.report/report.layers.csv")
    means = {(row["group"], row["layer"]): row for row in rows if row["quantity"] == "image share" and row["layer"]}
    for group, share in (("category=a", 4 / 9), ("category=b", 16 / 21)):
        row = means[group, "1"]
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert float(row["mean"]) == pytest.approx(share, abs=0.03)
        assert (row["n"], row["n_layers"], row["measure"]) == ("6", "3", "local impact")
    tests = {
        row["layer"]: float(row["p_holm"])
        for row in table("study.report/report.tests.csv")
        if row["quantity"] == "image share" and row["layer"]
    }
    assert tests["1"] == pytest.approx(3 * 2 / 924)  # the two most extreme of all deals, times three layers
    assert min(tests["0"], tests["2"]) > 0.05
    prompts = table("study.report/report.prompts.csv")
    assert [row["correct"] for row in prompts] == ["false"] + ["true"] * 11
    assert {row["category"] for row in prompts} == {"a", "b"}
    assert len(table("study.report/report.heads.csv")) == 3 * 3 * 2
    page = Path("study.report/report.html").read_text(encoding="utf-8")
    assert page.count("<polygon") >= 3
    assert "image, of image and text, by layer" in page
    assert {path.name for path in Path("study.report").iterdir()} == FILES

    code, out, _ = report("study", "--by", "category", "--json", "--output-dir", "elsewhere")
    entry = json.loads(out)
    assert (code, entry["prompts"], entry["expected"], entry["notes"]) == (0, [12], "expected", [])
    assert {Path(path).name for path in entry["files"]} == FILES
    one = next(row for row in entry["tests"] if row["quantity"] == "image share" and row["layer"] == 1)
    assert one["p_holm"] == tests["1"]
    assert {path.name for path in Path("elsewhere").iterdir()} == FILES


def test_two_studies_are_held_against_each_other_by_their_prompts_names(report, tmp_path):
    planted(tmp_path / "one", factor=1.0)
    planted(tmp_path / "two", factor=4.0, seed=0)
    planted(tmp_path / "others", factor=1.0, prefix="q")
    code, out, _ = report("one", "--against", "two", "--by", "category")
    assert code == 0
    assert "A, category=b minus B, category=b" in out
    assert "paired by the prompts' names" in out
    tests = {
        (row["group"], row["layer"]): row
        for row in table("one.report/report.tests.csv")
        if row["quantity"] == "image share"
    }
    assert (tests["category=b", "1"]["paired"], tests["category=b", "1"]["n"]) == ("true", "6")
    assert float(tests["category=b", "1"]["p"]) == 2 / 64
    assert float(tests["category=a", "1"]["p"]) == 1.0  # the same prompts twice
    code, out, _ = report("one", "--against", "others")
    assert "unpaired, since the prompts have other names" in out


def test_every_mean_in_the_summary_has_n_and_an_interval(report, tmp_path):
    planted(tmp_path / "study")
    _, out, _ = report("study", "--by", "category")
    before, _, _ = " ".join(out.split()).partition("category=a minus")
    found = re.findall(r"\d+\.\d+ % \(([^)]*)\)|: -?\d\.\d\d \(([^)]*)\)", before)
    assert len(found) > 10
    for one in found:
        assert re.search(r"\d to -?\d", "".join(one))
    assert before.count(", n 12)") >= 4


def with_parts(folder, n=12):
    """A study with parts of features: in category b the first level adds 2 nats more."""
    planted(folder)
    tables = []
    for number in range(n):
        found = make_deepstack()
        more = np.array([0.0, 2.0 * (number % 2) + 0.1 * np.random.default_rng(number).normal(), 0.0])
        targets = [replace(one, shapley=one.shapley + more) for one in found.targets[:1]]
        labels = json.dumps({"category": "ab"[number % 2], "expected": "yes"})
        tables.append(with_prompt(deepstack_table(replace(found, targets=tuple(targets))), f"p{number}", "yes", labels))
    for part, first in enumerate(range(0, n, 8)):
        some = pa.concat_tables([one.unify_dictionaries() for one in tables[first : first + 8]]).unify_dictionaries()
        place = folder.with_name(f"{folder.name}.deepstack")
        place.mkdir(exist_ok=True)
        pq.write_table(some, place / f"part-{part:06d}.parquet")


def test_parts_of_features_have_means_by_group_a_test_and_a_figure(report, tmp_path):
    with_parts(tmp_path / "study")
    code, out, _ = report("study", "--by", "category", "--figure", "parts.svg")
    assert code == 0
    assert re.search(
        r"part level 0: -2\.0\d? nats \(-2\.\d+ to -1\.\d+ nats, n 6 and 6\), p 0\.0\d+", " ".join(out.split())
    )
    wanted = ("category=b", "part level 0")
    (row,) = [one for one in table("study.report/report.images.csv") if (one["group"], one["quantity"]) == wanted]
    own = float(make_deepstack().targets[0].shapley[1])
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert float(row["mean"]) == pytest.approx(own + 2, abs=0.1)
    assert not [one for one in table("study.report/report.layers.csv") if one["quantity"].startswith("part")]
    assert Path("parts.svg").read_text(encoding="utf-8").startswith("<?xml")
    planted(tmp_path / "plain")
    code, _, err = report("plain", "--figure", "none.pdf")
    assert (code, Path("none.pdf").exists()) == (1, False)
    assert "has neither flows nor parts" in err


def test_the_same_command_writes_the_same_bytes(report, tmp_path):
    planted(tmp_path / "study")
    report("study", "--by", "category", "--output-dir", "a")
    report("study", "--by", "category", "--output-dir", "b")
    for name in FILES - {"report.html"}:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_few_prompts_have_no_intervals_which_is_said(report, tmp_path):
    planted(tmp_path / "study", n=3)
    code, out, _ = report("study")
    assert code == 0
    assert "Too few for intervals, which 5 prompts have." in out
    assert {row["low"] for row in table("study.report/report.layers.csv") if row["quantity"] == "image share"} == {""}


def test_texts_of_a_study_act_neither_on_a_terminal_nor_on_a_page(report, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    evil = "</pre><script>alert(1)</script>\x1b[2J"
    tables = [
        to_dataset_table(
            make_result(seed=n, grids=[(1, 2)], generated_text=evil), f"<b>{n}", json.dumps({"k": evil, "expected": "x"}), "none"
        )
        for n in range(8)
    ]  # fmt: skip
    pq.write_table(
        pa.concat_tables([one.unify_dictionaries() for one in tables]).unify_dictionaries(), folder / "part-0.parquet"
    )
    code, out, _ = report("study", "--by", "k")
    assert (code, "\x1b" in out) == (0, False)
    page = Path("study.report/report.html").read_text(encoding="utf-8")
    assert ("<script" in page, "<b>0" in page, "\x1b" in page) == (False, False, False)
    assert "default-src 'none'" in page


# --- from a model to the report ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dataset_is_studied_and_reported(report, tmp_path, text_checkpoint, capsys):
    rows = [
        {"name": f"r{n}", "prompt": f"the {'cat' if n % 2 else 'mat'} sat {n}", "kind": "cm"[n % 2], "expected": "no"}
        for n in range(12)
    ]
    write_dataset(tmp_path / "data.jsonl", rows)
    argv = ["study", "data.jsonl", "-m", str(text_checkpoint), "--raw", "-q", "--effect", "--answer", "--budget", "2"]
    assert main([*argv, "--routes", "auto", "--reduce", "none"]) == 0
    code, out, err = report("output/data", "--by", "kind")
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "Measured effect of the evidence, window 1, last query, 3 layers" in said
    assert "correct answers: 0.0 % (0.0 to 26.5 %, n 12)" in said
    flows = table("output/data.report/report.flows.csv")
    assert {(row["measure"], row["how"]) for row in flows} == {("estimated", ""), ("measured", "all layers")}
    assert all(f"flow {row['flow']}" in said for row in flows)
    assert [row["kind"] for row in table("output/data.report/report.prompts.csv")] == ["c", "m"] * 6
    links = links_to_cards(tmp_path / "output" / "data.report")
    assert links
    assert set(links) <= {row["name"] for row in rows}
    assert all(f"sat {name[1:]}" in question for name, question in links.items())
    assert main([*argv, "--resume"]) == 0  # the folder of the report is in nobody's way


def links_to_cards(folder):
    """By prompt that the page names the question of the card that its link leads to."""
    prompts = Page((folder / "cards.html").read_bytes()).data["prompts"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="cards\.html#prompt=(\d+)">([^<]+)</a>', page)
    assert {int(at) for at, _ in links} == set(range(len(prompts)))
    return {name: prompts[int(at)]["title"] for at, name in links}


def test_without_what_answers_used_there_are_no_cards(report, tmp_path):
    planted(tmp_path / "study")
    assert report("study")[0] == 0
    assert "cards.html" not in (tmp_path / "study.report" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "study.report" / "cards.html").exists()


def test_a_configuration_is_studied_and_reported(report, tmp_path, text_checkpoint):
    prompts = [
        {"name": f"r{n}", "prompt": f"the cat sat {n}", "labels": {"half": n % 2}, "expected": "no"} for n in range(6)
    ]
    Path("study.yaml").write_text(yaml.safe_dump({"prompts": prompts, "output_dir": "out"}))
    argv = ["study", "study.yaml", "-m", str(text_checkpoint), "--raw", "-q", "--answer", "--budget", "2"]
    assert main(argv) == 0
    code, out, _ = report("out/study", "--by", "half")
    assert code == 0
    assert "half=0 minus half=1" in out
    assert [row["prompt"] for row in table("out/study.report/report.prompts.csv")] == [f"r{n}" for n in range(6)]
    links = links_to_cards(tmp_path / "out" / "study.report")
    assert all(f"sat {name[1:]}" in question for name, question in links.items())


def test_files_of_each_prompt_are_reported_with_their_pages(report, tmp_path, text_checkpoint):
    prompts = [{"name": f"r{n}", "prompt": f"the cat sat {n}", "expected": "no"} for n in range(2)]
    Path("study.yaml").write_text(yaml.safe_dump({"prompts": prompts, "output_dir": "out"}))
    argv = ["--config", "study.yaml", "--model", str(text_checkpoint), "--raw", "-q", "--report"]
    assert main_text(argv) == 0
    assert report("out")[0] == 0
    places = [row["place"] for row in table("out.report/report.prompts.csv")]
    assert places == [str(Path("out", f"r{n}_results.html")) for n in range(2)]
    before = Path("out/r0_results.meta.json").stat().st_mtime_ns
    assert main_text([*argv, "--resume"]) == 0
    assert Path("out/r0_results.meta.json").stat().st_mtime_ns == before
    prompts[0]["expected"] = "yes"
    Path("study.yaml").write_text(yaml.safe_dump({"prompts": prompts, "output_dir": "out"}))
    assert main_text([*argv, "--resume"]) == 0  # what is expected is stored anew
    assert Path("out/r0_results.meta.json").stat().st_mtime_ns > before


# --- what is refused --------------------------------------------------------------------------------------------------------


def test_wrong_usage_is_told_in_one_line_and_nothing_is_written(report, tmp_path):
    planted(tmp_path / "study", n=5)
    for words, code, said in (
        (["none"], 1, "none does not exist; give the folder that a study wrote"),
        (["study", "--by", "categry"], 2, "--by: the study has no column 'categry'"),
        (["study", "--by", "category,"], 2, "--by must be different names of columns"),
        (["study", "--expected", "x"], 2, "--expected: the study has no column 'x'"),
        (["study", "--against", "./study"], 2, "--against ./study is the same study"),
        (["study", "--match", "exct"], 2, "did you mean exact?"),
        (["."], 1, "study has parts"),
    ):
        found, out, err = report(*words)
        assert (found, out, err.count("\n")) == (code, "", 1), words
        assert err.startswith("mask-impact study report: error: ")
        assert said in err
        assert not [*Path("study.report").glob("*")]
    Path("taken").write_text("")
    assert report("study", "--output-dir", "taken")[0] == 1
    Path("full/report.heads.csv").mkdir(parents=True)
    assert report("study", "--output-dir", "full")[0] == 1
    assert [path.name for path in Path("full").iterdir()] == ["report.heads.csv"]


def test_every_example_of_the_help_is_understood(report, monkeypatch):
    _, out, _ = report("--help")
    monkeypatch.setattr("mask_impact.commands.study_report.run", lambda args, caller, command: 0)
    examples = out.partition("examples:\n")[2].splitlines()
    assert len(examples) == 2
    for example in examples:
        assert example.split()[:3] == ["mask-impact", "study", "report"]
        assert report(*example.split()[3:]) == (0, "", "")


def test_report_is_a_word_of_study_and_a_file_keeps_its_own(report, capsys):
    """A study's file has a suffix, so that none is called `report`."""
    assert main(["study", "report.yaml"]) == 1
    assert "report.yaml" in capsys.readouterr().err
    for words in (["study", "report", "--help"], ["help", "study", "report"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: mask-impact study report ")
        assert max(map(len, out.splitlines())) <= 80
    assert main(["study", "--help"]) == 0
    assert "mask-impact study report DIR/NAME" in " ".join(capsys.readouterr().out.split())
