"""Which examples step k sees: random access, not an iterator, so that resuming at any step is free.

Epochs follow each other without a gap: example j of the training stream is entry j mod n of the permutation of epoch
j div n, and the batch of step k is examples k batch_size to (k + 1) batch_size of the stream. It depends on
(seed, step, position in the global batch) and on nothing else.
"""

import functools

import numpy as np

from .sources import Source


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Indices of the examples of a step's global batch, `[batch_size]`."""
    stream = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, entries = np.divmod(stream, num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        indices[rows] = _permutation(seed, int(epoch), num_examples)[entries[rows]]
    return indices


def read_batch(source: Source, seed: int, step: int, batch_size: int) -> dict[str, np.ndarray]:
    """The batch of a step: uint8 `image`, `[batch_size, height, width, channels]`, int32 `label`, `[batch_size]`."""
    return source[batch_indices(seed, step, batch_size, len(source))]


@functools.lru_cache(maxsize=4)  # a batch spans two epochs, or many of a tiny dataset
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
