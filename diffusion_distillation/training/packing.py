"""Parameters in one array: XLA then updates them in a few operations, where it has several for each.

A small U-Net has hundreds of arrays, and half of what is compiled for its training step, without this, updates them. On
a GPU these are thousands of kernels a step.
"""

import itertools
import math
from types import ModuleType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Params


@flax.struct.dataclass
class Packed:
    """The arrays of a tree, all of one type, one after another.

    Attributes:
      vector: all their elements, an array of shape [size]; or, as for any leaf of a tree, what stands for it.
      structure: of the tree.
      shapes: of its arrays.
    """

    vector: Any
    structure: jax.tree_util.PyTreeDef = flax.struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)


def pack(params: Params, xp: ModuleType = jnp) -> Packed:
    """Packs the arrays of a tree, all of one type, by NumPy's functions or by JAX's."""
    leaves, structure = jax.tree.flatten(params)
    vector = xp.concatenate([xp.asarray(leaf).reshape(-1) for leaf in leaves])
    return Packed(vector, structure, tuple(leaf.shape for leaf in leaves))


def pack_state(state: Any, xp: ModuleType = np) -> Any:
    """A training state whose parameters, and all that has their structure, are packed, by default on the host.

    Args:
      state: with `params` of one or several types; if of several, it is returned as it is.
      xp: as in `pack`.
    """
    structure = jax.tree.structure(state.params)

    def to_pack(node):
        return jax.tree.structure(node) == structure

    def packed(node):
        return pack(node, xp) if to_pack(node) else node

    one_type = len({leaf.dtype for leaf in jax.tree.leaves(state.params)}) == 1
    return jax.tree.map(packed, state, is_leaf=to_pack) if one_type else state


def unpack(tree: Any) -> Any:
    """The tree, with everything that is packed in it as it was before: views of NumPy arrays, else slices."""

    def unpacked(node):
        if not is_packed(node):
            return node
        ranges = itertools.pairwise(itertools.accumulate(map(math.prod, node.shapes), initial=0))
        parts = zip(ranges, node.shapes, strict=True)
        return node.structure.unflatten([node.vector[start:end].reshape(shape) for (start, end), shape in parts])

    return jax.tree.map(unpacked, tree, is_leaf=is_packed)


def is_packed(node: Any) -> bool:
    """Whether these are packed parameters."""
    return isinstance(node, Packed)
