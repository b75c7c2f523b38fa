"""What a result's numbers depend on, as one digest: how `--resume` knows a result again."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mask_impact.analyses.settings import GROUPS, OF_ANSWERS, OF_EFFECTS, OF_VIDEOS
from mask_impact.models.loading import LoadedModel
from mask_impact.results.inputs import IMAGE, VIDEO, open_file
from mask_impact.results.meta import SCHEMA_VERSION
from mask_impact.studies.jobs import Job


@dataclass(frozen=True)
class Identity:
    """Which model numbers are of. weights: name, size and time of its files, where these tell; device: `cpu`, `cuda` and so on,
    which is no part of a digest."""

    name: str
    revision: str | None
    weights: tuple[tuple[Any, ...], ...]
    dtype: str
    device: str

    def is_like(self, other: "Identity") -> bool:
        """Whether it is the same model, on another machine: its files may be of another time there."""
        sizes, others = ([file[:2] for file in one.weights] for one in (self, other))
        same = ("revision", "dtype", "device")
        return sizes == others and all(getattr(self, one) == getattr(other, one) for one in same)


def identity_of(loaded: LoadedModel) -> Identity:
    """Of a model that is loaded."""
    weights = tuple(map(tuple, _weights_digest(loaded)))
    return Identity(loaded.name, loaded.revision, weights, str(loaded.model.dtype), loaded.model.device.type)


def digest(model: LoadedModel | Identity, job: Job) -> str:
    """SHA-256 of all that a result's numbers depend on: prompt, images, model, dtype, settings and the files' schema."""
    model = model if isinstance(model, Identity) else identity_of(model)
    settings = asdict(job.settings)
    settings["n_verify"] = settings.pop("verify")  # as it was called when the first digests were written
    idle = {"allow_remote", "max_cost"}
    idle |= {*OF_EFFECTS} if not settings["effect"] else set()
    idle |= {"answer", *OF_ANSWERS} if not settings["answer"] else set()
    if settings["pixels"]:
        idle.discard("target")
    else:  # as before there was one
        idle.add("pixels")
    idle |= {*OF_VIDEOS} if not job.videos else set()  # as before there were any
    if settings["top"] is None:  # as before there was one
        idle.add("top")
    if not settings["effect"] and not settings["answer"]:
        idle.add("groups")
    elif settings["groups"] not in (None, *GROUPS):
        settings["groups"] = _file_digest(settings["groups"])
    elif not settings["answer"]:
        settings["groups"] = settings["groups"] or "tokens"
    if (settings["routes"] or "").endswith((".yaml", ".yml")):
        settings["routes"] = _file_digest(settings["routes"])
    settings = {name: value for name, value in settings.items() if name not in idle}
    ingredients = {
        "prompt": job.prompt,
        "images": [_file_digest(image) for image in job.images],
        "model": [model.name, model.revision, model.weights],
        "dtype": model.dtype,
        "settings": settings,
        "schema": SCHEMA_VERSION,
    }
    if job.videos:
        ingredients["videos"] = [_video_digest(video) for video in job.videos]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _video_digest(path: str) -> str | list[Any]:
    """Of a file its content; of a folder the content of each file in it."""
    if not os.path.isdir(path):
        return _file_digest(path, VIDEO)
    return [[name, _file_digest(os.path.join(path, name))] for name in sorted(os.listdir(path))]


def _file_digest(path: str, most: int = IMAGE) -> str:
    try:
        with open_file(path, most) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a URL, or missing: the run will say so
        return path


def _weights_digest(loaded: LoadedModel) -> list[list[Any]]:
    """Name, size and time of the weight files of a model in a folder; a model of the hub is known by its commit."""
    folder = Path(loaded.model.config.name_or_path or ".")
    if loaded.revision is not None or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
