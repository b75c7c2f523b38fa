"""From a YAML batch file to jobs, all of it checked before a model is loaded. Knows neither torch nor models.

A setting comes from the first that has it: command-line flag, the prompt itself, `defaults:`, top level or `model:`,
built-in. Paths that stand in a file are relative to its folder; flags are taken as they are.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mask_impact.analyses.settings import GROUPS
from mask_impact.errors import InputError, described, shown
from mask_impact.models.names import DEMO, SMOLLM2
from mask_impact.prompts.yaml_file import YamlFile
from mask_impact.results.files import read_prompt_file
from mask_impact.results.remote import is_address
from mask_impact.studies.jobs import (
    NO_FLAGS,
    Job,
    given_flags,
    job_name_problem,
    job_problems,
    located,
    run_settings,
    same_name,
)
from mask_impact.studies.schema import SIZES, DefaultsLevel, FileLevel, ModelLevel, PromptLevel, check


@dataclass(frozen=True)
class BatchConfig:
    """A YAML file. jobs: the prompts that are enabled, in their order. model, formats: None where the default holds.
    output_dir: a folder, or the address of a store as text."""

    model: str | None
    revision: str | None
    device: str
    dtype: str
    formats: tuple[str, ...] | None
    output_dir: Path | str
    jobs: tuple[Job, ...]
    n_disabled: int


def load_config(path: str | os.PathLike, *, kind: str | None, overrides: Mapping[str, Any] = NO_FLAGS) -> BatchConfig:
    """The jobs of a YAML file for a model of `kind` ("vl", "text", or None for any). overrides: command-line flags, None where
    not given.

    Raises ConfigError with everything that is wrong in the file, UsageError for a flag that can't be right. A revision
    in the file belongs to its model: it does not hold for a model that comes with a flag.
    """
    flags = given_flags(overrides)
    text = YamlFile(os.fspath(path))
    folder = Path(path).parent
    file, bad = check(text, FileLevel, text.data, ())
    model, _ = check(text, ModelLevel, {"path": file.model} if isinstance(file.model, str) else file.model, ("model",))
    defaults, bad_in_common = check(text, DefaultsLevel, file.defaults, ("defaults",))
    place = _set(model) | _set(file)
    for key in _set(model).keys() & _set(file).keys():
        if getattr(model, key) != getattr(file, key):
            here, there = (described(getattr(part, key)) for part in (file, model))
            text.report((key,), f"{key} is {here} here and {there} under model; give it once")
    common = {key: place[key] for key in SIZES if key in place} | _set(defaults)
    prompts = _Prompts(text, folder, kind, flags, common, bad_in_common)
    made = [prompts.job(index, item) for index, item in enumerate([] if "prompts" in bad else file.prompts)]
    jobs = tuple(job for job in made if job is not None)
    if not jobs and not text.problems:
        n_disabled = prompts.n_disabled
        text.report(("prompts",), f"every prompt is disabled ({n_disabled} of them); set enabled: true on at least one")
    text.raise_problems()

    output_dir = file.output_dir or "output"
    if file.output_dir and not is_address(output_dir):
        output_dir = folder / output_dir
    output_dir = flags.get("output_dir", output_dir)
    return BatchConfig(
        model=flags.get("model", _located_model(folder, place.get("path"))),
        revision=flags.get("revision", None if "model" in flags else place.get("revision")),
        device=flags.get("device") or place.get("device") or "auto",
        dtype=flags.get("dtype") or place.get("dtype") or "auto",
        formats=flags.get("formats", file.formats),
        output_dir=output_dir if is_address(output_dir) else Path(output_dir),
        jobs=jobs,
        n_disabled=prompts.n_disabled,
    )


class _Prompts:
    """Makes jobs of a file's prompts, and reports what is wrong in them.

    common: what prompts have in common, bad_in_common: which of its keys are wrong.
    """

    def __init__(
        self,
        text: YamlFile,
        folder: Path,
        kind: str | None,
        flags: Mapping[str, Any],
        common: Mapping[str, Any],
        bad_in_common: set[str],
    ) -> None:
        self._text, self._folder, self._kind, self._flags = text, folder, kind, flags
        self._common, self._bad_in_common = common, bad_in_common
        self._firsts: dict[str, int] = {}  # which prompt has the name
        self.n_disabled = 0

    def job(self, index: int, item: Any) -> Job | None:
        """The job of a prompt; None where it is disabled, or where something is wrong in it or in one before it."""
        text, at = self._text, ("prompts", index)
        entry, bad = check(text, PromptLevel, item, at)
        if "name" not in bad and (problem := job_name_problem(entry.name)):
            text.report((*at, "name"), problem)
            bad.add("name")
        values = self._common | _set(entry)
        if values.get("groups") not in (None, *GROUPS):
            values["groups"] = os.path.abspath(self._folder / values["groups"])
        if (values.get("routes") or "").endswith((".yaml", ".yml")):
            values["routes"] = os.path.abspath(self._folder / values["routes"])
        values |= self._flags
        if not values.get("enabled", True):
            self.n_disabled += 1
            return None
        if "name" not in bad and (first := self._firsts.setdefault(same_name(entry.name), index)) != index:
            taken = text.line(("prompts", first, "name"))
            text.report((*at, "name"), f"the name {shown(entry.name)} is taken, in line {taken}; give another")
        prompt = entry.prompt
        if prompt.endswith(".txt") and "\n" not in prompt:
            try:
                prompt = read_prompt_file(self._folder / prompt)
            except InputError as error:
                text.report((*at, "prompt"), str(error))
                bad.add("prompt")
        images = located(self._folder, values.get("image_path"))
        videos = tuple(os.path.abspath(self._folder / video) for video in values.get("video_path") or ())
        for key, problem in job_problems(self._kind, prompt, images, values, "image_path", videos):
            wrong_too = bad | self._bad_in_common
            follows = {key, "image_path", "video_path", "enabled"} & wrong_too  # from another problem, and is none
            if not follows:
                inherited = key in ("image_path", "video_path", "groups") and key not in entry.model_fields_set
                text.report(("defaults", key) if inherited else (*at, key), problem)
        carried = (entry.labels or {}) | ({} if entry.expected is None else {"expected": entry.expected})
        return None if text.problems else Job(entry.name, prompt, images, run_settings(values), carried, videos)


def _located_model(folder: Path, path: str | None) -> str | None:
    """A model beside the file is found there; `demo`, `smollm2`, hub ids and what is nowhere stay as they are."""
    if path and path not in (DEMO, SMOLLM2) and os.path.exists(folder / path):
        return os.path.abspath(folder / path)
    return path


def _set(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(exclude_unset=True)
