"""The parts of the documentation that are made from the code: `GENERATORS` has one function for each, by name.

Knows the package; not where a part stands, nor how it gets there (`update_docs`). Every function returns Markdown.
"""

import ast
import contextlib
import inspect
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import mask_impact
from mask_impact.analyses import settings
from mask_impact.commands import main, scripts
from mask_impact.commands.options import SHORT

COLUMNS = 80  # of the terminal that help and outputs are shown for
PACKAGE = Path(mask_impact.__file__).parent
# From the lowest room to the highest; a module imports from its own room and those before it.
ROOMS = (
    "errors", "demo", "results", "findings", "models", "prompts", "engine", "analyses", "studies", "views", "api", "app",
    "commands",
)  # fmt: skip
PROPERTIES = (property, cached_property)
MOST = 100  # characters of a line about a module


# --- help texts -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """While the block is open, help and outputs are as a terminal of COLUMNS columns without colours shows them."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=str(COLUMNS), NO_COLOR="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def help_of(command: Callable[[list[str]], int], *words: str) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with plain_terminal(), contextlib.redirect_stdout(printed):
        command(list(words))
    return _text_block(printed.getvalue())


def _text_block(text: str) -> str:
    return f"\n```text\n{text}```\n"


# --- tables ---------------------------------------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells must not have line breaks."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n" + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def settings_tables() -> str:
    """Every setting under its heading."""
    text = ""
    for heading in dict.fromkeys(one.heading for one in settings.SETTINGS.values()):
        rows = [_setting_row(one) for one in settings.SETTINGS.values() if one.heading == heading]
        text += f"\n## {heading[0].upper()}{heading[1:]}\n{table(SETTING_HEAD, rows)}"
    return text


SETTING_HEAD = ("setting", "flag", "default", "accepted", "meaning", "where")
PLACES = {
    "prompt": "prompt, `defaults`",
    "sizes": "prompt, `defaults`, `model`, top",
    "model": "`model`, top",
    "top": "top",
}


def _setting_row(one: settings.Setting) -> Iterable[str]:
    flags = [*([SHORT[one.name]] if one.name in SHORT else []), one.flag]
    where = [", ".join(one.commands)]
    if one.file is not None:
        where.append(f"YAML: {'`model`, `model.path`' if one.name == 'model' else PLACES[one.file]}")
    where += ["column"] if one.column else []
    accepted = one.kind.accepted + (f"; {one.kind.most:,} at most" if one.kind.most else "")
    yield from (f"`{one.name}`", ", ".join(f"`{flag}`" for flag in flags), _default(one), accepted)
    yield from (one.help, "; ".join(where))


def _default(one: settings.Setting) -> str:
    if one.default is None:
        return one.kind.null
    if isinstance(one.default, bool):
        return "true" if one.default else "false"
    return f"`{','.join(one.default) if isinstance(one.default, tuple) else one.default}`"


def families_table() -> str:
    """The architectures that everything is tested on, with examples."""
    from mask_impact.models.families import families

    kinds = {"vl": "images and text", "text": "text"}
    rows = ((f"`{one.model_type}`", kinds[one.kind], one.examples) for one in families())
    return table(("`model_type`", "input", "such as"), rows)


# --- the modules ----------------------------------------------------------------------------------------------------------


def rooms_table() -> str:
    """The rooms in their order, lowest first, with the first sentence of their docstrings."""
    return table(("room", "its job"), ((f"`{room}`", about(_door(room))) for room in ROOMS))


def _door(room: str) -> Path:
    return PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"


def file_map() -> str:
    """Every module with the first sentence of its docstring, room by room."""
    text = ""
    for room in ("", *ROOMS):
        paths = sorted(PACKAGE.glob(f"{room}/**/*.py" if room else "*.py"))
        rows = [(f"`mask_impact/{path.relative_to(PACKAGE).as_posix()}`", about(path)) for path in paths]
        if rows:
            text += f"\n### {room or 'The package itself'}\n{table(('module', 'what it is'), rows)}"
    return text


