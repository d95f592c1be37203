"""Files made to exhaust memory: each is an error of one line, and takes little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import make_model
from helpers.runs import ROOT, environment

from diffusion_distillation.interop import archive, diffusers
from diffusion_distillation.runtime.files import as_path

MOST = 192  # MiB; safetensors itself reads headers of up to 100 MB
GIB = 2**30
MILLION = 10**6
OF_A_GIB = {"dtype": "F32", "shape": [GIB // 4], "data_offsets": [0, GIB]}
OF_A_MIB = {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}


def header(described, length=None):
    """The header of a safetensors file, with the length that it claims."""
    content = json.dumps(described).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content


def lists(count, content=b""):
    """The start of a msgpack list with `count` elements."""
    return b"\xdd" + count.to_bytes(4, "big") + content


def inside(content):
    """An array of flax in msgpack, with this content."""
    return b"\x81\xa1a\xc9" + len(content).to_bytes(4, "big") + b"\x01" + content


# The content of a file, the size to which zeros extend it, and the message.
WEIGHTS = {
    "header of 2^60 bytes": (header({}, 2**60), 0, "header too large"),
    "header of 99 MB": (header({}, 99 * MILLION), GIB, "invalid JSON in header"),
    "header that is cut off": (header({"a": OF_A_MIB}, 50 * MILLION), 0, "invalid header length"),
    "an array that is not there": (header({"a": OF_A_GIB}), 0, "not fully covered"),
    "two arrays in one place": (header({"a": OF_A_GIB, "b": OF_A_GIB}), GIB, "invalid offset"),
    "many arrays in one place": (header({f"{i}": OF_A_MIB for i in range(2000)}), 2**21, "invalid offset"),
}
CHECKPOINTS = {
    "zeros": (b"", GIB, "more after its first object"),
    "lists of four billion": (lists(2**32 - 1) * 5, 0, "exceeds max_array_len"),
    "ten million lists": (lists(10 * MILLION, b"\x90" * 10 * MILLION), 0, "exceeds max_array_len"),
    "ten million lists, in an array": (inside(lists(10 * MILLION, b"\x90" * 10 * MILLION)), 0, "exceeds max_array_len"),
    "lists of lists": (lists(2000, lists(2000, b"\x90" * 2000) * 2000), 0, "more than 524,288 objects"),
    "lists of lists, in arrays": (b"\xdc\x02\x00" + inside(lists(2000, b"\x90" * 2000)) * 512, 0, "more than 524,288"),
    "deep": (b"\x91" * 100_000, 0, "StackError"),
    "deep and wide": (lists(2048, b"\xa2no" * 2047) * 2000, 0, "StackError"),
}
CONFIGS = {
    "of 1 GiB": (b"{}", GIB, "has 1,073,741,824 bytes; a JSON file may have at most 1,048,576"),
    "lists, deep": (b"[" * 100_000, 0, "cannot be read as JSON (it is nested too deeply"),
    "objects, deep": (b'{"a":' * 100_000, 0, "cannot be read as JSON (it is nested too deeply"),
    "as many lists as fit": (b"[" + b"[]," * 349_000 + b"[]]", 0, "it is of type list, not an object"),
}
HUGE = {  # numbers in the configs of a network and a scheduler
    "layers_per_block": (10**9, "num_res_blocks=1000000000 must be 32 at most"),
    "sample_size": (10**30, "must be 1,048,576 at most"),
    "in_channels": (10**10, "out_ch=10000000000 must be 1,048,576 at most"),
    "time_embedding_dim": (10**10, "emb_ch=10000000000 must be 1,048,576 at most"),
    "num_class_embeds": (10**10, "num_classes=10000000000 must be 1,048,576 at most"),
    "num_train_timesteps": (10**9, "needs 1 to 1,048,576 steps; got num_steps=1000000000"),
}


def written(path, content, size=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(max(size, len(content)))  # zeros, without using disk space
    return path


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which reports peak memory")
def test_files_made_to_exhaust_memory_are_refused_with_little(tmp_path):
    cases = {}  # messages by path
    archive.write(as_path(tmp_path / "good"), *make_model(num_classes=1, unet=True))
    config = (tmp_path / "good" / archive.CONFIG).read_bytes()
    for number, (content, size, message) in enumerate(WEIGHTS.values()):
        folder = written(tmp_path / f"weights_{number}" / archive.WEIGHTS, content, size).parent
        written(folder / archive.CONFIG, config)
        cases[folder] = message
    for number, (content, size, message) in enumerate(CHECKPOINTS.values()):
        cases[written(tmp_path / f"checkpoint_{number}", content, size)] = message
    for number, (content, size, message) in enumerate(CONFIGS.values()):
        cases[written(tmp_path / f"config_{number}" / archive.CONFIG, content, size).parent] = message
    for name, (value, message) in HUGE.items():
        folder = tmp_path / name
        network = {"_class_name": "UNet2DModel", "sample_size": 32, "attention_head_dim": 8, name: value}
        network |= {"out_channels": value} if name == "in_channels" else {}
        written(folder / diffusers.UNET, json.dumps(network).encode())
        written(folder / diffusers.SCHEDULER, json.dumps({"_class_name": "DDPMScheduler", name: value}).encode())
        written(folder / diffusers.WEIGHTS, header({}))
        cases[folder] = message

    command = [sys.executable, "tests/helpers/peak_memory.py", tmp_path / "good", *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    names = [*WEIGHTS, *CHECKPOINTS, *CONFIGS, *HUGE]
    for name, expected, (message, mib) in zip(names, cases.values(), json.loads(done.stdout), strict=True):
        print(f"{name}: {mib:.1f} MiB")  # for pytest -rP
        assert expected in message, name
        assert mib < MOST, name
