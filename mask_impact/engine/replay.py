"""What the model's output would have been with some attention edges hidden: later layers, from the states of a step.

A variant hides keys from queries in some layers. Only what stands behind the first such query can change, so a variant is
the rows from there to the last position. It enters where its first masked layer begins, goes through the model's own layer
modules behind other variants, whose rows may be more or fewer, and attends to the keys and values of earlier positions with
nothing hidden, which no variant copies. What is added between layers (features of images) is added to every variant alike.

Variants go by differences or directly. By differences: what hides nothing goes through each layer before them, in float32, and
of every variant only the difference from it goes through a linear map in the weights' dtype: in bfloat16 a state has three
digits, and the difference of two states, which is all that an effect is, would have none. Directly: as the model would have run
them, with its rounding; nothing else has to run, and this is enough to see which token comes out first.

Dimensions: n variants, V of them at once, S positions, N of them that run again with nothing hidden; P rows of variants that go
together; R rows that are asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.kept import Kept
from mask_impact.engine.masked_attention import Edges, attend_packed
from mask_impact.engine.packing import ByDifferences, LinearMaps, OfNothing, Packed, Pairs, Run
from mask_impact.engine.self_check import SELF_CHECK_TOLERANCE
from mask_impact.engine.shared import ForRows
from mask_impact.engine.sight import starts_of, with_seers
from mask_impact.engine.states import LayerState
from mask_impact.engine.variants import Masks, Variants
from mask_impact.engine.whole import FAILURES, readers, run_layer, through_whole, with_state
from mask_impact.errors import DeviceError, ExactnessError, UnsupportedArchitecture, is_out_of_memory

ROWS_OF_LOGITS = 64  # variants whose logits are formed at once
# Through a layer at once: on a CPU what stands between linear maps is to stay in its cache.
ROWS_TOGETHER = {"cpu": 512}
ROWS_ON_DEVICES = 2048
ROWS_OF_A_RUN = {"cpu": 1}  # that take as long as what attention by itself takes for one more run
ROWS_OF_A_RUN_ON_DEVICES = 512
PACKS_HELD = 16  # between two layers: what hides nothing runs once for all of them


def outputs(
    kept: Kept,
    variants: Variants,
    rows: Sequence[int] | None = None,
    *,
    starts: torch.Tensor | None = None,
    scale: float = 1.0,
    directly: bool = False,
    on_layers: Callable[[float], None] = lambda share: None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(which variants int64 [k], the last layer's outputs at `rows` of what hides nothing and of each of them: [1 + k, R,
    hidden]). rows: positions (None: the last one).

    Needs states of all positions, where queries or rows are given, and is to be called when the model's own forward is done.
    starts: int64 [n], where the rows of each begin (None: where they must). scale: of the differences that go through linear
    maps, which changes nothing but how they are rounded. directly: not by differences; there what hides nothing is not run, and
    its output is NaN. on_layers: told which share of all is done, part by part.
    """
    rows = (kept.n_positions - 1,) if rows is None else tuple(rows)
    starts = starts_of(kept, variants) if starts is None else with_seers(kept, starts)
    starts = starts.clamp_max(min(rows))
    order = torch.argsort(starts * len(kept.states) + variants.first, stable=True)
    device = kept.states[0].entered.device.type
    lengths = kept.n_positions - starts[order]
    n_at_once = ROWS_TOGETHER.get(device, ROWS_ON_DEVICES)
    most, done = PACKS_HELD * n_at_once, 0
    while done < len(order):
        n_together = max(1, int((lengths[done:].cumsum(0) <= most).sum()))
        together = order[done : done + n_together]
        packs = []
        for part in _parts(lengths[done : done + n_together], n_at_once):
            which = together[part]
            own = _alike(starts[which], ROWS_OF_A_RUN.get(device, ROWS_OF_A_RUN_ON_DEVICES))
            packs.append(_Pack(variants[which], own, kept.n_positions, part))
        share = float(lengths[done : done + n_together].sum() / lengths.sum())
        try:
            found = _through_layers(
                kept,
                packs,
                rows,
                int(starts[together[0]]),
                scale,
                directly,
                lambda n, share=share: on_layers(n * share),
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if n_together == 1:
                raise DeviceError(
                    "out of memory with a single variant of the model: shorten the prompt, take `queries` last, a smaller "
                    "model or `dtype` bfloat16, or a device with more memory"
                ) from error
            most = int(lengths[done : done + n_together].sum()) // 2
            n_at_once = min(n_at_once, most)
            continue
        for first in range(1, len(found), ROWS_OF_LOGITS):
            part = torch.cat([found[:1], found[first : first + ROWS_OF_LOGITS]])
            yield together[first - 1 : first - 1 + len(part) - 1], part
        done += n_together


def _parts(lengths: torch.Tensor, most: int) -> list[torch.Tensor]:
    """int64 [k] each, neighbours of as many rows together as are allowed; one variant at least."""
    parts, first = [], 0
    while first < len(lengths):
        n = max(1, int((lengths[first:].cumsum(0) <= most).sum()))
        parts.append(torch.arange(first, first + n))
        first += n
    return parts


def _alike(starts: torch.Tensor, rows_of_a_run: int) -> torch.Tensor:
    """int64 [V], ascending starts, none behind the one that was given: where a run of their own would cost more than the rows in
    which nothing is hidden yet, some begin where those before them do."""
    found, counts = starts.unique(return_counts=True)
    begin, firsts = int(found[0]), []
    for start, n in zip(found.tolist(), counts.tolist(), strict=True):
        begin = begin if n * (start - begin) <= rows_of_a_run else start
        firsts += [begin] * n
    return torch.tensor(firsts)


@torch.no_grad()
def _through_layers(
    kept: Kept,
    packs: Sequence["_Pack"],
    rows: Sequence[int],
    start: int,
    scale: float = 1.0,
    directly: bool = False,
    on_layers: Callable[[float], None] = lambda share: None,
) -> torch.Tensor:
    """Outputs of the last layer at `rows`, [1 + V, R, hidden]: of what hides nothing, whose rows begin at `start`, and of each
    variant of the packs."""
    states, behind = kept.states, start - kept.n_positions
    begin = min(int(pack.variants.first[0]) for pack in packs)
    own = None if directly else _Nothing(kept, start, begin)
    for index in range(begin, len(states)):
        state = states[index]
        entered, of_nothing, pairs = state.entered[behind:], state, None
        if own is not None:
            entered = own.running[0]
            of_nothing, pairs = own.through(index)
        for pack in packs:
            at = pack.enter(index, entered, start)
            if at is not None:
                pack.running = _through_layer(kept, index, pack, of_nothing, pairs, at, scale)
        on_layers(1 / (len(states) - begin))
    wide = arithmetic_dtype(states[0].entered.dtype)
    device = states[-1].entered.device
    n = sum(len(pack.variants) for pack in packs)
    result = torch.full((1 + n, len(rows), states[-1].entered.shape[-1]), float("nan"), dtype=wide, device=device)
    if own is not None:
        result[0] = own.running[0, torch.tensor(rows) - kept.n_positions]
    for pack in packs:
        result[1 + pack.which] = pack.running[0, pack.packed.places(rows).to(device)].to(wide)
    return result


class _Pack:
    """Variants that go through layers together. which: int64 [V], their numbers among all; starts: int64 [V], the position that
    the rows of each begin at; running: [1, P, hidden], of those that have entered, None before the first has; positions: int64
    [P], of these rows, counted from the end."""

    def __init__(self, variants: Variants, starts: torch.Tensor, n_positions: int, which: torch.Tensor) -> None:
        order = torch.argsort(variants.first, stable=True)
        self.variants, self.which = variants[order], which[order]
        self.packed = Packed.of(starts[order], n_positions)
        self.running: torch.Tensor | None = None
        self.runs: list[tuple[Run, Edges | None]] = []
        self.positions = torch.zeros(0, dtype=torch.int64)
        self.n_in = 0
        self.shared = ForRows()

    def enter(self, index: int, entered: torch.Tensor, start: int) -> torch.Tensor | None:
        """Those enter that begin to hide in a layer. entered: [N, hidden], what enters it with nothing hidden, from the position
        `start` on. Returns int64 [P], of each row of all that have entered the row at the same position there; None without any.
        """
        n_before, self.n_in = self.n_in, int((self.variants.first <= index).sum())
        if self.n_in == 0:
            return None
        device, shift = entered.device, self.packed.n_positions - start
        if self.n_in > n_before or self.positions.device != device:
            self.positions = self.packed.positions(0, self.n_in).to(device)
            self.runs = [(run, self.edges(run, device)) for run in self.packed.runs(self.n_in)]
        at = self.positions + shift
        if self.n_in > n_before:
            new = entered[at[self.packed.ends[n_before] :]].unsqueeze(0)
            self.running = new if self.running is None else torch.cat([self.running.to(device), new], dim=1)
        self.running = self.running.to(device)
        return at

    def edges(self, run: Run, device: torch.device) -> Edges:
        """What some of the sequences hide."""
        return Edges(self.variants, run, device)


class _Nothing:
    """What hides nothing, from the position `start` and the layer `begin` on. running: [1, N, hidden]."""

    def __init__(self, kept: Kept, start: int, begin: int) -> None:
        self.kept = kept
        self.packed = Packed.of(torch.tensor([start]), kept.n_positions)
        entered = kept.states[begin].entered[start - kept.n_positions :]
        self.running = entered.to(arithmetic_dtype(entered.dtype)).unsqueeze(0)
        self.runs: list[tuple[Run, Edges | None]] = [(run, None) for run in self.packed.runs(1)]
        self.positions = self.packed.positions(0, 1)
        self.n_in = 1
        self.shared = ForRows()

    def edges(self, run: Run, device: torch.device) -> None:
        """Nothing is hidden."""

    def through(self, index: int) -> tuple[LayerState, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Through one layer. Returns its state with the keys and values of what ran here, and the pairs of its linear maps.

        The model's own keys are rounded to its dtype: to a variant that begins later the difference of both would count as an
        effect."""
        state = self.kept.states[index]
        wide = self.running.dtype
        self.running = self.running.to(state.entered.device)
        self.positions = self.positions.to(state.entered.device)
        if self.kept.decoder.runs_whole(index):
            before = state.entered[: -self.running.shape[1]]
            state = replace(state, entered=torch.cat([before.to(wide), self.running[0]]))
            if self.kept.decoder.carries(index) and self.running.shape[1] == 1 < self.kept.n_positions:
                state = with_state(self.kept, index, state)
        seen: list[torch.Tensor] = []
        maps = OfNothing()
        self.running = _through_layer(self.kept, index, self, state, maps, seen=seen)
        if seen:
            keys, values = (
                torch.cat([of_model[:, : -own.shape[2]].to(wide), own[0]], dim=1)
                for of_model, own in zip((state.keys, state.values), seen, strict=True)
            )
            state = replace(state, keys=keys, values=values)
        return state, maps.pairs


def _through_layer(
    kept: Kept,
    index: int,
    rows: "_Pack | _Nothing",
    of_nothing: LayerState,
    pairs: OfNothing | Pairs | None = None,
    at: torch.Tensor | None = None,
    scale: float = 1.0,
    seen: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """[1, P, hidden], what enters the next layer. of_nothing: with the keys and values of earlier positions; pairs: of the linear
    maps of what hides nothing, None for the layer's own maps; at: int64 [P], of each row the row of what hides nothing; seen: is
    given the keys and values of the rows, [1, K, P, D]."""
    state = kept.states[index]

    def maps_for(own: torch.Tensor | None) -> LinearMaps:
        return pairs if isinstance(pairs, OfNothing) else ByDifferences(pairs, own, scale)

    maps = None if pairs is None else maps_for
    if kept.decoder.runs_whole(index):
        at_once = ROWS_TOGETHER.get(rows.running.device.type, ROWS_ON_DEVICES)
        output = through_whole(kept, index, rows, of_nothing, maps, at_once, seen)
    else:

        def attention(own, module, query, key, value, *rest, **arguments):
            if seen is not None:
                seen.extend((key, value))
            return attend_packed(query, key, value, of_nothing, index, rows.runs), None

        shared = rows.shared.at(of_nothing, rows.positions, rows.running.dtype)
        arguments = state.arguments_at(rows.positions) | shared
        output = run_layer(kept, index, rows.running, maps and maps(at), attention, arguments)
    if state.added is not None:
        output = output + state.added[rows.positions.to(state.added.device)].to(output)
    return output


@torch.no_grad()
def prove(kept: Kept) -> None:
    """UnsupportedArchitecture or ExactnessError where a decoder's layers do not give again what they gave: for the last
    position, by itself and behind two others, directly and by differences. Asked once for a model."""
    if kept.decoder.proven:
        return
    with kept.decoder.trying():
        _prove_layers(kept)
    kept.decoder.found.known.replayed = kept.n_positions > 1  # a single one tells nothing of what reads others


def _prove_layers(kept: Kept) -> None:
    for index, layer in enumerate(kept.decoder.layers):
        try:
            try:
                _prove_layer(kept, index)
            except (*FAILURES, ExactnessError) as error:
                if is_out_of_memory(error) or kept.decoder.runs_whole(index):
                    raise
                _prove_whole(kept, index, error)
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            raise UnsupportedArchitecture(
                f"{layer.name} ({type(kept.model).__name__}) can't run again by itself ({error}): no effects, estimates or "
                "knockouts can be had"
            ) from error


def _prove_layer(kept: Kept, index: int) -> None:
    """Directly and by differences; and, where it runs as a whole, going on from a state, or it does not go on from one."""
    _prove_directly(kept, index)
    for alike in (True, False):
        try:
            _prove_by_differences(kept, index)
            break
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            kept.decoder.make_opaque(index, alike)
    else:
        _prove_by_differences(kept, index)
    if not kept.decoder.runs_whole(index) or kept.n_positions == 1:
        return
    for module in readers(kept, index):
        kept.decoder.make_reader(module)
    if kept.states[index].keys is None:
        kept.decoder.make_carrying(index, True)
        try:
            _prove_by_differences(kept, index, alone=True)
        except (*FAILURES, ExactnessError) as error:
            if is_out_of_memory(error):
                raise
            kept.decoder.make_carrying(index, False)


def _prove_whole(kept: Kept, index: int, error: Exception) -> None:
    """A layer that does not give the same where some of its rows run: with all of them; the error, where it does not then."""
    if not kept.states[index].all_rows:
        raise error
    kept.decoder.make_whole(index)
    try:
        _prove_layer(kept, index)
    except (*FAILURES, ExactnessError) as other:
        if is_out_of_memory(other):
            raise
        raise error from other


def _prove_directly(kept: Kept, index: int) -> None:
    """Against the model's own output."""
    state, pack = kept.states[index], _nothing_packed(kept, index)
    pack.enter(index, state.entered, kept.n_positions - len(state.entered))
    _check_same(kept, index, pack, _through_layer(kept, index, pack, state), _left(kept, index))


def _prove_by_differences(kept: Kept, index: int, alone: bool = False) -> None:
    """Against what hides nothing by itself; where the last position runs alone, against the model's own output."""
    pack = _nothing_packed(kept, index, alone)
    start = int(pack.packed.starts.min())
    nothing = _Nothing(kept, start, index)
    entered = nothing.running[0]
    of_nothing, pairs = nothing.through(index)
    at = pack.enter(index, entered, start)
    found = _through_layer(kept, index, pack, of_nothing, pairs, at)
    _check_same(kept, index, pack, found, nothing.running[0, -1])
    if alone:
        _check_same(kept, index, pack, found, _left(kept, index))


def _left(kept: Kept, index: int) -> torch.Tensor:
    """[hidden], what the model had behind a layer for the last position."""
    return (kept.final[0] if index + 1 == len(kept.states) else kept.states[index + 1].entered)[-1]


def _check_same(kept: Kept, index: int, pack: "_Pack", found: torch.Tensor, wanted: torch.Tensor) -> None:
    """ExactnessError where a sequence's last row is another one than is wanted."""
    rows = found[0, pack.packed.ends[1:].to(found.device) - 1]
    wanted = wanted.to(rows)
    error = float((rows - wanted).norm(dim=-1).max() / wanted.norm().clamp_min(1e-30))
    tolerance = SELF_CHECK_TOLERANCE[kept.states[index].entered.dtype]
    if not error <= tolerance:
        raise ExactnessError(
            f"{kept.decoder.layers[index].name} ({type(kept.model).__name__}) gives other states when some of its rows run "
            f"again: {error:.1e} off (relative, {tolerance:.0e} allowed): no effects, estimates or knockouts can be had"
        )


def _nothing_packed(kept: Kept, index: int, alone: bool = False) -> "_Pack":
    """Two sequences that hide nothing: the last positions, and the last one alone; alone: twice that one."""
    several = kept.states[index].all_rows and not alone
    starts = torch.tensor([max(0, kept.n_positions - 3) if several else -1, kept.n_positions - 1])
    nothing = torch.zeros(1, kept.n_positions, dtype=torch.bool)
    zeros = torch.zeros(2, dtype=torch.int64)
    return _Pack(
        Variants(Masks(nothing), zeros, zeros, zeros), starts.where(starts >= 0, starts[1]), kept.n_positions, zeros
    )
