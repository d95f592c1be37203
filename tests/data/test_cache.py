"""Processes that share the cache: one makes the arrays, the others wait."""

import contextlib
import errno
import fcntl
import subprocess
import sys

import numpy as np
import pytest
from helpers.runs import OWN_PARTS, environment

from diffusion_distillation.data import cache

# A maker says so and waits for 'go'.
ASK = """
import logging, os, pathlib, sys, time
import numpy as np
from diffusion_distillation.data.cache import cached_arrays

logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
go = pathlib.Path("go")

def make():
    print("makes", flush=True)
    while not go.exists():
        time.sleep(0.01)
    return {"by": np.array([os.getpid()])}

arrays = cached_arrays("numbers", {"of": "test"}, make)
print("has", *arrays["by"], flush=True)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_one_process_makes_and_the_others_wait(tmp_path, monkeypatch, killed):
    """If that process is killed, another one takes over."""
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    command, env = [sys.executable, "-c", ASK], environment(1, OWN_PARTS)
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        first = [process.stdout.readline() for process in processes]
        maker = processes[first.index("makes\n")]
        waiting = [process for process in processes if process is not maker]
        assert sum("which makes numbers-" in line for line in first) == 3
        if killed:
            maker.kill()
            maker.wait()
        (tmp_path / "go").touch()
        printed = [process.communicate(timeout=60)[0].split() for process in (waiting if killed else processes)]
    assert sorted(line[0] for line in printed) == (["has", "has", "makes"] if killed else ["has"] * 4)
    new_maker = next(p for p, line in zip(waiting, printed, strict=True) if line[0] == "makes") if killed else maker
    assert {line[-1] for line in printed} == {str(new_maker.pid)}


def test_without_file_locks_arrays_are_cached_all_the_same(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", flock)
    made = []
    for _ in range(2):
        found = cache.cached_arrays("numbers", {}, lambda: made.append(1) or {"one": np.ones(1)})
        assert found["one"] == [1]
    assert made == [1]
