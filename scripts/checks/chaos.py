"""Kill a run again and again, and check that it ends with the parameters of an undisturbed run.

    python scripts/checks/chaos.py --workdir=runs/chaos
    python scripts/checks/chaos.py --method=tract --kills=10 --workdir=runs/chaos_tract
    JAX_NUM_CPU_DEVICES=4 python scripts/checks/chaos.py --shard=all --kills=10 --workdir=runs/chaos_sharded

A teacher is trained on the digits and distilled twice: once undisturbed, and once with `kill -9` at random moments:
while the process starts, while it works, and while it writes a checkpoint. After each kill, the same command runs
again. At the end, the parameters of all models must be equal to the last bit.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.checkpoints import load
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.runtime.files import as_path, is_remote

# For each method: the config of its base model, the config of its ladder, fields for a short ladder, its students.
LADDERS = {
    "progressive": ("digits_base", "digits_distill", ["start_num_steps=8", "stages={}"], 3),
    "addim": ("digits_base", "digits_addim", ["rungs=(8, 2, 1)", "stages={}"], 2),
    "tract": ("digits_base", "digits_tract", ["rungs=(8, 2, 1)", "stages={}"], 2),
    "consistency": ("digits_base", "digits_consistency", ["start_num_steps=16", "end_num_steps=2"], 1),
    "guidance": ("digits_guided_base", "digits_guided_student", ["end_num_steps=2"], 1),
}

WORKDIR = flags.DEFINE_string("workdir", None, "A new folder for both runs.", required=True)
KILLS = flags.DEFINE_integer("kills", 50, "How many times the run is killed.", lower_bound=1)
METHOD = flags.DEFINE_enum("method", "progressive", list(LADDERS), "Method that distills the students.")
SHARD = flags.DEFINE_enum("shard", "none", ["none", "state", "all"], "config.train.shard of all runs.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")

MOMENTS = ("starting", "at work", "writing a checkpoint")


def commands(workdir: Path, kills: int) -> list[list[str]]:
    """The commands of a run that saves after every 5 updates and is long enough for this number of kills."""
    saving = [
        "--config.train.checkpoint_every_secs=0",
        "--config.train.substeps=5",
        "--config.train.eval_every_steps=0",
        f"--config.train.shard={SHARD.value}",
    ]
    base, ladder, rungs, students = LADDERS[METHOD.value]
    script = [sys.executable, str(Path(__file__).parents[1] / "train.py"), f"--config=configs/{base}.py", *saving]
    train = [*script, f"--config.train.num_train_steps={20 * kills}", f"--workdir={workdir / 'base'}"]
    distill = [
        sys.executable,
        str(Path(__file__).parents[1] / "distill.py"),
        f"--config=configs/{ladder}.py",
        *saving,
        *(f"--config.distillation.{field}" for field in rungs),
        f"--config.distillation.teacher_checkpoint_path={workdir / 'base'}",
        f"--config.distillation.steps_per_iter={12 * kills // students}",
        "--config.eval.num_samples=64",
        "--config.eval.batch_size=64",
        "--config.eval.teacher_num_steps=(1,)",
        "--config.eval.ancestral_num_steps=(1,)",
        f"--workdir={workdir / 'ladder'}",
    ]
    return [train, distill]


def main() -> None:
    if is_remote(as_path(WORKDIR.value)):
        raise InputError(f"--workdir={WORKDIR.value} must be a local folder: processes are killed on this machine.")
    workdir = Path(WORKDIR.value)
    start = time.monotonic()
    programs = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "programs")}  # so that a killed run soon works again
    env = os.environ | programs
    workdir.mkdir(parents=True)
    with (workdir / "log.txt").open("w") as log:
        for command in commands(workdir / "undisturbed", KILLS.value):
            subprocess.run(command, env=env, stdout=log, stderr=log, check=True)
        print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
        kills = disturb(commands(workdir / "killed", KILLS.value), workdir / "killed", env, log)
    students = compare(workdir / "undisturbed", workdir / "killed")
    counts = ", ".join(f"{kills[moment]} {moment}" for moment in MOMENTS)
    print(
        f"{kills.total()} kills ({counts}) in {(time.monotonic() - start) / 60:.0f} minutes: "
        f"the parameters of the teacher and of {cli.counted(students, 'student')} are equal to the last bit."
    )


def disturb(todo: list[list[str]], workdir: Path, env: dict[str, str], log) -> Counter:
    """Run the commands, and kill them --kills times. Returns the number of kills by moment."""
    rng = random.Random(SEED.value)
    kills: Counter = Counter()
    while todo:
        moment = rng.choice(MOMENTS) if kills.total() < KILLS.value else "never"
        process = subprocess.Popen(todo[0], env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        if wait_for(moment, process, workdir, rng):
            process.kill()
            process.wait()
            kills[moment] += 1
            print(f"kill {kills.total()}, {moment}", file=log, flush=True)
        elif process.wait() == 0:
            todo.pop(0)
        else:
            raise RunError(f"A run failed after {kills.total()} kills: see {log.name}.")
    if kills.total() < KILLS.value:
        raise RunError(f"The run finished after {kills.total()} kills, before all {KILLS.value}.")
    return kills


def wait_for(moment: str, process: subprocess.Popen, workdir: Path, rng: random.Random) -> bool:
    """Wait for a moment of a process. Returns False if the process ended before it."""
    if moment == "never":
        process.communicate()
    elif moment == "starting":
        time.sleep(rng.uniform(0, 6))
    else:
        for line in process.stdout:
            if "parameters," in line:
                break
        until = time.monotonic() + rng.uniform(0, 4)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        while moment == "writing a checkpoint" and process.poll() is None:
            if next(workdir.glob("**/checkpoints/*.orbax-checkpoint-tmp*"), None):
                time.sleep(rng.uniform(0, 0.02))
                break
    return process.poll() is None


def compare(expected: Path, found: Path) -> int:
    """Raise a RunError unless all models of two runs have the same parameters. Returns the number of students."""
    students = sorted(f"ladder/{path.name}" for path in (expected / "ladder").glob("steps_*"))
    for name in ("base", *students):
        params, metadata = load(expected / name)
        found_params, found_metadata = load(found / name)
        equal = jax.tree.map(np.array_equal, params, found_params)
        if metadata.step != found_metadata.step or not all(jax.tree.leaves(equal)):
            raise RunError(f"{found / name} differs from {expected / name}.")
    return len(students)


if __name__ == "__main__":
    cli.run(main)
