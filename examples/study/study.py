"""By which way an answer about a picture comes about: one study of many questions, its report, and one figure.

    python examples/study/study.py
    python examples/study/study.py --model Qwen/Qwen3-VL-4B-Instruct --data questions.json --images FOLDER

Without --data the questions are held-out ones of the bundled demo: colours and shapes. Flags that stand here under no name go to
`mask-impact study` (--workers auto, --device cuda, --dtype bfloat16, --pixels).
"""

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mask_impact.commands.main import main as mask_impact

FLOWS = "image -> question; question -> last; image -> last"
TASKS = ("color", "shape")
NAMES = {  # what others call it, in this order
    "image": ("image", "image_path", "image_id", "imageId", "image_name", "file_name"),
    "question": ("question", "prompt", "query"),
    "answer": ("answer", "answers", "multiple_choice_answer", "label", "expected"),
    "task": ("task", "question_type", "answer_type", "category", "kind", "type"),
    "id": ("question_id", "id", "qid", "name"),
}


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The script's own, and those of `mask-impact study`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="demo", help="hub id or folder (default: the bundled demo)")
    parser.add_argument("--data", help="a .json (VQAv2, GQA), .jsonl, .csv or .parquet with image, question and answer")
    parser.add_argument("--annotations", help="of VQAv2: the .json with the answers")
    parser.add_argument(
        "--images", default="", help="folder of the images, or a pattern such as 'val2014/COCO_val2014_{:012d}.jpg'"
    )
    parser.add_argument("--by", help="the column that makes groups (default: task, where questions have one)")
    parser.add_argument("--suffix", default="", help="text behind each question, such as ' Answer with one word.'")
    parser.add_argument("-n", type=int, default=16, help="questions (default: %(default)s)")
    parser.add_argument("--output-dir", default="output/study-example", help="(default: %(default)s)")
    return parser.parse_known_args()


def main() -> int:
    """Writes questions.jsonl, and then runs the study and its report."""
    args, others = arguments()
    folder = Path(args.output_dir)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = of_file(args) if args.data else of_demo(args.n, folder / "images")
    rows = list(itertools.islice(found, args.n))
    if not rows:
        raise SystemExit("there is no question")
    for row in rows:
        row["prompt"] += args.suffix
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    study = ["--answer", "--routes", FLOWS, "--deepstack", "--num-tokens", "4", "--variants", "full", "--resume"]
    code = mask_impact(["study", str(file), "-m", args.model, "--output-dir", str(folder), *study, *others])
    if code not in (0, 3):  # 3: some questions failed, which is said
        return code
    by = args.by or ("task" if any("task" in row for row in rows) else None)
    report = ["--match", "contains", "--figure", str(folder / "figure.pdf"), *(["--by", by] if by else [])]
    return mask_impact(["study", "report", str(folder / "questions"), *report])


# --- questions: rows with name, prompt, image, expected and, where there is one, task ------------------------------------------


def of_demo(n: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Held-out questions about pictures of coloured shapes, whose images are written."""
    from mask_impact.demo.pictures import image_samples

    samples = [image_samples(task, -(-n // len(TASKS)), seed=1, held_out=True) for task in TASKS]
    for number, sample in enumerate(one for several in zip(*samples, strict=True) for one in several):
        path = folder / f"{number:04d}.png"
        sample.image.save(path)
        row = {"prompt": sample.question, "image": str(path.absolute()), "expected": sample.answer, "task": sample.task}
        yield {"name": f"{sample.task}{number:04d}"} | row


def of_file(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The questions of a file in one of the common forms."""
    path = Path(args.data)
    answers = answers_of(args.annotations) if args.annotations else {}
    for number, row in enumerate(read(path)):
        row = row | answers.get(row.get("question_id"), {})
        question, image, answer = (field(row, key) for key in ("question", "image", "answer"))
        if question is None or image is None:
            there = ", ".join(map(str, row))
            raise SystemExit(f"{path}, question {number}: needs a question and an image; it has {there}")
        made = {"name": f"q{number:06d}_{field(row, 'id') or ''}".rstrip("_"), "prompt": str(question)}
        made["image"] = image if isinstance(image, dict) else str(image_path(image, args.images, path.parent))
        expected = plain(answer)
        task = field(row, "task")
        task = row["types"].get("semantic") if isinstance(row.get("types"), dict) else task  # of GQA
        yield made | ({"expected": expected} if expected else {}) | ({"task": str(task)} if task else {})


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, as it has them."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("questions", content) if isinstance(content, dict) else content
        yield from content if isinstance(content, list) else ({"id": key} | row for key, row in content.items())
    elif suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    elif suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    else:
        raise SystemExit(f"{path} is none of .json, .jsonl, .csv and .parquet")


def answers_of(path: str) -> dict[Any, dict[str, Any]]:
    """By question_id what VQAv2's annotations say."""
    return {row["question_id"]: row for row in json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]}


def field(row: dict[str, Any], what: str) -> Any:
    """The first of the names that the row has."""
    return next((row[name] for name in NAMES[what] if row.get(name) not in (None, "")), None)


def plain(answer: Any) -> list[str]:
    """An answer, or several people's, as different texts."""
    several = answer if isinstance(answer, list) else [] if answer is None else [answer]
    texts = (str(one.get("answer", "")) if isinstance(one, dict) else str(one) for one in several)
    return [*dict.fromkeys(text for text in texts if text)]


def image_path(image: Any, where: str, beside: Path) -> Path:
    """A file: by the pattern, else in the folder (or beside the questions), also where the name has no suffix."""
    if "{" in where:
        return Path(where.format(int(image) if str(image).isdigit() else image)).absolute()
    path = (Path(where) if where else beside) / str(image)
    others = (path.with_name(path.name + suffix) for suffix in (".jpg", ".png", ".jpeg", ".webp"))
    return next((one for one in (path, *others) if one.is_file()), path).absolute()


if __name__ == "__main__":
    sys.exit(main())
