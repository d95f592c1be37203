"""The protocol between a benchmark and the processes that it times: one line of JSON each way."""

import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def product_size(platform: str) -> int:
    """Rows and columns of the matrices to multiply, large enough for a device's best rate."""
    return 2048 if platform == "cpu" else 8192


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The distance of an array from the expected one, relative to its norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def serve(make: Callable[[dict[str, Any]], Any], name: str) -> None:
    """Answer requests on stdin until it ends. The process computes only while it answers.

    The first line is the setup; the answer has the name, and the `devices` and `platform` of `make(setup)`. The line
    "error" requests its `error()`. Every other line names work, {"what": "sample 4", "batch": 16, "seconds": 1}: the
    method `sample(16, 4)` is called repeatedly for this many seconds. One more call before them is not timed, since the
    first call after a pause is slower: the host of a virtual machine may have reclaimed free memory. A method that does
    its work several times per call returns how often. The answer has the median seconds and the peak memory: the
    accelerator's, from `accelerator_memory()`, or on CPUs the process's. With 0 seconds, a single call is timed.

    Args:
      make: makes the work from the setup.
      name: of the library, for tables.
    """
    work = make(json.loads(sys.stdin.readline()))
    _answer({"name": name, "devices": work.devices, "platform": work.platform})
    for line in sys.stdin:
        request = json.loads(line)
        if request == "error":
            _answer({"error": work.error()})
            continue
        name, *arguments = request["what"].split()
        forget_peak_memory()
        do = functools.partial(getattr(work, name), request["batch"], *map(int, arguments))
        if request["seconds"]:
            do()
        seconds: list[float] = []
        started = time.perf_counter()
        while not seconds or time.perf_counter() - started < request["seconds"]:
            began = time.perf_counter()
            times = do() or 1
            seconds.append((time.perf_counter() - began) / times)
        peak = peak_memory() if work.platform == "cpu" else work.accelerator_memory()
        _answer({"seconds": statistics.median(seconds), "peak_bytes": peak})


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def forget_peak_memory() -> None:
    """Reset what `peak_memory` returns. Only Linux can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory() -> int | None:
    """Peak bytes of this process's memory; None where the system does not report them."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None
