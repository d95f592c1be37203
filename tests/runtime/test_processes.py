"""Several processes that work as one run, on this machine, with one or more CPU devices each."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.autoencoders import write_golden
from helpers.runs import (
    AFFINE,
    OWN_PARTS,
    PATIENCE,
    TINY,
    assert_same,
    call,
    command,
    free_port,
    start_together,
    steps_saved,
    wait_until,
)

from diffusion_distillation.data import load_source

BASE = [
    "--config=configs/digits_base.py",
    *TINY,
    "--config.train.num_train_steps=20",
    "--config.train.substeps=5",
    "--config.train.ema_decay=0.0",  # the average would hide a difference
]
LADDER = [
    "--config=configs/digits_distill.py",
    *TINY,
    *AFFINE,
    "--config.distillation.start_num_steps=4",
    "--config.distillation.stages={}",
    "--config.distillation.steps_per_iter=5",
    "--config.eval.num_samples=64",
    "--config.eval.batch_size=64",
    "--config.eval.teacher_num_steps=(2,1)",
    "--config.eval.ancestral_num_steps=(2,)",
    "--config.eval.features=('pixels',)",
    "--config.eval.metrics=('fid',)",
]
MEASURED = [  # during training, with parameters that are divided among devices
    "--config.train.shard=all",
    "--config.train.ema_decay=0.9",
    "--config.train.eval_every_steps=10",
    "--config.eval.metrics_every_steps=10",
    "--config.eval.metrics_num_samples=64",
    "--config.eval.features=('pixels',)",
    "--config.eval.metrics=('fid',)",
]
WAYS = {  # fields of config.train, by the number of processes and the devices of each
    (2, 1): ["shard=all"],
    (2, 2): ["parallel=pmap"],
    (4, 1): ["parallel=jit", "parallel=pmap"],
}
RESUMED_AT = {(2, 2): 5, (4, 1): 10, (1, 1): 15}  # the step at which they resume a run that one process started
# Only two processes under jit train a U-Net. The others compile many programs and train a smaller network.
SMALL = [*BASE, *AFFINE]


def start(arguments, processes, devices, log, env=None):
    """Start processes with the commands `arguments(flags)`. Each one prints to its own file in the folder `log`."""
    log.mkdir(exist_ok=True)
    port = free_port()
    started = []
    for index in range(processes):
        connected = [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={index}"]
        commands = [arguments(connected if processes > 1 else [])]
        with (log / f"{index}.log").open("w") as file:
            started += start_together(commands, devices=devices, env=env, stdout=file, stderr=subprocess.STDOUT)
    return started


def start_two(code, *arguments, devices=1):
    """Start two processes that run Python code with the arguments (port, number of the process, *arguments)."""
    port = free_port()
    commands = [[sys.executable, "-c", code, *map(str, (port, index, *arguments))] for index in range(2)]
    return start_together(commands, devices=devices, env=OWN_PARTS)


def do(commands, processes, devices, log):
    """Run commands of the scripts, one after another, in the same processes. Returns the output of the first one."""

    def arguments(connected):
        return [
            sys.executable,
            "tests/helpers/together.py",
            json.dumps([[*map(str, line), *connected] for line in commands]),
        ]

    for index, process in enumerate(start(arguments, processes, devices, log)):
        assert process.wait(timeout=300) == 0, (log / f"{index}.log").read_text()
    printed, *others = ((log / f"{index}.log").read_text() for index in range(processes))
    assert not any("images/s" in of_other for of_other in others)
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def drifting():
    """Two processes that run `DRIFT` while other tests run."""
    started = start_two(DRIFT, devices=2)
    yield started
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def printed(folder, drifting):
    """Make all runs. Returns the output by the number of processes and the devices of each.

    One process trains the U-Net and the smaller network, distills, and samples from all runs. Several processes train
    in the `WAYS`, and sample; two of them distill too. One run starts in one process and resumes in two with two
    devices each, in four, and in one.
    """
    small = folder / "alone, small"
    resume = ["train", *SMALL, "--config.train.retain_checkpoint_every_steps=5", f"--workdir={folder / 'resumed'}"]

    def ladder(name):
        teacher = f"--config.distillation.teacher_checkpoint_path={small}"
        sharded = ["--config.train.shard=all"] if name == "ladder of two" else []
        return ["distill", *LADDER, *sharded, teacher, f"--workdir={folder / name}"]

    def sample(workdir, name):
        drawn = [f"--checkpoint={workdir}", "--num_samples=5", "--num_steps=2"]
        return ["sample", *drawn, f"--out={workdir / name}.npz"]

    def go_back_to(step):
        for later in steps_saved(folder / "resumed"):
            if later > step:
                shutil.rmtree(folder / "resumed" / "checkpoints" / str(later))

    def encode(name):
        vae = write_golden(folder / "vae", "attention")
        return ["encode_data", "--config=configs/digits_base.py", f"--autoencoder={vae}", f"--out={folder / name}"]

    first = [["train", *BASE, f"--workdir={folder / 'alone'}"], ["train", *SMALL, f"--workdir={small}"]]
    do([*first, ladder("ladder"), resume, encode("latents")], 1, 1, folder / "log of one")
    printed, by_one = {}, []
    for (processes, devices), ways in WAYS.items():
        commands = []
        for way in ways:
            workdir = folder / f"{processes} {devices} {way}"
            of_network = BASE if (processes, devices) == (2, 1) else SMALL
            train = ["train", *of_network, f"--config.train.{way}", f"--workdir={workdir}"]
            commands += [train, sample(workdir, "together")]
            by_one.append(sample(workdir, "alone"))
        if (processes, devices) == (2, 1):
            commands += [ladder("ladder of two"), ["train", *SMALL, *MEASURED, f"--workdir={folder / 'measured'}"]]
            commands.append(encode("latents of two"))
        else:
            go_back_to(RESUMED_AT[processes, devices])
            commands.append(resume)
        printed[processes, devices] = do(commands, processes, devices, folder / f"log of {processes} {devices}")
    go_back_to(RESUMED_AT[1, 1])
    printed[1, 1] = do([*by_one, resume], 1, 1, folder / "log of one at last")
    return printed


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "way"), [(*numbers, way) for numbers, ways in WAYS.items() for way in ways]
)
def test_several_processes_train_and_sample_like_one(folder, printed, processes, devices, way):
    assert f"{processes * devices} cpu devices" in printed[processes, devices]
    alone = folder / ("alone" if (processes, devices) == (2, 1) else "alone, small")
    workdir = folder / f"{processes} {devices} {way}"
    if way == "shard=all":  # the first process alone writes replicated arrays of this size
        assert len(list((workdir / "checkpoints" / "20" / "state").glob("ocdbt.process_*"))) == processes
    assert_same(alone, workdir, atol=1e-5)
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-6)
    assert (workdir / "samples" / "step_0000020.png").exists()
    images = [np.load(workdir / f"{name}.npz")["images"] for name in ("alone", "together")]
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_a_run_resumes_with_any_number_of_processes(folder, printed):
    for numbers, step in RESUMED_AT.items():
        assert f"resuming at step {step}" in printed[numbers]
    assert_same(folder / "alone, small", folder / "resumed", atol=1e-5)


@pytest.mark.slow
def test_two_processes_distill_and_report_like_one(folder, printed):
    ladders = [folder / "ladder", folder / "ladder of two"]
    for student in ("steps_0002", "steps_0001"):
        assert_same(*(ladder / student for ladder in ladders), atol=1e-5)
    figures = [json.loads((ladder / "report" / "evaluation.json").read_text())["rows"] for ladder in ladders]
    for one, two in zip(*figures, strict=True):
        numbers = ([value["value"] for value in row["values"]] for row in (one, two))
        assert next(numbers) == pytest.approx(next(numbers), rel=1e-3)


@pytest.mark.slow
def test_two_processes_encode_like_one(folder, printed):
    one, two = (load_source("Latents", path=str(folder / name)) for name in ("latents", "latents of two"))
    every = np.arange(len(one))
    np.testing.assert_array_equal(one[every]["label"], two[every]["label"])
    for name in ("mean", "std"):
        np.testing.assert_allclose(one[every][name], two[every][name], rtol=1e-3)


@pytest.mark.slow
def test_processes_measure_a_sharded_average_during_training(folder, printed):
    """They save the best model too."""
    lines = (folder / "measured" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert steps_saved(folder / "measured" / "best")


DRIFT = """
import sys, time, numpy as np
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.devices import AXIS, data_mesh, replicated
port, index = sys.argv[1], int(sys.argv[2])
assert multihost.start(f"localhost:{port}", 2, index)
import jax
from jax.sharding import NamedSharding, PartitionSpec
assert jax.device_count() == 4
time.sleep(33 * index)
mesh = data_mesh()
parts = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), np.full(2, index + 1.0))
assert jax.jit(sum, out_shardings=replicated(mesh))(parts) == 6
assert multihost.all_max([index, 1 - index]) == [1, 1]
"""


@pytest.mark.slow
def test_processes_may_first_communicate_more_than_30_seconds_apart(drifting):
    """On CPU, JAX waits only 30 seconds for the other processes when they first communicate."""
    assert [process.wait(timeout=PATIENCE) for process in drifting] == [0, 0]


AGREE = """
import pathlib, sys
from diffusion_distillation.runtime import multihost
port, index, run = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
assert multihost.start(f"localhost:{port}", 2, index)
import jax, numpy as np
from helpers.models import assert_same, at_step, make_run
from diffusion_distillation import checkpoints
from diffusion_distillation.checkpoints import store
from diffusion_distillation.runtime.devices import data_mesh, put
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.methods import make_method
from diffusion_distillation.training.runner import state_shardings
from diffusion_distillation.training.step import init_state

