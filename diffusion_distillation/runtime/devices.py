"""The devices, all of all processes in a row, and what is placed on them."""

import ctypes
import functools
import gc
import mmap
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ..errors import InputError
from .files import cache_folder
from .hashing import sha256

AXIS = "data"
AnyMesh = Mesh | AbstractMesh  # of devices, or to reckon with
MIN_EXAMPLES_PER_CPU_DEVICE = 16
CPU_FLAGS = {  # of XLA, by what they bring
    "oneDNN": ("--xla_cpu_experimental_onednn_custom_call", "true"),
    "512-bit vectors": ("--xla_cpu_prefer_vector_width", "512"),
}
LARGE_PAGES = "glibc.malloc.hugetlb=1"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # '[always] madvise never' and the like


def use_all_cpu_cores(batch_size: int) -> None:
    """Where there is no accelerator, makes every core a device; call it before JAX starts.

    Within one CPU device XLA runs parts of a program on a single core. As many devices as evenly share the batch, with
    16 examples each at least, are made; JAX_NUM_CPU_DEVICES or XLA_FLAGS, where set, have the last word.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(1, min(cores, batch_size // MIN_EXAMPLES_PER_CPU_DEVICE))
    jax.config.update("jax_num_cpu_devices", max(n for n in range(1, most + 1) if batch_size % n == 0))


def set_cpu_flags(dtype: str) -> None:
    """Sets the flags of XLA's CPU backend that make a network of this type faster; call it before JAX starts.

    oneDNN, which XLA has inside, does a bfloat16 network's work, twice as fast; others go without, as JAX cannot keep
    the programs that use it. Vectors are as wide as the CPU has them, where it computes with bfloat16: older ones slow
    down with 512 bits. What XLA_FLAGS says of a flag stays.
    """
    pays = {"oneDNN": dtype == "bfloat16", "512-bit vectors": "avx512_bf16" in _about_cpu()}
    for name, (flag, value) in CPU_FLAGS.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if pays[name] and flag not in flags and _xla_knows(flag):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def large_pages() -> dict[str, str]:
    """What the environment must say when a program starts, for its memory to lie in pages of 2 MB.

    On CPU, XLA takes hundreds of megabytes for a training step and gives them back, and to map these in pages of 4 kB
    takes up to a fifth of the step. Some Linux systems use large pages for programs that ask, as the allocator of glibc
    does from version 2.35 on, where the environment says so.

    Returns:
      Variables to set; none on other systems, or where GLIBC_TUNABLES is set: that is what the user wants.
    """
    wanted = "GLIBC_TUNABLES" not in os.environ and _large_pages_on_request()
    return {"GLIBC_TUNABLES": LARGE_PAGES} if wanted else {}


def _large_pages_on_request() -> bool:
    try:
        return "[madvise]" in PAGES.read_text() and _glibc() >= (2, 35)
    except OSError:
        return False


def _glibc() -> tuple[int, ...]:
    """The version of the C library; () if it is another one."""
    try:
        _, version = os.confstr("CS_GNU_LIBC_VERSION").split()  # 'glibc 2.36'
    except (AttributeError, ValueError, OSError):
        return ()
    return tuple(map(int, version.split(".")))


def described(mesh: Mesh) -> str:
    """The devices in words."""
    backend, said = jax.default_backend(), os.environ.get("XLA_FLAGS", "").split()
    brought = [name for name, (flag, value) in CPU_FLAGS.items() if f"{flag}={value}" in said]
    asked = LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "").split(":")
    brought += ["large pages"] * (asked and _large_pages_on_request())
    of_cpu = f" with {' and '.join(brought)}" if brought and backend == "cpu" else ""
    return f"{mesh.size} {backend} device(s){of_cpu}"


def keep_programs() -> None:
    """Lets JAX keep compiled programs in the user's cache folder, apart for each kind of CPU; what the user set stays.

    So the second start of the same run compiles nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder() / f"programs-{_kind_of_cpu()}"))


def _kind_of_cpu() -> str:
    """A name that CPUs share which run each other's programs."""
    return sha256([_about_cpu()], 16)


