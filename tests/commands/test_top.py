"""`python -m mask_impact top`: its rows are those that plain loops over the result's CSV file find, in every format, whatever
the tokens say."""

import csv
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pages import HOSTILE, cleaned
from samples import GROUPS, grouped
from synthetic import make_result, with_effects

from mask_impact.commands.main import main
from mask_impact.errors import UsageError
from mask_impact.findings.ranking import token_importance
from mask_impact.results.foreign import read_results
from mask_impact.results.store import save
from mask_impact.results.tables import to_dataset_table, to_table
from mask_impact.views.tables import Column, Table, effect_table, render, top_table
from mask_impact.views.text import columns, escape

REPOSITORY = Path(__file__).parents[2]
WORDS = ("The", " capital", " of", " France", " is", "\n", " capital")
METRICS = {"l2": "l2_distance", "cosine": "cosine_distance"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A result with an image, three steps, four layers, a sink at position 0, as files."""
    result = make_result(WORDS, n_steps=3, n_layers=4, n_heads=3, grids=((2, 3),))
    path = tmp_path_factory.mktemp("top") / "run"
    save(result, path, ["csv"])
    with open(f"{path}.csv", newline="", encoding="utf-8") as file:
        return result, path, list(csv.DictReader(file))


def run(capsys, *words):
    """(exit code, stdout, stderr)"""
    code = main(["top", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def parsed(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


# --- the same numbers, from the table's rows --------------------------------------------------------------------------


def distances(rows, step, variant, metric):
    """{(layer, position): distance}, without the sink at 0."""
    return {
        (int(row["layer"]), int(row["token_position"])): float(row[METRICS[metric]])
        for row in rows
        if (int(row["generation_step"]), row["variant"]) == (step, variant) and row["token_position"] != "0"
    }


def norms(result, step, variant, metric):
    if metric == "cosine":
        return [1.0] * result.n_layers
    return [float(layer[result.variants.index(variant)]) for layer in result.steps[step].baseline_norm]


def by_hand(result, rows, step, variant, metric):
    """shares and impacts {(layer, position): number}, layers, positions"""
    found, sizes = distances(rows, step, variant, metric), norms(result, step, variant, metric)
    layers, positions = sorted({layer for layer, _ in found}), sorted({position for _, position in found})
    totals = {layer: sum(found[layer, position] for position in positions) for layer in layers}
    shares = {(layer, position): found[layer, position] / totals[layer] for layer, position in found}
    impacts = {(layer, position): found[layer, position] / sizes[layer] for layer, position in found}
    return shares, impacts, layers, positions


CHOICES = [(0, "Full", "l2"), (2, "Attn", "l2"), (1, "Head_1", "cosine")]


@pytest.mark.parametrize(("step", "variant", "metric"), CHOICES)
def test_tokens_are_ranked_by_their_share_of_the_impact_of_all_layers(capsys, stored, step, variant, metric):
    result, path, rows = stored
    shares, impacts, layers, positions = by_hand(result, rows, step, variant, metric)
    words = ("--step", step, "--variant", variant, "--metric", metric, "--format", "csv")
    code, out, _ = run(capsys, path, *words)
    table = parsed(out)
    assert code == 0
    total = sum(impacts.values())
    scores = {j: sum(impacts[layer, j] for layer in layers) / total for j in positions}
    assert [int(row["pos"]) for row in table] == sorted(positions, key=lambda j: -scores[j])
    for rank, row in enumerate(table, start=1):
        j = int(row["pos"])
        assert int(row["rank"]) == rank
        assert float(row["share"]) == pytest.approx(scores[j], rel=1e-6)
        mean = sum(impacts[layer, j] for layer in layers) / len(layers)
        assert float(row["cosine" if metric == "cosine" else "L2/norm"]) == pytest.approx(mean, rel=1e-6)
        strongest = sorted(layers, key=lambda layer: -shares[layer, j])[:3]
        assert row["strongest layers"] == ", ".join(map(str, strongest))


def test_the_ranking_is_that_of_the_summary(stored):
    result, _, _ = stored
    table = top_table(result, "token", 6)
    assert [row[1] for row in table.rows] == token_importance(result, 0).ranked(6)


@pytest.mark.parametrize(("step", "variant", "metric"), CHOICES)
def test_layers_are_ranked_by_the_sum_of_their_impacts(capsys, stored, step, variant, metric):
    result, path, rows = stored
    shares, impacts, layers, positions = by_hand(result, rows, step, variant, metric)
    words = ("--by", "layer", "--step", step, "--variant", variant, "--metric", metric, "--format", "csv")
    _, out, _ = run(capsys, path, *words)
    table = parsed(out)
    sums = {layer: sum(impacts[layer, j] for j in positions) for layer in layers}
    assert [int(row["layer"]) for row in table] == sorted(layers, key=lambda layer: -sums[layer])
    unit = "cosine" if metric == "cosine" else "L2/norm"
    for row in table:
        layer = int(row["layer"])
        assert float(row[f"sum of {unit}"]) == pytest.approx(sums[layer], rel=1e-6)
        assert float(row["norm"]) == pytest.approx(norms(result, step, variant, "l2")[layer], rel=1e-6)
        cells = row["strongest tokens (share of the layer)"].split("; ")
        strongest = sorted(positions, key=lambda j: -shares[layer, j])[: len(cells)]
        assert 1 <= len(cells) <= 3
        assert len(cells) == 3 or len(row["strongest tokens (share of the layer)"]) > 42 - 2 - 24
        assert len(row["strongest tokens (share of the layer)"]) <= 42
        assert [int(cell.split()[0]) for cell in cells] == strongest
        for cell, j in zip(cells, strongest, strict=True):
            share = shares[layer, j]
            assert cell.endswith("<0.1 %" if share < 0.0005 else f" {100 * share:.1f} %")


@pytest.mark.parametrize("metric", METRICS)
def test_heads_are_ranked_by_their_strongest_token(capsys, stored, metric):
    result, path, rows = stored
    best = []
    for variant in ("Head_0", "Head_1", "Head_2"):
        shares, impacts, layers, positions = by_hand(result, rows, 0, variant, metric)
        for layer in layers:
            j = max(positions, key=lambda j, layer=layer, impacts=impacts: impacts[layer, j])
            best.append((impacts[layer, j], layer, variant, j, shares[layer, j]))
    best.sort(reverse=True)
    _, out, _ = run(capsys, path, "--by", "head", "-k", 5, "--metric", metric, "--format", "csv")
    table = parsed(out)
    assert [(int(r["layer"]), r["head"], int(r["pos"])) for r in table] == [row[1:4] for row in best[:5]]
    unit = "cosine" if metric == "cosine" else "L2/norm"
    np.testing.assert_allclose([float(row[unit]) for row in table], [row[0] for row in best[:5]], rtol=1e-6)
    np.testing.assert_allclose([float(row["share"]) for row in table], [row[4] for row in best[:5]], rtol=1e-6)


def test_the_oracle_rejects_a_table_that_counts_the_sink(stored):
    """What the loops find is not what a table with the sink in it would have."""
    result, _, rows = stored
    shares, *_ = by_hand(result, rows, 0, "Full", "l2")
    table = top_table(dataclasses.replace(result, sinks=()), "token")
    found = {row[1]: row[-3] for row in table.rows}
    assert any(
        abs(found[j] - np.mean([shares[layer, j] for layer in range(4)])) > 0.01 for j in set(found) - {0}
    )  # fmt: skip


# --- images, steps, variants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["token", "head"])
def test_a_patch_has_its_cell_and_its_box_in_the_original(capsys, stored, by):
    """The image of 2 x 3 cells has 150 x 80 pixels."""
    _, path, _ = stored
    _, out, _ = run(capsys, path, "--by", by, "--format", "csv", "-k", 100)
    for row in parsed(out):
        place = int(row["pos"]) - 1
        cells = [row[name] for name in ("image", "row", "col", "box")]
        if 0 <= place < 6:
            i, j = divmod(place, 3)
            assert cells == ["0", str(i), str(j), f"{50 * j}, {40 * i}, {50 * j + 50}, {40 * i + 40}"]
        else:
            assert cells == [""] * 4


def test_a_result_without_images_has_no_columns_for_them(capsys, tmp_path):
    save(make_result(WORDS), tmp_path / "plain", ["csv"])
    _, out, _ = run(capsys, tmp_path / "plain", "--format", "csv")
    assert out.splitlines()[0] == "rank,pos,token,share,L2/norm,strongest layers"


def test_k_is_the_most_rows(capsys, stored):
    _, path, _ = stored
    for by, most in (("token", 12), ("layer", 4), ("head", 12)):
        for k in (1, 3, 1000):
            _, out, _ = run(capsys, path, "--by", by, "-k", k, "--format", "csv")
            assert len(parsed(out)) == min(k, most)


def test_what_had_no_impact_is_in_no_table(capsys, tmp_path):
    result = make_result(WORDS)
    result.steps[0].l2[:] = 0
    save(result, tmp_path / "still", ["csv"])
    for by in ("token", "layer", "head"):
        code, out, _ = run(capsys, tmp_path / "still", "--by", by)
        assert code == 0
        assert "  none: nothing had any impact" in out.splitlines()
        assert "  rank  " not in out


def test_a_layer_whose_norm_is_zero_has_no_relative_impact(tmp_path):
    result = make_result(WORDS)
    result.steps[0].baseline_norm[1] = 0
    assert sorted(row[1] for row in top_table(result, "layer").rows) == [0, 2]
    assert 1 not in {row[1] for row in top_table(result, "head").rows}
    means = {row[1]: row[4] for row in top_table(result, "token").rows}
    for place, position in enumerate(result.steps[0].positions[1:], start=1):
        both = result.steps[0].l2[[0, 2], place, 0].astype(float) / result.steps[0].baseline_norm[[0, 2], 0]
        assert means[position] == pytest.approx(both.mean())


def test_only_heads_measured_is_enough(capsys, tmp_path):
    save(make_result(WORDS, groups=("heads",)), tmp_path / "heads", ["csv"])
    code, out, _ = run(capsys, tmp_path / "heads")
    assert (code, "(Head_0, L2/norm)" in out) == (0, True)


# --- tables of others, several prompts --------------------------------------------------------------------------------


def test_a_table_without_norms_says_that_layers_cannot_be_compared(capsys, tmp_path):
    to_table(make_result(WORDS)).to_pandas().to_csv(tmp_path / "bare.csv", index=False)
    for by, same in (("token", "layers"), ("layer", "layers"), ("head", "heads")):
        code, out, _ = run(capsys, tmp_path / "bare.csv", "--by", by)
        assert code == 0
        assert " ".join(out.split()).endswith(f"its L2 distances can't be compared between {same}")
        assert "L2/norm" not in out
        _, out, _ = run(capsys, tmp_path / "bare.csv", "--by", by, "--metric", "cosine")
        assert "can't be compared" not in out


def test_a_grid_is_for_a_table_without_a_meta_file(capsys, tmp_path):
    to_table(make_result(WORDS, grids=((2, 3),))).to_pandas().to_csv(tmp_path / "bare.csv", index=False)
    _, out, _ = run(capsys, tmp_path / "bare.csv", "--grid", "3x2", "--format", "csv")
    cells = {(row["pos"], row["row"], row["col"]) for row in parsed(out) if row["image"]}
    assert cells == {(str(1 + 2 * i + j), str(i), str(j)) for i in range(3) for j in range(2)}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    made = {"plain": make_result(WORDS), "=cmd()": make_result(WORDS, grids=((1, 2),), seed=1)}
    for number, (name, result) in enumerate(made.items()):
        pq.write_table(to_dataset_table(result, name, "{}", "none"), folder / f"part-{number:05d}.parquet")
    return folder


def test_several_prompts_are_tables_in_text_and_a_column_in_other_formats(capsys, dataset):
    folder = dataset
    _, out, _ = run(capsys, folder, "-k", 2, "--metric", "cosine")
    assert [line.split(":")[0] for line in out.splitlines() if "Strongest" in line] == ['"plain"', '"=cmd()"']
    _, out, _ = run(capsys, folder, "-k", 2, "--metric", "cosine", "--format", "csv")
    rows = parsed(out)
    assert [row["prompt"] for row in rows] == ['"plain"', '"plain"', '"=cmd()"', '"=cmd()"']
    expected = [
        row[1] for one in read_results(folder).values() for row in top_table(one, "token", 2, metric="cosine").rows
    ]
    assert [int(row["pos"]) for row in rows] == expected
    _, out, _ = run(capsys, folder, "--prompt-name", "plain", "--format", "csv")
    assert "prompt" not in out.splitlines()[0]


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path):
    """HOSTILE texts and those that a spreadsheet takes for formulas, at positions from 1; a generous number of rows."""
    texts = ("first", *HOSTILE, "+1", "-1", "@SUM(A1)", "=HYPERLINK('x')", "a|b", "`", "a``b|`", "\\|", "\\")
    result = make_result(texts, produced=["<b>|`\n"])
    save(result, tmp_path / "hostile", ["csv"])
    return tmp_path / "hostile", {position: cleaned(text) for position, text in enumerate(texts)}


def test_csv_is_read_back_by_rows_and_no_cell_is_a_formula(capsys, hostile):
    path, texts = hostile
    _, out, _ = run(capsys, path, "-k", 1000, "--format", "csv")
    assert out.count("\r\n") == out.count("\n") == len(texts)  # one line for each row: line breaks are written out
    rows = parsed(out)
    assert {int(row["pos"]) for row in rows} == set(texts) - {0}
    for row in rows:
        inner = escape(texts[int(row["pos"])]).replace('"', '\\"')
        assert row["token"] == f'"{inner}"'
    for line in csv.reader(io.StringIO(out, newline="")):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)


def unescaped_cells(line):
    """The cells of a row of a GitHub table: split at each | that no backslash is before, then `\\|` is |."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    cells = re.findall(r"((?:\\.|[^|\\])*)\|", line[1:], re.DOTALL)
    return [cell.strip(" ").replace("\\|", "|") for cell in cells]


def test_markdown_cells_are_code_that_shows_the_text(capsys, hostile):
    path, texts = hostile
    _, out, _ = run(capsys, path, "-k", 1000, "--format", "markdown")
    header, ruler, *rows = out.splitlines()
    assert unescaped_cells(header) == ["rank", "pos", "token", "share", "L2/norm", "strongest layers"]
    assert re.fullmatch(r"\|( -{3}:? \|){6}", ruler)
    assert len(rows) == len(texts) - 1
    for row in rows:
        cells = unescaped_cells(row)
        assert len(cells) == 6
        fence, inner = re.fullmatch(r"(`+)(.*?)\1", cells[2]).groups()
        assert fence not in re.findall("`+", inner)  # nothing within ends the code
        assert inner.strip(" ") == '"' + escape(texts[int(cells[1])]).replace('"', '\\"') + '"' or inner.endswith('…"')


def test_a_code_cell_that_begins_or_ends_with_a_backtick_keeps_it():
    table = Table("", (Column("name", "text"),), (("`a``b",), ("a|b`",)), ())
    assert render(table, "markdown").splitlines()[2:] == ["| ``` `a``b ``` |", "| `` a\\|b` `` |"]


def test_text_moves_no_cursor_and_keeps_its_columns(capsys, hostile):
    path, _ = hostile
    for by in ("token", "layer", "head"):
        code, out, _ = run(capsys, path, "--by", by, "-k", 1000)
        assert code == 0
        assert all(char.isprintable() for char in out.replace("\n", ""))
        title, *body = out.splitlines()
        assert title.startswith(f'Strongest {by}s for produced token 0, "<b>|`\\n"')
        rows = [line for line in body if re.match(r" +\d", line)]
        assert len(rows) >= 3
        if by == "head":
            assert len({columns(line) for line in rows}) == 1


def test_a_text_table_fits_a_terminal(capsys, tmp_path):
    path = tmp_path / "wide"
    save(make_result(["long " * 20, *WORDS], n_layers=40, n_heads=12, grids=((11, 12),)), path, ["csv"])
    for by in ("token", "layer", "head"):
        _, out, _ = run(capsys, path, "--by", by, "-k", 1000)
        assert max(columns(line) for line in out.splitlines()) <= 80


def test_names_of_variants_of_others_are_quoted(capsys, tmp_path):
    frame = to_table(make_result(WORDS)).to_pandas().astype({"variant": str})
    frame["variant"] = frame["variant"].replace({"Head_0": "Head_=1+1", "Full": "=1\x1b[31m"})
    frame.to_csv(tmp_path / "bare.csv", index=False)
    _, out, _ = run(capsys, tmp_path / "bare.csv", "--by", "head", "--format", "csv", "-k", 100)
    assert {row["head"] for row in parsed(out)} == {'"Head_=1+1"', "Head_1"}
    _, out, _ = run(capsys, tmp_path / "bare.csv", "--variant", "=1\x1b[31m")
    assert '("=1\\x1b[31m", L2)' in out


def test_notes_go_to_stderr_where_a_program_reads_stdout(capsys, stored):
    _, path, _ = stored
    _, out, err = run(capsys, path)
    assert ('Attention sink, left out: "The" at position 0' in out, err) == (True, "")
    for form in ("csv", "markdown"):
        _, out, err = run(capsys, path, "--format", form)
        assert "sink" not in out
        assert err == 'NOTE: Attention sink, left out: "The" at position 0\n'


# --- what can't be had ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--step", 3), "step 3 is not there: the result has steps 0 to 2"),
        (("--variant", "Head_9"), "variant 'Head_9' is not there; the result has Full, Attn, Head_0, Head_1, Head_2"),
        (("--by", "head", "--variant", "Attn"), "--by head shows all heads"),
        (("-k", 0), "must be a whole number from 1, not '0'"),
        (("--step", "-1"), "must be a whole number from 0, not '-1'"),
        (("--step", "²"), "must be a whole number from 0, not '²'"),
        (("--by", "word"), "unknown 'word'; accepted are layer, token, head"),
        (("--format", "xml"), "unknown 'xml'; accepted are text, csv, markdown"),
        (("--grid", "2"), "a grid is ROWSxCOLUMNS"),
        (("--prompt-name", "x"), "has no prompt 'x'"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(capsys, stored, words, message):
    _, path, _ = stored
    code, out, err = run(capsys, path, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_result_without_heads_says_how_to_have_them(capsys, tmp_path):
    save(make_result(WORDS, groups=("full",)), tmp_path / "full", ["csv"])
    code, _, err = run(capsys, tmp_path / "full", "--by", "head")
    assert code == 2
    assert "no heads, only Full; --variants heads measures them" in err


def test_by_must_be_one_of_the_three(stored):
    with pytest.raises(UsageError, match="by layer, token, head, not 'word'"):
        top_table(stored[0], "word")


def test_the_command_needs_no_model_library(stored):
    _, path, _ = stored
    code = (
        "import sys; from mask_impact.__main__ import main; code = main(['top', sys.argv[1]]); "
        "print([name for name in ('torch', 'transformers', 'scipy', 'plotly') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# --- the effect on the answer -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    """A result with effects, an image and a sink, and the rows of its second table."""
    result = make_result(WORDS, n_steps=2, n_layers=4, grids=((2, 3),))
    result = with_effects(result, seed=1, texts=HOSTILE[:6])
    path = tmp_path_factory.mktemp("effects") / "run"
    save(result, path, ["csv"])
    with open(f"{path}.effect.csv", newline="", encoding="utf-8") as file:
        return result, path, list(csv.DictReader(file))


@pytest.mark.parametrize("step", [0, 1])
def test_tokens_are_ranked_by_their_largest_effect(capsys, effects, step):
    """Up or down; the sink among them."""
    _, path, rows = effects
    best = {}
    for row in rows:
        size, j = abs(float(row["logprob_change"])), int(row["token_position"])
        if int(row["generation_step"]) == step and size > 1e-4 and size > best.get(j, (0,))[0]:
            best[j] = size, row
    code, out, err = run(capsys, path, "--effect", "--step", step, "--format", "csv", "-k", 9)
    table = parsed(out)
    assert code == 0
    assert [int(row["pos"]) for row in table] == sorted(best, key=lambda j: -best[j][0])[:9]
    assert [int(row["rank"]) for row in table] == list(range(1, 10))
    for row in table:
        _, expected = best[int(row["pos"])]
        assert row["layer"] == expected["layer"]
        assert np.float32(row["log-prob."]) == np.float32(expected["logprob_change"])
        assert np.float32(row["KL"]) == np.float32(expected["kl_divergence"])
        text = f'"{escape(cleaned(expected["top1_token"]))}"' if expected["top1_changed"] == "true" else ""
        assert row["becomes"].replace('\\"', '"') == text.replace('\\"', '"')
    assert any(row["becomes"] for row in table)
    assert any(float(row["log-prob."]) > 0 for row in table)
    assert 'NOTE: Attention sink: "The" at position 0' in err


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_effects_are_written_in_every_format(capsys, effects, form):
    _, path, _ = effects
    code, out, _ = run(capsys, path, "--effect", "--format", form, "-k", 4)
    assert code == 0
    lines = out.splitlines()
    if form == "text":
        title = 'Strongest effects on produced token 0, " Paris", of hiding a token from 3 layers around each layer, mask (nats):'
        assert " ".join(" ".join(lines[:2]).split()) == title
        assert " ".join(lines[2].split()) == "rank pos token layer log-prob. KL becomes"
        assert len(lines) == 3 + 4 + 1
    else:
        assert lines[0] == "| rank | pos | token | image | row | col | box | layer | log-prob. | KL | becomes |"
        assert len(lines) == 2 + 4


def test_a_result_without_effects_is_one_line(capsys, stored):
    _, path, _ = stored
    code, out, err = run(capsys, path, "--effect")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the result has no effects on the produced token: run it again with --effect" in err


@pytest.mark.parametrize("words", [("--by", "head"), ("--variant", "Full"), ("--metric", "cosine")])
def test_effects_are_of_no_metric_and_variant(capsys, effects, words):
    _, path, _ = effects
    code, out, err = run(capsys, path, "--effect", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--effect lists tokens by the change of the answer" in err
    code, _, err = run(capsys, path, "--effect", "--step", 2)
    assert (code, "step 2 is not there" in err) == (2, True)


def test_effects_below_the_floor_are_counted(capsys, tmp_path):
    result = with_effects(make_result(WORDS), floor=1e9)
    save(result, tmp_path / "still", ["csv"])
    _, out, _ = run(capsys, tmp_path / "still", "--effect")
    assert "  none: nothing had any impact" in out.splitlines()
    assert out.splitlines()[-1] == "7 of 7 have no effect above the noise floor, 1e+09 nats"
    measured = with_effects(make_result(WORDS))
    change = measured.steps[0].effect.logprob_change
    change[:, 2], change[:, 4] = 0, np.nan
    table = effect_table(measured, 99)
    assert {row[1] for row in table.rows} == {0, 1, 3, 5, 6}
    assert table.notes[-1] == "1 of 6 have no effect above the noise floor, 0.0001 nats"


def test_groups_and_all_layers_have_what_they_have(capsys, tmp_path):
    """Names and sizes of groups; no layer where all are hidden at once."""
    result = grouped(with_effects(make_result(WORDS + WORDS)), GROUPS)
    every = dataclasses.replace(result, meta={"ablation": "mask", "effect": {"window": "all", "queries": "last"}})
    save(every, tmp_path / "groups", ["csv"])
    code, out, err = run(capsys, tmp_path / "groups", "--effect", "--format", "csv")
    assert code == 0
    size = np.abs(result.steps[0].effect.logprob_change).max(axis=0)
    order = sorted(range(len(GROUPS)), key=lambda g: -size[g])
    table = parsed(out)
    assert [row["group"] for row in table] == [f'"{GROUPS[g][0]}"' for g in order]
    assert [int(row["tokens"]) for row in table] == [len(GROUPS[g][1]) for g in order]
    spans = {0: "0-1", 1: "2-4", 2: "9", 3: "0-8"}
    assert [row["pos"] for row in table] == [spans[g] for g in order]
    assert {row["layer"] for row in table} == {""}
    assert "Attention sink" in err
    _, out, _ = run(capsys, tmp_path / "groups", "--effect")
    assert "of hiding a group of tokens from all layers, mask (nats):" in " ".join(out.split())
