"""`NAME.answer.*`: every number of an explanation is in the table, and what was not measured is empty."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic import make_explanation as made

from mask_impact.results.explanation_files import COLUMNS, explanation_table, save_explanation
from mask_impact.results.explanations import ExplainedStep


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


def test_all_formats_say_the_same_and_the_meta_file_how_far_the_estimates_hold(tmp_path):
    paths = save_explanation(made(), tmp_path / "run", "csv,json,parquet", command="as typed")
    assert [path.name for path in paths] == [
        "run.answer.csv",
        "run.answer.json",
        "run.answer.parquet",
        "run.answer.meta.json",
    ]
    read = [pd.read_csv(paths[0]), pd.DataFrame(json.loads(paths[1].read_text())), pq.read_table(paths[2]).to_pandas()]
    for frame in read:
        np.testing.assert_allclose(frame["logprob_change"].astype(float), [-0.4, np.nan, -2.5], rtol=1e-6)
        assert frame["token"].tolist() == ["the", " cat", "image 0 [0, 0]"]
    meta = json.loads(paths[3].read_text())
    assert meta["run"] == {"model": "tiny", "command": "as typed"}
    (step,) = meta["steps"]
    assert (step["measured"], step["groups"], step["reliable"], step["forwards"]) == (2, 3, False, 1.5)
    assert step["agreement"]["rho"] == 1.0


def test_texts_that_are_no_utf_8_are_written_as_what_can_be(tmp_path):
    paths = save_explanation(made(names=("\ud800", "=1+1", "<|image_pad|>")), tmp_path / "run")
    assert pd.read_csv(paths[0])["token"].tolist()[:2] == ["\ufffd", "=1+1"]


def test_what_was_measured_ranks_before_what_was_estimated():
    (step,) = made().steps
    assert step.ranked() == [2, 0, 1]
    assert step.ranked(1) == [2]
    with pytest.raises(ValueError, match="control has shape"):
        ExplainedStep(**vars(step) | {"control": np.zeros(2, dtype=bool)})
