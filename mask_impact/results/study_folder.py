"""Where the tables of a study lie: a folder for each table in the study's own, files of the same names in each.

    NAME/manifest.json
    NAME/prompts/part-000000.parquet   a row for each prompt; written last: by this file the part is known as complete
    NAME/impact/part-000000.parquet    and so on, for each table of TABLES that was asked for

Knows names; not what is in the files. Before version 2 impacts lay in NAME, other tables beside it in NAME.TABLE.
"""

from collections.abc import Iterator
from pathlib import Path

from mask_impact.results.remote import Place, Remote

IMPACT, PROMPTS, MANIFEST = "impact", "prompts", "manifest.json"
TABLES = (
    PROMPTS, IMPACT, "effect", "answer", "flows", "routes", "matrix", "card", "patches", "deepstack", "tower",
    "tower_effects",
)  # fmt: skip
OLD = tuple(
    name for name in TABLES if name not in (PROMPTS, IMPACT, "flows")
)  # that an earlier version wrote beside the impacts
PART = "part-*.parquet"


def is_old(folder: Place) -> bool:
    """Whether an earlier version wrote it (or somebody else a Parquet dataset): parts lie in the folder itself."""
    return any(folder.glob(PART))


def table_of(folder: Place, table: str, old: bool = False) -> Place:
    """The folder of a table. old: of an earlier version."""
    if not old:
        return folder / table
    return folder if table == IMPACT else folder.with_name(f"{folder.name}.{table}")


def part_of(folder: Place, table: str, number: int) -> Place:
    """Where a part of a table lies."""
    return folder / table / f"part-{number:06d}.parquet"


def number_of(part: Place) -> int | None:
    """Of a part's file; None for any other's."""
    number = part.stem.removeprefix("part-")
    return int(number) if number != part.stem and number.isascii() and number.isdigit() else None


def parts_of(folder: Place, table: str, old: bool = False) -> list[Place]:
    """The parts of a table, in their order."""
    return sorted(table_of(folder, table, old).glob(PART), key=lambda part: part.name)


def tables_in(folder: Place, old: bool = False) -> Iterator[str]:
    """The tables of which there are parts."""
    return (name for name in TABLES if any(table_of(folder, name, old).glob(PART)))


def study_of(folder: Place) -> Place:
    """The study that a folder is of a table of; itself where it is none."""
    if folder.name in TABLES and ((folder.parent / MANIFEST).exists() or any((folder.parent / PROMPTS).glob(PART))):
        return folder.parent
    table = folder.name.rpartition(".")[2]
    if isinstance(folder, Path) and table in OLD and folder.with_suffix("").is_dir():
        return folder.with_suffix("")
    return folder


def is_remote(folder: Place) -> bool:
    """Whether it is not on this machine."""
    return isinstance(folder, Remote)
