"""Spreading work over devices: one jitted program over a mesh of them all, state replicated, batch split."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import InputError
from .step import Batch, Metrics, Teacher, TrainState, TrainStep

RunSteps = Callable[[TrainState, jax.Array, Teacher | None, Sequence[Batch]], tuple[TrainState, Metrics]]
MIN_EXAMPLES_PER_CPU_DEVICE = 16


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


def data_mesh() -> Mesh:
    """All devices in a row, along the axis 'data'."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises an InputError unless the devices can share a batch evenly."""
    if batch_size % mesh.size:
        raise InputError(
            f"config.train.batch_size={batch_size} must be divisible by the number of devices, {mesh.size}: "
            f"choose {batch_size // mesh.size * mesh.size or mesh.size} or {(batch_size // mesh.size + 1) * mesh.size}."
        )


def compile_steps(step: TrainStep, mesh: Mesh, *, scan: bool | None = None) -> RunSteps:
    """Compiles a training step for a mesh.

    Args:
      step: from `make_train_step`.
      mesh: from `data_mesh`.
      scan: do a sequence of steps in one call of the device. By default on accelerators alone: XLA's CPU backend is
        many times slower at the gradients of convolutions inside a loop. The result is the same.

    Returns:
      `steps(state, key, teacher, batches) -> (state, metrics)`, a step for every batch (NumPy arrays, on this host);
      metrics are stacked, `[len(batches)]`. The state passed in is used up.
    """
    scan = jax.default_backend() != "cpu" if scan is None else scan
    whole = replicated(mesh)
    options: dict[str, Any] = {"donate_argnums": 0, "out_shardings": (whole, whole)}

    def put(batch, *leading):
        sharding = NamedSharding(mesh, PartitionSpec(*leading, "data"))
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

    if scan:
        compiled = jax.jit(
            lambda state, key, teacher, batches: jax.lax.scan(
                lambda state, batch: step(state, key, teacher, batch), state, batches
            ),
            **options,
        )

        def steps(state, key, teacher, batches):
            stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
            return compiled(state, key, teacher, put(stacked, None))

    else:
        compiled = jax.jit(step, **options)

        def steps(state, key, teacher, batches):
            metrics = []
            for batch in batches:
                state, of_step = compiled(state, key, teacher, put(batch))
                metrics.append(of_step)
            return state, {name: [of_step[name] for of_step in metrics] for name in metrics[0]}

    return steps
