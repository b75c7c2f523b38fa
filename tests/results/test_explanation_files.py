"""`NAME.answer.*`: every number of an explanation is in the tables, what was not measured is empty, all is read again."""

import json
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic import make_explanation as made
from synthetic import make_result

from mask_impact.errors import OutputError
from mask_impact.results.explanation_files import load_explanation, save_explanation
from mask_impact.results.explanation_tables import (
    COLUMNS,
    MATRIX,
    ROUTES,
    explanation_table,
    matrix_table,
    routes_table,
)
from mask_impact.results.explanations import Agreement, Evidence, ExplainedTarget, HeadCut, TokenSet
from mask_impact.results.store import load_result, save


def test_the_table_has_every_number_and_leaves_empty_what_was_not_measured():
    frame = explanation_table(made()).to_pandas()
    assert tuple(frame.columns) == COLUMNS
    assert frame["token"].tolist() == ["the", " cat", "image 0 [0, 0]"]
    assert frame["positions"].tolist() == ["0", "1", "2"]
    assert frame["kind"].tolist() == ["text", "text", "image"]
    assert frame["target"].unique().tolist() == [" mat"]
    np.testing.assert_allclose(frame["contribution"], [-0.5, 0.25, -3.0])
    np.testing.assert_allclose(frame["estimate_local"], [-0.25, 0.0, -1.0])
    np.testing.assert_allclose(frame["logprob_change"], [-0.4, np.nan, -2.5])
    np.testing.assert_allclose(frame["kl_divergence"], [0.1, np.nan, 2.0])
    assert frame["top1_token"].tolist()[::2] == [" mat", " <b>"]
    assert frame["top1_token"].isna().tolist() == [False, True, False]
    assert frame["row"].isna().tolist() == [True, True, False]
    assert frame["control"].tolist() == [True, False, False]
    assert frame["necessary"].tolist() == frame["sufficient"].tolist() == [False, False, True]


def test_groups_stand_with_their_positions_and_in_no_cell():
    found = made(positions=((0, 1), (1,), (2,)), kinds=("group", "text", "image"))
    frame = explanation_table(found).to_pandas()
    assert frame["positions"].tolist() == ["0 1", "1", "2"]
    assert frame["column"].isna().tolist() == [True, True, False]


