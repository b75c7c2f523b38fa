"""`examples/study`: questions in the forms in which others publish them, those of easy-VQA, and the whole of both on the demo."""

import argparse
import csv
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from studying import REPOSITORY

from mask_impact.demo.tasks import is_held_out
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.jobs import Job

SCRIPT = REPOSITORY / "examples" / "study" / "study.py"
EASY = SCRIPT.with_name("easy.py")


def module_of(script):
    spec = importlib.util.spec_from_file_location(f"{script.stem}_example", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return module_of(SCRIPT)


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


# --- easy-VQA ---------------------------------------------------------------------------------------------------------------

ASKED = [  # (question, answer, kind), two of each kind for each picture; the shape's colour and name stand in the braces
    ("what shape is present?", "{shape}", "shape"),
    ("what is the {color} shape?", "{shape}", "shape"),
    ("what color is the shape?", "{color}", "color"),
    ("what color is the {shape}?", "{color}", "color"),
    ("is there not a {shape} in the image?", "no", "yes/no about shape"),
    ("is a {shape} present?", "yes", "yes/no about shape"),
    ("is no {color} shape present?", "no", "yes/no about color"),
    ("does the image contain a {color} shape?", "yes", "yes/no about color"),
]
PICTURES = [("red", "rectangle"), ("teal", "circle"), ("black", "triangle")]


@pytest.fixture
def easy(tmp_path, monkeypatch):
    """The script, and in place of the package of 9,673 questions one of 24."""
    (tmp_path / "package").mkdir()
    paths, turns = {}, []
    for number, (color, shape) in enumerate(PICTURES):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((12, 12, 44, 44), fill=color)
        paths[number] = str(tmp_path / "package" / f"{number}.png")
        picture.save(paths[number])
        turns += [(*(text.format(color=color, shape=shape) for text in asked[:2]), number) for asked in ASKED]
    package = ModuleType("easy_vqa")
    package.get_test_questions = lambda: tuple(list(column) for column in zip(*turns, strict=True))
    package.get_test_image_paths = lambda: paths
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    return module_of(EASY)


def test_the_kind_of_a_question_of_easy_vqa_is_what_it_asks_for(easy):
    """Not what it names: "what is the red shape?" is about a shape, "what color is the circle?" about a color."""
    for question, answer, kind in ASKED:
        for color, shape in PICTURES:
            filled = (text.format(color=color, shape=shape) for text in (question, answer))
            assert easy.kind_of(*filled) == kind
    assert {kind for *_, kind in ASKED} == set(easy.KINDS)


@pytest.mark.parametrize(("n", "each"), [(8, [2, 2, 2, 2]), (10, [2, 2, 3, 3]), (300, [6, 6, 6, 6])])
def test_questions_of_easy_vqa_are_as_many_of_each_kind_or_all_that_there_are(n, each, easy):
    rows = easy.questions(n)
    counted = Counter(row["kind"] for row in rows)
    assert [counted[kind] for kind in easy.KINDS] == each
    assert len({row["name"] for row in rows}) == len(rows)
    answers = {row["name"]: row["expected"] for row in rows}
    assert all((answers[row["name"]] in ("yes", "no")) == row["kind"].startswith("yes/no") for row in rows)


def test_the_file_of_easy_vqa_is_the_same_each_time_and_needs_no_package(easy, tmp_path):
    """What is written is what a study takes, with images of its own; another seed draws others."""
    file = easy.write_questions(tmp_path / "one", 8)
    assert file.read_bytes() == easy.write_questions(tmp_path / "two", 8).read_bytes()
    assert file.read_bytes() != easy.write_questions(tmp_path / "three", 8, seed=1).read_bytes()
    for path in (tmp_path / "package").iterdir():
        path.unlink()
    jobs = [*read_dataset(file, kind="vl")]
    assert all(isinstance(job, Job) for job in jobs), jobs
    assert [set(job.carried) for job in jobs] == [{"expected", "kind"}] * 8
    assert {path.name for path in (file.parent / "images").iterdir()} <= {"0.png", "1.png", "2.png"}


def test_the_other_example_takes_the_questions_of_easy_vqa_with_their_kinds(easy, example, tmp_path):
    file = easy.write_questions(tmp_path / "easy", 4)
    rows = [*example.of_file(argparse.Namespace(data=str(file), annotations=None, images=""))]
    assert sorted(row["task"] for row in rows) == sorted(easy.KINDS)
    assert all(Path(row["image"]).is_file() for row in rows)


def test_without_the_package_it_is_said_how_to_get_it(easy, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(SystemExit, match="pip install easy-vqa"):
        easy.questions(4)


@pytest.mark.slow
def test_easy_vqa_ends_with_a_report_by_kind_and_one_by_right_and_wrong(easy, tmp_path, monkeypatch, capsys):
    argv = ["-n", "8", "--output-dir", str(tmp_path / "out"), "--answer", "--budget", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(EASY), *argv])
    assert easy.main() == 0
    said = capsys.readouterr().out
    assert all(f"kind={kind} (2)" in said for kind in easy.KINDS)
    assert "correct=" in said
    for by in ("kind", "correct"):
        assert (tmp_path / "out" / f"easy.{by}" / "report.html").is_file()
    prompts = pq.read_table(tmp_path / "out" / "easy" / "questions" / "prompts")
    assert prompts.num_rows == 8
    assert set(prompts["correct"].to_pylist()) <= {True, False}
