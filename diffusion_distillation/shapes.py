"""Array shapes that the signatures share, and the types of what is computed.

`*batch` stands for any leading axes, so that every function here also works on a single example, and so under
`jax.vmap`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, UInt32

Array = jax.Array | np.ndarray
Images = Float[Array, "*batch height width channels"]  # x, z, eps, v; pixels of x in [-1, 1]
Trajectory = Float[Array, "num_steps *batch height width channels"]
Times = Float[Array, "*#batch"] | float | np.floating  # t, logsnr, angles: one for each example, or one for all
Steps = Int[Array, "*#batch"] | int | np.integer  # the index of a sampling step: time is (i + 1) / num_steps
Count = Int[Array, ""] | int | np.integer  # a number of steps; a traced one lets a single program serve them all
Keys = Key[Array, "*#batch"] | UInt32[Array, "words"]  # one key per example, or one for all
Params = Any  # a tree of arrays
Condition = Mapping[str, Array]  # what a network is told besides z and logsnr, by its arguments' names: {'y': labels}

Function = TypeVar("Function", bound=Callable)


def at_least_float32(dtype: Any) -> Any:
    """The type itself if it is a float with at least 32 bits, else float32."""
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else jnp.float32)


def mixing_types(function: Function) -> Function:
    """Let a function mix 16-bit images with 32-bit times, whatever `jax_numpy_dtype_promotion` is."""

    @functools.wraps(function)
    def mixing(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return mixing
