"""On a GPU the numbers are those of the CPU. Skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_inputs, tiny_model

import mask_impact
from mask_impact.engine import replay
from mask_impact.engine.backward import estimate
from mask_impact.engine.kept import keep
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group

PICTURE = Path(__file__).parents[2] / "examples" / "shapes.png"
QUESTION = "What color is the circle?"

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Rows go together as they do on a GPU."""
    monkeypatch.setattr(replay, "ROWS_TOGETHER", {})
    monkeypatch.setattr(replay, "ROWS_OF_A_RUN", {})


def everything(name, device, dtype=torch.float32):
    """Local maps, effects of single positions, and estimates of a tiny model."""
    model = tiny_model(name, dtype=dtype).to(device)
    inputs = {key: value.to(device) for key, value in tiny_inputs(model, 9).items()}
    n, n_layers = inputs["input_ids"].shape[1], model.config.get_text_config().num_hidden_layers
    with torch.no_grad(), RidingEngine(model, plans=[SequencePlan()], keep_states="all") as engine:
        logits = model(**inputs).logits[0, -1:]
        variants = each_window_and_group([(one,) for one in range(n)], n, n_layers, 2, "all")
        target = Target(n - 1, 5)
        found = measure_targets(engine, variants, [target], logits)
        directly = measure_targets(engine, variants, [target], logits, directly=True)
        local = engine.steps[0].l2
    sums = [estimate(keep(model, inputs), [target], rule).every for rule in ("frozen", "gradient")]
    return local.cpu(), found.logprob_change, directly.logprob_change, *sums


@pytest.mark.parametrize(
    ("name", "device"),
    [*((name, "cpu") for name in ("qwen3", "gemma3_text", "qwen3_vl_moe")),
     *(pytest.param(name, "cuda", marks=needs_gpu) for name in ARCHITECTURES)],
)  # fmt: skip
@pytest.mark.usefixtures("as_on_a_gpu")
def test_numbers_are_those_of_a_cpu(name, device, monkeypatch):
    """Of a GPU; and of a CPU that is treated as one."""
    elsewhere = everything(name, device)
    monkeypatch.undo()
    for one, other in zip(elsewhere, everything(name, "cpu"), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4 * np.abs(other).max())


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_a_gpu_says_what_a_run_on_a_cpu_says(dtype):
    on_cpu, on_gpu = (
        mask_impact.analyze(
            mask_impact.load("demo", device=where, dtype=dtype), QUESTION, images=PICTURE, effect=True, num_tokens=1
        )
        for where in ("cpu", "cuda")
    )
    assert on_gpu.generated_text == on_cpu.generated_text
    assert on_gpu.answer.top(2) == on_cpu.answer.top(2)
    least = 0.99999 if dtype == "float32" else 0.99
    frames = [result.to_frame() for result in (on_gpu, on_cpu)]
    for column in ("l2_distance", "cosine_distance"):
        assert np.corrcoef(*(frame[column] for frame in frames))[0, 1] > least, column
    effects = [result.steps[0].effect.logprob_change for result in (on_gpu, on_cpu)]
    assert np.corrcoef(*(np.ravel(one) for one in effects))[0, 1] > least


@needs_gpu
def test_a_gpu_gives_its_memory_back():
    model = tiny_model("qwen3").cuda()
    inputs = {key: value.cuda() for key, value in tiny_inputs(model, 9).items()}
    model(**inputs)
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        with torch.no_grad(), RidingEngine(model, keep_states="all"):
            model(**inputs)
    assert torch.cuda.memory_allocated() <= before + 2**20
