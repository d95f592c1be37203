"""Two processes, one of which fails or has another config or other data."""

import fcntl
import importlib.machinery
import subprocess
import sys
import types

import jax
import pytest
from helpers.runs import OWN_PARTS, command, free_port, start_together

from diffusion_distillation.runtime import multihost

FLAGS = [
    "--config=configs/digits_base.py",
    "--config.model.name=helpers.own_parts:affine",
    "--config.model.args.width=8",
    "--config.train.num_train_steps=5",
    "--config.model.eval_sampling_num_steps=1",
]


def run_two(*flags, second=()):
    """The exit statuses and the stderr of two processes. `second` are additional flags of the second one."""
    together = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    commands = [
        command("train", *FLAGS, *flags, *own, *together, f"--process_id={index}")
        for index, own in enumerate(((), second))
    ]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    started = start_together(commands, env=OWN_PARTS, **pipes)
    errors = [process.communicate(timeout=120)[1] for process in started]
    return [process.returncode for process in started], errors


def test_a_failure_of_the_first_process_ends_the_second(tmp_path):
    """Only the first process takes the lock of the folder. The second one stops without waiting for a timeout."""
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, errors = run_two(f"--workdir={tmp_path}")
    assert status == [2, 2]
    assert all("error: Another process works in" in error and "Traceback" not in error for error in errors)


def test_a_failure_of_the_first_process_in_training_ends_the_second(tmp_path):
    """The first process cannot write a file. Without a message, the second one would wait for minutes."""
    (tmp_path / "metrics.jsonl").mkdir()
    status, errors = run_two(f"--workdir={tmp_path}")
    assert status == [1, 1]
    assert "error: process 0 stopped: IsADirectoryError" in errors[1]


def test_processes_with_different_configs_stop_and_name_the_difference(tmp_path):
    status, errors = run_two(f"--workdir={tmp_path}", second=["--config.train.learning_rate=0.5"])
    assert status == [2, 2]
    assert any("config.train.learning_rate is 0.002 in process 0 and 0.5 in process 1" in error for error in errors)
    assert not list(tmp_path.iterdir())


def test_processes_with_different_data_stop_and_name_the_difference(tmp_path):
    data = ["--config.dataset.name=helpers.own_parts:stripes", "--config.dataset.args.length=64"]
    status, errors = run_two(*data, f"--workdir={tmp_path}", second=["--config.dataset.args.length=63"])
    assert status == [2, 2]
    assert all("Process 0 reads 64 images" in error and "process 1 reads 63 images" in error for error in errors)


END = """
import sys
from diffusion_distillation.runtime import multihost
multihost.LISTEN_EVERY = 0
assert multihost.start(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
"""


def test_processes_that_listen_all_the_time_end_cleanly():
    """Their listeners must leave JAX's client before Python ends."""
    port = str(free_port())
    started = start_together([[sys.executable, "-c", END, port, str(index)] for index in range(2)])
    assert [process.wait(timeout=120) for process in started] == [0, 0]


ALONE = """
import sys
from diffusion_distillation.runtime import multihost
multihost.WARN_AFTER = 1
multihost.GIVE_UP_AFTER = 3
multihost.start(f"localhost:{sys.argv[1]}", 2, 0)
"""


def test_a_process_stops_waiting_for_others_that_do_not_start():
    """It prints that it waits, and then an error. JAX would print a C++ stack trace."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(free_port())], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Waiting up to 3 s for the other processes to start.",
        "error: The other processes did not start within 3 s. Start all of them.",
    ]


@pytest.mark.parametrize(
    ("variables", "terminal", "together", "warned"),
    [
        (dict(), False, False, False),
        (dict(SLURM_NTASKS="4", SLURM_STEP_NODELIST="a", SLURM_STEP_NUM_TASKS="4"), False, True, False),
        (dict(SLURM_NTASKS="4", SLURM_STEP_NODELIST="a"), True, True, False),
        (dict(SLURM_NTASKS="1", SLURM_STEP_NODELIST="a", SLURM_STEP_NUM_TASKS="1"), False, False, False),
        (dict(SLURM_NTASKS="4"), False, False, True),  # sbatch
        (dict(SLURM_NTASKS="4", SLURM_STEP_NODELIST="a", SLURM_STEP_NUM_TASKS="1"), True, False, True),  # salloc
        (dict(SLURM_NTASKS="4", SLURM_STEP_NODELIST="a", SLURM_PTY_PORT="1"), True, False, True),  # srun --pty
        (dict(SLURM_NTASKS="4", SLURM_STEP_NODELIST="a", SLURM_PTY_PORT="1"), False, True, False),  # srun within it
    ],
)
def test_a_slurm_shell_does_not_wait_for_other_tasks(monkeypatch, caplog, variables, terminal, together, warned):
    """Even if its job has several tasks."""
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PTY_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(multihost.sys, "stdin", types.SimpleNamespace(isatty=lambda: terminal))
    assert multihost.in_slurm_step() == together
    assert ("Start all with srun" in caplog.text) == warned


def test_a_tpu_vm_runs_alone_if_the_user_chooses_another_platform(monkeypatch):
    """JAX would wait for the other hosts of the pod."""
    monkeypatch.setattr("pathlib.Path.glob", lambda folder, pattern: iter([folder / "accel0"]))
    libtpu = types.ModuleType("libtpu")
    libtpu.__spec__ = importlib.machinery.ModuleSpec("libtpu", None)
    monkeypatch.setitem(sys.modules, "libtpu", libtpu)
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: started.append(args) or 1 / 0)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cpu")
        assert not multihost.start() and not started
        jax.config.update("jax_platforms", "tpu,cpu")
        with pytest.raises(ZeroDivisionError):
            multihost.start()
        assert started
    finally:
        jax.config.update("jax_platforms", before)
