"""Several processes, of one host or of many, that work as one run."""

import atexit
import contextlib
import functools
import importlib.util
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # its client is how processes speak to each other without their devices
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import InputError, RunError
from .devices import AXIS, data_mesh, replicated, start_jax

# Seconds after which a process that is not heard of is taken for dead, and the others stop.
HEARTBEAT_TIMEOUT = int(os.environ.get("DIFFUSION_DISTILLATION_HEARTBEAT", "60"))
LISTEN_EVERY = 0.5  # seconds
PATIENCE = 10, 300  # seconds until a process says that it waits for the others to start, and until it gives up
TOLD = "diffusion_distillation/failed"  # where a process that fails leaves word for the others


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
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    with _waiting():
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=2 * PATIENCE[1],  # longer than ours: when JAX gives up, it prints a C++ stack trace
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), name="other processes", daemon=True)
    listener.start()
    atexit.register(_part, done, listener)
    start_jax()
    _meet()
    return True


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """Print a message if the other processes take long to start; exit if they do not start."""
    met = threading.Event()
    first, last = PATIENCE

    def watch() -> None:
        if met.wait(first):
            return
        print(f"Waiting up to {last} s for the other processes to start.", file=sys.stderr, flush=True)
        if not met.wait(last - first):
            print(f"error: The other processes did not start within {last} s: start all of them.", file=sys.stderr)
            exit_now(1)

    threading.Thread(target=watch, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def is_main() -> bool:
    """Whether this process is the one that prints and writes what all have in common."""
    return jax.process_index() == 0


def print_on_main(line: str) -> None:
    """Prints a line, in the main process."""
    if is_main():
        print(line, flush=True)


def all_max(values: Sequence[int]) -> list[int]:
    """The largest of each value over all processes, so that they decide alike. Every process must call it."""
    return all_max_async(values)()


def all_max_async(values: Sequence[int]) -> Callable[[], list[int]]:
    """Begins what `all_max` does and does not wait: the function that is returned does.

    The devices find the answer once they are done with what they were given before. Every process must call it, and
    in the same place between the programs that it gives to its devices.
    """
    if jax.process_count() == 1:
        return lambda: list(values)
    mesh = data_mesh()
    rows = np.tile(np.array(values, np.int32), (jax.local_device_count(), 1))
    of_all = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), rows)
    answer = _max_program(mesh)(of_all)
    return lambda: np.asarray(answer).tolist()


def all_gather(values: Sequence[int]) -> list[list[int]]:
    """The values of every process, in their order. Every process must call it."""
    if jax.process_count() == 1:
        return [list(values)]
    return multihost_utils.process_allgather(np.array(values, np.int32)).tolist()


def broadcast(text: str) -> str:
    """The text that the main process has. Every process must call it."""
    if jax.process_count() == 1:
        return text
    [length] = all_max([len(text.encode()) if is_main() else 0])
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
    result, message, of_input = json.loads(broadcast(json.dumps(told)))
    if error is not None:
        raise error
    if message is not None:
        raise InputError(message) if of_input else RunError(f"The main process could not go on: {message}")
    return result


def barrier(where: str) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def stop_others(message: str, status: int) -> None:
    """Lets the other processes end with this status too, and say why; or else they would wait for this one.

    Returns once they know, or after some seconds. Then end with `exit_now`: a proper end would wait for them.
    """
    client = global_state.client
    if client is None:
        return
    with contextlib.suppress(Exception):  # another one failed first
        client.key_value_set(TOLD, json.dumps({"process": jax.process_index(), "message": message, "status": status}))
    _leave(client)


def stop_all(message: str, status: int) -> NoReturn:
    """Ends this process with an exit status, and the others with it."""
    if global_state.client is None:
        sys.exit(status)
    stop_others(message, status)
    exit_now(status)


def _part(done: threading.Event, listener: threading.Thread) -> None:
    """Waits for the others at the end, and listens to them until then.

    A thread that is still in the client when Python ends takes the process down with it (SIGABRT).
    """
    jax.distributed.shutdown()
    done.set()
    listener.join()


def _listen(done: threading.Event) -> None:
    """Ends this process when another one tells that it failed."""
    client = global_state.client
    while not done.wait(LISTEN_EVERY):
        try:
            told = json.loads(client.key_value_try_get(TOLD))
        except Exception:  # nothing was told, or nobody is there any more: then the heartbeat ends the process
            continue
        if told["process"] == jax.process_index():
            return
        print(f"error: process {told['process']} stopped: {told['message']}", file=sys.stderr)
        _leave(client)
        exit_now(told["status"])


def _leave(client: Any) -> None:
    """Says that this process knows; the first one, through which all speak, waits until the others do."""
    with contextlib.suppress(Exception):
        client.key_value_set(f"{TOLD}/heard/{jax.process_index()}", "")
        deadline = time.monotonic() + 5
        while is_main() and time.monotonic() < deadline:
            if len(client.key_value_dir_get(f"{TOLD}/heard/")) == jax.process_count():
                break
            time.sleep(0.1)


def exit_now(status: int) -> NoReturn:
    """Ends this process from any of its threads, and waits for nothing but what it has printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@functools.cache
def _max_program(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows.max(axis=0), out_shardings=replicated(mesh))


def _meet() -> None:
    """Lets all devices communicate once, and one of each process.

    On CPU the first time must find every process within 30 seconds; later on they wait for each other for minutes. Now
    they are together, which they will not be when some have read their data and compiled sooner than others.
    """
    barrier("start")
    all_max([0])


def _in_a_cluster() -> bool:
    """Whether JAX finds the other processes by itself: on SLURM by its variables, on a TPU VM by its metadata."""
    on_a_tpu_vm = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return _in_a_slurm_step() or (on_a_tpu_vm and importlib.util.find_spec("libtpu") is not None)


def _in_a_slurm_step() -> bool:
    """Whether SLURM started this process together with others, and not as the shell of a job with several tasks.

    A shell is a step with one task (salloc), or no step (sbatch), or has a terminal (srun --pty). With srun --pty, the
    shells of the other tasks have no terminal and exit.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    beside_others = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", tasks)) > 1
    in_a_shell = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    if tasks > 1 and not (beside_others and not in_a_shell):
        logging.warning("This SLURM job has %d tasks, but this process runs alone. Start all with srun.", tasks)
    return beside_others and not in_a_shell
