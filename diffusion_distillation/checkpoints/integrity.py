"""Detect damaged checkpoints: fingerprints of arrays, a seal on the metadata, and what counts as damage.

Several processes restore together. They must agree on the checkpoint to use, so each tries the newest one, and all
fall back to an older one if any of them finds damage.
"""

import errno
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ..errors import TRANSIENT, InputError, RunError
from ..runtime import multihost
from ..runtime.devices import host_device, to_host
from ..runtime.hashing import sha256
from ..shapes import Params

# Errors of the machine that reads, or of the network in between. Another attempt may succeed.
NOT_DAMAGE = {*TRANSIENT, errno.EACCES, errno.EPERM}
STATUS_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


class Stored(NamedTuple):
    """The content of one checkpoint.

    Attributes:
      arrays: fields of the state, each a tree of arrays.
      values: the metadata, as JSON.
    """

    arrays: dict[str, Any]
    values: dict[str, Any]


class Sound(NamedTuple):
    """The newest checkpoint that is not damaged.

    Attributes:
      stored: its content.
      step: its step.
      damaged: the steps of newer checkpoints, all of them damaged.
    """

    stored: Stored
    step: int
    damaged: list[int]


def newest_sound(folder: epath.Path, steps: Sequence[int], read: Callable[[epath.Path], Stored]) -> Sound | None:
    """Read the newest checkpoint that every process can read and whose fingerprints match.

    Every process must call this function. All use the steps that the main process passes.

    Args:
      folder: the folder of the checkpoints, each of them in a subfolder named after its step.
      steps: the steps of the checkpoints, in any order.
      read: reads the checkpoint in a subfolder.

    Returns:
      The checkpoint, or None if there are no steps.

    Raises:
      InputError: if every checkpoint is damaged.
      RunError: if another process cannot read a checkpoint for a reason that is not damage.
    """
    damaged: dict[int, str] = {}
    for step in sorted(json.loads(multihost.broadcast(json.dumps(list(steps)))), reverse=True):
        stored, damage = _attempt(lambda step=step: read(folder / str(step)))
        if damage is None:  # The fingerprints are one program for all devices, so every process needs its arrays first.
            _, damage = _attempt(lambda stored=stored: check_fingerprints(stored.arrays, stored.values["fingerprints"]))
        if damage is None:
            for other, reason in damaged.items():
                logging.warning(
                    "Checkpoint %s is damaged (%s). Using step %d instead.", folder / str(other), reason, step
                )
            return Sound(stored, step, list(damaged))
        damaged[step] = damage
    if damaged:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise InputError(
            f"All checkpoints in {str(folder)!r} are damaged ({reasons}). Nothing was changed. Restore one from a "
            "backup, or choose another folder to start again."
        )
    return None


def _attempt(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """Call `act` in every process. Returns `(result, None)` if it succeeds in all of them, else `(None, reason)`.

    An error that is not damage is raised in its process, and as a RunError in the other ones. If some
    processes succeed and another one does not find a file, all processes raise a RunError.
    """
    result = error = None
    try:
        result = act()
    except Exception as raised:
        error = raised
    succeeded, damaged, failed = range(3)
    outcome = succeeded if error is None else damaged if is_damage(error) else failed
    worst, one_reads_it, one_misses_it = multihost.all_max(
        [outcome, error is None, isinstance(error, FileNotFoundError)]
    )
    if outcome == failed:
        raise error
    if worst == failed:
        raise RunError("Another process could not read a checkpoint; see its message. Nothing was changed.")
    if one_reads_it and one_misses_it:
        raise RunError(
            "A process does not find a checkpoint that another process reads. Nothing was changed. All processes must "
            "see the same folder; a network file system may show new files late. Run the same command again."
        )
    if worst == damaged:
        return None, "another process cannot read it" if error is None else first_line(error)[:200]
    return result, None


def is_damage(error: Exception) -> bool:
    """Whether reading failed because of the files, not because of the machine or the network.

    Orbax raises almost any error for damaged files, so this function lists the errors that are not damage: our own
    messages, and missing memory, devices, file handles, permissions or connections.
    """
    if isinstance(error, InputError | MemoryError | jax.errors.JaxRuntimeError):
        return False
    if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
        return False
    if any(status in str(error) for status in STATUS_NOT_DAMAGE):
        return False
    cause = error.__cause__ or error.__context__
    return cause is None or is_damage(cause)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fingerprints(tree: Any) -> dict[str, int]:
    """Compute a checksum of every array in a tree, as one program.

    The checksum is the sum of an array's words times odd numbers that depend on their position, modulo 2^32. It changes
    if any single word changes. It uses integers only, so it does not depend on how an array is divided among devices.

    Args:
      tree: a tree of arrays of any shape and dtype.

    Returns:
      A checksum, below 2^32, for each path in the tree.

    >>> fingerprints({"step": jnp.uint32(7)})
    {"['step']": 7}
    >>> fingerprints([np.array([1, 1], np.uint32)])
    {'[0]': 4}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    with jax.default_device(host_device()):  # do not copy NumPy arrays to an accelerator
        sums = np.asarray(_sums([leaf for _, leaf in leaves])).tolist()
    return {jax.tree_util.keystr(path): value for (path, _), value in zip(leaves, sums, strict=True)}


def check_fingerprints(tree: Any, expected: dict[str, int]) -> None:
    """Raise a ValueError that names the first array whose fingerprint differs from the expected one."""
    for path, value in fingerprints(tree).items():
        if value != expected.get(path):
            raise ValueError(f"{path} differs from what was saved")


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(array) for array in arrays])


@jax.jit  # traced once for all arrays of one shape and dtype
def _sum(array: jax.Array) -> jax.Array:
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as unsigned integers: one per element, or two of 32 bits for elements of 64 bits."""
    if array.dtype == bool:
        return array.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32))


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """Add a hash of all values, so that `unseal` notices changes.

    >>> unseal(seal({"step": 7}))
    {'step': 7}
    """
    return values | {"seal": _hash(values)}


def unseal(values: dict[str, Any]) -> dict[str, Any]:
    """Check the hash that `seal` added, and remove it. Raises a ValueError if the hash is missing or differs.

    >>> unseal(seal({"step": 7}) | {"step": 8})
    Traceback (most recent call last):
      ...
    ValueError: its metadata differ from what was saved
    """
    if not isinstance(values, dict) or "seal" not in values:
        raise ValueError("it was not saved by diffusion_distillation, or its metadata are lost")
    content = {name: value for name, value in values.items() if name != "seal"}
    if values["seal"] != _hash(content):
        raise ValueError("its metadata differ from what was saved")
    return content


def _hash(values: dict[str, Any]) -> str:
    return sha256([json.dumps(values, sort_keys=True)])


def params_hash(params: Params) -> str:
    """A hash of parameters: 16 hexadecimal digits. If they are divided among devices, every process must call it.

    >>> params_hash({"kernel": np.zeros(3, np.float32)})
    '15ec7bf0b50732b4'
    """
    return sha256((np.ascontiguousarray(to_host(leaf)) for leaf in jax.tree.leaves(params)), digits=16)