metadata, params = make_run(ema_decay=0.9)
mesh = data_mesh()
start = init_state(metadata.config, make_method(metadata.config), params)
states = {step: at_step(start, step) for step in (3, 6)}
shardings = state_shardings(states[3], mesh, shard=True)
like = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), states[3], shardings)
read = store.read_arrays

def failing(error):
    def fails(checkpoint, *args):
        if index == 1 and checkpoint.name == "6":
            raise error
        return read(checkpoint, *args)
    store.read_arrays = fails

def steps():
    multihost.barrier("look")
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
        saved.save(put(state, shardings), metadata)
with checkpoints.Checkpoints(run) as saved:
    failing(MemoryError("full"))
    for act in (lambda: saved.restore(like), lambda: checkpoints.load(run)):
        assert_raises(*((MemoryError, "full") if index else (RunError, "Another process could not read")), act)
    assert steps() == [3, 6]
    failing(FileNotFoundError(2, "No such file", "manifest.ocdbt"))
    assert_raises(RunError, "All processes must see the same folder", lambda: saved.restore(like))
    assert steps() == [3, 6]
    failing(ValueError("cut off"))
    params, of_params = checkpoints.load(run)
    assert of_params.step == 3
    assert_same(params, states[3].sampling_params)
    assert steps() == [3, 6]
    restored = saved.restore(like)
    assert_same(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, restored),
                jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, put(states[3], shardings)))
    assert steps() == [3]

