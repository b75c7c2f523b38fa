"""Which architectures everything is tested on, and what a checkpoint is, from its configuration alone: no weight is read."""

from dataclasses import dataclass
from typing import Any

from mask_impact.errors import UnsupportedArchitecture
from mask_impact.models.adapters import find_adapter
from mask_impact.models.architectures import EXAMPLES
from mask_impact.models.layer_kinds import known_without_attention, without_attention
from mask_impact.models.loading import KIND_NAMES, kind_of, load_config
from mask_impact.models.sources import locate_source


@dataclass(frozen=True)
class Family:
    """An architecture. model_type: as the checkpoint's configuration calls it; kind: `vl` or `text`."""

    model_type: str
    kind: str
    examples: str


def families() -> tuple[Family, ...]:
    """Those that everything is tested on."""
    return tuple(Family(name, kind_of(name), examples) for name, examples in EXAMPLES.items())


@dataclass(frozen=True)
class Description:
    """A checkpoint. listed: whether its architecture is one of `families`; problem: why it is not supported, None where it is;
    how: what is special about it, a line each."""

    name: str
    model_type: str
    kind: str | None
    n_layers: int | None
    n_heads: int | None
    hidden_size: int | None
    dtype: str | None
    context: int | None
    listed: bool
    problem: str | None
    how: tuple[str, ...]


def describe_model(model: str, revision: str | None = None) -> Description:
    """What a checkpoint is. ModelError where there is none of that name."""
    source, name, note = locate_source(model, "vl", revision)
    adapter = find_adapter(source, name, "vl")
    source, note = (adapter.base, adapter.note) if adapter else (source, note)
    try:
        config = load_config(source, name)
    except UnsupportedArchitecture as error:
        return Description(name, _type_in(str(error)), None, None, None, None, None, None, False, str(error), ())
    text, kind = config.get_text_config(), kind_of(config.model_type)
    how = [f"loaded as a {KIND_NAMES[kind]}"]
    if config.model_type not in EXAMPLES:
        how.append(
            "its layers are proven on this checkpoint when they first run; `mask-impact verify` says what can be asked"
        )
    if others := known_without_attention(text):
        how.append(without_attention(text, others))
    if source.gguf_file:
        how.append("GGUF: the weights are converted when they are loaded, which takes memory and time")
    if _has_experts(text):
        how.append("mixture of experts: full states go through the experts, and each layer gets a noise floor")
    if getattr(config, "quantization_config", None):
        how.append("quantised: `verify` can't measure on copies of its layers")
    dtype = str(getattr(config, "dtype", None) or getattr(text, "dtype", None) or "").removeprefix("torch.") or None
    return Description(
        name, config.model_type, kind, text.num_hidden_layers, text.num_attention_heads, text.hidden_size, dtype,
        getattr(text, "max_position_embeddings", None), config.model_type in EXAMPLES, None, (*how, *([note] if note else [])),
    )  # fmt: skip


def _has_experts(config: Any) -> bool:
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _type_in(problem: str) -> str:
    """The model type that an error names in quotes."""
    return problem.split("'")[1] if problem.count("'") > 1 else "unknown"
