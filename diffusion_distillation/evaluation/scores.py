"""Metrics as pure functions of features and logits. `metrics.METRICS` has the record of each."""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from ..errors import InputError

Features = Float[np.ndarray, "_ features"]
SEED = 2020  # of random subsets and orders; the same as torch-fidelity's


def kernel_distances(a: Features, b: Features, *, subsets: int = 100, size: int = 1000) -> Float[np.ndarray, "subsets"]:
    """Compute the squared maximum mean discrepancies of random subsets, whose mean is the KID.

    The estimates are unbiased, with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, section 4).

    Args:
      a: features, `[n, d]`.
      b: features, `[m, d]`.
      subsets: the number of subsets.
      size: images per subset. With fewer images in a set, all are used.

    Raises:
      InputError: for fewer than two images in one of the sets.

    >>> grid = np.arange(12.0).reshape(6, 2)
    >>> kernel_distances(grid, grid + 1, subsets=3).round(1)
    array([-74021.8, -74021.8, -74021.8])
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise InputError(f"KID needs at least 2 images on both sides; got {len(a)} and {len(b)}.")
    rng = np.random.RandomState(SEED)
    a, b = (np.asarray(features, np.float64) for features in (a, b))

    def kernel(x, y):
        product = x @ y.T / x.shape[1] + 1
        return product * product * product  # much faster than a power

    def mean_off_diagonal(x):
        products = kernel(x, x)
        return (products.sum() - np.trace(products)) / (size * (size - 1))

    def distance():
        x, y = (features[rng.choice(len(features), size, replace=False)] for features in (a, b))
        return mean_off_diagonal(x) + mean_off_diagonal(y) - 2 * kernel(x, y).mean()

    return np.array([distance() for _ in range(subsets)])


def inception_scores(logits: Float[np.ndarray, "n classes"], splits: int) -> Float[np.ndarray, "splits"]:
    """Compute exp E KL(p(y|x) || p(y)) of each part of the images, in random order.

    Salimans et al. 2016, section 4.

    Args:
      logits: one row per image.
      splits: the number of parts.

    Raises:
      InputError: for fewer images than parts.

    >>> inception_scores(100 * np.eye(8), splits=1).round(3)
    array([8.])
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
    """Compute precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The manifold of a set is the union of balls around its images, each of which reaches to the k-th nearest neighbor
    within the set.

    Args:
      samples: features, `[n, d]`.
      reference: features, `[m, d]`.
      k: the neighbor, at least 1.

    Returns:
      `precision`, the share of samples inside the reference's manifold; `recall`, the share of reference images inside
      the samples' manifold; `density`, the mean number of reference balls around a sample, divided by k, which may
      exceed 1; `coverage`, the share of reference balls that contain a sample.

    Raises:
      InputError: for k or fewer images in one of the sets.

    >>> line = np.arange(6.0)[:, np.newaxis]
    >>> manifold_metrics(line, line + 0.5, k=1)
    {'precision': 1.0, 'recall': 1.0, 'density': 1.83..., 'coverage': 1.0}
    """
    from sklearn.metrics import pairwise_distances_chunked  # scikit-learn takes a second to import

    if min(len(samples), len(reference)) <= k:
        raise InputError(
            f"Precision, recall, density and coverage need more than {k} images on both sides; got {len(samples)} and "
            f"{len(reference)}."
        )
    sample_radii = neighbor_distances(samples, k)
    reference_radii = neighbor_distances(reference, k)
    recalled = np.zeros(len(reference), bool)
    covered = np.zeros(len(reference), bool)

    def update(distances, start):
        inside = distances <= reference_radii
        radii = sample_radii[start : start + len(distances), np.newaxis]
        recalled[(distances <= radii).any(axis=0)] = True
        covered[inside.any(axis=0)] = True
        return np.stack([inside.any(axis=1), inside.sum(axis=1)], axis=1)

    chunks = pairwise_distances_chunked(samples, reference, reduce_func=update)
    is_inside, num_balls = np.concatenate([*chunks]).T
    return {
        "precision": float(is_inside.mean()),
        "recall": float(recalled.mean()),
        "density": float(num_balls.mean() / k),
        "coverage": float(covered.mean()),
    }


def neighbor_distances(features: Features, k: int) -> Float[np.ndarray, "_"]:
    """Compute the distance from each row to its k-th nearest other row.

    >>> neighbor_distances(np.array([[0.0], [1.0], [3.0]]), k=1)
    array([1., 1., 2.])
    """
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features).kneighbors()
    return distances[:, -1]


def sliced_wasserstein(a: Features, b: Features, directions: int = 512) -> float:
    """Compute the root of the mean squared 2-Wasserstein distance along random directions (Rabin et al. 2011).

    Args:
      a: features, `[n, d]`.
      b: features, `[m, d]`. The sets may differ in size: along each direction, their quantile functions are compared.
      directions: the number of random directions.

    Returns:
      The distance, in units of the features.

    >>> sliced_wasserstein(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    2.0
    """
    vectors = np.random.default_rng(0).standard_normal((a.shape[1], directions))
    vectors /= np.linalg.norm(vectors, axis=0)
    x, y = (np.sort(np.asarray(features, np.float64) @ vectors, axis=0) for features in (a, b))
    # Both quantile functions are constant between these points, which are multiples of 1 / (len(x) len(y)).
    ends = np.union1d(np.arange(len(x) + 1) * len(y), np.arange(len(y) + 1) * len(x))
    differences = x[ends[:-1] // len(y)] - y[ends[:-1] // len(x)]
    return float(np.sqrt(np.diff(ends) @ np.square(differences).mean(axis=1) / ends[-1]))


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.maximum(x, np.finfo(x.dtype).tiny)), 0)
