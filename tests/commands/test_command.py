"""`mask-impact` as a user meets it: what it offers, how a prompt is given, what goes to stdout and stderr, and what is refused.

What the measured numbers are is tested below; here it is what the command line makes of them.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from PIL import Image
from studying import REPOSITORY, write_config, write_dataset

from mask_impact.commands.main import COMMANDS, NAMES, main
from mask_impact.commands.scripts import main_text, main_vl
from mask_impact.engine.riding import tensor
from mask_impact.models import loading
from mask_impact.results import store

Outcome = namedtuple("Outcome", "code out err")
PROMPT = "the cat sat on the mat"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls `mask-impact` (or the main of a script) in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, main=main):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test where weights would be read."""
    monkeypatch.setattr(loading, "_load_weights", lambda *args: pytest.fail("weights were read"))


@pytest.fixture
def refused(run):
    """Calls a command and holds it to one line on stderr, nothing on stdout and no files; returns the line."""

    def call(*argv, code=2, main=main):
        outcome = run(*argv, "--quiet", main=main)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
        assert written() == []
        return outcome.err

    return call


@pytest.fixture
def picture(tmp_path):
    """A small image in the folder that commands run in."""
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    return "a.png"


@pytest.fixture(scope="module")
def stored(text_checkpoint, tmp_path_factory):
    """A stored result, without suffix."""
    folder = tmp_path_factory.mktemp("stored")
    assert main(["run", PROMPT, "-m", str(text_checkpoint), "--output-dir", str(folder), "-o", "mine", "-q"]) == 0
    return folder / "mine"


def written(folder="output"):
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []


def files_of(name):
    """What a run leaves: what the answer used, and the maps."""
    ends = (
        "answer.csv",
        "answer.json",
        "answer.meta.json",
        "csv",
        "estimates.csv",
        "estimates.json",
        "json",
        "meta.json",
    )
    return [f"{name}.{end}" for end in ends]


# --- what there is --------------------------------------------------------------------------------------------------------


