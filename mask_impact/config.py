"""From a YAML batch file or a dataset to jobs, each of them checked before a model is loaded. Knows neither torch nor models.

A setting comes from the first that has it: command-line flag, the prompt itself (or the dataset's row), `defaults:`, top
level or `model:`, built-in. Paths that stand in a file are relative to its folder; flags are taken as they are.
"""

import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import count
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn

import orjson
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from mask_impact.errors import InputError
from mask_impact.files import name_problem, read_prompt_file
from mask_impact.settings import (
    ABLATIONS,
    GROUPS,
    MASK_MODES,
    MAX_COST,
    QUERIES,
    VARIANT_GROUPS,
    RunSettings,
    check_image_marks,
    check_prompt,
)  # fmt: skip
from mask_impact.store import FORMATS, parse_formats

MAX_BYTES = 10_000_000  # of a YAML file
MAX_NODES = 100_000  # keys and values of a YAML file, what its aliases stand for written out
MAX_DEPTH = 50
MAX_LINE = 64 * 2**20  # bytes of a JSONL line
MAX_FIELD = 2**17  # characters of a CSV field: behind a quote that is left open the rest of the file is one
NO_FLAGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Job:
    """One prompt, ready to run. name: unique in its file, its result is {name}_results. prompt: the text itself. images:
    absolute paths, or URLs as given. carried: a dataset's columns that are not ours, as they were read."""

    name: str
    prompt: str
    images: tuple[str, ...]
    settings: RunSettings
    carried: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A dataset row that can't be a job. row: the line of a JSONL file, else which row of data, from 1."""

    row: int
    name: str | None
    message: str


@dataclass(frozen=True)
class BatchConfig:
    """A YAML file. jobs: the prompts that are enabled, in their order. model, formats: None where the default holds."""

    model: str | None
    revision: str | None
    device: str
    dtype: str
    formats: tuple[str, ...] | None
    output_dir: Path
    jobs: tuple[Job, ...]
    n_disabled: int


