"""How far a recomputation may be from the model's own numbers, and what is said where it is farther."""

import torch

from mask_impact.errors import ExactnessError

# Largest relative difference that rounding may make between the model's own row and its recomputation in float32. RMSNorm
# works in float32 also in a float64 model, so there it is the limit.
SELF_CHECK_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def check_reproduced(where: str, error: float, dtype: torch.dtype, why: str = "") -> None:
    """ExactnessError where the model's own arithmetic in a layer was not reproduced. error: relative, NaN or infinite where
    something is not finite; dtype: the model's; why: ends the message."""
    tolerance = SELF_CHECK_TOLERANCE[dtype]
    if not error < float("inf"):
        raise ExactnessError(
            f"activations of {where} are not finite (NaN or inf): no numbers can be given; "
            f"the model's weights may be damaged, or {dtype} too narrow: try `dtype` float32"
        )
    if error > tolerance:
        raise ExactnessError(
            f"self-check failed in {where}: the model's own arithmetic differs from the recomputed one by {error:.1e} "
            f"(relative, {tolerance:.0e} allowed): no numbers are given{why}"
        )
