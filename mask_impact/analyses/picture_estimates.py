"""What an estimate says of each image token, by which a search of an image's pixels asks about few regions.

Contributions of the frozen rule (`engine.backward`), from one forward and one backward pass, for all tokens at once. They rank;
what a search says is measured.
"""

from collections.abc import Sequence

import numpy as np

from mask_impact.analyses.looking import Looking
from mask_impact.engine.backward import estimate
from mask_impact.engine.kept import keep
from mask_impact.errors import ExactnessError, ModelError, is_out_of_memory

OF_ESTIMATE = 3  # forward passes that one takes


def contributions(looking: Looking, images: Sequence[int], target: int) -> list[np.ndarray] | None:
    """Of each of the images float64 [rows, columns], what each of its tokens gives to a target: negative where it speaks for it.
    None where no estimate can be had, of which a note says why."""
    asked = looking.asked[target]
    try:
        kept = keep(looking.loaded.model, looking.inputs, len(looking.produced))
        found = estimate(kept.until(looking.n_prompt + asked.steps[-1]), asked.targets)
    except (ExactnessError, ModelError) as error:
        looking.observer.note(f"The search goes without an estimate: {error}")
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        looking.observer.note("The search goes without an estimate: out of memory in a backward pass")
        return None
    looking.rows += OF_ESTIMATE * looking.again.forward_rows()
    by_position = found.every.sum(dim=(0, 1)).double().numpy()
    tokens = looking.tokens
    weights = []
    for number in images:
        mine = np.flatnonzero(tokens.image == number)
        weights.append(np.zeros(looking.prepared.encoded.images[number].grid))
        weights[-1][tokens.row[mine], tokens.column[mine]] = by_position[mine]
    return weights
