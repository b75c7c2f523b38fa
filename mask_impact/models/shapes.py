"""A configuration held against the weights' own shapes, before anything is made of it.

A wrong number in config.json would otherwise be memory for a model that there is not, or hours of making layers without weights.
Reads the headers of safetensors files, which say every tensor's shape. Knows neither torch nor what is measured.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask_impact.errors import ModelError
from mask_impact.results.inputs import TABLE, open_file, parse_json

MOST_LAYERS = 10_000
MOST = 10_000_000  # of everything else that is counted; vocabularies have less than a million
MAX_HEADER = 100 * 2**20  # bytes, what the format allows
_COUNTED = re.compile(r"num_.*_layers|num_layers|depth")
_BOUNDED = re.compile(
    r"hidden_size|intermediate_size|.*_intermediate_size|vocab_size|head_dim|num_.*|.*_dim|out_hidden_size"
)
# Whose weights are known to have the names below. This is no list of what can be measured: a wrong number in the configuration of
# another architecture is found when its weights are read, which then are refused by name, and costs the memory until then.
KNOWN_NAMES = frozenset(
    ("gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_vl", "qwen3_vl_moe")
)
_LAYER = re.compile(r"(?<!visual\.)\blayers\.(\d+)\.")
_BLOCK = re.compile(r"\bblocks\.(\d+)\.")


def check_numbers(settings: Mapping[str, Any], name: str) -> None:
    """ModelError for numbers in config.json that no model has. settings: what the file says; name: of the model."""
    for key, value in settings.items():
        if isinstance(value, dict):
            check_numbers(value, name)
            continue
        most = MOST_LAYERS if _COUNTED.fullmatch(key) else MOST if _BOUNDED.fullmatch(key) else None
        if most and isinstance(value, int | float) and not -most <= value <= most:
            raise ModelError(
                f"config.json of model '{name}' says {key} {str(value)[:30]}, and {most:,} is the most; get it again"
            )


def check_shapes(config: Any, files: Sequence[Path], name: str) -> None:
    """ModelError where the configuration's sizes are not those of the weights; files: none, where they are not here yet. Of other
    architectures than those of KNOWN_NAMES nothing is said."""
    packed = getattr(config, "quantization_config", None) is not None  # weights that have shapes of their own
    if config.model_type not in KNOWN_NAMES or not files or packed:
        return
    shapes = {key: shape for file in files for key, shape in _header(file, name).items()}
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    _check_count("num_hidden_layers", text.num_hidden_layers, _LAYER, shapes, name)
    if vision is not None:
        _check_count("depth", vision.depth, _BLOCK, shapes, name)
    for suffix, side, key, said, expected in _sides(text, vision):
        for tensor, shape in shapes.items():
            if tensor.endswith(suffix) and len(shape) > side and shape[side] != expected:
                raise ModelError(
                    f"config.json of model '{name}' says {key} {said}, which makes {expected} of what is {shape[side]} in the "
                    f"weights ({tensor}); get the checkpoint again"
                )


def _check_count(key: str, said: int, pattern: re.Pattern, shapes: Iterable[str], name: str) -> None:
    """Weights may have more layers than are used, not fewer."""
    there = max((int(found[1]) for tensor in shapes if (found := pattern.search(tensor))), default=-1) + 1
    if said > there:
        raise ModelError(
            f"config.json of model '{name}' says {key} {said}, and the weights have {there}; get the checkpoint again"
        )


def _sides(text: Any, vision: Any) -> Iterator[tuple[str, int, str, int, int]]:
    """(end of a tensor's name, which of its sides, the key of it, what that says, how long the side is by that)."""
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    for suffix, side, config, key, expected in (
        ("embed_tokens.weight", 0, text, "vocab_size", None),
        ("embed_tokens.weight", 1, text, "hidden_size", None),
        ("layers.0.self_attn.o_proj.weight", 1, text, "num_attention_heads", heads),
        ("layers.0.mlp.down_proj.weight", 1, text, "intermediate_size", None),
        ("blocks.0.attn.proj.weight", 0, vision, "hidden_size", None),
        ("blocks.0.mlp.linear_fc1.weight", 0, vision, "intermediate_size", None),
        ("pos_embed.weight", 0, vision, "num_position_embeddings", None),
    ):
        if config is not None:
            said = getattr(config, key)
            yield suffix, side, key, said, expected or said


def _header(file: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor; ModelError for a file that is none of safetensors."""
    try:
        with open_file(file, TABLE) as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = parse_json(opened.read(size)) if size <= MAX_HEADER else None
        shapes = {key: tuple(map(int, one["shape"])) for key, one in header.items() if key != "__metadata__"}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"cannot read the weights of model '{name}': {file.name} is damaged; get it again") from error
    if any(side < 0 for shape in shapes.values() for side in shape) or sum(map(math.prod, shapes.values())) > 2**60:
        raise ModelError(f"cannot read the weights of model '{name}': {file.name} is damaged; get it again")
    return shapes
