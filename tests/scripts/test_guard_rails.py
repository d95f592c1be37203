"""Runs that are interrupted: by signals at any moment, a full disk, a read-only folder, a second process."""

import json
import os
import re
import shutil
import signal
import subprocess

import jax
import pytest
from helpers.runs import (
    AFFINE,
    OWN_PARTS,
    PATIENCE,
    TINY,
    assert_same,
    call,
    read_until,
    run,
    start,
    steps_saved,
    wait_until,
    without_privileges,
)

from diffusion_distillation.checkpoints import load

BASE = ["--config=configs/digits_base.py", *TINY, "--config.train.substeps=5"]
HEAVY = [*BASE, "--config.model.name=helpers.own_parts:heavy"]  # compiles in no time, and saves slowly
LONG = ["--config.train.num_train_steps=100000", "--config.train.eval_every_steps=0"]  # tests stop these runs


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(tmp_path):
    """Messages of the libraries that read the files are not shown."""
    flags = [
        *HEAVY,
        "--config.train.num_train_steps=10",
        "--config.train.checkpoint_every_secs=0",
        f"--workdir={tmp_path}",
    ]
    run("train", *flags, env=OWN_PARTS)
    assert steps_saved(tmp_path) == [5, 10]
    files = [path for path in (tmp_path / "checkpoints" / "10" / "state").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    again = start("train", *flags, env=OWN_PARTS)
    printed, error = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and "resuming at step 5" in printed
    assert "checkpoints/10 is damaged" in error and "Using step 5 instead" in error
    assert "Traceback" not in error and "never awaited" not in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "network", "moments"),
    [(signal.SIGTERM, BASE, ("start", "compile", "step", "save")), (signal.SIGINT, HEAVY, ("step", "save"))],
)
def test_signals_save_and_stop(tmp_path, number, network, moments):
    """While a run starts, compiles, trains and saves. Each time, it resumes where it stopped."""
    workdir, step = tmp_path / "run", 0
    for moment in moments:
        flags = ["--config.train.checkpoint_every_secs=0"] if moment == "save" else []
        env = OWN_PARTS | {"JAX_ENABLE_COMPILATION_CACHE": str(moment != "compile")}
        process = start("train", *network, *LONG, *flags, f"--workdir={workdir}", env=env)
        if moment == "start":
            wait_until(lambda: (workdir / "config.json").exists(), process)
        else:
            if step:
                read_until(process.stdout, f"resuming at step {step:,}")
            read_until(process.stdout, "compiling the training step")
        if moment in ("step", "save"):
            read_until(process.stdout, "images/s")
        if moment == "save":
            wait_until(lambda: list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")), process)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, (moment, error)
        saved = moment in ("step", "save")
        hint = "run the same command again to resume" if saved else "Stopped. Run the same command again to finish it."
        assert hint in error and "Traceback" not in error
        if moment in ("step", "save"):
            before, step = step, load(workdir)[1].step
            assert step > before
            assert not list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))
            assert f"saved at step {step:,}" in error


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    process = start("train", *HEAVY, *LONG, f"--workdir={tmp_path / 'run'}", env=OWN_PARTS)
    read_until(process.stdout, "images/s")
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "Signal again to stop at once")
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped. Run the same command again to finish it." in error and "saved at" not in error


@pytest.mark.slow
def test_a_run_outlives_the_readers_of_its_output(tmp_path):
    """Behind `2>&1 | head -1`, a run keeps training, and a signal still saves and stops it."""
    process = start("train", *BASE, *AFFINE, *LONG, f"--workdir={tmp_path}", env=OWN_PARTS)
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    metrics = tmp_path / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert steps_saved(tmp_path)


@pytest.mark.slow
def test_a_signal_while_sampling_stops_and_loses_nothing(tmp_path):
    flags = [*BASE, "--config.train.num_train_steps=20", "--config.model.eval_sampling_num_steps=100000"]
    process = start("train", *flags, f"--workdir={tmp_path / 'run'}")
    wait_until(lambda: steps_saved(tmp_path / "run") == [20], process)
    process.send_signal(signal.SIGTERM)
    if "Signal again to stop at once" in process.stderr.readline():  # otherwise, it has stopped
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert load(tmp_path / "run")[1].step == 20


