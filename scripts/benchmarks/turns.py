"""Processes that a benchmark times in turns; see `worker` for their side of the protocol."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from diffusion_distillation.errors import RunError


class Worker:
    """A process that does work on request."""

    def __init__(self, command: Sequence[str], setup: dict[str, Any]):
        self.began = time.perf_counter()
        # Several processes share an accelerator: each takes only the memory it needs.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        about = self.ask(setup)
        self.name, self.devices, self.platform = about["name"], about["devices"], about["platform"]

    def ask(self, request: Any) -> dict[str, Any]:
        """Send a request and return the answer; see `worker.serve`."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"{self._process.args} ended with status {self._process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


class Timed:
    """Work that is timed in its own process: one call at the start, then one turn after another."""

    def __init__(self, command: Sequence[str], setup: dict[str, Any], what: str, batch: int):
        self.worker, self._request = Worker(command, {**setup, "what": what}), {"what": what, "batch": batch}
        self.first_call_seconds = self.worker.ask({**self._request, "seconds": 0})["seconds"]
        self.start_to_first_seconds = time.perf_counter() - self.worker.began
        self._turns: list[dict[str, Any]] = []

    def turn(self, seconds: float) -> None:
        """Time one turn of this length."""
        self._turns.append(self.worker.ask({**self._request, "seconds": seconds}))

    def result(self) -> dict[str, Any]:
        """End the process and return the medians over its turns."""
        self.worker.close()

        def median(what):
            found = [turn[what] for turn in self._turns]
            return None if None in found else statistics.median(found)

        return {
            "worker": self.worker.name,
            "seconds": median("seconds"),
            "peak_bytes": median("peak_bytes"),
            "first_call_seconds": self.first_call_seconds,
            "start_to_first_seconds": self.start_to_first_seconds,
        }


def take_turns(timed: Sequence[Timed], *, rounds: int, seconds: float) -> None:
    """Time all work in turns of this length, in the opposite order every second time."""
    for turn in range(rounds):
        for one in timed[:: -1 if turn % 2 else 1]:
            one.turn(seconds)
