"""What is kept of the engine's forward passes: the measurements of a step, and what entered a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mask_impact.engine.attention import Lengths, cosine_distance
from mask_impact.engine.measurement import LayerRecord


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


@dataclass
class LayerInputs:
    """What entered one decoder layer over all steps, for re-measuring it afterwards.

    hidden_states: one [1, n, hidden] for the prompt and one for each further step; position_embeddings likewise;
    visible: for each step bool [S_t], the positions that the last query sees. begun: for each step the one whose pass was given
    the sequence from its beginning, so that what entered from there on is the whole sequence.
    """

    hidden_states: list[torch.Tensor] = field(default_factory=list)
    position_embeddings: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    visible: list[torch.Tensor] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def enter(self, hidden_states: torch.Tensor, position_embeddings: Sequence[torch.Tensor], anew: bool) -> None:
        """A step begins; anew: with the sequence from its beginning."""
        self.begun.append(len(self.hidden_states) if anew else self.begun[-1])
        self.hidden_states.append(hidden_states.detach().cpu())
        self.position_embeddings.append(tuple(part.detach().cpu() for part in position_embeddings))


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
