"""Folders that are not on this machine: what fsspec knows (s3://, gs://, hf://), with the few things that pathlib does.

A file is written whole: in one put where the store shows an object when all of it is there, else under another name that is
moved. Knows neither results nor tables. fsspec is imported only where it is used.
"""

import fnmatch
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.files import is_regular
from mask_impact.results.inputs import TABLE, open_file
from mask_impact.results.table_files import one_line

# Stores that show an object when all of it is there, and not before.
WHOLE_PUTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "memory")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
            "adl": "adlfs", "sftp": "paramiko", "oci": "ocifs", "oss": "ossfs"}  # fmt: skip


@dataclass(frozen=True)
class Remote:
    """A file or folder of a filesystem of fsspec. path: without the protocol; url: with it."""

    fs: Any
    path: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path.lstrip('/') if self.protocol == 'memory' else self.path}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.fs, f"{self.path.rstrip('/')}/{name}", self.protocol)

    @property
    def name(self) -> str:
        """Behind the last slash."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> "Remote":
        """The folder that it is in."""
        return Remote(self.fs, self.path.rstrip("/").rpartition("/")[0], self.protocol)

    def with_name(self, name: str) -> "Remote":
        """Another one in the same folder."""
        return self.parent / name

    def resolve(self) -> "Remote":
        """Itself: no links are followed."""
        return self

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """What is in the folder and called so. OutputError."""
        try:
            with _told(self, FileNotFoundError):
                self.fs.invalidate_cache()
                found = self.fs.ls(self.path, detail=False)
        except FileNotFoundError:
            return
        for path in sorted(found):
            one = Remote(self.fs, path.rstrip("/"), self.protocol)
            if fnmatch.fnmatchcase(one.name, pattern):
                yield one

    def exists(self) -> bool:
        """Whether there is such a file, or a folder that is not empty. OutputError."""
        with _told(self):
            self.fs.invalidate_cache()
            return self.fs.exists(self.path)

    def is_dir(self) -> bool:
        """Whether it is a folder that is not empty. OutputError."""
        with _told(self):
            return self.fs.isdir(self.path)

    def is_file(self) -> bool:
        """Whether it is a file. OutputError."""
        with _told(self):
            return self.fs.isfile(self.path)

    def open(self) -> BinaryIO:
        """To be read from any place in it. FileNotFoundError, OutputError."""
        with _told(self, FileNotFoundError):
            return self.fs.open(self.path, "rb")

    def read_bytes(self) -> bytes:
        """All of it. FileNotFoundError, OutputError."""
        with _told(self, FileNotFoundError):
            self.fs.invalidate_cache()
            return self.fs.cat_file(self.path)

    def write(self, write: Callable[[BinaryIO], Any]) -> None:
        """The file, whole or not at all. OutputError."""
        content = io.BytesIO()
        write(content)
        temporary = self.with_name(f".{self.name}.{uuid.uuid4().hex[:12]}.tmp")
        with _told(self):
            if self.protocol in WHOLE_PUTS:
                self.fs.pipe_file(self.path, content.getvalue())
                return
            self.fs.makedirs(self.parent.path, exist_ok=True)
            try:
                self.fs.pipe_file(temporary.path, content.getvalue())
                self.fs.mv(temporary.path, self.path)
            except BaseException:
                with suppress(Exception):
                    self.fs.rm_file(temporary.path)
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file. OutputError."""
        try:
            self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise
        except Exception as error:
            if missing_ok and not self.exists():
                return
            raise _said(self, error) from error


@contextmanager
def _told(place: Remote, *passing: type[Exception]) -> Iterator[None]:
    """Whatever a filesystem raises in the block, each its own errors, is an OutputError; errors of `passing` go on their way."""
    try:
        yield
    except passing:
        raise
    except Exception as error:
        raise _said(place, error) from error


Place = Path | Remote


def is_address(path: str | os.PathLike) -> bool:
    """Whether it is the address of a store."""
    return re.match(r"[A-Za-z0-9]{2,}:/", os.fspath(path)) is not None


def place_of(path: str | os.PathLike) -> Place:
    """A path of this machine, or a Remote where it is the address of a store. UsageError for one that can't be, and for one whose
    package is missing, which it names."""
    if isinstance(path, Remote):
        return path
    text = os.fspath(path)
    protocol, mark, rest = text.partition("://")
    if not mark or not protocol.isalnum():
        return Path(text)
    if protocol in ("file", "local"):
        return Path(urlsplit(text).path if protocol == "file" else rest)
    if protocol in ("http", "https"):
        raise UsageError(f"{text} can't be written to: give a folder, or an address such as s3://BUCKET/FOLDER")
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        package = PACKAGES.get(protocol, f"the package of fsspec for {protocol}")
        raise UsageError(f"{protocol}:// needs a package that is not there: pip install {package}") from None
    except ValueError:
        raise UsageError(
            f"{protocol}:// is no store that is known; s3://, gs://, hf:// and others of fsspec are"
        ) from None
    try:
        fs, plain = fsspec.url_to_fs(text)
    except Exception as error:
        raise UsageError(f"{text} can't be used: {one_line(error)}") from error
    return Remote(fs, plain.rstrip("/"), protocol)


def opened(place: Place, most: int = TABLE) -> BinaryIO:
    """A file, to be read. Errors of `open_file` and of `Remote.open`."""
    return place.open() if isinstance(place, Remote) else open_file(place, most)


def is_there(place: Place) -> bool:
    """Whether there is a regular file, and no link to one."""
    return place.is_file() if isinstance(place, Remote) else is_regular(place)


def _said(place: Remote, error: Exception) -> OutputError:
    return error if isinstance(error, OutputError) else OutputError(f"cannot use {place}: {one_line(error)}")
