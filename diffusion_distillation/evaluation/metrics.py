"""How good a set of images is: functions of what is known of it and of the reference, and the registry of their names.

Adding a metric is a function and a record in METRICS.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ..errors import InputError, did_you_mean
from .extractor import Activations
from .frechet import Moments, Statistics, frechet_distance

Features = Float[np.ndarray, "_ features"]
SEED = 2020  # torch-fidelity's, whose random subsets and order these are too


class FeatureSet(NamedTuple):
    """What is known of a set of images, as far as metrics need it; what none needs is None.

    Attributes:
      statistics: mean and covariance of the features.
      features: a row an image.
      logits: of the classes that a classifier sees, a row an image.
      labels: the classes that were asked for.
    """

    statistics: Statistics | None = None
    features: Features | None = None
    logits: Float[np.ndarray, "n classes"] | None = None
    labels: Int[np.ndarray, "n"] | None = None


class MetricValue(NamedTuple):
    """The result of a metric.

    Attributes:
      value: the number.
      deviation: the standard deviation of the numbers whose mean is the value; None if the value is not a mean.
      spread: with repeats, the largest value minus the smallest; else None.
    """

    value: float
    deviation: float | None = None
    spread: float | None = None


class Metric(NamedTuple):
    """A metric.

    Attributes:
      title: the printed name.
      compute: `(observed, reference) -> {name: Value}`, of this metric and those that are computed with it.
      of_images: the fields of `FeatureSet` that it needs of the images.
      of_reference: the fields of `FeatureSet` that it needs of the reference.
      least: how many images it needs.
      higher_is_better: whether the largest value is the best; else the smallest is.
      log_scale: whether it can approach 0 over many powers of ten.
      with_inception: its name and title with Inception's features, if they differ.
    """

    title: str
    compute: Callable[[FeatureSet, FeatureSet], dict[str, MetricValue]]
    of_images: frozenset[str]
    of_reference: frozenset[str]
    least: int = 2
    higher_is_better: bool = False
    log_scale: bool = False
    with_inception: tuple[str, str] | None = None


class Criterion(NamedTuple):
    """A metric and the features that it compares images by.

    A name or title without features means Inception's, as in published figures.

    Attributes:
      metric: a key of METRICS.
      features: as a config's `eval.features` names them.
    """

    metric: str
    features: str

    @property
    def name(self) -> str:
        """The key in files: 'frechet_pixels' with pixels, 'fid' with Inception's features."""
        published = METRICS[self.metric].with_inception
        if published and self.features == INCEPTION:
            return published[0]
        return _with_features(self.metric, self.features)

    @property
    def title(self) -> str:
        """The heading in tables: 'Fréchet distance (pixels)' with pixels, 'FID' with Inception's features."""
        metric = METRICS[self.metric]
        if self.features != INCEPTION:
            return f"{metric.title} ({self.features})"
        return metric.with_inception[1] if metric.with_inception else metric.title

    def best(self, values: Sequence[float]) -> float:
        """The best of several values: the largest or the smallest."""
        return max(values) if METRICS[self.metric].higher_is_better else min(values)


MetricValues = dict[Criterion, MetricValue]


def named_values(values: Mapping[Criterion, MetricValue]) -> dict[str, float]:
    """The numbers by their names in files. A deviation is named after its metric, with the suffix `_std`."""
    numbers = {}
    for criterion, value in values.items():
        numbers[criterion.name] = value.value
        if value.deviation is not None:
            numbers[_with_features(f"{criterion.metric}_std", criterion.features)] = value.deviation
    return numbers


def _with_features(name: str, features: str) -> str:
    return name if features == INCEPTION else f"{name}_{features}"


