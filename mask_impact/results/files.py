"""Files: names that are safe on every platform, places that can be written, all files of a result or none, prompt files.

Knows nothing of what is in them. `check_output` runs before a model is loaded, so nothing heavy is imported here.
"""

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mask_impact.errors import InputError, OutputError, UsageError
from mask_impact.results.inputs import PROMPT, as_text, parse_json, read_file
from mask_impact.results.names import owner

MIN_FREE_BYTES = 16 * 2**20
MAX_NAME_BYTES = 200  # file systems allow 255; the rest is for suffixes and temporary names

# What is stored of a prompt beside its distances, each with files of its own.
KINDS = ("answer", "routes", "matrix", "estimates", "flows", "whatif", "patches", "deepstack", "tower")
_SECOND = {"tower_effects": "tower"}  # tables that stand beside that of their kind
_TABLES = ("effect", *KINDS, *_SECOND)
_SUFFIX = re.compile(
    rf"(?<=.)((\.({'|'.join(_TABLES)}))?\.(csv|json|parquet|meta)|\.(flows|pixels|tower)\.png)+\Z",
    re.DOTALL | re.IGNORECASE,
)
_OF_KIND = re.compile(
    rf"(?<=.)\.({'|'.join([*KINDS, *_SECOND])})(\.(csv|json|parquet|png|meta\.json))?\Z", re.DOTALL | re.IGNORECASE
)
_BEFORE_FORMATS = re.compile(rf"(?<=.)\.({'|'.join(_TABLES)})\Z", re.DOTALL | re.IGNORECASE)
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

written: list[Path] = []  # what this process has written, in order


# --- before anything is written -------------------------------------------------------------------------------------------


def check_output(output_dir: str | os.PathLike, name: str, suffixes: Iterable[str] = ("meta.json",)) -> Path:
    """Makes `output_dir` and proves that a result called `name` can be written there; returns the path without suffix.

    A suffix of one of the result's own files is taken off (`run.csv` means `run`). suffixes: of the files that are to be written.
    Raises UsageError for a name that can never be right, on any platform, and OutputError for a place that cannot be written or
    is nearly full.
    """
    name = without_suffix(name)
    check_name(name)
    if not str(output_dir):
        raise UsageError("the output folder is empty; give one (. is the current one)")
    stem = Path(output_dir) / name
    check_files([stem.with_name(f"{name}.{suffix}") for suffix in suffixes], check_space=True)
    return stem


def check_files(paths: Iterable[str | os.PathLike], check_space: bool = False) -> None:
    """Makes the folders of files and proves that these can be written. Errors as in `check_output`.

    Each is a regular file, or is not there: nothing else is ever replaced, and no link followed.
    """
    paths = [Path(path) for path in paths]
    for folder, one in {path.parent: path for path in paths}.items():
        if "\0" in str(folder):
            raise UsageError(f"the output folder {str(folder)!r} contains a NUL character")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = _temporary(one)
            with open(probe, "xb"):
                pass
            probe.unlink(missing_ok=True)  # another process of the study may have removed it as a leftover
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise output_error(folder, error) from error
        if check_space and free < MIN_FREE_BYTES:
            needed = MIN_FREE_BYTES // 2**20
            raise OutputError(f"the disk of {folder} is nearly full: {free / 2**20:.1f} MiB free, {needed} MiB needed")
    for path in paths:
        _check_replaceable(path)


def check_file(path: Path) -> None:
    """The same of a file of any name. Errors as in `check_output`."""
    if problem := name_problem(path.name):
        raise UsageError(f"the output name {path.name!r} {problem}; a plain file name is accepted")
    check_files([path])


def check_folder(path: Path) -> None:
    """Proves that a folder of this name is there or can be made. OutputError."""
    if (path.is_symlink() or path.exists()) and not path.is_dir():
        raise OutputError(
            f"{path} is no folder; a folder of that name would be made there: remove it, or use another name"
        )


