"""Whether what rides in a layer fits into memory, before it gets on.

A device says when its memory is full. A computer ends the process, without a word.
"""

import psutil
import torch
from torch import nn

from mask_impact.errors import DeviceError

TENSORS_AT_ONCE = 7  # of all variants and the widest row, as measured
FEW = 256  # variants that are never asked about
GIB = 2**30


def check_room(
    name: str, module: nn.Module, n_variants: int, max_rows: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    """DeviceError where n_variants differences of a layer don't fit into a computer's memory. max_rows: how many of them are
    between two linear maps at once (None: all); dtype: of the differences."""
    if n_variants <= FEW or device.type != "cpu":
        return
    free = available()
    sizes = [max(part.shape[-2:]) for part in module.parameters() if part.dim() > 1] or [1]
    n_wide = min(n_variants, max_rows or n_variants)
    needed = TENSORS_AT_ONCE * (n_wide * max(sizes) + (n_variants - n_wide) * min(sizes)) * dtype.itemsize
    if needed > free:
        raise DeviceError(
            f"hiding {n_variants:,} tokens at once takes about {needed / GIB:.1f} GiB in {name}, and {free / GIB:.1f} GiB are "
            "free: lower `batch_size`, shorten the prompt, hide text or image tokens alone (`mask_mode`), or take a computer "
            "with more memory"
        )


def available() -> int:
    """Bytes that can be had without swapping."""
    return psutil.virtual_memory().available
