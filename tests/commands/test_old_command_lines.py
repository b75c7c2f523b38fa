"""Every command line that the documents and the help of version 0.1 had, as it stood there, still does what it did.

They are a list of their own, so that no change of the documents changes what is held to here. Each runs in this process, in a
folder with the files that it names; what can't be had in a test (a hub, a GPU, a package of weights) is a model that can.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from checkpoints import save_checkpoint
from PIL import Image
from synthetic import make_result

from mask_impact import demo
from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.models import sources
from mask_impact.results.store import save

REPOSITORY = Path(__file__).parents[2]
WORDS = {"vl": main_vl, "text": main_text, "command": main}
CALLED = {"mask_impact_vl.py": "vl", "mask_impact_analysis.py": "text", "-m": "command"}
STAR = '--model demo --image examples/shapes.png --prompt "What color is the star?"'


def files(*names, also=()):
    """The files of results in output/, or in the folder that a name has before it."""
    paths = [name if "/" in name else f"output/{name}" for name in names]
    return {f"{path}.{suffix}" for path in paths for suffix in ("csv", "json", "meta.json", *also)}


def dataset(name):
    """Those of a study of a dataset."""
    return {
        f"output/{name}/{one}" for one in ("manifest.json", "impact/part-000000.parquet", "prompts/part-000000.parquet")
    }


VL, TEXT = files("vl_masking_results"), files("masking_results")
EFFECT = ("effect.csv", "effect.json")
PLOTS = ("card.png", "layers.png", "patches.png")
STUDIES = {
    "vl": ["two_plus_two_results", "capital_results", "conversation_results", "star_results"],
    "text": ["text_two_plus_two_results", "text_capital_results", "text_conversation_results"],
}
COMPARED = {"output/compare_vl_masking_results_masking_results.html"}
# (the line, what it leaves besides what was there)
LINES = [
    # README.md
    ('python mask_impact_vl.py --prompt "What is 2+2?" --num-tokens 3', VL),
    ('python mask_impact_analysis.py --model demo --prompt "What is 2+2?" --effect --window 9 --output two_plus_two',
     files("two_plus_two", also=EFFECT)),
    (f"python mask_impact_vl.py {STAR} --knockout default",
     {f"output/vl_masking_results.flows.{suffix}" for suffix in ("csv", "json", "meta.json", "png")}),
    (f"python mask_impact_vl.py {STAR} --without star", {"output/vl_masking_results.whatif.json"}),
    (f'python mask_impact_vl.py {STAR} --without star --without "image rows 0" --without color',
     {"output/vl_masking_results.whatif.json"}),
    ('python mask_impact_analysis.py --model smollm2 --raw --prompt "The capital of France is"', TEXT),
    (f"python mask_impact_vl.py {STAR} --plots", files("vl_masking_results", also=PLOTS)),
    ("python mask_impact_vl.py --config prompts_config_vl.yaml", files(*STUDIES["vl"])),
    ("python mask_impact_analysis.py --config prompts_config.yaml", files(*STUDIES["text"])),
    ("accelerate launch --num_processes 4 --multi_gpu mask_impact_vl.py --config prompts_config_vl.yaml", files(*STUDIES["vl"])),
    ("accelerate launch --num_processes 4 --multi_gpu mask_impact_vl.py --dataset questions.jsonl --resume",
     dataset("questions")),
    ("python -m mask_impact report output/vl_masking_results", {"output/vl_masking_results.html"}),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?"', VL),
    ('python mask_impact_analysis.py --model demo --prompt "What is 2+2?"', TEXT),
    ("python -m mask_impact compare output/vl_masking_results output/masking_results --keep-sinks --bands 4 -k 5", COMPARED),
    (f"python mask_impact_vl.py {STAR} --output star", files("star")),
    ("python -m mask_impact top output/star", set()),
    ("python -m mask_impact top output/star --by head -k 5", set()),
    ("python -m mask_impact top output/star --by layer --metric cosine --format markdown", set()),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --verify 20', VL),
    # VL_QUICKSTART.md
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --num-tokens 3', VL),
    ('python mask_impact_analysis.py --model demo --prompt "What is 2+2?" --num-tokens 3', TEXT),
    ("python -m mask_impact compare output/vl_masking_results output/masking_results", COMPARED),
    ("python -m mask_impact compare output/vl_masking_results output/masking_results --json --no-page", set()),
    ('python mask_impact_analysis.py --model demo --prompt "What is AI?" --num-tokens 12 --output what_is_ai',
     files("what_is_ai")),
    ('python mask_impact_analysis.py --model demo --raw --prompt "The capital of France is" --output raw', files("raw")),
    ('python mask_impact_analysis.py --model demo --prompt "<|im_start|>user\nWhat is AI?<|im_end|>\n<|im_start|>assistant\n'
     'AI is" --num-tokens 3 --output continued', files("continued")),
    ('python mask_impact_analysis.py --model demo --prompt "What is AI?" --effect --window 9 --output what_is_ai',
     files("what_is_ai", also=EFFECT)),
    ('python mask_impact_analysis.py --model demo --prompt "What is AI?" --without AI --without What',
     {"output/masking_results.whatif.json"}),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --formats parquet --variants full,attn --output small',
     {"output/small.parquet", "output/small.meta.json"}),
    (f"python mask_impact_vl.py {STAR} --plots --output star", files("star", also=PLOTS)),
    ("python mask_impact_vl.py --model demo --image examples/shapes.png --image examples/shapes.png --prompt "
     '"Is <image> the same as <image>?" --mask-mode vision --max-image-resolution 96 --output twice', files("twice")),
    (f"python mask_impact_vl.py {STAR} --num-tokens 2 --output star", files("star")),
    ("python -m mask_impact report output/star", {"output/star.html"}),
    ("python -m mask_impact report FILE.parquet --grid 16x16", {"FILE.html"}),
    ("python mask_impact_vl.py --config prompts_config_vl.yaml --output-dir output/study",
     files(*(f"output/study/{name}" for name in STUDIES["vl"]))),
    ("python mask_impact_vl.py --config prompts_config_vl.yaml --output-dir output/study --resume",
     files(*(f"output/study/{name}" for name in STUDIES["vl"]))),
    ("python mask_impact_analysis.py --model demo --dataset sums.jsonl", dataset("sums")),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --verify 20 --output checked', files("checked")),
    ('python mask_impact_vl.py --model demo --dtype float32 --prompt "What is 2+2?" --verify 20 --output checked',
     files("checked")),
    ('python mask_impact_vl.py --model Qwen/Qwen3-VL-2B-Instruct --prompt "What is 2+2?"', VL),
    ('python mask_impact_analysis.py --model Qwen/Qwen3-1.7B --revision main --prompt "What is 2+2?"', TEXT),
    ('python mask_impact_analysis.py --model mask_impact/demo/text --prompt "What is 2+2?"', TEXT),
    ('python mask_impact_vl.py --device cuda --dtype bfloat16 --prompt "What is 2+2?" --num-tokens 5', VL),
    ('python mask_impact_vl.py --device cuda:1 --prompt "What is 2+2?"', VL),
    ("accelerate launch --num_processes 2 --multi_gpu mask_impact_vl.py --config prompts_config_vl.yaml", files(*STUDIES["vl"])),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --batch-size 4 --output in_chunks', files("in_chunks")),
    # the help of the scripts and of python -m mask_impact
    ("python mask_impact_vl.py --help", set()),
    ("python mask_impact_analysis.py --help", set()),
    ('python mask_impact_vl.py --model demo --prompt "What is 2+2?" --effect --window 9',
     files("vl_masking_results", also=EFFECT)),
    ("python mask_impact_vl.py --prompt question.txt --num-tokens 5 --output my_question --formats csv,parquet",
     {f"output/my_question.{suffix}" for suffix in ("csv", "parquet", "meta.json")}),
    ("python mask_impact_vl.py --config prompts_config_vl.yaml --resume", files(*STUDIES["vl"])),
    ("python mask_impact_vl.py --dataset questions.jsonl --reduce summary --resume", dataset("questions")),
    ('python mask_impact_vl.py --image photo.jpg --prompt "What is this?" --plots', files("vl_masking_results", also=PLOTS)),
    ('python mask_impact_vl.py --image a.png --image b.png --prompt "<image> Is it the same as in <image>?" --mask-mode vision',
     VL),
    ('python mask_impact_analysis.py --model demo --prompt "What is 2+2?" --effect --window 9',
     files("masking_results", also=EFFECT)),
    ("python mask_impact_analysis.py --prompt question.txt --num-tokens 5 --output my_question --formats csv,parquet",
     {f"output/my_question.{suffix}" for suffix in ("csv", "parquet", "meta.json")}),
    ("python mask_impact_analysis.py --config prompts_config.yaml --resume", files(*STUDIES["text"])),
    ("python mask_impact_analysis.py --dataset questions.jsonl --reduce summary --resume",
     dataset("questions")),
    ("python -m mask_impact compare output/first output/second output/third --step 1 --json",
     {"output/compare_first_second_third.html"}),
    ("python -m mask_impact top output/vl_masking_results", set()),
    ("python -m mask_impact top output/vl_masking_results --by head -k 10 --format markdown", set()),
    ("python -m mask_impact top output/measured_with_effect --effect", set()),
    ("python -m mask_impact report measured_elsewhere.parquet --grid 16x16 --output page.html", {"page.html"}),
]  # fmt: skip


def called(line):
    """(which program, its arguments) of a line; what starts several processes is not there."""
    words = shlex.split(line)
    place = next(number for number, word in enumerate(words) if word in CALLED)
    return CALLED[words[place]], *words[place + 1 + (words[place] == "-m") :]


# Each call once; one that is there with --resume too is said again so where it has ended.
CALLS = {}
for line, expected in LINES:
    CALLS.setdefault(called(line), (line, expected))
RESUMED = {(*call, "--resume") for call in CALLS} & CALLS.keys()
CASES = [
    ("deep" if "--window 9" in line else "tiny", line, expected)
    for call, (line, expected) in CALLS.items()
    if call not in RESUMED
]


def answers_beside(line, expected):
    """What a run of one prompt leaves since it says what its answer used; the lines are older."""
    if any(flag in line for flag in ("--config", "--dataset", "--knockout", "--without", "-m mask_impact")):
        return set()
    paths = [path for path in expected if re.fullmatch(r"output/[a-z_]+\.(csv|json|parquet|meta\.json)", path)]
    of_answers = {path.replace(".", ".answer.", 1) for path in paths}
    return of_answers | {path.replace(".", ".estimates.", 1) for path in paths if not path.endswith(".meta.json")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model of each kind: tiny ones that take the longest of the prompts, deep enough for a window of 9 layers or
    not, and the demo."""
    found = {"demo": {"vl": demo.VL_PATH, "text": demo.TEXT_PATH}}
    for name, layers in (("tiny", {}), ("deep", {"num_hidden_layers": 9})):
        folder, sizes = tmp_path_factory.mktemp(name), {"max_position_embeddings": 256} | layers
        found[name] = {
            "vl": save_checkpoint(folder / "vl", "qwen3_vl", **sizes),
            "text": save_checkpoint(folder / "text", "qwen3", **sizes),
        }
    return found


