"""Takes into the site what lies outside of docs/: the pages at the repository's root, the pictures, and files that pages link to.

Links are written for a reader of the repository, from each file's own folder. Here docs/ is the root, so they lose one step:
`docs/start.md` in README.md becomes `start.md`, and `../VL_QUICKSTART.md` in docs/start.md becomes `VL_QUICKSTART.md`.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ["*.md", "examples/*.png", "LICENSE", "CITATION.cff"]
LINK = re.compile(r"(\]\()(?!https?:|#)([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/ and those outside of it."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as they lead from docs/ as the root."""
    is_outside = (ROOT / page.file.src_uri).is_file()
    up = "../" * (page.file.src_uri.count("/") + 1)

    def moved(target: str) -> str:
        if is_outside:
            return target.removeprefix("docs/")
        return target.removeprefix("../") if target.startswith(up) else target

    return LINK.sub(lambda match: f"{match[1]}{moved(match[2])})", markdown)
