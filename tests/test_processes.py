"""Several processes that work as one run, started by hand on this machine, with one CPU device or more each."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import ROOT, assert_same, command, free_port, run

BASE = [
    "--config=configs/digits_base.py",
    "--config.train.num_steps=20",
    "--config.train.substeps=5",
    "--config.train.ema_decay=0.0",  # the average would hide a difference
    "--config.model.eval_sampling_num_steps=4",
]


def start(script, processes, devices, *flags, log):
    """Starts the processes of a run; what each prints goes to a file of its own."""
    together = [f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            command(script, *flags, *together, f"--process_id={index}"),
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=(log / f"{index}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]


def run_together(script, processes, devices, *flags, log):
    """Runs the processes to their end, and returns what the first printed."""
    log.mkdir(exist_ok=True)
    started = start(script, processes, devices, *flags, log=log)
    for index, process in enumerate(started):
        assert process.wait(timeout=300) == 0, (log / f"{index}.log").read_text()
    assert all("step 20/20" not in (log / f"{index}.log").read_text() for index in range(1, processes))
    return (log / "0.log").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run("train", *BASE, f"--workdir={workdir}")
    return workdir


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "how"),
    [(2, 1, "shard_state=True"), (2, 2, "parallel=pmap"), (4, 1, "parallel=jit"), (4, 1, "parallel=pmap")],
)
def test_processes_train_as_one(tmp_path, alone, processes, devices, how):
    flags = [*BASE, f"--config.train.{how}", f"--workdir={tmp_path / 'run'}"]
    printed = run_together("train", processes, devices, *flags, log=tmp_path / "log")
    assert f"{processes * devices} cpu device(s)" in printed
    if how == "shard_state=True":  # or else, as arrays are this small, the first process writes them all
        assert len(list((tmp_path / "run" / "checkpoints" / "20" / "state").glob("ocdbt.process_*"))) == processes
    assert_same(alone, tmp_path / "run", atol=1e-5)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-6)
    assert (tmp_path / "run" / "samples" / "step_0000020.png").exists()
    drawn = [f"--checkpoint={tmp_path / 'run'}", "--num_samples=5", "--num_steps=2"]
    run("sample", *drawn, f"--out={tmp_path / 'alone.npz'}")
    run_together("sample", processes, devices, *drawn, f"--out={tmp_path / 'together.npz'}", log=tmp_path / "log")
    images = [np.load(tmp_path / f"{name}.npz")["images"] for name in ("alone", "together")]
    np.testing.assert_array_equal(*images)


DRIFT = """
import sys, time, numpy as np
from diffusion_distillation import multihost
from diffusion_distillation.devices import AXIS, data_mesh, replicated
port, index = sys.argv[1], int(sys.argv[2])
assert multihost.start(f"localhost:{port}", 2, index)
import jax
from jax.sharding import NamedSharding, PartitionSpec
assert jax.device_count() == 4
time.sleep(33 * index)
mesh = data_mesh()
parts = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), np.full(2, index + 1.0))
assert jax.jit(sum, out_shardings=replicated(mesh))(parts) == 6
assert multihost.largest([index, 1 - index]) == [1, 1]
"""


@pytest.mark.slow
def test_processes_may_drift_apart():
    """By more than the 30 seconds in which processes on CPU must find each other when they first communicate."""
    env, port = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}, str(free_port())
    started = [
        subprocess.Popen([sys.executable, "-c", DRIFT, port, str(index)], cwd=ROOT, env=env) for index in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


AGREE = """
import pathlib, sys
from diffusion_distillation import multihost
port, index, run = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
assert multihost.start(f"localhost:{port}", 2, index)
import jax, numpy as np
from test_checkpoints import assert_same, at_step, make_run
from diffusion_distillation import checkpoints
from diffusion_distillation.devices import data_mesh, place
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.training.parallel import state_shardings
from diffusion_distillation.training.step import init_state

metadata, params = make_run(ema_decay=0.9)
mesh = data_mesh()
states = {step: at_step(init_state(metadata.config, params), step) for step in (3, 6)}
shardings = state_shardings(states[3], mesh, shard=True)
like = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), states[3], shardings)
read = checkpoints._read_arrays

def failing(error):
    def fails(checkpoint, *args):
        if index == 1 and checkpoint.name == "6":
            raise error
        return read(checkpoint, *args)
    checkpoints._read_arrays = fails

def steps():
    multihost.wait_for_all("look")
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())

def assert_raises(kind, message, act):
    try:
        act()
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"no {kind}")

