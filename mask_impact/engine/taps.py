"""Every attention of a decoder through a function of ours, by way of what transformers' attention modules look up.

Whoever opens the block sees query, key and value as the model uses them, and calls the model's own backend or does not. No
config changes: the lookup answers the block's own thread, for the modules of its model; for every other thread and model it
finds what it always finds. Before the block ends, by whatever way, everything is as it was.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from mask_impact.engine.ownership import AnyDecoder, Block, opened
from mask_impact.errors import ModelError

BACKENDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")


class _Mine(threading.local):
    """Of one thread. taps: (a decoder's attention modules, what is called in their place), the innermost last."""

    def __init__(self) -> None:
        self.taps: list[tuple[frozenset[nn.Module], Callable[..., tuple]]] = []


_mine = _Mine()


class _Lookup:
    """What stands in the place of AttentionInterface.get_interface while any thread has a block open. What torch.compile has
    compiled then runs as it is written: compiled code looks nothing up, and differences can't ride through it."""

    def __init__(self) -> None:
        self._lock, self._n_open = threading.Lock(), 0
        self._own = AttentionInterface.get_interface
        self._eager = ExitStack()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For a block."""
        with self._lock:
            if self._n_open == 0:
                self._own = own = AttentionInterface.get_interface
                AttentionInterface.get_interface = lambda *args, **kwargs: _answer(own(*args, **kwargs))
                if "torch._dynamo" in sys.modules:  # else nothing is compiled
                    self._eager.enter_context(torch.compiler.set_stance("force_eager"))
            self._n_open += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_open -= 1
                if self._n_open == 0:
                    AttentionInterface.get_interface = self._own
                    self._eager.close()


_lookup = _Lookup()


def _answer(inner: Callable[..., tuple]) -> Callable[..., tuple]:
    """The backend that was looked up; in a thread with a block open, what asks first whether the module is one of its model."""
    if not _mine.taps:
        return inner

    def through(module, *args: Any, **kwargs: Any):
        for attentions, attend in reversed(_mine.taps):
            if module in attentions:
                return attend(partial(inner, module), module, *args, **kwargs)
        return inner(module, *args, **kwargs)

    return through


@contextmanager
def tapped(
    decoder: AnyDecoder, attend: Callable[..., tuple], attentions: Iterable[nn.Module] | None = None
) -> Iterator[Block]:
    """While the block is open, `attend(own, module, query, key, value, attention_mask, *args, **kwargs)` is the decoder's
    attention in this thread: query [B, H, n, D], key and value [B, K, N, D] to (output [B, n, H, D], weights or None). own: the
    model's backend, which takes the rest of the arguments. attentions: modules, one of which is the decoder's attention whenever
    it calls a backend (None: those of its layers). A tap inside another one is the only one. ModelError for a backend that is not
    one of BACKENDS."""
    backend = decoder.configs[0]._attn_implementation
    if backend not in BACKENDS:
        raise ModelError(
            f"attention backend '{backend}' is not supported; load the model with one of {', '.join(BACKENDS)}"
        )
    with opened(decoder) as block, _lookup.in_place():
        _mine.taps.append((frozenset(decoder.attentions if attentions is None else attentions), attend))
        try:
            yield block
        finally:
            _mine.taps.pop()


def n_held(arguments: Mapping[str, Any]) -> int:
    """How many positions stand before those that a decoder layer is given; 0 where the sequence begins, or is fed again.
    arguments: of the call of the first layer, before it runs."""
    cache = arguments.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def visible_keys(
    mask: torch.Tensor | None, number: int, n_rows: int, n_keys: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """bool [n_rows, n_keys], which keys the last queries of sequence `number` see; None for all up to their own.

    window: how many keys a windowed kernel looks back on, where no 4D mask says it.
    """
    if mask is not None and mask.dim() == 4:
        rows = mask[number if mask.shape[0] > 1 else 0, 0, -n_rows:, :n_keys]
        return rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
    if mask is None and (window is None or window >= n_keys):
        return None
    visible = up_to_own(n_rows, n_keys, device)
    if mask is not None:
        visible = visible & mask[number, -n_keys:].to(torch.bool)
    if window is not None:
        visible = visible & up_to_own(n_rows, n_keys, device, -window).logical_not()
    return visible


def each_visible_key(
    mask: torch.Tensor | None, number: int, n_rows: int, n_keys: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """The same, always as a tensor; it may be a view of the mask."""
    visible = visible_keys(mask, number, n_rows, n_keys, window, device)
    return up_to_own(n_rows, n_keys, device) if visible is None else visible


def within_sight(
    key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys and values [K, n, D] from the first that the last query sees, and which of them it sees, bool [n] or None for all.
    key, value: [K, N, D] of all; visible: as `visible_keys` gives it for one row."""
    if visible is None:
        return key, value, None
    first = int(visible[0].int().argmax())
    return key[:, first:], value[:, first:], visible[0, first:]


def up_to_own(n_rows: int, n_keys: int, device: torch.device, shift: int = 0) -> torch.Tensor:
    """bool [n_rows, n_keys]: the last positions of n_keys, each of which sees all up to itself (or `shift` from it)."""
    return torch.ones(n_rows, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_rows + shift)


def attention_options(decoder: AnyDecoder, kwargs: Mapping[str, Any]) -> tuple[float | None, torch.Tensor | None]:
    """(c where the logits are c tanh(logits / c), sink logits [H]) of a call; None each, where the backend knows none."""
    if decoder.configs[0]._attn_implementation == "sdpa":  # torch's own function knows neither
        return None, None
    return kwargs.get("softcap") or None, kwargs.get("s_aux")


def scaling_of(query: torch.Tensor, kwargs: Mapping[str, Any]) -> float:
    """What a call multiplies its logits by; query: [..., D]."""
    scaling = kwargs.get("scaling")
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def windowed_kernel(decoder: AnyDecoder, kwargs: dict[str, Any]) -> int | None:
    """How many keys the backend's kernel looks back on, where masks don't say it."""
    name = decoder.configs[0]._attn_implementation
    return kwargs.get("sliding_window") if "flash" in name else None
