"""What tunes a host on whose CPU XLA runs: its devices, flags of XLA, options of the compiler, memory."""

import ctypes
import gc
import mmap
import os
import platform
from pathlib import Path

import jax
import jaxlib

MIN_EXAMPLES_PER_DEVICE = 16
FLAGS = {  # of XLA, by what they enable
    "oneDNN": ("--xla_cpu_experimental_onednn_custom_call", "true"),
    "512-bit vectors": ("--xla_cpu_prefer_vector_width", "512"),
}
LARGE_PAGES = "glibc.malloc.hugetlb=1"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # '[always] madvise never' and the like


def use_all_cpu_cores(batch_size: int) -> None:
    """Make every CPU core a JAX device. Call it before JAX starts; accelerators are not affected.

    Within one CPU device, XLA runs parts of a program on a single core. The number of devices divides `batch_size` and
    leaves each device 16 examples or more. JAX_NUM_CPU_DEVICES and XLA_FLAGS take precedence.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(1, min(cores, batch_size // MIN_EXAMPLES_PER_DEVICE))
    jax.config.update("jax_num_cpu_devices", max(n for n in range(1, most + 1) if batch_size % n == 0))


def set_cpu_flags(dtype: str) -> None:
    """Add to XLA_FLAGS what makes a network faster on this CPU. Call it before JAX starts.

    oneDNN halves the time of a bfloat16 network. It stays off for others, as JAX cannot cache the programs that use it.
    512-bit vectors help CPUs that compute with bfloat16, and slow down older ones. A flag that XLA_FLAGS already sets
    stays as it is.

    Args:
      dtype: type of the network's activations, such as 'bfloat16'.
    """
    helps = {"oneDNN": dtype == "bfloat16", "512-bit vectors": "avx512_bf16" in describe_cpu()}
    for name, (flag, value) in FLAGS.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if helps[name] and flag not in flags and _xla_knows(flag):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def active_flags() -> list[str]:
    """Return the names of the `FLAGS` that XLA_FLAGS sets, and 'large pages' where memory has them."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    names = [name for name, (flag, value) in FLAGS.items() if f"{flag}={value}" in flags]
    asked = LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "").split(":")
    return names + ["large pages"] * (asked and _large_pages_on_request())


def compiler_options(backend: str | None = None) -> dict[str, int] | None:
    """Return options of `jax.jit` for large programs: on CPU, fewer optimizations than XLA's default.

    A training step compiles in five sixths of the time and runs as fast; initial parameters compile in half the time.

    Args:
      backend: that compiles; by default JAX's default backend.
    """
    return {"xla_backend_optimization_level": 1} if (backend or jax.default_backend()) == "cpu" else None


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


def describe_cpu() -> str:
    """Return the processor's name and features. CPUs with the same description run each other's programs."""
    lines = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        first_core, *_ = info.read_text().split("\n\n")
        lines += [line for line in first_core.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(lines)


def _xla_knows(flag: str) -> bool:
    """Whether this version has the flag: one that it does not know would end the process."""
    for library in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(flag.removeprefix("--").encode()) >= 0
    return False


def release_memory() -> None:
    """Return memory that the compiler has freed in this process to the system, where the C library can."""
    gc.collect()  # programs that are no longer used, such as that of the initial parameters, wait for it
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)
