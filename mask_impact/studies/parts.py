"""The parts of a study's results: written whole, table by table, known again, removed. Where they lie says `study_folder`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mask_impact.errors import OutputError
from mask_impact.results.files import (
    check_files,
    check_folder,
    check_name,
    check_output,
    is_regular,
    output_error,
    write_files,
)
from mask_impact.results.remote import Place, Remote
from mask_impact.results.study_folder import (
    IMPACT,
    MANIFEST,
    OLD,
    PROMPTS,
    TABLES,
    is_old,
    part_of,
    parts_of,
    table_of,
)

RUN = "mask_impact_run"  # in the metadata of each file, as JSON: model, reduce; in an earlier version settings, too
Writers = Mapping[str, Callable[[BinaryIO], Any]]


def folder_of(output_dir: Place, name: str) -> Place:
    """The folder of a dataset's results, which can be written. Errors as in `check_output`."""
    if isinstance(output_dir, Remote):
        check_name(name)
        return output_dir / name
    return check_output(output_dir, name, ())


def check_parts(folder: Place, resume: bool = False) -> None:
    """Proves, before a run, that parts of all tables can be written. OutputError, also where there are parts of an earlier
    version that a run would go on with."""
    if resume and is_old(folder):
        raise OutputError(
            f"{folder} has parts of an earlier version, which lie in other folders: leave `resume` out to begin anew, or use "
            "another `output`"
        )
    if isinstance(folder, Remote):
        return
    folders = [folder, *(folder / table for table in TABLES)]
    for one in (*folders, *(table_of(folder, table, True) for table in OLD if is_old(folder))):
        check_folder(one)
    first = [part_of(folder, table, 0) for table in TABLES if (folder / table).is_dir()]
    check_files([folder / MANIFEST, *all_parts(folder), *first])


def all_parts(folder: Place) -> Iterator[Place]:
    """All parts of a dataset that there are, of all tables and versions. Those of prompts come first."""
    for old in (False, True) if is_old(folder) else (False,):
        for table in (IMPACT, *OLD) if old else TABLES:
            yield from parts_of(folder, table, old)


def write_part(folder: Place, number: int, writers: Writers) -> None:
    """A part of each of the tables; those of other tables go. By the prompts' table the part is known, so it is taken away before
    anything of it is replaced, and comes last."""
    known = part_of(folder, PROMPTS, number)
    remove([known])
    stale = [part_of(folder, name, number) for name in TABLES if name not in writers]
    if isinstance(folder, Remote):
        remove(one for one in stale if one.exists())
        for name in sorted(writers, key=lambda name: name == PROMPTS):
            part_of(folder, name, number).write(writers[name])
        return
    for name in writers:
        make_folder(folder / name)
    ordered = sorted(writers, key=lambda name: name == PROMPTS)
    write_files({part_of(folder, name, number): writers[name] for name in ordered}, [*filter(is_regular, stale)])


def remove(places: Iterable[Place]) -> None:
    """Files that are there. OutputError."""
    for place in places:
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(Path(str(place)), error) from error


def make_folder(place: Place) -> None:
    """A folder, where there is none. OutputError."""
    if isinstance(place, Remote):
        return
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(place, error) from error
