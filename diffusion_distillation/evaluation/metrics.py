"""How good a set of images is: functions of what is known of it and of the reference, and the registry of their names.

Adding a metric is a function and a line in METRICS.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ..errors import InputError, did_you_mean
from .extractor import Extracted
from .frechet import Moments, Statistics, frechet_distance

Features = Float[np.ndarray, "_ features"]
SEED = 2020  # torch-fidelity's, whose random subsets and order these are too


class Observed(NamedTuple):
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


class Metric(NamedTuple):
    """A metric, or several that are computed together.

    Attributes:
      compute: `(observed, reference) -> {name: value}`.
      of_images: the fields of `Observed` that it needs of the images.
      of_reference: those that it needs of the reference.
      least: how many images it needs.
    """

    compute: Callable[[Observed, Observed], dict[str, float]]
    of_images: frozenset[str]
    of_reference: frozenset[str]
    least: int = 2


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


def _width(observed: Observed) -> int | None:
    if observed.features is not None:
        return observed.features.shape[1]
    return None if observed.statistics is None else len(observed.statistics.mean)


def _fid(observed: Observed, reference: Observed) -> dict[str, float]:
    return {"fid": frechet_distance(observed.statistics, reference.statistics)}


def _kid(observed: Observed, reference: Observed) -> dict[str, float]:
    distances = kernel_distances(observed.features, reference.features)
    return {"kid": float(distances.mean()), "kid_std": float(distances.std())}


def _is(observed: Observed, _: Observed) -> dict[str, float]:
    scores = inception_scores(observed.logits, SPLITS)
    return {"is": float(scores.mean()), "is_std": float(scores.std())}


def _is_5000(observed: Observed, _: Observed) -> dict[str, float]:
    scores = inception_scores(observed.logits, splits=max(1, len(observed.logits) // 5000))
    return {"is_5000": float(scores.mean())}


def _manifold(observed: Observed, reference: Observed) -> dict[str, float]:
    return manifold_metrics(observed.features, reference.features, NEIGHBOURS)


def _swd(observed: Observed, reference: Observed) -> dict[str, float]:
    return {"swd": sliced_wasserstein(observed.features, reference.features)}


def _accuracy(observed: Observed, _: Observed) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(observed.logits, axis=1) == observed.labels))}


STATISTICS, FEATURES, LOGITS, NOTHING = map(frozenset, (["statistics"], ["features"], ["logits"], []))
SPLITS, NEIGHBOURS = 10, 3
MANIFOLD = Metric(_manifold, FEATURES, FEATURES, least=NEIGHBOURS + 1)
METRICS = {
    "fid": Metric(_fid, STATISTICS, STATISTICS),
    "kid": Metric(_kid, FEATURES, FEATURES),
    "is": Metric(_is, LOGITS, NOTHING, least=SPLITS),
    "is_5000": Metric(_is_5000, LOGITS, NOTHING),  # of parts of 5,000 images, as ADM's are
    "precision": MANIFOLD,
    "recall": MANIFOLD,
    "density": MANIFOLD,
    "coverage": MANIFOLD,
    "swd": Metric(_swd, FEATURES, FEATURES),
    "accuracy": Metric(_accuracy, LOGITS | {"labels"}, NOTHING),  # the share that shows the class that was asked for
}
HIGHER_IS_BETTER = frozenset({"is", "is_5000", "precision", "recall", "density", "coverage", "accuracy"})


def check(names: Sequence[str], num_images: int) -> None:
    """Raises an InputError unless each is a metric's, and so many images are enough for it."""
    if not names:
        raise InputError(f"No metric is named: give one at least of {list(METRICS)}.")
    for name in names:
        if name not in METRICS:
            raise InputError(f"Unknown metric {name!r}; choose from {list(METRICS)}.{did_you_mean(name, METRICS)}")
        if num_images < METRICS[name].least:
            raise InputError(f"The metric {name!r} needs at least {METRICS[name].least} samples; {num_images} are few.")


def needed(names: Sequence[str], *, of_reference: bool = False) -> frozenset[str]:
    """The fields of `Observed` that metrics need of the images, or of the reference."""
    metrics = [METRICS[name] for name in names]
    return frozenset().union(*(metric.of_reference if of_reference else metric.of_images for metric in metrics))


def observe(batches: Iterable[Extracted], fields: frozenset[str]) -> Observed:
    """What is to be known of images whose features come in batches; it holds nothing else."""
    moments, features, logits = Moments(), [], []
    for batch in batches:
        if "statistics" in fields:
            moments.add(batch.features)
        if "features" in fields:
            features.append(batch.features)
        if "logits" in fields:
            logits.append(batch.logits)
    return Observed(
        moments.statistics() if "statistics" in fields else None,
        np.concatenate(features) if features else None,
        np.concatenate(logits) if logits else None,
    )


def compute(names: Sequence[str], observed: Observed, reference: Observed) -> dict[str, float]:
    """The values of these metrics, and of those that go with them (`kid_std`), in the order of METRICS.

    Args:
      names: keys of METRICS.
      observed: of the images that are judged, with what `needed(names)` says.
      reference: of those that they are to be like.
    """
    widths = [_width(of_set) for of_set in (observed, reference)]
    if None not in widths and widths[0] != widths[1]:
        raise InputError(
            f"The images have {widths[0]} features and the reference {widths[1]}: give images of the same shape, and "
            "statistics of the same features."
        )
    values: dict[str, Any] = {}
    for metric in dict.fromkeys(METRICS[name] for name in names):
        values |= metric.compute(observed, reference)
    unwanted = METRICS.keys() - set(names)
    return {name: value for name, value in values.items() if name not in unwanted}
