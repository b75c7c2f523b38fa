"""The page of text: the numbers in it by hand, and that no token can break it."""

import dataclasses
import unicodedata

import numpy as np
import pytest
from synthetic import make_result

from mask_impact.findings.ranking import Importance, token_importance
from mask_impact.results.sinks import find_sinks, sinks_of_shares
from mask_impact.views.summary import render_summary
from mask_impact.views.text import columns, escape, percent, quoted, token_label


def with_distances(result, l2, **changes):
    """The result with `l2` [T][L, S_t, V] in place of its own distances; `changes` are Result fields."""
    steps = tuple(
        dataclasses.replace(step, l2=np.asarray(values, dtype=np.float32), cosine=np.zeros_like(step.cosine))
        for step, values in zip(result.steps, l2, strict=True)
    )
    return dataclasses.replace(result, steps=steps, **changes)


def full_only(l2, sinks=(), norms=1.0):
    """One step whose Full distances are `l2` [L, S], and the norms of whose updates are `norms` [L]."""
    l2 = np.asarray(l2, dtype=np.float32)[:, :, None]
    result = make_result([f"t{j}" for j in range(l2.shape[1])], n_layers=l2.shape[0], groups=("full",))
    result.steps[0].baseline_norm[:, 0] = norms
    return with_distances(result, [l2], sinks=sinks)


def scores_by_loops(step, variant=0, sinks=(0,)):
    """Of each position its distances over the norms, in all layers, over those of all positions but the sinks."""
    sums = np.zeros(step.n_positions)
    for layer in range(len(step.l2)):
        for j in range(step.n_positions):
            if j not in sinks:
                sums[j] += float(step.l2[layer, j, variant]) / float(step.baseline_norm[layer, variant])
    return sums / sums.sum()


# Sinks


@pytest.mark.parametrize(
    ("attention", "sinks"),
    [
        ([0.6, 0.1, 0.1, 0.1, 0.1], (0,)),  # The capital of France is: "The"
        ([0.55, 0.1, 0.1, 0.15, 0.1], (0,)),
        ([0.25, 0.2, 0.15, 0.25, 0.15], ()),  # nothing stands out
        ([0.4, 0.3, 0.3], ()),  # more than 0.3, and no more than a fair share of three
        ([0.4, 0.4, *[0.02] * 10], (0, 1)),  # two sinks
        ([0.05, 0.75, *[0.02] * 10], (1,)),  # not the first position
        ([0.2, *[0.02] * 40], ()),  # ten times the others, but most attention is elsewhere
        ([0.9, 0.1], ()),  # nothing to compare with
        ([1.0], ()),
        ([0.0, 0.0, 0.0, 0.0], ()),
    ],
)
def test_a_sink_takes_a_large_share_and_far_more_than_the_others(attention, sinks):
    received = np.array(attention, dtype=np.float32)
    assert find_sinks(np.stack([received, received])) == sinks_of_shares(received) == sinks


def test_shares_of_one_query_are_averaged_over_layers_whatever_their_scale():
    shares = np.array([[0.9, 0.05, 0.03, 0.02], [0.5, 0.2, 0.2, 0.1]], dtype=np.float32)
    assert sinks_of_shares(shares) == sinks_of_shares(shares * 0.01) == (0,)


def test_a_sink_of_one_layer_is_one():
    little = np.full((12, 10), 0.01)
    for share, sinks in ((0.55, (4,)), (0.45, ())):
        received = little.copy()
        received[7, 4] = share
        assert find_sinks(received) == sinks


def test_what_few_queries_see_is_no_sink():
    received = np.full((3, 10), 0.01)
    received[:, 8], received[:, 0] = np.nan, 0.8
    assert find_sinks(received) == (0,)
    received[:2, 0] = np.nan  # of two layers nothing is known
    assert find_sinks(received) == (0,)


# Importance


def test_a_layer_counts_by_what_it_reads_for_its_own_size():
    """By hand: layer 0 gives 1/4, 3/4, layer 1 1/2, 1/2. Its update is 500 times larger and so are its distances, but the
    tokens move twice as much of it: 8/10 against 4/10. The sink's distances don't count."""
    result = full_only([[9e9, 1, 3], [7, 2000, 2000]], sinks=(0,), norms=[10, 5000])
    importance = token_importance(result)
    np.testing.assert_allclose(importance.scores, [0, (0.25 * 4 + 0.5 * 8) / 12, (0.75 * 4 + 0.5 * 8) / 12])
    np.testing.assert_allclose(importance.shares, [[0, 0.25, 0.75], [0, 0.5, 0.5]])
    assert importance.measure == "Full"
    assert importance.ranked(5) == [2, 1]


