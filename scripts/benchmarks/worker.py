"""How `benchmark.py` speaks to the processes whose work it times: a line of JSON each way. No package is needed."""

import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def product_size(platform: str) -> int:
    """The rows and columns of the matrices whose product is timed: as many as bring a device to its best rate."""
    return 2048 if platform == "cpu" else 8192


def serve(make: Callable[[dict[str, Any]], Any], name: str) -> None:
    """Answers requests until stdin ends, and computes only while it is asked to.

    The first line is the setup; the answer is the name, and the `devices` and `platform` of `make(setup)`. A line
    'error' asks for its `error()`. Each other names work, {'what': 'sample 4', 'batch': 16, 'seconds': 1}, of which
    `sample(16, 4)` is the method to time, again and again for so long, after a call that does not count: the first one
    after a pause is slower, as the host of a virtual machine takes free memory back meanwhile. A method that does its
    work several times in a call returns how often. The answer is the median of the seconds, and the most bytes of
    memory that the process has held: of the accelerator's, as `accelerator_memory()` says, or of the host's on CPU.
    With 'seconds': 0 it is a single call, and the time of that.
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
    """Begins anew with `peak_memory`; Linux alone can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory() -> int | None:
    """The most bytes that this process has held; None where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None
