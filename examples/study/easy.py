"""Questions of easy-VQA, data made by others: where the model reads what, by kind of question, and by right and wrong answers.

    pip install easy-vqa
    python examples/study/easy.py

Writes questions of the test split, as many of each kind, with their images; then runs the study and its two reports. Flags that
stand here under no name go to `mask-impact study` (--dtype float32, --answer).
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

from mask_impact.commands.main import main as mask_impact

SEED = 0
KINDS = ("shape", "color", "yes/no about shape", "yes/no about color")
SHAPES = ("rectangle", "circle", "triangle")
YES_NO = ("yes", "no")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The script's own, and those of `mask-impact study`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="demo", help="hub id or folder (default: the bundled demo)")
    parser.add_argument("-n", type=int, default=300, help="questions, as many of each kind (default: %(default)s)")
    parser.add_argument("--output-dir", default="output", help="(default: %(default)s)")
    return parser.parse_known_args()


def main() -> int:
    """The questions, the study, and a report by each of the two labels."""
    args, others = arguments()
    folder = Path(args.output_dir)
    file = write_questions(folder / "easy", args.n)
    study = ["--num-tokens", "3", "--resume"]
    code = mask_impact(["study", str(file), "-m", args.model, "--output-dir", str(folder / "easy"), *study, *others])
    if code not in (0, 3):  # 3: some questions failed, which is said
        return code
    for by in ("kind", "correct"):
        made = ["--by", by, "--output-dir", str(folder / f"easy.{by}")]
        code = mask_impact(["study", "report", str(folder / "easy" / "questions"), *made]) or code
    return code


def write_questions(folder: Path, n: int, seed: int = SEED) -> Path:
    """questions.jsonl in the folder, and their images beside it. SystemExit without the package."""
    rows = questions(n, seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = Path(row["image"])
        row["image"] = f"images/{path.name}"
        shutil.copyfile(path, folder / row["image"])
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def questions(n: int, seed: int = SEED) -> list[dict[str, str]]:
    """Rows with name, prompt, image (a path), expected and kind: n / 4 of each kind, drawn from all of the test split.

    Of what the questions of the package are: a picture has one shape of one color.
    """
    try:
        from easy_vqa import get_test_image_paths, get_test_questions
    except ImportError:
        raise SystemExit("the questions are those of a package: pip install easy-vqa") from None
    paths, found = get_test_image_paths(), {kind: [] for kind in KINDS}
    for number, (question, answer, image) in enumerate(zip(*get_test_questions(), strict=True)):
        row = {"name": f"q{number:05d}", "prompt": question, "image": str(paths[image]), "expected": answer}
        found[kind_of(question, answer)].append(row)
    return sorted(
        (
            row | {"kind": kind}
            for at, (kind, rows) in enumerate(found.items())
            for row in random.Random(f"{kind}/{seed}").sample(rows, min(len(rows), (n + at) // len(KINDS)))
        ),
        key=lambda row: row["name"],
    )


def kind_of(question: str, answer: str) -> str:
    """One of KINDS. A question for yes or no is about the shape that it names, or about a color: "is there a red shape?"."""
    if answer in YES_NO:
        return f"yes/no about {'shape' if any(shape in question for shape in SHAPES) else 'color'}"
    return "shape" if answer in SHAPES else "color"


if __name__ == "__main__":
    sys.exit(main())
