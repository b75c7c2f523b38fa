"""What follows from measured regions and parts of features: which matter most, and which two belong together. Knows records."""

import numpy as np

from mask_impact.results.deepstack import DeepstackTarget
from mask_impact.results.patches import TOTAL, PatchTarget


def weakest_change(target: PatchTarget, place: int) -> float:
    """What replacing a region does, nats, of the fill that does least, which all of them show."""
    return max(float(target.logprob_change[row]) for row in target.rows(place, route=TOTAL))


def strongest_part(target: DeepstackTarget) -> int:
    """The part that adds most."""
    return int(np.argmax(target.shapley))


def strongest_pair(target: DeepstackTarget) -> tuple[int, int, float] | None:
    """Two parts and their interaction, nats, the largest there is; None for a single part."""
    if len(target.shapley) < 2:
        return None
    sizes = np.abs(np.triu(target.interaction, 1))
    one, other = (int(place) for place in np.unravel_index(int(sizes.argmax()), sizes.shape))
    return one, other, float(target.interaction[one, other])
