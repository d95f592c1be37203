"""A mesh of the devices of all processes, and functions that put arrays on it."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ..errors import InputError
from . import cpu
from .hashing import sha256

AXIS = "data"
AnyMesh = Mesh | AbstractMesh  # an AbstractMesh suffices to compute shardings


def describe_devices(mesh: Mesh) -> str:
    """Describe the devices of a mesh and the XLA flags that tune them, such as '2 cpu devices with oneDNN'."""
    backend = jax.default_backend()
    flags = cpu.active_flags() if backend == "cpu" else []
    tuned = f" with {' and '.join(flags)}" if flags else ""
    return f"{mesh.size} {backend} device{'s' * (mesh.size != 1)}{tuned}"


def enable_compilation_cache() -> None:
    """Let JAX store compiled programs in the user's cache folder, so that a restarted run compiles nothing.

    Each kind of CPU has a separate folder. A `jax_compilation_cache_dir` that the user has set is kept.
    """
    from .files import cache_folder  # here, since networks import this module, and they need no library for files

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder() / programs_name()))


def programs_name() -> str:
    """Return the name of the folder for compiled programs, which differs between kinds of CPUs."""
    return f"programs-{sha256([cpu.describe_cpu()], 16)}"


def start_jax() -> None:
    """Start JAX. Raises an InputError if JAX finds no devices, as for a platform that is not installed."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        platforms, (reason, *_) = jax.config.jax_platforms, str(error).splitlines() or ["no such platform is installed"]
        named = (
            f" JAX_PLATFORMS is set to {platforms}. Unset it to use the available devices, or install JAX for that "
            "platform, for example with pip install 'jax[cuda13]'."
        )
        raise InputError(f"JAX cannot start: {reason}.{named if platforms else ''}") from None


def data_mesh() -> Mesh:
    """Return a mesh of all devices of all processes, along the axis 'data'; devices of one process are neighbors."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,))


def num_local_devices(mesh: Mesh) -> int:
    """Count the devices of a mesh that belong to this process."""
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def host_device() -> jax.Device | None:
    """Return this process's CPU as a device, or None where JAX may not use it, as with JAX_PLATFORMS=cuda."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(leaf: Any, mesh: AnyMesh) -> NamedSharding:
    """Return the sharding that divides an array along its longest axis that the devices can share evenly.

    An array without such an axis is replicated.

    >>> mesh = AbstractMesh((8,), (AXIS,))
    >>> divided(np.zeros((3, 16, 24)), mesh).spec, divided(np.zeros(7), mesh).spec
    (...(None, None, 'data'), ...())
    """
    sizes = [size if size % mesh.size == 0 else 0 for size in np.shape(leaf)]
    if not any(sizes):
        return replicated(mesh)
    axis = int(np.argmax(sizes))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def shares(tree: Any, mesh: AnyMesh) -> Any:
    """Return `divided` of every array in a tree."""
    return jax.tree.map(lambda leaf: divided(leaf, mesh), tree)


def is_divided(tree: Any) -> bool:
    """Whether no device holds the whole tree, as some of its arrays are divided."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))


def put(tree: Any, shardings: Any) -> Any:
    """Put the arrays of a tree on devices, as `jax.device_put` does; several processes may share the devices.

    Args:
      tree: host arrays, equal in all processes, or device arrays.
      shardings: a tree of the same structure.
    """

    def put_leaf(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(_identity, out_shardings=sharding)(leaf)
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put_leaf, tree, shardings)


def abstract(tree: Any, shardings: Any) -> Any:
    """Return the shapes, types and shardings that `put(tree, shardings)` has, without putting anything."""
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), jax.eval_shape(_identity, tree), shardings
    )


def to_host(tree: Any) -> Any:
    """Copy a tree's device arrays to whole NumPy arrays, in every process. Every process must call it."""

    def copy_leaf(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        if is_divided(leaf):  # as an array of its own, since a device array keeps the copy that NumPy asks for
            leaf = jax.jit(_identity, out_shardings=replicated(leaf.sharding.mesh))(leaf)
        return np.array(leaf)

    return jax.tree.map(copy_leaf, tree)


def replicate(tree: Any, mesh: Mesh, parallel: str) -> Any:
    """Put a whole copy of a tree's arrays on every device.

    Args:
      tree: arrays, equal in all processes.
      mesh: from `data_mesh`.
      parallel: 'jit' or 'pmap', as the programs that read the copies are compiled.
    """
    if parallel == "jit":
        return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))
    count = num_local_devices(mesh)
    copies = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *np.shape(leaf))), tree)
    # Name the axis as the programs that read the copies do: for arrays of another axis, JAX compiles them again.
    return jax.pmap(_identity, AXIS, devices=list(mesh.devices.flat))(copies)


def first_shard(array: jax.Array) -> jax.Array:
    """Return the copy of an array of `jax.pmap` that the first device of this process has."""
    return array.addressable_shards[0].data[0]


def map_rows(fn: Callable[..., jax.Array], mesh: Mesh, parallel: str) -> Callable[..., np.ndarray]:
    """Compile a function of independent rows, which are divided among the devices.

    Args:
      fn: `fn(params, shared, rows)`, where params is a tree from `replicate`, shared is a small tree that all rows use,
        and rows is a tree of arrays whose first axis counts the rows. Returns an array with as many rows.
      mesh: from `data_mesh`.
      parallel: 'jit' or 'pmap'.

    Returns:
      A function of the same arguments. Its rows are NumPy arrays, the same in every process; their number must be a
      multiple of the mesh's size. It returns a NumPy array of all rows, in every process.
    """
    run = _map_rows_by_jit(fn, mesh) if parallel == "jit" else _map_rows_by_pmap(fn, mesh)
    calls = itertools.count()

    def run_on_host(params, shared, rows):
        result = np.asarray(run(params, shared, rows))
        if next(calls) == 0:  # the first call has compiled the program
            cpu.release_memory()
        return result

    return run_on_host


def _map_rows_by_jit(fn: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    by_rows = NamedSharding(mesh, PartitionSpec(AXIS))
    compiled = jax.jit(fn, out_shardings=replicated(mesh))
    return lambda params, shared, rows: compiled(params, shared, put(rows, jax.tree.map(lambda _: by_rows, rows)))


def _map_rows_by_pmap(fn: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    def gather(params, shared, rows):
        return jax.lax.all_gather(fn(params, shared, rows), AXIS, tiled=True)

    compiled = jax.pmap(gather, AXIS, in_axes=(0, None, 0), devices=list(mesh.devices.flat))
    is_local = [device.process_index == jax.process_index() for device in mesh.devices.flat]

    def run(params, shared, rows):
        local = jax.tree.map(lambda row: row.reshape(mesh.size, -1, *row.shape[1:])[is_local], rows)
        return first_shard(compiled(params, shared, local))

    return run


def _identity(tree: Any) -> Any:
    return tree
