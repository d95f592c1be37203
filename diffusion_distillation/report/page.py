"""The report of a ladder: what its students draw, and how far that is from the data.

report/index.html     the page
report/samples.png    the same noise through the teacher and every student
report/distances.png  Frechet distance against number of steps
report/samplers.png   DDIM against ancestral sampling of the teacher
report/figures.json   the table
report/samples/       the first samples of each of its rows
"""

import functools
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from .. import multihost
from ..data import Source
from ..evaluation.features import MOST_PIXELS, pixels
from ..evaluation.frechet import Statistics
from ..evaluation.measure import data_indices, data_statistics, halves_distance, measure
from ..methods import make_method
from ..pipeline import Pipeline, from_checkpoint
from ..training.ladder import student_folder
from .plots import STUDENT, TEACHER, save_columns, save_distances

SAMPLES_KEPT = 64
SAMPLER_TITLES = {"ddim": "DDIM", "noisy": "ancestral"}


class Row(NamedTuple):
    """A line of the report's table.

    Attributes:
      model: 'teacher' or 'student'.
      sampler: 'ddim' or 'noisy'.
      num_steps: sampling steps.
      distance: Frechet distance to the data.
      images_per_sec: drawn, on all devices.
    """

    model: str
    sampler: str
    num_steps: int
    distance: float
    images_per_sec: float