def test_alone_it_shows_the_commands_by_question(run):
    outcome = run()
    assert (outcome.code, outcome.err) == (0, "")
    assert run("--help") == run("help") == outcome
    places = [outcome.out.index(f"\n{question}:\n") for question in COMMANDS]
    assert places == sorted(places)
    for place, end, commands in zip(places, [*places[1:], None], COMMANDS.values(), strict=True):
        named = [
            line.split()[0] for line in outcome.out[place:end].splitlines() if line.startswith("  ") and line[2] != " "
        ]
        assert named == list(commands)
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_fits_into_80_columns_where_there_is_no_terminal(name, run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    outcome = run(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: mask-impact {name} ")
    assert [line for line in outcome.out.splitlines() if len(line) > 80] == []
    assert "(default: None)" not in outcome.out
    assert run("help", name) == outcome
    monkeypatch.setenv("COLUMNS", "60")  # a narrower terminal wraps lines by itself
    assert run(name, "--help") == outcome


@pytest.mark.parametrize("name", NAMES)
def test_every_example_of_the_help_is_understood(name, run, monkeypatch):
    examples = run(name, "--help").out.partition("examples:\n")[2].replace("\\\n", " ").splitlines()
    monkeypatch.setattr(f"mask_impact.commands.{name}.run", lambda args, caller, command: 0)
    for example in filter(None, examples):
        program, *words = shlex.split(example)
        assert (program, words[0], run(*words)) == ("mask-impact", name, (0, "", "")), example


def test_neither_help_nor_usage_errors_import_torch(tmp_path):
    """Nor anything else that takes a while."""
    calls = [
        [], *([name, "--help"] for name in NAMES), ["--version"], ["rum"], ["run", "x", "--modle", "demo"], ["run"],
        ["run", "x", "--variants", "ful"], ["run", "x", "-o", "a/b"], ["run", "nowhere.txt"], ["run", "x", "-i", "nowhere.png"],
        ["knockout", "x", "a -> b", "--flows", "f.yaml"], ["without", "x"], ["study", "x.tsv"], ["study", "nowhere.yaml"],
        ["verify"], ["verify", "demo", "--dtype", "x"], ["models", "--nonsense"], ["compare", "a", "--no-page", "--output", "b"],
    ]  # fmt: skip
    code = f"""
import sys
from mask_impact.commands.main import main
codes = [main(call) for call in {calls}]
heavy = ["torch", "transformers", "pandas", "pyarrow", "matplotlib", "plotly"]
print("HEAVY", [name for name in heavy if name in sys.modules], codes, file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    n_helps = 2 + len(NAMES)
    codes = [0] * n_helps + [2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1, 2, 2, 2, 2]
    assert process.stderr.splitlines()[-1] == f"HEAVY [] {codes}"


def environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


# --- what is not there ----------------------------------------------------------------------------------------------------

MISTYPED = [
    (["rum", PROMPT], "unknown command 'rum'; did you mean run?"),
    (["cmpare", "a"], "unknown command 'cmpare'; did you mean compare?"),
    (["--versoin"], "unknown flag --versoin; did you mean --version?"),
    (["run", PROMPT, "--modle", "demo"], "unknown flag --modle; did you mean --model?"),
    (["run", PROMPT, "--num=3"], "unknown flag --num; did you mean --num-tokens?"),
    (["knockout", PROMPT, "--flow", "x"], "unknown flag --flow; did you mean --flows?"),
    (["top", "a", "--promptname", "x"], "unknown flag --promptname; did you mean --prompt-name?"),
    (["run", PROMPT, "--variants", "full,atn"], "--variants must be some of full, attn, heads, not 'atn'; did you mean attn?"),
    (["run", PROMPT, "--effect", "--groups", "wrds"], "a YAML file of groups, and 'wrds' is none of them; did you mean words?"),
    (["run", PROMPT, "--mask-mode", "visin"], "must be text, vision, both or all, not 'visin'; did you mean vision?"),
    (["run", PROMPT, "--ablation", "zero"], "must be mask, zero-value or mean-value, not 'zero'; did you mean zero-value?"),
    (["verify", "demo", "--dtype", "float3"], "must be auto, float32, bfloat16 or float16, not 'float3'; did you mean float32?"),
    (["top", "a", "--by", "tokn"], "argument --by: unknown 'tokn'; accepted are layer, token, head; did you mean token?"),
    (["study", "a.jsonl", "--reduce", "sumary"], "unknown 'sumary'; accepted are summary, none; did you mean summary?"),
    (["completion", "bsh"], "unknown 'bsh'; accepted are bash, zsh, tcsh; did you mean bash?"),
]  # fmt: skip


def test_what_is_mistyped_is_told_what_was_meant(refused, no_weights, capsys):
    for argv, said in MISTYPED:
        if argv[0] in NAMES and argv[0] != "completion":
            assert said in refused(*argv), argv
        else:  # which have no --quiet
            assert main(argv) == 2
            printed = capsys.readouterr()
            assert (printed.out, printed.err.count("\n")) == ("", 1)
            assert said in printed.err, argv


def test_what_is_like_nothing_gets_no_guess(refused):
    for argv in (["banana"], ["run", PROMPT, "--banana"], ["run", PROMPT, "--variants", "banana"]):
        assert "did you mean" not in refused(*argv)


@pytest.mark.parametrize("script", [main_vl, main_text])
def test_the_scripts_say_it_too(script, refused, no_weights):
    for argv, said in [
        (["--promt", PROMPT], "--prompt?"),
        (["--prompt", PROMPT, "--knokout", "default"], "--knockout?"),
    ]:
        assert f"did you mean {said}" in refused(*argv, main=script)


def test_an_argument_too_many_is_named(refused):
    assert "unexpected argument 'extra'" in refused("run", PROMPT, "extra")
    assert "unexpected argument 'b'" in refused("top", "a", "b")


def test_values_have_their_flags_and_bounds_in_the_message(refused, no_weights):
    assert "--num-tokens must be a whole number, at least 1, not 0" in refused("run", PROMPT, "-n", 0)
    assert "--window must be a whole number of layers, at least 1, or all, not 'al'" in refused(
        "run", "x", "--effect", "--window", "al"
    )
    assert "give --effect too" in refused("run", PROMPT, "--window", 3)
    assert "give it a number of layers (--window 9)" in refused("knockout", PROMPT, "--window", "ALL")
    assert "-k: must be a whole number from 1, not '0'" in refused("verify", "demo", "-k", 0)
    assert "must be numbers and ranges such as 0-35 or 3,5-9, not '5-3'" in refused(
        "without", "x", "y", "--layers", "5-3"
    )


# --- prompts --------------------------------------------------------------------------------------------------------------


def prompt_of(name="result"):
    return store.load_result(f"output/{name}").meta["templated_prompt"]


def test_the_short_flags_and_the_name_of_the_result(run, vl_checkpoint, picture):
    outcome = run("run", "the <image> cat", "-i", picture, "-m", vl_checkpoint, "-n", 2, "-o", "mine")
    assert (outcome.code, written()) == (0, files_of("mine"))
    assert outcome.out.splitlines()[:4] == [
        "What the answer used, and where it is read", "=" * 42, "Model loaded successfully!", "Text model layers: 4",
    ]  # fmt: skip
    assert "Results saved to: output/mine.csv" in outcome.out.splitlines()
    result = store.load_result("output/mine")
    assert (len(result.steps), result.images[0].source) == (2, picture)
    assert result.meta["command"] == f"mask-impact run 'the <image> cat' -i a.png -m {vl_checkpoint} -n 2 -o mine"


def test_it_writes_the_bytes_that_the_scripts_write(run, text_checkpoint):
    settings = ["-m", text_checkpoint, "-n", 2, "--raw"]
    assert run("run", PROMPT, *settings, "-o", "new").code == 0
    settings = ["--model", text_checkpoint, "--num-tokens", 2, "--raw"]
    assert run("--prompt", PROMPT, *settings, "--output", "old", main=main_text).code == 0
    for suffix in ("csv", "json"):
        assert Path(f"output/new.{suffix}").read_bytes() == Path(f"output/old.{suffix}").read_bytes()


@pytest.mark.parametrize(
    "data", [b"the mat\r\nthe cat\r\n", b"\xef\xbb\xbfthe mat\nthe cat", b"\nthe mat\rthe cat\n\n"]
)
def test_a_minus_is_standard_input_read_as_a_prompt_file_is(data, run, text_checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert run("run", "-", "-m", text_checkpoint, "--raw").code == 0
    assert prompt_of() == "the mat\nthe cat"


def test_standard_input_may_be_no_prompt(refused, monkeypatch, no_weights):
    for data, said in ((b"", "the prompt is empty"), (b"caf\xe9", "standard input is not UTF-8 (byte 3)")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert said in refused("run", "-", code=1)


def test_a_prompt_that_begins_with_a_dash_goes_behind_two(run, refused, text_checkpoint):
    said = "unknown flag -yes; a prompt that begins with - goes behind --"
    assert said in refused("run", "-yes", "-m", text_checkpoint)
    assert run("run", "-m", text_checkpoint, "--raw", "--", "-yes").code == 0


def test_a_minus_is_a_prompt_of_the_scripts(run, text_checkpoint):
    assert run("--prompt", "-", "--model", text_checkpoint, "--raw", main=main_text).code == 0
    assert prompt_of("masking_results") == "-"


def test_a_path_of_a_prompt_and_prompt_txt(run, text_checkpoint, tmp_path):
    (tmp_path / "prompt.txt").write_text("the mat\n")
    (tmp_path / "question.txt").write_text("the house\n")
    assert run("run", "-m", text_checkpoint, "--raw").code == 0
    assert prompt_of() == "the mat"
    assert run("run", "question.txt", "-m", text_checkpoint, "--raw").code == 0
    assert prompt_of() == "the house"


def test_no_prompt_at_all_says_how_to_give_one(refused, no_weights):
    for command in ("run", "knockout"):
        assert "no prompt: give one, a path ending in .txt, or -, or put one into prompt.txt" in refused(command)
    assert "'the cat' is taken for a SPEC, and there is no prompt: give one before it" in refused("without", "the cat")
    assert "required: SPEC" in refused("without")


def test_flags_may_stand_between_what_has_none(run, text_checkpoint):
    model = ["-m", text_checkpoint, "-n", 1, "-q"]
    assert run("run", *model, PROMPT, "--raw").code == 0
    assert prompt_of() == PROMPT
    assert run("without", PROMPT, *model, "cat", "--raw", "mat + sat").code == 0
    answers = json.loads(Path("output/result.whatif.json").read_text())
    assert [one["without"] for one in answers["others"]] == ["cat", "mat + sat"]
    assert run("knockout", PROMPT, *model, "cat -> last", "--raw", "sat -> last").code == 0
    flows = json.loads(Path("output/result.flows.meta.json").read_text())["flows"]
    assert [one["name"] for one in flows] == ["cat -> last", "sat -> last"]
    assert run("run", *model, "--raw", "--", "--the cat").code == 0
    assert prompt_of() == "--the cat"


# --- what is printed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(text_checkpoint, vl_checkpoint, stored, tmp_path, picture):
    """A call of every command that prints something, by name."""
    model = ["-m", str(text_checkpoint)]
    write_config(tmp_path / "study.yaml", ["the cat", "the mat"])
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}, {"prompt": ""}])
    return {
        "run": ["run", PROMPT, *model, "-n", "2", "--effect", "--verify", "1"],
        "run with an image": [
            "run",
            "the cat",
            "-m",
            str(vl_checkpoint),
            "-i",
            picture,
            "--plots",
            "--report",
            "-o",
            "seen",
        ],
        "explain": ["explain", PROMPT, *model, "-n", "2", "--groups", "words"],
        "knockout": ["knockout", PROMPT, "cat -> last", *model],
        "without": ["without", PROMPT, "cat", *model, "-n", "2"],
        "study": ["study", "study.yaml", *model],
        "study of a dataset": ["study", "data.jsonl", *model],
        "top": ["top", str(stored)],
        "report": ["report", str(stored)],
        "compare": ["compare", str(stored), f"{stored}.csv"],
        "models": ["models"],
        "a model": ["models", str(text_checkpoint)],
        "verify": ["verify", str(text_checkpoint), "-k", "2"],
    }


CODES = {"study of a dataset": 3}
KEYS = {  # some of what the JSON of a command says
    "run": {"model", "prompt", "answer", "steps", "files"},
    "explain": {"targets", "files"},
    "evidence": {"targets", "files"},
    "knockout": {"window", "steps", "files"},
    "without": {"answer", "files"},
    "study": {"written", "failed"},
    "top": {"name", "rows"},
    "report": {"page", "bytes", "notes"},
    "compare": {"results", "notes"},
    "models": {"model_type", "kind", "examples"},
    "a model": {"name", "problem", "n_layers"},
    "verify": {"model", "checks", "bound", "passed", "versions"},
}


@pytest.mark.parametrize("how", [["--json"], pytest.param(["--json", "-q"], marks=pytest.mark.slow)], ids=" ".join)
def test_json_is_all_that_is_on_stdout(how, run, calls):
    """Of every command, and with --quiet nothing at all on stderr."""
    for name, argv in calls.items():
        code, out, err = run(*argv, *how)
        assert code == CODES.get(name, 0), err
        assert out.count("\n") == 1
        found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        found = found[0] if isinstance(found, list) else found
        assert set(found) >= KEYS.get(name.partition(" of ")[0].partition(" with ")[0], set()), (name, sorted(found))
        assert "-q" not in how or err == "" or name == "study of a dataset"


@pytest.mark.slow
def test_quiet_prints_nothing_but_errors_and_the_table_of_top(run, calls):
    for name, argv in calls.items():
        code, out, err = run(*argv, "-q")
        assert code == CODES.get(name, 0)
        assert (out == "") == (name != "top"), name
        assert err == ("1 of 2 failed, see output/data.errors.jsonl\n" if name == "study of a dataset" else "")


@pytest.mark.slow
def test_verbose_says_what_the_model_is_and_where_the_time_went(run, calls):
    for name in ("run", "explain", "knockout", "without", "study", "study of a dataset", "verify"):
        plain, verbose = run(*calls[name]), run(*calls[name], "-v")
        assert re.search(r"Qwen3ForCausalLM, torch.float32, on (cpu|cuda:0), loaded in ", verbose.err)
        assert "loaded in" not in plain.err
        if not name.startswith("study"):
            assert "Qwen3ForCausalLM" not in verbose.out or name == "verify"
            said = verbose.out.splitlines()
            assert (verbose.out == plain.out) == (name not in ("run", "explain"))  # which show all that was found, then
            assert all(line in said for line in plain.out.splitlines())
        if name in ("run", "explain", "knockout", "without"):
            assert "measured and written in " in verbose.err


@pytest.mark.slow
def test_the_files_that_are_named_are_there(run, calls):
    for name in ("run", "run with an image", "explain", "knockout", "without"):
        named = json.loads(run(*calls[name], "--json").out)["files"]
        assert named
        assert all(Path(path).is_file() for path in named)
        plain = run(*calls[name]).out
        said = [
            line.partition(": ")[2] for line in plain.splitlines() if line.startswith(("Results saved", "Also written"))
        ]
        assert sorted(said) == sorted(named)


def test_a_study_ends_with_3_where_a_prompt_failed_and_its_json_names_it(run, calls):
    code, out, _ = run(*calls["study of a dataset"], "--json")
    assert code == 3
    assert json.loads(out)["failed"] == ["row 2"]
    assert written("output/data") == ["impact", "manifest.json", "prompts"]


# --- models ---------------------------------------------------------------------------------------------------------------


def test_what_a_model_takes_is_read_from_the_checkpoint(
    run, refused, text_checkpoint, vl_checkpoint, picture, monkeypatch
):
    assert run("run", PROMPT, "-m", text_checkpoint, "-o", "text").code == 0
    assert run("run", PROMPT, "-m", vl_checkpoint, "-o", "vl").code == 0
    assert run("run", PROMPT, "-m", vl_checkpoint, "-i", picture, "--mask-mode", "vision", "-o", "vision").code == 0
    shutil.rmtree("output")
    monkeypatch.setattr(loading, "_load_weights", lambda *args: pytest.fail("weights were read"))
    assert "image" in refused("run", PROMPT, "-m", text_checkpoint, "-i", picture, code=1)
    assert "marks 1 place for an image" in refused("run", "a <image>", "-m", vl_checkpoint, code=1)
    assert "--mask-mode vision needs an image" in refused("run", PROMPT, "-m", vl_checkpoint, "--mask-mode", "vision")


def test_a_study_runs_on_either_kind(run, text_checkpoint, vl_checkpoint, picture, tmp_path):
    write_config(tmp_path / "study.yml", [{"prompt": "the cat", "image_path": picture}, "the mat"])
    assert run("study", "study.yml", "-m", vl_checkpoint, "-q").code == 0
    assert written("output/study/impact") == ["part-000000.parquet"]
    assert run("study", "study.yml", "-m", vl_checkpoint, "--resume").out.count("2 were there already") == 1
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}])
    assert run("study", "data.jsonl", "-m", text_checkpoint, "-o", "named", "-q").code == 0
    assert written("output/named/impact") == ["part-000000.parquet"]


def test_a_study_s_file_is_known_by_its_suffix(refused, no_weights):
    line = refused("study", "data.tsv")
    assert (
        "'data.tsv' is neither a configuration (.yaml or .yml) nor a dataset (.jsonl, .csv, .parquet), by its suffix"
        in line
    )
    for words in (["a.yaml", "--report"], ["a.csv", "--formats", "csv"]):
        assert f"{words[1]} is about files of each prompt" in refused("study", *words)


def test_models_lists_the_architectures_and_describes_a_checkpoint(run, no_weights, text_checkpoint, tmp_path):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("  qwen3")] == [
        ["qwen3_vl", "vl"], ["qwen3_vl_moe", "vl"], ["qwen3", "text"],
    ]  # fmt: skip
    assert "proven on your\ncheckpoint when it first runs" in out
    assert out.splitlines()[-1].startswith("  verify  ")
    code, out, err = run("models", text_checkpoint)
    assert (code, err) == (0, "")
    assert out.startswith(f"{text_checkpoint}: supported\n")
    assert "architecture qwen3, 3 layers, 4 heads, hidden size 48, float32," in out
    assert "context of 64 tokens" in out
    other = Path(shutil.copytree(text_checkpoint, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    )
    code, out, err = run("models", other)
    assert (code, err) == (1, "")
    assert out.startswith(f"{other}: not supported\n  ")
    assert "'t5'" in out
    assert "qwen3_vl" in out  # what is
    assert json.loads(run("models", other, "--json").out)["problem"]
    code, out, err = run("models", tmp_path / "nowhere")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_verify_passes_on_a_model_that_is_measured_right(run, text_checkpoint, vl_checkpoint):
    for checkpoint, name, n_prompts in (
        (text_checkpoint, "Qwen3ForCausalLM", 2),
        (vl_checkpoint, "Qwen3VLForConditional", 3),
    ):
        code, out, _ = run("verify", checkpoint, "-k", 5)
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith(f"Model: {checkpoint} ({name}")
        assert re.search(r"float32, on (cpu|cuda:0)\)$", lines[0])
        assert "torch 2." in lines[1]
        assert sum("5 really masked, error " in line for line in lines) == n_prompts
        assert re.fullmatch(
            rf"PASS: {5 * n_prompts} places were really masked, the largest relative error is \d\.\de-\d\d \(layer \d\), "
            r"that of effects \d\.\de-\d\d; the bound for float32 is 0\.001",
            lines[-1],
        )
    assert written() == []


def test_verify_fails_where_distances_are_two_per_cent_off(run, text_checkpoint, monkeypatch):
    """Which the check of the model's own rows can't see: only really masking does."""
    real = tensor.lengths
    monkeypatch.setattr(tensor, "lengths", lambda baseline, differences: real(baseline, 1.02 * differences))
    code, out, _ = run("verify", text_checkpoint)
    assert code == 1
    assert out.splitlines()[-1].startswith("FAIL: ")
    assert "error 2.0e-02" in out
    code, out, _ = run("verify", text_checkpoint, "--json", "-q")
    assert (code, json.loads(out)["passed"]) == (1, False)


# --- flows and what is hidden ---------------------------------------------------------------------------------------------


def test_flows_are_given_as_text(run, vl_checkpoint, picture):
    code, out, _ = run(
        "knockout", "the cat sat", "image -> last", "cat -> last", "-i", picture, "-m", vl_checkpoint, "--window", 3
    )
    assert code == 0
    assert written() == [*(f"result.flows.{suffix}" for suffix in ("csv", "json", "meta.json", "png"))]
    stored = json.loads(Path("output/result.flows.meta.json").read_text())
    assert [one["name"] for one in stored["flows"]] == ["image -> last", "cat -> last"]
    assert stored["run"]["window"] == 3
    assert "image -> last" in out


def test_flows_are_given_one_way_and_of_the_form_source_to_target(refused, no_weights, tmp_path):
    (tmp_path / "flows.yaml").write_text("flows: [{source: cat, target: last}]")
    line = refused("knockout", PROMPT, "cat -> last", "--flows", "flows.yaml")
    assert "flows are given either as text or in a file (--flows), not both" in line
    assert "'cat to last'" in refused("knockout", PROMPT, "cat to last")


def test_what_the_tokenizer_can_refuse_is_refused_before_weights_are_read(
    refused, no_weights, text_checkpoint, tmp_path
):
    model = ["-m", text_checkpoint]
    (tmp_path / "groups.yaml").write_text("one: cat\ntwo: banana\n")
    assert "banana" in refused("without", PROMPT, "banana", *model, code=1)
    assert "did you mean 'cat'" in refused("without", PROMPT, "catt", *model, code=1)
    assert "layer" in refused("without", PROMPT, "cat", "--layers", "99", *model)
    assert "banana" in refused("knockout", PROMPT, "banana -> last", *model, code=1)
    assert "last -> cat" in refused("knockout", PROMPT, "last -> cat", *model, code=1)
    assert "banana" in refused("run", PROMPT, "--effect", "--groups", "groups.yaml", *model, code=1)
    assert "the model's context is 64" in refused("run", PROMPT, "-n", 1000, *model, code=1)


# --- completion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_a_script_that_knows_all_commands_and_flags(shell, run):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert [name for name in NAMES if name not in out] == []
    assert [flag for flag in ("num-tokens", "flows", "prompt-name", "permutations") if flag not in out] == []
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=out, capture_output=True, text=True, timeout=60, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_files(run, tmp_path):
    (tmp_path / "completion.sh").write_text(run("completion", "bash").out)
    (tmp_path / "study.yaml").touch()

    def completed(*words):
        """What bash offers for the last of the words."""
        script = f"source completion.sh; COMP_WORDS=({shlex.join(['mask-impact', *words])}); COMP_CWORD={len(words)}; "
        script += "$(complete -p mask-impact | sed 's/.*-F \\([^ ]*\\).*/\\1/') mask-impact; printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.split()

    assert completed("co") == ["compare", "completion"]
    assert completed("run", "--num") == ["--num-tokens"]
    assert completed("study", "st") == ["study.yaml"]
