"""What kinds of layers a decoder has, in words, as far as its configuration says it."""

from collections.abc import Sequence
from typing import Any

from mask_impact.errors import ranges

BETWEEN = ", "  # runs of layers
ALONE = {"moe": "mixture of experts", "mlp": "MLP"}  # in which no position reads another
NAMES = {"conv": "convolution", "mamba": "state space", **ALONE}


def without_attention(config: Any, layers: Sequence[int]) -> str:
    """That these layers have no softmax attention, and of what kind they are instead, in one sentence. config: of the decoder;
    layers: their numbers, ascending."""
    kinds: dict[str, list[int]] = {}
    for layer in layers:
        kinds.setdefault(_kind(config, layer), []).append(layer)
    several = len(kinds) > 1
    told = [f"{ranges(of_kind, BETWEEN)}: {kind or 'not said'}" if several else kind for kind, of_kind in kinds.items()]
    instead = f" ({'; '.join(told)})" if any(kinds) else ""
    which, have = ("Layers", "have") if len(layers) > 1 else ("Layer", "has")
    return f"{which} {ranges(layers, BETWEEN)} {have} no softmax attention{instead}: nothing can be hidden there"


def known_without_attention(config: Any) -> list[int]:
    """The layers of which the configuration says that they have no softmax attention."""
    return [layer for layer in range(len(_kinds(config))) if _kind(config, layer)]


def reading_others(config: Any, layers: Sequence[int]) -> list[int]:
    """Those of layers without a softmax attention in which a position may still read what others say."""
    return [layer for layer in layers if _kind(config, layer) not in ALONE.values()]


def beside_attention(config: Any, layers: Sequence[int]) -> list[int]:
    """Those of layers that have a softmax attention in which a state is carried from position to position beside it."""
    kinds = _kinds(config)
    return [layer for layer in layers if layer < len(kinds) and kinds[layer].startswith("hybrid")]


def keeps_states(config: Any) -> bool:
    """Whether a decoder's configuration says that layers carry a state from position to position, beside an attention or in its
    place. What padding before a prompt does to such a state is up to the layer."""
    stateless = (*ALONE, "dense", "sparse")
    return any(not _is_attention(kind) and kind not in stateless for kind in _kinds(config))


def _kinds(config: Any) -> Sequence[str]:
    """By layer, in the configuration's words; empty where it does not say them."""
    return next((kinds for name in ("layer_types", "layers_block_type") if (kinds := getattr(config, name, None))), ())


def _is_attention(kind: str) -> bool:
    return kind.endswith("attention") and not kind.startswith("linear")


def _kind(config: Any, layer: int) -> str:
    """Of a layer without a softmax attention; empty where the configuration does not say it."""
    kinds = _kinds(config)
    kind = kinds[layer] if layer < len(kinds) else ""
    return "" if _is_attention(kind) or kind.startswith("hybrid") else NAMES.get(kind, kind.replace("_", " "))
