"""Where the parts of a dataset's results lie: a folder for each kind of table, and files of the same names in each."""

from collections.abc import Iterator
from pathlib import Path

from mask_impact.results.files import check_files, check_folder

KINDS = ("", "effect", "answer", "routes", "matrix", "card", "patches")  # the first: distances
RUN = "mask_impact_run"  # in the metadata of each file, as JSON: model, reduce, and these settings
HOW = ("ablation", "window", "queries", "groups")


def part_of(path: Path, kind: str) -> Path:
    """Where the table of a kind lies that belongs to a part: NAME.answer/part-000000.parquet beside NAME/part-000000.parquet."""
    folder = path.parent
    return path if not kind else folder.with_name(f"{folder.name}.{kind}") / path.name


def check_parts(folder: Path) -> None:
    """Proves, before a run, that parts of all kinds can be written. OutputError."""
    folders = [part_of(folder / "any", kind).parent for kind in KINDS]
    for one in folders:
        check_folder(one)
    check_files([*parts_in(folder), *(one / "part-000000.parquet" for one in folders if one.is_dir())])


def parts_in(folder: Path) -> Iterator[Path]:
    """All parts of a dataset that there are, of all kinds. folder: of the first kind."""
    for kind in KINDS:
        yield from sorted(part_of(folder / "any", kind).parent.glob("part-*.parquet"))
