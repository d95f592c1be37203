"""The Frechet distance between two sets of images (Heusel et al. 2017; "FID" where the features are Inception's)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ..errors import InputError


class Statistics(NamedTuple):
    """Mean and covariance of a set of features."""

    mean: Float64[np.ndarray, "features"]
    covariance: Float64[np.ndarray, "features features"]


def statistics(batches: Iterable[Float64[np.ndarray, "_ features"]]) -> Statistics:
    """Mean and unbiased covariance of features that come in batches, in one pass.

    Raises:
      InputError: for fewer than two rows in all.
    """
    count, origin, total, squares = 0, 0.0, 0.0, 0.0
    for batch in batches:
        if count == 0:
            origin = batch.mean(axis=0)  # sums are taken about a point near the mean, where they keep their digits
        centered = batch - origin
        count += len(batch)
        total = total + centered.sum(axis=0)
        squares = squares + centered.T @ centered
    if count < 2:
        raise InputError(f"A covariance needs at least 2 images; got {count}.")
    mean = total / count
    return Statistics(origin + mean, (squares - count * np.outer(mean, mean)) / (count - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    In squared units of the features. Small sets bias it upwards: compare only sets of equal size.
    """
    # (A B)^(1/2) has the trace of (R B R)^(1/2), R = A^(1/2), which is symmetric and so keeps clear of complex roots
    eigenvalues, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)
