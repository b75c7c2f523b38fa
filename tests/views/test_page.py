"""The joining of a page's modules into one classic script: their order, their names, and what can't be joined."""

import re

import pytest

from mask_impact.views.page import TEMPLATES, joined_script

PAGES = sorted(path.parent.name for path in TEMPLATES.glob("*/main.js"))


@pytest.fixture
def write(tmp_path):
    """Writes modules by path, and gives their script, that of the first."""

    def write(modules):
        for path, text in modules.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        return joined_script(next(iter(modules)), tmp_path)

    return write


def test_modules_stand_behind_those_that_they_import_each_once(write):
    script = write(
        {
            "page/main.js": 'import { b } from "./b.js";\nimport { a } from "../shared/a.js";\nb(a);\n',
            "page/b.js": 'import {\n  a,\n} from "../shared/a.js";\n// b\nexport async function b() { return a; }\n',
            "shared/a.js": "// a\nexport const a = 1;\n",
        }
    )
    assert script == (
        '(() => {\n"use strict";\n\n'
        "// shared/a.js\n// a\nconst a = 1;\n\n"
        "// page/b.js\n// b\nasync function b() { return a; }\n\n"
        "// page/main.js\nb(a);\n\n"
        "})();\n"
    )


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {
                "main.js": 'import { a } from "./a.js";\n',
                "a.js": 'import { b } from "./b.js";\nexport const a = 1;\n',
                "b.js": 'import { a } from "./a.js";\nexport const b = 1;\n',
            },
            "a circle of imports: a.js -> b.js -> a.js",
        ),
        (
            {"main.js": 'import { a, b } from "./a.js";\n', "a.js": "export const a = 1;\nconst b = 2;\n"},
            "main.js imports b from a.js, which does not export it",
        ),
        (
            {"main.js": 'import { a } from "./a.js";\nfunction b() {}\n', "a.js": "export let a = 1;\nconst b = 2;\n"},
            "main.js declares b, as a.js does",
        ),
        ({"main.js": 'import * as a from "./a.js";\n'}, "can't be joined: import * as a"),
        ({"main.js": 'import { a as b } from "./a.js";\n', "a.js": "export const a = 1;\n"}, "imports a as b"),
        ({"main.js": "const a = 1;\nexport { a };\n"}, "can't be joined: export { a };"),
        ({"main.js": "export default 1;\n"}, "can't be joined: export default 1;"),
    ],
)
def test_what_can_not_be_joined_is_an_error(write, modules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write(modules)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_script_is_classic_and_can_stand_in_html(page):
    script = joined_script(f"{page}/main.js")
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert script.count('"use strict"') == 1


def test_every_module_is_in_a_page():
    named = {
        path
        for page in PAGES
        for path in re.findall(r"^// (\w+/\w+\.js)$", joined_script(f"{page}/main.js"), re.MULTILINE)
    }
    assert named == {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.glob("*/*.js")}


@pytest.mark.parametrize(
    "path", sorted(TEMPLATES.glob("*/*.js")), ids=lambda path: path.relative_to(TEMPLATES).as_posix()
)
def test_a_module_is_short_and_begins_with_what_it_does(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: lines.index("")]
    assert 1 <= len(header) <= 3
    assert all(line.startswith("// ") for line in header)
    assert len(lines) <= 200
