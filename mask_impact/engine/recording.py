"""What is kept of the engine's forward passes: the measurements of a layer, and of a step."""

from dataclasses import dataclass

import torch

from mask_impact.engine.attention import Lengths, cosine_distance


@dataclass(frozen=True)
class RawStep:
    """The measurements of one forward pass, on the CPU; see records.StepRecord for the meaning of the fields."""

    positions: torch.Tensor  # int64 [P_t]
    l2: torch.Tensor  # [L, P_t, V]
    cosine: torch.Tensor  # [L, P_t, V]
    attention: torch.Tensor  # [L, S_t]
    baseline_norm: torch.Tensor  # [L, V]
    self_check: torch.Tensor  # [L]
    noise_floor: torch.Tensor  # [L]
    seconds: float
    received: torch.Tensor | None  # [L, S_t], see attention.attention_received; None where not all positions are new


@dataclass(frozen=True)
class LayerRecord:
    """One layer at one step, on the layer's device; the fields are rows of a RawStep's.

    l2, along, across: [P, V], see attention.Lengths; attention: [S], mean over heads; both zero for positions out of sight;
    baseline_norm: [V]; self_check, noise_floor: scalars.
    """

    l2: torch.Tensor
    along: torch.Tensor
    across: torch.Tensor
    attention: torch.Tensor
    baseline_norm: torch.Tensor
    self_check: torch.Tensor
    noise_floor: torch.Tensor


def gather(
    records: list[LayerRecord], positions: torch.Tensor, seconds: float, received: list[torch.Tensor]
) -> RawStep:
    """The step that the records of its layers make, on the CPU. positions: int64 [P_t]; received: [S_t] of each layer, or
    nothing."""

    def stacked(name: str) -> torch.Tensor:
        values = [getattr(record, name) for record in records]
        on_one_device = len({value.device for value in values}) == 1
        return torch.stack(values).cpu() if on_one_device else torch.stack([value.cpu() for value in values])

    l2, baseline_norm = stacked("l2"), stacked("baseline_norm")
    return RawStep(
        positions=positions,
        l2=l2,
        cosine=cosine_distance(Lengths(l2, stacked("along"), stacked("across"), baseline_norm.unsqueeze(1))),
        attention=stacked("attention"),
        baseline_norm=baseline_norm,
        self_check=stacked("self_check").double(),
        noise_floor=stacked("noise_floor").double(),
        seconds=seconds,
        received=torch.stack([one.cpu() for one in received]) if received else None,
    )
