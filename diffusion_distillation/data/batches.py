"""Which examples step k sees, and reading them ahead.

Random access, not an iterator's state, so that resuming at any step is free. Epochs follow each other without a gap:
example j of the training stream is entry j mod n of the permutation of epoch j div n, and the batch of step k is
examples k batch_size to (k + 1) batch_size of the stream. It depends on (seed, step, position in the global batch) and
on nothing else.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from .source import Source

CHUNK = 64  # examples that one thread reads at a time
THREADS = min(16, os.cpu_count() or 1)

Examples = dict[str, np.ndarray]


def stream_indices(seed: int, positions: np.ndarray, num_examples: int) -> np.ndarray:
    """Indices of the examples at these positions of the training stream."""
    epochs, entries = np.divmod(positions, num_examples)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        indices[rows] = _permutation(seed, int(epoch), num_examples)[entries[rows]]
    return indices


def read_batches(
    source: Source, seed: int, steps: range, batch_size: int, *, process: tuple[int, int] = (0, 1)
) -> Iterator[Examples]:
    """The batches of consecutive steps: uint8 `image`, `[rows, height, width, channels]`, and int32 `label`, `[rows]`.

    Labels are left out where the source has no classes.

    Threads read at least two batches ahead of what is asked for, and no more than that or two pieces a thread.

    Args:
      source: the images.
      seed: of the order.
      steps: the training steps, such as `range(step, num_steps)`.
      batch_size: over all processes.
      process: (index, count) of the processes that share each batch; this one gets its rows alone, an equal part.
    """
    index, count = process
    rows = batch_size // count
    pieces = -(-rows // CHUNK)

    def read(number: int) -> Examples:
        step, piece = divmod(number, pieces)
        first = step * batch_size + index * rows
        positions = np.arange(first + piece * CHUNK, first + min((piece + 1) * CHUNK, rows))
        examples = source[stream_indices(seed, positions, len(source))]
        return examples if source.num_classes > 1 else {"image": examples["image"]}

    numbers = range(steps.start * pieces, steps.stop * pieces)
    return iter(prefetch(read, numbers, 2 * pieces).batch(pieces, batch_fn=_joined))


def read_examples(source: Source, indices: np.ndarray) -> Iterator[Examples]:
    """The examples at these indices, in order, in pieces of up to 64, read ahead by threads."""
    pieces = range(-(-len(indices) // CHUNK))
    return iter(prefetch(lambda piece: source[indices[piece * CHUNK : (piece + 1) * CHUNK]], pieces))


def prefetch(read: Callable[[int], Any], numbers: range, at_least: int = 0) -> grain.IterDataset:
    """What `read` returns for these numbers, in order, found by threads that are ahead by two results each.

    Args:
      read: called by several threads at a time.
      numbers: a range with step 1.
      at_least: how many results the threads are ahead at least.
    """
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=max(2 * THREADS, at_least))
    return grain.MapDataset.range(numbers.start, numbers.stop).map(read).to_iter_dataset(options)


def _joined(pieces: list[Examples]) -> Examples:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


@functools.lru_cache(maxsize=4)  # a batch spans two epochs, or many of a tiny dataset
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
