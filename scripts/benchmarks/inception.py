"""Measure the rate of FID's Inception network on 32x32 images, alone or in turns with torch-fidelity's.

    make peer && python scripts/benchmarks/inception.py --peer=.venv-peer/bin/python

The script prints images/s, the median and the range over --rounds turns. The weights are random. torch-fidelity's
network runs as in its own metrics, and also in channels-last layout, which torch-fidelity has no setting for.
"""

import re
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.evaluation.inception import InceptionExtractor, fold, weight_shapes
from diffusion_distillation.runtime.cpu import use_all_cpu_cores
from diffusion_distillation.runtime.devices import data_mesh, describe_devices

BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images per call.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each network.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 10, "Length of a turn.", lower_bound=0)
PEER = flags.DEFINE_string("peer", None, "A Python with torch-fidelity to compare with, as from make peer.")
PEER_SCRIPT = Path(__file__).parents[2] / "tests" / "peers" / "fidelity.py"


def main() -> None:
    use_all_cpu_cores(BATCH_SIZE.value)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH_SIZE.value, 32, 32, 3), np.uint8)
    extract = InceptionExtractor(fold(random_weights(rng)), "random", BATCH_SIZE.value)
    extract(images)  # compiles it
    contestants = {f"ours, {describe_devices(data_mesh())}": lambda: speed(extract, images)}
    if PEER.value is not None:
        contestants["torch-fidelity"] = speed_of_peer
        contestants["torch-fidelity, channels-last"] = lambda: speed_of_peer("--channels_last")
    found = {name: [] for name in contestants}
    for _ in range(ROUNDS.value):
        for name, measure in contestants.items():
            found[name].append(measure())
    print(f"batches of {BATCH_SIZE.value}")
    for name, speeds in found.items():
        print(f"{name:30}  {statistics.median(speeds):.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f})")


def random_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights that keep activations in the usual range; others might be slower to compute with."""

    def weight(name, shape):
        if len(shape) > 1:
            return rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return np.full(shape, name.endswith(("running_var", "bn.weight")), np.float32)

    return {name: weight(name, shape) for name, shape in weight_shapes().items()}


def speed(extract: InceptionExtractor, images: np.ndarray) -> float:
    """Images/s of our network."""
    start, batches = time.perf_counter(), 0
    while batches == 0 or time.perf_counter() - start < SECONDS.value:
        extract(images)
        batches += 1
    return batches * len(images) / (time.perf_counter() - start)


def speed_of_peer(*flags: str) -> float:
    """Images/s that a process of --peer measures."""
    limits = [f"--batch_size={BATCH_SIZE.value}", f"--seconds={SECONDS.value}"]
    command = [PEER.value, PEER_SCRIPT, "speed", *limits, *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.match(r"([\d.]+) images/s", printed)[1])


if __name__ == "__main__":
    cli.run(main)
