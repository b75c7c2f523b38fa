"""What may stand where in a configuration file and in a dataset's row, and what is said of what may not.

The keys that are settings, with their types and bounds, come from `analyses.settings`; those of the files alone stand here.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, create_model

from mask_impact.analyses.settings import SETTINGS, Setting
from mask_impact.errors import described, nearest, shown
from mask_impact.prompts.yaml_file import YamlFile


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


def _fields(settings: list[Setting], may_be_null: bool = False) -> dict[str, Any]:
    """What pydantic takes the settings for. may_be_null: whether null is as if a setting was not given."""
    return {
        one.name: (Annotated[Any, PlainValidator(_check_of(one, may_be_null))], None if may_be_null else one.default)
        for one in settings
    }


def _check_of(one: Setting, may_be_null: bool) -> Callable[[Any], Any]:
    null = may_be_null or one.kind.null is not None
    return lambda value: None if value is None and null else one.kind.check(value)


def _in_file(place: str) -> list[Setting]:
    """The settings that may stand there, but for the model, which a file calls `model` or, in a mapping, `path`."""
    return [one for one in SETTINGS.values() if one.file == place and one.name != "model"]


def _expected(value: Any) -> Any:
    """A text, or a list of texts; ValueError."""
    texts = [value] if isinstance(value, str) else value
    if value is not None and not (
        isinstance(texts, list) and texts and all(isinstance(one, str) and one for one in texts)
    ):
        raise ValueError("neither a text nor a list of texts")
    return value


def _labels(value: Any) -> Any:
    """A mapping from names to single values; ValueError."""
    if value is not None and not (
        isinstance(value, dict)
        and all(isinstance(name, str) and name for name in value)
        and all(isinstance(one, str | int | float) for one in value.values())
    ):
        raise ValueError("not a mapping from names to single values")
    return value


_Text = Annotated[str, Field(min_length=1)]
_Paths = Annotated[list[_Text] | None, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Image = Annotated[_Paths, BeforeValidator(lambda value: None if value == "" else value)]

_Sizes = create_model("_Sizes", __base__=_Strict, **_fields(_in_file("sizes")))
_Place = create_model("_Place", __base__=_Sizes, **_fields(_in_file("model"), may_be_null=True))
ModelLevel = create_model("ModelLevel", __base__=_Place, path=(_Text | None, None))
FileLevel = create_model(
    "FileLevel",
    __base__=_Place,
    prompts=(Annotated[list[Any], Field(min_length=1)], ...),
    model=(Any, None),  # this and the next are checked on their own, so that no problem hides another
    defaults=(Any, None),
    **_fields(_in_file("top"), may_be_null=True),
)
DefaultsLevel = create_model(
    "DefaultsLevel",
    __base__=_Sizes,
    enabled=(bool, True),
    image_path=(_Paths, None),
    video_path=(_Paths, None),
    **_fields(_in_file("prompt")),
)
PromptLevel = create_model(
    "PromptLevel",
    __base__=DefaultsLevel,
    name=(str, ...),
    prompt=(str, ...),
    expected=(Annotated[Any, PlainValidator(_expected)], None),
    labels=(Annotated[Any, PlainValidator(_labels)], None),
)
RowLevel = create_model(
    "RowLevel",
    __base__=_Lenient,
    prompt=(str, ...),
    name=(str | None, None),
    image=(_Image, None),
    video=(_Image, None),
    **_fields([one for one in SETTINGS.values() if one.column], may_be_null=True),
)
SIZES = tuple(_Sizes.model_fields)

_ACCEPTED = {
    "name": "text",
    "prompt": "text",
    "path": SETTINGS["model"].kind.accepted,
    "model": "a hub id or path, or a mapping with path, "
    + ", ".join(one.name for one in (*_in_file("model"), *_in_file("sizes"))),
    "defaults": "a mapping of what prompts have in common, such as num_tokens",
    "prompts": "a list, not empty, of mappings with name and prompt",
    "enabled": "true or false",
    "expected": "text: the expected answer, or a list of texts of which one suffices, or null",
    "labels": "a mapping from names to texts, numbers, or true or false, or null",
    "image": "a path, a list of paths, or null",
    "image_path": "a path, a list of paths, or null",
    "video": "a path, a list of paths, or null",
    "video_path": "a path, a list of paths, or null",
}
_LEVELS = {
    "at the top level": FileLevel,
    "under model": ModelLevel,
    "under defaults": DefaultsLevel,
    "in a prompt": PromptLevel,
}
IN_PLACE_OF = {"name": "", "prompt": "", "prompts": [None]}  # of wrong ones, so that the other keys can be checked


def accepted(key: str) -> str:
    """What a key takes, in words."""
    if key in _ACCEPTED:
        return _ACCEPTED[key]
    one = SETTINGS[key]
    null = f", or null ({one.kind.null})" if one.kind.null and one.file in ("sizes", "prompt") else ""
    return one.kind.accepted + null


def wrong(level: type[BaseModel], loc: tuple, error: Mapping[str, Any]) -> str:
    """pydantic's error in words; loc: where in the file."""
    key = next(part for part in reversed(loc) if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        others = [where for where, other in _LEVELS.items() if key in other.model_fields]
        near = nearest(key, level.model_fields)
        hint = f"it may stand {' or '.join(others)}; " if others else f"did you mean '{near}'? " if near else ""
        here = next(where for where, other in _LEVELS.items() if other is level)
        return f"unknown key {shown(key)} {here}; {hint}accepted are {', '.join(level.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing; it must be {accepted(key)}"
    value, hint, bound = error["input"], "", ""
    if key in SETTINGS and key not in _ACCEPTED:
        kind = SETTINGS[key].kind
        hint, bound, value = kind.hint(value), kind.bound(value), kind.culprit(value)
    quotable = accepted(key).partition(":")[0] == "text" and isinstance(value, int | float)  # bool is an int
    return f"{key} must be {accepted(key)}{bound}, not {described(value)}{' (in quotes it is text)' * quotable}{hint}"


def check(file: YamlFile, level: type[BaseModel], data: Any, loc: tuple) -> tuple[Any, set[str]]:
    """The data as `level`, which stands at `loc`, without the keys that are wrong; and those keys, reported."""
    data = {} if data is None and loc in (("model",), ("defaults",)) else data
    try:
        return level.model_validate(data), set()
    except ValidationError as error:
        bad = set()
        for one in error.errors(include_url=False):
            file.report(loc + one["loc"], wrong(level, loc + one["loc"], one))
            bad |= set(one["loc"][:1] or level.model_fields)
        rest = {key: value for key, value in data.items() if key not in bad} if isinstance(data, dict) else {}
        instead = {key: value for key, value in IN_PLACE_OF.items() if key in bad and key in level.model_fields}
        return level.model_validate(rest | instead), bad
