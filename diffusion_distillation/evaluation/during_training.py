"""Metrics during training: how good the samples of a run are as it goes on, and the best of its checkpoints."""

import json
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Checkpoints, Metadata, newest_step, params_hash
from ..keys import seed_key
from ..pipeline import Pipeline
from ..runtime import multihost
from ..runtime.hashing import sha256
from ..shapes import Params
from ..training.runs import BEST, EVALUATIONS, read_evaluations, write_evaluations
from .measure import Evaluator, generated_samples, measure
from .metrics import METRICS, named_values


class Best(NamedTuple):
    """What is kept of the best model: it can be sampled, and taught with, as any run's newest checkpoint."""

    step: np.ndarray
    params: Params


def measure_during_training(
    params: Params, metadata: Metadata, workdir: epath.Path, evaluators: list[Evaluator]
) -> None:
    """Measure config.eval.metrics_num_samples samples and add a line to evaluations.jsonl, if a measurement is due.

    One is due at the first evaluation after every config.eval.metrics_every_steps updates, and after the last update. A
    resumed run skips what it measured before. The best model by the first metric is kept in the folder `best`, which
    can be sampled, evaluated and distilled like a run. All processes draw; only the main process measures and writes.

    Args:
      params: of the model.
      metadata: its config says how many samples are measured, and its step is that of the line.
      workdir: the run's folder.
      evaluators: what samples are measured by.
    """
    config = metadata.config
    if not multihost.on_main(lambda: _due(metadata.step, [line["step"] for line in read_evaluations(workdir)], config)):
        return
    pipeline, num_samples = Pipeline(params, metadata), config.eval.metrics_num_samples
    settings = dict(num_steps=pipeline.num_steps, sampler=config.sampler)
    draw = generated_samples(pipeline, seed_key(0), batch_size=min(config.eval.batch_size, num_samples), **settings)
    unfinished = workdir / f"{EVALUATIONS}.unfinished"
    about = [metadata.step, params_hash(params), config.to_json(), [of.extractor.identity for of in evaluators]]
    folder = unfinished / multihost.broadcast(sha256([json.dumps(about)], 16))
    measured = measure(draw, num_samples, evaluators, folder)

    def is_best() -> bool:
        first, of_first = next(iter(measured.values.items()))
        before = [line for line in read_evaluations(workdir) if line["step"] < metadata.step]
        published = METRICS[first.metric].with_inception
        old = published[0] if published else first.metric
        names = {first.name, old, f"{old}_{first.features}"}  # as version 1.0 wrote them, too
        earlier = [line[name] for line in before for name in names if name in line]
        return first.best([*earlier, of_first.value]) == of_first.value or newest_step(workdir / BEST) is None

    if multihost.on_main(is_best):
        with Checkpoints(workdir / BEST) as checkpoints:
            checkpoints.save(Best(np.asarray(metadata.step, np.int32), params), metadata)
    if multihost.is_main():
        lines = [line for line in read_evaluations(workdir) if line["step"] < metadata.step]
        lines.append({"step": metadata.step, **named_values(measured.values)})
        write_evaluations(workdir, lines)
        values = ", ".join(f"{criterion.title} {of.value:.4g}" for criterion, of in measured.values.items())
        print(f"{workdir.name}  step {metadata.step:,}  {values}", flush=True)
        unfinished.rmtree()


def _due(step: int, measured: list[int], config: ConfigDict) -> bool:
    """Whether a multiple of metrics_every_steps, or the last update, has passed since the last measurement."""
    last = max((earlier for earlier in measured if earlier <= step), default=0)
    every = config.eval.metrics_every_steps
    return last < (step if step == config.train.num_train_steps else step // every * every)