def test_a_layer_without_any_impact_is_left_out_of_the_mean():
    np.testing.assert_allclose(token_importance(full_only([[0, 0, 0], [1, 1, 2]])).scores, [0.25, 0.25, 0.5])


def test_without_norms_every_layer_counts_the_same():
    result = full_only([[9e9, 1, 3], [7, 2000, 2000], [1, 0, 0]], sinks=(0,), norms=np.nan)
    np.testing.assert_allclose(token_importance(result).scores, [0, 0.375, 0.625])


def test_a_position_without_a_value_in_a_layer_has_none_of_it():
    result = full_only([[9, 1, 3], [9, np.nan, 6]], sinks=(0,))
    np.testing.assert_allclose(token_importance(result).scores, [0, 1 / 10, 9 / 10])


def test_scores_sum_to_one_and_agree_with_loops():
    result = make_result(n_steps=3, n_layers=4)
    for step in result.steps:
        scores = token_importance(result, step.step).scores
        np.testing.assert_allclose(scores, scores_by_loops(step))
        assert scores.sum() == pytest.approx(1)


def test_the_whole_answer_is_the_mean_of_its_steps():
    result = make_result(n_steps=2)
    first, second, both = (token_importance(result, step).scores for step in (0, 1, None))
    np.testing.assert_allclose(both, (np.append(first, 0) + second) / 2)


@pytest.mark.parametrize(
    ("groups", "measure", "variants"),
    [
        (("full", "attn", "heads"), "Full", [0]),
        (("attn", "heads"), "Attn", [0]),
        (("heads",), "mean of heads", [0, 1]),
    ],
)
def test_the_measure_falls_back_from_full_to_attn_to_heads(groups, measure, variants):
    result = make_result(groups=groups, sinks=())
    importance = token_importance(result)
    (step,) = result.steps
    distances = step.l2[:, :, variants].astype(np.float64)
    shares = distances.mean(axis=2) / distances.mean(axis=2).sum(axis=1, keepdims=True)
    weights = (distances.sum(axis=1) / step.baseline_norm[:, variants]).mean(axis=1)
    np.testing.assert_allclose(importance.scores, weights @ shares / weights.sum())
    np.testing.assert_allclose(importance.shares, shares)
    assert importance.measure == measure


@pytest.mark.parametrize(("l2", "sinks"), [([[0, 0], [0, 0]], ()), ([[1]], (0,)), ([[5, 7]], (0, 1))])
def test_no_impact_at_all_gives_zeros_and_an_empty_ranking(l2, sinks):
    importance = token_importance(full_only(l2, sinks))
    assert not importance.scores.any()
    assert importance.ranked(3) == []
    assert "none: no token" in render_summary(full_only(l2, sinks))


def test_a_sink_among_later_positions_is_left_out_where_it_exists():
    result = make_result(n_steps=2, sinks=(5,))
    assert token_importance(result, 1).scores[5] == 0
    assert token_importance(result, 0).scores.sum() == pytest.approx(1)


def test_top_layers_are_where_the_share_is_largest():
    importance = Importance(np.ones(1), np.array([[0.1], [0.5], [0.0], [0.5], [0.2]]), "Full")
    assert importance.top_layers(0) == [1, 3, 4]
    assert importance.top_layers(0, n=9) == [1, 3, 4, 0]  # never a layer without impact


# Text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\t\r", "a\\nb\\t\\r"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\0\x7f", "\\x00\\x7f"),
        ("\u202eabc\u2069", "\\u202eabc\\u2069"),
        ("\u2028\ufeff\u200b", "\\u2028\\ufeff\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\\n", "\\\\n"),
        ("Größe 日本 🙂 é � ▁", "Größe 日本 🙂 é � ▁"),
    ],
)
def test_escaped_text_is_readable_and_harmless(text, shown):
    assert escape(text) == shown


def test_columns_count_wide_characters_twice_and_marks_not():
    assert [columns(text) for text in ("abc", "日本", "e\u0301", "🙂", "")] == [3, 4, 1, 2, 0]


def test_quoted_text_keeps_its_width():
    assert quoted('say "x"') == '"say \\"x\\""'
    assert quoted("abcdefgh", 8) == '"abcde…"'
    assert quoted("abcdef", 8) == '"abcdef"'
    assert columns(quoted("日本語テスト", 9)) <= 9


