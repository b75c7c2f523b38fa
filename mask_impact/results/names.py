"""Which files are written under a name: from this one table come what is checked before a run, what is written, and what of an
earlier run is removed. Imports nothing heavy."""

from collections.abc import Iterable
from dataclasses import dataclass

FORMATS = ("csv", "json", "parquet")


@dataclass(frozen=True)
class Kind:
    """What is measured at once, and stored together under NAME.

    main: the file that says what was asked, written last; tables: before the format, of those that are written as asked for
    ("" is NAME.csv); others: what is written with them; pictures: what is drawn of them afterwards.
    """

    main: str
    tables: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def suffixes(self, formats: Iterable[str] = FORMATS) -> tuple[str, ...]:
        """Of all that may be written of it at once."""
        tables = (f"{table}.{form}".lstrip(".") for table in self.tables for form in formats)
        return (*tables, *self.others, self.main)


RESULT = Kind("meta.json", ("", "effect"), pictures=("layers.png", "patches.png"))
ANSWER = Kind("answer.meta.json", ("answer", "routes", "matrix", "estimates"), pictures=("card.png",))
FLOWS = Kind("flows.meta.json", ("flows",), others=("flows.png",))
WHATIF = Kind("whatif.json")
# `patches.png` above is a picture of impacts; what pixels do is drawn in `pixels.png`.
PATCHES = Kind("patches.meta.json", ("patches",), others=("pixels.png", "patches.regions.png"))
DEEPSTACK = Kind("deepstack.meta.json", ("deepstack",))
TOWER = Kind("tower.meta.json", ("tower", "tower_effects"), others=("tower.png",))
KINDS = (RESULT, ANSWER, FLOWS, WHATIF, PATCHES, DEEPSTACK, TOWER)
PAGE = "html"  # of all that is stored under the name
ALL = (*(suffix for kind in KINDS for suffix in (*kind.suffixes(), *kind.pictures)), PAGE)


def suffixes(
    kinds: Iterable[Kind], formats: Iterable[str] | None = None, plots: bool = False, page: bool = False
) -> list[str]:
    """Of all files that a run may write. formats: None where the number of rows decides."""
    kinds, formats = tuple(kinds), FORMATS if formats is None else tuple(formats)
    written = [suffix for kind in kinds for suffix in kind.suffixes(formats)]
    drawn = [suffix for kind in kinds for suffix in kind.pictures if plots]
    return [*written, *drawn, *([PAGE] if page else [])]


def owner(file: str) -> str:
    """The name under which a file is written; the file's own where it is none of these."""
    endings = [suffix for suffix in ALL if file.endswith(f".{suffix}") and len(file) > len(suffix) + 1]
    return file[: -1 - len(max(endings, key=len))] if endings else file
