"""Who called: the command `mask-impact`, or one of the two scripts, which differ in names and in what they print first."""

from collections.abc import Mapping
from dataclasses import dataclass

from mask_impact.models.names import DEFAULT_MODELS


@dataclass(frozen=True)
class Caller:
    """program: as it is called. kind: `vl` or `text`, the only kind of model that a script takes; None: any. titles: the first
    line that is printed, by mask mode, or `no image`, `many` (a study), `knockout`, `without`. output: the results' name where
    none is given."""

    program: str
    kind: str | None
    titles: Mapping[str, str]
    output: str

    @property
    def default_model(self) -> str:
        return DEFAULT_MODELS[self.kind or "vl"]


MASK_IMPACT = Caller(
    program="mask-impact",
    kind=None,
    titles={
        "no image": "What the answer used, and where it is read",
        "text": "What the answer used, and where text is read",
        "vision": "What the answer used, and where images are read",
        "both": "What the answer used, and where it is read",
        "many": "Impact of each token, many prompts",
        "explain": "What the answer used",
        "knockout": "Attention knockouts",
        "without": "Answers without some tokens",
        "pixels": "What pixels do to the answer",
        "deepstack": "What DeepStack's levels do to the answer",
        "tower": "What the vision tower's layers read, and what matters",
    },
    output="result",
)
VL = Caller(
    program="mask_impact_vl.py",
    kind="vl",
    titles={
        "no image": "PHASE 1: Qwen3-VL Text-Only Masking Analysis",
        "text": "PHASE 2a: Qwen3-VL Image Analysis, Text Tokens Masked",
        "vision": "PHASE 2b: Qwen3-VL Image Analysis, Vision Tokens Masked",
        "both": "PHASE 2c: Qwen3-VL Image Analysis, Text and Vision Tokens Masked",
        "many": "PHASE 1.1: Qwen3-VL Batch Masking Analysis",
        "knockout": "PHASE 2: Qwen3-VL Attention Knockouts",
        "without": "PHASE 2: Qwen3-VL Answers Without Some Tokens",
    },
    output="vl_masking_results",
)
TEXT = Caller(
    program="mask_impact_analysis.py",
    kind="text",
    titles={
        "no image": "Text Model Masking Analysis",
        "text": "Text Model Masking Analysis",
        "both": "Text Model Masking Analysis",
        "many": "Text Model Batch Masking Analysis",
        "knockout": "Text Model Attention Knockouts",
        "without": "Text Model Answers Without Some Tokens",
    },
    output="masking_results",
)
