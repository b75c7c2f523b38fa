"""The table of decoder layers that are known in advance: where each module sits, and nothing that is guessed.

`engine.masking` needs to know four things of a decoder layer: which linear map ends the attention branch, which norms stand
before a residual add or feed the MLP, of which linear maps and activation the MLP is made, and how the norm's weight enters.
Other text and vision-language models of transformers are measured by `engine.riding` without a table. Read from the modeling
files of transformers 5.17 to 5.23.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from mask_impact.errors import UnsupportedArchitecture


@dataclass(frozen=True)
class Layout:
    """Module names within one decoder layer; None where the architecture has no such norm.

    layers: path from the model to its decoder layers. after_attention, after_mlp: norm between the branch and its
    residual add. before_mlp: norm that feeds the MLP. norm_offset: 1.0 where the norm multiplies by (1 + weight).
    """

    layers: str = "model.layers"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    norm_offset: float = 0.0


_LLAMA = Layout()
_VL = Layout(layers="model.language_model.layers")

# Activations whose difference is known in closed form (propagation.ACTIVATIONS holds the arithmetic).
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Keyed by `model.config.model_type`.
LAYOUTS: dict[str, Layout] = {
    "qwen3_vl": _VL,
    "qwen3_vl_moe": _VL,
    "qwen3": _LLAMA,
    "qwen2": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "gemma3_text": Layout(
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
        norm_offset=1.0,
    ),
    "olmo2": Layout(
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
    ),
}


def parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """A module's own parameter, or None where it has none of that name; also where accelerate keeps it on a disk or another
    device until the module runs."""
    value = getattr(module, name, None)
    if isinstance(value, torch.Tensor) and value.is_meta:
        from accelerate.utils import align_module_device

        with align_module_device(module):
            return getattr(module, name).detach().clone()
    return value


_TEXT_MODELS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_VISION_LANGUAGE = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
_WITH_OTHER_INPUT = _VISION_LANGUAGE | frozenset(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


@dataclass(frozen=True)
class Norm:
    """An RMSNorm as the arithmetic needs it: y = x / sqrt(mean(x^2) + eps) * (weight + offset)."""

    module: nn.Module
    eps: float
    offset: float

    def weight(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Effective weight [hidden]."""
        return parameter(self.module, "weight").to(device=device, dtype=dtype) + self.offset


@dataclass(frozen=True)
class GatedMlp:
    """down(act(gate(h)) * up(h)); `up` is None where gate and up are one fused linear map, gate's half first."""

    gate: nn.Module
    up: nn.Module | None
    down: nn.Module
    activation: str