@pytest.fixture(scope="module")
def stored(models, tmp_path_factory):
    """The results that lines name, as `output/` has them: of the model with an image, of the text model, and a table alone."""
    folder = tmp_path_factory.mktemp("stored")
    shapes = str(REPOSITORY / "examples" / "shapes.png")
    common = ["--prompt", "What color is the star?", "--quiet", "--output-dir", str(folder)]
    seen = [
        "--model",
        str(models["tiny"]["vl"]),
        "--image",
        shapes,
        "--num-tokens",
        "2",
        "--effect",
        "--output",
        "seen",
    ]
    assert main_vl([*seen, *common]) == 0
    assert main_text(["--model", str(models["tiny"]["text"]), *common, "--output", "read"]) == 0
    save(make_result(grids=((16, 16),), n_layers=2), folder / "elsewhere", ["parquet"])
    return folder


def prepare(folder, checkpoints, stored, line):
    """Writes the files that a line names into the folder; and the stored results, for those that look at one."""
    shutil.copytree(REPOSITORY / "examples", folder / "examples", ignore=lambda *_: {"notebook.ipynb"})
    for name in ("prompts_config.yaml", "prompts_config_vl.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    for name, colour in (("photo.jpg", "green"), ("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (48, 32), colour).save(folder / name)
    (folder / "question.txt").write_text("What is 2+2?\n")
    (folder / "questions.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}+2?"}) + "\n" for n in range(3)))
    rows = [{"name": f"sum{n}", "prompt": f"What is {n}+2?", "n": n} for n in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mask_impact" / "demo").mkdir(parents=True)
    (folder / "mask_impact" / "demo" / "text").symlink_to(checkpoints["text"])
    for name in ("FILE", "measured_elsewhere"):
        shutil.copy(stored / "elsewhere.parquet", folder / f"{name}.parquet")
    if "-m mask_impact" in line:
        (folder / "output").mkdir()
        copies = dict.fromkeys(
            ("vl_masking_results", "star", "first", "second", "third", "measured_with_effect"), "seen"
        )
        for name, source in {**copies, "masking_results": "read"}.items():
            for path in stored.glob(f"{source}.*"):
                shutil.copy(path, folder / "output" / path.name.replace(source, name, 1))


@pytest.fixture
def works(models, stored, tmp_path, monkeypatch, capsys):
    """Runs a line in a folder with the files that it names, and holds what it leaves against what is expected."""
    return lambda model, line, expected: check(line, expected, models[model], stored, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("model", "line", "expected"),
    [pytest.param(*case, id=case[1], marks=[pytest.mark.slow] * (at % 4 > 0)) for at, case in enumerate(CASES)],
)
def test_the_line_works_and_leaves_its_files(model, line, expected, works):
    assert works(model, line, expected)


@pytest.mark.slow
def test_the_line_works_with_the_demo(works):
    assert works("demo", *LINES[0])


def check(line, expected, checkpoints, stored, tmp_path, monkeypatch, capsys):
    prepare(tmp_path, checkpoints, stored, line)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "demo_path", lambda kind: checkpoints[kind])
    monkeypatch.setattr(sources, "_smollm2_source", lambda: sources.Source(str(checkpoints["text"]), local_only=True))
    kinds = {"Qwen/Qwen3-VL-2B-Instruct": "vl", "Qwen/Qwen3-VL-4B-Instruct": "vl", "Qwen/Qwen3-1.7B": "text"}
    monkeypatch.setattr(
        sources, "_hub_source", lambda model, revision: sources.Source(str(checkpoints[kinds[model]]), local_only=True)
    )
    program, *argv = called(line)
    if "--device" in argv:  # there may be no GPU here, nor two
        argv[argv.index("--device") + 1] = "cpu"
    before = there(tmp_path)
    assert WORDS[program](argv) == 0, capsys.readouterr().err
    assert there(tmp_path) - before == expected | answers_beside(line, expected)
    printed = capsys.readouterr()
    if (program, *argv, "--resume") in RESUMED:
        assert WORDS[program]([*argv, "--resume"]) == 0, capsys.readouterr().err
        assert there(tmp_path) - before == expected | answers_beside(line, expected)
    assert "Traceback" not in printed.err
    return printed.out != ""


def there(folder):
    """All files below the folder, but for hidden ones."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names if not name.startswith("."))
    return {path.relative_to(folder).as_posix() for path in found}
