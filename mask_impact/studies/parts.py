"""Where the parts of a dataset's results lie: a folder for each kind of table, and files of the same names in each."""

from collections.abc import Iterator
from pathlib import Path

KINDS = ("", "effect", "answer", "routes", "matrix")  # the first: distances


def part_of(path: Path, kind: str) -> Path:
    """Where the table of a kind lies that belongs to a part: NAME.answer/part-000000.parquet beside NAME/part-000000.parquet."""
    folder = path.parent
    return path if not kind else folder.with_name(f"{folder.name}.{kind}") / path.name


def parts_in(folder: Path) -> Iterator[Path]:
    """All parts of a dataset that there are, of all kinds. folder: of the first kind."""
    for kind in KINDS:
        yield from sorted(part_of(folder / "any", kind).parent.glob("part-*.parquet"))
