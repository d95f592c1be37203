"""Random keys from seeds, and random draws that do not depend on JAX's settings.

JAX's default generator and default types are settings: `jax_default_prng_impl`, `jax_enable_x64`. What a seed draws
here depends on neither.
"""

import jax
import jax.numpy as jnp

from .errors import InputError
from .shapes import Array, Keys

MOST_SEED = 2**32 - 1  # JAX takes larger seeds modulo 2^32
THREEFRY = "threefry2x32"


def seed_key(seed: int | Array) -> Keys:
    """The Threefry key of a seed, whatever JAX's default generator is.

    Args:
      seed: from 0 to 2^32 - 1; it may be traced.

    Raises:
      InputError: for a seed out of this range.
    """
    if not isinstance(seed, jax.core.Tracer) and not 0 <= seed <= MOST_SEED:
        raise InputError(f"The seed {seed} must be from 0 to {MOST_SEED}.")
    return jax.random.key(seed, impl=THREEFRY)


def threefry(key: Keys) -> Keys:
    """Convert a key, or an array of keys, to Threefry.

    Of another generator's key, the first 64 bits count: `jax.random.key(seed, impl='rbg')` becomes `seed_key(seed)`. An
    'rbg' key would not do: under `jax.vmap`, its draws depend on the other keys of the batch.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(key)
    elif jax.random.key_impl(key) == THREEFRY:
        return key
    else:
        data = jax.random.key_data(key)
    return jax.random.wrap_key_data(data[..., :2], impl=THREEFRY)


def fold_in(key: Keys, data: int | Array) -> Keys:
    """`jax.random.fold_in` for one key or one key per example."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = threefry(key)
    return jnp.vectorize(jax.random.fold_in)(key, data) if key.ndim else jax.random.fold_in(key, data)


def normal(key: Keys, like: Array) -> Array:
    """Standard normal noise shaped as `like`, from one key or from one key per example.

    With one key per example, an example's noise depends on its own key only, whatever the generator.
    """
    if key.ndim and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(threefry(key))
    return jax.random.normal(key, like.shape, like.dtype)
