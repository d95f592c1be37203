"""Describe how a run was made: versions, commit, command, devices and date."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ..version import __version__
from .files import shipped_folder

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def describe_environment() -> dict[str, Any]:
    """Describe this process in JSON's types. Call this function after JAX has started.

    Returns:
      `time` (ISO 8601, UTC), `command`, `versions` (name to version, of this package, Python and the libraries
      that shape results), `commit` (of the package's source, with `-dirty` if it was edited; None outside of a git
      checkout), `processes`, and `devices` (kind and count over all processes).
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *sys.argv[1:]]).encode(errors="backslashreplace").decode(),
        "versions": {
            "diffusion_distillation": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "commit": _commit(),
        "processes": jax.process_count(),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
    }


def _program() -> list[str]:
    """The program of the command line. The package's own commands are named so that they run in every folder."""
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.resolve().parent == shipped_folder("scripts").resolve():
        return ["diffusion_distillation", script.stem]
    return [sys.argv[0]]


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
