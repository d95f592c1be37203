"""Measure a study's runs with several seeds, and show the results as numbers in tables and curves in plots."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..evaluation.ladders import evaluate_runs
from ..evaluation.measure import Evaluator
from ..evaluation.metrics import Criterion
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation
from ..report.plots import Curve
from ..runtime import multihost

SEED_OFFSET = 10_000  # between the config seeds of a study's repetitions


def evaluate_seed(
    config: ConfigDict,
    runs: Mapping[Entry, epath.Path],
    evaluators: Sequence[Evaluator],
    reference: Reference,
    folder: epath.Path,
    seed: int,
) -> Evaluation:
    """Measure runs with one seed of the noise, and keep evaluation.json and the first samples in a folder.

    Args:
      config: resolved; its `eval` section has the number of samples.
      runs: the rows to measure, and the folder of each one's run.
      evaluators: the features and metrics to measure samples by.
      reference: the images to compare samples with.
      folder: for evaluation.json and the samples.
      seed: of the noise.
    """
    return evaluate_runs(
        config, runs, evaluators, reference, folder / "evaluation.json",
        seed=seed, samples_folder=folder / "samples", log=lambda line: multihost.print_on_main(f"  {line}"),
    )  # fmt: skip


def values_by_steps(
    evaluations: Iterable[Evaluation], criterion: Criterion, model: str = "", sampler: str = ""
) -> dict[int, list[float]]:
    """Collect the values of a criterion by sampling steps, one value per seed.

    Args:
      evaluations: one for each seed.
      criterion: a metric and its features.
      model: 'teacher' or 'student'; '' for all.
      sampler: a name of `sampling.SAMPLERS`; '' for all.
    """
    values: dict[int, list[float]] = {}
    for evaluation in evaluations:
        for row in evaluation.rows:
            if model in ("", row.entry.model) and sampler in ("", row.entry.sampler):
                values.setdefault(row.entry.num_steps, []).append(row.values[criterion].value)
    return values


def mean_and_range(values: Sequence[float]) -> str:
    """Format the mean of several seeds, and half of their range.

    >>> mean_and_range([1.0, 1.5])
    '1.25 ± 0.2'
    >>> mean_and_range([1.234])
    '1.23'
    """
    mean = f"{np.mean(values):.3g}"
    if len(values) == 1:
        return mean
    half = np.format_float_positional((max(values) - min(values)) / 2, precision=1, fractional=False, trim="-")
    return f"{mean} ± {half}"


def mean_curve(
    label: str, model: str, values: Mapping[int, Sequence[float]], color: int, dotted: bool = False
) -> Curve:
    """Make a curve through the means of several seeds, with their ranges.

    Args:
      label: the name in the legend.
      model: 'teacher' or 'student'.
      values: one value per seed, by x.
      color: index into the model's palette.
      dotted: draw a dotted line.
    """
    points = sorted(values.items())
    return Curve(
        label=label,
        model=model,
        color=color,
        points=[(x, float(np.mean(of_seeds))) for x, of_seeds in points],
        dotted=dotted,
        ranges=[(min(of_seeds), max(of_seeds)) for _, of_seeds in points],
    )
