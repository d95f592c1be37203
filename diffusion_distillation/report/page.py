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
import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from .. import multihost
from ..checkpoints import newest_step
from ..data import Source
from ..evaluation.features import MOST_PIXELS, pixels
from ..evaluation.frechet import frechet_distance, statistics
from ..evaluation.measure import data_indices, data_statistics, draw, halves_distance
from ..files import as_path, save_whole, write_whole
from ..methods import make_method
from ..pipeline import from_checkpoint
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
      updates: that the model had had.
    """

    model: str
    sampler: str
    num_steps: int
    distance: float
    images_per_sec: float
    updates: int | None = -1


def write_report(config: ConfigDict, workdir: epath.PathLike, source: Source) -> None:
    """Measures a finished ladder and writes its report. What an earlier call has measured is kept.

    All processes draw; the main one alone looks at the data and writes.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      source: the images to compare with.
    """
    workdir = as_path(workdir)
    folder, indices = workdir / "report", data_indices(source)
    described = {
        "features": "pixels" if max(source.image_shape) <= MOST_PIXELS else f"pixels, averaged to {MOST_PIXELS} a side",
        "num_samples": config.eval.num_samples,
        "num_images": len(indices),
        "teacher": config.distillation.teacher_checkpoint_path,
        "clip": config.model.eval_clip_denoised,
    }
    teacher = as_path(config.distillation.teacher_checkpoint_path)

    def run_of(model: str, num_steps: int) -> epath.Path:
        return teacher if model == "teacher" else student_folder(workdir, num_steps)

    earlier = multihost.on_main(lambda: _read_figures(folder, described, run_of))
    rows = {(row["model"], row["sampler"], row["num_steps"]): Row(**row) for row in earlier["rows"]}
    floor = earlier["halves_distance"]
    if floor is None and multihost.is_main():
        floor = halves_distance(source, pixels, indices)
    data = functools.cache(lambda: data_statistics(source, pixels, indices))
    open_pipeline = functools.lru_cache(maxsize=1)(from_checkpoint)  # the teacher's rows follow each other
    plan = _plan(config)
    for key in plan:
        model, sampler, num_steps = key
        if key not in rows:
            drawn = draw(
                open_pipeline(run_of(model, num_steps)),
                num_samples=config.eval.num_samples,
                batch_size=config.eval.batch_size,
                num_steps=num_steps,
                sampler=sampler,
            )
            if multihost.is_main():
                kept = drawn.images[:SAMPLES_KEPT]
                save_whole(_samples_path(folder, *key), lambda file, kept=kept: np.savez_compressed(file, kept))
                distance = frechet_distance(statistics([pixels(drawn.images)]), data())
                rows[key] = Row(*key, distance, drawn.images_per_sec, newest_step(run_of(model, num_steps)))
                measured = [rows[key]._asdict() for key in plan if key in rows]
                figures = {**described, "halves_distance": floor, "rows": measured}
                write_whole(folder / "figures.json", json.dumps(figures, indent=2) + "\n")
        if multihost.is_main():
            print(
                f"report  {model}, {SAMPLER_TITLES[sampler]}, {_steps(num_steps)}: Frechet distance "
                f"{rows[key].distance:.3f}, {rows[key].images_per_sec:,.1f} images/s",
                flush=True,
            )
    if multihost.is_main():
        shown = [rows[key] for key in plan]
        _draw(shown, floor, folder)
        page = _page(shown, {**described, "halves_distance": floor}, config)
        write_whole(folder / "index.html", page)
        print(f"report  {folder / 'index.html'}", flush=True)


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


def _read_figures(
    folder: epath.Path, described: dict[str, Any], run_of: Callable[[str, int], epath.Path]
) -> dict[str, Any]:
    """`halves_distance` (None if it is not known) and `rows` of an earlier call, if it measured the same alike."""
    path, nothing = folder / "figures.json", {"halves_distance": None, "rows": []}
    if not path.exists():
        return nothing
    try:
        earlier = json.loads(path.read_text())
        rows = [Row(**row) for row in earlier["rows"]]
        if any(earlier.get(name) != value for name, value in described.items()):
            return nothing
        rows = [row for row in rows if row.updates == newest_step(run_of(row.model, row.num_steps))]
        rows = [row._asdict() for row in rows if _samples_path(folder, *row[:3]).exists()]
        return {"halves_distance": earlier["halves_distance"], "rows": rows}
    except (ValueError, TypeError, KeyError):
        logging.warning("%s is damaged; what it held is measured again.", path)
        return nothing


def _samples_path(folder: epath.Path, model: str, sampler: str, num_steps: int) -> epath.Path:
    return folder / "samples" / f"{model}_{sampler}_{num_steps:04d}.npz"


def _draw(rows: Sequence[Row], floor: float, folder: epath.Path) -> None:
    """Writes the report's three pictures."""

    def column(row: Row, by_sampler: bool = False) -> tuple[str, str, np.ndarray]:
        kept = _samples_path(folder, row.model, row.sampler, row.num_steps)
        images = np.load(io.BytesIO(kept.read_bytes()))["arr_0"]
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
    rungs = make_method(config).rungs
    return PAGE.format(
        dataset=html.escape(config.dataset.name),
        start=rungs[0].teacher_num_steps,
        end=rungs[-1].num_steps,
        most=rows[0].num_steps,
        lines=lines,
        config=html.escape(config.to_json(indent=2)),
        **table,
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Distillation: {dataset}, {start} to {end} steps</title>
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
