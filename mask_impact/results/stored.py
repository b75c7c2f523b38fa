"""All that is stored under one name: distances, what the answer used, cut flows, answers without something, what pixels and
parts of an image's features do, what the vision tower reads.

Each kind has files of its own; what belongs to another prompt or model than the first of them is left out, and said.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.answer_files import load_whatif
from mask_impact.results.answers import WhatIf
from mask_impact.results.dataset_answers import DatasetAnswers
from mask_impact.results.deepstack import DeepstackEffects
from mask_impact.results.deepstack_files import load_deepstack
from mask_impact.results.explanation_files import load_explanation
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import name_and_kind, settle
from mask_impact.results.flow_files import load_flows
from mask_impact.results.flows import Knockouts
from mask_impact.results.foreign import Results, read_results
from mask_impact.results.foreign_tables import Grid
from mask_impact.results.patch_files import load_patches
from mask_impact.results.patches import PatchEffects
from mask_impact.results.records import Result
from mask_impact.results.siblings import asked
from mask_impact.results.study_folder import IMPACT, parts_of
from mask_impact.results.table_files import beside
from mask_impact.results.tower import TowerEffects
from mask_impact.results.tower_files import load_tower

# Of each kind that may stand by itself its main file, and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "answer": ("answer.meta.json", load_explanation),
    "flows": ("flows.meta.json", load_flows),
    "whatif": ("whatif.json", load_whatif),
    "patches": ("patches.meta.json", load_patches),
    "deepstack": ("deepstack.meta.json", load_deepstack),
    "tower": ("tower.meta.json", load_tower),
}


@dataclass(frozen=True)
class Stored:
    """What there is of one prompt, None for what there is not; at least one of them. answer: the result's own where it has one.
    notes: what was left out, and why."""

    result: Result | None = None
    answer: Explanation | None = None
    flows: Knockouts | None = None
    whatif: WhatIf | None = None
    patches: PatchEffects | None = None
    deepstack: DeepstackEffects | None = None
    tower: TowerEffects | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, one: "Result | Explanation | Knockouts | WhatIf | PatchEffects | DeepstackEffects | TowerEffects | Stored"
    ) -> "Stored":
        """One of them by itself."""
        if isinstance(one, Result):
            return cls(result=one, answer=one.answer, patches=one.patches)
        kinds = {"answer": Explanation, "flows": Knockouts, "whatif": WhatIf, "patches": PatchEffects}
        for kind, record in (kinds | {"deepstack": DeepstackEffects, "tower": TowerEffects}).items():
            if isinstance(one, record):
                return cls(**{kind: one})
        return one

    @property
    def parts(self) -> list[Any]:
        """Those that there are."""
        every = (self.result, self.answer, self.flows, self.whatif, *self.looked)
        return [one for one in every if one is not None]

    @property
    def looked(self) -> list[Any]:
        """Of pixels, parts of features and the vision tower those that there are."""
        return [one for one in (self.patches, self.deepstack, self.tower) if one is not None]

    @property
    def meta(self) -> Mapping[str, Any]:
        """What was run, of the first of them."""
        return self.parts[0].meta


Reader = Callable[[bool], Stored]  # of one prompt: with its distances, or without, where there is anything else


class AllStored(Mapping[str, Stored]):
    """By prompt, each read when it is asked for; source: how it was named."""

    def __init__(self, source: str, readers: Mapping[str, Reader]) -> None:
        self.source, self._readers = source, readers

    def __getitem__(self, name: str) -> Stored:
        return self._readers[name](True)

    def lean(self, name: str) -> Stored:
        """Of a prompt all but the distances, which are the most of it; all, where there is nothing else."""
        return self._readers[name](False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def only(self, name: str) -> "AllStored":
        """One of the prompts. UsageError where it is none."""
        if name not in self:
            some = ", ".join(repr(one) for one in list(self)[:5]) + (", ..." if len(self) > 5 else "")
            raise UsageError(f"{self.source} has no prompt {name!r}; it has {some}")
        return AllStored(self.source, {name: self._readers[name]})


def without_distances(one: Stored) -> Stored:
    """All but the distances, or what there is where that is nothing."""
    return one if one.parts == [one.result] else replace(one, result=None)


def joined(found: Sequence[AllStored]) -> AllStored:
    """Several as one. What is named twice, by two of its files say, is there once; where two have a prompt of the same name, it
    is called by folder and name."""
    kept: dict[Path, AllStored] = {}
    for one in found:
        kept.setdefault(stem_of(one.source), one)
    names = [name for one in kept.values() for name in one]
    readers = {
        name if names.count(name) == 1 else str(stem if stem.name == name else stem / name): one._readers[name]
        for stem, one in kept.items()
        for name in one
    }
    return AllStored(found[0].source, readers)


def read_stored(
    path: str | os.PathLike, grids: Sequence[Grid] | None = None, prompt_name: str | None = None
) -> AllStored:
    """What `path` names, with what else is stored under its name; of a folder all results in it, or the prompts of a dataset. See
    `foreign.read_results` for tables of others, grids, prompt_name and errors."""
    path = Path(path)
    (_, kind), stem = name_and_kind(path.name), stem_of(path)
    settle(path)
    if not path.name or not (kind or _is_own(path, stem)):
        found = _in_folder(path, grids) if path.is_dir() else _plain(read_results(path, grids))
        return found if prompt_name is None else found.only(prompt_name)
    if grids or prompt_name is not None:
        read_results(path, grids, prompt_name)  # which says what is wrong with them
    return AllStored(str(path), {stem.name: _whole(_of_name(stem, kind))})


def _plain(results: Results) -> AllStored:
    return AllStored(results.source, {name: lambda _, name=name: Stored.of(results[name]) for name in results})


def _whole(one: Stored) -> Reader:
    return lambda distances: one if distances else without_distances(one)


def _in_folder(folder: Path, grids: Sequence[Grid] | None) -> AllStored:
    """The prompts of a dataset's folder with what their answers used, or all that is stored in a folder."""
    if not parts_of(folder, IMPACT, True) and not parts_of(folder, IMPACT) and (stems := _stems_in(folder)):
        if grids:
            raise UsageError(f"{folder} has results with their meta files; `grid` is for tables that have none")
        return AllStored(
            str(folder), {stem.name: lambda distances, stem=stem: _of_name(stem, None, distances) for stem in stems}
        )
    results, answers = read_results(folder, grids), DatasetAnswers(folder)

    def read(name: str, distances: bool) -> Stored:
        answer = answers.get(name)
        if answer is None:
            return Stored(result=results[name])
        if not distances:
            return Stored(answer=answer)
        result = results.with_grids(name, grids or [image.grid for image in answer.images] or None)
        if result.tokens.texts == answer.tokens.texts:
            meta = {**answer.meta, **result.meta}
            result = replace(result, tokens=answer.tokens, images=answer.images, meta=meta)
        return Stored(result=result, answer=answer)

    return AllStored(str(folder), {name: lambda distances, name=name: read(name, distances) for name in results})


