"""A tab with a page in headless Chromium: its console watched, its charts read, its keys pressed."""

import csv
import io
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mask_impact.results.store import save
from mask_impact.views.report import write_report

METRICS = {"l2": "l2_distance", "cosine": "cosine_distance"}


TIMES = "\u00d7"


WORDS = ("The", " capital", " of", " France", " is", "\n", " what")


class Tab:
    """A page that is open, and what it has done: console messages, errors, requests, dialogs."""

    def __init__(self, chromium, path, fragment="", **options):
        self.path = path
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        self.faults = []
        own = path.as_uri()
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._requested(request.url, own))
        self.page.goto(own + fragment)
        self.settle()

    def _requested(self, url, own):
        if url.partition("#")[0] != own and not url.startswith(("data:", "blob:")):
            self.faults.append(f"request: {url}")

    def settle(self):
        """Waits until everything is drawn."""
        self.page.wait_for_selector("html[data-drawn=true]", state="attached", timeout=30_000)

    def resize(self, width, height, scheme):
        """Another window, of a system that is light or dark."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(600)  # charts follow the window a little later
        self.settle()

    def wait_until(self, expression):
        """Until it is true in the page, whose policy forbids playwright's own waiting: that evaluates within the page."""
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def keep_screenshot(self, name, **how):
        """For somebody to look at, in the folder that REPORT_SCREENSHOTS names; without one, nothing is drawn."""
        if folder := os.environ.get("REPORT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", **how)

    def reset(self):
        if self.page.locator("#play[aria-pressed=true]").count():
            self["play"].click()
        self.page.evaluate("document.activeElement.blur(); location.hash = `#nothing=${Math.random()}`")
        self.page.wait_for_timeout(20)  # the event of a changed fragment is not there at once
        self.settle()
        self.faults.clear()

    def __getitem__(self, name):
        return self.page.locator(f"#{name}")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.settle()

    def choose(self, group, value):
        """A choice of a group of radio buttons."""
        self.page.locator(f"#{group} input[value={value}]").check()
        self.settle()

    def select(self, name, value):
        self[name].select_option(str(value))
        self.settle()

    def click(self, selector, **options):
        self.page.locator(selector).click(**options)
        self.settle()

    def drag(self, name, value):
        """A slider or number field."""
        self[name].evaluate("(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); "
                            "input.dispatchEvent(new Event('change')); }", value)  # fmt: skip
        self.settle()

    def chart(self, name, trace=0):
        return self.page.evaluate(
            "([name, trace]) => { const { x, y, z, customdata, marker, name: title } = document.getElementById(name).data[trace];"
            " return { x, y, z, customdata, marker, title }; }",
            [name, trace],
        )

    def matrix(self, name="heat", what="customdata"):
        return np.array(
            [[np.nan if one is None else one for one in row] for row in self.chart(name)[what]], dtype=float
        )

    def texts(self, selector):
        return self.page.locator(selector).all_text_contents()

    def labels(self):
        """{position: what is said of a token of the prompt}."""
        found = self.page.evaluate(
            "[...document.querySelectorAll('#text [data-position]')].map((t) => [t.dataset.position, t.ariaLabel])"
        )
        return {int(position): label for position, label in found}

    def download(self, selector):
        with self.page.expect_download() as waiting:
            self.page.locator(selector).click()
        return Path(waiting.value.path()).read_bytes(), waiting.value.suggested_filename

    def close(self):
        self.page.close()


def make_files(folder, result, name="run"):
    """The result's CSV as a frame of float32, and its page."""
    save(result, folder / name, ["csv"])
    frame = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
    return frame.astype(dict.fromkeys(METRICS.values(), np.float32)), write_report(folder / name)


IMAGE_GRIDS = ((2, 3), (1, 2))


def level(values, scale, low, high):
    if scale == "linear":
        return values / high
    if scale == "sqrt":
        return np.sqrt(values / high)
    bottom = min(max(low, high / 1e6), high / 10)
    return np.where(values > bottom, np.log(np.maximum(values, bottom) / bottom) / np.log(high / bottom), 0)


def percent(share):
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def close_to(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


def cell_place(tab, layer, column, name="heat"):
    """Where a cell of a map is on the screen."""
    tab[name].scroll_into_view_if_needed()
    tab.page.wait_for_timeout(100)  # scrolling hides the tip, a little later
    box = tab.page.locator(f"#{name} .nsewdrag").first.bounding_box()
    edges, n_layers = tab.chart(name)["x"], len(tab.chart(name)["y"])
    x = box["x"] + box["width"] * (edges[column] + edges[column + 1]) / 2 / edges[-1]
    return x, box["y"] + box["height"] * (1 - (layer + 0.5) / n_layers)


ABOUT_FOCUS = """(() => {
    const one = document.activeElement;
    const labels = [...(one.labels ?? [])].map((label) => label.textContent).join("");
    return [
        one.id || one.name || one.classList[0] || one.tagName,
        (one.getAttribute("aria-label") || one.textContent || labels).trim(),
        getComputedStyle(one).outlineStyle !== "none" || one.closest(".choices") !== null,
        one.getBoundingClientRect().top + scrollY,
    ];
})()"""


def table_of(content):
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    return rows[0], rows[1:]
