"""What the samples of a pipeline are measured by: the data, and how fast they come."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from ..data import Source, read_examples
from ..pipeline import Pipeline
from .features import Features
from .frechet import Statistics, frechet_distance, statistics

MOST_IMAGES = 50_000  # of a dataset that are looked at; as for published FIDs


class Drawn(NamedTuple):
    """Samples of a pipeline.

    Attributes:
      images: the samples.
      images_per_sec: drawn, without compilation.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    images_per_sec: float


def data_indices(source: Source) -> np.ndarray:
    """The images of a dataset to measure against: all, or 50,000 of them, in random order."""
    return np.random.default_rng(0).permutation(len(source))[:MOST_IMAGES]


def data_statistics(source: Source, features: Features, indices: np.ndarray) -> Statistics:
    """Statistics of these images of a dataset."""
    return statistics(features(piece["image"]) for piece in read_examples(source, indices))


def halves_distance(source: Source, features: Features, indices: np.ndarray) -> float:
    """Frechet distance between two halves of these images: a level to hold the distance of samples against."""
    return frechet_distance(*(data_statistics(source, features, half) for half in np.array_split(indices, 2)))


def draw(pipeline: Pipeline, *, num_samples: int, batch_size: int, num_steps: int, sampler: str) -> Drawn:
    """Draws samples, from the same noise for every pipeline and sampler, and takes the time. All processes draw."""
    sample = functools.partial(pipeline.sample, jax.random.key(0), sampler=sampler, batch_size=batch_size)
    # compiles the program that serves every number of steps; a student would warn of any but its own
    sample(min(batch_size, num_samples), num_steps=pipeline.distilled_for or 1)
    start = time.perf_counter()
    images = sample(num_samples, num_steps=num_steps)
    return Drawn(images, num_samples / (time.perf_counter() - start))
