"""Run as several processes, on one host or many."""

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
from jax._src.distributed import global_state  # its client lets processes communicate without their devices
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import InputError, RunError
from .devices import AXIS, data_mesh, replicated, start_jax

# Seconds without a sign of life after which a process counts as dead, and the other ones stop.
HEARTBEAT_TIMEOUT = int(os.environ.get("DIFFUSION_DISTILLATION_HEARTBEAT", "60"))
LISTEN_EVERY = 0.5  # seconds
WARN_AFTER = 10  # seconds of waiting for the other processes to start
GIVE_UP_AFTER = 300  # seconds
LEAVE_WITHIN = 5  # seconds
FAILURE_KEY = "diffusion_distillation/failed"  # under which a process that fails leaves a message
HEARD_KEY = f"{FAILURE_KEY}/heard/"  # below which the other processes confirm it


def start(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Connect the processes of a run. Call this function before JAX starts.

    SLURM jobs with several tasks, TPU VMs and TPU pods, also on GKE, need no arguments.

    Args:
      coordinator_address: host:port of process 0; the port must be free there.
      num_processes: on all hosts together.
      process_id: 0 to num_processes - 1, different for each process.

    Returns:
      False if there is nothing to connect: the run has one process. Otherwise JAX has started.
    """
    detect = coordinator_address is None
    if detect and not _in_cluster():
        return False
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM itself
    with _limit_on_waiting():
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=2 * GIVE_UP_AFTER,  # longer than ours: JAX would print a C++ stack trace
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), name="other processes", daemon=True)
    listener.start()
    atexit.register(_disconnect, done, listener)
    start_jax()
    _first_communication()
    return True


@contextlib.contextmanager
def _limit_on_waiting() -> Iterator[None]:
    """Print a message if the other processes take long to start; exit if they do not start."""
    started = threading.Event()

    def watch() -> None:
        if started.wait(WARN_AFTER):
            return
        print(f"Waiting up to {GIVE_UP_AFTER} s for the other processes to start.", file=sys.stderr, flush=True)
        if not started.wait(GIVE_UP_AFTER - WARN_AFTER):
            print(
                f"error: The other processes did not start within {GIVE_UP_AFTER} s. Start all of them.",
                file=sys.stderr,
            )
            exit_now(1)

    threading.Thread(target=watch, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        started.set()


def is_main() -> bool:
    """Whether this is the main process, which prints and writes for all of them."""
    return jax.process_index() == 0


def print_on_main(line: str) -> None:
    """Print a line in the main process."""
    if is_main():
        print(line, flush=True)


def all_max(values: Sequence[int]) -> list[int]:
    """The maximum of each value over all processes, for decisions in common. Every process must call this function.

    >>> all_max([3, 0])
    [3, 0]
    """
    return all_max_async(values)()


def all_max_async(values: Sequence[int]) -> Callable[[], list[int]]:
    """Start `all_max` without waiting for it.

    The devices compute the result after the programs that are already in their queues. Every process must call this
    function, at the same point between the programs for its devices.

    Returns:
      A function that waits for the result and returns it.
    """
    if jax.process_count() == 1:
        return lambda: list(values)
    mesh = data_mesh()
    rows = np.tile(np.array(values, np.int32), (jax.local_device_count(), 1))
    all_rows = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), rows)
    maximum = _max_program(mesh)(all_rows)
    return lambda: np.asarray(maximum).tolist()


@functools.cache
def _max_program(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows.max(axis=0), out_shardings=replicated(mesh))


def all_gather(values: Sequence[int]) -> list[list[int]]:
    """The values of every process, in the order of the processes. Every process must call this function.

    >>> all_gather([3, 0])
    [[3, 0]]
    """
    if jax.process_count() == 1:
        return [list(values)]
    return multihost_utils.process_allgather(np.array(values, np.int32)).tolist()


def broadcast(text: str) -> str:
    """The text that the main process passes. Every process must call this function."""
    if jax.process_count() == 1:
        return text
    [length] = all_max([len(text.encode()) if is_main() else 0])
    content = np.frombuffer(text.encode()[:length].ljust(length), np.uint8)
    return multihost_utils.broadcast_one_to_all(content).astype(np.uint8).tobytes().decode()


def on_main(act: Callable[[], Any]) -> Any:
    """Call a function in the main process only, and return its result in every process.

    Every process must call this function.

    Args:
      act: returns a value of JSON's types.

    Raises:
      InputError: in every process, if `act` raises one.
      RunError: in the other processes, if `act` raises anything else. The main process raises that error itself.
    """
    if jax.process_count() == 1:
        return act()
    result = error = None
    if is_main():
        try:
            result = act()
        except Exception as raised:
            error = raised
    outcome = [result, None if error is None else str(error), isinstance(error, InputError)]
    result, message, is_input_error = json.loads(broadcast(json.dumps(outcome)))
    if error is not None:
        raise error
    if message is not None:
        raise InputError(message) if is_input_error else RunError(f"The main process failed: {message}")
    return result


def barrier(name: str) -> None:
    """Wait until every process has called this function with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stop_all(message: str, status: int) -> NoReturn:
    """End this process and the other ones with an exit status."""
    if global_state.client is None:
        sys.exit(status)
    stop_others(message, status)
    exit_now(status)


def stop_others(message: str, status: int) -> None:
    """End the other processes with an exit status and a message. Otherwise they would wait for this process.

    Returns once they have received it, or after some seconds. Then end with `exit_now`: Python's regular exit would
    wait for them.
    """
    client = global_state.client
    if client is None:
        return
    failure = {"process": jax.process_index(), "message": message, "status": status}
    with contextlib.suppress(Exception):  # another process failed first
        client.key_value_set(FAILURE_KEY, json.dumps(failure))
    _confirm_failure(client)


def exit_now(status: int) -> NoReturn:
    """End this process, from any of its threads, after flushing its output."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _listen(done: threading.Event) -> None:
    """End this process when another one reports a failure."""
    client = global_state.client
    while not done.wait(LISTEN_EVERY):
        try:
            failure = json.loads(client.key_value_try_get(FAILURE_KEY))
        except Exception:  # no failure, or no process is left; then the heartbeat ends this process
            continue
        if failure["process"] == jax.process_index():
            return
        print(f"error: process {failure['process']} stopped: {failure['message']}", file=sys.stderr)
        _confirm_failure(client)
        exit_now(failure["status"])


def _confirm_failure(client: Any) -> None:
    """Confirm a failure. The main process, which the others communicate through, waits until all have confirmed it."""
    with contextlib.suppress(Exception):
        client.key_value_set(f"{HEARD_KEY}{jax.process_index()}", "")
        deadline = time.monotonic() + LEAVE_WITHIN
        while is_main() and time.monotonic() < deadline:
            if len(client.key_value_dir_get(HEARD_KEY)) == jax.process_count():
                break
            time.sleep(0.1)


def _disconnect(done: threading.Event, listener: threading.Thread) -> None:
    """Wait for the other processes at the end, and listen to them until then.

    If a thread still used the client when Python ends, it would abort the process (SIGABRT).
    """
    jax.distributed.shutdown()
    done.set()
    listener.join()


def _first_communication() -> None:
    """Let all devices communicate once, and one device of each process.

    On CPU, the first communication must find every process within 30 seconds; later ones wait for minutes. The
    processes are together now. Later, some may have read their data and compiled sooner than others.
    """
    barrier("start")
    all_max([0])


def _in_cluster() -> bool:
    """Whether JAX can find the other processes itself: on SLURM by its variables, on a TPU VM by its metadata."""
    platforms = jax.config.jax_platforms
    uses_tpu = not platforms or "tpu" in platforms.split(",")
    on_tpu_vm = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return in_slurm_step() or (uses_tpu and on_tpu_vm and importlib.util.find_spec("libtpu") is not None)


def in_slurm_step() -> bool:
    """Whether SLURM started this process together with other ones, and not as the shell of a job with several tasks.

    A shell is a step with one task (salloc), or no step (sbatch), or has a terminal (srun --pty). With srun --pty, the
    shells of the other tasks have no terminal and exit.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    step_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", tasks))
    in_shell = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    together = "SLURM_STEP_NODELIST" in os.environ and step_tasks > 1 and not in_shell
    if tasks > 1 and not together:
        logging.warning("This SLURM job has %d tasks, but this process runs alone. Start all with srun.", tasks)
    return together
