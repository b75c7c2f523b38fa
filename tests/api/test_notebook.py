"""The example notebook runs as it stands, in a kernel of its own, and its cells show what their texts say."""

import os
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_example_notebook_runs_as_it_stands(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed, which reads notebooks")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed, which runs notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed, which notebooks run in")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(EXAMPLES / "shapes.png", tmp_path)
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)  # a reader sees what it shows without running it
    for cell in code:
        cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    shown = [
        next(output.data for output in cell if output.output_type == "execute_result")
        for cell in (outputs[0], outputs[1])
    ]
    assert "orange" in shown[0]["text/plain"]
    assert shown[1]["text/html"].startswith('<form class="mi-alone"')
    figures = [output.data for output in outputs[2] if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures[0]["application/vnd.plotly.v1+json"]["data"][0]["type"] == "heatmap"
    table = outputs[3][-1].data["text/html"]
    assert table.count("<tr") == 4
    assert (tmp_path / "output" / "star.html").stat().st_size > 6e5
    assert (tmp_path / "output" / "star.csv").exists()
