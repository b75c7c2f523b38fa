"""What lies under a name is of one question: what a run replaces, or what is of another question, goes when its files come.

Knows the files of each kind and what their main files say; not what is in the tables. Only regular files are removed, only
such as this program writes under the name, and only when the new ones are there.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mask_impact.results.files import check_output, is_regular, without_suffix, write_files
from mask_impact.results.inputs import META, TABLE, open_file, parse_json, read_file
from mask_impact.results.meta import meta_bytes
from mask_impact.results.names import KINDS, PAGE, Kind
from mask_impact.results.table_files import FORMATS, beside, table_writers

START_OF_PAGE = 2000  # bytes, in which a page says who made it
Writers = Mapping[str, Callable[[BinaryIO], Any]]


def asked(meta: Mapping[str, Any], images: Iterable[str] = ()) -> tuple[Any, ...]:
    """What runs of one question have in common: model, prompt, images. images: where the meta file's `run` has none."""
    images = meta.get("images") or images
    return meta.get("model"), meta.get("prompt"), tuple(os.path.abspath(str(image)) for image in images)


def write_kinds(stem: Path, kinds: Collection[Kind], writers: Writers, question: tuple[Any, ...]) -> tuple[Path, ...]:
    """Writes the files of these kinds, by suffix, all or none, and removes what must not lie beside them any more: what there
    was of these kinds, what is of another question (see `asked`), and a page that shows any of it. Returns what was removed.

    The last writer's is the file that a reader looks at first. ValueError for a suffix that none of the kinds has: what is
    written is what was checked before the run.
    """
    if unknown := {*writers} - {suffix for kind in kinds for suffix in kind.suffixes()}:
        raise ValueError(f"no file of these kinds is called {stem.name}.{min(unknown)}")
    check_output(stem.parent, stem.name, writers)
    stale = _stale(stem, kinds, writers, question)
    write_files({beside(stem, suffix): write for suffix, write in writers.items()}, stale)
    return tuple(path for path in stale if not path.exists())


def save_kind(
    kind: Kind,
    path: str | os.PathLike,
    tables: Mapping[str, Any],
    meta: Mapping[str, Any],
    question: tuple[Any, ...],
    picture: Callable[[BinaryIO], Any] | None = None,
    on_removed: Callable[[Iterable[Path]], Any] = tuple,
) -> tuple[Path, ...]:
    """Writes all of a kind under `path`, all or none: its tables, by what stands before the format, in the meta file's `formats`;
    its picture, where there is one; the meta file. Returns the paths.

    picture: writes it. on_removed: is told what was removed, see `write_kinds`. Errors as in `store.save`.
    """
    path = Path(path)
    stem, text = path.parent / without_suffix(path.name), meta_bytes(meta)
    writers = table_writers(tables, meta["formats"])
    if picture is not None:
        (drawn,) = kind.others
        writers[drawn] = picture
    writers[kind.main] = lambda file: file.write(text)
    on_removed(write_kinds(stem, [kind], writers, question))
    return tuple(beside(stem, suffix) for suffix in writers)


def removal(removed: Iterable[Path]) -> tuple[str, ...]:
    """The remark that names the files, if there are any; without those that have been written again since."""
    names = ", ".join(str(path) for path in removed if not path.exists())
    return (f"Removed, because it is of an earlier run: {names}",) if names else ()


def _stale(stem: Path, kinds: Collection[Kind], written: Collection[str], question: tuple[Any, ...]) -> list[Path]:
    found: list[str] = []
    for kind in KINDS:
        about = _about(beside(stem, kind.main))
        other = about is not None and _question_of(about) != question
        if kind in kinds or other:
            found += [suffix for suffix in _files(kind, about) if is_regular(beside(stem, suffix))]
    if found and _shows(beside(stem, PAGE), [beside(stem, suffix) for suffix in found]):
        found.append(PAGE)
    return [beside(stem, suffix) for suffix in found if suffix not in written]


def _files(kind: Kind, about: Mapping[str, Any] | None) -> Iterator[str]:
    """The suffixes of what there may be of a kind. NAME.csv and the like may be anybody's: they are ours where the main file
    names the format."""
    formats = (about or {}).get("formats")
    ours = formats if isinstance(formats, list) else ()
    yield from (one for one in kind.suffixes() if one not in FORMATS or one in ours)
    yield from kind.pictures


def _about(main: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(read_file(main, META)) if is_regular(main) else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("run"), dict) else None


def _question_of(about: Mapping[str, Any]) -> tuple[Any, ...]:
    images = about.get("images")
    sources = [one.get("source") for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    return asked(about["run"], sources)


def _shows(page: Path, files: Iterable[Path]) -> bool:
    """Whether the page is one of ours, and made when one of the files was there already."""
    try:
        with open_file(page, TABLE) as file:
            ours = is_regular(page) and b'content="mask-impact' in file.read(START_OF_PAGE)
        return ours and any(path.stat().st_mtime_ns <= page.stat().st_mtime_ns for path in files)
    except OSError:
        return False