def kernel_distances(a: Features, b: Features, *, subsets: int = 100, size: int = 1000) -> Float[np.ndarray, "subsets"]:
    """KID: squared maximum mean discrepancies of random subsets, unbiased, with the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018, section 4. Their mean is the KID. Subsets are of all images where there are fewer than
    `size`, and then differ in nothing where both sets are that small.

    Raises:
      InputError: for fewer than two images in one of the sets.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise InputError(f"KID needs at least 2 images on both sides; got {len(a)} and {len(b)}.")
    rng, (a, b) = np.random.RandomState(SEED), (np.asarray(features, np.float64) for features in (a, b))

    def kernel(x, y):
        product = x @ y.T / x.shape[1] + 1
        return product * product * product  # much faster than a power

    def among(x):  # without an image with itself
        products = kernel(x, x)
        return (products.sum() - np.trace(products)) / (size * (size - 1))

    def distance():
        x, y = (features[rng.choice(len(features), size, replace=False)] for features in (a, b))
        return among(x) + among(y) - 2 * kernel(x, y).mean()

    return np.array([distance() for _ in range(subsets)])


def inception_scores(logits: Float[np.ndarray, "n classes"], splits: int) -> Float[np.ndarray, "splits"]:
    """Exp E KL(p(y|x) || p(y)) of each part of the images, in random order (Salimans et al. 2016, section 4).

    Raises:
      InputError: for fewer images than parts.
    """
    if len(logits) < splits:
        raise InputError(f"The Inception Score of {splits} parts needs as many images; got {len(logits)}.")
    order = np.random.RandomState(SEED).permutation(len(logits))
    ends = np.arange(splits + 1) * len(logits) // splits

    def score(part):
        log_p = log_softmax(np.asarray(part, np.float64), axis=1)
        p = np.exp(log_p)
        entropy_of_mean = -_x_log_x(p.mean(axis=0)).sum()
        return np.exp(entropy_of_mean + (p * log_p).sum(axis=1).mean())

    return np.array([score(logits[order[start:end]]) for start, end in itertools.pairwise(ends)])


def manifold_metrics(samples: Features, reference: Features, k: int) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is made of balls about its images that reach to their k-th nearest neighbour in the set.
    `precision` is the share of samples in the reference's manifold, `recall` that of reference images in the samples';
    `density` is how many of the reference's balls a sample is in, on average, by k; `coverage` the share of these balls
    that a sample is in. Density may exceed 1.

    Raises:
      InputError: for k or fewer images on one of the sides.
    """
    from sklearn.metrics import pairwise_distances_chunked  # scikit-learn takes a second to import

    if min(len(samples), len(reference)) <= k:
        raise InputError(
            f"Precision, recall, density and coverage need more than {k} images on both sides; got {len(samples)} and "
            f"{len(reference)}."
        )
    of_samples, of_reference = radii(samples, k), radii(reference, k)
    recalled, covered = np.zeros((2, len(reference)), bool)

    def look(distances, start):
        within = distances <= of_reference
        recalled[(distances <= of_samples[start : start + len(distances), np.newaxis]).any(axis=0)] = True
        covered[within.any(axis=0)] = True
        return np.stack([within.any(axis=1), within.sum(axis=1)], axis=1)

    in_any, in_how_many = np.concatenate([*pairwise_distances_chunked(samples, reference, reduce_func=look)]).T
    return {
        "precision": float(in_any.mean()),
        "recall": float(recalled.mean()),
        "density": float(in_how_many.mean() / k),
        "coverage": float(covered.mean()),
    }


