"""What every page is made of: a template, styles, one script joined from modules, plotly.js, and the policy that allows these.

Knows the templates; not what a page shows. A page is one HTML file, made by Jinja2 from `templates/`. Its charts are drawn by
plotly.js, which is inside the file as well. All texts of a prompt or a tokenizer reach the page as JSON or through Jinja2's
escaping, and a content security policy lets the browser run the page's own script and plotly.js by their hashes, and load
nothing.

The script is kept as ES modules, which a page in one file can't import. So they are joined: see `joined_script`.
"""

import base64
import gzip
import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mask_impact
from mask_impact.results.tokens import ImageRecord
from mask_impact.views.text import escape, percent

TEMPLATES = Path(__file__).parent / "templates"

_IMPORT = re.compile(r'^import (?:\{([^{}]*)\} from )?"(\.{1,2}/[^"]+)";\n', re.MULTILINE)
_DECLARATION = re.compile(r"^(export )?(?:(?:async )?function|const|let|class) ([\w$]+)", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|let|class)", re.MULTILINE)
_OTHER_FORM = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def render_page(name: str, values: Mapping[str, Any], styles: Sequence[str]) -> bytes:
    """The page of the template NAME.html, UTF-8, with the script of NAME/main.js and the style sheets joined.

    values: what the template needs beside these and plotly.js.
    """
    from markupsafe import Markup

    plotly, plotly_hash, licence = _plotly()
    script = joined_script(f"{name}/main.js")
    page = {
        "version": mask_impact.__version__,
        "plotly_licence": licence,
        "plotly": plotly,
        "plotly_hash": plotly_hash,
        "style": Markup("\n".join(template_text(style) for style in styles)),
        "script": Markup(script),
        "script_hash": content_hash(script),
    }
    return rendered(f"{name}.html", {**page, **values}).encode()


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """A template with its values, every text escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"shown": shown, "percent": percent}
    return environment


def content_hash(text: str) -> str:
    """The text's name in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def template_text(name: str) -> str:
    """A file of the templates as it is."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


# The charts that need x and y axes, all that pages have: a third of the whole plotly.js. From the npm package
# plotly.js-cartesian-dist-min 4.1.1, packed by gzip -9 -n.
_PLOTLY = TEMPLATES / "vendor" / "plotly-cartesian.min.js.gz"


@cache
def _plotly() -> tuple[str, str, str]:
    """plotly.js as base64 of its gzip, its name in a policy, and the licence notice at its top."""
    packed = _PLOTLY.read_bytes()
    text = gzip.decompress(packed).decode()
    notice = re.match(r"/\*\*(.*?)\*/", text, re.DOTALL)
    licence = " ".join(notice[1].replace("*", " ").split()) if notice else "plotly.js"
    return base64.b64encode(packed).decode(), content_hash(text), licence


# ---------------------------------------------------------------------------------------------------------------------
# The script


@dataclass(frozen=True)
class _Module:
    """imports: the names that are taken from each module, in their order. names: what is declared at its top level; exports:
    which of these others may import. body: the text without import statements and the word export."""

    imports: dict[str, tuple[str, ...]]
    names: tuple[str, ...]
    exports: frozenset[str]
    body: str


@cache
def joined_script(entry: str, folder: Path = TEMPLATES) -> str:
    """The module and all that it imports as one classic script: a function that holds them in one scope, strict, each behind
    those that it imports.

    Modules say `import { a, b } from "./other.js";`, `import "./other.js";` and `export` before a declaration, and nothing
    else. They share one scope in the end, so that a name is declared in one of them only. Raises ValueError for other forms,
    for a circle of imports, for an import of what is not exported, and for a name that is declared twice.
    """
    modules = _in_order(entry, folder)
    owners: dict[str, str] = {}
    for path, module in modules.items():
        for name in module.names:
            if name in owners:
                raise ValueError(f"{path} declares {name}, as {owners[name]} does")
            owners[name] = path
    parts = [f"// {path}\n{module.body}" for path, module in modules.items()]
    return "\n".join(['(() => {\n"use strict";\n', *parts, "})();\n"])


def _in_order(entry: str, folder: Path) -> dict[str, _Module]:
    """The modules by path within the folder, each behind those that it imports."""
    done: dict[str, _Module] = {}

    def visit(path: str, above: tuple[str, ...]) -> None:
        if path in above:
            raise ValueError(f"a circle of imports: {' -> '.join([*above[above.index(path) :], path])}")
        if path in done:
            return
        module = _read_module(path, folder)
        for other, names in module.imports.items():
            visit(other, (*above, path))
            missing = [name for name in names if name not in done[other].exports]
            if missing:
                raise ValueError(f"{path} imports {', '.join(missing)} from {other}, which does not export it")
        done[path] = module

    visit(entry, ())
    return done


def _read_module(path: str, folder: Path) -> _Module:
    """A module of the folder by its path within it."""
    text = (folder / path).read_text(encoding="utf-8")
    imports: dict[str, tuple[str, ...]] = {}
    for names, source in _IMPORT.findall(text):
        other = posixpath.normpath(posixpath.join(posixpath.dirname(path), source))
        imports[other] = (*imports.get(other, ()), *filter(None, map(str.strip, names.split(","))))
    declared = _DECLARATION.findall(text)
    body = _EXPORT.sub("", _IMPORT.sub("", text))
    if other_form := _OTHER_FORM.search(body):
        raise ValueError(f"{path} has an import or export of a form that can't be joined: {other_form[0]}")
    return _Module(imports, tuple(name for _, name in declared), frozenset(n for mark, n in declared if mark), body)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of what a script gets as JSON


def clean(text: str) -> str:
    """The text with lone surrogates as U+FFFD: the page is UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(text: str) -> str:
    """The text with everything written out that can't be seen."""
    return escape(clean(text))


def image_entry(image: ImageRecord) -> dict[str, Any]:
    """source, size, grid and preview, a JPEG as base64."""
    return {
        "source": clean(image.source),
        "size": list(image.size),
        "grid": list(image.grid),
        "preview": base64.b64encode(image.preview).decode(),
    }
