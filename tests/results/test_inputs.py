"""The one door for files that a user names: only regular files of bounded size, and nobody opens one beside it."""

import ast
import io
import os
import socket
from pathlib import Path

import pytest

from mask_impact.results.inputs import (
    TooLarge,
    Unreadable,
    as_text,
    bounded_lines,
    open_file,
    parse_json,
    read_file,
    read_stream,
)

PACKAGE = Path(__file__).parent.parent.parent / "mask_impact"


def special(path, kind):
    """Makes at `path` what is no file to be read."""
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    return path


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a socket"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = special(Path("x"), kind)
    link = Path("link")
    link.symlink_to(path)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    for one in (path, link):
        with pytest.raises(Unreadable, match=f"^it is {kind}, and only regular files are read$"):
            open_file(one, 10)


def test_what_takes_a_file_s_place_is_not_read_and_not_waited_for(tmp_path, monkeypatch):
    """Between the look and the opening."""
    path, pipe = tmp_path / "a", special(tmp_path / "pipe", "a pipe")
    path.write_bytes(b"x")
    there = os.stat

    def swapped(name, *args, **how):
        found = there(name, *args, **how)
        if Path(name) == path:
            os.replace(pipe, path)
        return found

    monkeypatch.setattr(os, "stat", swapped)
    with pytest.raises(Unreadable, match="it is a pipe"):
        open_file(path, 10)


def test_a_link_to_a_file_is_followed_and_one_in_a_circle_is_not(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "circle").symlink_to("circle")
    assert read_file(tmp_path / "link", 4) == b"text"
    with pytest.raises(OSError, match="symbolic links"):
        read_file(tmp_path / "circle", 4)


def test_the_bound_is_in_the_message(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    for most, said in ((4, "4 bytes"), (0, "0 bytes")):
        with pytest.raises(TooLarge, match=f"^it is larger than {said}, the most that is read$"):
            read_file(path, most)
    os.truncate(path, 2**40)  # it takes no space
    with pytest.raises(TooLarge, match=r"^it is larger than 16 MiB, the most that is read$"):
        read_file(path, 16 * 2**20)


def test_a_stream_is_read_as_far_as_the_bound():
    assert read_stream(io.BytesIO(b"1234"), 4) == b"1234"
    assert read_stream(io.StringIO("1234"), 4) == "1234"
    with open("/dev/zero", "rb") as endless, pytest.raises(TooLarge):
        read_stream(endless, 1000)


def test_lines_are_bounded_and_keep_their_ends():
    assert list(bounded_lines(io.StringIO("a\nbc\n\nd"), 3)) == ["a\n", "bc\n", "\n", "d"]
    with pytest.raises(Unreadable, match="a line is longer than 2 bytes"):
        list(bounded_lines(io.BytesIO(b"a\nbc\n"), 2))


def test_text_is_utf_8_with_any_line_ends():
    assert as_text("\ufeffä\r\nb\rc\n".encode()) == "ä\nb\nc\n"
    with pytest.raises(UnicodeDecodeError):
        as_text(b"\xff")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 5000, "["])
def test_json_that_can_t_be_read_is_a_value_error(deep):
    with pytest.raises(ValueError, match=r"deep|digits|Expecting"):
        parse_json(deep)


# What opens files that no user names: its own templates, locks and notes, files that it writes, the files of a model, nothing.
OWN = {
    "commands/console", "commands/entry", "prompts/films",
    "app/page", "models/sources", "prompts/limits", "results/files", "results/inputs", "studies/progress",
    "studies/lease", "results/remote", "views/page",
}  # fmt: skip
OPENING = {"open", "read_bytes", "read_text", "fdopen"}


def opens(tree):
    """Whether a file is opened by its path: open(...), os.open, Path.read_text and the like."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = any(isinstance(call, ast.Name) and call.id in OPENING for call in calls)
    return named or any(
        isinstance(call, ast.Attribute)
        and call.attr in OPENING
        and getattr(call.value, "id", "") not in ("Image", "self")
        and getattr(call.value, "attr", "") != "_desk"
        for call in calls
    )


def test_nobody_else_opens_a_file():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if opens(ast.parse(path.read_text(encoding="utf-8"))):
            found[path.relative_to(PACKAGE).with_suffix("").as_posix()] = path
    assert set(found) - OWN - {"prompts/images"} == set()  # which opens an address
    assert [code for code in ("open(x)", "p.read_bytes()", "os.open(x, 0)") if not opens(ast.parse(code))] == []
