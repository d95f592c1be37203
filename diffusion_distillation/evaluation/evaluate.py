"""Measuring models: the rows that an evaluation.json does not have yet.

The file is written after each row. Rows that it already has are kept.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ..interop import from_checkpoint, model_version
from ..pipeline import Pipeline
from ..runtime import multihost
from ..runtime.files import write_atomic
from ..runtime.hashing import sha256
from .dataset_features import halves_distance
from .measure import Evaluator, Measurement, measure
from .metrics import Criterion, MetricValue
from .reference import Reference
from .results import Entry, Evaluation, Row, read_evaluation, samples_path, save_samples
from .samples import SampleSet

PipelineLoader = Callable[[epath.Path], Pipeline]


def evaluate(
    runs: Mapping[Entry, epath.Path | None],
    make_samples: Callable[[Entry, int], SampleSet],
    evaluators: Sequence[Evaluator],
    reference: Reference,
    path: epath.Path,
    *,
    settings: Mapping[str, Any],
    num_samples: int,
    repeats: int = 1,
    samples_folder: epath.Path | None = None,
    log: Callable[[str], Any] = multihost.print_on_main,
) -> Evaluation:
    """Measure the rows that an evaluation.json does not have yet.

    All processes must call it, to generate samples; only the main one computes features and writes.

    Args:
      runs: the rows, each with the folder of its model; None for images that exist already.
      make_samples: `make_samples(entry, first)` returns the samples of a row from number `first` on.
      evaluators: the metrics to compute.
      reference: what samples are compared with.
      path: the evaluation.json. Unfinished work is saved in the same folder.
      settings: everything else that shapes the numbers, of JSON's types.
      num_samples: samples per set.
      repeats: the number of sets per row. The best value of each metric is reported, as in EDM.
      samples_folder: a folder for the first samples of each row. A row whose samples are missing is measured again.
      log: called with a line for each row.
    """
    settings = {
        "features": {evaluator.features: evaluator.extractor.identity for evaluator in evaluators},
        "wanted": {evaluator.features: list(evaluator.metrics) for evaluator in evaluators},
        "reference": [reference.name, reference.content],
        "num_samples": num_samples,
        "repeats": repeats,
        **settings,
    }
    versions = {entry: None if run is None else model_version(run) for entry, run in runs.items()}
    unfinished = path.with_name(f"{path.name}.unfinished")

    # Keep the rows that are still valid.
    def begin() -> str:
        for evaluator in evaluators:
            evaluator.reference()  # fails now, before samples are generated, if the reference lacks something
        earlier = read_evaluation(path)
        if any(evaluator.extractor.identity is None for evaluator in evaluators):  # the function may have changed
            earlier = None
            if unfinished.exists():
                unfinished.rmtree()
        if earlier is None or earlier.settings != json.loads(json.dumps(settings)):
            baselines = {} if samples_folder is None else _baselines(evaluators, reference)
            return Evaluation(settings, baselines, rows=[]).to_json()
        valid = [row for row in earlier.rows if row.entry in runs and row.version == versions[row.entry]]
        if samples_folder is not None:
            valid = [row for row in valid if samples_path(samples_folder, row.entry).exists()]
        return earlier._replace(rows=valid).to_json()

    kept = Evaluation.from_json(multihost.on_main(begin))
    rows = {row.entry: row for row in kept.rows}

    def evaluation() -> Evaluation:
        return Evaluation(settings, kept.baselines, [rows[entry] for entry in runs if entry in rows])

    # Measure the missing rows, and write each one as soon as it is done.
    for entry in runs:
        if entry not in rows:
            digest = sha256([json.dumps([entry, versions[entry], settings], sort_keys=True)], 16)
            folder = unfinished / multihost.broadcast(digest)
            measurements = [
                measure(make_samples(entry, repeat * num_samples), num_samples, evaluators, folder / str(repeat))
                for repeat in range(repeats)
            ]
            if multihost.is_main():
                rows[entry] = _row(entry, measurements, versions[entry])
                if samples_folder is not None:
                    save_samples(samples_folder, entry, measurements[0].images)
                write_atomic(path, evaluation().to_json())
                unfinished.rmtree()
        if multihost.is_main():
            log(f"{entry.title}: {rows[entry].summary}")
    multihost.barrier("all samples are measured")
    return evaluation()


def pipeline_loader(config: ConfigDict, teacher: epath.Path | None = None) -> PipelineLoader:
    """Return a function that loads the pipeline in a folder, and keeps the teacher and the last other one.

    Pipelines take any number of steps without a warning: a teacher that is itself a student is measured with fewer
    steps on purpose.

    Args:
      config: for models that have no config of their own.
      teacher: the folder of the pipeline to keep; default none.
    """

    def load_pipeline(path: epath.Path) -> Pipeline:
        pipeline = from_checkpoint(path, config=config, shard=config.train.shard)
        pipeline.distilled_for = 0
        return pipeline

    load_teacher = functools.cache(load_pipeline)
    load_other = functools.lru_cache(maxsize=1)(load_pipeline)
    return lambda path: load_teacher(path) if path == teacher else load_other(path)


def _row(entry: Entry, measurements: Sequence[Measurement], version: str | None) -> Row:
    values = {
        criterion: _best(criterion, [measurement.values[criterion] for measurement in measurements])
        for criterion in measurements[0].values
    }
    speed = None
    if entry.sampler:
        speed = len(measurements) / sum(1 / measurement.images_per_sec for measurement in measurements)
    return Row(entry, values, speed, version)


def _best(criterion: Criterion, values: Sequence[MetricValue]) -> MetricValue:
    """Return the best of several sets' values, with the spread over the sets."""
    numbers = [value.value for value in values]
    best = values[numbers.index(criterion.best(numbers))]
    return best if len(values) == 1 else best._replace(spread=max(numbers) - min(numbers))


def _baselines(evaluators: Sequence[Evaluator], reference: Reference) -> dict[str, float]:
    distances = {
        Criterion("frechet", evaluator.features).name: halves_distance(reference.images, evaluator.extractor)
        for evaluator in evaluators
        if "frechet" in evaluator.metrics
    }
    return {name: distance for name, distance in distances.items() if distance is not None}
