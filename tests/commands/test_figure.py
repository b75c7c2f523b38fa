"""`mask-impact figure`: which figure of which result goes to which file, and what is refused, in one line with what to do."""

import dataclasses
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explained import explained
from looked import make_deepstack, make_patches, make_tower
from PIL import Image
from synthetic import make_explanation, make_result, make_tokens

from mask_impact.commands.main import main
from mask_impact.results.deepstack_files import save_deepstack
from mask_impact.results.explanation_files import save_explanation
from mask_impact.results.explanations import LayerEstimates
from mask_impact.results.flow_files import save_flows
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts
from mask_impact.results.patch_files import save_patches
from mask_impact.results.store import save
from mask_impact.results.tower_files import save_tower

Outcome = namedtuple("Outcome", "code out err")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with results: `full` (distances of a text), `pictured` (of an image), `explained` (what an answer used), `cut`
    (knockouts), `looked` (pixels and features)."""
    folder = tmp_path_factory.mktemp("stored")
    save(
        make_result(n_steps=2, n_layers=4, meta={"model": "tiny", "command": "mask-impact run x"}),
        folder / "full",
        "csv",
    )
    save(make_result(n_layers=4, grids=[(2, 3)]), folder / "pictured", "csv")
    save_explanation(make_explanation(), folder / "explained", "csv", "mask-impact explain x")
    save(make_estimated(), folder / "estimated", "csv")
    save_flows(knockouts(), folder / "cut", "csv", "mask-impact knockout x")
    save_patches(make_patches(), folder / "looked", "csv", "mask-impact pixels x")
    save_deepstack(make_deepstack(), folder / "looked", "csv")
    save_tower(make_tower(), folder / "looked", "csv")
    return folder


@pytest.fixture
def figure(stored, capsys, monkeypatch, tmp_path):
    """Calls `mask-impact figure` in a folder with the stored results; returns exit code, stdout and stderr."""
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = main(["figure", *map(str, argv)])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(figure):
    """Calls it and holds it to one line on stderr, nothing on stdout and no figure; returns the line."""

    def call(*argv, code=2):
        outcome = figure(*argv)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
        assert [path for path in Path().iterdir() if path.suffix in (".pdf", ".svg", ".png")] == []
        return outcome.err.removeprefix("mask-impact figure: error: ").rstrip()

    return call


def make_estimated():
    """An explained result with estimates by layer."""
    result = explained(make_result(n_layers=3, meta={"model": "tiny"}), {1: -2.0})
    shape = (3, result.n_prompt)
    by_layer = LayerEstimates(np.full(shape, -0.5, np.float32), np.full(shape, 0.25, np.float32))
    targets = (dataclasses.replace(result.answer.targets[0], by_layer=by_layer),)
    return dataclasses.replace(result, answer=dataclasses.replace(result.answer, targets=targets))


def knockouts():
    change = np.array([[-0.5, -2.0, 0.25]], dtype=np.float32)
    flow = FlowPositions(Flow("image -> last", "image", "last"), (0,), None)
    steps = [
        FlowStep(n, 7, " mat", 0.5, change, np.abs(change), np.full((1, 3), 7), {7: " mat"}, (0.1,) * 3, 7)
        for n in (0, 1)
    ]
    layers, meta = np.arange(3), {"model": "tiny", "window": 1, "ablation": "mask"}
    return Knockouts((flow,), tuple(steps), layers, layers, " mat mat", make_tokens(["a", " mat"]), meta)


def texts_in(svg):
    """Of an SVG whose texts are shapes, each behind its text as a comment."""
    return re.findall(r"<!-- (.*?) -->", Path(svg).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    ("kind", "sources", "name"),
    [
        ("card", ["explained.answer.csv"], "explained.card"),
        ("map", ["full.meta.json"], "full.map"),
        ("patches", ["pictured.csv"], "pictured.patches"),
        ("routes", ["cut.flows.meta.json"], "cut.routes"),
        ("pixels", ["looked.patches.meta.json"], "looked.pixels"),
        ("deepstack", ["looked"], "looked.deepstack"),
        ("tower", ["looked.tower_effects.csv"], "looked.tower"),
        ("compare", ["full", "pictured"], "compare_full_pictured"),
    ],
)
def test_each_kind_goes_beside_its_result_as_a_pdf(kind, sources, name, figure):
    outcome = figure(kind, *sources)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(rf"Figure: {re.escape(name)}\.pdf \(\d+ kB\)\n", outcome.out)
    assert Path(f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("kind", "sources", "shown"),
    [
        ("card", ["explained"], "75.0 %"),
        ("map", ["full"], "layer"),
        ("map", ["full.meta.json"], "tiny · mask-impact run x"),
        ("map", ["estimated"], "model tiny · contribution, wherever a layer reads it"),
        ("patches", ["pictured.csv"], "picture"),
        ("routes", ["explained"], "image → last"),
        ("routes", ["cut"], "most around layer 1: \u22122.00"),
        ("routes", ["cut.flows.meta.json"], "tiny · mask-impact knockout x"),
        ("pixels", ["looked"], "image 0: picture0.png"),
        ("pixels", ["looked.patches.meta.json"], "tiny · mask-impact pixels x"),
        ("patches", ["looked"], "image 0: picture0.png"),
        ("deepstack", ["looked"], "alone \u22120.26: “Rome”"),
        (
            "tower",
            ["looked"],
            "where it matters: hidden in the 2 layers around each layer, by 0.5 nats at most",
        ),
        ("tower", ["looked.tower_effects.csv"], "read: early (layer 0)"),
        ("compare", ["full", "pictured"], "impact by depth, %"),
    ],
)
def test_each_kind_goes_where_it_is_sent(kind, sources, shown, figure):
    outcome = figure(kind, *sources, "-o", "new/mine.SVG")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Figure: new/mine.SVG (")
    assert shown in texts_in("new/mine.SVG")


@pytest.mark.slow
def test_widths_are_names_or_inches(figure):
    for width, inches in (("column", 3.35), ("text", 5.5), ("page", 6.9), ("4.25", 4.25)):
        assert figure("card", "explained", "-o", "a.png", "--width", width).code == 0
        with Image.open("a.png") as image:
            assert image.width == pytest.approx(300 * inches, abs=1)
    figure("card", "explained", "-o", "b.png")
    with Image.open("b.png") as image:
        assert image.width == round(300 * 6.9)


def test_the_same_result_gives_the_same_file(figure):
    for form in ("pdf", "svg", "png"):
        figure("map", "full", "-o", f"a.{form}")
        figure("map", "full", "-o", f"b.{form}")
        assert Path(f"a.{form}").read_bytes() == Path(f"b.{form}").read_bytes()


def test_quiet_says_nothing_and_json_what_was_written(figure):
    assert figure("card", "explained", "-q") == (0, "", "")
    outcome = figure("map", "full", "--json", "--width", "column")
    assert json.loads(outcome.out) == {
        "figure": "full.map.pdf", "kind": "map", "width": 3.35, "bytes": Path("full.map.pdf").stat().st_size,
    }  # fmt: skip


def test_choices_choose_what_is_shown(figure):
    figure("map", "full", "-o", "a.svg", "--step", 1, "--variant", "Head_1", "--metric", "cosine")
    texts = texts_in("a.svg")
    assert any(text.startswith('Impact on the token "."') for text in texts)
    assert any("Head_1 cosine impact" in text for text in texts)
    figure("compare", "full", "pictured", "-o", "b.svg", "--variant", "Attn")
    assert any(text.startswith("Attn impact on the produced token 0") for text in texts_in("b.svg"))
    found = make_explanation()
    second = dataclasses.replace(found.targets[0], text=" rug", probability=0.125)
    save_explanation(dataclasses.replace(found, targets=(found.targets[0], second)), "two", "csv")
    assert figure("card", "two", "-o", "c.svg", "--target", 1).code == 0
    assert {"rug", "12.5 %"} <= {*texts_in("c.svg")}
    figure("map", "estimated", "-o", "e.svg", "--shown", "estimate", "--target", 0)
    assert any("hidden from the last in one layer" in text for text in texts_in("e.svg"))
    figure("map", "estimated", "-o", "f.svg", "--shown", "impact")
    assert any(text.startswith("Impact on the answer") for text in texts_in("f.svg"))
    figure("routes", "cut", "-o", "d.svg", "--step", 1)
    assert "image → last" in texts_in("d.svg")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["card", "full"], 'full has no card: ask what the answer used with "mask-impact explain" (or "run" without '
                           "--no-answer)"),
        (["routes", "full"], 'full has no routes: run it again with --routes auto, or cut flows with "mask-impact knockout"'),
        (["map", "full", "--shown", "contribution"],
         'full has no estimates by layer: ask again with "mask-impact run"'),
        (["map", "explained"], 'explained has no map: measure the impact of its tokens with "mask-impact run"'),
        (["patches", "cut"], 'cut has no patches: measure the impact of its tokens with "mask-impact run"'),
        (["patches", "full"], "full has no patches: no token of an image was hidden; run it again with an image, and not with "
                              "--mask-mode text"),
        (["pixels", "full"], 'full has no pixels: replace the pixels of regions with "mask-impact pixels"'),
        (["tower", "full"], 'full has no vision tower: ask what its layers read with "mask-impact tower"'),
        (["deepstack", "full"], 'full has no parts of features: take them away with "mask-impact deepstack"'),
        (["patches", "looked", "--step", "0"],
         'looked has no patches: measure the impact of its tokens with "mask-impact run"'),
        (["card", "nothere"], "no result there: nothere does not exist"),
    ],
)  # fmt: skip
def test_what_a_result_does_not_have_is_refused_with_what_to_do(argv, said, refused):
    assert refused(*argv, code=1) == said


def test_a_target_without_routes_says_so(refused):
    save_explanation(make_explanation(routes=()), "bare", "csv")
    assert refused("routes", "bare", code=1).startswith("bare has no routes: run it again with --routes auto")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["card", "explained", "-o", "a.jpg"], "a.jpg is no figure: its name must end in .pdf, .svg or .png"),
        (["card", "explained", "-o", "a"], "a is no figure: its name must end in .pdf, .svg or .png"),
        (["card", "explained", "--width", "2"], "must be column, text, page or inches from 3 to 20, not '2'"),
        (["card", "explained", "--target", "1"], "--target 1 is not there; only 0 is"),
        (["deepstack", "looked", "--target", "2"], "--target 2 is not there; there are 0 to 1"),
        (["map", "full", "--step", "2"], "--step 2 is not there; there are 0 to 1"),
        (["routes", "cut", "--step", "2"], "--step 2 is not there; there are 0 to 1"),
        (
            ["map", "full", "--variant", "Head_9"],
            "--variant Head_9 is not there; the result has Full, Attn, Head_0, Head_1",
        ),
        (
            ["patches", "full", "--target", "0"],
            "--target is of card, map, routes, pixels, deepstack and tower, not of patches",
        ),
        (["card", "explained", "--shown", "impact"], "--shown is of map, not of card"),
        (
            ["map", "estimated", "--shown", "estimate", "--step", "0"],
            "--step is of the local impact; of estimates --target chooses what is shown",
        ),
        (
            ["map", "estimated", "--shown", "impact", "--target", "0"],
            "--target is of estimates; of the local impact --step chooses the produced token",
        ),
        (["card", "explained", "--metric", "l2"], "--metric is of map, patches and compare, not of card"),
        (["card", "explained", "--step", "0"], "--step is of map, routes, patches and compare, not of card"),
        (["routes", "explained", "--step", "0"], "--step is of flows that knockout has cut"),
        (["routes", "cut", "--target", "0"], "--target is of an explained answer"),
        (["map", "full", "pictured"], "map shows one result, not 2; compare takes several"),
        (["compare", "full"], "1 result: two to 8 can be compared"),
        (["crad", "full"], "did you mean card?"),
        (["card"], "RESULT"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(argv, said, refused):
    assert said in refused(*argv)


def test_of_several_prompts_one_is_chosen(figure, refused):
    save(make_result(), "one", "parquet")
    table = pq.read_table("one.parquet")
    tables = [table.append_column("prompt_name", pa.array([name] * len(table))) for name in ("p", "q")]
    Path("data").mkdir()
    pq.write_table(pa.concat_tables(tables), "data/part-0.parquet")
    assert refused("map", "data") == "data has 2 prompts; --prompt-name chooses one, such as 'p'"
    assert figure("map", "data", "--prompt-name", "q").out.startswith("Figure: data.map.pdf")


def test_a_place_that_can_t_be_written_is_refused(refused):
    Path("file").touch()
    assert "file" in refused("card", "explained", "-o", "file/a.pdf", code=1)


@pytest.mark.parametrize("command", ["explain", "run"])
def test_plots_draw_the_card_and_an_old_one_is_named(command, capsys, monkeypatch, tmp_path, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    argv = [
        command,
        "the cat sat",
        "-m",
        str(text_checkpoint),
        "-n",
        "1",
        "--output-dir",
        ".",
        "-o",
        "mine",
        "--formats",
        "csv",
    ]
    assert main([*argv, "--plots"]) == 0
    assert "mine.card.png" in capsys.readouterr().out
    with Image.open("mine.card.png") as image:
        assert image.format == "PNG"
    assert main(argv) == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Removed"))
    assert "mine.card.png" in said
