"""Run the scripts: as a user does, or in this process, which saves the seconds that a start takes."""

import contextlib
import importlib
import io
import json
import logging
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl import app
from absl import logging as absl_logging
from absl.testing import flagsaver

from diffusion_distillation.checkpoints import load

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that a test waits for an event

# A small U-Net for tests that are not about the network. Its training step does not depend on the number of updates, so
# runs of any length find it compiled.
TINY = [
    "--config.model.args.ch_mult=(1,)",
    "--config.model.args.attn_resolutions=()",
    "--config.model.args.emb_ch=32",
    "--config.model.eval_sampling_num_steps=4",
    "--config.train.batch_size=32",
    "--config.train.learning_rate_anneal_type=none",
    "--config.train.log_loss_every_steps=10",
]
# A network of own_parts.py that compiles in no time, for tests that need no U-Net.
AFFINE = ["--config.model.name=helpers.own_parts:affine", "--config.model.args.width=64"]
OWN_PARTS = {"PYTHONPATH": f"{ROOT}/tests:{ROOT}"}  # has own_parts.py


def command(script, *flags):
    return [sys.executable, f"scripts/{script}.py", *map(str, flags)]


def run(script, *flags, **kwargs):
    """Run a script in the repository's root. Returns its stdout, or its stderr if it is to fail."""
    return _run(command(script, *flags), **kwargs)


def _run(arguments, *, devices=1, fails=False, env=None):
    done = subprocess.run(arguments, cwd=ROOT, env=environment(devices, env), capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def run_together(commands, **kwargs):
    """Like `run`, for several commands, which one process runs one after another. See together.py."""
    arguments = json.dumps([list(map(str, line)) for line in commands])
    return _run([sys.executable, "tests/helpers/together.py", arguments], **kwargs)


def start(script, *flags, devices=1, prefix=(), env=None):
    """Start a script. Its stdout and stderr are pipes."""
    return subprocess.Popen(
        [*prefix, *command(script, *flags)],
        cwd=ROOT, env=environment(devices, env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_together(commands, *, devices=1, env=None, **kwargs):
    """Start the processes of one run. See `all_cores`."""
    with all_cores():
        return [subprocess.Popen(one, cwd=ROOT, env=environment(devices, env), **kwargs) for one in commands]


@contextlib.contextmanager
def all_cores():
    """Processes that are started within the context may use all cores, like pytest-xdist's main process.

    Processes that wait for each other spin. On the single core of a test's process, they are twenty times as slow.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def environment(devices, env=None):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | (env or {})


def call(script, *flags, fails=False):
    """Like `run`, in this process and on all devices that it has."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(script, *flags)
    assert (status != 0) == fails, out.getvalue() + err.getvalue()
    return err.getvalue() if fails else out.getvalue()


def main(script, *flags):
    """Do what `python scripts/<script>.py` does, and restore what it changes here. Returns the exit status."""
    app.define_help_flags()
    importlib.import_module("grain")  # it defines flags, once, when it is imported
    of_absl = absl_logging.get_absl_handler()
    changed = [(sys, "argv", command(script, *flags)[1:]), (sys, "path", [*sys.path])]
    changed += [(sys, name, getattr(sys, name)) for name in ("stdout", "stderr", "unraisablehook")]
    changed += [(logging.root, "handlers", [*logging.root.handlers]), (of_absl, "filters", [*of_absl.filters])]
    handler = of_absl.python_handler
    changed += [(handler, name, getattr(handler, name)) for name in ("stream", "formatter")]
    with contextlib.ExitStack() as stack:
        for where, name, value in changed:
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(flagsaver.flagsaver())
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
                return 1
            return end.code or 0
    raise AssertionError("a script ends with its exit status")


def wait_until(condition, *processes):
    """Wait until a condition is true, and return its value. The processes must keep running."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert all(process.poll() is None for process in processes), "a process ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)
    return found


def read_until(stream, text):
    """Read the lines of a pipe up to the first one that contains a text."""
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the process ended without printing {text!r}")


def steps_saved(workdir):
    """The steps of the checkpoints that a run has finished."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def free_port():
    """An unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def assert_same(one, other, atol=0.0):
    """Check that the newest sampling parameters of two runs are equal."""
    for a, b in zip(jax.tree.leaves(load(one)[0]), jax.tree.leaves(load(other)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def without_privileges(*command):
    """The command, without the capabilities by which root may read and write everything."""
    if os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    assert setpriv, "these tests, run as root, need setpriv of util-linux"
    drop = "-dac_override,-dac_read_search"
    return setpriv, f"--inh-caps={drop}", f"--bounding-set={drop}", *command
