"""What a run is asked to do, checked when it is made and before anything heavy is imported. Knows only errors."""

from collections.abc import Sequence
from dataclasses import dataclass

from mask_impact.errors import InputError, UsageError

VARIANT_GROUPS = ("full", "attn", "heads")
DEFAULT_MODELS = {"vl": "Qwen/Qwen3-VL-4B-Instruct", "text": "Qwen/Qwen3-1.7B"}


def check_prompt(prompt: str) -> None:
    """InputError where a prompt has nothing in it or is not text."""
    if not prompt.strip():
        raise InputError("the prompt is empty; give some text")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} of the prompt is not valid Unicode; give it as UTF-8") from None


@dataclass(frozen=True)
class RunSettings:
    """num_tokens: most tokens to produce. variants: which of VARIANT_GROUPS to measure, put into their order.

    batch_size: how many masked tokens ride at once (None: by free memory). raw: the prompt as it is, without a chat template
    (None: only where the model has none). n_verify: (step, layer, token) triples to measure again by really masking.
    """

    num_tokens: int = 1
    variants: Sequence[str] = VARIANT_GROUPS
    batch_size: int | None = None
    raw: bool | None = None
    n_verify: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise UsageError(f"--num-tokens must be at least 1, not {self.num_tokens}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.n_verify < 0:
            raise UsageError(f"--verify must be at least 0, not {self.n_verify}")
        if not self.variants or not set(self.variants) <= set(VARIANT_GROUPS):
            raise UsageError(f"--variants must be some of {','.join(VARIANT_GROUPS)}, not '{','.join(self.variants)}'")
        object.__setattr__(self, "variants", tuple(group for group in VARIANT_GROUPS if group in self.variants))
