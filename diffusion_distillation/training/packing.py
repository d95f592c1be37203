"""Parameters packed into one array, so that XLA updates them in a few operations instead of a few per array.

A small U-Net has hundreds of arrays. Without packing, updating them is half of its compiled training step, and launches
thousands of kernels on a GPU. `optax.flatten` is not enough: it packs only the optimizer's inputs. The parameters would
be packed again at every step, and adding the updates and averaging would remain operations per array.

Parameters are packed in `Runner.place` and unpacked in `Runner.collect`. Checkpoints hold separate arrays.
"""

import itertools
import math
from types import ModuleType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ..networks.cpu_kernels import materialize
from ..shapes import Params


@flax.struct.dataclass
class Packed:
    """The arrays of a tree, all of one type, one after another.

    Attributes:
      vector: their elements, an array of shape [size].
      structure: of the tree.
      shapes: of its arrays.
    """

    vector: Any
    structure: Any = flax.struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)


def pack(params: Params, xp: ModuleType = jnp) -> Packed:
    """Pack the arrays of a tree, all of one type, with NumPy or JAX (`xp`).

    >>> pack({"a": jnp.zeros((2, 2)), "b": jnp.ones(1)}).vector
    Array([0., 0., 0., 0., 1.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(params)
    vector = xp.concatenate([xp.asarray(leaf).reshape(-1) for leaf in leaves])
    return Packed(vector, structure, tuple(leaf.shape for leaf in leaves))


def pack_state(state: Any, xp: ModuleType = np) -> Any:
    """Pack the parameters of a training state and every tree in it that has their structure.

    Args:
      state: has `params`. If these are of several types, the state is returned unchanged.
      xp: NumPy or JAX's NumPy, which packs.

    Returns:
      The state, with a `Packed` for each such tree.
    """
    structure = jax.tree.structure(state.params)

    def is_like_params(node):
        return jax.tree.structure(node) == structure

    def pack_if_like_params(node):
        return pack(node, xp) if is_like_params(node) else node

    one_type = len({leaf.dtype for leaf in jax.tree.leaves(state.params)}) == 1
    return jax.tree.map(pack_if_like_params, state, is_leaf=is_like_params) if one_type else state


def unpack(tree: Any) -> Any:
    """Undo `pack` everywhere in a tree. NumPy arrays become views, JAX arrays slices.

    >>> unpack(pack({"a": jnp.zeros(2), "b": jnp.ones(1)}))
    {'a': Array([0., 0.], dtype=float32), 'b': Array([1.], dtype=float32)}
    """

    def unpack_node(node):
        if not is_packed(node):
            return node
        ranges = itertools.pairwise(itertools.accumulate(map(math.prod, node.shapes), initial=0))
        parts = zip(ranges, node.shapes, strict=True)
        return node.structure.unflatten([node.vector[start:end].reshape(shape) for (start, end), shape in parts])

    return jax.tree.map(unpack_node, tree, is_leaf=is_packed)


def unpack_for_networks(state: Any) -> Any:
    """Unpack the parts of a training state that networks read: `params` and `average`.

    On CPU, each slice is written to memory once. Otherwise XLA would slice the vector again at each use.
    """
    if not is_packed(state.params):
        return state
    params, average = (materialize(unpack(tree)) for tree in (state.params, state.average))
    return state._replace(params=params, average=average)


def is_packed(node: Any) -> bool:
    """Whether these are packed parameters."""
    return isinstance(node, Packed)
