"""How exact the numbers are on a model: measured again by really masking, and held against a stated bound.

The prompts are short and fixed, so that two machines measure the same.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mask_impact.analyses import impact
from mask_impact.analyses.generation import on_input_device
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import prepare
from mask_impact.analyses.settings import MOST_CHECKS, RunSettings
from mask_impact.engine.effect_verification import verify_effects
from mask_impact.engine.kept import keep
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.errors import ExactnessError, ModelError
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.images import Picture, read_pictures

# The largest relative difference that passes, by the dtype of the weights. What is measured in float32 agrees to rounding, and
# the norms of a float64 model work in float32 too; in half precision the model's own rows are rounded, while the comparison
# runs on a float32 copy of the layer.
BOUNDS = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 1e-1, "float16": 2e-2}
TEXTS = ("What is 2+2?", "The cat sat on the mat. Where did the cat sit?")
N_EFFECTS = 4  # of each prompt
SIDE = 96  # pixels of the picture for vision-language models


@dataclass(frozen=True)
class Check:
    """One prompt. self_check: the largest relative difference between the model's own rows and their recomputation; error,
    median: the largest and the median relative difference between an L2 distance and the one by really masking, over n_triples
    (step, layer, token); effect_error: the largest between an effect on the answer and the one in a whole pass of the model, over
    n_effects tokens that are hidden from every query in all layers, None where there are none."""

    prompt: str
    n_tokens: int
    self_check: float
    error: float
    median: float
    n_triples: int
    effect_error: float | None = None
    n_effects: int = 0


@dataclass(frozen=True)
class OfLayer:
    """The same of one layer over all prompts."""

    layer: int
    error: float
    median: float
    n_triples: int


@dataclass(frozen=True)
class Exactness:
    """The checks of a model, and the bound that they are held against. layers: those of which something was masked; others: those
    in which nothing can be hidden; no_effects: why effects, estimates and knockouts can't be had, None where they can."""

    model: str
    dtype: str
    device: str
    bound: float
    checks: tuple[Check, ...]
    layers: tuple[OfLayer, ...]
    others: tuple[int, ...]
    no_effects: str | None

    @property
    def passed(self) -> bool:
        """Whether every error is at most the bound (no number is not)."""
        errors = [check.error for check in self.checks]
        errors += [check.effect_error for check in self.checks if check.effect_error is not None]
        return all(error <= self.bound for error in errors)


def measure(loaded: LoadedModel, n_triples: int = 12, n_steps: int = 2, observer: Observer | None = None) -> Exactness:
    """Measure a model: of each prompt n_triples, and each layer at least once, and a few effects. UsageError for weights that
    can't be written out, ExactnessError where the engine itself refuses it."""
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    n_layers = loaded.config.get_text_config().num_hidden_layers
    settings = RunSettings(num_tokens=n_steps, verify=min(max(n_triples, n_layers), MOST_CHECKS))
    checks, of_layers, no_effects = [], defaultdict(list), None
    for prompt, pictures in _prompts(loaded):
        result = impact.run(loaded, prompt, settings, pictures, observer=observer)
        found = result.meta["verification"] or {"triples": (), "errors": (), "error": float("nan")}
        own = np.concatenate([step.self_check for step in result.steps])
        shown = prompt if not pictures else f"{prompt} (with an image)"
        errors, effects = found["errors"], None
        try:
            effects = _effects(loaded, prompt, pictures, dtype)
        except (ExactnessError, ModelError) as error:
            no_effects = str(error)
        checks.append(
            Check(
                shown, result.n_prompt, float(np.nanmax(own)), found["error"], _median(errors), len(errors),
                max(effects) if effects else None, len(effects or ()),
            )
        )  # fmt: skip
        for (_, layer, _), error in zip(found["triples"], errors, strict=True):
            of_layers[layer].append(error)
    if not of_layers:
        raise ExactnessError("nothing could be masked in any layer: how exact the numbers are can't be said")
    layers = [OfLayer(layer, float(np.max(of)), _median(of), len(of)) for layer, of in sorted(of_layers.items())]
    others = tuple(layer for layer in range(n_layers) if layer not in of_layers)
    where = str(loaded.model.device)
    return Exactness(loaded.name, dtype, where, BOUNDS[dtype], tuple(checks), tuple(layers), others, no_effects)


def _effects(loaded: LoadedModel, prompt: str, pictures: tuple[Picture, ...], dtype: str) -> tuple[float, ...] | None:
    """Relative errors of some effects behind a prompt. None in half precision: there a whole pass is rounded more coarsely than
    an effect, and it is only seen whether there are any. ExactnessError or ModelError where there are none."""
    encoded = prepare(loaded, prompt, RunSettings(num_tokens=1), pictures).encoded
    inputs = on_input_device(loaded.model, encoded.inputs)
    with owned(decoder_of(loaded.model)):
        found = verify_effects(keep(loaded.model, inputs), inputs, N_EFFECTS)
    return found.errors if dtype in ("float32", "float64") else None


def _median(errors: Sequence[float]) -> float:
    return float(np.median(errors)) if len(errors) else float("nan")


def _prompts(loaded: LoadedModel) -> Iterator[tuple[str, tuple[Picture, ...]]]:
    for text in TEXTS:
        yield text, ()
    if loaded.kind == "vl":
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        pixels[SIDE // 3 : 2 * SIDE // 3, SIDE // 3 : 2 * SIDE // 3] = (220, 40, 40)
        yield "What is in the image?", read_pictures([Image.fromarray(pixels)])
