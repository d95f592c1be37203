"""The metrics: what each needs, and how its value is computed, printed and plotted.

To add a metric, add its record to `METRICS`. Commands, tables, plots and reports read everything else from the record.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError, did_you_mean
from .extractor import Activations
from .frechet import Moments, Statistics, frechet_distance
from .scores import inception_scores, kernel_distances, manifold_metrics, sliced_wasserstein

INCEPTION = "inception"  # the features of published FIDs
IS_SPLITS = 10
NUM_NEIGHBORS = 3  # of precision, recall, density and coverage


class FeatureSet(NamedTuple):
    """What metrics know about a set of images. Fields that no metric needs are None.

    Attributes:
      statistics: mean and covariance of the features.
      features: one row per image.
      logits: of a classifier's classes, one row per image.
      labels: the classes that samples are conditioned on.
    """

    statistics: Statistics | None = None
    features: Float[np.ndarray, "n features"] | None = None
    logits: Float[np.ndarray, "n classes"] | None = None
    labels: Int[np.ndarray, "n"] | None = None

    @property
    def num_features(self) -> int | None:
        """The number of features per image; None if there are none."""
        if self.features is not None:
            return self.features.shape[1]
        return None if self.statistics is None else len(self.statistics.mean)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Samples and the reference that metrics compare them with.

    Attributes:
      samples: with the fields that `sample_fields` names.
      reference: with the fields that `reference_fields` names.
    """

    samples: FeatureSet
    reference: FeatureSet

    @functools.cached_property
    def manifold(self) -> dict[str, float]:
        """Precision, recall, density and coverage, which share the distances between all images."""
        return manifold_metrics(self.samples.features, self.reference.features, NUM_NEIGHBORS)


class MetricValue(NamedTuple):
    """The value of a metric.

    Attributes:
      value: the number.
      deviation: the standard deviation of the numbers whose mean is the value; None if the value is not a mean.
      spread: the largest value minus the smallest of several sets of samples; None for a single set.
    """

    value: float
    deviation: float | None = None
    spread: float | None = None

    def __str__(self) -> str:
        text = format_number(self.value)
        if self.deviation is not None:
            text += f" ± {format_number(self.deviation, digits=2)}"
        if self.spread is not None:
            text += f" (spread {format_number(self.spread, digits=2)})"
        return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's record.

    Attributes:
      title: the printed name.
      compute: returns the value for a `Comparison`.
      sample_fields: the fields of `FeatureSet` that are needed of the samples.
      reference_fields: the fields of `FeatureSet` that are needed of the reference.
      min_samples: the smallest number of samples.
      higher_is_better: whether the largest value is the best.
      log_scale: whether values are plotted on a logarithmic axis.
      inception_name: the name in files when the features are Inception's; None for the metric's own name.
      inception_title: the printed name when the features are Inception's; None for `title`.
    """

    title: str
    compute: Callable[[Comparison], MetricValue]
    sample_fields: frozenset[str]
    reference_fields: frozenset[str] = frozenset()
    min_samples: int = 2
    higher_is_better: bool = False
    log_scale: bool = False
    inception_name: str | None = None
    inception_title: str | None = None


class Criterion(NamedTuple):
    """A metric together with the features that it compares images by.

    A name or title without features means Inception's features, as in publications.

    Attributes:
      metric: a key of `METRICS`.
      features: a name as in `config.eval.features`.

    >>> Criterion("frechet", "inception").title, Criterion("frechet", "pixels").title
    ('FID', 'Fréchet distance (pixels)')
    """

    metric: str
    features: str

    @property
    def name(self) -> str:
        """The key in files: 'frechet_pixels' with pixels, 'fid' with Inception's features."""
        if self.features == INCEPTION and METRICS[self.metric].inception_name:
            return METRICS[self.metric].inception_name
        return _with_features(self.metric, self.features)

    @property
    def title(self) -> str:
        """The heading in tables: 'Fréchet distance (pixels)' with pixels, 'FID' with Inception's features."""
        metric = METRICS[self.metric]
        if self.features != INCEPTION:
            return f"{metric.title} ({self.features})"
        return metric.inception_title or metric.title

    def best(self, values: Sequence[float]) -> float:
        """Return the best of several values: the largest or the smallest, depending on the metric."""
        return max(values) if METRICS[self.metric].higher_is_better else min(values)


