"""Run the example notebook and keep its outputs in it.

    python tools/run_notebook.py

Figures are kept as plotly's data only, without its script, so that the file stays small. Nothing of the machine is
kept: no times, no paths, no warnings.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
LONG = 1000  # characters
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output without the long text that stands in for its picture."""
    data = output.get("data", {})
    if "text/html" in data and len(data.get("text/plain", "")) > LONG:
        del data["text/plain"]
    return output


def main() -> int:
    """Runs the cells in an empty folder with the example picture; returns the exit code."""
    os.environ.update(PLOTLY_RENDERER="plotly_mimetype", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "examples" / "shapes.png", folder)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
