"""What the benchmarks that hold measures against a known truth share: the first word of an answer, what hiding does to it, and
shares with their intervals."""

from collections.abc import Sequence

import numpy as np
import torch

from mask_impact.engine.effects import StepEffects, measure_effects
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.variants import each_window_and_group
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import EncodedPrompt


@torch.no_grad()
def first_word(loaded: LoadedModel, encoded: EncodedPrompt) -> str:
    """The answer's first token."""
    inputs = {name: value.to(loaded.model.device) for name, value in encoded.inputs.items()}
    logits = loaded.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    return loaded.tokenizer.decode([int(logits.argmax())]).strip()


@torch.no_grad()
def effects_of(
    loaded: LoadedModel, inputs: dict[str, torch.Tensor], groups: Sequence[Sequence[int]], queries: str = "all"
) -> StepEffects:
    """What hiding each group of positions, in all layers, does to the model's own next token; queries: from `all`, or from
    the `last` one alone."""
    # No local measure is wanted: the engine only keeps states.
    with RidingEngine(loaded.model, plans=[SequencePlan(n_steps=0)], keep_states=queries) as engine:
        logits = loaded.model(**inputs).logits[0, -1]
        variants = each_window_and_group(groups, engine.n_positions, len(engine.decoder.layers), "all", queries)
        return measure_effects(engine, variants, logits)


def wilson(n_hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n_hits in n."""
    share, square = n_hits / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * (share * (1 - share) / n + square / (4 * n * n)) ** 0.5 / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(hits: np.ndarray, digits: int = 0) -> str:
    """A share with its interval, such as `87 [81,91]`; digits: behind the point of the share."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{100 * hits.mean():.{digits}f} [{100 * low:.0f},{100 * high:.0f}]"
