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

PRODUCT = 2048  # of matrices with so many rows and columns


def serve(make: Callable[[dict[str, Any]], Any], name: str) -> None:
    """Answers requests until stdin ends, and computes only while it is asked to.

    The first line is the setup; the answer is the name, and the `devices` and `platform` of `make(setup)`. A line
    'error' asks for its `error()`. Each other names work, {'what': 'sample 4', 'batch': 16, 'seconds': 1}, of which
    `sample(16, 4)` is the method to time, again and again for so long, after a call that does not count: the first one
    after a pause is slower, as the host of a virtual machine takes free memory back meanwhile. The answer is the
    median of the seconds, and the most bytes of memory that the process has held. With 'seconds': 0 it is a single
    call, and the time of that.
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
        while not seconds or sum(seconds) < request["seconds"]:
            began = time.perf_counter()
            do()
            seconds.append(time.perf_counter() - began)
        _answer({"seconds": statistics.median(seconds), "peak_bytes": peak_memory()})


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
