"""The decoder with each set of parts of an image's features kept and the rest replaced, in as few rows as give all sets exactly.

Sets that differ in later parts alone are one until these parts come in: two states enter the first layer, and each level that is
added behind a layer makes two of each. Rows before the first replaced token are the answer's own, whose keys and values
`generate()` left; rows behind the last one that is asked about do not run. The last layer gives keys and values of all rows, and
runs for those that are read. The set that has all parts is the answer's own run: when all parts have come in its keys and values
have to be the answer's, and what is read is run behind these. Keys and values of other sets can be had, too: an answer with such
a set goes on from them, and nothing of the prompt runs again.

Set number s keeps part k where bit k of s is set (`findings.shapley`). Shapes: n states of R rows; M image tokens; T logits.
Knows Qwen3-VL's decoder; nothing of what the parts are replaced by, and why.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from mask_impact.engine.effects import TOLERANCE
from mask_impact.engine.features import ROWS_AT_ONCE, FeaturePass, Features
from mask_impact.engine.ownership import joined
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.errors import ExactnessError

# Of each layer keys and values of the rows that run, [n, heads, R, depth].
Held = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Noted:
    """What the model's own `generate()` leaves. keys: keys and values of all positions; features: its tower's, of each call."""

    keys: DynamicCache
    features: list[Features] = field(default_factory=list)

    def own(self) -> Features:
        """The model's own features of all images, n = 1."""
        return Features(
            tuple(torch.cat(parts, dim=1) for parts in zip(*(one.parts for one in self.features), strict=True))
        )


@contextmanager
def noting(model: nn.Module) -> Iterator[Noted]:
    """While the block is open, what the tower gives is noted. `keys` are to be given to the model."""
    noted = Noted(DynamicCache(config=model.config.get_text_config()))

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        parts = (output.pooler_output, *output.deepstack_features)
        noted.features.append(Features(tuple(part.detach().unsqueeze(0) for part in parts)))

    with joined(decoder_of(model)) as block, block.after(model.model.visual, note):
        yield noted


@dataclass(frozen=True)
class Rows:
    """Which positions run, `start` to `stop`, and that those from `read` on are read."""

    start: int
    stop: int
    read: int

    @property
    def n(self) -> int:
        """R"""
        return self.stop - self.start

    @property
    def n_read(self) -> int:
        """T"""
        return self.stop - self.read


def runs_whole(again: FeaturePass, n_parts: int) -> bool:
    """Whether the set that has all parts runs as the others do. In float32 and float64 it ends where the last part has come in:
    it is the answer's own run from there on. In other dtypes effects are held against what rounding does to such a run."""
    return again.model.dtype not in (torch.float32, torch.float64) or n_parts > again.n_layers


def rows_of_sets(again: FeaturePass, n_parts: int, rows: Rows) -> int:
    """How many rows go through decoder layers for all sets; those that give keys and values only by their share of a layer."""
    n_layers, whole = again.n_layers, runs_whole(again, n_parts)
    counts = [2 ** min(n_parts, layer + 1) - (layer + 1 >= n_parts and not whole) for layer in range(n_layers)]
    keys_only, read = counts[-1] + (not whole), counts[-1] + (not whole) * n_layers
    return rows.n * sum(counts[:-1]) + round(keys_only * rows.n * again.entering_share + read * rows.n_read)


