"""What a run is asked to do, checked when it is made and before anything heavy is imported. Knows only errors."""

from collections.abc import Sequence
from dataclasses import dataclass

from mask_impact.errors import InputError, UsageError

VARIANT_GROUPS = ("full", "attn", "heads")
ABLATIONS = ("mask", "zero-value", "mean-value")
QUERIES = ("last", "all")
GROUPS = ("tokens", "words")
OF_EFFECTS = ("window", "queries", "groups")  # settings that mean nothing without effects
MAX_COST = 10_000_000  # row-layers: some hours of a 4B model on two CPU cores, some minutes on a GPU
MASK_MODES = ("text", "vision", "both")
DEFAULT_MODELS = {"vl": "Qwen/Qwen3-VL-4B-Instruct", "text": "Qwen/Qwen3-1.7B"}


IMAGE_MARK = "<image>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
IMAGE_TEXT = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"  # what templates write for an image, taken as a mark too


def check_image_marks(prompt: str, n_images: int) -> None:
    """InputError where the marks in a vision-language model's prompt are not as many as its images (or none at all)."""
    prompt = prompt.replace(IMAGE_TEXT, IMAGE_MARK)
    strange = next((token for token in (IMAGE_PAD, VIDEO_PAD) if token in prompt), None)
    if strange:
        raise InputError(f"the prompt has the model's own token {strange}; write {IMAGE_MARK} where an image goes")
    n_marks = prompt.count(IMAGE_MARK)
    if n_marks not in (0, n_images):
        raise InputError(
            f"the prompt marks {n_marks} place{'s' * (n_marks > 1)} for an image ({IMAGE_MARK}), and the number of images given "
            f"is {n_images}: give one (--image) for each mark, or leave the marks out to have all images before the text"
        )


def check_prompt(prompt: str) -> None:
    """InputError where a prompt has nothing in it or is not text."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text (or ready model inputs), not {type(prompt).__name__}")
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
    mask_mode: which of the prompt's tokens to mask, one of MASK_MODES, or all, which is both; special tokens count as text.
    max_image_resolution: longest edge of an image in pixels (None: as it is). allow_remote: whether to fetch images from URLs.
    ablation: what hiding a token means, one of ABLATIONS. effect: whether to measure the effect on the produced token too,
    in `window` layers around each layer (or in `all`), hidden from one of QUERIES; groups: `tokens`, `words` or a file with
    groups of tokens, which are hidden together. max_cost: how many row-layers the effects may take.
    """

    num_tokens: int = 1
    variants: Sequence[str] = VARIANT_GROUPS
    batch_size: int | None = None
    raw: bool | None = None
    n_verify: int = 0
    mask_mode: str = "both"
    max_image_resolution: int | None = None
    allow_remote: bool = False
    effect: bool = False
    window: int | str = 1
    ablation: str = "mask"
    queries: str = "last"
    groups: str = "tokens"
    max_cost: int = MAX_COST

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise UsageError(f"--num-tokens must be at least 1, not {self.num_tokens}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.n_verify < 0:
            raise UsageError(f"--verify must be at least 0, not {self.n_verify}")
        if not self.variants or not set(self.variants) <= set(VARIANT_GROUPS):
            raise UsageError(f"--variants must be some of {','.join(VARIANT_GROUPS)}, not '{','.join(self.variants)}'")
        if self.mask_mode not in (*MASK_MODES, "all"):
            raise UsageError(f"--mask-mode must be one of {', '.join(MASK_MODES)} (all = both), not '{self.mask_mode}'")
        if self.max_image_resolution is not None and self.max_image_resolution < 1:
            raise UsageError(f"--max-image-resolution must be at least 1, not {self.max_image_resolution}")
        if self.window != "all" and (isinstance(self.window, str) or self.window < 1):
            raise UsageError(f"--window must be at least 1 layer, or all, not {self.window}")
        if self.ablation not in ABLATIONS:
            raise UsageError(f"--ablation must be one of {', '.join(ABLATIONS)}, not '{self.ablation}'")
        if self.queries not in QUERIES:
            raise UsageError(f"--queries must be one of {', '.join(QUERIES)}, not '{self.queries}'")
        if self.max_cost < 1:
            raise UsageError(f"--max-cost must be at least 1 row-layer, not {self.max_cost}")
        if self.mask_mode == "all":
            object.__setattr__(self, "mask_mode", "both")
        object.__setattr__(self, "variants", tuple(group for group in VARIANT_GROUPS if group in self.variants))
