"""Devices and dtypes by name."""

import torch

from mask_impact.errors import DeviceError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(device: str) -> torch.device:
    """`auto` (cuda, mps, cpu, the first there is), `cpu`, `cuda`, `cuda:N` or `mps`; DeviceError where it is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device '{device}' is not known; use auto, cpu, cuda, cuda:N or mps") from error
    available = {"cpu": True, "cuda": cuda, "mps": mps}
    if not available.get(target.type, False):
        here = ", ".join(name for name, there in available.items() if there)
        raise DeviceError(f"device '{device}' is not available on this machine; available: auto, {here}")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{device}' is not there: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    return target


def resolve_dtype(dtype: str) -> torch.dtype | str:
    """The dtype of a name, and `auto` as it is; UsageError for another one."""
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"dtype '{dtype}' is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES.get(dtype, "auto")