class _Rerun:
    """The decoder's layers, one after the other, for some rows. keys: of a run of the whole sequence, of which those before the
    rows are taken."""

    def __init__(self, again: FeaturePass, keys: DynamicCache, rows: Rows) -> None:
        self.again, self.keys, self.rows = again, keys, rows
        self.decoder = again.model.model.language_model
        self.layers = list(self.decoder.layers)

    def embedded(self) -> torch.Tensor:
        """[1, R, hidden], of the tokens."""
        return self.decoder.embed_tokens(self.again.inputs["input_ids"][:, self.rows.start : self.rows.stop])

    def through(self, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """[n, R, hidden], of the last layer [n, T, hidden]; and the rows' keys and values."""
        last, before = layer + 1 == len(self.layers), _Before(*self._held(layer), len(states))
        if not last or self._mask is None or self.rows.n_read == self.rows.n:
            after = self._run(layer, states, before)
            return after[:, -self.rows.n_read :] if last else after, before.given
        held = self._keys_of(layer, states)
        return self._run(layer, states[:, -self.rows.n_read :], held), held.given

    def cache(self, held: Held, which: Sequence[int]) -> DynamicCache:
        """What some of the states hold of all positions before those that are read."""
        cache, n = DynamicCache(config=self.decoder.config), self.rows.read - self.rows.start
        for layer, own in enumerate(held):
            before = _Before(*self._held(layer), len(which))
            cache.update(*before.update(*(one[list(which), :, :n] for one in own)), layer)
        return cache

    def apart(self, layer: int, states: torch.Tensor) -> float:
        """By how much the keys and values of rows differ from those of the run of the whole sequence, of their norm."""
        where, held = slice(self.rows.start, self.rows.stop), self.keys.layers[layer]
        found = self._keys_of(layer, states).update()
        pairs = zip(found, (held.keys, held.values), strict=True)
        errors = [(one[:, :, where] - own[:, :, where]).norm() / own[:, :, where].norm() for one, own in pairs]
        return float(max(errors))

    def ended(self, states: torch.Tensor) -> torch.Tensor:
        """[n, T, vocabulary], of what comes out of the last layer."""
        return self.again.model.lm_head(self.decoder.norm(states))

    def _keys_of(self, layer: int, states: torch.Tensor) -> "_KeysOnly":
        held = _KeysOnly(_Before(*self._held(layer), len(states)))
        with suppress(_Enough):
            self._run(layer, states, held)
        return held

    def _run(self, layer: int, states: torch.Tensor, keys: Any) -> torch.Tensor:
        n = states.shape[1]
        output = self.layers[layer](
            states,
            attention_mask=None if self._mask is None else self._mask[..., -n:, :],
            position_ids=None,
            past_key_values=keys,
            position_embeddings=tuple(one[:, -n:] for one in self._turns),
        )
        return output[0] if isinstance(output, tuple) else output

    def _held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [1, heads, start, depth] of what stands before."""
        held = self.keys.layers[layer]
        return held.keys[:, :, : self.rows.start], held.values[:, :, : self.rows.start]

    @cached_property
    def _mask(self) -> torch.Tensor | None:
        """As the model's own backend takes it, for all rows."""
        before = DynamicCache(config=self.decoder.config)
        before.update(*self._held(0), 0)
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=self.embedded(),
            attention_mask=self.again.inputs["attention_mask"][:, : self.rows.stop],
            past_key_values=before,
        )

    @cached_property
    def _turns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary positions of the rows."""
        return self.decoder.rotary_emb(self.embedded(), self.again.positions[:, :, self.rows.start : self.rows.stop])


class EverySet:
    """own, base: features that are kept, and those in the place of others, n = 1; positions: int64 [M], of the image tokens;
    tokens: bool [M], those that are replaced, none before `rows.start`; keys: the answer's own keys and values."""

    def __init__(
        self,
        again: FeaturePass,
        keys: DynamicCache,
        own: Features,
        base: Features,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        rows: Rows,
    ) -> None:
        self._run, self._rows = _Rerun(again, keys, rows), rows
        behind = positions >= rows.start
        self._places = positions[behind] - rows.start  # of image tokens, in rows
        replaced = own.taking(base, tokens)
        self._parts = [[part[0, behind.to(part.device)] for part in one.parts] for one in (replaced, own)]
        self._whole = runs_whole(again, len(own.parts))
        self._at_once = max(1, ROWS_AT_ONCE // rows.n)

    @torch.no_grad()
    def logits(
        self,
        smaller: Callable[[RuntimeError, int], int],
        done: Callable[[int], None] = lambda n: None,
        going_on: Collection[int] = (),
        go_on: Callable[[list[int], DynamicCache], None] = lambda sets, cache: None,
    ) -> torch.Tensor:
        """[2^parts, T, vocabulary], of each set by its number. smaller: asked for how many states go on together where so many
        were too many; done: told how many sets more are through. go_on: given some sets of `going_on`, as soon as they are
        through, and what they hold of all positions before those that are read; the set that has all parts can't go on.
        ExactnessError where that set is not the answer's own run when the last part has come in."""
        n_parts, n_layers = len(self._parts[0]), len(self._run.layers)
        found: dict[int, torch.Tensor] = {}
        held: Held = []
        pending = [(0, [0, 1], self._entered(), held)]
        while pending:  # the deepest first: no more states wait than lie on the way down
            layer, sets, states, held = pending.pop()
            if len(sets) > self._at_once:
                cuts = range(0, len(sets), self._at_once)
                pieces = [slice(cut, cut + self._at_once) for cut in reversed(cuts)]
                pending += [(layer, sets[piece], states[piece], _of_states(held, piece)) for piece in pieces]
                continue
            if layer + 1 == n_parts and sets[-1] == 2**n_parts - 1 and not self._whole:
                found[sets[-1]] = self._ended_as_the_answer(layer, states[-1:])
                sets, states, held = sets[:-1], states[:-1], _of_states(held, slice(-1))
                done(1)
                if not sets:
                    continue
            try:
                after, own = self._run.through(layer, states)
            except RuntimeError as error:
                self._at_once = smaller(error, len(sets))
                pending.append((layer, sets, states, held))
                continue
            held = [*held, own] if going_on else []
            if layer + 1 < n_parts:
                after = self._with_level(layer, after)
                sets = sets + [number | 1 << (layer + 1) for number in sets]
                held = [(keys.repeat(2, 1, 1, 1), values.repeat(2, 1, 1, 1)) for keys, values in held]
            if layer + 1 < n_layers:
                pending.append((layer + 1, sets, after, held))
                continue
            found |= dict(zip(sets, self._run.ended(after), strict=True))
            done(len(sets))
            if some := [place for place, number in enumerate(sets) if number in going_on]:
                go_on([sets[place] for place in some], self._run.cache(held, some))
        return torch.stack([found[self.seen_as(number)] for number in range(2**n_parts)])

    def seen_as(self, number: int) -> int:
        """The set that runs for a set: of levels that would come in behind the last layer nothing is seen."""
        return number % 2 ** min(len(self._parts[0]), len(self._run.layers) + 1)

    def _ended_as_the_answer(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """[T, vocabulary], with all parts: the rows that are read, behind the answer's own keys and values."""
        error, tolerance = self._run.apart(layer, states), TOLERANCE[states.dtype]
        if not error <= tolerance:
            raise ExactnessError(
                f"with all features kept, decoder layer {layer} is given other states than in the model's own run, by "
                f"{error:.1e} of its keys and values ({tolerance:.0e} allowed): no effects are given"
            )
        rows = self._rows
        run = _Rerun(self._run.again, self._run.keys, Rows(rows.read, rows.stop, rows.read))
        states = run.embedded()
        for number in range(len(run.layers)):
            states, _ = run.through(number, states)
        return run.ended(states)[0]

    def _entered(self) -> torch.Tensor:
        """[2, R, hidden], with the replaced main features and with the own ones."""
        embedded = self._run.embedded()
        return torch.cat([self._put(embedded.clone(), parts[0]) for parts in self._parts])

    def _put(self, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        states[:, self._places.to(states.device)] = features.to(states)
        return states

    def _with_level(self, level: int, states: torch.Tensor) -> torch.Tensor:
        """[2 n, R or T, hidden], with the level's replaced features added, and with the own ones."""
        nothing = states.new_zeros(1, self._rows.n, states.shape[-1])
        added = [self._put(nothing.clone(), parts[level + 1])[:, -states.shape[1] :] for parts in self._parts]
        return torch.cat([states + one for one in added])


def _of_states(held: Held, which: slice) -> Held:
    return [(keys[which], values[which]) for keys, values in held]


class _Before:
    """Stands for a cache: keys and values before those of n states, which no state copies."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, n: int) -> None:
        self._held = tuple(one.expand(n, -1, -1, -1) for one in (keys, values))
        self.given: tuple[torch.Tensor, torch.Tensor]  # those of the rows, once a layer has run

    def update(self, keys: torch.Tensor, values: torch.Tensor, *where: Any, **how: Any) -> tuple[torch.Tensor, ...]:
        """Both, one behind the other."""
        self.given = keys, values
        return tuple(torch.cat(pair, dim=2) for pair in zip(self._held, (keys, values), strict=True))


class _Enough(Exception):
    """A layer's keys and values are known: nothing else of it has to run."""


class _KeysOnly:
    """Keeps what a layer asks it to hold, and stops it there; the next time it says what it holds."""

    def __init__(self, before: _Before) -> None:
        self._before = before
        self._found: tuple[torch.Tensor, ...] | None = None

    def update(self, *given: Any, **how: Any) -> tuple[torch.Tensor, ...]:
        """Keys and values of all positions; the first time those of the rows are given."""
        if self._found is None:
            self._found = self._before.update(*given)
            raise _Enough
        return self._found

    @property
    def given(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the rows."""
        return self._before.given
