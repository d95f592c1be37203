"""The condition of a network: its inputs besides z and log-SNR, a tree of arrays by argument name.

`condition_of` is where labels and guidance weights enter. Everything else treats all entries alike: an entry may be
dropped, in training or for the unconditional half of classifier-free guidance, if its network has a value that stands
for none. To add a kind of condition, such as a text, let the network take it as an argument and name this value.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from ..shapes import Array, Condition
from .embedding import NO_CLASS

NO_CONDITION = {"y": np.int32(NO_CLASS)}


def condition_of(
    labels: Integer[Array, "batch"] | None = None, guidance: Float[Array, "batch"] | None = None
) -> Condition:
    """Return the condition for labels and guidance weights.

    Args:
      labels: integers, `[batch]`; None for an unconditional network.
      guidance: guidance weights, `[batch]`. Default: None, no guidance.
    """
    entries = {"y": labels, "guidance": guidance}
    return {name: entry for name, entry in entries.items() if entry is not None}


def no_condition(network: Any) -> Mapping[str, Any]:
    """Return what stands for no condition, by argument name, for one example: an array, or a tree of arrays.

    Args:
      network: has it as the attribute `no_condition`; by default, the label NO_CLASS stands for no class.
    """
    return getattr(network, "no_condition", NO_CONDITION)


def drop(condition: Condition, none: Mapping[str, Any], dropped: Bool[Array, "batch"]) -> Condition:
    """Replace the conditions of some examples by no condition. An entry without such a value is kept.

    Args:
      condition: for a batch.
      none: from `no_condition`.
      dropped: which examples.

    >>> condition = {"y": jnp.array([3, 5]), "guidance": jnp.array([1.0, 2.0])}
    >>> drop(condition, NO_CONDITION, jnp.array([True, False]))["y"]
    Array([-1,  5], dtype=int32)
    """

    def drop_rows(leaf, none):
        rows = dropped.reshape(-1, *[1] * none.ndim)
        return jnp.where(rows, none[None], leaf.astype(none.dtype))

    return _change(condition, none, drop_rows, keep=lambda leaf: leaf)


def with_unconditional(condition: Condition, none: Mapping[str, Any]) -> Condition:
    """Return a batch of twice the size, in which each example is followed by itself under no condition.

    The two are neighbors, so that devices that share the batch exchange no rows.

    Args:
      condition: for a batch.
      none: from `no_condition`.

    >>> with_unconditional({"y": jnp.array([3, 5])}, NO_CONDITION)["y"]
    Array([ 3, -1,  5, -1], dtype=int32)
    """

    def double(leaf, none):
        leaf = leaf.astype(none.dtype)
        pairs = jnp.stack([leaf, jnp.broadcast_to(none[None], leaf.shape)], axis=1)
        return pairs.reshape(2 * leaf.shape[0], *leaf.shape[1:])

    return _change(condition, none, double, keep=lambda leaf: jnp.repeat(leaf, 2, axis=0))


def _change(
    condition: Condition,
    none: Mapping[str, Any],
    change: Callable[[Array, Array], Array],
    keep: Callable[[Array], Array],
) -> Condition:
    """Apply `change(leaf, none)` to the entries that have a value for none, and `keep(leaf)` to the others.

    A changed leaf gets the type of the value: unsigned integers, for example, cannot represent NO_CLASS.
    """
    arrays = jax.tree.map(jnp.asarray, dict(condition))
    return {
        name: jax.tree.map(change, entry, none[name]) if name in none else jax.tree.map(keep, entry)
        for name, entry in arrays.items()
    }
