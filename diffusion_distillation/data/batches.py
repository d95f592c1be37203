"""The examples of each training step, read ahead by threads.

Batches are random accesses, so resuming at any step is free. The training stream is one epoch after another: example j
of the stream is entry `j mod n` of the permutation of epoch `j div n`. The batch of step k is examples `k batch_size`
to `(k + 1) batch_size`. It depends only on (seed, step, position in the global batch).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from ..runtime.cpu import usable_cores
from .source import Source

CHUNK_SIZE = 64  # examples that a thread reads at a time
NUM_THREADS = min(16, usable_cores())

Examples = dict[str, np.ndarray]  # uint8 `image`, `[n, height, width, channels]`, and int32 `label`, `[n]`


def stream_indices(seed: int, positions: Int[np.ndarray, "n"], num_examples: int) -> Int[np.ndarray, "n"]:
    """Return the indices of the examples at positions of the training stream.

    Args:
      seed: of the order.
      positions: in the stream, from 0 on.
      num_examples: in the dataset.

    Returns:
      Indices from 0 to num_examples - 1.

    >>> epoch = stream_indices(seed=0, positions=np.arange(5), num_examples=5)
    >>> sorted(epoch.tolist())
    [0, 1, 2, 3, 4]
    """
    epochs, entries = np.divmod(positions, num_examples)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        indices[rows] = _permutation(seed, int(epoch), num_examples)[entries[rows]]
    return indices


def read_batches(
    source: Source, seed: int, steps: range, batch_size: int, *, process: tuple[int, int] = (0, 1)
) -> Iterator[Examples]:
    """Iterate over the batches of consecutive training steps.

    Threads read ahead by at least two batches, and by at most two batches or two chunks per thread.

    Args:
      source: the images.
      seed: of the order.
      steps: the training steps, such as `range(step, num_train_steps)`.
      batch_size: over all processes; a multiple of their number.
      process: (index, count) of the processes that share each batch. This process gets its equal part of the rows.

    Yields:
      Per step, uint8 `image`, `[rows, height, width, channels]`, or what a source of latents has instead; and, if the
      source has classes, int32 `label`, `[rows]`.
    """
    index, count = process
    rows = batch_size // count
    chunks_per_batch = -(-rows // CHUNK_SIZE)

    def read_chunk(number: int) -> Examples:
        step, chunk = divmod(number, chunks_per_batch)
        first = step * batch_size + index * rows
        positions = np.arange(first + chunk * CHUNK_SIZE, first + min((chunk + 1) * CHUNK_SIZE, rows))
        examples = source[stream_indices(seed, positions, len(source))]
        return {name: rows for name, rows in examples.items() if name != "label" or source.num_classes > 1}

    numbers = range(steps.start * chunks_per_batch, steps.stop * chunks_per_batch)
    chunks = prefetch(read_chunk, numbers, min_buffer=2 * chunks_per_batch)
    return iter(chunks.batch(chunks_per_batch, batch_fn=_concatenate))


def read_examples(source: Source, indices: Int[np.ndarray, "n"]) -> Iterator[Examples]:
    """Iterate over examples in order, up to 64 at a time, read ahead by threads.

    Args:
      source: the images.
      indices: of the examples.

    Yields:
      uint8 `image`, `[rows, height, width, channels]`, and int32 `label`, `[rows]`.
    """
    starts = range(-(-len(indices) // CHUNK_SIZE))
    return iter(prefetch(lambda chunk: source[indices[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]], starts))


def prefetch(read: Callable[[int], Any], numbers: range, min_buffer: int = 0) -> grain.IterDataset:
    """Call a function for each number, ahead of the reader, in threads.

    Args:
      read: called by several threads at a time.
      numbers: a range with step 1.
      min_buffer: the smallest number of results to be ahead; by default two per thread.

    Returns:
      The results, in the order of the numbers.
    """
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=max(2 * NUM_THREADS, min_buffer))
    return grain.MapDataset.range(numbers.start, numbers.stop).map(read).to_iter_dataset(options)


def _concatenate(chunks: list[Examples]) -> Examples:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@functools.lru_cache(maxsize=4)  # a batch spans two epochs, or many of a tiny dataset
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