def _stems_in(folder: Path) -> list[Path]:
    """The names in a folder under which something is stored."""
    files = ("meta.json", *(file for file, _ in READERS.values()))
    found = {stem_of(path) for file in files for path in folder.glob(f"*.{file}") if path.is_file()}
    return sorted(stem for stem in found if any(beside(stem, file).is_file() for file in files))


def stem_of(path: str | os.PathLike) -> Path:
    """The name that a file belongs to, in its folder: output/star of output/star.flows.csv, output/star.answer, output/star."""
    path = Path(path)
    return path.parent / name_and_kind(path.name)[0] if path.name else path


def _is_own(path: Path, stem: Path) -> bool:
    """Whether the path names what this program stored, by the name or by one of its files."""
    if not any(beside(stem, file).is_file() for file, _ in READERS.values()):
        return False
    return path.name in (stem.name, f"{stem.name}.meta.json") or beside(stem, "meta.json").is_file()


def _of_name(stem: Path, first: str | None, distances: bool = True) -> Stored:
    """All of a name; first: the kind that was asked for by its file, which the others have to belong to. distances: without
    them where there is anything else."""
    found: dict[str, Any] = {}
    unread: list[OutputError] = []
    is_alone = not any(beside(stem, file).is_file() for file, _ in READERS.values())
    if (distances or is_alone) and beside(stem, "meta.json").is_file():
        result = read_results(stem)[stem.name]
        found = {"result": result, "answer": result.answer, "patches": result.patches}
    for kind, (file, read) in READERS.items():
        if found.get(kind) is None and (beside(stem, file).is_file() or first == kind):
            try:
                found[kind] = read(stem)
            except OutputError as error:  # such as a file of an earlier version
                if first == kind:
                    raise
                unread.append(error)
    found = {kind: one for kind, one in found.items() if one is not None}
    if not found and not unread:
        raise OutputError(
            f"{stem.parent / stem.name} has no meta file: nothing of that name can be shown; give a result"
        )
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
