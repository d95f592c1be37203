"""Tuning for XLA on CPUs: devices, XLA flags, compiler options, memory."""

import contextlib
import ctypes
import math
import os
import platform
from pathlib import Path

import jax

MIN_EXAMPLES_PER_DEVICE = 16
FLAGS = {  # of XLA, by what they enable
    "oneDNN": ("--xla_cpu_experimental_onednn_custom_call", "true"),
    "512-bit vectors": ("--xla_cpu_prefer_vector_width", "512"),
}
# With AMX instructions, XLA's oneDNN computes wrong kernel gradients of bfloat16 convolutions if a device has 2 to 4
# images (JAX 0.12). To see it: `ONEDNN_MAX_CPU_ISA=DEFAULT python scripts/checks/numerics.py --dtype=bfloat16`. This
# value allows all instructions but AMX.
MAX_INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")
KNOWS_FLAGS = (0, 12) <= jax.__version_info__ < (0, 13)  # an unknown flag in XLA_FLAGS ends the process
CONTAINER_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time per period, of cgroup v2


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or a quota of "max"
        quota, period = map(int, CONTAINER_QUOTA.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def use_all_cpu_cores(batch_size: int, microbatch_size: int = 0) -> None:
    """Make every CPU core a JAX device. Call this function before JAX starts. Accelerators are not affected.

    Within one CPU device, XLA runs parts of a program on a single core. The devices share a batch, and each microbatch,
    evenly, and each has 16 examples of a batch or more. JAX_NUM_CPU_DEVICES and XLA_FLAGS take precedence.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    shared = microbatch_size or batch_size
    most = max(1, min(usable_cores(), batch_size // MIN_EXAMPLES_PER_DEVICE))
    jax.config.update("jax_num_cpu_devices", max(n for n in range(1, most + 1) if shared % n == 0))


def set_cpu_flags(dtype: str, *, training: bool = True) -> None:
    """Add the XLA_FLAGS that make a network faster on this CPU. Call this function before JAX starts.

    On CPUs with bfloat16 instructions, oneDNN halves the time of a bfloat16 network, and 512-bit vectors help every
    network. On older CPUs both slow it down: without these instructions, oneDNN computes some bfloat16 products by its
    reference code. oneDNN stays off for other types, as JAX cannot cache programs with oneDNN. Flags that XLA_FLAGS
    already sets are kept, and so is ONEDNN_MAX_CPU_ISA.

    Args:
      dtype: type of the network's activations, such as 'bfloat16'.
      training: whether the process computes gradients. If so, oneDNN uses no AMX instructions.
    """
    if training:
        os.environ.setdefault(*MAX_INSTRUCTIONS)
    has_bfloat16 = "avx512_bf16" in describe_cpu()
    helps = {"oneDNN": has_bfloat16 and dtype == "bfloat16", "512-bit vectors": has_bfloat16}
    for name, (flag, value) in FLAGS.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if helps[name] and flag not in flags and KNOWS_FLAGS:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def active_flags() -> list[str]:
    """Return the names of the `FLAGS` that XLA_FLAGS sets."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return [name for name, (flag, value) in FLAGS.items() if f"{flag}={value}" in flags]


def compiler_options(backend: str | None = None) -> dict[str, int] | None:
    """Return options of `jax.jit` for large programs: on CPU, fewer optimizations than XLA's default.

    A training step compiles in 5/6 of the time and runs as fast. Initial parameters compile in half the time.

    Args:
      backend: the backend to compile for, such as 'cpu'. Default: JAX's default backend.
    """
    return {"xla_backend_optimization_level": 1} if (backend or jax.default_backend()) == "cpu" else None


def describe_cpu() -> str:
    """Return the processor's name and features. CPUs with the same description run each other's programs."""
    lines = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        first_core, *_ = info.read_text().split("\n\n")
        lines += [line for line in first_core.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(lines)


def release_memory() -> None:
    """Return memory that the compiler has freed in this process to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)
