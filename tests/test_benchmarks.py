"""The benchmarks measure what they say; how much is not for tests to say."""

import re

import pytest
from running import run


@pytest.mark.slow
def test_benchmark_of_data():
    printed = run("benchmarks/data", "--files=30", "--batch_size=16", "--seconds=0.2")
    speeds = re.findall(r"^(\w.*?)  +([\d,]+) images/s", printed, re.MULTILINE)
    assert [name for name, _ in speeds] == ["from memory", "PNG records", "JPEG files", "JPEG files, Pillow alone"]
    assert all(int(speed.replace(",", "")) > 0 for _, speed in speeds)


@pytest.mark.slow
def test_benchmark_of_checkpoints(tmp_path):
    flags = [f"--workdir={tmp_path / 'new'}", "--saves=1", "--width=32", "--blocks=0", "--batch_size=2"]
    printed = run("benchmarks/checkpoints", *flags)
    seconds = r"[\d.]+ s"
    assert re.search(rf"^A state of \d+ MB: {seconds} a step, {seconds} while it is being saved", printed, re.MULTILINE)
