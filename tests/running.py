"""Running the scripts as a user does."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from diffusion_distillation.checkpoints import load

ROOT = Path(__file__).parents[1]


def command(script, *flags):
    return [sys.executable, f"scripts/{script}.py", *map(str, flags)]


def run(script, *flags, devices=1, fails=False, env=None):
    """Runs a script in the repository's root and returns what it printed (on stderr, if it is to fail)."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | (env or {})
    done = subprocess.run(command(script, *flags), cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def assert_same(one, other, atol=0.0):
    """Whether the newest sampling parameters of two runs are equal."""
    for a, b in zip(jax.tree.leaves(load(one)[0]), jax.tree.leaves(load(other)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def without_privileges(*command):
    """root may read everything; not so without these capabilities."""
    if os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    assert setpriv, "these tests, run as root, need setpriv of util-linux"
    drop = "-dac_override,-dac_read_search"
    return setpriv, f"--inh-caps={drop}", f"--bounding-set={drop}", *command