def radii(features: Features, k: int) -> Float[np.ndarray, "_"]:
    """The distance of each image to its k-th nearest neighbour."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features).kneighbors()
    return distances[:, -1]


def sliced_wasserstein(a: Features, b: Features, directions: int = 512) -> float:
    """The root of the mean squared 2-Wasserstein distance along random directions (Rabin et al. 2011).

    In units of the features. The sets may be of different sizes: along a direction, the distance is that of their
    quantile functions.
    """
    vectors = np.random.default_rng(0).standard_normal((a.shape[1], directions))
    vectors /= np.linalg.norm(vectors, axis=0)
    x, y = (np.sort(np.asarray(features, np.float64) @ vectors, axis=0) for features in (a, b))
    steps = np.union1d(np.arange(len(x) + 1) * len(y), np.arange(len(y) + 1) * len(x))  # of either, by both lengths
    apart = x[steps[:-1] // len(y)] - y[steps[:-1] // len(x)]
    return float(np.sqrt(np.diff(steps) @ np.square(apart).mean(axis=1) / steps[-1]))


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.maximum(x, np.finfo(x.dtype).tiny)), 0)


def _width(observed: FeatureSet) -> int | None:
    if observed.features is not None:
        return observed.features.shape[1]
    return None if observed.statistics is None else len(observed.statistics.mean)


def _frechet(observed: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    return {"frechet": MetricValue(frechet_distance(observed.statistics, reference.statistics))}


def _kid(observed: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    distances = kernel_distances(observed.features, reference.features)
    return {"kid": MetricValue(float(distances.mean()), float(distances.std()))}


def _is(observed: FeatureSet, _: FeatureSet) -> dict[str, MetricValue]:
    scores = inception_scores(observed.logits, SPLITS)
    return {"is": MetricValue(float(scores.mean()), float(scores.std()))}


def _is_5000(observed: FeatureSet, _: FeatureSet) -> dict[str, MetricValue]:
    scores = inception_scores(observed.logits, splits=max(1, len(observed.logits) // 5000))
    return {"is_5000": MetricValue(float(scores.mean()))}


def _manifold(observed: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    found = manifold_metrics(observed.features, reference.features, NEIGHBOURS)
    return {name: MetricValue(value) for name, value in found.items()}


def _swd(observed: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    return {"swd": MetricValue(sliced_wasserstein(observed.features, reference.features))}


def _accuracy(observed: FeatureSet, _: FeatureSet) -> dict[str, MetricValue]:
    return {"accuracy": MetricValue(float(np.mean(np.argmax(observed.logits, axis=1) == observed.labels)))}


def _of_manifold(title: str) -> Metric:
    return Metric(title, _manifold, FEATURES, FEATURES, least=NEIGHBOURS + 1, higher_is_better=True)


INCEPTION = "inception"  # the name of Inception's features
STATISTICS, FEATURES, LOGITS, NOTHING = map(frozenset, (["statistics"], ["features"], ["logits"], []))
SPLITS, NEIGHBOURS = 10, 3
METRICS = {
    "frechet": Metric(
        "Fréchet distance", _frechet, STATISTICS, STATISTICS, log_scale=True, with_inception=("fid", "FID")
    ),
    "kid": Metric("KID", _kid, FEATURES, FEATURES, log_scale=True),
    "is": Metric("IS", _is, LOGITS, NOTHING, least=SPLITS, higher_is_better=True),
    # over parts of 5,000 images, as in ADM
    "is_5000": Metric("IS, 5,000", _is_5000, LOGITS, NOTHING, higher_is_better=True),
    "precision": _of_manifold("precision"),
    "recall": _of_manifold("recall"),
    "density": _of_manifold("density"),
    "coverage": _of_manifold("coverage"),
    "swd": Metric("sliced Wasserstein", _swd, FEATURES, FEATURES, log_scale=True),
    # the fraction of samples that show the requested class
    "accuracy": Metric("accuracy", _accuracy, LOGITS | {"labels"}, NOTHING, higher_is_better=True),
}


def select_metrics(names: Sequence[str], num_images: int) -> tuple[str, ...]:
    """The keys of METRICS that a config or a flag names, in the order of METRICS; 'fid' is read as 'frechet'.

    Raises:
      InputError: for an unknown name, or a metric that needs more images.
    """
    if not names:
        raise InputError(f"No metric is named: give one at least of {list(METRICS)}.")
    published = {metric.with_inception[0]: key for key, metric in METRICS.items() if metric.with_inception}
    keys = [published.get(name, name) for name in names]
    for key in keys:
        if key not in METRICS:
            suggestion = did_you_mean(key, [*METRICS, *published])
            raise InputError(f"Unknown metric {key!r}; choose from {list(METRICS)}.{suggestion}")
        if num_images < METRICS[key].least:
            raise InputError(f"The metric {key!r} needs at least {METRICS[key].least} samples; got {num_images}.")
    return tuple(key for key in METRICS if key in keys)


def required_fields(names: Sequence[str], *, of_reference: bool = False) -> frozenset[str]:
    """The fields of `FeatureSet` that metrics need of the images, or of the reference."""
    metrics = [METRICS[name] for name in names]
    return frozenset().union(*(metric.of_reference if of_reference else metric.of_images for metric in metrics))


def collect_features(batches: Iterable[Activations], fields: frozenset[str]) -> FeatureSet:
    """What is to be known of images whose features come in batches; it holds nothing else."""
    moments, features, logits = Moments(), [], []
    for batch in batches:
        if "statistics" in fields:
            moments.add(batch.features)
        if "features" in fields:
            features.append(batch.features)
        if "logits" in fields:
            logits.append(batch.logits)
    return FeatureSet(
        moments.statistics() if "statistics" in fields else None,
        np.concatenate(features) if features else None,
        np.concatenate(logits) if logits else None,
    )


def compute_metrics(names: Sequence[str], observed: FeatureSet, reference: FeatureSet) -> dict[str, MetricValue]:
    """The values of these metrics, in the order of METRICS.

    Args:
      names: keys of METRICS.
      observed: of the images that are judged, with what `required_fields(names)` says.
      reference: of those that they are to be like.
    """
    widths = [_width(of_set) for of_set in (observed, reference)]
    if None not in widths and widths[0] != widths[1]:
        raise InputError(
            f"The images have {widths[0]} features and the reference {widths[1]}: give images of the same shape, and "
            "statistics of the same features."
        )
    values: dict[str, MetricValue] = {}
    for of_several in dict.fromkeys(METRICS[name].compute for name in names):
        values |= of_several(observed, reference)
    return {name: values[name] for name in METRICS if name in names}
