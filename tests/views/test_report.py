"""The file of a report, without a browser: it holds exactly the result's numbers and texts, nothing that a text could run,
and nothing that comes from elsewhere; and the command that writes it."""

import base64
import dataclasses
import gzip
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import HOSTILE, Page, cleaned, decode, distances
from samples import NASTY_TEXTS, TINY_VALUES
from synthetic import make_result

from mask_impact.commands.main import COMMANDS, main
from mask_impact.errors import OutputError, UsageError
from mask_impact.results.store import save
from mask_impact.views import report
from mask_impact.views.blocks import EXACT, FEWEST, encode
from mask_impact.views.report import build_report, default_path, write_report

REPOSITORY = Path(__file__).parents[2]


# --- reading a page in another way ------------------------------------------------------------------------------------


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_exact_blocks_give_back_every_bit():
    values = np.concatenate([TINY_VALUES, [np.nan, -1e-7, 1.0, 65504]]).astype(np.float32)
    assert decode(encode(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("digits", range(FEWEST, EXACT))
def test_rounded_blocks_are_within_the_error_that_is_stated(digits):
    """To nearest: half of the last digit kept. Zero, NaN and the largest number stay what they are."""
    rng = np.random.default_rng(digits)
    values = np.exp(rng.normal(size=1003) * 10).astype(np.float32)
    values[:4] = 0, np.nan, np.finfo(np.float32).max, 1
    rounded = decode(encode(values, digits))
    assert rounded[0] == 0
    assert np.isnan(rounded[1])
    assert rounded[3] == 1
    errors = np.abs(rounded[4:] / values[4:] - 1)
    assert errors.max() <= 2.0 ** -(digits + 1)
    assert errors.max() > 2.0 ** -(digits + 2)  # the digits kept are no more
    assert np.isfinite(rounded[2])


def test_a_block_with_a_negative_number_is_kept_exactly():
    """Others' cosine distances can be slightly below zero, and a sign has no place among rounded numbers."""
    values = np.array([-1e-7, 0.3, 0.1], dtype=np.float32)
    assert decode(encode(values, 8)).tobytes() == values.tobytes()


@pytest.mark.parametrize("mask_mode", ["both", "text", "vision"])
def test_a_page_holds_every_distance(mask_mode):
    result = make_result(n_steps=2, grids=((2, 2),), mask_mode=mask_mode)
    built = build_report(result)
    assert built.digits == EXACT
    found = distances(Page(built.html), result)
    for (step, metric, variant), values in found.items():
        expected = getattr(result.steps[step], metric)[:, :, result.variants.index(variant)]
        assert values.tobytes() == np.ascontiguousarray(expected).tobytes()
    positions = [one["positions"] for one in Page(built.html).data["prompts"][0]["steps"]]
    assert positions == [None if mask_mode == "both" else step.positions.tolist() for step in result.steps]


def test_heads_are_rounded_as_little_as_the_size_asks_and_nothing_else_is():
    result = make_result([f" {word}" for word in range(200)], n_layers=12, n_heads=6)
    exact = build_report(result)
    most = (len(exact.html) - 60_000) / 1e6
    built = build_report(result, most)
    assert FEWEST < built.digits < EXACT
    assert len(built.html) <= most * 1e6
    assert f"rounded to {built.digits + 1} binary digits" in built.notes[0]
    assert built.notes[0] in Page(built.html).data["notes"]
    found = distances(Page(built.html), result)
    for (step, metric, variant), values in found.items():
        expected = getattr(result.steps[step], metric)[:, :, result.variants.index(variant)]
        is_exact = values.tobytes() == np.ascontiguousarray(expected).tobytes()
        assert is_exact == (not variant.startswith("Head_"))
        np.testing.assert_allclose(values, expected, rtol=2.0 ** -(built.digits + 1))
    larger = len(build_report(result, most + 0.5).html)
    assert larger > most * 1e6  # with room for more, more digits are kept


def test_a_page_that_cannot_be_as_small_as_asked_is_written_and_said(tmp_path):
    built = build_report(make_result(), 0.1)
    assert built.digits == FEWEST
    assert re.fullmatch(r"The page has \d\.\d MB; fewer do not hold this result", built.notes[-1])


def test_float64_distances_are_rounded_to_float32_and_said_so():
    built = build_report(make_result(dtype=np.float64))
    assert any("float64" in note for note in built.notes)
    assert any("float64" in note for note in Page(built.html).data["prompts"][0]["notices"])


def test_the_same_result_gives_the_same_bytes():
    assert build_report(make_result(grids=((1, 2),))).html == build_report(make_result(grids=((1, 2),))).html


# --- texts, and what the browser may do -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile():
    result = make_result(HOSTILE, n_steps=3, produced=HOSTILE[:3], generated_text="".join(HOSTILE[:3]))
    return dataclasses.replace(result, meta={"model": HOSTILE[0], "notices": [HOSTILE[4]]})


def test_texts_reach_the_page_as_they_are_and_only_as_data(hostile):
    page = Page(build_report({HOSTILE[0]: hostile}).html)
    entry = page.data["prompts"][0]
    assert entry["texts"] == [cleaned(text) for text in hostile.tokens.texts]
    assert [step["text"] for step in entry["steps"]] == [cleaned(text) for text in HOSTILE[:3]]
    assert entry["name"] == HOSTILE[0]
    assert page.all("title")[0][2].startswith(HOSTILE[0])
    plain = Page(build_report(make_result(["a"] * len(HOSTILE), n_steps=3)).html)
    assert [tag for tag, _, _ in page.elements] == [tag for tag, _, _ in plain.elements]
    assert len(page.comments) == len(plain.comments) == 1


def test_store_s_nasty_texts_are_kept_too():
    page = Page(build_report(make_result(NASTY_TEXTS)).html)
    assert page.data["prompts"][0]["texts"][: len(NASTY_TEXTS)] == list(NASTY_TEXTS)


def test_the_policy_allows_the_page_s_own_scripts_by_hash_and_no_address(hostile):
    """What a text might smuggle in has no hash that is allowed; a changed template changes the hash with it."""
    page = Page(build_report(hostile).html)
    policy = next(a["content"] for _, a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "http" not in policy
    assert "unsafe" not in rules["script-src"]
    (own,) = [text for _, attributes, text in page.all("script") if "type" not in attributes]
    source = next(text for _, attributes, text in page.all("script") if attributes.get("id") == "plotly-source")
    for text in (own.encode(), gzip.decompress(base64.b64decode(source))):
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in rules["script-src"]


def test_nothing_is_loaded_from_anywhere(hostile):
    page = Page(build_report(hostile).html)
    for tag, attributes, _ in page.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        assert all(not name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "").startswith(("#", "data:")) or name not in attributes
    assert "url(" not in page.all("style")[0][2]
    assert "@import" not in page.all("style")[0][2]


def test_the_licence_of_what_is_inside_is_in_the_page():
    assert "plotly.js" in (comment := Page(build_report(make_result()).html).comments[0])
    assert "MIT license" in comment


# --- what else the page is told ---------------------------------------------------------------------------------------------


def test_the_page_knows_images_candidates_sinks_and_what_was_run():
    result = make_result(n_steps=2, grids=((2, 3), (1, 2)))
    entry = Page(build_report(result).html).data["prompts"][0]
    assert [image["grid"] for image in entry["images"]] == [[2, 3], [1, 2]]
    assert base64.b64decode(entry["images"][0]["preview"]) == result.images[0].preview
    assert entry["cells"][3] == [4, 0, 1, 0]
    assert len(entry["cells"]) == 8
    attention = result.steps[0].attention
    assert entry["sinks"] == [{"position": 0, "share": pytest.approx(float(attention[0] / attention.sum()))}]
    for step, record in zip(entry["steps"], result.steps, strict=True):
        assert [one["text"] for one in step["candidates"]] == [one.text for one in record.candidates]
        assert [one["probability"] for one in step["candidates"]] == [one.probability for one in record.candidates]
    assert ["model", "tiny"] in entry["about"]


def test_several_prompts_are_in_one_page_up_to_a_limit(monkeypatch):
    results = {f"prompt {seed}": make_result(seed=seed) for seed in range(3)}
    page = Page(build_report(results).html)
    assert [one["name"] for one in page.data["prompts"]] == list(results)
    for number, result in enumerate(results.values()):
        values = distances(page, result, number)
        assert (values[0, "l2", "Head_1"] == result.steps[0].l2[:, :, 3]).all()
    monkeypatch.setattr(report, "MAX_PROMPTS", 2)
    built = build_report(results)
    assert [one["name"] for one in Page(built.html).data["prompts"]] == ["prompt 0", "prompt 1"]
    assert built.notes == ("The first 2 of 3 prompts; --prompt-name chooses another one",)


# --- writing ------------------------------------------------------------------------------------------------------------------


def test_a_report_is_written_of_a_result_of_several_or_of_what_is_stored(tmp_path):
    result = make_result()
    save(result, tmp_path / "run")
    assert write_report(tmp_path / "run.csv") == tmp_path / "run.html"
    assert write_report(result, tmp_path / "one.html") == tmp_path / "one.html"
    assert write_report({"a": result}, tmp_path / "many.html").stat().st_size > 6e5
    assert Page((tmp_path / "run.html").read_bytes()).all("h1")[0][2] == "run"
    with pytest.raises(UsageError, match="needs a path"):
        write_report(result)
    with pytest.raises(OutputError, match="cannot write"):
        write_report(result, tmp_path / "no folder" / "x.html")


@pytest.mark.parametrize("source", ["out/run", "out/run.csv", "out/run.meta.json", "out/run/"])
def test_the_page_of_every_file_of_a_result_is_the_same(source):
    assert default_path(source) == Path("out/run.html")


def test_a_failed_report_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = write_report(make_result(), tmp_path / "x.html")
    before = path.read_bytes()
    monkeypatch.setattr(report, "write_files", lambda writers: (_ for _ in ()).throw(OutputError("full")))
    with pytest.raises(OutputError):
        write_report(make_result(seed=1), path)
    assert path.read_bytes() == before


# --- the command ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(make_result(), "run")
    return tmp_path


def test_report_writes_beside_the_result_and_says_where(stored, capsys):
    assert main(["report", "run"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"Report: run\.html \(\d\.\d MB\)\n", out)
    assert err == ""
    assert (stored / "run.html").read_bytes() == build_report({"run": make_result()}).html


def test_several_sources_are_one_page_with_a_choice(stored, capsys):
    """A result that is named by two of its files is there once; names of two folders are told apart."""
    save(make_result(seed=1), stored / "other")
    (stored / "b").mkdir()
    save(make_result(seed=2), stored / "b" / "run")
    assert main(["report", "run.csv", "run.meta.json", "other", "b/run"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = Page((stored / "report.html").read_bytes())
    names = [one["name"] for one in page.data["prompts"]]
    assert names == ["run", "other", "b/run"]
    for number, seed in enumerate((0, 1, 2)):
        values = distances(page, make_result(seed=seed), number)
        assert (values[0, "l2", "Full"] == make_result(seed=seed).steps[0].l2[:, :, 0]).all()


def test_report_says_what_it_guessed_on_stderr(stored, capsys):
    (stored / "run.meta.json").unlink()
    save(make_result(["a", *["<|image_pad|>"] * 6, "b"]), "x", ["csv"])
    (stored / "x.meta.json").unlink()
    assert main(["report", "x.csv", "--output", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert "page.html" in out
    assert err.startswith("NOTE: The grid of image 0, 2 rows x 3 columns, is a guess")
    assert main(["report", "x.csv", "--grid", "3x2", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert Page((stored / "x.html").read_bytes()).data["prompts"][0]["images"][0]["grid"] == [3, 2]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["report", "nothing"], 1, "no result there: nothing does not exist"),
        (["report"], 2, "the following arguments are required: RESULT"),
        (["report", "run", "--output", "page.txt"], 2, "its name must end in .html"),
        (["report", "run", "--output", "run.csv/page.html"], 1, "cannot write run.csv"),
        (["report", "run", "--grid", "4"], 2, "a grid is ROWSxCOLUMNS"),
        (["report", "run", "--max-megabytes", "-1"], 2, "must be a number above 0"),
        (["report", "run", "--prompt-name", "x"], 2, "has no prompt 'x'"),
        (["report", "run", "--colour"], 2, "unknown flag --colour"),
        (["draw"], 2, "unknown command 'draw'"),
    ],
)
def test_errors_are_one_line_and_have_an_exit_code(stored, capsys, argv, code, message):
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("mask-impact")


def test_debug_shows_the_traceback(stored, capsys):
    assert main(["report", "nothing", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["report", "--help"], ["--version"]])
def test_help_needs_nothing_heavy(argv):
    code = (
        "import sys; from mask_impact.commands.main import main; code = main(sys.argv[1:]); "
        "print(*(name for name in ('torch', 'transformers', 'pandas', 'pyarrow', 'plotly', 'jinja2') if name in sys.modules), "
        "file=sys.stderr); sys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stderr.strip()) == (0, "")
    wanted = {"--help": COMMANDS, "--version": ["mask-impact"]}.get(argv[0], ["--grid", "--output"])
    assert all(name in process.stdout for name in wanted)


def test_python_m_mask_impact_is_the_command(stored):
    process = subprocess.run(
        [sys.executable, "-m", "mask_impact", "report", str(stored / "run")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert (stored / "run.html").is_file()
