"""Real photographs and odd pictures through every path: read, encoded, measured, written, drawn, read again."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_impact.api.functions import analyze
from mask_impact.commands.scripts import main_vl
from mask_impact.models import loading
from mask_impact.results import store


def bundled_photographs():
    """Folder of scikit-image's own pictures, None where it is not installed."""
    spec = importlib.util.find_spec("skimage")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


PHOTOGRAPHS = {
    "astronaut.png": "colour", "coffee.png": "colour", "rocket.jpg": "JPEG", "retina.jpg": "large and square",
    "hubble_deep_field.jpg": "large", "camera.png": "grey", "horse.png": "with transparency", "multipage.tif": "TIFF, pages",
    "no_time_for_that_tiny.gif": "GIF, frames",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo_model():
    return loading.load("demo", kind="vl")


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOGRAPHS, ids=[f"{name}: {what}" for name, what in PHOTOGRAPHS.items()])
def test_a_photograph_runs_through_every_path(name, demo_model, tmp_path):
    folder = bundled_photographs()
    if folder is None:
        pytest.skip("scikit-image, whose photographs these are, is not installed: pip install scikit-image")
    result = analyze(demo_model, "What is this?", images=[folder / name], answer=name == "coffee.png")
    image, (step,) = result.images[0], result.steps
    with Image.open(folder / name) as original:
        assert image.size == original.size
    assert image.n_tokens == result.tokens.kinds.count("image") <= 64
    assert np.isfinite(step.l2).all()
    assert (step.l2[:, result.tokens.image[step.positions] >= 0, 0] > 0).all()
    assert step.self_check.max() < 0.03
    result.save(tmp_path / "photo")
    assert (store.load_result(tmp_path / "photo").steps[0].l2 == step.l2).all()


ODD = {
    "one-pixel": lambda: Image.new("RGB", (1, 1), "red"),
    "tall": lambda: Image.new("RGB", (8, 1600), "red"),
    "wide-shrunk": lambda: Image.new("RGB", (4000, 8), "red"),
    "large": lambda: Image.new("RGB", (4000, 4000), "red"),
    "16-bit": lambda: Image.fromarray(np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)),
    "transparent": lambda: Image.new("RGBA", (64, 48), (255, 0, 0, 90)),
    "cmyk": lambda: Image.new("CMYK", (64, 48), (0, 255, 255, 0)),
}


MODES = {"one-pixel": "text", "16-bit": "vision"}  # the others: both


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_runs_through_the_script(kind, vl_checkpoint, tmp_path, capsys):
    """Edges beyond 1:200 are more than the processor takes; shrunk to 200 pixels, with one left on the other side, they fit."""
    mask_mode = MODES.get(kind, "both")
    file = tmp_path / ("picture.tif" if kind == "cmyk" else "picture.png")
    ODD[kind]().save(file)
    argv = [
        "--model",
        str(vl_checkpoint),
        "--image",
        str(file),
        "--prompt",
        "the cat",
        "--mask-mode",
        mask_mode,
        "--plots",
    ]
    argv += ["--max-image-resolution", "200"] if "shrunk" in kind else []
    assert main_vl([*argv, "--output-dir", str(tmp_path / "out"), "--num-tokens", "1"]) == 0
    assert "Self-check" in capsys.readouterr().out
    result = store.load_result(tmp_path / "out" / "vl_masking_results")
    with Image.open(file) as original:
        assert result.images[0].size == original.size
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    patches = {"vl_masking_results.patches.png"} if mask_mode != "text" else set()
    assert written == {"vl_masking_results.card.png", "vl_masking_results.layers.png"} | patches
