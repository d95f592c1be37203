"""Measuring a pipeline: its samples, how far they are from the data, and how fast they come."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from ..data import Source
from ..pipeline import Pipeline
from .features import Features
from .frechet import Statistics, frechet_distance, statistics

CHUNK = 1000  # images whose features are held at a time


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


def data_statistics(source: Source, features: Features) -> Statistics:
    """Statistics of a whole dataset."""
    chunks = np.split(np.arange(len(source)), range(CHUNK, len(source), CHUNK))
    return statistics(features(source[chunk]["image"]) for chunk in chunks)


def halves_distance(source: Source, features: Features) -> float:
    """Frechet distance between two random halves of a dataset: a level to hold the distance of samples against."""
    halves = np.array_split(np.random.default_rng(0).permutation(len(source)), 2)
    return frechet_distance(*(statistics([features(source[half]["image"])]) for half in halves))


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
    draw(min(batch_size, num_samples), num_steps=1)  # compiles the program that serves every number of steps
    start = time.perf_counter()
    images = draw(num_samples, num_steps=num_steps)
    images_per_sec = num_samples / (time.perf_counter() - start)
    return Measurement(frechet_distance(statistics([features(images)]), data), images_per_sec, images)
