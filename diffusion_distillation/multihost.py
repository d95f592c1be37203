"""Several processes, of one host or of many, that work as one run."""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .errors import InputError, RunError

HEARTBEAT_TIMEOUT = 60  # seconds after which a process that is not heard of is taken for dead, and the others stop


def start(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Connects the processes of a run; call it before JAX starts. A run of one process goes on alone.

    SLURM jobs of several tasks and TPU VMs and pods, GKE's too, need no arguments.

    Args:
      coordinator_address: host:port of process 0, which must be free there.
      num_processes: of all hosts.
      process_id: 0 to num_processes - 1, another one for each.

    Returns:
      Whether there was something to connect; JAX has started then.
    """
    detect = coordinator_address is None
    if detect and not _in_a_cluster():
        return False
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        cluster_detection_method=None if detect else "deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
    _meet()
    return True


def is_main() -> bool:
    """Whether this process is the one that prints and writes what all have in common."""
    return jax.process_index() == 0


def largest(values: Sequence[int]) -> list[int]:
    """The largest of each value over all processes, so that they decide alike. Every process must call it."""
    if jax.process_count() == 1:
        return list(values)
    return multihost_utils.process_allgather(np.array(values, np.int32)).max(axis=0).tolist()


def of_main(text: str) -> str:
    """The text that the main process has. Every process must call it."""
    if jax.process_count() == 1:
        return text
    [length] = largest([len(text.encode()) if is_main() else 0])
    own = np.frombuffer(text.encode()[:length].ljust(length), np.uint8)
    return multihost_utils.broadcast_one_to_all(own).astype(np.uint8).tobytes().decode()


def on_main(act: Callable[[], Any]) -> Any:
    """Lets the main process act, and no other, and gives its result to all. Every process must call it.

    Args:
      act: returns what JSON can hold.

    Raises:
      InputError: in every process, if the main one raised it.
      RunError: in the others, if the main process raised anything else; there, it is what `act` raised.
    """
    if jax.process_count() == 1:
        return act()
    result = error = None
    if is_main():
        try:
            result = act()
        except Exception as raised:
            error = raised
    told = [result, None if error is None else str(error), isinstance(error, InputError)]
    result, message, of_input = json.loads(of_main(json.dumps(told)))
    if error is not None:
        raise error
    if message is not None:
        raise InputError(message) if of_input else RunError(f"The main process could not go on: {message}")
    return result


def wait_for_all(where: str) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _meet() -> None:
    """Lets all devices communicate once, and one of each process.

    On CPU the first time must find every process within 30 seconds; later on they wait for each other for minutes. Now
    they are together, which they will not be when some have read their data and compiled sooner than others.
    """
    wait_for_all("start")
    split = NamedSharding(Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices"))
    ones = jax.make_array_from_callback((jax.device_count(),), split, lambda _: np.ones(1))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def _in_a_cluster() -> bool:
    """Whether JAX finds the other processes by itself: on SLURM by its variables, on a TPU VM by its metadata."""
    several_slurm_tasks = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    on_a_tpu_vm = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return several_slurm_tasks or (on_a_tpu_vm and importlib.util.find_spec("libtpu") is not None)
