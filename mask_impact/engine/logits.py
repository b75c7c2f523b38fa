"""From the last layer's outputs of variants to logits, and how far these are from those of what hides nothing.

Shapes: k variants.
"""

import torch
from torch import nn

from mask_impact.engine.kept import Kept
from mask_impact.engine.packing import ByDifferences, OfNothing, Promoted, in_units
from mask_impact.models.architectures import parameter

PROBABLE = 512  # tokens whose differences of logits are not rounded to the weights' dtype


def logits_of(kept: Kept, outputs: torch.Tensor) -> torch.Tensor:
    """Logits [k, vocabulary] of last layers' outputs [k, hidden] of any dtype, by the model's own norm and head."""
    with OfNothing():
        return kept.tail.logits(outputs)


def logit_differences(kept: Kept, outputs: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(the logits of the first of the outputs [vocabulary], how far those of the others are from them [k, vocabulary]); outputs:
    [1 + k, hidden].

    What leaves a bfloat16 head has three digits, and these differences are what effects are: for the tokens that are
    probable, which effects hang on, they are formed in the rows' own dtype.
    """
    tail, head = kept.tail, kept.tail.head
    weight = parameter(head, "weight")
    with Promoted():
        states = tail.states(outputs)
    if type(head) is not nn.Linear or head.bias is not None or not weight.is_floating_point() or tail.cap is not None:
        with OfNothing() as maps:
            own = head(states[:1])
        with ByDifferences(maps.pairs, torch.zeros(len(states) - 1, dtype=torch.int64), scale):
            others = head(states[1:])
        return tail.finished(own)[0], tail.finished(others) - tail.finished(own)
    differences = states[1:] - states[:1]
    narrow, unit = in_units(differences, weight.dtype, scale)
    mapped = head(torch.cat([states[:1].to(weight.dtype), narrow])).to(
        states.dtype
    )  # together: the weights are read once
    own, found = mapped[0], mapped[1:]
    if unit is not None:
        found.mul_(unit.to(found.device))
    if weight.dtype != states.dtype:
        probable = own.topk(min(PROBABLE, len(own))).indices
        rows = weight[probable.to(weight.device)].to(states)
        found[:, probable] = (differences @ rows.t()).to(found.device)
    return (own, found) if tail.scale == 1.0 else (own * tail.scale, found * tail.scale)
