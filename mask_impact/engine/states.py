"""What each decoder layer was given and what it made of it, kept for running the later layers again (`replay`).

Dimensions: S positions of the sequence, of which the last R are kept as rows: all of them (R = S), or the
last one alone (R = 1); N the last positions whose keys and values are kept, N = S where all rows are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import Cache

from mask_impact.engine.taps import up_to_own

NOT_KEPT = ("hidden_states", "attention_mask", "past_key_values", "past_key_value", "use_cache", "cache_position")


@dataclass
class LayerState:
    """One layer, up to the step that was last measured.

    all_rows: whether all positions are kept, or the last one alone. entered: [R, hidden], the layer's input. added: [R,
    hidden], what the model adds to its output before the next layer, None for nothing. keys: [K, N, D]; values: [K, N, E];
    None in a layer without an attention. carried: what a layer has of all positions but the last, to go on from.
    looks_ahead: whether some query sees a key behind it. shared: the arguments by which layers leave keys and values for later
    ones.
    visible: bool [R, N], which keys a row sees, None for all up to its own. scaling, softcap, sinks: of its attention, see
    taps.attention_options. arguments: what else the layer was called with, of all rows; emptied: what it is called with in the
    place of masks and caches, by name.
    """

    all_rows: bool = False
    entered: torch.Tensor | None = None
    added: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    scaling: float = 1.0
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    emptied: dict[str, None] = field(default_factory=dict)
    carried: Cache | None = None
    looks_ahead: bool = False
    shared: tuple[str, ...] = ()
    _masks: list[torch.Tensor | None] = field(default_factory=list)  # of each step
    _left: torch.Tensor | None = None  # the layer's output, until the next layer has begun

    def enter(self, hidden_states: torch.Tensor, arguments: dict[str, Any], anew: bool) -> None:
        """A step begins. hidden_states: [n, hidden], of n new positions; arguments: of the layer's call; anew: whether these are
        all positions, the sequence from its beginning."""
        if anew:
            self.entered = self.added = self.keys = self.values = self.visible = None
            self.arguments, self._masks = {}, []
        self.entered = self._extended(self.entered, hidden_states)
        self._masks = [*self._masks, arguments.get("attention_mask")] if self.all_rows else []
        caches = {name for name, value in arguments.items() if isinstance(value, Cache) or name.startswith("past_")}
        self.emptied = dict.fromkeys(caches | (arguments.keys() & {"attention_mask"}))
        self.shared = tuple(name for name, value in arguments.items() if is_shared(value))
        n_new, kept = len(hidden_states), arguments.keys() - caches - {*NOT_KEPT, *self.shared}
        self.arguments = {
            name: _matched(self.arguments.get(name), value, lambda before, new: self._grown(before, new, n_new))
            for name, value in arguments.items()
            if name in kept
        }

    def attend(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        seen: torch.Tensor | None,
        scaling: float,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """keys [K, N, D], values [K, N, E], of the last N positions; seen: bool [n, N], what the n new positions see of them,
        None for all up to their own (of the last one, where only that is kept)."""
        self.scaling, self.softcap, self.sinks = scaling, softcap, sinks
        if not self.all_rows:
            self.keys, self.values, self.visible = keys, values, seen
            return
        n_positions = len(self.entered)
        n_before = 0 if self.keys is None else self.keys.shape[1]
        n_new, n_keys = n_positions - n_before, keys.shape[1]
        if n_keys < n_positions:  # the cache of a sliding window has dropped the others
            self.keys = torch.cat([self.keys, keys[:, -n_new:]], dim=1)
            self.values = torch.cat([self.values, values[:, -n_new:]], dim=1)
        else:
            self.keys, self.values = keys, values
        if seen is None and n_keys == n_positions and self.visible is None:
            return
        device = keys.device
        visible = torch.zeros(n_positions, n_positions, dtype=torch.bool, device=device)
        visible[:n_before, :n_before] = up_to_own(n_before, n_before, device) if self.visible is None else self.visible
        visible[n_before:, n_positions - n_keys :] = up_to_own(n_new, n_keys, device) if seen is None else seen
        self.visible = visible

    def leave(self, output: torch.Tensor) -> None:
        """output: [n, hidden], of the new positions."""
        self._left = output if self.all_rows else output[-1:]

    @property
    def left(self) -> torch.Tensor | None:
        """[n, hidden], the layer's output of the new positions, until the next layer has begun."""
        return self._left

    def hand_over(self, following: torch.Tensor) -> None:
        """following: [n, hidden], what enters the next layer."""
        rows = (following if self.all_rows else following[-1:]).to(self._left.device)
        added = None
        if not torch.equal(rows, self._left):
            added = rows.to(torch.promote_types(rows.dtype, torch.float32)) - self._left
        if self.all_rows and (self.added is not None or added is not None):
            n_before = len(self.entered) - len(rows)
            whole = self.entered.new_zeros(self.entered.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
            if self.added is not None:
                whole[:n_before] = self.added
            if added is not None:
                whole[n_before:] = added
            added = whole
        self.added, self._left = added, None

    def until(self, n: int) -> "LayerState":
        """That of the first n of all positions."""

        def first(part: torch.Tensor | None, dim: int) -> torch.Tensor | None:
            return None if part is None else part.narrow(dim, 0, n)

        arguments = self._at(lambda part, dim: part.narrow(dim, 0, n))
        visible = None if self.visible is None else self.visible[:n, :n]
        return replace(
            self,
            entered=first(self.entered, 0),
            added=first(self.added, 0),
            keys=first(self.keys, 1),
            values=first(self.values, 1),
            visible=visible,
            arguments=arguments,
            _masks=[one if one is None or one.dim() != 4 else one[..., :n, :n] for one in self._masks],
        )

    def arguments_at(self, positions: torch.Tensor) -> dict[str, Any]:
        """What the layer is called with for rows at the positions (int64, counted from the end), besides their states."""
        return (
            self._at(lambda part, dim: part.index_select(dim, positions.to(part.device) % part.shape[dim]))
            | self.emptied
        )

    def arguments_of_all(self) -> dict[str, Any]:
        """What it is called with for all rows, its mask among it."""
        mask = {name: self.mask for name in self.emptied if name == "attention_mask"}
        return self.arguments | self.emptied | mask

    def arguments_of_sequences(self) -> dict[str, Any]:
        """What it is called with for whole sequences, besides their states; no masks, no caches."""
        return self.arguments | self.emptied

    def _at(self, part_of: Callable[[torch.Tensor, int], torch.Tensor]) -> dict[str, Any]:
        """The arguments with what part_of(tensor, dimension of positions) makes of those that have rows."""
        n = len(self.entered)

        def change(_: Any, value: torch.Tensor) -> torch.Tensor:
            dim = along_positions(value, n)
            return value if dim is None else part_of(value, dim)

        return {name: _matched(None, value, change) for name, value in self.arguments.items()}

    def _grown(self, before: torch.Tensor | None, new: torch.Tensor, n_new: int) -> torch.Tensor:
        """An argument of the rows so far and of n_new more."""
        dim = along_positions(new, n_new)
        n_before = len(self.entered) - n_new
        if dim is None or (before is not None and before.shape[dim] == 1 < n_before):
            return new  # the same for all positions
        return self._extended(before, new, dim)

    def seen_by(self, n_rows: int) -> torch.Tensor | None:
        """bool [n_rows, N], which keys the last rows see; None for all."""
        if self.visible is not None:
            return self.visible[-n_rows:]
        return None if n_rows == 1 else up_to_own(n_rows, self.keys.shape[1], self.keys.device)

    @property
    def mask(self) -> torch.Tensor | None:
        """The attention mask of all rows, as the layer takes it: its own of a single step; of several None where they had none,
        else [1, 1, R, N], what is added to the logits."""
        if self.keys is None:
            return None  # without an attention, which padding alone would tell anything
        if len(self._masks) == 1:
            return self._masks[0]
        if all(one is None for one in self._masks):
            return None
        seen = self.seen_by(len(self.entered))
        added = torch.zeros(seen.shape, dtype=self.entered.dtype, device=seen.device)
        return added.masked_fill(~seen, torch.finfo(added.dtype).min)[None, None]

    def _extended(self, before: torch.Tensor | None, new: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if not self.all_rows:
            return new.narrow(dim, new.shape[dim] - 1, 1)
        return new if before is None else torch.cat([before, new], dim=dim)


def is_shared(value: Any) -> bool:
    """Whether an argument holds keys and values by name, [B, K, N, D] and [B, K, N, E], or is to."""
    return isinstance(value, Mapping) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(one, torch.Tensor) and one.dim() == 4 for one in pair)
        for pair in value.values()
    )


def along_positions(value: torch.Tensor, n: int) -> int | None:
    """Which dimension of an argument has its n positions; None where it has none of that length: [.., n] of whole numbers, [n] or
    [B, n, ..] of others."""
    if value.dim() == 0:
        return None
    dim = min(1, value.dim() - 1) if value.is_floating_point() or value.is_complex() else value.dim() - 1
    return dim if value.shape[dim] == n else None


def _matched(before: Any, value: Any, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> Any:
    """The value with change(what stood there before or None, tensor) for each tensor, in tuples and lists too."""
    if isinstance(value, torch.Tensor):
        return change(before if isinstance(before, torch.Tensor) else None, value)
    if type(value) in (tuple, list):
        befores = before if type(before) in (tuple, list) and len(before) == len(value) else [None] * len(value)
        return type(value)(_matched(one, other, change) for one, other in zip(befores, value, strict=True))
    return value
