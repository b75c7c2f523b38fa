"""Every attention of a decoder through a function of ours, by an attention backend registered with transformers.

Whoever opens the block sees query, key and value as the model uses them, and calls the model's own backend or does not.
Before the block ends, by whatever way, everything is as it was.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mask_impact.errors import ModelError
from mask_impact.models.architectures import Decoder

BACKENDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")

_serial = itertools.count()


@contextmanager
def tapped(decoder: Decoder, attend: Callable[..., tuple]) -> Iterator[None]:
    """While the block is open, `attend(own, module, query, key, value, attention_mask, *args, **kwargs)` is the decoder's
    attention: query [B, H, n, D], key and value [B, K, N, D] to (output [B, n, H, D], weights or None). own: the model's
    backend, which takes the rest of the arguments. ModelError for a backend that is not one of BACKENDS."""
    configs = tuple({id(config): config for config in decoder.configs}.values())
    backend = configs[0]._attn_implementation
    if backend not in BACKENDS:
        raise ModelError(
            f"attention backend '{backend}' is not supported; load the model with one of {', '.join(BACKENDS)}"
        )

    def tap(module, *args: Any, **kwargs: Any):
        def own(*args: Any, **kwargs: Any):
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            inner = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)
            names = [config._attn_implementation for config in configs]
            # Flash attention reads the config for its own name.
            for config in configs:
                config._attn_implementation = backend
            try:
                return inner(module, *args, **kwargs)
            finally:
                for config, name in zip(configs, names, strict=True):
                    config._attn_implementation = name

        return attend(own, module, *args, **kwargs)

    # The backend's name stays part of ours: transformers looks for "flash" in it.
    name = f"{backend}_mask_impact_{next(_serial)}"
    with ExitStack() as stack:
        AttentionInterface.register(name, tap)
        stack.callback(AttentionInterface._global_mapping.pop, name, None)
        # Without a mask function of its own a custom attention name gets no mask at all and turns bidirectional.
        AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[backend])
        stack.callback(AttentionMaskInterface._global_mapping.pop, name, None)
        for config in configs:
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = name
        yield


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


def up_to_own(n_rows: int, n_keys: int, device: torch.device, shift: int = 0) -> torch.Tensor:
    """bool [n_rows, n_keys]: the last positions of n_keys, each of which sees all up to itself (or `shift` from it)."""
    return torch.ones(n_rows, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_rows + shift)


def windowed_kernel(decoder: Decoder, kwargs: dict[str, Any]) -> int | None:
    """How many keys the backend's kernel looks back on, where masks don't say it."""
    name = decoder.configs[0]._attn_implementation
    return kwargs.get("sliding_window") if "flash" in name else None
