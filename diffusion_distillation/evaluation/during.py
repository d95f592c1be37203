"""Metrics during training: how good the samples of a run are as it goes on, and the best of its checkpoints."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from .. import multihost
from ..checkpoints import Checkpoints, Metadata
from ..files import write_whole
from ..pipeline import Pipeline
from ..shapes import Params
from .evaluation import best_of
from .measure import Yardstick, draw_from, measure

FILE = "evaluations.jsonl"
BEST = "best"


class Best(NamedTuple):
    """What is kept of the best model: it can be sampled, and taught with, as any run's newest checkpoint."""

    step: np.ndarray
    params: Params


def measure_during_training(
    params: Params, metadata: Metadata, workdir: epath.Path, yardsticks: list[Yardstick]
) -> None:
    """Measures config.eval.metrics_num_samples samples and adds a line to evaluations.jsonl, unless it is there.

    The best by the first metric is kept in the folder `best`, which is a run's folder to whatever reads one. All
    processes draw; the main one alone looks and writes.

    Args:
      params: of the model.
      metadata: its config says how many samples are measured, and its step is that of the line.
      workdir: the run's folder.
      yardsticks: what samples are measured by.
    """
    path, config = workdir / FILE, metadata.config
    if multihost.on_main(lambda: metadata.step in [line["step"] for line in _lines(path)]):
        return
    pipeline, num_samples = Pipeline(params, metadata), config.eval.metrics_num_samples
    settings = dict(num_steps=pipeline.num_steps, sampler=config.sampler)
    draw = draw_from(pipeline, jax.random.key(0), batch_size=min(config.eval.batch_size, num_samples), **settings)
    measured = measure(draw, num_samples, yardsticks, workdir / f"{FILE}.unfinished" / str(metadata.step))

    def write() -> bool:
        (workdir / f"{FILE}.unfinished").rmtree()
        lines = [line for line in _lines(path) if line["step"] < metadata.step]
        lines.append({"step": metadata.step, **measured.metrics})
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
        name, values = next(iter(measured.metrics)), measured.metrics.items()
        print(f"{workdir.name}  step {metadata.step:,}  {', '.join(f'{name} {value:.4g}' for name, value in values)}")
        return best_of(name, [line[name] for line in lines]) == measured.metrics[name]

    if multihost.on_main(write):
        with Checkpoints(workdir / BEST) as checkpoints:
            checkpoints.save(Best(np.asarray(metadata.step, np.int32), params), metadata)


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
