"""Running the scripts as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(script, *flags):
    return [sys.executable, f"scripts/{script}.py", *map(str, flags)]


def run(script, *flags, devices=1, fails=False, env=None):
    """Runs a script in the repository's root and returns what it printed (on stderr, if it is to fail)."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | (env or {})
    done = subprocess.run(command(script, *flags), cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout
