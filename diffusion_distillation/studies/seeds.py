"""The same with several seeds: measured, as numbers in a table, and as a line of a plot."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..evaluation.ladders import evaluate_runs
from ..evaluation.measure import Yardstick
from ..evaluation.metrics import Criterion
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation
from ..report.plots import Line
from ..runtime import multihost


def measure(
    config: ConfigDict,
    runs: Mapping[Entry, epath.Path],
    yardsticks: Sequence[Yardstick],
    reference: Reference,
    folder: epath.Path,
    seed: int,
) -> Evaluation:
    """`evaluate_runs` with a seed, whose evaluation.json and first samples are kept in the folder."""
    return evaluate_runs(
        config, runs, yardsticks, reference, folder / "evaluation.json",
        seed=seed, shown=folder / "samples", say=lambda line: multihost.print_on_main(f"  {line}"),
    )  # fmt: skip


def by_steps(
    found: Sequence[Evaluation], criterion: Criterion, model: str = "", sampler: str = ""
) -> dict[int, list[float]]:
    """Values by number of steps, one per seed, for one model and sampler, or for all of them."""
    values: dict[int, list[float]] = {}
    for evaluation in found:
        for entry, of_row in ((row.entry, row.values) for row in evaluation.rows):
            if (not model or entry.model == model) and (not sampler or entry.sampler == sampler):
                values.setdefault(entry.num_steps, []).append(of_row[criterion].value)
    return values


def spread(values: Sequence[float]) -> str:
    """Their mean, and half of their range."""
    middle = f"{np.mean(values):.3g}"
    if len(values) == 1:
        return middle
    half = np.format_float_positional((max(values) - min(values)) / 2, precision=1, fractional=False, trim="-")
    return f"{middle} ± {half}"


def line(label: str, model: str, values: Mapping[int, Sequence[float]], number: int, dotted: bool = False) -> Line:
    """A line through the means, with the ranges; see `plots.Line`."""
    points = sorted(values.items())
    means, ends = [(x, float(np.mean(y))) for x, y in points], [(min(y), max(y)) for _, y in points]
    return Line(label, model, number, dotted, means, ends)