def _about_cpu() -> str:
    """What the system tells of the processor: its name, and what it can."""
    info, about = Path("/proc/cpuinfo"), [platform.machine(), platform.processor()]
    if info.is_file():
        first, *_ = info.read_text().split("\n\n")
        about += [line for line in first.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(about)


def _xla_knows(flag: str) -> bool:
    """Whether this version has the flag: one that it does not know would end the process."""
    for library in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(flag.removeprefix("--").encode()) >= 0
    return False


def give_memory_back() -> None:
    """Gives the memory that compiling has left free in this process back to the system, where the allocator can."""
    gc.collect()  # programs that are done with, as that of initial parameters, wait for it
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


def giving_memory_back(call: Callable) -> Callable:
    """The function, with `give_memory_back` after its first call: that compiles, or prepares itself otherwise."""
    begun = False

    @functools.wraps(call)
    def with_it(*args):
        nonlocal begun
        result = call(*args)
        if not begun:
            jax.block_until_ready(result)
            give_memory_back()
            begun = True
        return result

    return with_it


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
    """All devices of all processes in a row, along the axis 'data', those of one process next to each other."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,))


def host_device() -> jax.Device | None:
    """This process's CPU as a device; None where JAX was told to use none, as by JAX_PLATFORMS=cuda."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree, placed: host arrays, equal in all processes, or arrays on any devices of theirs."""

    def move(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(_same, out_shardings=sharding)(leaf)
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(move, tree, shardings)


def to_host(tree: Any) -> Any:
    """Copy a tree's device arrays to whole NumPy arrays, in every process. Every process must call it."""

    def copied(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = jax.jit(_same, out_shardings=replicated(leaf.sharding.mesh))(leaf)
        return np.array(leaf)

    return jax.tree.map(copied, tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree, placed, as shapes: what stands for them where there are none yet."""
    return jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), jax.eval_shape(_same, tree), shardings)


def hold(tree: Any, mesh: Mesh, parallel: str) -> Any:
    """The arrays of a tree, equal in all processes, whole on every device, as programs of 'jit' or 'pmap' want them."""
    if parallel == "jit":
        return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))
    copies = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (num_local(mesh), *np.shape(leaf))), tree)
    # along the axis of the programs that use them: these compile again for what lies along another
    return jax.pmap(_same, AXIS, devices=list(mesh.devices.flat))(copies)


def spread(fn: Callable[..., jax.Array], mesh: Mesh, parallel: str) -> Callable[..., np.ndarray]:
    """Compiles a function of independent rows, which the devices share.

    Args:
      fn: `fn(held, shared, rows)`: a tree from `hold`, a small tree that all rows use, and a tree of arrays whose
        first axis is that of rows. Returns an array of as many rows.
      mesh: from `data_mesh`.
      parallel: 'jit' or 'pmap'.

    Returns:
      A function of the same arguments. Its rows are NumPy arrays, all of them in every process, and as many as the
      devices can share evenly; what it returns is a NumPy array of all rows, in every process.
    """
    if parallel == "jit":
        split, compiled = NamedSharding(mesh, PartitionSpec(AXIS)), jax.jit(fn, out_shardings=replicated(mesh))

        @giving_memory_back
        def with_jit(held, shared, rows):
            return np.asarray(compiled(held, shared, place(rows, jax.tree.map(lambda _: split, rows))))

        return with_jit

    def gathered(held, shared, rows):
        return jax.lax.all_gather(fn(held, shared, rows), AXIS, tiled=True)

    compiled = jax.pmap(gathered, AXIS, in_axes=(0, None, 0), devices=list(mesh.devices.flat))
    ours = [device.process_index == jax.process_index() for device in mesh.devices.flat]

    @giving_memory_back
    def with_pmap(held, shared, rows):
        local = jax.tree.map(lambda row: row.reshape(mesh.size, -1, *row.shape[1:])[ours], rows)
        return np.asarray(of_first(compiled(held, shared, local)))

    return with_pmap


def _same(tree: Any) -> Any:
    return tree


def num_local(mesh: Mesh) -> int:
    """How many of the devices are this process's."""
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def of_first(array: jax.Array) -> jax.Array:
    """What the first device of this process holds of an array of pmap."""
    return array.addressable_shards[0].data[0]
