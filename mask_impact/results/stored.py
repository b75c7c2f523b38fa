"""All that is stored under one name: distances, what the answer used, cut flows, answers without something.

Each kind has files of its own; what belongs to another prompt or model than the first of them is left out, and said.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_impact.errors import OutputError
from mask_impact.results.answer_files import load_whatif
from mask_impact.results.answers import WhatIf
from mask_impact.results.explanation_files import load_explanation
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import name_and_kind, settle
from mask_impact.results.flow_files import load_flows
from mask_impact.results.flows import Knockouts
from mask_impact.results.foreign import read_results
from mask_impact.results.foreign_tables import Grid
from mask_impact.results.records import Result
from mask_impact.results.siblings import asked
from mask_impact.results.table_files import beside

# Of each kind that may stand by itself its main file, and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "answer": ("answer.meta.json", load_explanation),
    "flows": ("flows.meta.json", load_flows),
    "whatif": ("whatif.json", load_whatif),
}


@dataclass(frozen=True)
class Stored:
    """What there is of one prompt, None for what there is not; at least one of them. answer: the result's own where it has one.
    notes: what was left out, and why."""

    result: Result | None = None
    answer: Explanation | None = None
    flows: Knockouts | None = None
    whatif: WhatIf | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, one: "Result | Explanation | Knockouts | WhatIf | Stored") -> "Stored":
        """One of them by itself."""
        if isinstance(one, Result):
            return cls(result=one, answer=one.answer)
        if isinstance(one, Explanation):
            return cls(answer=one)
        if isinstance(one, Knockouts):
            return cls(flows=one)
        return cls(whatif=one) if isinstance(one, WhatIf) else one

    @property
    def parts(self) -> list[Any]:
        """Those that there are."""
        return [one for one in (self.result, self.answer, self.flows, self.whatif) if one is not None]

    @property
    def meta(self) -> Mapping[str, Any]:
        """What was run, of the first of them."""
        return self.parts[0].meta


class AllStored(Mapping[str, Stored]):
    """By prompt, each read when it is asked for; source: how it was named."""

    def __init__(self, source: str, results: Mapping[str, Any]) -> None:
        self.source, self._results = source, results

    def __getitem__(self, name: str) -> Stored:
        return Stored.of(self._results[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)


def read_stored(
    path: str | os.PathLike, grids: Sequence[Grid] | None = None, prompt_name: str | None = None
) -> AllStored:
    """What `path` names, with what else is stored under its name; see `foreign.read_results` for tables of others, folders,
    grids, prompt_name and errors."""
    path = Path(path)
    (_, kind), stem = name_and_kind(path.name), stem_of(path)
    settle(path)
    if not path.name or not (kind or _is_own(path, stem)):
        results = read_results(path, grids, prompt_name)
        return AllStored(str(path), results)
    if grids or prompt_name is not None:
        read_results(path, grids, prompt_name)  # which says what is wrong with them
    return AllStored(str(path), {stem.name: _of_name(stem, kind)})


def stem_of(path: str | os.PathLike) -> Path:
    """The name that a file belongs to, in its folder: output/star of output/star.flows.csv, output/star.answer, output/star."""
    path = Path(path)
    return path.parent / name_and_kind(path.name)[0] if path.name else path


def _is_own(path: Path, stem: Path) -> bool:
    """Whether the path names what this program stored, by the name or by one of its files."""
    if not any(beside(stem, file).is_file() for file, _ in READERS.values()):
        return False
    return path.name in (stem.name, f"{stem.name}.meta.json") or beside(stem, "meta.json").is_file()


def _of_name(stem: Path, first: str | None) -> Stored:
    """All of a name; first: the kind that was asked for by its file, which the others have to belong to."""
    found: dict[str, Any] = {}
    unread: list[OutputError] = []
    if beside(stem, "meta.json").is_file():
        result = read_results(stem)[stem.name]
        found = {"result": result, "answer": result.answer}
    for kind, (file, read) in READERS.items():
        if found.get(kind) is None and (beside(stem, file).is_file() or first == kind):
            try:
                found[kind] = read(stem)
            except OutputError as error:  # such as a file of an earlier version
                if first == kind:
                    raise
                unread.append(error)
    found = {kind: one for kind, one in found.items() if one is not None}
    if not found:
        raise unread[0]
    of = found[first if first in found else next(iter(found))]
    other = [kind for kind, one in found.items() if _asked(one) != _asked(of)]
    notes = (
        *(f"{stem.name}.{kind} is of another prompt, image or model, and left out" for kind in other),
        *(f"Left out: {error}" for error in unread),
    )
    return Stored(**{kind: one for kind, one in found.items() if kind not in other}, notes=notes)


def _asked(one: Any) -> tuple[Any, ...]:
    """What runs of one prompt have in common."""
    return asked(one.meta, [image.source for image in getattr(one, "images", ())])
