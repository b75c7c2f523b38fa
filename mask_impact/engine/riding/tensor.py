"""The riding tensor: a model's own tensor that carries exact differences of its last row, and the table of rules.

Shapes: B sequences, S positions of each, n variants. A riding tensor is the model's own tensor y [B, S, *row] (or [B * S, *row])
and has z [B, *row], the last position's row as it is before rounding, and d [n, *row], by how much that row differs in each
variant. z and d have the arithmetic's dtype: float64 for a float64 model, else float32. An operation on it does to y what it
always does, and has a rule for z and d; one without a rule raises NoRule. Rules are in `structure`, `linear`, `arithmetic`,
`functions`.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from mask_impact.engine.attention import Lengths, lengths
from mask_impact.engine.riding.pending import Activated, Pending, Piece
from mask_impact.errors import ExactnessError, UnsupportedArchitecture, is_out_of_memory

HALF = (torch.float16, torch.bfloat16)


class NoRule(UnsupportedArchitecture):
    """An operation on a riding tensor for which there is no rule; the message names it."""


class Ride:
    """What the riding tensors of one layer in one forward pass have in common.

    name: of the layer, for messages. entered: [B, S, hidden], what the layer is given. owner: int64 [n], the sequence of each
    variant; None for a single sequence. dtype: the model's. shortcut: whether a variant that has nothing left may take what
    nothing is mapped to. noise_row: whether the last variant of each sequence is none, so that it shows what rounding makes where
    something is opaque. The checks and what is found on the way are filled by rules.
    """

    def __init__(
        self,
        name: str,
        entered: torch.Tensor,
        owner: torch.Tensor | None = None,
        shortcut: bool = True,
        noise_row: bool = True,
    ) -> None:
        self.name, self.entered, self.owner, self.shortcut = name, entered, owner, shortcut
        self.noise_row = noise_row
        self.max_rows: int | None = None  # how many variants may be between two linear maps at once
        self.n_variants = 0
        self.noise: torch.Tensor | None = (
            None  # [B], where there is no such row: what rounding made of an opaque module's result
        )
        self.dtype = entered.dtype
        self.open = True
        self.in_attention = True  # until the module that called the attention is done
        self.noisy = False  # whether something on the way was opaque
        self.attn: list[Lengths] | None = None  # of each sequence, of the first sum with the residual stream
        self.checks: list[torch.Tensor] = []  # [2, B], |own - recomputed| and |own|

    @property
    def half(self) -> bool:
        """Whether the model's dtype holds less than the arithmetic's."""
        return self.dtype in HALF

    @property
    def ends(self) -> list[int]:
        """Of each sequence with variants the last of them."""
        if self.owner is None:
            return [-1]
        owners = self.owner.tolist()
        return [at for at, owner in enumerate(owners) if owners[at + 1 : at + 2] != [owner]]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Of each sequence with variants its number, and which of them are its own: no more than `max_rows` at once."""
        if self.owner is None and self.max_rows is None:
            return ((0, slice(None)),)
        owners = [0] * self.n_variants if self.owner is None else self.owner.tolist()
        most, pieces, start = self.max_rows or len(owners), [], 0
        for at in range(1, len(owners) + 1):
            if at == len(owners) or owners[at] != owners[start] or at - start == most:
                pieces.append((owners[start], slice(start, at)))
                start = at
        return tuple(pieces)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [B, *row] of the sequences as they face differences [n, *row]."""
        return rows if self.owner is None or rows.shape[0] == 1 else rows[self.owner.to(rows.device)]

    def check(self, own: torch.Tensor, recomputed: torch.Tensor) -> None:
        """Hold the model's own rows [B, *row] against z, sequence by sequence."""
        own = own.to(recomputed.dtype).flatten(1)
        both = torch.stack([own - recomputed.flatten(1), own])
        self.checks.append(torch.linalg.vector_norm(both, dim=-1))

    def first_sum(self, z: torch.Tensor, d: torch.Tensor) -> None:
        """Keep what meets the residual stream first."""
        if self.attn is None and not self.in_attention:
            self.attn = self.lengths(z, d)

    def lengths(self, z: torch.Tensor, d: torch.Tensor) -> list[Lengths]:
        """The lengths of d [n, *row] beside z [B, *row], of each sequence, over all of the row."""
        z, d = z.flatten(1), d.flatten(1)
        if self.owner is None:
            return [lengths(z[0], d)]
        return [lengths(row, d[self.owner == number]) for number, row in enumerate(z)]


Rule = Callable[..., Any]
RULES: dict[Callable, Rule] = {}
# What only asks, and is answered about y.
QUESTIONS: set[Callable] = set()
_PROPERTIES = (
    "shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_mps",
    "is_meta", "is_sparse", "is_quantized", "is_nested", "is_xpu", "names", "grad_fn", "_version", "is_mkldnn", "is_sparse_csr",
)  # fmt: skip
_GETTERS = frozenset(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES if hasattr(torch.Tensor, name))


