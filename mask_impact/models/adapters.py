"""Adapters of peft (LoRA and others): a folder or repository that names its model and holds what is added to the model's layers.

The model is measured with the adapter in its layers, not merged: its numbers are those that people get who run it so.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import find_adapter_config_file

from mask_impact.errors import MaskImpactError, ModelError, shown
from mask_impact.models.sources import ADAPTER, ADAPTER_WEIGHTS, Source, file_of, locate_source
from mask_impact.results.inputs import parse_json, read_file

MOST_BYTES = 2**24  # of the configuration
# Adapters that put tokens or states before the prompt, which have no place in a table of tokens.
_OF_TOKENS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Adapter:
    """source: where its files are; kind: as peft calls it, such as LORA; model, base: the model that it is for, by name and
    place."""

    source: Source
    kind: str
    model: str
    base: Source

    @property
    def note(self) -> str:
        """One line that says what is measured."""
        return f"an adapter ({self.kind}): its model {self.model} is measured with it"

    @property
    def tokenizer(self) -> Source:
        """Where the tokenizer is: beside the adapter, or else with its model."""
        return self.source if any(file_of(self.source, name) for name in _TOKENIZERS) else self.base


def find_adapter(source: Source, name: str, kind: str) -> Adapter | None:
    """The adapter that a source holds; None for a model of its own. ModelError where it can't be measured, or its model can't be
    had. kind: see sources.locate_source."""
    if source.gguf_file is not None:  # a model of its own, whatever else lies in its folder
        return None
    file = find_adapter_config_file(source.path, revision=source.revision, local_files_only=source.local_only)
    if file is None:
        return None
    try:
        content = parse_json(read_file(file, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{ADAPTER} of adapter '{name}' can't be read: {error}") from error
    content = content if isinstance(content, dict) else {}
    sort, base, revision = (content.get(key) for key in ("peft_type", "base_model_name_or_path", "revision"))
    if not isinstance(sort, str) or not isinstance(base, str) or not base:
        raise ModelError(
            f"{ADAPTER} of adapter '{name}' does not say which model it is for: it needs peft_type and base_model_name_or_path"
        )
    if sort in _OF_TOKENS:
        _refuse_tokens(f"adapter '{name}'", sort)
    if not file_of(source, ADAPTER_WEIGHTS) and Path(source.path).is_dir():
        raise ModelError(
            f"adapter '{name}' has no {ADAPTER_WEIGHTS}; save it with `save_pretrained`, which writes safetensors"
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"'{name}' is an adapter, which needs the package peft: pip install peft")
    try:
        located, model, _ = locate_source(base, kind, revision if isinstance(revision, str) else None)
    except MaskImpactError as error:
        raise ModelError(f"the model of adapter '{name}' can't be had: {error}") from error
    if file_of(located, ADAPTER):
        raise ModelError(
            f"adapter '{name}' is for {shown(model)}, which is an adapter itself: merge that one into its model"
        )
    return Adapter(source, sort, model, located)


def put_in(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Puts the adapter into the layers of its model; ModelError where it does not fit."""
    found = model.load_adapter(
        adapter.source.path,
        adapter_kwargs={"revision": adapter.source.revision, "local_files_only": adapter.source.local_only},
        use_safetensors=True,
    )
    missing, unexpected = (sorted(getattr(found, part, None) or ()) for part in ("missing_keys", "unexpected_keys"))
    if missing or unexpected:
        what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} belongs nowhere"
        raise ModelError(f"adapter '{name}' does not fit its model {adapter.model}: {what}")


def bared(model: Any) -> Any:
    """The model of transformers within one of peft, with the adapter in its layers; another as it is. ModelError for an adapter
    of tokens."""
    if not hasattr(model, "get_base_model"):
        return model
    for config in model.peft_config.values():
        if config.peft_type in _OF_TOKENS:  # a StrEnum
            _refuse_tokens("the model's adapter", config.peft_type.value)
    return model.get_base_model()


def _refuse_tokens(what: str, kind: str) -> None:
    raise ModelError(
        f"{what} is of kind {kind}, which puts states before the prompt: only adapters within layers, such as LORA, are measured"
    )