def write_report(config: ConfigDict, workdir: Path, source: Source) -> None:
    """Measures a finished ladder and writes its report. Rows that an earlier call has measured are kept.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      source: the images to compare with.
    """
    folder = workdir / "report"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    indices = data_indices(source)
    table = {
        "features": "pixels" if max(source.image_shape) <= MOST_PIXELS else f"pixels, averaged to {MOST_PIXELS} a side",
        "num_samples": config.eval.num_samples,
        "num_images": len(indices),
        "halves_distance": halves_distance(source, pixels, indices),
    }
    known = _read_rows(folder, table)
    data = data_statistics(source, pixels, indices)
    teacher = Path(config.distillation.teacher_checkpoint_path)
    open_pipeline = functools.lru_cache(maxsize=1)(from_checkpoint)  # the teacher's rows follow each other
    rows: list[Row] = []
    plan = _plan(config)
    to_do = multihost.largest([row not in known for row in plan])  # files may be seen later by other hosts
    for (model, sampler, num_steps), measured_now in zip(plan, to_do, strict=True):
        row = known.get((model, sampler, num_steps))
        if measured_now:
            pipeline = open_pipeline(teacher if model == "teacher" else student_folder(workdir, num_steps))
            row = _measure(model, sampler, num_steps, pipeline, config, data, folder)
        if not multihost.is_main():
            continue
        rows.append(row)
        figures = {**table, "rows": [row._asdict() for row in rows]}
        (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(
            f"report  {model}, {SAMPLER_TITLES[sampler]}, {_steps(num_steps)}: Frechet distance {row.distance:.3f}, "
            f"{row.images_per_sec:,.1f} images/s",
            flush=True,
        )
    if not multihost.is_main():
        return
    _draw(rows, table["halves_distance"], folder)
    (folder / "index.html").write_text(_page(rows, table, config), encoding="utf-8")
    print(f"report  {folder / 'index.html'}", flush=True)


def _measure(
    model: str,
    sampler: str,
    num_steps: int,
    pipeline: Pipeline,
    config: ConfigDict,
    data: Statistics,
    folder: Path,
) -> Row:
    """Measures one row and keeps its first samples."""
    measured = measure(
        pipeline,
        data,
        pixels,
        num_samples=config.eval.num_samples,
        batch_size=config.eval.batch_size,
        num_steps=num_steps,
        sampler=sampler,
    )
    if multihost.is_main():
        np.savez_compressed(_samples_path(folder, model, sampler, num_steps), measured.images[:SAMPLES_KEPT])
    return Row(model, sampler, num_steps, measured.distance, measured.images_per_sec)


def _steps(num_steps: int) -> str:
    return "1 step" if num_steps == 1 else f"{num_steps} steps"


def _plan(config: ConfigDict) -> list[tuple[str, str, int]]:
    """(model, sampler, num_steps) of every row."""
    evaluation = config.eval
    by_ddim = sorted({*evaluation.teacher_num_steps, *evaluation.ancestral_num_steps}, reverse=True)
    return [
        *(("teacher", "ddim", num_steps) for num_steps in by_ddim),
        *(("teacher", "noisy", num_steps) for num_steps in sorted(evaluation.ancestral_num_steps, reverse=True)),
        *(("student", "ddim", rung.num_steps) for rung in make_method(config).rungs),
    ]


def _read_rows(folder: Path, table: dict) -> dict[tuple[str, str, int], Row]:
    """The rows of an earlier call, if they were measured alike."""
    path = folder / "figures.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if any(earlier.get(name) != value for name, value in table.items()):
        return {}
    rows = (Row(**row) for row in earlier["rows"])
    return {(row.model, row.sampler, row.num_steps): row for row in rows}


def _samples_path(folder: Path, model: str, sampler: str, num_steps: int) -> Path:
    return folder / "samples" / f"{model}_{sampler}_{num_steps:04d}.npz"


def _draw(rows: Sequence[Row], floor: float, folder: Path) -> None:
    """Writes the report's three pictures."""

    def column(row: Row, by_sampler: bool = False) -> tuple[str, str, np.ndarray]:
        images = np.load(_samples_path(folder, row.model, row.sampler, row.num_steps))["arr_0"]
        colour = TEACHER if row.model == "teacher" else STUDENT
        name = SAMPLER_TITLES[row.sampler] if by_sampler else row.model
        return f"{name}\n{_steps(row.num_steps)}\n{row.distance:.2f}", colour, images

    by_ddim = [row for row in rows if (row.model, row.sampler) == ("teacher", "ddim")]
    ancestral = {row.num_steps: row for row in rows if row.sampler == "noisy"}
    students = [row for row in rows if row.model == "student"]
    few = [row for row in by_ddim if row.num_steps <= 8]
    save_columns([column(row) for row in [*by_ddim[:1], *few, *students]], folder / "samples.png")
    pairs = [(row, ancestral[row.num_steps]) for row in by_ddim if row.num_steps in ancestral]
    save_columns([column(row, by_sampler=True) for pair in pairs for row in pair], folder / "samplers.png")
    save_distances(
        {row.num_steps: row.distance for row in by_ddim},
        {row.num_steps: row.distance for row in students},
        floor,
        folder / "distances.png",
    )


def _page(rows: Sequence[Row], table: dict, config: ConfigDict) -> str:
    """index.html: the pictures, the table, and what they were measured from."""
    lines = "\n".join(
        f"<tr><td>{row.model}</td><td>{SAMPLER_TITLES[row.sampler]}</td><td>{row.num_steps}</td>"
        f"<td>{row.distance:.3f}</td><td>{row.images_per_sec:,.1f}</td></tr>"
        for row in rows
    )
    return PAGE.format(
        dataset=html.escape(config.dataset.name),
        start=config.distillation.start_num_steps,
        end=config.distillation.end_num_steps,
        most=rows[0].num_steps,
        lines=lines,
        config=html.escape(config.to_json(indent=2)),
        **table,
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Progressive distillation: {dataset}, {start} to {end} steps</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #22262b; }}
  img {{ max-width: 100%; }}
  table {{ border-collapse: collapse; }}
  th, td {{ padding: .2rem 1rem .2rem 0; text-align: right; border-bottom: 1px solid #e5e7ea; }}
  th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
  pre {{ font-size: 12px; overflow: auto; }}
</style>
<h1>{dataset}: {start} sampling steps become {end}</h1>
<h2>The same noise through every sampler</h2>
<p>A row starts from one noise image. Columns, by number of steps: the teacher at {most}, the undistilled teacher at few
steps, and the students. The last line of a heading is the Fréchet distance.</p>
<img src="samples.png" alt="Columns of samples of the teacher and of each student">
<h2>Quality against number of steps</h2>
<p>Fréchet distance ({features}) of {num_samples:,} samples to {num_images:,} images of the dataset; the smaller the
better. Two random halves of these are {halves_distance:.3f} apart.</p>
<img src="distances.png" alt="Fréchet distance against sampling steps, teacher and students">
<h2>DDIM against ancestral sampling of the teacher</h2>
<img src="samplers.png" alt="Samples of the teacher by DDIM and by ancestral sampling">
<h2>Figures</h2>
<table>
<tr><th>model</th><th>sampler</th><th>steps</th><th>Fréchet distance</th><th>images/s</th></tr>
{lines}
</table>
<details><summary>Configuration</summary><pre>{config}</pre></details>
</html>
"""
