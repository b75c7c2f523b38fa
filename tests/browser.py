"""A headless Chromium for the tests and benchmarks of pages, where there is one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")


def why_not() -> str | None:
    """Why there is no browser, None where there is one."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "the package playwright is not installed"
    return None if _path() else "no Chromium is on the path, and CHROMIUM does not name one"


def _path() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser(path: str | None = None) -> Iterator:
    """A playwright Browser, closed at the end; None where there is none."""
    if why_not():
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path or _path(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def needed(test):
    """Marks a test that drives a browser, which is skipped where there is none."""
    for mark in MARKS:
        test = mark(test)
    return test


# What tests that drive a browser are marked with.
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