def about(path: Path) -> str:
    """The first sentence of a module's docstring, without what stands behind a comma or colon where it has more than MOST
    characters."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    sentence = re.match(r".*?(?:(?=\.(?: |$))|\?(?= )|$)", line)[0]
    if len(sentence) <= MOST:
        return sentence
    ends = [match.start() for match in re.finditer(r"[,:;] ", sentence[:MOST])]
    return sentence[: max(end for end in ends if _closed(sentence[:end]))]


def _closed(text: str) -> bool:
    """Whether no parenthesis and no back-quote is left open."""
    return text.count("(") == text.count(")") and text.count("`") % 2 == 0


# --- the Python reference -------------------------------------------------------------------------------------------------


def python_reference() -> str:
    """Signature and docstring of every public name."""
    return "".join(_entry(name, getattr(mask_impact, name)) for name in mask_impact.__all__)


def _entry(name: str, thing: object) -> str:
    if inspect.isclass(thing):
        own = [
            (method, found)
            for method in dir(thing)
            if not method.startswith("_")
            and (found := inspect.getattr_static(thing, method)) is not None
            and (inspect.isfunction(found) or isinstance(found, PROPERTIES))
            and inspect.getdoc(found)
        ]
        methods = "".join(f"\n- {_member(method, found)}" for method, found in own)
        methods = f"\n\nMembers:\n{methods}" if methods else ""
        shown = f"class {name}\n" if issubclass(thing, Exception) else _signature(name, thing)
        return f"\n## {name}\n{_text_block(shown)}\n{_prose(_class_doc(thing))}{methods}\n"
    return f"\n## {name}\n{_text_block(_signature(name, thing))}\n{_prose(inspect.getdoc(thing))}\n"


def _class_doc(thing: type) -> str:
    """The class's own docstring, and behind it that of the record whose fields it has."""
    texts = [inspect.cleandoc(one.__doc__) for one in thing.__mro__ if one.__module__.startswith("mask_impact.")]
    return "\n\n".join(dict.fromkeys(texts))


def _member(name: str, found: object) -> str:
    doc = " ".join(inspect.getdoc(found).split())
    if isinstance(found, PROPERTIES):
        return f"`{name}`: {_escaped(doc)}"
    signature = inspect.signature(found)
    own = [one.replace(annotation=one.empty) for one in signature.parameters.values()][1:]
    return f"`{name}{signature.replace(parameters=own, return_annotation=signature.empty)}`: {_escaped(doc)}"


def _signature(name: str, thing: object) -> str:
    """The signature, a line for each parameter where one line does not hold it."""
    signature = inspect.signature(thing)
    signature = signature.replace(
        parameters=[one.replace(annotation=one.empty) for one in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    line = f"{name}{signature}"
    return line + "\n" if len(line) <= COLUMNS else "\n".join(_folded(line)) + "\n"


def _folded(line: str) -> list[str]:
    head, _, rest = line.partition("(")
    wrapped = textwrap.wrap(rest, COLUMNS - 4, break_long_words=False, break_on_hyphens=False)
    return [f"{head}(", *(f"    {part}" for part in wrapped)]


FIELD = re.compile(r"(?:^|(?<=[.;]) )(\w+(?:, \w+)*): ")


def _prose(doc: str) -> str:
    """A docstring as Markdown: what stands outside of back-quotes is escaped, and "name: what it is" becomes a list."""
    parts = []
    for part in doc.split("\n\n"):
        lines = part.split("\n")
        text = " ".join(line.strip() for line in lines)
        if all(line.startswith("    ") for line in lines):
            parts.append("\n".join(f"- {_escaped(line.strip())}" for line in lines))
        else:
            said, *fields = FIELD.split(text)
            parts += [_escaped(said)] if said else []
            pairs = list(zip(fields[::2], fields[1::2], strict=True))
            parts += (
                ["\n".join(f"- {_names(names)}: {_escaped(said.rstrip(';'))}" for names, said in pairs)]
                if pairs
                else []
            )
    return "\n\n".join(parts)


def _names(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _escaped(text: str) -> str:
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([<*\[\]_])", r"\\\1", piece) for piece in pieces)


# --- by name --------------------------------------------------------------------------------------------------------------

GENERATORS: dict[str, Callable[[], str]] = {
    "help mask_impact_vl.py": lambda: help_of(scripts.main_vl, "--help"),
    "help mask_impact_analysis.py": lambda: help_of(scripts.main_text, "--help"),
    "help mask-impact": lambda: help_of(main.main),
    **{f"help mask-impact {name}": lambda name=name: help_of(main.main, name, "--help") for name in main.NAMES},
    "help mask-impact study report": lambda: help_of(main.main, "study", "report", "--help"),
    "settings": settings_tables,
    "families": families_table,
    "rooms": rooms_table,
    "file map": file_map,
    "python": python_reference,
}
