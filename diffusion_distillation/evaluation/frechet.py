"""The Frechet distance between two sets of images (Heusel et al. 2017; "FID" where the features are Inception's)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from ..errors import InputError


class Statistics(NamedTuple):
    """Mean and covariance of a set of features."""

    mean: Float64[np.ndarray, "features"]
    covariance: Float64[np.ndarray, "features features"]


class Moments:
    """Mean and covariance of features that come in batches: float64 sums, taken about a point near the mean."""

    def __init__(self):
        self._count, self._origin, self._total, self._squares = 0, 0.0, 0.0, 0.0

    def add(self, batch: Float[np.ndarray, "n features"]) -> None:
        """Counts these rows in, each once."""
        batch = np.asarray(batch, np.float64)
        if self._count == 0:
            self._origin = batch.mean(axis=0)  # about which the sums keep their digits
        centered = batch - self._origin
        self._count += len(batch)
        self._total = self._total + centered.sum(axis=0)
        self._squares = self._squares + centered.T @ centered

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of all rows.

        Raises:
          InputError: for fewer than two rows in all.
        """
        if self._count < 2:
            raise InputError(f"A covariance needs at least 2 images; got {self._count}.")
        mean = self._total / self._count
        covariance = (self._squares - self._count * np.outer(mean, mean)) / (self._count - 1)
        return Statistics(self._origin + mean, covariance)


def statistics(batches: Iterable[Float[np.ndarray, "_ features"]]) -> Statistics:
    """`Moments.statistics` of all these batches."""
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    In squared units of the features. Small sets bias it upwards: compare only sets of equal size.
    """
    # (A B)^(1/2) has the trace of (R B R)^(1/2), R = A^(1/2), which is symmetric and so keeps clear of complex roots
    eigenvalues, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(_without_rounding(eigenvalues))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(_without_rounding(cross)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def _without_rounding(eigenvalues: np.ndarray) -> np.ndarray:
    """With zeros for those that are rounding errors, whose square roots would be many digits larger."""
    return np.where(eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(), eigenvalues, 0)