@pytest.mark.slow
def test_a_second_process_in_a_workdir_is_refused(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    first = start("train", *HEAVY, *LONG, workdir, env=OWN_PARTS)
    read_until(first.stdout, "parameters")
    error = call("train", *HEAVY, *LONG, workdir, fails=True)
    assert f"Another process works in '{tmp_path / 'run'}' (process {first.pid} on " in error
    assert "Traceback" not in error and first.poll() is None
    first.kill()
    first.communicate()
    process = start("train", *HEAVY, *LONG, workdir, env=OWN_PARTS)  # the lock ended with its process
    read_until(process.stdout, "parameters")
    process.kill()
    process.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_a_run_and_loses_no_checkpoint(tmp_path, small_disk):
    """With free space again, the run resumes and ends in the same parameters."""
    flags = [*BASE, "--config.train.num_train_steps=20", "--config.train.retain_checkpoint_every_steps=5"]
    run("train", *flags, f"--workdir={tmp_path / 'undisturbed'}")
    size = (
        sum(file.stat().st_size for file in (tmp_path / "undisturbed" / "checkpoints").rglob("*") if file.is_file()) / 4
    )
    room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "other").write_bytes(bytes(int(room - 2.5 * size)))
    error = run("train", *flags, f"--workdir={small_disk / 'run'}", fails=True)
    assert re.search(r"^error: .*(could not be written|No space left).*Finished checkpoints are intact", error, re.M)
    kept = steps_saved(small_disk / "run")
    assert kept and load(small_disk / "run")[1].step == kept[-1]
    (small_disk / "other").unlink()
    assert f"resuming at step {kept[-1]}" in run("train", *flags, f"--workdir={small_disk / 'run'}")
    assert_same(tmp_path / "undisturbed", small_disk / "run")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    error = call("train", *BASE, f"--workdir={tmp_path / 'file' / 'run'}", fails=True)
    assert "file" in error and "Traceback" not in error
    read_only = tmp_path / "read only"
    read_only.mkdir(mode=0o555)
    process = start("train", *BASE, f"--workdir={read_only / 'run'}", prefix=without_privileges())
    error = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert re.search(r"error: .*Permission denied: .*read only.*run", error) and "Traceback" not in error


@pytest.mark.parametrize("skip", [True, False])
def test_updates_that_stay_infinite_stop_the_run(tmp_path, skip):
    """The learning rate becomes far too large after a checkpoint, which stays as it is."""
    workdir = tmp_path / "run"
    flags = ["--config=configs/digits_base.py", *AFFINE, f"--config.train.enable_update_skip={skip}"]
    flags += ["--config.train.eval_every_steps=0", "--config.train.substeps=5", f"--workdir={workdir}"]
    call("train", *flags, "--config.train.num_train_steps=10")
    before = load(workdir)[0]
    config = json.loads((workdir / "config.json").read_text())
    config["train"] |= {"num_train_steps": 400, "learning_rate": 1e38}
    (workdir / "config.json").write_text(json.dumps(config))
    error = call("train", *flags, "--config.train.num_train_steps=400", "--config.train.learning_rate=1e38", fails=True)
    began = int(re.search(r"no update was finite for 100 steps, starting at step (\d+)", error)[1])
    assert 10 < began <= 15 and "Traceback" not in error
    params, metadata = load(workdir)
    assert metadata.step == 10
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        assert (one == other).all()


def test_a_warning_is_printed_once(tmp_path):
    flags = [*BASE, *AFFINE, "--config.train.num_train_steps=1", "--config.train.learning_rate_warmup_steps=9"]
    process = start("train", *flags, f"--workdir={tmp_path / 'run'}", env=OWN_PARTS)
    assert process.communicate(timeout=120)[1].count("is longer than the run") == 1