def test_an_image_token_is_named_by_its_place():
    result = make_result(["a", "b"], grids=((1, 2), (14, 8)))
    assert token_label(result, 3 + 13 * 8 + 7) == "image 1 [13, 7]"


def section(page, beginning):
    """The lines of the section of a page that begins so."""
    return next(part for part in page.split("\n\n") if part.startswith(beginning)).splitlines()


def test_a_page_about_images_says_what_the_model_saw_and_where_it_mattered():
    """Every number against the plainest computation from the distances."""
    result = make_result(["a", " b", " c"], n_steps=2, grids=((2, 3), (1, 2)), n_layers=14)
    page = render_summary(result)
    assert section(page, "Images (8 vision tokens):")[1:] == [
        "  image 0: picture0.png",
        "    150 x 80 pixels, seen by the model as 96 x 64; 2 rows x 3 columns",
        "  image 1: picture1.png",
        "    100 x 40 pixels, seen by the model as 64 x 32; 1 rows x 2 columns",
    ]
    shares = []
    for step in result.steps:
        full = step.l2[:, 1:, 0].astype(float)  # position 0 is the sink
        full /= full.sum(axis=1, keepdims=True)
        shares.append(full[:, :8])
    of_layers = 100 * shares[0].sum(axis=1)
    lines = section(page, "Vision tokens, layer by layer, for the first token (share of the layer's")
    assert lines[1] == "  impact, in %):"
    assert [float(cell) for line in lines[2:4] for cell in line.split()[2:]] == pytest.approx(of_layers, abs=0.051)
    assert lines[4] == f"  mean {of_layers.mean():.1f} %"
    lines = section(page, "Layers where the vision tokens are read most for each produced token:")
    for step, line in enumerate(lines[1:]):
        best = 100 * shares[step].sum(axis=1)
        assert f'"{[" Paris", "."][step]}"' in line
        assert f"<- layer {best.argmax()} ({best.max():.1f} %), layer " in line
    scores = scores_by_loops(result.steps[0])[1:]
    best = int(scores[:8].argmax())
    image, row, column = [(0, r, c) for r in range(2) for c in range(3)][best] if best < 6 else (1, 0, best - 6)
    first = section(page, "Patches that are read most for the first token")[3].split()
    assert first[:4] == ["1", str(image), str(row), str(column)]
    assert float(first[4]) == pytest.approx(100 * scores[:8].max(), abs=0.051)
    box = [50 * column, 40 * row, 50 * column + 50, 40 * row + 40]
    assert [float(edge.rstrip(",")) for edge in first[6:10]] == box


def test_a_page_about_vision_tokens_alone_compares_them_with_the_layers_update():
    result = make_result(grids=((2, 3),), mask_mode="vision")
    page = render_summary(result)
    step = result.steps[0]
    expected = 100 * step.l2[:, :, 0].sum(axis=1) / step.baseline_norm[:, 0]
    lines = section(page, "Vision tokens, layer by layer, for the first token (sum of their Full L2 over")
    assert [float(cell) for cell in lines[2].split()[2:]] == pytest.approx(expected, rel=1e-3, abs=0.051)
    assert "Where it is read for the first token" not in page
    assert "Patches that are read most" in page


def test_a_page_about_text_tokens_alone_names_the_images_only():
    page = render_summary(make_result(grids=((2, 3),), mask_mode="text"))
    assert "Images (6 vision tokens)" in page
    assert "Vision tokens, layer by layer" not in page
    assert "Patches that are read most" not in page
    assert "Where it is read for the first token" in page


def test_percent_never_shows_something_as_nothing():
    assert [percent(share) for share in (0, 1e-9, 0.0005, 0.123, 1)] == [
        "0.0 %",
        "<0.1 %",
        "0.1 %",
        "12.3 %",
        "100.0 %",
    ]


# The page


