"""Measuring a pipeline: its samples, how far they are from the data, and how fast they come."""

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


class Measurement(NamedTuple):
    """What was measured of a pipeline.

    Attributes:
      distance: Frechet distance to the data.
      images_per_sec: drawn, without compilation.
      images: the samples.
    """

    distance: float
    images_per_sec: float
    images: UInt8[np.ndarray, "n height width channels"]


def data_indices(source: Source) -> np.ndarray:
    """The images of a dataset to measure against: all, or 50,000 of them, in random order."""
    return np.random.default_rng(0).permutation(len(source))[:MOST_IMAGES]


def data_statistics(source: Source, features: Features, indices: np.ndarray) -> Statistics:
    """Statistics of these images of a dataset."""
    return statistics(features(piece["image"]) for piece in read_examples(source, indices))


def halves_distance(source: Source, features: Features, indices: np.ndarray) -> float:
    """Frechet distance between two halves of these images: a level to hold the distance of samples against."""
    return frechet_distance(*(data_statistics(source, features, half) for half in np.array_split(indices, 2)))


def measure(
    pipeline: Pipeline,
    data: Statistics,
    features: Features,
    *,
    num_samples: int,
    batch_size: int,
    num_steps: int,
    sampler: str,
) -> Measurement:
    """Draws samples, from the same noise for every pipeline and sampler, and compares them with the data."""
    draw = functools.partial(pipeline.sample, jax.random.key(0), sampler=sampler, batch_size=batch_size)
    # compiles the program that serves every number of steps; a student would warn of any but its own
    draw(min(batch_size, num_samples), num_steps=pipeline.distilled_for or 1)
    start = time.perf_counter()
    images = draw(num_samples, num_steps=num_steps)
    images_per_sec = num_samples / (time.perf_counter() - start)
    return Measurement(frechet_distance(statistics([features(images)]), data), images_per_sec, images)