MetricValues = dict[Criterion, MetricValue]


def format_number(number: float, digits: int = 3) -> str:
    """Format a number with this many significant digits, without an exponent.

    >>> [format_number(number) for number in (3.0, 0.01234, 123.4, 12345.6)]
    ['3.00', '0.0123', '123', '12300']
    """
    text = np.format_float_positional(number, precision=digits, unique=False, fractional=False, trim="k")
    return text.rstrip(".")


def named_values(values: Mapping[Criterion, MetricValue]) -> dict[str, float]:
    """Map the names in files to numbers. A deviation has the name of its metric with the suffix `_std`.

    >>> named_values({Criterion("kid", "pixels"): MetricValue(0.5, deviation=0.1)})
    {'kid_pixels': 0.5, 'kid_std_pixels': 0.1}
    """
    numbers = {}
    for criterion, value in values.items():
        numbers[criterion.name] = value.value
        if value.deviation is not None:
            numbers[_with_features(f"{criterion.metric}_std", criterion.features)] = value.deviation
    return numbers


def _with_features(name: str, features: str) -> str:
    return name if features == INCEPTION else f"{name}_{features}"


def _frechet(sets: Comparison) -> MetricValue:
    return MetricValue(frechet_distance(sets.samples.statistics, sets.reference.statistics))


def _kid(sets: Comparison) -> MetricValue:
    distances = kernel_distances(sets.samples.features, sets.reference.features)
    return MetricValue(float(distances.mean()), deviation=float(distances.std()))


def _inception_score(sets: Comparison) -> MetricValue:
    scores = inception_scores(sets.samples.logits, IS_SPLITS)
    return MetricValue(float(scores.mean()), deviation=float(scores.std()))