def test_routes_and_matrix_have_a_row_for_each_number():
    found = made(heads=HeadCut(((0, 1),), -1.0, " <b>", -0.25))
    route = replace(found.targets[0].routes[0], layers=(1, 1), logprob_change=-2.0)
    found = replace(
        found, targets=(replace(found.targets[0], routes=(route,)),), matrix=np.arange(3, dtype=np.float32)[None]
    )
    frame = routes_table(found).to_pandas()
    assert tuple(frame.columns) == ROUTES
    assert frame[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert frame["estimate_local"].tolist() == frame["contribution"].tolist() == [-0.5, 0.25, -1.0, 0.0]
    assert frame["cut"].tolist() == [False, False, True, True]
    assert frame["logprob_change"].fillna(9).tolist() == [9, 9, -2.0, -2.0]
    frame = matrix_table(found).to_pandas()
    assert tuple(frame.columns) == MATRIX
    assert frame["contribution"].tolist() == [0, 1, 2]
    assert frame["target"].unique().tolist() == [" mat"]
    assert frame["image"].fillna(-1).tolist() == [-1, -1, 0]


def test_all_formats_say_the_same_and_the_meta_file_how_far_the_estimates_hold(tmp_path):
    paths = save_explanation(made(), tmp_path / "run", "csv,json,parquet", command="as typed")
    names = ["run.answer.csv", "run.answer.json", "run.answer.parquet", "run.answer.meta.json"]
    assert [path.name for path in paths] == names
    read = [pd.read_csv(paths[0]), pd.DataFrame(json.loads(paths[1].read_text())), pq.read_table(paths[2]).to_pandas()]
    for frame in read:
        np.testing.assert_allclose(frame["logprob_change"].astype(float), [-0.4, np.nan, -2.5], rtol=1e-6)
        assert frame["token"].tolist() == ["the", " cat", "image 0 [0, 0]"]
    meta = json.loads(paths[3].read_text())
    assert meta["run"] == {"model": "tiny", "budget": 12, "command": "as typed"}
    (target,) = meta["targets"]
    assert (target["measured"], target["units"], target["reliable"], target["forwards"]) == (2, 3, False, 1.5)
    assert target["agreement"]["rho"] == 1.0


def same(one, other):
    """Equal in every field, arrays with their dtypes."""
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, field.name
            np.testing.assert_array_equal(left, right)
        elif isinstance(left, tuple) and left and hasattr(left[0], "__dataclass_fields__"):
            assert len(left) == len(right)
            for a, b in zip(left, right, strict=True):
                same(a, b)
        elif hasattr(left, "__dataclass_fields__"):
            same(left, right)
        elif isinstance(left, float) and np.isnan(left):
            assert np.isnan(right), field.name
        elif field.name != "meta":
            assert left == right, field.name


def random_explanation(seed):
    """Any number of targets and sets, with and without what may be missing."""
    rng = np.random.default_rng(seed)
    nan = float("nan")
    found = made(measured=tuple(rng.random(3) < 0.5))
    found = replace(found, tokens=found.tokens.extended([5, 6, 7], [" on", " it", "."], ["text"] * 3))
    (target,) = found.targets

    def some_set():
        places = tuple(sorted(rng.permutation(3)[: rng.integers(1, 4)].tolist()))
        return TokenSet(places, bool(rng.random() < 0.5), "\x1b\n", True) if rng.random() < 0.7 else None

    targets = []
    for step in range(rng.integers(1, 4)):
        evidence = tuple(
            Evidence(kind, True, some_set(), some_set(), bool(rng.random() < 0.5), float(rng.random()))
            for kind in ("image", "text")[: rng.integers(0, 3)]
        )
        routed = replace(target.routes[0], layers=(0, 1), logprob_change=-0.5)
        targets.append(
            replace(
                target,
                steps=(step, step + 1),
                token_ids=(step, 7),
                contribution=rng.normal(size=3).astype(np.float32),
                logprob_change=np.where(rng.random(3) < 0.5, rng.normal(size=3), np.nan).astype(np.float32),
                top1=np.full(3, 9),
                instead=(3, " dog") if rng.random() < 0.5 else None,
                reliable=[None, True, False][rng.integers(3)],
                agreement=Agreement(2, nan, nan, 1.0, nan),
                evidence=evidence,
                routes=(routed,) if rng.random() < 0.5 else (),
                heads=HeadCut(((0, 1), (1, 0)), -1.0, " x", -0.1) if rng.random() < 0.5 else None,
            )
        )
    matrix = rng.normal(size=(4, 3)).astype(np.float32) if rng.random() < 0.5 else None
    return replace(found, targets=tuple(targets), matrix=matrix)


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_again_is_what_was_saved(tmp_path, form, seed):
    found = random_explanation(seed)
    save_explanation(found, tmp_path / "run", form)
    same(load_explanation(tmp_path / "run"), found)


def test_a_result_brings_its_answer_and_one_without_leaves_the_one_of_the_same_question_alone(tmp_path):
    meta = {"model": "tiny", "prompt": "Where?", "images": ["a.png"]}
    result = replace(make_result(), meta=meta, answer=replace(made(), meta=meta))
    saved = save(result, tmp_path / "run")
    assert {path.name for path in saved.paths} >= {"run.csv", "run.answer.csv", "run.answer.meta.json"}
    same(load_result(tmp_path / "run").answer, result.answer)
    saved = save(replace(result, answer=None), tmp_path / "run")
    assert saved.removed == ()
    assert (tmp_path / "run.answer.csv").exists()
    assert load_result(tmp_path / "run").answer is None


def test_files_of_two_runs_are_told_apart(tmp_path):
    save(replace(make_result(), answer=made()), tmp_path / "run")
    save_explanation(made(contribution=np.zeros(3, dtype=np.float32)), tmp_path / "other", "csv")
    (tmp_path / "run.answer.csv").write_bytes((tmp_path / "other.answer.csv").read_bytes())
    with pytest.raises(OutputError, match="does not hold the numbers of the run"):
        load_result(tmp_path / "run")
    (tmp_path / "run.answer.meta.json").write_bytes((tmp_path / "other.answer.meta.json").read_bytes())
    with pytest.raises(OutputError, match=r"run\.answer\.meta\.json is not of the run in"):
        load_result(tmp_path / "run")


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_a_damaged_meta_file_is_one_line(tmp_path, damage):
    save_explanation(made(), tmp_path / "run")
    (tmp_path / "run.answer.meta.json").write_text(damage)
    with pytest.raises(OutputError, match=r"run\.answer\.meta\.json") as caught:
        load_explanation(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_texts_that_are_no_utf_8_are_written_as_what_can_be(tmp_path):
    paths = save_explanation(made(names=("\ud800", "=1+1", "<|image_pad|>")), tmp_path / "run")
    assert pd.read_csv(paths[0])["token"].tolist()[:2] == ["\ufffd", "=1+1"]
    assert load_explanation(tmp_path / "run").targets[0].names[0] == "\ufffd"


def test_what_was_measured_ranks_before_what_was_estimated():
    (target,) = made().targets
    assert target.ranked() == [2, 0, 1]
    assert target.ranked(1) == [2]
    with pytest.raises(ValueError, match="control has 2 entries"):
        ExplainedTarget(**vars(target) | {"control": np.zeros(2, dtype=bool)})


def test_what_is_named_first_is_content_disjoint_and_as_fine_as_it_can_be():
    (target,) = made().targets
    n = 5
    positions = ((0, 1, 2, 3), (0, 1), (0,), (4,), (5,))
    change = np.array([-5.0, -4.5, -1.0, -6.0, -2.0], dtype=np.float32)
    arrays = {name: np.zeros(n, dtype=np.float32) for name in ("contribution", "estimate_local", "kl_divergence")}
    whole = replace(
        target, names=tuple("abcde"), positions=positions, kinds=("region",) * n, logprob_change=change, **arrays,
        top1=np.zeros(n, dtype=np.int64), differs=np.zeros(n, dtype=bool), control=np.zeros(n, dtype=bool),
        content=np.array([True, True, True, False, True]), evidence=(),
    )  # fmt: skip
    # d is no content; of a the part b has nearly all of it, and c too little; e stands alone.
    assert whole.used() == [1, 4]
    assert whole.used(1) == [1]
    assert replace(whole, content=np.zeros(n, dtype=bool)).used() == [3, 1, 4]  # where nothing is content all counts
