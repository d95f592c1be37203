"""Dropout whose masks depend on a key and on each example's position in the global batch, and on nothing else."""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Float, Int, UInt32

from ..keys import fold_in, threefry
from ..shapes import Array, Keys


def dropout_seeds(key: Keys, index: Int[Array, "batch"]) -> UInt32[Array, "batch 2"]:
    """Return each example's seed for `dropout`.

    Args:
      key: of any generator.
      index: position of each example in the global batch.

    >>> dropout_seeds(jax.random.key(0), jnp.arange(3)).shape
    (3, 2)
    """
    return jax.vmap(lambda i: jax.random.bits(fold_in(threefry(key), i), (2,), jnp.uint32))(index)


def site_seeds(seeds: UInt32[Array, "batch 2"], site: int) -> UInt32[Array, "batch 2"]:
    """Return the seeds of one of a network's dropout layers, such as its 3rd. Threefry's keys may be consecutive."""
    return seeds + jnp.array([[0, site]], jnp.uint32)


def dropout(x: Float[Array, "batch *features"], seeds: UInt32[Array, "batch 2"], rate: float) -> Array:
    """Zero each element with probability `rate`, and scale the others to keep the mean.

    A seed is a key of Threefry. It must be used once. Half a word of Threefry, 16 bits, decides on an element: a fourth
    of the work of `jax.random.bernoulli`.

    Args:
      x: features.
      seeds: from `dropout_seeds`.
      rate: at least 0 and below 1; the probability is rounded to a multiple of 2^-16.

    >>> kept = dropout(jnp.ones((1, 1000)), dropout_seeds(jax.random.key(0), jnp.arange(1)), 0.5)
    >>> sorted(set(kept.ravel().tolist()))
    [0.0, 2.0]
    """
    size = math.prod(x.shape[1:])
    kept = max(1, round((1 - rate) * 2**16))  # of the 2^16 values of 16 bits
    counts = jnp.arange((size + 1) // 2, dtype=jnp.uint32)
    words = jax.vmap(lambda seed: threefry_2x32(seed, counts))(seeds)
    halves = (words[:, None] >> jnp.array([[[0], [16]]], jnp.uint32)) & 0xFFFF
    # Write the mask to memory. XLA would generate it again for each use, in the backward pass too.
    keep = jax.lax.optimization_barrier(halves.reshape(len(x), -1)[:, :size].reshape(x.shape) < kept)
    return jnp.where(keep, x * (2**16 / kept), 0)
