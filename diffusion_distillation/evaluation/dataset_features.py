"""Features of a dataset's images, cached on disk, and what follows from them alone."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from ..data import Source, read_examples
from ..data.cache import cached_arrays
from ..runtime.hashing import sha256
from .extractor import Activations, FeatureExtractor, Uint8Images
from .frechet import frechet_distance, statistics

MAX_IMAGES = 50_000  # of a dataset, as for published FIDs
CHUNK_SIZE = 1000  # images whose features are computed at a time


def reference_indices(source: Source) -> Int[np.ndarray, "n"]:
    """Return which images of a dataset samples are compared with: all, or 50,000 random ones, in order."""
    return np.sort(np.random.default_rng(0).permutation(len(source))[:MAX_IMAGES])


def extract_features(source: Source, extractor: FeatureExtractor) -> Activations:
    """Compute the activations of the images `reference_indices(source)`, or load them from the cache."""
    indices = reference_indices(source)

    def compute() -> dict[str, np.ndarray]:
        chunks = [extractor(images) for images in _read_chunks(source, indices)]
        parts = {name: [getattr(chunk, name) for chunk in chunks] for name in Activations._fields}
        return {name: np.concatenate(of_chunks) for name, of_chunks in parts.items() if of_chunks[0] is not None}

    if extractor.identity is None:
        arrays = compute()
    else:
        digest = sha256(map(np.ascontiguousarray, _read_chunks(source, indices)))
        key = {"images": digest, "features": extractor.identity, "version": 1}
        arrays = cached_arrays("features", key, compute)
    return Activations(arrays["features"], arrays.get("logits"))


def halves_distance(source: Source, extractor: FeatureExtractor) -> float | None:
    """Compute the Fréchet distance between two random halves of a dataset, a baseline for the distance of samples.

    Returns:
      The distance. None if a half has no more images than a feature has dimensions: the covariances are singular then,
      and the distance shows the number of images.
    """
    features = extract_features(source, extractor).features
    halves = np.array_split(features[np.random.default_rng(0).permutation(len(features))], 2)
    if min(map(len, halves)) <= features.shape[1]:
        return None
    return frechet_distance(*(statistics([half]) for half in halves))


def nearest_neighbors(
    images: Uint8Images, source: Source, extractor: FeatureExtractor, k: int
) -> UInt8[np.ndarray, "n k height width channels"]:
    """Find the k images of a dataset that are nearest to each image, by Euclidean distance of their features."""
    from sklearn.neighbors import NearestNeighbors  # scikit-learn takes a second to import

    features = extract_features(source, extractor).features
    search = NearestNeighbors(n_neighbors=min(k, len(features)), algorithm="brute").fit(features)
    _, neighbors = search.kneighbors(extractor(images).features)
    nearest = source[reference_indices(source)[neighbors.ravel()]]["image"]
    return nearest.reshape(*neighbors.shape, *nearest.shape[1:])


def _read_chunks(source: Source, indices: np.ndarray) -> Iterator[Uint8Images]:
    """Yield images, about a thousand at a time."""
    batches: list[np.ndarray] = []
    for examples in read_examples(source, indices):
        batches.append(examples["image"])
        if sum(map(len, batches)) >= CHUNK_SIZE:
            yield np.concatenate(batches)
            batches = []
    if batches:
        yield np.concatenate(batches)
