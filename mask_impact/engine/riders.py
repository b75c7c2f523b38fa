"""One sequence in one layer while differences ride through the layer's linear maps, in the model's own forward or after it."""

import torch
from torch import nn

from mask_impact.engine.measurement import LayerMeasurement, Passengers, Propagation, Ride


class Rider:
    """One sequence in one layer: its measurement, how far its propagation is, and what of it is in a linear map."""

    def __init__(self, measurement: LayerMeasurement) -> None:
        self.measurement = measurement
        self.propagation: Propagation | None = None
        self.ride: Ride | None = None
        self.passengers: Passengers | None = None
        self.mapped: list[torch.Tensor] = []

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The linear maps that it is in."""
        return self.ride.modules if self.passengers is not None else ()

    def advance(self, mapped: list[torch.Tensor] | None) -> None:
        """Go on to the next linear map."""
        try:
            self.ride = next(self.propagation) if mapped is None else self.propagation.send(mapped)
        except StopIteration:
            self.ride = None

    def board(self, module: nn.Module, own: torch.Tensor) -> list[torch.Tensor]:
        """Its rows for a linear map; own: [in], the model's own row."""
        if self.ride is None or module not in self.ride.modules:
            return []
        self.passengers = self.ride.board(own.dtype, own=own)
        return [rows.to(own.device) for rows in self.passengers.groups]

    def alight(self, module: nn.Module, rows: torch.Tensor, first: int, own: torch.Tensor) -> int:
        """Take its rows, from `first` on, out of what a linear map made of all of them; returns where the next one's begin."""
        if self.passengers is None:
            self.measurement.observe_output(module, own)
            return first
        end = first + self.passengers.n_rows
        mapped, correction = self.passengers.alight(module, rows[first:end])
        self.measurement.observe_output(module, own, correction)
        self.mapped.append(mapped)
        return end

    def advance_if_mapped(self) -> None:
        """Go on when all linear maps of the ride are through."""
        if self.passengers is not None:
            mapped, self.mapped, self.passengers = self.mapped, [], None
            self.advance(mapped)


def propagate_afterwards(measurement: LayerMeasurement, start: int, stop: int) -> None:
    """Carry further masked tokens through the layer's modules once its own forward is done."""

    def map_rows(module: nn.Module, ride: Ride) -> torch.Tensor:
        passengers = ride.board(measurement.dtype)
        # `forward` and not the module itself: that would call the hooks, which wait for the model's own forward.
        return passengers.alight(module, module.forward(passengers.groups[0].unsqueeze(0))[0])[0]

    propagation = measurement.propagate(start, stop)
    try:
        ride = next(propagation)
        while True:
            ride = propagation.send([map_rows(module, ride) for module in ride.modules])
    except StopIteration:
        pass
