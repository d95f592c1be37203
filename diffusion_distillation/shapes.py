"""Array shapes that the signatures share.

`*batch` stands for any leading axes, so that every function here also works on a single example, and so under
`jax.vmap`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Key, UInt32

Array = jax.Array | np.ndarray
Images = Float[Array, "*batch height width channels"]  # x, z, eps, v; pixels of x in [-1, 1]
Trajectory = Float[Array, "num_steps *batch height width channels"]
Times = Float[Array, "*#batch"] | float | np.floating  # t, logsnr, angles: one for each example, or one for all
Steps = Int[Array, "*#batch"] | int | np.integer  # the index of a sampling step: time is (i + 1) / num_steps
Count = Int[Array, ""] | int | np.integer  # a number of steps; a traced one lets a single program serve them all
Keys = Key[Array, "*#batch"] | UInt32[Array, "2"]  # a key for each example, or one for all
Params = Any  # a tree of arrays
Condition = Mapping[str, Array]  # what a network is told besides z and logsnr, by its arguments' names: {'y': labels}