with checkpoints.Checkpoints(run) as saved:
    for step, state in states.items():
        saved.save(place(state, shardings), metadata)
with checkpoints.Checkpoints(run) as saved:
    failing(MemoryError("full"))
    for act in (lambda: saved.restore(like), lambda: checkpoints.load(run)):
        assert_raises(*((MemoryError, "full") if index else (RunError, "Another process could not read")), act)
    assert steps() == [3, 6]
    failing(ValueError("cut off"))
    params, of_params = checkpoints.load(run)
    assert of_params.step == 3
    assert_same(params, states[3].sampling_params)
    assert steps() == [3, 6]
    restored = saved.restore(like)
    assert_same(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, restored),
                jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, place(states[3], shardings)))
    assert steps() == [3]

def refuse():
    raise InputError("no, nein")
def break_down():
    raise OSError("disk")
assert multihost.on_main(lambda: [jax.process_index(), "é"]) == [0, "é"]
assert_raises(InputError, "no, nein", lambda: multihost.on_main(refuse))
assert_raises(*((RunError, "main process could not go on: disk") if index else (OSError, "disk")),
              lambda: multihost.on_main(break_down))
"""


@pytest.mark.slow
def test_processes_agree(tmp_path):
    """On the newest checkpoint that both can read, on what the first process says, and on stopping."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    port = str(free_port())
    started = [
        subprocess.Popen([sys.executable, "-c", AGREE, port, str(index), tmp_path / "run"], cwd=ROOT, env=env)
        for index in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


@pytest.mark.slow
def test_a_ladder_of_two_processes(tmp_path, alone):
    flags = [
        "--config=configs/digits_distill.py",
        f"--config.distillation.teacher_checkpoint_path={alone}",
        "--config.distillation.start_num_steps=2",
        "--config.distillation.stages={}",
        "--config.distillation.steps_per_iter=5",
        "--config.eval.num_samples=64",
        "--config.eval.batch_size=64",
        "--config.eval.teacher_num_steps=(2,1)",
        "--config.eval.ancestral_num_steps=(2,)",
    ]
    run("distill", *flags, f"--workdir={tmp_path / 'one'}")
    run_together("distill", 2, 1, *flags, f"--workdir={tmp_path / 'two'}", log=tmp_path / "log")
    assert_same(tmp_path / "one" / "steps_0001", tmp_path / "two" / "steps_0001", atol=1e-5)
    figures = [json.loads((tmp_path / name / "report" / "figures.json").read_text())["rows"] for name in ("one", "two")]
    for one, two in zip(*figures, strict=True):
        assert one["distance"] == pytest.approx(two["distance"], rel=1e-3)


@pytest.mark.slow
def test_resumed_by_other_numbers_of_processes(tmp_path, alone):
    """Saved by 2 processes with 2 devices each, taken up by 1 with 1, and by 4 with 1 each."""
    workdir = tmp_path / "run"
    flags = [*BASE, "--config.train.retain_checkpoint_every_steps=5", f"--workdir={workdir}"]

    def go_back_to(step):
        for folder in (workdir / "checkpoints").iterdir():
            if int(folder.name) > step:
                shutil.rmtree(folder)

    run_together("train", 2, 2, *flags, log=tmp_path / "log")
    go_back_to(5)
    assert "going on from step 5" in run("train", *flags)
    go_back_to(10)
    assert "going on from step 10" in run_together("train", 4, 1, *flags, log=tmp_path / "log")
    assert_same(alone, workdir, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others(tmp_path):
    flags = [*BASE, "--config.train.checkpoint_every_secs=0", f"--workdir={tmp_path / 'run'}"]
    (tmp_path / "log").mkdir()
    first, second = start("train", 2, 1, *flags, "--config.train.num_steps=100000", log=tmp_path / "log")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("*/commit_success.txt")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    assert first.wait(timeout=120) != 0
    flags.append("--config.train.num_steps=100000")
    stopping = start("train", 2, 1, *flags, log=tmp_path / "log")
    while "going on from step" not in (tmp_path / "log" / "0.log").read_text():
        assert stopping[0].poll() is None and time.monotonic() < deadline + 200
        time.sleep(0.1)
    time.sleep(5)
    stopping[1].send_signal(signal.SIGTERM)
    assert {process.wait(timeout=120) for process in stopping} == {128 + signal.SIGTERM}


def test_flags_that_do_not_fit(tmp_path):
    for given in (["--num_processes=2"], ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]):
        error = run("train", *BASE, f"--workdir={tmp_path}", *given, fails=True)
        assert "give all three or none" in error and "Traceback" not in error
