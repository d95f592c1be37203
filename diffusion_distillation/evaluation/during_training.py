"""Metrics during training, in evaluations.jsonl, and the run's best model so far."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import BEST, Checkpoints, Metadata, newest_step, params_hash
from ..keys import seed_key
from ..pipeline import Pipeline
from ..runtime import multihost
from ..runtime.hashing import sha256
from ..shapes import Params
from ..training.runs import EVALUATIONS, read_evaluations, write_evaluations
from .measure import Evaluator, measure
from .metrics import METRICS, MetricValues, named_values
from .samples import generated_samples


class BestModel(NamedTuple):
    """The checkpoint of the best model. It can be sampled and distilled like a run's newest checkpoint."""

    step: np.ndarray
    params: Params


def measure_during_training(
    params: Params, metadata: Metadata, workdir: epath.Path, evaluators: Sequence[Evaluator]
) -> None:
    """Measure a model in training and add a line to evaluations.jsonl, if a measurement is due.

    A resumed run skips what it measured before. The best model by the first metric is saved in the folder `best`, which
    can be sampled, evaluated and distilled like a run. All processes must call this, to generate samples; only the
    main one computes features and writes.

    Args:
      params: of the model.
      metadata: of the model. `config.eval.metrics_num_samples` samples are measured.
      workdir: the run's folder.
      evaluators: the metrics to compute.
    """
    config = metadata.config
    step = metadata.step
    if not multihost.on_main(
        lambda: measurement_is_due(step, [line["step"] for line in read_evaluations(workdir)], config)
    ):
        return

    # Measure.
    pipeline = Pipeline(params, metadata)
    num_samples = config.eval.metrics_num_samples
    samples = generated_samples(
        pipeline,
        seed_key(0),
        batch_size=min(config.eval.batch_size, num_samples),
        num_steps=pipeline.num_steps,
        sampler=config.sampler,
    )
    unfinished = workdir / f"{EVALUATIONS}.unfinished"
    identities = [evaluator.extractor.identity for evaluator in evaluators]
    digest = sha256([json.dumps([step, params_hash(params), config.to_json(), identities])], 16)
    measurement = measure(samples, num_samples, evaluators, unfinished / multihost.broadcast(digest))

    # Save the best model, then the line.
    if multihost.on_main(lambda: _is_best(measurement.values, step, workdir)):
        with Checkpoints(workdir / BEST) as checkpoints:
            checkpoints.save(BestModel(np.asarray(step, np.int32), params), metadata)
    if multihost.is_main():
        lines = [line for line in read_evaluations(workdir) if line["step"] < step]
        lines.append({"step": step, **named_values(measurement.values)})
        write_evaluations(workdir, lines)
        values = ", ".join(f"{criterion.title} {value}" for criterion, value in measurement.values.items())
        print(f"{workdir.name}  step {step:,}  {values}", flush=True)
        unfinished.rmtree()


def measurement_is_due(step: int, measured: Sequence[int], config: ConfigDict) -> bool:
    """Return whether a measurement is due after this update.

    One is due at the first call after every `config.eval.metrics_every_steps` updates, and after the last update.

    Args:
      step: the number of updates so far.
      measured: the numbers of updates at which the run was measured, including interrupted attempts.
      config: of the run.
    """
    last = max((earlier for earlier in measured if earlier <= step), default=0)
    every = config.eval.metrics_every_steps
    return last < (step if step == config.train.num_train_steps else step // every * every)


def _is_best(values: MetricValues, step: int, workdir: epath.Path) -> bool:
    """Whether the first metric is better than at all earlier updates."""
    criterion, value = next(iter(values.items()))
    # Version 1.0 wrote 'fid' for every kind of features.
    published = METRICS[criterion.metric].inception_name or criterion.metric
    names = {criterion.name, published, f"{published}_{criterion.features}"}
    lines = [line for line in read_evaluations(workdir) if line["step"] < step]
    earlier = [line[name] for line in lines for name in names if name in line]
    return criterion.best([*earlier, value.value]) == value.value or newest_step(workdir / BEST) is None
