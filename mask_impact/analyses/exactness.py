"""How exact the numbers are on a model: measured again by really masking, and held against a stated bound.

The prompts are short and fixed, so that two machines measure the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mask_impact.analyses import impact
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.settings import RunSettings
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.images import Picture, read_pictures

# The largest relative difference that passes, by the dtype of the weights. What is measured in float32 agrees to rounding, and
# the norms of a float64 model work in float32 too; in half precision the model's own rows are rounded, while the comparison
# runs on a float32 copy of the layer.
BOUNDS = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 1e-1, "float16": 2e-2}
TEXTS = ("What is 2+2?", "The cat sat on the mat. Where did the cat sit?")
SIDE = 96  # pixels of the picture for vision-language models


@dataclass(frozen=True)
class Check:
    """One prompt. self_check: the largest relative difference between the model's own rows and their recomputation; error: the
    largest relative difference between an L2 distance and the one by really masking, over n_triples (step, layer, token)."""

    prompt: str
    n_tokens: int
    self_check: float
    error: float
    n_triples: int


@dataclass(frozen=True)
class Exactness:
    """The checks of a model, and the bound that they are held against."""

    model: str
    dtype: str
    device: str
    bound: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every error is at most the bound (no number is not)."""
        return all(check.error <= self.bound for check in self.checks)


def measure(loaded: LoadedModel, n_triples: int = 12, n_steps: int = 2, observer: Observer | None = None) -> Exactness:
    """Measure a model; UsageError for a quantised one, ExactnessError where the engine itself refuses it."""
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    settings = RunSettings(num_tokens=n_steps, verify=n_triples)
    checks = []
    for prompt, pictures in _prompts(loaded):
        result = impact.run(loaded, prompt, settings, pictures, observer=observer)
        found = result.meta["verification"]
        errors = np.concatenate([step.self_check for step in result.steps])
        shown = prompt if not pictures else f"{prompt} (with an image)"
        checks.append(Check(shown, result.n_prompt, float(errors.max()), found["error"], len(found["triples"])))
    return Exactness(loaded.name, dtype, str(loaded.model.device), BOUNDS[dtype], tuple(checks))


def _prompts(loaded: LoadedModel) -> Iterator[tuple[str, tuple[Picture, ...]]]:
    for text in TEXTS:
        yield text, ()
    if loaded.kind == "vl":
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        pixels[SIDE // 3 : 2 * SIDE // 3, SIDE // 3 : 2 * SIDE // 3] = (220, 40, 40)
        yield "What is in the image?", read_pictures([Image.fromarray(pixels)])
