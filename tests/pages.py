"""Reading the HTML file of a page in another way than the page's own script does."""

import base64
import gzip
import json
import struct
from html.parser import HTMLParser

import numpy as np

HOSTILE = (
    "<script>alert(1)</script>", "</script>", "<!--", "-->", "<img src=x onerror=alert(1)>", "]]>", "&amp;", "&", '"', "'",
    "\u202eevil", "\u200b", "\n", "\r\n", "👩‍🔬", "\ufffd", "\ud800", "{{ 1 }}", "${1}", "<b>", "=1+1", "\0",
)  # fmt: skip


class Page(HTMLParser):
    """Elements of an HTML file as (tag, attributes, text up to the next tag), in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.comments, self.open = [], [], None
        self.feed(html.decode())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open = [tag, dict(attributes), ""]
        self.elements.append(self.open)

    def handle_data(self, text):
        if self.open:
            self.open[2] += text

    def handle_endtag(self, tag):
        self.open = None

    def handle_comment(self, text):
        self.comments.append(text)

    def all(self, tag):
        return [element for element in self.elements if element[0] == tag]

    @property
    def blocks(self):
        return {
            attributes["id"]: text
            for _, attributes, text in self.all("script")
            if attributes.get("id", "").startswith("b-")
        }

    @property
    def data(self):
        return json.loads(
            next(text for _, attributes, text in self.all("script") if attributes.get("id") == "page-data")
        )


def decode(text):
    """float32 [n] of a block, number by number as the layout is described."""
    raw = gzip.decompress(base64.b64decode(text))
    digits, n = raw[0], struct.unpack("<I", raw[1:5])[0]
    n_kept = 32 if digits == 23 else 8 + digits
    values = []
    for i in range(n):
        bits = "".join(f"{raw[5 + plane * n + i]:08b}" for plane in range(n_kept // 8))
        start = 5 + n_kept // 8 * n
        for plane in range(n_kept % 8):
            byte = raw[start + plane * -(-n // 8) + i // 8]
            bits += f"{byte:08b}"[i % 8]
        bits = bits.ljust(32, "0")
        values.append(struct.unpack(">f", int(bits[-1] + bits[:-1], 2).to_bytes(4, "big"))[0])
    return np.array(values, dtype=np.float32)


def distances(page, result, prompt=0):
    """{(step, metric, variant): float32 [L, P]} of a page's blocks."""
    found = {}
    for step in result.steps:
        for metric in ("l2", "cosine"):
            for index, variant in enumerate(result.variants):
                values = decode(page.blocks[f"b-{prompt}-{step.step}-{metric}-{index}"])
                found[step.step, metric, variant] = values.reshape(step.l2.shape[:2])
    return found


def cleaned(text):
    return text.replace("\ud800", "\ufffd")
