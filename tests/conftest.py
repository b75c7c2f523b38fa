"""Tiny checkpoints for whoever loads one, one thread, since the models are too small for more, float32 where no dtype is asked
for, no rehearsals, and one browser."""

import gc

import browser
import pytest
import torch
from checkpoints import save_checkpoint

from mask_impact.models import devices, loading
from mask_impact.prompts import encoding, limits


def pytest_collection_finish():
    """What is imported by now stays: the collector does not go through it again with every test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are faster so, in commands that tests start as well, and rounding does not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def in_float32():
    """The demo is bfloat16, in which processors that have none compute several times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loading, "resolve_dtype", lambda dtype: devices.resolve_dtype("float32" if dtype == "auto" else dtype)
        )
        yield


@pytest.fixture
def own_dtype(monkeypatch):
    """Models have the dtype of their checkpoint where none is asked for, as they have outside of tests."""
    monkeypatch.setattr(loading, "resolve_dtype", devices.resolve_dtype)


@pytest.fixture(scope="session", autouse=True)
def nothing_rehearsed():
    """The tests' tokenizers and templates come to an end, and a large process is slow to fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "rehearse", lambda *args: None)
        yield


@pytest.fixture
def rehearsed(monkeypatch):
    """Templates and tokenizers are rehearsed, as they are outside of tests."""
    monkeypatch.setattr(encoding, "rehearse", limits.rehearse)


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory):
    """Folder of a tiny Qwen3 (3 layers, 4 heads). Not to be written to: copy it."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny-qwen3", "qwen3")


@pytest.fixture(scope="session")
def vl_checkpoint(tmp_path_factory):
    """Folder of a tiny Qwen3-VL (4 layers, 4 heads). Not to be written to: copy it."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny-qwen3-vl", "qwen3_vl")


@pytest.fixture(scope="session")
def chromium():
    """A playwright Browser; None where there is none, and the tests that drive it are skipped then."""
    with browser.open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def opened(chromium, files):
    """The page of a module's `files`, the last of them, in a tab."""
    from tab import Tab

    tab = Tab(chromium, files[-1])
    yield tab
    tab.close()


@pytest.fixture
def tab(opened):
    """The page as it is when it opens; a test fails where the page complained, asked or loaded something."""
    opened.page.mouse.move(1, 1)
    opened.reset()
    yield opened
    assert opened.faults == []


@pytest.fixture
def open_page(chromium):
    """Opens pages, each in a tab of its own; the test fails where one of them said that something is wrong."""
    from tab import Tab

    tabs = []

    def open_it(path, fragment="", **options):
        tabs.append(Tab(chromium, path, fragment, **options))
        return tabs[-1]

    yield open_it
    for tab in tabs:
        assert tab.faults == []
        tab.close()
