"""Files: names that are safe on every platform, folders that can be written, all files of a result or none, prompt files.

Knows nothing of what is in them. `check_output` runs before a model is loaded, so nothing heavy is imported here.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mask_impact.errors import InputError, OutputError, UsageError
from mask_impact.results.inputs import PROMPT, as_text, read_file

SUFFIXES = (
    "csv",
    "json",
    "parquet",
    "meta.json",
    "effect.csv",
    "effect.json",
    "effect.parquet",
)  # of a result's own files
MIN_FREE_BYTES = 16 * 2**20
MAX_NAME_BYTES = 200  # file systems allow 255; the rest is for suffixes and temporary names

# What is stored of a prompt beside its distances, each with files of its own.
KINDS = ("answer", "routes", "matrix", "estimates", "flows", "whatif")
_SUFFIX = re.compile(
    rf"(?<=.)((\.(effect|{'|'.join(KINDS)}))?\.(csv|json|parquet|meta)|\.flows\.png)+\Z", re.DOTALL | re.IGNORECASE
)
_OF_KIND = re.compile(
    rf"(?<=.)\.({'|'.join(KINDS)})(\.(csv|json|parquet|png|meta\.json))?\Z", re.DOTALL | re.IGNORECASE
)
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

written: list[Path] = []  # what this process has written, in order


def check_output(output_dir: str | os.PathLike, name: str) -> Path:
    """Makes `output_dir` and proves that a result called `name` can be written there; returns the path without suffix.

    A suffix of one of the result's own files is taken off (`run.csv` means `run`). Raises UsageError for a name that
    can never be right, on any platform, and OutputError for a place that cannot be written or is nearly full.
    """
    name = without_suffix(name)
    _check_name(name)
    if not str(output_dir):
        raise UsageError("the output folder is empty; give one (. is the current one)")
    folder = Path(output_dir)
    if "\0" in str(folder):
        raise UsageError(f"the output folder {str(folder)!r} contains a NUL character")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / f"{name}.meta.json")
        with open(probe, "xb"):
            pass
        probe.unlink(missing_ok=True)  # another process of the study may have removed it as a leftover
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _output_error(folder, error) from error
    if free < MIN_FREE_BYTES:
        needed = MIN_FREE_BYTES // 2**20
        raise OutputError(f"the disk of {folder} is nearly full: {free / 2**20:.1f} MiB free, {needed} MiB needed")
    for target in (folder / f"{name}.{suffix}" for suffix in SUFFIXES):
        if target.is_dir():
            raise OutputError(f"{target} is a folder; a file of that name would be written there")
    return folder / name


def without_suffix(name: str) -> str:
    """The name of a result without the suffix of one of its files."""
    return _SUFFIX.sub("", name)


def name_and_kind(name: str) -> tuple[str, str | None]:
    """The name of a result without what follows it in the name of a file, and which of KINDS the file is of (None: of none)."""
    found = _OF_KIND.search(name)
    return (name[: found.start()], found[1].lower()) if found else (without_suffix(name), None)


def _check_name(name: str) -> None:
    problem = name_problem(name)
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


def write_files(writers: dict[Path, Callable[[BinaryIO], None]]) -> None:
    """Writes all files, or none: each complete in a temporary file beside it before the first gets its name.

    Files are named in the order given, existing ones replaced. Whatever goes wrong (a full disk, Ctrl-C, an error in a
    writer, a file that another program holds), the temporaries are removed and the files that were there are there
    again. Raises OutputError in place of OSError.
    """
    temporaries = {target: _temporary(target) for target in writers}
    backups: dict[Path, Path] = {}
    created: list[Path] = []
    current = next(iter(writers))
    try:
        for current, write in writers.items():
            with open(temporaries[current], "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for current in writers:
            if current.exists():
                backups[current] = _temporary(current)
                _keep(current, backups[current])
            else:
                created.append(current)
            os.replace(temporaries[current], current)
        written.extend(writers)
    except BaseException as error:
        for target, backup in backups.items():
            with suppress(OSError):
                os.replace(backup, target)
        for target in created:
            with suppress(OSError):
                target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _output_error(current, error) from error
        raise
    finally:
        for leftover in (*temporaries.values(), *backups.values()):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def remove_temporaries(folder: Path, names: Container[str] | None = None) -> None:
    """Removes what a killed process left of the results called `names` (None: of any) while it wrote into `folder`.

    Nobody else may be writing them.
    """
    for path in folder.glob(".*.tmp"):
        target = re.fullmatch(r"\.(.+)\.[0-9a-f]{12}\.tmp", path.name)
        if target and (names is None or without_suffix(target[1]) in names):
            with suppress(OSError):
                path.unlink()


def _keep(target: Path, backup: Path) -> None:
    try:
        os.link(target, backup)  # the name stays in place until the new file takes it
    except OSError:  # a file system without hard links
        os.replace(target, backup)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left for {path}: free some disk space or choose another `output_dir`")
    return OutputError(f"cannot write {path}: {error.strerror or error}")
