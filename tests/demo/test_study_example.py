"""`examples/study/study.py`: questions in the forms in which others publish them, and the whole of it on the demo."""

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from studying import REPOSITORY

from mask_impact.demo.tasks import is_held_out
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.jobs import Job

SCRIPT = REPOSITORY / "examples" / "study" / "study.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("study_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = {"image": "7.png", "question": "What is it?", "answer": "a cat"}
VQA = {"questions": [{"image_id": 7, "question": "What is it?", "question_id": 70}]}
SAID = [{"answer": "a cat"}, {"answer": "cat"}, {"answer": "cat"}]
ANSWERS = {"annotations": [{"question_id": 70, "answer_type": "other", "image_id": 7, "answers": SAID}]}
GQA = {"q70": {"imageId": "7", "question": "What is it?", "answer": "a cat", "types": {"semantic": "obj"}}}


def write(folder, form):
    """(file, flags, expected answer, task) of one question in a form."""
    path = folder / f"questions.{form.partition(' ')[0]}"
    if form == "json of VQAv2":
        path.write_text(json.dumps(VQA))
        (folder / "annotations.json").write_text(json.dumps(ANSWERS))
        flags = {"annotations": str(folder / "annotations.json"), "images": str(folder / "COCO_{:012d}.png")}
        return path, flags, ["a cat", "cat"], "other"
    if form == "json of GQA":
        path.write_text(json.dumps(GQA))
        return path, {"images": str(folder)}, ["a cat"], "obj"
    if form == "jsonl":
        path.write_text(json.dumps(PLAIN) + "\n\n")
    elif form == "csv":
        with open(path, "w", newline="") as file:
            rows = csv.DictWriter(file, PLAIN)
            rows.writeheader()
            rows.writerow(PLAIN)
    else:
        pq.write_table(pa.Table.from_pylist([PLAIN]), path)
    return path, {}, ["a cat"], None


@pytest.mark.parametrize("form", ["json of VQAv2", "json of GQA", "jsonl", "csv", "parquet"])
def test_questions_of_each_form_become_rows_that_a_study_takes(form, example, tmp_path):
    for name in ("7.png", "COCO_000000000007.png"):
        (tmp_path / name).touch()
    path, flags, expected, task = write(tmp_path, form)
    args = argparse.Namespace(**{"data": str(path), "annotations": None, "images": ""} | flags)
    (row,) = example.of_file(args)
    assert (row["prompt"], row["expected"], row.get("task")) == ("What is it?", expected, task)
    assert Path(row["image"]).name == ("COCO_000000000007.png" if "VQA" in form else "7.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (job,) = read_dataset(tmp_path / "rows.jsonl", kind="vl")
    assert isinstance(job, Job), job
    assert job.carried["expected"] == expected


def test_a_file_without_a_question_is_said_with_what_it_has(example, tmp_path):
    (tmp_path / "a.csv").write_text("picture,text\n1,2\n")
    with pytest.raises(SystemExit, match="needs a question and an image; it has picture, text"):
        [*example.of_file(argparse.Namespace(data=str(tmp_path / "a.csv"), annotations=None, images=""))]


def test_questions_of_the_demo_are_those_that_it_was_not_trained_on(example, tmp_path):
    rows = [*example.of_demo(6, tmp_path)]
    assert [row["task"] for row in rows] == ["color", "shape"] * 3
    assert all(Path(row["image"]).is_file() for row in rows)
    from mask_impact.demo.pictures import image_samples

    assert all(is_held_out(repr(sample.scene)) for sample in image_samples("color", 3, seed=1))


@pytest.mark.slow
def test_the_example_ends_with_a_report_and_a_figure(example, tmp_path, monkeypatch, capsys):
    argv = ["study.py", "-n", "2", "--output-dir", "out", "--budget", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(tmp_path)
    assert example.main() == 0
    said = capsys.readouterr().out
    assert "part level 0" in said
    assert "flow image -> question" in said
    assert (tmp_path / "out" / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "out" / "questions.report" / "report.html").is_file()