def refuse():
    raise InputError("no, nein")
def break_down():
    raise OSError("disk")
assert multihost.on_main(lambda: [jax.process_index(), "é"]) == [0, "é"]
assert_raises(InputError, "no, nein", lambda: multihost.on_main(refuse))
assert_raises(*((RunError, "main process failed: disk") if index else (OSError, "disk")),
              lambda: multihost.on_main(break_down))
"""


@pytest.mark.slow
def test_processes_agree_on_checkpoints_and_on_errors(tmp_path):
    """They use the newest checkpoint that both can read, and what the main process returns or raises."""
    assert [process.wait(timeout=120) for process in start_two(AGREE, tmp_path / "run")] == [0, 0]


BUSY = """
import sys
from diffusion_distillation.runtime import multihost
assert multihost.start(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax
from helpers.small_runs import SOURCE, make_config
from diffusion_distillation.training import loop

make, before, idle = loop.make_runner, [], []

def make_runner(*args, **options):
    runner = make(*args, **options)
    do_steps = runner.steps
    def steps(*args):
        idle.append(all(metric.is_ready() for metric in jax.tree.leaves(before)))
        state, metrics = do_steps(*args)
        before[:] = [metrics]
        return state, metrics
    runner.steps = steps
    return runner

loop.make_runner = make_runner
config = make_config(batch_size=512, log_loss_every_steps=1)
with config.unlocked():
    config.model.args.width = 2048  # a step takes a while
loop.train(config, sys.argv[3], SOURCE)
assert sum(idle[3:]) <= len(idle) // 4, idle  # the first ones wait for what is compiled
"""


@pytest.mark.slow
def test_devices_get_the_next_call_before_the_last_one_ends(tmp_path):
    """Reading losses and joint decisions do not make devices wait."""
    assert [process.wait(timeout=PATIENCE) for process in start_two(BUSY, tmp_path)] == [0, 0]


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others(tmp_path):
    flags = [
        "--config=configs/digits_base.py",
        *AFFINE,
        "--config.train.num_train_steps=1000000",
        "--config.train.eval_every_steps=0",
        "--config.train.checkpoint_every_secs=0",
        f"--workdir={tmp_path / 'run'}",
    ]
    env = OWN_PARTS | {"DIFFUSION_DISTILLATION_HEARTBEAT": "10"}

    def start_run():
        return start(lambda connected: command("train", *flags, *connected), 2, 1, tmp_path / "log", env)

    first, second = start_run()
    wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("*/commit_success.txt")), first)
    second.send_signal(signal.SIGKILL)
    assert first.wait(timeout=PATIENCE) != 0
    stopping = start_run()
    resumed = re.compile("resuming at step.*images/s", re.DOTALL)
    wait_until(lambda: resumed.search((tmp_path / "log" / "0.log").read_text()), *stopping)
    stopping[1].send_signal(signal.SIGTERM)
    assert {process.wait(timeout=PATIENCE) for process in stopping} == {128 + signal.SIGTERM}


def test_incomplete_flags_of_processes_are_refused(tmp_path):
    for given in (["--num_processes=2"], ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]):
        error = call("train", *BASE, f"--workdir={tmp_path}", *given, fails=True)
        assert "set all three or none" in error and "Traceback" not in error