class Riding(torch.Tensor):
    """See the module; lead: how many dimensions stand before the row; n_rows: S; update: [B, *row], what was added to the layer's
    input up to here, None where it is no sum with it; values: gives the variants' own values [n, *row] without cancellation,
    None where they are z + d; boarded: what `linear` made of it, for the next linear map that is given it."""

    z: torch.Tensor
    lead: int
    n_rows: int
    ride: Ride
    update: torch.Tensor | None
    values: Callable[[], torch.Tensor] | None
    boarded: Any

    @staticmethod
    def make(
        y: torch.Tensor,
        z: torch.Tensor,
        d: torch.Tensor | Pending,
        lead: int,
        n_rows: int,
        ride: Ride,
        update=None,
        values=None,
    ) -> "Riding":
        """y that carries z and d, also as a linear map gave them, or not formed yet; NoRule where their rows are not y's."""
        row = y.shape[lead:]
        if z.shape[1:] != row or d.shape[1:] != row:
            raise NoRule(f"rows of shape {tuple(d.shape[1:])} don't fit {tuple(row)}")
        made = torch.Tensor._make_subclass(Riding, y)
        made.z, made.d, made.lead, made.n_rows, made.ride = z, d, lead, n_rows, ride
        made.update, made.values, made.boarded = update, values, None
        made._written = None if y.is_inference() else y._version
        return made

    @property
    def d(self) -> torch.Tensor:
        """The differences [n, *row], in z's dtype."""
        held = self.held
        if held.dtype != self.z.dtype:
            self._d = held = held.to(self.z.dtype)
        return held

    @d.setter
    def d(self, differences: torch.Tensor | Pending) -> None:
        self._d = differences

    @property
    def held(self) -> torch.Tensor:
        """The same in the dtype in which they are held."""
        if not isinstance(self._d, torch.Tensor):
            self._d = self._d.into(self.z.new_empty(self._d.shape))
        return self._d

    @property
    def moved_shape(self) -> torch.Size:
        """[n, *row]."""
        return self._d.shape

    @property
    def pending(self) -> Pending | None:
        """What they follow from, where they are not formed yet."""
        return None if isinstance(self._d, torch.Tensor) else self._d

    @property
    def activated(self) -> Activated | None:
        """The same, where it is an activation."""
        return self._d if isinstance(self._d, Activated) else None

    @property
    def in_pieces(self) -> bool:
        """Whether there are more of them than may be between two linear maps at once."""
        return self.ride.max_rows is not None and self.moved_shape[0] > self.ride.max_rows

    def put(self, out: torch.Tensor) -> None:
        """The differences, written to `out` [n, *row], of any dtype and on any device."""
        if isinstance(self._d, torch.Tensor):
            out.copy_(self._d)
        else:
            self._d.into(out)

    def like(
        self, y: torch.Tensor, z: torch.Tensor, d: torch.Tensor | Pending, lead: int | None = None, **more
    ) -> "Riding":
        """Another one of the same ride. more: n_rows, update, values."""
        n_rows = more.pop("n_rows", self.n_rows)
        return Riding.make(y, z, d, self.lead if lead is None else lead, n_rows, self.ride, **more)

    def mark(self) -> None:
        """z and d belong to y as it is now: what is written into its memory afterwards makes it stale."""
        self.boarded = None
        with torch._C.DisableTorchFunctionSubclass():
            self._written = None if self.is_inference() else self._version

    @property
    def stale(self) -> bool:
        """Whether something was written into y's memory behind the back of this tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self._written is not None and self._written != self._version

    @property
    def plain(self) -> torch.Tensor:
        """y alone."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)

    @property
    def last(self) -> torch.Tensor:
        """[B, *row], the model's own rows of the last position."""
        y = self.plain
        return y.reshape(-1, self.n_rows, *y.shape[self.lead :])[:, -1]

    @property
    def base(self) -> torch.Tensor:
        """z as it faces d: [n, *row], or [1, *row] of a single sequence."""
        return self.ride.spread(self.z)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            rule = RULES.get(function)
            if rule is None and (function in QUESTIONS or function in _GETTERS):
                return function(*args, **kwargs)
            riding = [*riding_in(args), *riding_in(kwargs)]
            ride = next((x.ride for x in riding if x.ride.open), None)
            if ride is None:
                return function(*args, **kwargs)
            name, where = _named(function), ride.name
            if any(not x.ride.open for x in riding):  # left over from another layer: there they are done
                args, kwargs = (replaced(value, lambda x: x if x.ride.open else x.plain) for value in (args, kwargs))
            if any(x._written is not None and x._written != x._version for x in riding):
                raise NoRule(f"{name} in {where}: what it is given was written to in place, so differences are lost")
            if rule is None:
                raise NoRule(f"{name} in {where}: differences have no rule for this operation")
            try:
                return rule(function, *args, **kwargs)
            except NoRule as error:
                raise NoRule(f"{name} in {where}: {error}") from error
            except (TypeError, ValueError, IndexError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                raise NoRule(f"{name} in {where}: used in a way that differences have no rule for: {error}") from error


def riding_in(value: Any) -> list[Riding]:
    """The riding tensors in a value, or in the tuples, lists and mappings that it is made of."""
    if isinstance(value, Riding):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    found = []
    for part in value:
        if isinstance(part, Riding):
            found.append(part)
        elif isinstance(part, tuple | list | dict):
            found += riding_in(part)
    return found


def states_in(value: Any) -> Iterator[torch.Tensor]:
    """The plain tensors of three dimensions in a value, [B, S, hidden], in their order."""
    plain = (x.plain if isinstance(x, Riding) else x for x in _tensors_in(value))
    return (x for x in plain if x.dim() == 3 and x.is_floating_point())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors_in(part)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def replaced(value: Any, change: Callable[[torch.Tensor], Any], kind: type = Riding) -> Any:
    """The value with each tensor of a kind in it changed, in tuples, lists and mappings too."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(part, change, kind) for part in value))
    if type(value) in (tuple, list):
        return type(value)(replaced(part, change, kind) for part in value)
    if isinstance(value, dict) and any(isinstance(part, torch.Tensor | tuple | list | dict) for part in value.values()):
        changed = value.copy()
        for name, part in value.items():
            changed[name] = replaced(part, change, kind)
        return changed
    return value


def _asked(function: Callable) -> str | None:
    """The property that is read, if it is one."""
    asked = getattr(function, "__name__", "") == "__get__"
    return getattr(function.__self__, "__name__", "a property") if asked else None


def _named(function: Callable) -> str:
    return _asked(function) or getattr(function, "__name__", None) or str(function)


_PLACES = (torch.Tensor, torch, functional, torch.special, torch._C._nn, torch._C._special)


def functions_named(*names: str) -> Iterator[Callable]:
    """torch's functions of those names, as methods and as functions."""
    for name in names:
        for place in _PLACES:
            found = getattr(place, name, None)
            if callable(found):  # torch.float is a dtype
                yield found


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Makes rule(function, *args, **kwargs) the rule of torch's functions of those names. Within a rule operations on a riding
    tensor are those on its y."""

    def note(rule: Rule) -> Rule:
        for function in functions_named(*names):
            RULES[function] = rule
        return rule

    return note


def in_place_rule_for(rule: Rule, function: Callable, *names: str) -> None:
    """Makes what `function` and its rule do the rule of functions that write it into their first argument."""

    def write(_, x: torch.Tensor, *args: Any, **kwargs: Any) -> Riding:
        return written(x, rule(function, x, *args, **kwargs))

    rule_for(*names)(write)


def written(x: torch.Tensor, result: Riding) -> Riding:
    """x with the result written into it; NoRule where x can't carry it, or where it can't be seen who else has its memory."""
    if not isinstance(x, Riding):
        raise NoRule("it is written into a tensor that carries no differences")
    if x.is_inference():
        raise NoRule("tensors of inference mode don't tell that they were written to")
    if result.shape != x.shape:
        raise NoRule("it changes its shape in place")
    torch.Tensor.copy_(x, result)
    x.z, x.d, x.update, x.values = result.z, result._d, result.update, result.values
    x.mark()
    return x


def facing(x: Riding, other: Any) -> Any:
    """What of a plain operand meets the last rows: a number as it is, a tensor as [B or 1, *row], or fewer dimensions where it is
    the same for all, in the arithmetic's dtype."""
    if not isinstance(other, torch.Tensor):
        return other
    row = x.dim() - x.lead
    n_lead = other.dim() - row
    if n_lead > x.lead:
        raise NoRule(f"an operand of shape {tuple(other.shape)} makes more dimensions of {tuple(x.shape)}")
    if n_lead > 0:
        other = other.reshape((1,) * (x.lead - n_lead) + tuple(other.shape))
        tail = other.shape[x.lead :]
        if math.prod(other.shape[: x.lead]) == 1:
            other = other.reshape(1, *tail)
        else:
            other = other.expand(*x.shape[: x.lead], *tail).reshape(-1, x.n_rows, *tail)[:, -1]
    return other.to(device=x.z.device, dtype=x.z.dtype)


def refuse_dropout(name: str) -> None:
    """ExactnessError: dropout is active."""
    raise ExactnessError(f"dropout is active in {name}: no two runs are the same; put the model into evaluation mode")