def test_the_page_says_what_a_reader_asks():
    result = make_result(meta={"model": "demo", "notices": ["the default model could not be had"]})
    page = render_summary(result, ["output/vl_masking_results.json", "output/vl_masking_results.csv"])
    lines = page.splitlines()
    first = result.steps[0].candidates[0]
    assert lines[0] == "Note: the default model could not be had"
    assert "Model: demo" in lines
    assert '  " Paris"' in lines
    assert any(f"{100 * first.probability:.3f} %  <- produced" in line and '" Paris"' in line for line in lines)
    assert sum("  id  " in line for line in lines) == 5
    assert "Results saved to: output/vl_masking_results.csv" in lines
    assert "Also written: output/vl_masking_results.json" in lines
    assert any(line.startswith('Attention sink, left out of the rankings: "The" at position 0 (') for line in lines)
    assert f"within {result.steps[0].self_check.max():.1e} (relative)" in page
    assert "Noise floor" not in page


def test_the_ranking_shows_rank_position_token_share_and_layers():
    result = full_only([[0, 1, 3], [0, 8, 2], [0, 1, 9]])
    rows = [line.split() for line in render_summary(result).splitlines() if "█" in line]
    assert [row[:6] for row in rows] == [
        ["1", "2", '"t2"', "58.3", "%", "█" * 16],
        ["2", "1", '"t1"', "41.7", "%", "█" * 11],
    ]
    assert [row[6:] for row in rows] == [["2,", "0,", "1"], ["1,", "0,", "2"]]


def test_top_bounds_the_ranking():
    result = make_result([f"t{j}" for j in range(20)])
    for top in (1, 7):
        assert render_summary(result, top=top).count("top layers") == 1
        assert sum("█" in line for line in render_summary(result, top=top).splitlines()) == top


def test_several_steps_get_a_line_each():
    one, three = render_summary(make_result()), render_summary(make_result(n_steps=3))
    assert "each produced token" not in one
    table = three.split("Tokens that are read most for each produced token:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split("<-")[0].split() for line in table] == [["0", '"', 'Paris"'], ["1", '"."'], ["2", '"', 'It"']]
    best = token_importance(make_result(n_steps=3), 2).ranked(1)[0]
    assert table[2].split("<- ")[1].startswith(quoted(make_result(n_steps=3).tokens.texts[best]))


def test_a_noise_floor_is_given_with_the_share_of_distances_below_it():
    result = full_only([[1, 2, 3, 4], [1, 1, 1, 9]])
    result.steps[0].noise_floor[1] = 1.0
    page = render_summary(result)
    assert "rounding alone makes 1.0e+00" in page
    assert "75.0 % of the Full distances are not above it" in page


def test_a_result_without_candidates_sinks_or_paths_is_fine():
    result = make_result(sinks=(), meta={})
    bare = dataclasses.replace(result.steps[0], candidates=(), self_check=np.full(3, np.nan))
    page = render_summary(dataclasses.replace(result, steps=(bare,)))
    for absent in ("Candidates", "sink", "saved", "Self-check", "Model"):
        assert absent not in page


NASTY = [
    "<s>",
    "\x1b[2J\x1b]0;x\x07",
    "\u202eevil",
    "日本語" * 30,
    "e\u0301" * 40,
    "\n" * 50,
    "🙂" * 20,
    "\ud800",
    '"' * 40,
]


@pytest.mark.parametrize("groups", [("full", "attn"), ("heads",)])
def test_nasty_tokens_neither_act_on_the_terminal_nor_leave_the_page(groups):
    result = make_result(
        NASTY,
        n_steps=4,
        produced=NASTY[1:5],
        n_layers=128,
        groups=groups,
        sinks=(2,),
        generated_text="".join(NASTY) * 3 + "word " * 60,
        meta={"model": "m\x1b[31m" * 30, "notices": ["日本 " * 80, "x" * 300]},
    )
    page = render_summary(result, ["out\x1b[2J/a.csv"], top=9)
    assert all(char == "\n" or char.isprintable() for char in page)
    assert max(columns(line) for line in page.splitlines()) <= 80
    assert page.splitlines()[-1] == "Results saved to: out\\x1b[2J/a.csv"


def test_columns_line_up_behind_wide_tokens():
    result = make_result(["a", "日本語", "e\u0301e\u0301", "plain"], sinks=())
    rows = [line for line in render_summary(result).splitlines() if "█" in line]
    assert len({columns(row[: row.index("█")]) for row in rows}) == 1
    assert len({len(unicodedata.normalize("NFD", row[: row.index("█")])) for row in rows}) > 1  # len alone would not


def test_what_verify_found_is_told():
    verification = {"triples": [[0, 1, 2], [1, 0, 0]], "error": 3.2e-6}
    page = render_summary(make_result(meta={"verification": verification}))
    assert "Verified by really masking: 2 random places, largest relative error 3.2e-06" in page
