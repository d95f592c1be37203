"""A run's folder: config.json, metrics.jsonl, checkpoints/, samples/."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .. import multihost
from ..errors import InputError

# What may differ when a run is taken up again: it does not shape the result.
OPERATIONAL = (
    "eval",
    "model.args.remat",
    "train.parallel",
    "train.microbatch_size",
    "train.shard_state",
    "train.substeps",
    "train.log_loss_every_steps",
    "train.checkpoint_every_secs",
    "train.retain_checkpoint_every_steps",
    "train.eval_every_steps",
)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of Lustre mounted without them, and of some FUSE systems


def open_run(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder of a run and writes its config.json, or checks that the one that is there is of this config.

    Raises:
      InputError: if the folder holds a run of another config.
    """
    path = workdir / "config.json"
    if path.exists():
        differences = [
            f"config.{field} is {old!r} there and {new!r} here"
            for field, old, new in _differences(json.loads(path.read_text()), json.loads(config.to_json()))
            if not any(field == name or field.startswith(name + ".") for name in OPERATIONAL)
        ]
        if differences:
            raise InputError(
                f"{str(workdir)!r} holds a run of another config: {'; '.join(differences)}. "
                "Give another --workdir, or delete this one to start again."
            )
    if multihost.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(config.to_json(indent=2) + "\n")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes from working in a run's folder; the system lifts the lock when the process ends.

    Raises:
      InputError: if another process works in it that is not of this run.
    """
    if not multihost.is_main():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"Another process works in {str(workdir)!r} ({file.read().strip()}). Wait for it, stop it, or give "
                "another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logging.warning("%s: its file system has no locks; take care that no other run works there.", workdir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


class MetricsLog:
    """metrics.jsonl: one JSON object a line, with its `step`. A resumed run goes on from its step: later lines go."""

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        # a line without its end was being written when the run was killed
        kept = [line for line in self._lines() if line.endswith("\n") and json.loads(line)["step"] <= step]
        if multihost.is_main():
            self.path.write_text("".join(kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        if not multihost.is_main():
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.exists() else []


def _differences(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{field}.{name}" if field else name)
    elif old != new:
        yield field, old, new
