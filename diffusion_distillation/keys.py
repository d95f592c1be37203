"""Random keys and noise that do not depend on JAX's settings.

`jax_default_prng_impl` changes what `jax.random.key(seed)` generates, and `jax_enable_x64` changes its dtypes. With the
functions here, a seed always gives the same numbers.
"""

import jax
import jax.numpy as jnp

from .errors import InputError
from .shapes import Array, Keys

MAX_SEED = 2**32 - 1  # JAX takes larger seeds modulo 2^32
THREEFRY = "threefry2x32"


def seed_key(seed: int | Array) -> Keys:
    """Return the Threefry key of a seed, whatever JAX's default generator is.

    Args:
      seed: from 0 to 2^32 - 1; may be traced.

    Raises:
      InputError: for a seed out of this range.

    >>> jax.random.key_data(seed_key(3))
    Array([0, 3], dtype=uint32)
    """
    if not isinstance(seed, jax.core.Tracer) and not 0 <= seed <= MAX_SEED:
        raise InputError(f"The seed {seed} must be from 0 to {MAX_SEED}.")
    return jax.random.key(seed, impl=THREEFRY)


def threefry(key: Keys) -> Keys:
    """Convert a key, or an array of keys, to Threefry, by its first 64 bits.

    `jax.random.key(seed, impl='rbg')` becomes `seed_key(seed)`. An 'rbg' key itself does not serve here: under
    `jax.vmap`, what it generates depends on the other keys of the batch.

    >>> jax.random.key_data(threefry(jax.random.key(3, impl="rbg")))
    Array([0, 3], dtype=uint32)
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(key)
    elif jax.random.key_impl(key) == THREEFRY:
        return key
    else:
        data = jax.random.key_data(key)
    return jax.random.wrap_key_data(data[..., :2], impl=THREEFRY)


def fold_in(key: Keys, data: int | Array) -> Keys:
    """Apply `jax.random.fold_in` to one key, or to each of one key per example.

    >>> fold_in(jax.random.split(seed_key(0), 3), 7).shape
    (3,)
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = threefry(key)
    return jnp.vectorize(jax.random.fold_in)(key, data) if key.ndim else jax.random.fold_in(key, data)


def normal(key: Keys, like: Array) -> Array:
    """Generate standard normal noise with the shape and dtype of `like`.

    Args:
      key: one key, or one per example. With one per example, the noise of an example depends on its key alone.
      like: `[batch, ...]`.

    >>> keys = jax.random.split(seed_key(0), 2)
    >>> bool((normal(keys, jnp.zeros((2, 4)))[1] == normal(keys[1:], jnp.zeros((1, 4)))[0]).all())
    True
    """
    if key.ndim and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(threefry(key))
    return jax.random.normal(key, like.shape, like.dtype)
