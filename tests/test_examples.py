"""The notebooks of examples/ show their stored outputs, and minimal.py trains."""

import os
import re
import subprocess
import sys

import matplotlib.image
import nbclient
import nbformat
import pytest
from helpers.runs import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NUMBER = re.compile(r"\d[\d.,:]*|/tmp/\S+|\btmp\w+")  # numbers and temporary folders depend on the machine


def shown(notebook):
    """The kinds of all outputs, and printed lines without numbers."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield cell.id, sorted({NUMBER.sub("#", line).rstrip() for line in output.text.splitlines()})
            else:
                yield cell.id, sorted(output.data)


def test_the_minimal_script_trains_a_ladder_and_saves_a_picture(tmp_path):
    command = [sys.executable, ROOT / "examples" / "minimal.py", "6", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    students = [f"{num_steps}-step student  update 3/3" for num_steps in (32, 16, 8, 4, 2, 1)]
    lines = [line.partition("  loss ")[0] for line in done.stdout.splitlines()]
    assert lines == ["teacher  update 6/6", *students, "Saved minimal.png"]
    assert matplotlib.image.imread(tmp_path / "minimal.png").std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_the_stored_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")  # stored outputs must not depend on the CPU
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "False")  # notebooks train
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
def test_a_notebook_is_small_and_stored_in_the_order_of_its_run(path):
    assert path.stat().st_size < 200_000
    cells = nbformat.read(path, 4).cells
    counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert pictures >= 1
