"""Array types of the public signatures, and the dtypes that they are computed in.

`*batch` stands for any number of leading axes, none included. So every function here also works on a single example,
and under `jax.vmap`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, UInt32

Array = jax.Array | np.ndarray
DataArray = Float[Array, "*batch height width channels"]  # x, z, eps, v; pixels of x are in [-1, 1]
Trajectory = Float[Array, "num_steps *batch height width channels"]  # one DataArray per sampling step
ScalarOrBatch = Float[Array, "*#batch"] | float | np.floating  # t, logsnr, angles: one for all examples, or one each
StepIndex = Int[Array, "*#batch"] | int | np.integer  # index of a sampling step, from 0, the last one
Count = Int[Array, ""] | int | np.integer  # a number of steps; if traced, one compiled program serves all numbers
Keys = Key[Array, "*#batch"] | UInt32[Array, "words"]  # one random key for all examples, or one each
Params = Any  # a tree of arrays
Condition = Mapping[str, Any]  # a network's inputs besides z and logsnr, arrays or trees of arrays: {'y': labels}

Function = TypeVar("Function", bound=Callable)


def at_least_float32(dtype: Any) -> Any:
    """Return a float dtype of at least 32 bits as it is, and float32 for any other dtype.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    is_wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if is_wide else jnp.float32)


def mixed_precision(function: Function) -> Function:
    """Let a function combine 16-bit data with 32-bit times, even if `jax_numpy_dtype_promotion` is 'strict'."""

    @functools.wraps(function)
    def with_standard_promotion(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return with_standard_promotion