class ConfigError(InputError):
    """Everything that is wrong in a configuration file: problems are lines "FILE:LINE: what is wrong; what is accepted"."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


# --- what may stand where -------------------------------------------------------------------------------------------------


def _listed(value: Any) -> Any:
    """ "csv, JSON" and ["csv", "JSON"] as ["csv", "json"]."""
    parts = value.split(",") if isinstance(value, str) else value
    return [_lower(part) for part in parts] if isinstance(parts, list | tuple) else parts


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _window(value: Any) -> int | str:
    value = _lower(value)
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise ValueError("no window")


_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Mode = Annotated[Literal[(*MASK_MODES, "all")], BeforeValidator(_lower)]
_Paths = Annotated[list[_Text] | None, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Image = Annotated[_Paths, BeforeValidator(lambda value: None if value == "" else value)]
_Formats = Annotated[list[Literal[FORMATS]], Field(min_length=1), BeforeValidator(_listed)]
_Variants = Annotated[list[Literal[VARIANT_GROUPS]], Field(min_length=1), BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Sizes(_Strict):
    max_image_resolution: _Count | None = None
    batch_size: _Count | None = None


class _Place(_Sizes):
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    revision: _Text | None = None


class _Model(_Place):
    path: _Text | None = None


class _File(_Place):
    prompts: Annotated[list[Any], Field(min_length=1)]
    model: Any = None  # this and what follows are checked on their own, so that no problem hides another
    defaults: Any = None
    formats: _Formats | None = None
    output_dir: _Text | None = None


class _Defaults(_Sizes):
    enabled: bool = True
    image_path: _Paths = None
    num_tokens: _Count = 1
    mask_mode: _Mode = "both"
    variants: _Variants = list(VARIANT_GROUPS)
    raw: bool | None = None
    verify: Annotated[int, Field(ge=0)] = 0
    ablation: Literal[ABLATIONS] = "mask"
    effect: bool = False
    window: Annotated[Any, PlainValidator(_window)] = 1
    queries: Literal[QUERIES] = "last"
    groups: _Text = "tokens"
    max_cost: _Count = MAX_COST


class _Prompt(_Defaults):
    name: str
    prompt: str


class _Row(_Strict):
    model_config = ConfigDict(extra="ignore")

    prompt: str
    name: str | None = None
    image: _Image = None
    num_tokens: _Count | None = None
    mask_mode: _Mode | None = None
    max_image_resolution: _Count | None = None


_ACCEPTED = {
    "name": "text",
    "prompt": "text",
    "path": "text: a hub id, a folder, a .gguf file, demo or smollm2",
    "revision": "text: a branch, tag or commit",
    "device": "auto, cpu, cuda, cuda:N or mps",
    "dtype": "auto, float32, bfloat16 or float16",
    "max_image_resolution": "a whole number of pixels, at least 1, or null (images as they are)",
    "batch_size": "a whole number, at least 1, or null (by free memory)",
    "formats": "some of csv, json, parquet",
    "output_dir": "text: a folder",
    "model": "a hub id or path, or a mapping with path, device, dtype, revision, max_image_resolution, batch_size",
    "defaults": "a mapping of what prompts have in common, such as num_tokens",
    "prompts": "a list, not empty, of mappings with name and prompt",
    "enabled": "true or false",
    "image": "a path, a list of paths, or null",
    "image_path": "a path, a list of paths, or null",
    "num_tokens": "a whole number, at least 1",
    "mask_mode": "text, vision, both or all",
    "variants": "some of full, attn, heads",
    "raw": "true, false, or null (as the model needs it)",
    "verify": "a whole number, at least 0",
    "ablation": "mask, zero-value or mean-value",
    "effect": "true or false",
    "window": "a whole number of layers, at least 1, or all",
    "queries": "last or all",
    "groups": "text: tokens, words, or a path of a YAML file of groups",
    "max_cost": "a whole number of row-layers, at least 1",
}
_LEVELS = {"at the top level": _File, "under model": _Model, "under defaults": _Defaults, "in a prompt": _Prompt}
_IN_PLACE_OF = {"name": "", "prompt": "", "prompts": [None]}  # of wrong ones, so that the other keys can be checked
_SIZES = tuple(_Sizes.model_fields)
_PLACES = ("model", "revision", "device", "dtype", "formats", "output_dir")
_SETTINGS = {field.name.removeprefix("n_"): field.name for field in fields(RunSettings)}  # as they are called here


def _wrong(level: type[BaseModel], loc: tuple, error: Mapping[str, Any]) -> str:
    """pydantic's error in words; loc: where in the file."""
    key = next(part for part in reversed(loc) if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        others = [where for where, other in _LEVELS.items() if key in other.model_fields]
        near = get_close_matches(key.lower(), level.model_fields, 1)
        hint = f"it may stand {' or '.join(others)}; " if others else f"did you mean '{near[0]}'? " if near else ""
        here = next(where for where, other in _LEVELS.items() if other is level)
        return f"unknown key {_shown(key)} {here}; {hint}accepted are {', '.join(level.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing; it must be {_ACCEPTED[key]}"
    quotable = _ACCEPTED[key].partition(":")[0] == "text" and isinstance(error["input"], int | float)  # bool is an int
    return f"{key} must be {_ACCEPTED[key]}, not {described(error['input'])}{' (in quotes it is text)' * quotable}"


def described(value: Any) -> str:
    """A value of a file in words, as in "must be text, not the number 5"."""
    if isinstance(value, bool):  # before int, which it is too
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:60]}"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    kind = type(value).__name__
    return "an empty list" if value == [] else {"NoneType": "null", "dict": "a mapping"}.get(kind, f"a {kind}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


# --- what a file and a dataset have in common -----------------------------------------------------------------------------


def _given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given. UsageError for a value that can't be right, TypeError for a key that is none."""
    if unknown := set(flags) - {*_SETTINGS, *_PLACES}:
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    given = {key: value for key, value in flags.items() if value is not None}
    for key, read in (("mask_mode", _lower), ("variants", _listed), ("formats", parse_formats)):
        if key in given:
            given[key] = read(given[key])
    _run_settings(given)
    return given


def _run_settings(values: Mapping[str, Any]) -> RunSettings:
    return RunSettings(**{_SETTINGS[key]: value for key, value in values.items() if key in _SETTINGS})


def _is_url(text: str) -> bool:
    return re.match("https?://", text, re.IGNORECASE) is not None


def _located(folder: Path, images: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(image if _is_url(image) else os.path.abspath(folder / image) for image in images or ())


def _name_problem(name: str) -> str | None:
    problem = name_problem(name) or name_problem(f"{name}_results")  # the second for its length
    if problem is None:
        return None
    shown = name if len(name) <= 60 else name[:60] + "..."
    return f"the name {shown!r} {problem.partition(';')[0]}; a plain file name such as 'my_results' is accepted"


def _same(name: str) -> str:
    """Equal for names that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _job_problems(
    kind: str, prompt: str, images: tuple[str, ...], values: Mapping[str, Any], image_key: str
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a prompt whose values are right each on its own."""
    if kind != "vl" and images:
        yield image_key, "a text model takes no image; leave it out, or use mask_impact_vl.py"
        images = ()
    elif values.get("mask_mode") == "vision" and not images:
        yield "mask_mode", f"mask_mode vision needs an image; give {image_key if kind == 'vl' else 'text or both'}"
    try:
        check_prompt(prompt)
        if kind == "vl":
            check_image_marks(prompt, len(images))
    except InputError as error:
        yield "prompt", str(error).replace("--image", image_key)
    for image in images:
        if _is_url(image):
            if not values.get("allow_remote"):
                yield image_key, f"image {_shown(image)} is fetched only where --allow-remote is given; give a file"
        elif not os.path.isfile(image):
            what = "is a folder; name the files in it" if os.path.isdir(image) else "does not exist; give a file or URL"
            yield image_key, f"image {image!r} {what}"
    groups = values.get("groups", "tokens")
    if groups not in GROUPS and not os.path.isfile(groups):
        yield "groups", f"groups {groups!r} is no file; tokens, words or a YAML file of groups is accepted"


# --- YAML -----------------------------------------------------------------------------------------------------------------


def load_config(path: str | os.PathLike, *, kind: str, overrides: Mapping[str, Any] = NO_FLAGS) -> BatchConfig:
    """The jobs of a YAML file for a model of `kind` ("vl" or "text"). overrides: command-line flags, None where not given.

    Raises ConfigError with everything that is wrong in the file, UsageError for a flag that can't be right. A revision
    in the file belongs to its model: it does not hold for a model that comes with a flag.
    """
    flags = _given_flags(overrides)
    text = YamlFile(os.fspath(path))
    folder = Path(path).parent
    file, bad = text.check(_File, text.data, ())
    model, _ = text.check(_Model, {"path": file.model} if isinstance(file.model, str) else file.model, ("model",))
    defaults, bad_in_common = text.check(_Defaults, file.defaults, ("defaults",))
    place = _set(model) | _set(file)
    for key in _set(model).keys() & _set(file).keys():
        if getattr(model, key) != getattr(file, key):
            here, there = (described(getattr(part, key)) for part in (file, model))
            text.report((key,), f"{key} is {here} here and {there} under model; give it once")
    common = {key: place[key] for key in _SIZES if key in place} | _set(defaults)

    jobs: list[Job] = []
    firsts: dict[str, int] = {}  # which prompt has the name
    n_disabled = 0
    for index, item in enumerate([] if "prompts" in bad else file.prompts):
        at = ("prompts", index)
        entry, bad = text.check(_Prompt, item, at)
        if "name" not in bad and (problem := _name_problem(entry.name)):
            text.report((*at, "name"), problem)
            bad.add("name")
        values = common | _set(entry)
        if values.get("groups", "tokens") not in GROUPS:
            values["groups"] = os.path.abspath(folder / values["groups"])
        values |= flags
        if not values.get("enabled", True):
            n_disabled += 1
            continue
        if "name" not in bad and (first := firsts.setdefault(_same(entry.name), index)) != index:
            taken = text.line(("prompts", first, "name"))
            text.report((*at, "name"), f"the name {_shown(entry.name)} is taken, in line {taken}; give another")
        prompt = entry.prompt
        if prompt.endswith(".txt") and "\n" not in prompt:
            try:
                prompt = read_prompt_file(folder / prompt)
            except InputError as error:
                text.report((*at, "prompt"), str(error))
                bad.add("prompt")
        images = _located(folder, values.get("image_path"))
        for key, problem in _job_problems(kind, prompt, images, values, "image_path"):
            if not {key, "image_path", "enabled"} & {*bad, *bad_in_common}:  # what follows from another problem is none
                inherited = key in ("image_path", "groups") and key not in entry.model_fields_set
                text.report(("defaults", key) if inherited else (*at, key), problem)
        if not text.problems:
            jobs.append(Job(entry.name, prompt, images, _run_settings(values), {}))
    if not jobs and not text.problems:
        text.report(("prompts",), f"every prompt is disabled ({n_disabled} of them); set enabled: true on at least one")
    text.raise_problems()

    path_in_file = place.get("path")
    if path_in_file and path_in_file not in ("demo", "smollm2") and os.path.exists(folder / path_in_file):
        place["path"] = os.path.abspath(folder / path_in_file)
    output_dir = folder / file.output_dir if file.output_dir else Path("output")
    return BatchConfig(
        model=flags.get("model", place.get("path")),
        revision=flags.get("revision", None if "model" in flags else place.get("revision")),
        device=flags.get("device") or place.get("device") or "auto",
        dtype=flags.get("dtype") or place.get("dtype") or "auto",
        formats=flags.get("formats", file.formats and parse_formats(file.formats)),
        output_dir=Path(flags.get("output_dir", output_dir)),
        jobs=tuple(jobs),
        n_disabled=n_disabled,
    )


def _set(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(exclude_unset=True)


class YamlFile:
    """A YAML file as data (mappings with keys of text, lists, scalars), what is wrong in it, and which line is what.

    content: what its mapping has; smaller: what to do about a file that is too large. Both are for messages.
    """

    def __init__(
        self, path: str, content: str = "model and prompts", smaller: str = "many prompts fit into a dataset"
    ) -> None:
        self.path, self._smaller = path, smaller
        text = self._read()
        try:
            loader = _Loader(text)
            self.root = loader.get_single_node()
            if self.root is None:
                self._refuse(1, f"the file is empty; a mapping with {content} is accepted")
            if not isinstance(self.root, yaml.MappingNode):
                self._refuse(self.root.start_mark.line + 1, f"no mapping; one with {content} is accepted")
            self.data = loader.value_of(self.root)
        except yaml.reader.ReaderError as error:
            problem = f"the character U+{error.character:04X} can't stand in YAML; leave it out"
            self._refuse(text.count("\n", 0, error.position) + 1, problem)
        except yaml.MarkedYAMLError as error:
            far = re.search("end of stream|<stream end>|could not find expected", error.problem)  # from where it began
            mark = (far and error.context_mark) or error.problem_mark
            plain = next(re.sub(*words, error.problem) for words in _PLAIN if re.match(words[0], error.problem))
            self._refuse(mark.line + 1, f"column {mark.column + 1}: {plain}")
        except (ValueError, OverflowError):  # PyYAML lets these through, from "\\UFFFFFFFF" for one
            self._refuse(
                loader.line + 1, f"column {loader.column + 1}: a code that stands for no character; leave it out"
            )
        self.problems = loader.problems  # (line, what is wrong in it)

    def _read(self) -> str:
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                self._refuse(None, f"larger than {MAX_BYTES // 10**6} MB; {self._smaller}")
            return data.decode()  # PyYAML leaves out a byte order mark
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} of the file (0x{data[error.start]:02x})"
            self._refuse(data.count(b"\n", 0, error.start) + 1, f"{byte} is not UTF-8; save the file as UTF-8")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self._refuse(None, f"can't be read: {getattr(error, 'strerror', error)}; give the path of a YAML file")

    def _refuse(self, line: int | None, problem: str) -> NoReturn:
        raise ConfigError([f"{self.path}{'' if line is None else f':{line}'}: {problem}"]) from None

    def check(self, level: type[BaseModel], data: Any, loc: tuple) -> tuple[Any, set[str]]:
        """The data as `level`, which stands at `loc`, without the keys that are wrong; and those keys, reported."""
        data = {} if data is None and loc in (("model",), ("defaults",)) else data
        try:
            return level.model_validate(data), set()
        except ValidationError as error:
            bad = set()
            for one in error.errors(include_url=False):
                self.report(loc + one["loc"], _wrong(level, loc + one["loc"], one))
                bad |= set(one["loc"][:1] or level.model_fields)
            rest = {key: value for key, value in data.items() if key not in bad} if isinstance(data, dict) else {}
            instead = {key: value for key, value in _IN_PLACE_OF.items() if key in bad and key in level.model_fields}
            return level.model_validate(rest | instead), bad

    def line(self, loc: tuple) -> int:
        """Where the key stands, or the element of a list; where it is not there, what it should stand in."""
        node, line = self.root, self.root.start_mark.line
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == part]
                if not found:
                    break
                key, node = found[-1]  # before it stand those that merge keys (<<) brought
                line = key.start_mark.line
            elif isinstance(node, yaml.SequenceNode):
                node = node.value[part]
                line = node.start_mark.line
        return line + 1

    def report(self, loc: tuple, problem: str) -> None:
        """Keeps what is wrong at `loc`, for raise_problems."""
        self.problems.append((self.line(loc), problem))

    def raise_problems(self) -> None:
        """ConfigError with everything that was reported, by line."""
        found = sorted(dict.fromkeys(self.problems), key=itemgetter(0))  # an anchor's are met at each of its aliases
        if found:
            raise ConfigError(f"{self.path}:{line}: {problem}" for line, problem in found)


_TAG = "tag:yaml.org,2002:"
_KINDS = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null", "merge"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
# PyYAML's messages in plain words, the first that fits.
_PLAIN = (
    (r"found character '\\t' .*", "a tab, where YAML takes only spaces; indent with spaces"),
    (r"found character (.+) that cannot start.*", r"text can't begin with \1; put it in quotes"),
    ("mapping values are not allowed.*", "a ':' where none can be; check the indentation, put text with ': ' in quotes"),
    ("could not find expected ':'.*", "neither 'key: value' nor part of what is above; check indentation and quotes"),
    ("expected (<block end>|'<document start>').*", "this does not fit what is above; check indentation and quotes"),
    (r"expected ',' or '(.)'.*", r"a comma or the closing \1 is missing; give it"),
    ("found unexpected end of stream.*", "a quote is opened here and never closed; close it"),
    ("found undefined alias (.+)", r"there is no anchor for the alias \1; put text that begins with * in quotes"),
    ("found unknown escape character (.+)", r"a backslash and \1 in double quotes; take single quotes, or two backslashes"),
    ("but found another document", "a second document (---) begins here; one is accepted"),
    ("expected a mapping (or list of mappings )?for merging.*", "<< with something else; it takes mappings"),
    ("second occurrence", "an anchor with a name that is taken; give it another"),
    ("expected chomping or indentation.*", "text can't begin with | or >; put it in quotes"),
    ("(?s).*", r"\g<0>; check indentation and quotes"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Reads nothing but text, numbers, true, false, null, lists and mappings, and knows their size before it writes them out.

    Numbers are decimal: 010, 0x10, 1:30 and dates are text, where YAML 1.1 would make 8, 16, 90 and dates of them.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[tuple[int, str]] = []
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # of complete nodes: nodes, written out, and levels in it
        self._n_nodes = self._level = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._n_nodes += 1
        self._level += 1
        self._limit(self._n_nodes, self._level, mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if not is_alias:
            self._extents[node] = self._checked(node)
        elif node not in self._extents:
            raise ComposerError(None, None, "an alias inside of what it stands for; it would have no end", mark)
        self._limit(*self._extents[node], mark)
        return node

    def _limit(self, n_nodes: int, level: int, mark: yaml.Mark) -> None:
        if n_nodes > MAX_NODES:
            problem = f"more than {MAX_NODES:,} keys and values, with its aliases written out; use fewer"
            raise ComposerError(None, None, problem, mark)
        if level > MAX_DEPTH:
            raise ComposerError(None, None, f"more than {MAX_DEPTH} levels in each other; use fewer", mark)

    def _checked(self, node: yaml.Node) -> tuple[int, int]:
        line, tag = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
        if tag not in _KINDS[type(node)]:
            shown = tag if tag.startswith("!") else f"!!{tag}"
            self.problems.append((line, f"the tag {_shown(shown)} is not accepted; leave tags out"))
            node.tag = self.resolve(type(node), "", (False, True))  # goes on as text, list or mapping
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
            firsts: dict[str, int] = {}
            for key in parts[::2]:
                if not isinstance(key, yaml.ScalarNode):
                    raise ComposerError(None, None, "a list or a mapping as a key; keys are text", key.start_mark)
                line = key.start_mark.line + 1
                if key.value in firsts:
                    problem = f"the key {_shown(key.value)} is given twice, first in line {firsts[key.value]}; keep one"
                    self.problems.append((line, problem))
                firsts.setdefault(key.value, line)
        extents = [self._extents[part] for part in parts]
        return 1 + sum(n for n, _ in extents), 1 + max((levels for _, levels in extents), default=0)

    def value_of(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)  # merge keys
            return {key.value: self.value_of(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(part) for part in node.value]
        try:
            return self.construct_object(node)
        except (ValueError, LookupError):  # !!int abc, or digits without end
            problem = f"{_shown(node.value)} can't be read as its tag or its digits say; give a plain value"
            raise ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_TAG) not in ("int", "timestamp", "value")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z"), list("-+0123456789"))
_Loader.add_constructor(f"{_TAG}merge", yaml.SafeLoader.construct_yaml_str)  # as a value it is text


# --- datasets -------------------------------------------------------------------------------------------------------------


def read_dataset(
    path: str | os.PathLike, *, kind: str, defaults: Mapping[str, Any] = NO_FLAGS
) -> Iterator[Job | Problem]:
    """A job for each row of a .jsonl, .csv or .parquet file, or the problem that it has; the file is read as it goes.

    Columns: prompt, and name, image, num_tokens, mask_mode, max_image_resolution where wanted; others are carried along.
    Nothing but the hash of each name is kept. defaults: command-line flags, None where not given, which win over a row. In CSV
    an empty field is not given, and an image that is written as a JSON list is a list. Raises InputError, when called, for a
    file that can't be read, of another suffix or without the column prompt; UsageError for a flag that can't be right.
    """
    flags, path = _given_flags(defaults), Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"dataset '{path}' has none of the suffixes that are read; accepted are {', '.join(_READERS)}")
    with closing(read(path)) as rows:
        _, columns = next(rows, (0, []))
    if isinstance(columns, str):
        raise InputError(f"dataset '{path}' has no column prompt: {columns}")
    if "prompt" not in columns:
        raise InputError(f"dataset '{path}' has no column prompt; its columns are {_shown(', '.join(columns))}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise InputError(f"dataset '{path}' has several columns {_shown(twice[0])}; give each a name of its own")
    return _jobs(read(path), path.parent, kind, flags)


def count_rows(path: str | os.PathLike) -> int:
    """About how many rows a dataset has, without reading it row by row (line breaks within texts count as well)."""
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    with open(path, "rb") as file:
        n_lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return max(1, n_lines - (path.suffix.lower() == ".csv"))


def _jobs(rows: Iterator[tuple[int, Any]], folder: Path, kind: str, flags: dict[str, Any]) -> Iterator[Job | Problem]:
    names: set[int] = set()
    number = 0
    with closing(rows):
        next(rows)  # the columns
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except (InputError, OSError) as error:
                yield Problem(number + 1, None, f"{error}; no row is read from here on")
                return
            name = row.get("name") if isinstance(row, dict) else None
            try:
                yield _job(row, number, folder, kind, flags, names)
            except InputError as error:
                yield Problem(number, name if isinstance(name, str) else None, str(error))


def _job(row: Any, number: int, folder: Path, kind: str, flags: dict[str, Any], names: set[int]) -> Job:
    """InputError with all that is wrong in the row; a str stands for a row that could not be read, and says why."""
    if isinstance(row, str):
        raise InputError(row)
    if row.get("image_path") is not None:
        raise InputError("image_path is the key of a configuration; in a dataset the column is called image")
    row = _plain(row)
    try:
        entry = _Row.model_validate(row)
    except ValidationError as error:
        raise InputError("; ".join(_wrong(_Row, one["loc"], one) for one in error.errors(include_url=False))) from None
    name = f"row_{number:06d}" if entry.name is None else entry.name
    problems = [problem] if entry.name is not None and (problem := _name_problem(name)) else []
    if not problems:
        hashed = int.from_bytes(hashlib.blake2b(_same(name).encode(), digest_size=8).digest())
        if hashed in names:
            problems.append(f"the name {_shown(name)} is that of an earlier row; give another")
        names.add(hashed)
    own = {key: getattr(entry, key) for key in ("num_tokens", "mask_mode", "max_image_resolution")}
    values = {key: value for key, value in own.items() if value is not None} | flags
    images = _located(folder, entry.image)
    problems += [problem for _, problem in _job_problems(kind, entry.prompt, images, values, "image")]
    if problems:
        raise InputError("; ".join(problems))
    carried = {key: value for key, value in row.items() if key not in _Row.model_fields}
    return Job(name, entry.prompt, images, _run_settings(values), carried)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers in our columns as they were before pandas: a whole column is of one type there, so a missing
    number makes floats of all, and names may be numbers."""
    plain = dict(row)
    for key in _Row.model_fields.keys() & row.keys():
        value = row[key]
        if isinstance(value, float) and value != value:
            plain[key] = None
        elif isinstance(value, float) and value.is_integer() and key != "prompt":
            plain[key] = int(value)
    if isinstance(plain.get("name"), int) and not isinstance(plain["name"], bool):
        plain["name"] = str(plain["name"])
    return plain


# Each reader yields (0, columns), and then (number, row as a mapping, or why there is none) for each row.


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path, "rb") as file:
        yield 0, ["prompt"]  # each line has columns of its own
        for number in count(1):
            line = file.readline(MAX_LINE)
            if not line:
                return
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield number, f"the line is longer than {MAX_LINE // 2**20} MiB"
            elif not line.isspace():
                yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json_object(line: bytes) -> Any:
    try:
        row = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the line is not UTF-8; save the file as UTF-8"
    except orjson.JSONDecodeError as error:
        return f'column {error.colno} of the line is no JSON: {error.msg}; {{"prompt": "..."}} is accepted'
    return row if isinstance(row, dict) else f"the line must be a JSON object, not {described(row)}"


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_FIELD)  # which is the process's: what else reads CSV here sets its own
    with _opened(path, "r", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.reader(file, strict=True)  # strict: a quote that is left open is an error, not the rest of the file
        columns: list[str] = []
        try:
            for number, row in enumerate(filter(None, lines)):
                columns = columns or row
                if not "".join(row).isascii() and re.search("[\ud800-\udfff]", "".join(row)):
                    yield number, "the row is not UTF-8; save the file as UTF-8"
                elif len(row) != len(columns):
                    yield number, f"{len(row)} fields, where the first line has {len(columns)}; put commas in quotes"
                else:
                    yield number, _typed(dict(zip(columns, row, strict=True))) if number else columns
        except csv.Error as error:
            raise InputError(f"dataset '{path}' is no CSV, line {lines.line_num}: {error}; check its quotes") from None


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """In the columns that are ours, text as what it stands for."""
    own = {key: row[key] for key in _Row.model_fields if row.get(key) or (key == "prompt" and key in row)}
    typed: dict[str, Any] = {key: value for key, value in row.items() if key not in _Row.model_fields} | own
    for key in ("num_tokens", "max_image_resolution"):
        if number := re.fullmatch(r"([-+]?[0-9]{1,15})(\.0*)?", own.get(key, "").strip()):
            typed[key] = int(number[1])
    if own.get("image", "").startswith("["):
        with suppress(orjson.JSONDecodeError):  # then it is a path
            typed["image"] = orjson.loads(own["image"])
    return typed


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with _opened(path, "rb") as file, parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as table:
            yield 0, table.schema_arrow.names  # pre_buffer would read all row groups before the first row
            batches = table.iter_batches(batch_size=256)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"dataset '{path}' can't be read as Parquet: {' '.join(str(error).split())}") from None


def _opened(path: Path, mode: str, **how: Any) -> Any:
    try:
        file = open(path, mode, **how)  # noqa: SIM115  closed by who asked for it
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"dataset '{path}' can't be read: {getattr(error, 'strerror', error)}; give a file") from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise InputError(f"dataset '{path}' is empty; give rows with a prompt")
    return file


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