def _check_replaceable(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISREG(mode):
        return
    what = (
        "a folder"
        if stat.S_ISDIR(mode)
        else "a link, which is not followed"
        if stat.S_ISLNK(mode)
        else "no regular file"
    )
    raise OutputError(f"{path} is {what}; a file of that name would be written there: remove it, or use another name")


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def without_suffix(name: str) -> str:
    """The name of a result without the suffix of one of its files."""
    return _SUFFIX.sub("", name)


def name_and_kind(name: str) -> tuple[str, str | None]:
    """The name of a result without what follows it in the name of a file, and which of KINDS the file is of (None: of none)."""
    found = _OF_KIND.search(name)
    if found is None:
        return without_suffix(name), None
    kind = found[1].lower()
    return name[: found.start()], _SECOND.get(kind, kind)


def check_name(name: str) -> None:
    """UsageError for a name that a result can't have, on any platform."""
    problem = name_problem(name)
    if problem is None and (ending := _BEFORE_FORMATS.search(name)):
        problem = f"ends in {ending[0]}, which the files beside those of {name[: ending.start()]!r} do"
    if problem:
        shown = name if len(name) <= 60 else name[:60] + "..."
        raise UsageError(f"the output name {shown!r} {problem}; a plain file name such as 'my_results' is accepted")


def name_problem(name: str) -> str | None:
    """Why a name can't be a file's on some platform, as the rest of a sentence about it; None where it can."""
    if not name:
        return "is empty"
    if any(separator in name for separator in "/\\:"):
        return "contains a path separator; use `output_dir` for the folder"
    if name.startswith("."):
        return "starts with a dot"
    if not name.isprintable():
        return "contains a control or invisible character"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot"
    if name.split(".")[0].strip().lower() in _RESERVED:
        return "is reserved on Windows"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def read_prompt_file(path: str | os.PathLike) -> str:
    """The text of a prompt file, without line breaks at its ends; InputError for one that cannot be read."""
    try:
        return as_text(read_file(path, PROMPT)).strip("\n")
    except FileNotFoundError:
        raise InputError(f"prompt file '{path}' does not exist (what ends in .txt is taken as a file)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", error)
        raise InputError(f"prompt file '{path}' cannot be read: {reason}; give a text file") from None


# --- writing --------------------------------------------------------------------------------------------------------------


def write_files(writers: dict[Path, Callable[[BinaryIO], None]], remove: Sequence[Path] = ()) -> None:
    """Writes all files, or none: each complete in a temporary file beside it before the first gets its name.

    Files are named in the order given, existing ones replaced; `remove` are regular files beside them that go with what is
    replaced. Whatever goes wrong (a full disk, Ctrl-C, an error in a writer, a file that another program holds), the temporaries
    are removed and the files that were there are there again. Where the process is killed between the first name and the last,
    `settle` does the rest. Raises OutputError in place of OSError, and for a folder or link where a file is to be.
    """
    *_, last = writers
    temporaries = {target: _temporary(target) for target in writers}
    settle(last)
    for current in (*writers, _moves_of(last)):
        _check_replaceable(current)
    backups: dict[Path, Path] = {}
    created: list[Path] = []
    try:
        for current, write in writers.items():
            with open(temporaries[current], "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        _note_moves(last, temporaries, remove)
        for current in writers:
            if current.exists():
                backups[current] = _temporary(current)
                _keep(current, backups[current])
            else:
                created.append(current)
            _name(temporaries[current], current)
        written.extend(path for path in writers if not path.name.startswith("."))  # not the notes of runs
    except BaseException as error:
        _unlink([_moves_of(last)])
        for target, backup in backups.items():
            with suppress(OSError):
                os.replace(backup, target)
        _unlink(created)
        if isinstance(error, OSError):
            raise output_error(current, error) from error
        raise
    finally:
        _unlink([*temporaries.values(), *backups.values()])
    _unlink(remove)
    _unlink([_moves_of(last)])


def _note_moves(last: Path, temporaries: dict[Path, Path], remove: Sequence[Path]) -> None:
    """From here on all files are named, even if the process is killed. One move needs no note; nor do files of several folders,
    whose reader knows them by the last one."""
    if len(temporaries) + len(remove) == 1 or {path.parent for path in (*temporaries, *remove)} != {last.parent}:
        return
    moves = {"moves": {temporary.name: target.name for target, temporary in temporaries.items()}}
    _unlink([_moves_of(last)])  # half a note of a run that was killed: nothing was named yet
    with open(_moves_of(last), "xb") as file:
        file.write(json.dumps(moves | {"remove": [path.name for path in remove]}).encode())


def settle(path: Path) -> None:
    """Names the files of a result that a killed process had written whole and begun to name. path: any of the result's.

    Whoever reads or writes the result does so first; it does not matter how many do at once.
    """
    note = _moves_of(path)
    try:
        moves = parse_json(read_file(note, PROMPT)) if is_regular(note) else {}
        steps, remove = list(moves["moves"].items()), list(moves["remove"])
        name = owner(path.name)
        if not all(
            _is_beside(target, name) and re.fullmatch(_TEMPORARY, source)[1] == target for source, target in steps
        ):
            return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or half of one: nothing was named yet
        return
    for source, target in steps:
        with suppress(OSError):  # it has its name already
            os.replace(note.with_name(source), note.with_name(target))
    _unlink(note.with_name(one) for one in remove if _is_beside(one, name) and is_regular(note.with_name(one)))
    if not any(note.with_name(source).exists() for source, _ in steps):
        _unlink([note])


def _is_beside(file: str, name: str) -> bool:
    """Whether it is the name of a file of the result, in its folder."""
    return file.startswith(f"{name}.") and not any(separator in file for separator in "/\\:\0")


def _moves_of(path: Path) -> Path:
    """Where it is noted how the files of a result get their names. path: any of the result's."""
    return path.with_name(f".{owner(path.name)}.moves")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file: whole, or not at all. Several processes may do so. OutputError."""
    data, link = (line + "\n").encode(), getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | link, 0o666)
        try:
            n = os.write(descriptor, data)
            if n < len(data):
                end = os.lseek(descriptor, 0, os.SEEK_CUR)
                if os.fstat(descriptor).st_size == end:  # nobody has added another line
                    os.ftruncate(descriptor, end - n)
                raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise output_error(path, error) from error


def remove_temporaries(folder: Path, names: Container[str] | None = None) -> None:
    """Removes what a killed process left of the results called `names` (None: of any) while it wrote into `folder`.

    Nobody else may be writing them.
    """
    for path in folder.glob(".*.tmp"):
        target = re.fullmatch(_TEMPORARY, path.name)
        if target and (names is None or owner(target[1]) in names):
            _unlink([path])


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _name(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except FileNotFoundError:  # a reader has settled it
        if temporary.exists() or not target.exists():
            raise


def _keep(target: Path, backup: Path) -> None:
    try:
        os.link(target, backup)  # the name stays in place until the new file takes it
    except OSError:  # a file system without hard links
        os.replace(target, backup)


_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")


def output_error(path: Path, error: OSError) -> OutputError:
    """What is said of a file or folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left for {path}: free some disk space or choose another `output_dir`")
    return OutputError(f"cannot write {path}: {error.strerror or error}")
