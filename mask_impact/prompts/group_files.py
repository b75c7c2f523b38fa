"""YAML files of groups of tokens and of flows between them, and the flows that are measured where no file says which."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

from mask_impact.errors import InputError, described, shown
from mask_impact.prompts.groups import Group, Layout
from mask_impact.prompts.yaml_file import YamlFile
from mask_impact.results.flows import Flow

WINDOW = 9  # layers, where a file of flows says nothing


@dataclass(frozen=True)
class FlowSet:
    """Flows that are measured together. window: how many layers around each layer they are cut in at once."""

    window: int
    flows: tuple[Flow, ...]


def read_groups(path: str | os.PathLike, layout: Layout) -> list[Group]:
    """The groups of a YAML file, a mapping from names to specs or lists of specs, in its order.

    Raises ConfigError (an InputError) with everything that is wrong in it, as "FILE:LINE: what".
    """
    file = YamlFile(os.fspath(path), "names of groups and their specs", "give fewer groups")
    groups = []
    for name, value in file.data.items():
        if not name.strip():
            file.report((name,), "a group has no name; give it one")
        specs = value if isinstance(value, list) else [value]
        if not specs:
            file.report((name,), f"group {shown(name)} is an empty list; give at least one spec")
        found: set[int] = set()
        for index, spec in enumerate(specs):
            loc = (name, index) if isinstance(value, list) else (name,)
            if not isinstance(spec, str):
                hint = " (in quotes it is text)" * isinstance(spec, int | float)
                problem = f"group {shown(name)} must be a spec or a list of specs, not {described(spec)}{hint}"
                file.report(loc, problem)
                continue
            try:
                found.update(layout.resolve(spec))
            except InputError as error:
                file.report(loc, f"group {shown(name)}: {error}")
        if found:
            groups.append(Group(name, tuple(sorted(found))))
    if not file.data:
        file.report((), "there are no groups; a mapping with names of groups and their specs is accepted")
    file.raise_problems()
    return groups


_ACCEPTED = {
    "window": "a whole number of layers, at least 1",
    "flows": "a list, not empty, of mappings with source and target",
    "name": "text that is not blank",
    "source": "text that is a spec, such as image",
    "target": "text that is a spec, such as question or last",
    "heads": "a list, not empty, of numbers of heads, from 0",
}


def read_flows(path: str | os.PathLike) -> FlowSet:
    """The flows of a YAML file with the keys `flows` and, where wanted, `window`; what their specs mean is not looked at.

    Raises ConfigError (an InputError) with everything that is wrong in it, as "FILE:LINE: what".
    """
    from pydantic import ValidationError

    file_schema, flow_schema = _schemas()
    file = YamlFile(os.fspath(path), "flows", "give fewer flows")
    checked = None
    try:
        checked = file_schema.model_validate(file.data)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            file.report(one["loc"], _wrong(file_schema if len(one["loc"]) == 1 else flow_schema, one))
    entries = file.data.get("flows")
    firsts: dict[str, int] = {}  # which flow has the name
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        name = _name_of(entry) if isinstance(entry, dict) else None
        if name is not None and (first := firsts.setdefault(name, index)) != index:
            taken = file.line(("flows", first, "name"))
            file.report(("flows", index, "name"), f"the name {shown(name)} is taken, in line {taken}; give another")
    file.raise_problems()
    flows = (
        Flow(_name_of(vars(entry)), entry.source, entry.target, entry.heads and tuple(sorted(entry.heads)))
        for entry in checked.flows
    )
    return FlowSet(WINDOW if checked.window is None else checked.window, tuple(flows))


def default_flows(parts: Sequence[str]) -> FlowSet:
    """The flows that are measured where no file says which. parts: those of a Layout."""
    pairs = [(part, end) for part in parts if part != "timestamps" for end in ("question", "last")]
    if "timestamps" in parts:
        pairs += [("timestamps", "video"), ("timestamps", "question")]
    return FlowSet(
        WINDOW,
        tuple(Flow(f"{source} -> {target}", source, target) for source, target in [*pairs, ("question", "last")]),
    )


def _name_of(entry: Mapping[str, Any]) -> str | None:
    """What a flow is called; None where what makes its name is wrong."""
    name, ends = entry.get("name"), (entry.get("source"), entry.get("target"))
    if name is None and all(isinstance(end, str) for end in ends):
        return " -> ".join(ends)
    return name if isinstance(name, str) else None


@cache
def _schemas() -> tuple[Any, Any]:
    """The pydantic models of a file of flows, and of a flow in it."""
    from typing import Annotated

    from pydantic import AfterValidator, BaseModel, ConfigDict, Field

    def different(heads: list[int]) -> list[int]:
        if twice := [head for head, other in pairwise(sorted(heads)) if head == other]:
            raise ValueError(f"head {twice[0]} is given twice; keep one")
        return heads

    text = Annotated[str, Field(pattern=r"\S")]
    head = Annotated[int, Field(ge=0)]
    some_heads = Annotated[list[head], Field(min_length=1), AfterValidator(different)]

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")

    class FlowEntry(Strict):
        source: text
        target: text
        name: text | None = None
        heads: some_heads | None = None

    class FlowFile(Strict):
        flows: Annotated[list[FlowEntry], Field(min_length=1)]
        window: Annotated[int, Field(ge=1)] | None = None

    return FlowFile, FlowEntry


def _wrong(level: Any, error: Mapping[str, Any]) -> str:
    """pydantic's error in words; level: the model of what the key stands in."""
    key = next(part for part in reversed(error["loc"]) if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        near = get_close_matches(key.lower(), level.model_fields, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key {shown(key)}; {hint}accepted are {', '.join(level.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing; it must be {_ACCEPTED[key]}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    hint = " (in quotes it is text)" * (_ACCEPTED[key].startswith("text") and isinstance(error["input"], int | float))
    return f"{key} must be {_ACCEPTED[key]}, not {described(error['input'])}{hint}"
