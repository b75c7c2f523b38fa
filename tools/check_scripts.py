"""Check the pages' scripts: lint each module in mask_impact/views/templates and each page's joined script, and check types.

    python tools/check_scripts.py

The rules are in tools/eslint.config.mjs. TypeScript reads the modules as they are and finds names, properties and numbers of
arguments that are not there; tools/pages.d.ts says what it is to take for granted. Exits 1 where something is found. Where there
is no Node.js, or eslint or typescript are not to be had from the npm registry, it says so in one line, and exits 0.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask_impact.views.page import TEMPLATES, joined_script  # noqa: E402

ESLINT = "eslint@10.15.0"
TYPESCRIPT = "typescript@7.0.2"
CONFIG = ROOT / "tools" / "eslint.config.mjs"
FETCH_SECONDS = 120  # for each of the two to be fetched


def main() -> int:
    """The check; returns the exit code."""
    npx = shutil.which("npx")
    if npx is None or shutil.which("node") is None:
        return _skipped("Node.js with npx is not on the path")
    if missing := _why_not(npx, ESLINT, "eslint") or _why_not(npx, TYPESCRIPT, "tsc"):
        return _skipped(missing)
    pages = sorted(path.parent.name for path in TEMPLATES.glob("*/main.js"))
    found = [_lint(npx, [str(TEMPLATES)]), *(_lint_joined(npx, page) for page in pages), _check_types(npx)]
    if any(found):
        return 1
    print(f"Scripts: {len(list(TEMPLATES.glob('*/*.js')))} modules of {len(pages)} pages, nothing found")
    return 0


def _lint(npx: str, arguments: list[str], text: str | None = None) -> int:
    command = [npx, "--yes", ESLINT, "--config", str(CONFIG), "--max-warnings", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, input=text, encoding="utf-8", check=False).returncode


def _check_types(npx: str) -> int:
    command = [npx, "--yes", "--package", TYPESCRIPT, "tsc", "--project", str(ROOT / "tools" / "tsconfig.json")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _lint_joined(npx: str, page: str) -> int:
    """CONFIG has rules for the ending of the name that the script is given here."""
    try:
        script = joined_script(f"{page}/main.js")
    except ValueError as error:
        print(f"Scripts: {error}")
        return 1
    return _lint(npx, ["--stdin", "--stdin-filename", f"{page}.joined.js"], script)


def _why_not(npx: str, package: str, program: str) -> str | None:
    """Why a package's program does not start, in one line; None where it does."""
    command = [npx, "--yes", "--package", package, program, "--version"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{package} was not there after {FETCH_SECONDS} seconds"
    if process.returncode == 0:
        return None
    said = next((line for line in process.stderr.splitlines() if "error" in line), f"npx exits {process.returncode}")
    return f"{package} can't be had: {said.strip()}"


def _skipped(why: str) -> int:
    print(f"Scripts: skipped: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
