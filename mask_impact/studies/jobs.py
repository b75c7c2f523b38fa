"""A prompt of many, ready to run, and the checks that a configuration and a dataset have in common."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask_impact.analyses.settings import GROUPS, SETTINGS, RunSettings, of_class
from mask_impact.errors import InputError, public_address, shown
from mask_impact.prompts.marks import check_image_marks, check_prompt, is_data
from mask_impact.results.files import name_problem

NO_FLAGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Job:
    """One prompt, ready to run. name: unique in its file, its result is {name}_results. prompt: the text itself. images:
    absolute paths, or URLs as given; videos: absolute paths. carried: a dataset's columns that are not ours, as they were
    read; of a configuration the labels and the expected answer."""

    name: str
    prompt: str
    images: tuple[str, ...]
    settings: RunSettings
    carried: dict[str, Any]
    videos: tuple[str, ...] = ()


def result_name(job: Job) -> str:
    """Under which its result is stored."""
    return f"{job.name}_results"


@dataclass(frozen=True)
class Problem:
    """A dataset row that can't be a job. row: the line of a JSONL file, else which row of data, from 1."""

    row: int
    name: str | None
    message: str


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given. UsageError for a value that can't be right, TypeError for a key that is none."""
    if unknown := set(flags) - {*SETTINGS}:
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    return {key: SETTINGS[key].checked(value) for key, value in flags.items() if value is not None}


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """The settings of a run among the values."""
    return RunSettings(**{one.name: values[one.name] for one in of_class(RunSettings) if one.name in values})


def differing(jobs: Iterable[Job]) -> set[str]:
    """The settings in which jobs differ."""
    found = {job.settings for job in jobs}
    names = (one.name for one in of_class(RunSettings))
    return {name for name in names if len({getattr(one, name) for one in found}) > 1}


def is_url(text: str) -> bool:
    """Whether an image is given by an http(s) URL."""
    return re.match("https?://", text, re.IGNORECASE) is not None


def located(folder: Path, images: Iterable[str] | None) -> tuple[str, ...]:
    """Images as absolute paths, those of a file relative to its folder; URLs as they are."""
    return tuple(
        image if is_url(image) or is_data(image) else os.path.abspath(folder / image) for image in images or ()
    )


def job_name_problem(name: str) -> str | None:
    """Why a prompt can't have this name; None where it can."""
    problem = name_problem(name) or name_problem(f"{name}_results")  # the second for its length
    if problem is None:
        return None
    return f"the name {shown(name)} {problem.partition(';')[0]}; a plain file name such as 'my_results' is accepted"


def same_name(name: str) -> str:
    """Equal for names that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def job_problems(
    kind: str | None,
    prompt: str,
    images: tuple[str, ...],
    values: Mapping[str, Any],
    image_key: str,
    videos: tuple[str, ...] = (),
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a prompt whose values are right each on its own. image_key: what images are called
    there."""
    video_key = image_key.replace("image", "video")
    if kind == "text" and videos:
        yield video_key, "a text model takes no video; leave it out, or use mask_impact_vl.py"
        videos = ()
    if kind == "text" and images:
        yield image_key, "a text model takes no image; leave it out, or use mask_impact_vl.py"
        images = ()
    elif values.get("mask_mode") == "vision" and not images and not videos:
        yield "mask_mode", f"mask_mode vision needs an image; give {image_key if kind != 'text' else 'text or both'}"
    try:
        check_prompt(prompt)
        if kind == "vl" or images or videos:
            check_image_marks(prompt, len(images), len(videos))
    except InputError as error:
        yield "prompt", str(error).replace("`image`", image_key).replace("`video`", video_key)
    for image in images:
        if is_url(image):
            if not values.get("allow_remote"):
                address = shown(public_address(image))
                yield image_key, f"image {address} is fetched only where `allow_remote` is given; give a file"
        elif not is_data(image) and not os.path.isfile(image):
            what = "is a folder; name the files in it" if os.path.isdir(image) else "does not exist; give a file or URL"
            yield image_key, f"image {image!r} {what}"
    for video in videos:
        if not os.path.exists(video):
            yield video_key, f"video {video!r} does not exist; give a file, or a folder of frames"
    groups = values.get("groups")
    if groups not in (None, *GROUPS) and not os.path.isfile(groups):
        yield "groups", f"groups {groups!r} is no file; tokens, words or a YAML file of groups is accepted"
    routes = values.get("routes") or ""
    if routes.endswith((".yaml", ".yml")) and not os.path.isfile(routes):
        yield "routes", f"routes {routes!r} is no file; auto, flows such as image -> last, or a YAML file is accepted"
