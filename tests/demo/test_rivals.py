"""The references of other methods obey what their papers say of them, so that beating them means something."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mask_impact

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench_truth as truth
import rivals
from bench_rivals import told


@pytest.fixture(scope="module")
def loaded():
    return mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def case(loaded):
    cases = [truth.prepare(loaded, sample) for sample in truth.draw_samples(2, 7)]
    return truth.answered(loaded, cases)[0]


@pytest.mark.slow
def test_integrated_gradients_add_up_to_what_the_picture_adds_to_the_logit(loaded, case, monkeypatch):
    """Completeness, to the rule's error."""
    monkeypatch.setattr(rivals, "POINTS", 64)
    token = rivals._token(loaded, case)

    @torch.no_grad()
    def logit(share):
        grabbed = []
        real = torch.Tensor.backward
        monkeypatch.setattr(
            torch.Tensor, "backward", lambda self: (grabbed.append(float(self.detach())), real(self))[1]
        )
        with torch.enable_grad():
            rivals._leaves(loaded, case, token, share)
        monkeypatch.setattr(torch.Tensor, "backward", real)
        return grabbed[0]

    whole = logit(1.0) - logit(
        0.5 / rivals.POINTS
    )  # the first point: below it the norms turn next to nothing into a step
    assert rivals.integrated_gradients(loaded, case).sum() == pytest.approx(whole, rel=0.1)


def test_input_times_gradient_is_the_derivative_by_a_common_factor(loaded, case):
    """Of all cells together: what a little less of them does to the logit."""
    grabbed = []
    real = torch.Tensor.backward
    token = rivals._token(loaded, case)
    for share in (1.0, 0.999):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda self: (grabbed.append(float(self.detach())), real(self))[1])
            rivals._leaves(loaded, case, token, share)
    slope = (grabbed[0] - grabbed[1]) / 0.001
    assert rivals.gradient_times_input(loaded, case).sum() == pytest.approx(slope, rel=0.05, abs=0.02)


def test_rollout_and_routes_share_out_no_more_than_there_is(loaded, case):
    for method in (rivals.rollout, rivals.information_flow_routes):
        scores = method(loaded, case)
        assert (scores >= 0).all()
        assert 0 < scores.sum() <= 1 + 1e-5


@pytest.mark.slow
def test_every_method_scores_every_cell_and_leaves_the_model_as_it_was(loaded, case, monkeypatch):
    monkeypatch.setattr(rivals, "POINTS", 2)
    before = loaded.model.config._attn_implementation, [one.requires_grad for one in loaded.model.parameters()]
    for name, method in rivals.METHODS.items():
        scores = method(loaded, case)
        assert scores.shape == case.figures.shape, name
        assert np.isfinite(scores).all(), name
        assert scores.std() > 0, name
    after = loaded.model.config._attn_implementation, [one.requires_grad for one in loaded.model.parameters()]
    assert after == before


def test_what_is_told_of_scores(case):
    n = len(case.figures)
    scores = np.zeros(n)
    scores[case.truth], scores[(case.truth + 1) % n] = 3.0, 1.0
    found = told(scores, case)
    assert (found["first"], found["mass"], found["in 5"]) == (1.0, 0.75, 1.0)
    assert told(-scores, case)["mass"] == 0.0
