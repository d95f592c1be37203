"""Stop a run at random moments, and measure how long it takes to save and exit.

    python scripts/checks/stopping.py --workdir=runs/stopping

The run trains on the digits with more channels and larger batches, so that an update takes about a second on two CPU
cores. After each stop, the same command resumes the run.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.errors import RunError

WORKDIR = flags.DEFINE_string("workdir", None, "A new folder.", required=True)
STOPS = flags.DEFINE_integer("stops", 10, "How many times the run is stopped.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
CHANNELS = flags.DEFINE_integer("channels", 128, "Channels of the network; more make steps longer.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images per training step; more make steps longer.")
MAX_SECONDS = flags.DEFINE_float("max_seconds", 10, "Longest time that a stop may take.")


def main() -> None:
    workdir = Path(WORKDIR.value)
    rng = random.Random(SEED.value)
    workdir.mkdir(parents=True)
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir / "programs")}
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "train.py"),
        "--config=configs/digits_base.py",
        f"--config.model.args.ch={CHANNELS.value}",
        f"--config.train.batch_size={BATCH_SIZE.value}",
        "--config.train.num_train_steps=100000",
        "--config.train.log_loss_every_steps=5",
        f"--workdir={workdir / 'run'}",
    ]
    longest = 0.0
    for number in range(1, STOPS.value + 1):
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stdout:
            if "compiled and begun" in line:
                break
        time.sleep(rng.uniform(0, 20))
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        printed, error = process.communicate()
        seconds = time.monotonic() - start
        if process.returncode != 128 + signal.SIGTERM:
            raise RunError(f"The run ended with status {process.returncode}: {error}")
        longest = max(longest, seconds)
        speed = re.findall(r"([\d,.]+) images/s", printed) or ["?"]
        print(f"stop {number}: {seconds:.1f} s at {speed[-1]} images/s; {error.splitlines()[-1]}", flush=True)
    print(f"{cli.counted(STOPS.value, 'stop')}; the longest took {longest:.1f} s.")
    if longest > MAX_SECONDS.value:
        raise RunError(f"A stop took {longest:.1f} s, more than --max_seconds={MAX_SECONDS.value:g}.")


if __name__ == "__main__":
    cli.run(main)