@dataclass(frozen=True)
class OpaqueMlp:
    """An MLP that is not a chain of linear maps and known gates (mixture of experts): full states ride through it."""

    block: nn.Module


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer with its modules located."""

    index: int
    module: nn.Module
    attention: nn.Module
    o_proj: nn.Module
    after_attention: Norm | None
    before_mlp: Norm | None
    mlp: GatedMlp | OpaqueMlp
    after_mlp: Norm | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"layers.{self.index}"


@dataclass(frozen=True)
class Decoder:
    """The decoder of a supported model.

    configs: the config objects that its parts read their attention backend from; transformers may have copied the model's,
    so they are taken from the parts themselves. final_norm: what stands between the last layer and the output.
    """

    model_type: str
    configs: tuple[object, ...]
    layers: tuple[DecoderLayer, ...]
    final_norm: nn.Module
    n_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int

    @cached_property
    def attentions(self) -> dict[nn.Module, int]:
        """The number of the layer of each attention."""
        return {layer.attention: layer.index for layer in self.layers}

    @property
    def key(self) -> nn.Module:
        """What stands for the decoder, whatever wraps it."""
        return self.layers[0].module

    def place_of(self, module: nn.Module) -> int | None:
        """The number of the layer that an attention is of."""
        return self.attentions.get(module)

    def runs_whole(self, index: int) -> bool:
        """Whether a layer has to be given all positions again."""
        return False

    def carries(self, index: int) -> bool:
        """Whether such a layer can go on from a state."""
        return False

    def readers(self, index: int) -> tuple[nn.Module, ...]:
        """The modules of a layer that read other positions by something beside a softmax attention."""
        return ()

    def opaque(self, index: int) -> tuple[nn.Module, ...]:
        """The modules of a layer that take whole states."""
        mlp = self.layers[index].mlp
        return (mlp.block,) if isinstance(mlp, OpaqueMlp) else ()


def supported() -> str:
    """The architectures of the table, for messages."""
    return ", ".join(sorted(LAYOUTS))


def is_located(model_type: str) -> bool:
    """Whether the table has it; others are measured where their layers prove sound when they run."""
    return model_type in LAYOUTS


def is_vision_language(model_type: str) -> bool:
    """Whether transformers has it as a model of images and text."""
    return model_type in _VISION_LANGUAGE


def check_supported(model_type: str) -> None:
    """Refuse an architecture by the `model_type` of its config, before any weight is read."""
    if model_type not in (_TEXT_MODELS - _WITH_OTHER_INPUT) | _VISION_LANGUAGE | LAYOUTS.keys():
        raise UnsupportedArchitecture(
            f"architecture '{model_type}' is not supported: it is no model of text, or of images and text, of transformers "
            f"{transformers.__version__}; use one that is, such as {supported()}"
        )


def check_described(config: PreTrainedConfig) -> None:
    """UnsupportedArchitecture where a configuration does not say how many layers and heads there are, and how large, or where
    images do not become tokens of a decoder."""
    check_supported(config.model_type)
    if is_vision_language(config.model_type):
        _check_image_tokens(config)
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        try:
            getattr(config.get_text_config(), name)
        except (
            AttributeError,
            ValueError,
            RuntimeError,
        ) as error:  # not there, of several decoders, another in each layer
            raise UnsupportedArchitecture(
                f"architecture '{config.model_type}' is not supported: its configuration has no {name} of a decoder"
            ) from error


def _check_image_tokens(config: PreTrainedConfig) -> None:
    apart = hasattr(config.get_text_config(), "cross_attention_layers")  # images stay outside of the sequence
    if config.is_encoder_decoder or apart or getattr(config, "image_token_id", None) is None:
        raise UnsupportedArchitecture(
            f"architecture '{config.model_type}' is not supported: its configuration has no image tokens in a decoder's sequence"
        )


def locate(model: nn.Module) -> Decoder:
    """Find the decoder layers of `model` and the modules within; raises UnsupportedArchitecture."""
    model_type = model.config.model_type
    if not is_located(model_type):
        raise UnsupportedArchitecture(f"architecture '{model_type}' is in no table; in it are {supported()}")
    layout = LAYOUTS[model_type]
    config = model.config.get_text_config()
    try:
        modules = model.get_submodule(layout.layers)
        layers = tuple(
            _locate_layer(index, module, layout, check_activation(config)) for index, module in enumerate(modules)
        )
        parent = model.get_submodule(layout.layers.rpartition(".")[0])
        final_norm = parent.norm
    except AttributeError as error:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} ({model_type}) is not built as expected: {error}; "
            f"load it with its ForCausalLM or ForConditionalGeneration class"
        ) from error
    return Decoder(
        model_type=model_type,
        configs=(parent.config, *(m.self_attn.config for m in modules)),
        layers=layers,
        final_norm=final_norm,
        n_heads=config.num_attention_heads,
        head_dim=layers[0].attention.head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
    )


def check_activation(config: object) -> str:
    """The activation by its name in this module; UnsupportedArchitecture for one that is not known."""
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in ACTIVATIONS:
        raise UnsupportedArchitecture(
            f"activation '{name}' of {config.model_type} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _locate_layer(index: int, module: nn.Module, layout: Layout, activation: str) -> DecoderLayer:
    def norm(name: str | None) -> Norm | None:
        if name is None:
            return None
        found = module.get_submodule(name)
        eps = found.variance_epsilon if hasattr(found, "variance_epsilon") else found.eps
        return Norm(found, eps, layout.norm_offset)

    return DecoderLayer(
        index=index,
        module=module,
        attention=module.self_attn,
        o_proj=module.self_attn.o_proj,
        after_attention=norm(layout.after_attention),
        before_mlp=norm(layout.before_mlp),
        mlp=_locate_mlp(module.mlp, activation),
        after_mlp=norm(layout.after_mlp),
    )


def _locate_mlp(mlp: nn.Module, activation: str) -> GatedMlp | OpaqueMlp:
    if hasattr(mlp, "experts"):
        return OpaqueMlp(mlp)
    if hasattr(mlp, "gate_up_proj"):
        return GatedMlp(mlp.gate_up_proj, None, mlp.down_proj, activation)
    return GatedMlp(mlp.gate_proj, mlp.up_proj, mlp.down_proj, activation)
