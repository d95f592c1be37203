"""The notebooks of examples/: they run from top to bottom, and show what they showed when they were stored."""

import re

import nbclient
import nbformat
import pytest
from helpers.runs import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NUMBER = re.compile(r"\d[\d.,:]*|/tmp/\S+|\btmp\w+")  # numbers, and folders of the day, are others on other machines


def shown(notebook):
    """The kinds of all outputs; of texts, what is no number."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield cell.id, sorted({NUMBER.sub("#", line).rstrip() for line in output.text.splitlines()})
            else:
                yield cell.id, sorted(output.data)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")  # of any CPU, and so said of none
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "False")  # they train for a while
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored, run = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in run.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(run, timeout=300, coalesce_streams=True, resources=resources).execute()
    assert [*shown(run)] == [*shown(stored)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_was_run(path):
    assert path.stat().st_size < 200_000
    cells = nbformat.read(path, 4).cells
    counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert pictures >= 1
