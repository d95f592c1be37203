"""The Fréchet distance between two sets of images (Heusel et al. 2017), called FID with Inception's features."""

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
    """Running mean and covariance of features that come in batches, summed in float64.

    >>> moments = Moments()
    >>> moments.add(np.array([[0.0], [2.0]]))
    >>> moments.add(np.array([[4.0]]))
    >>> moments.statistics()
    Statistics(mean=array([2.]), covariance=array([[4.]]))
    """

    def __init__(self):
        self._count = 0
        # Sums are taken about a point near the mean, so that they keep their digits.
        self._origin: np.ndarray | float = 0.0
        self._sum: np.ndarray | float = 0.0
        self._sum_of_products: np.ndarray | float = 0.0

    def add(self, batch: Float[np.ndarray, "n features"]) -> None:
        """Add the features of a batch."""
        batch = np.asarray(batch, np.float64)
        if self._count == 0:
            self._origin = batch.mean(axis=0)
        centered = batch - self._origin
        self._count += len(batch)
        self._sum = self._sum + centered.sum(axis=0)
        self._sum_of_products = self._sum_of_products + centered.T @ centered

    def statistics(self) -> Statistics:
        """Return the mean and unbiased covariance of all rows.

        Raises:
          InputError: for fewer than two rows in total.
        """
        if self._count < 2:
            raise InputError(f"A covariance needs at least 2 images; got {self._count}.")
        mean = self._sum / self._count
        covariance = (self._sum_of_products - self._count * np.outer(mean, mean)) / (self._count - 1)
        return Statistics(self._origin + mean, covariance)


def statistics(batches: Iterable[Float[np.ndarray, "_ features"]]) -> Statistics:
    """Compute mean and covariance of the features in all batches.

    Raises:
      InputError: for fewer than two rows in total.

    >>> statistics([np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[4.0, 4.0]])]).mean
    array([2., 2.])
    """
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute the squared 2-Wasserstein distance of two Gaussians: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Small sets bias the distance upward: compare only distances of sets of equal size.

    Args:
      a: statistics of one set.
      b: statistics of the other set, with as many features.

    Returns:
      The distance, in squared units of the features.

    >>> unit = Statistics(np.zeros(2), np.eye(2))
    >>> frechet_distance(unit, Statistics(np.array([3.0, 4.0]), np.eye(2)))
    25.0
    """
    # (A B)^(1/2) and (R B R)^(1/2), R = A^(1/2), have the same trace. R B R is symmetric, so its roots stay real.
    eigenvalues, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(_zero_rounding_errors(eigenvalues))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(_zero_rounding_errors(cross)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def _zero_rounding_errors(eigenvalues: np.ndarray) -> np.ndarray:
    """Replace eigenvalues that are rounding errors by 0: their square roots would be many digits larger."""
    return np.where(eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(), eigenvalues, 0)