def _inception_score_5000(sets: Comparison) -> MetricValue:
    splits = max(1, len(sets.samples.logits) // 5000)
    return MetricValue(float(inception_scores(sets.samples.logits, splits).mean()))


def _sliced_wasserstein(sets: Comparison) -> MetricValue:
    return MetricValue(sliced_wasserstein(sets.samples.features, sets.reference.features))


def _accuracy(sets: Comparison) -> MetricValue:
    return MetricValue(float(np.mean(np.argmax(sets.samples.logits, axis=1) == sets.samples.labels)))


def _manifold_metric(name: str) -> Metric:
    return Metric(
        title=name,
        compute=lambda sets: MetricValue(sets.manifold[name]),
        sample_fields=frozenset({"features"}),
        reference_fields=frozenset({"features"}),
        min_samples=NUM_NEIGHBORS + 1,
        higher_is_better=True,
    )


METRICS = {
    "frechet": Metric(
        title="Fréchet distance",
        compute=_frechet,
        sample_fields=frozenset({"statistics"}),
        reference_fields=frozenset({"statistics"}),
        log_scale=True,
        inception_name="fid",
        inception_title="FID",
    ),
    "kid": Metric(
        title="KID",
        compute=_kid,
        sample_fields=frozenset({"features"}),
        reference_fields=frozenset({"features"}),
        log_scale=True,
    ),
    "is": Metric(
        title="IS",
        compute=_inception_score,
        sample_fields=frozenset({"logits"}),
        min_samples=IS_SPLITS,
        higher_is_better=True,
    ),
    "is_5000": Metric(  # over parts of 5,000 images, as in ADM
        title="IS, 5,000",
        compute=_inception_score_5000,
        sample_fields=frozenset({"logits"}),
        higher_is_better=True,
    ),
    "precision": _manifold_metric("precision"),
    "recall": _manifold_metric("recall"),
    "density": _manifold_metric("density"),
    "coverage": _manifold_metric("coverage"),
    "swd": Metric(
        title="sliced Wasserstein",
        compute=_sliced_wasserstein,
        sample_fields=frozenset({"features"}),
        reference_fields=frozenset({"features"}),
        log_scale=True,
    ),
    "accuracy": Metric(  # the share of samples that show the requested class
        title="accuracy",
        compute=_accuracy,
        sample_fields=frozenset({"logits", "labels"}),
        higher_is_better=True,
    ),
}


def select_metrics(names: Sequence[str], num_samples: int) -> tuple[str, ...]:
    """Return the keys of `METRICS` that a config or flag names, in the order of `METRICS`.

    Args:
      names: keys of `METRICS`, or 'fid' for 'frechet'.
      num_samples: the number of samples to be measured.

    Raises:
      InputError: for an unknown name, or a metric that needs more samples.

    >>> select_metrics(["recall", "fid"], num_samples=100)
    ('frechet', 'recall')
    """
    if not names:
        raise InputError(f"No metric is named. Name at least one of {list(METRICS)}.")
    aliases = {metric.inception_name: key for key, metric in METRICS.items() if metric.inception_name}
    keys = [aliases.get(name, name) for name in names]
    for key in keys:
        if key not in METRICS:
            suggestion = did_you_mean(key, [*METRICS, *aliases])
            raise InputError(f"Unknown metric {key!r}; choose from {list(METRICS)}.{suggestion}")
        if num_samples < METRICS[key].min_samples:
            raise InputError(
                f"The metric {key!r} needs at least {METRICS[key].min_samples} samples; got {num_samples}."
            )
    return tuple(key for key in METRICS if key in keys)


def sample_fields(names: Iterable[str]) -> frozenset[str]:
    """Return the fields of `FeatureSet` that these metrics need of the samples.

    >>> sorted(sample_fields(["frechet", "accuracy"]))
    ['labels', 'logits', 'statistics']
    """
    return frozenset().union(*(METRICS[name].sample_fields for name in names))


def reference_fields(names: Iterable[str]) -> frozenset[str]:
    """Return the fields of `FeatureSet` that these metrics need of the reference.

    >>> sorted(reference_fields(["frechet", "accuracy"]))
    ['statistics']
    """
    return frozenset().union(*(METRICS[name].reference_fields for name in names))


def collect_features(batches: Iterable[Activations], fields: frozenset[str]) -> FeatureSet:
    """Collect the activations of a set of images, batch after batch, and keep only the fields that are needed.

    Args:
      batches: the activations of all images, each once.
      fields: of `FeatureSet`.

    >>> batches = [Activations(np.ones((2, 3))), Activations(np.zeros((2, 3)))]
    >>> collect_features(batches, frozenset({"statistics"})).statistics.mean
    array([0.5, 0.5, 0.5])
    """
    moments = Moments()
    features = []
    logits = []
    for batch in batches:
        if "statistics" in fields:
            moments.add(batch.features)
        if "features" in fields:
            features.append(batch.features)
        if "logits" in fields:
            logits.append(batch.logits)
    return FeatureSet(
        statistics=moments.statistics() if "statistics" in fields else None,
        features=np.concatenate(features) if features else None,
        logits=np.concatenate(logits) if logits else None,
    )


def compute_metrics(names: Sequence[str], samples: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    """Compute metrics, in the order of `METRICS`.

    Args:
      names: keys of `METRICS`.
      samples: with the fields `sample_fields(names)`.
      reference: with the fields `reference_fields(names)`.

    Raises:
      InputError: if the samples and the reference have different numbers of features.

    >>> one_hot = FeatureSet(logits=np.eye(3), labels=np.array([0, 1, 1]))
    >>> compute_metrics(["accuracy"], one_hot, FeatureSet())["accuracy"].value
    0.666...
    """
    counts = samples.num_features, reference.num_features
    if None not in counts and counts[0] != counts[1]:
        raise InputError(
            f"The samples have {counts[0]} features and the reference {counts[1]}. Compare images of the same shape, "
            "and statistics of the same features."
        )
    comparison = Comparison(samples, reference)
    return {name: METRICS[name].compute(comparison) for name in METRICS if name in names}
