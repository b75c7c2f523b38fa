"""What stands between a decoder's last layer and its logits: norms and other modules, the head, factors, a cap.

Found in a pass, by which modules are called after the last layer, and by what each makes of what the one before it gave. Shapes:
k rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from mask_impact.errors import ExactnessError, UnsupportedArchitecture

# How far what a module is given may be from a multiple of what the one before it gave, relative.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}

CAPS = ("final_logit_softcapping", "logits_soft_cap")  # what configurations call it
# How far the logits of the model's own last states may be from the model's own logits: rounding of one norm and one map.
SAME = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
ROUNDED = 1e-3  # factors as near to 1 as this are 1


@dataclass(frozen=True)
class Tail:
    """modules: each with the factor that it is given times what was before it, in their order; head: the last one, which makes
    logits; factor: of what it is given; scale: of what it gives; cap: c where the logits are c tanh(logits / c) then."""

    modules: tuple[tuple[float, nn.Module], ...]
    head: nn.Module
    factor: float = 1.0
    scale: float = 1.0
    cap: float | None = None

    def states(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the head is given, [..., hidden], of last layers' outputs [..., hidden]."""
        for factor, module in self.modules:
            outputs = module(_times(outputs, factor))
        return _times(outputs, self.factor)

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """[..., vocabulary], of last layers' outputs [..., hidden]."""
        return self.finished(self.head(self.states(outputs)))

    def finished(self, mapped: torch.Tensor) -> torch.Tensor:
        """Logits of what the head gives."""
        mapped = _times(mapped, self.scale)
        return mapped if self.cap is None else torch.tanh(mapped / self.cap) * self.cap


def check_logits(found: torch.Tensor, logits: torch.Tensor) -> None:
    """ExactnessError where the logits that a tail makes of the model's own last states are not the model's own, both [k,
    vocabulary]: a factor, a cap or a norm is not there as it is known."""
    if not len(logits):
        return
    tolerance = SAME[logits.dtype]
    found, logits = found.detach().double(), logits.to(found.device).double()
    error = float((torch.linalg.vector_norm(found - logits, dim=-1) / torch.linalg.vector_norm(logits, dim=-1)).max())
    if not error <= tolerance:
        raise ExactnessError(
            f"the model's logits differ by {error:.1e} (relative, {tolerance:.1e} allowed) from those that are formed of its "
            "last states: no estimates or effects are given; the model's output is not formed as it was found to be"
        )


def _times(rows: torch.Tensor, factor: float) -> torch.Tensor:
    return rows if factor == 1.0 else rows * factor


def _cap(model: nn.Module) -> float | None:
    config = model.config.get_text_config()
    return next((cap for name in CAPS if (cap := getattr(config, name, None)) is not None), None)


@dataclass
class TailWatch:
    """Sees which modules beside the layers are called, and what each is given and gives for the last position. calls: those since
    the last layer was left."""

    model: nn.Module
    calls: list[tuple[nn.Module, torch.Tensor | None, torch.Tensor]] = field(default_factory=list)

    def beside(self, decoder: nn.Module) -> Iterator[nn.Module]:
        """The modules beside the decoder's lists of layers, and beside each module that the decoder lies in."""
        lists = {id(one) for one in decoder.modules() if isinstance(one, nn.ModuleList)}
        inside = {id(part) for one in decoder.modules() if id(one) in lists for part in one.modules()}
        around = [one for one in self.model.modules() if any(id(part) in lists for part in one.modules())]
        around = [one for one in around if id(one) not in inside]
        for parent in around:
            yield from (one for one in parent.children() if id(one) not in lists and all(one is not a for a in around))

    def note(self, module: nn.Module, args: tuple, output: object) -> None:
        """One of these is called."""
        if isinstance(output, torch.Tensor) and output.dim() > 1:
            given = args[0] if args and isinstance(args[0], torch.Tensor) and args[0].dim() > 1 else None
            self.calls.append((module, None if given is None else _last(given), _last(output)))

    def found(self, final: torch.Tensor, logits: torch.Tensor) -> Tail:
        """final: [..., hidden], the last layer's output; logits: [vocabulary], the model's own at its last position.
        UnsupportedArchitecture where they don't follow."""
        before, factors, tolerance = _last(final), [], TOLERANCE[final.dtype]
        for module, given, made in self.calls:
            factors.append((self._factor(before, given, tolerance), module))
            before = made
        if not factors:
            raise self._unknown()
        cap = _cap(self.model)
        scale = self._factor(before, logits, tolerance) if cap is None else 1.0
        tail = Tail(tuple(factors[:-1]), factors[-1][1], factors[-1][0], scale, cap)
        if not _close(tail.finished(before.double()), logits.double(), tolerance):
            raise self._unknown()
        return tail

    def _factor(self, before: torch.Tensor, given: torch.Tensor | None, tolerance: float) -> float:
        """What the row before is multiplied by to be the one that is given."""
        if given is None or given.shape != before.shape:
            raise self._unknown()
        before, given = before.double(), given.to(before.device).double()
        factor = float(before @ given / before.square().sum().clamp_min(torch.finfo(before.dtype).tiny))
        if not _close(before * factor, given, tolerance):
            raise self._unknown()
        return 1.0 if abs(factor - 1) <= min(tolerance, ROUNDED) else factor

    def _unknown(self) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(
            f"what {type(self.model).__name__} makes of its last layer's output can't be told from the modules that it calls "
            "there: no effects, estimates or knockouts can be had"
        )


def _last(rows: torch.Tensor) -> torch.Tensor:
    """The last row of [..., width]."""
    return rows.detach().reshape(-1, rows.shape[-1])[-1]


def _close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    wanted = wanted.to(found.device)
    error = torch.linalg.vector_norm(found - wanted)
    return bool(error <= tolerance * torch.linalg.vector_norm(wanted))
