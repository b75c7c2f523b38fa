"""The one door for files that a user names: regular files only, of bounded size, read whole, as text, or line by line.

A pipe would be waited for, a device has no end: neither is opened, by its own name or by a symbolic link. What can't be read is
an OSError whose `strerror` says why; who asked for the file says in words of their own which it is, and what is accepted.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

MIB = 2**20
# How many bytes of each kind are read at most. Texts are held in memory whole; tables and datasets are not.
PROMPT = 16 * MIB
META = 256 * MIB
IMAGE = 1024 * MIB
VIDEO = 4096 * MIB
TABLE = DATASET = 2**20 * MIB  # read in pieces, no more rows than are expected
LINE = 64 * MIB  # of a dataset or a table

_OTHERS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


class Unreadable(OSError):
    """What is there is no file to be read, or too large. `strerror` is the whole reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return self.strerror


class TooLarge(Unreadable):
    """A file that is larger than what is read of its kind."""


def open_file(path: str | os.PathLike, most: int) -> BinaryIO:
    """A regular file of at most `most` bytes, opened to be read. OSError for any other; ValueError for what no path can be."""
    _check(os.stat(path), most)  # before it is opened: opening alone makes some devices act
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  closed by who asked for it
    try:
        _check(os.fstat(file.fileno()), most)  # another may have taken its place
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: str | os.PathLike, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes, also of one that grows. Errors of `open_file`."""
    with open_file(path, most) as file:
        return read_stream(file, most)


def read_stream(stream: Any, most: int) -> Any:
    """All of a stream of at most `most` bytes, bytes or text as it gives them. Unreadable."""
    content = stream.read(most + 1)
    if len(content) > most:
        raise _too_large(most)
    return content


def as_text(content: bytes) -> str:
    """UTF-8 as text, without a byte order mark and with any line ends as `\\n`; UnicodeDecodeError."""
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def bounded_lines(file: Any, most: int = LINE) -> Iterator[Any]:
    """The lines of an open file, with their ends; Unreadable at one that is longer than `most`."""
    while line := file.readline(most + 1):
        if len(line) > most:
            raise Unreadable(f"a line is longer than {_size(most)}")
        yield line


def parse_json(content: bytes | str) -> Any:
    """JSON as data; ValueError for what is none, or too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its lists and objects are too deep in each other") from None


def _without_waiting(path: str, flags: int) -> int:
    """The descriptor at once, whatever has taken the file's place since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check(found: os.stat_result, most: int) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(f"it is {_OTHERS.get(kind, 'something else')}, and only regular files are read")
    if found.st_size > most:
        raise _too_large(most)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"it is larger than {_size(most)}, the most that is read")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / MIB:g} MiB" if n_bytes >= MIB else f"{n_bytes} bytes"
