"""The benchmarks run and print their figures. The size of the figures is not tested."""

import importlib
import io
import json
import re
import sys
import time

import pytest
from absl.testing import flagsaver
from helpers.diffusers_peer import PEER, needs_peer
from helpers.runs import ROOT, call, run

from diffusion_distillation import config


@pytest.mark.slow
def test_the_data_benchmark_prints_images_per_second():
    printed = run("benchmarks/data", "--files=30", "--batch_size=16", "--seconds=0.2")
    speeds = re.findall(r"^(\w.*?)  +([\d,]+) images/s", printed, re.MULTILINE)
    assert [name for name, _ in speeds] == ["from memory", "PNG records", "JPEG files", "JPEG files, Pillow alone"]
    assert all(int(speed.replace(",", "")) > 0 for _, speed in speeds)


@pytest.mark.slow
def test_the_checkpoint_benchmark_prints_seconds_per_step(tmp_path):
    flags = [f"--workdir={tmp_path / 'new'}", "--saves=1", "--width=32", "--blocks=0", "--batch_size=2"]
    printed = run("benchmarks/checkpoints", *flags)
    seconds = r"[\d.]+ s"
    assert re.search(rf"^A state of \d+ MB: {seconds} per step, {seconds} during a save", printed, re.MULTILINE)


def test_the_change_of_targets_by_a_teacher_in_bfloat16_is_printed():
    printed = call("benchmarks/teacher_dtype", "--checkpoint=digits", "--steps=8,1", "--num_images=16")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+)% \| ([\d.]+)% \|$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["8", "1"]
    assert all(0.03 < float(change) < 3 for row in rows for change in row[1:])  # bfloat16 rounds by up to 0.4%


class OnAccelerator:
    """Stands in for an accelerator that does a million steps per call."""

    devices, platform = 1, "gpu"

    def base_step(self, batch):
        time.sleep(0.01)
        return 10**6

    def accelerator_memory(self):
        return 123


def test_a_worker_divides_a_call_by_its_steps_and_reports_the_accelerators_memory(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    worker = importlib.import_module("worker")
    requests = [{}, {"what": "base_step", "batch": 4, "seconds": 0}, {"what": "base_step", "batch": 4, "seconds": 0.02}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    worker.serve(lambda setup: OnAccelerator(), "mine")
    about, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert about == {"name": "mine", "devices": 1, "platform": "gpu"}
    assert len(answers) == 2
    assert all(answer["peak_bytes"] == 123 and 1e-8 <= answer["seconds"] < 1e-4 for answer in answers)


SMALL_UNET = [
    "--config.model.args.ch=32",
    "--config.model.args.emb_ch=32",
    "--config.model.args.ch_mult=(1,1)",
    "--config.model.args.num_res_blocks=1",
    "--config.model.args.attn_resolutions=(4,)",
    "--config.model.args.head_dim=16",
]


def test_bad_flags_of_the_benchmark_are_named(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    for flag, message in {
        "--image_shape=32,x,3": "must be height, width and channels",
        "--peer=/nowhere/python": "is not a program. Pass a Python that has torch",
    }.items():
        error = call("benchmarks/benchmark", flag, fails=True)
        assert message in error and "Traceback" not in error


def test_training_is_timed_with_and_without_dropout(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    with flagsaver.flagsaver():
        benchmark = importlib.import_module("benchmark")
    made = benchmark.configs(config.load(ROOT / "configs" / "cifar_base.py"), "float32", 2)
    assert benchmark.WORK[:2] == ("base_step", "base_step_without_dropout")
    assert made["base"]["model"]["args"].pop("dropout") == 0.2
    assert made["without_dropout"]["model"]["args"].pop("dropout") == 0
    assert made["base"] == made["without_dropout"]


SMALL_DIT = [f"--config.model.args.{field}" for field in ("hidden_size=32", "depth=2", "num_heads=2")]


@pytest.mark.slow
@needs_peer
@pytest.mark.parametrize(
    ("network", "works"),
    [
        (["--config=folder_base", *SMALL_UNET, "--image_shape=8,8,3"], ["distillation_step", "sample 2"]),
        (["--config=dit_b2_imagenet256_base", *SMALL_DIT, "--image_shape=8,8,4"], ["base_step"]),
    ],
    ids=["U-Net", "DiT"],
)
def test_the_benchmark_compares_equal_functions_with_pytorch(network, works, tmp_path):
    """The benchmark itself fails if the libraries disagree.

    It compares their outputs on 4 images. In batches of 4, the timed forward pass is not compiled again. PyTorch's
    compiler is off: it takes minutes, and changes no function.
    """
    flags = [*network, "--config.dataset.args.path=unread", "--batch_sizes=4", "--dtypes=float32"]
    flags += [f"--work={','.join(works)}", "--rounds=1", "--seconds=0.1"]
    flags += [f"--peer={PEER}", f"--out={tmp_path / 'all.json'}"]
    printed = run("benchmarks/benchmark", *flags, env={"TORCH_COMPILE_DISABLE": "1"})
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert {row["worker"].split()[0] for row in rows} == {"ours,", "torch"}
    assert all(row["error"] < 1e-5 and row["images_per_sec"] > 0 and row["peak_bytes"] > 0 for row in rows)
    listed = re.findall(r"^\| (\w[\w ]*?) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", printed, re.MULTILINE)
    assert listed == [work.replace("_", " ") for work in works]


@pytest.mark.slow
@needs_peer
def test_the_inception_benchmark_prints_images_per_second():
    printed = run("benchmarks/inception", f"--peer={PEER}", "--batch_size=2", "--rounds=1", "--seconds=0.1")
    speeds = re.findall(r"^(\w.*?)  +([\d.]+) images/s", printed, re.MULTILINE)
    assert [name for name, _ in speeds] == ["ours, 1 cpu device", "torch-fidelity", "torch-fidelity, channels-last"]


@pytest.mark.slow
@needs_peer
def test_the_autoencoder_benchmark_compares_equal_functions_with_diffusers():
    """The benchmark itself fails if the libraries disagree."""
    flags = [f"--peer={PEER}", "--image_size=16", "--channels=32,64", "--dtypes=float32", "--rounds=1", "--seconds=0.1"]
    printed = run("benchmarks/autoencoder", *flags, env={"TORCH_COMPILE_DISABLE": "1"})
    assert re.findall(r"^\| (\w+) (?:\| [\d.e+]+ ){4}\|", printed, re.MULTILINE) == ["encode", "decode"]
