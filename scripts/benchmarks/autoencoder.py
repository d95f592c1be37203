"""Time an autoencoder of latent diffusion, in turns with diffusers.

    make peer && python scripts/benchmarks/autoencoder.py --peer=.venv-peer/bin/python

The autoencoder has Stable Diffusion's architecture and random weights, which both libraries read from one folder. Each
kind of work of each library has its own process, which is idle while another one is timed. diffusers runs eagerly and
compiled. The script first checks that both compute the same. The columns are images/s, medians over turns of --seconds,
and our rate divided by the better one of diffusers. Set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 as the Makefile does.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from turns import Timed, Worker, take_turns

from diffusion_distillation import cli
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.interop import diffusers, load_autoencoder
from diffusion_distillation.networks.autoencoder import AutoencoderKL
from diffusion_distillation.runtime.files import as_path

HERE = Path(__file__).parent
WORK = ("encode", "decode")

IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Side of the images, a multiple of 8.", lower_bound=8)
CHANNELS = flags.DEFINE_list("channels", ["128", "256", "512", "512"], "Channels of each level.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images per call.", lower_bound=1)
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the activations.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 10, "Length of a turn.", lower_bound=0)
PEER = flags.DEFINE_string("peer", None, "A Python with torch and diffusers, as from make peer.", required=True)


def main() -> None:
    if shutil.which(PEER.value) is None:
        raise InputError(f"--peer={PEER.value} is not a program. Pass the Python of make peer.")
    if IMAGE_SIZE.value % 2 ** (len(CHANNELS.value) - 1):
        raise InputError(f"--image_size={IMAGE_SIZE.value} must be a multiple of {2 ** (len(CHANNELS.value) - 1)}.")
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to the timed processes
    peer = [PEER.value, str(HERE / "autoencoder_peer.py")]
    commands = [[sys.executable, str(HERE / "autoencoder_ours.py")], peer, [*peer, "--compile"]]
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder))
        for dtype in DTYPES.value:
            setup = {"folder": folder, "dtype": dtype, "image_size": IMAGE_SIZE.value}
            check(commands, setup)
            for work in WORK:
                names, rates = measure(commands, setup, work)
                if work == WORK[0]:
                    measured = f"{dtype}, {IMAGE_SIZE.value}x{IMAGE_SIZE.value}, batch {BATCH_SIZE.value}"
                    head = [measured, *names, "ratio"]
                    print(f"\n| {' | '.join(head)} |\n{'| --- ' * len(head)}|", flush=True)
                cells = [work, *(f"{rate:.3g}" for rate in rates), f"{rates[0] / max(rates[1:]):.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def write_random(folder: Path) -> None:
    """Write an autoencoder with random weights in the format of diffusers, and what it makes of an image."""
    network = AutoencoderKL(channels=tuple(map(int, CHANNELS.value)))
    rng, shape = np.random.default_rng(0), (IMAGE_SIZE.value, IMAGE_SIZE.value, 3)
    image = rng.uniform(-1, 1, (1, *shape)).astype(np.float32)
    params = jax.jit(network.init)(jax.random.key(0), image)["params"]
    diffusers.autoencoder.write(as_path(folder), network, jax.device_get(params), scale=0.18215, image_shape=shape)
    encode, decode, _ = load_autoencoder(folder)
    mean, std = encode(image)
    np.savez(folder / "expected.npz", image=image, mean=mean, std=std, decoded=decode(mean))


def check(commands: list[list[str]], setup: dict[str, Any]) -> None:
    """Check that both libraries compute the same."""
    for command in commands[:2]:
        worker = Worker(command, setup)
        error = worker.ask("error")["error"]
        worker.close()
        if error > (1e-4 if setup["dtype"] == "float32" else 0.1):
            raise RunError(f"{worker.name} computes another function: its relative error is {error:.1e}.")


def measure(commands: list[list[str]], setup: dict[str, Any], work: str) -> tuple[list[str], list[float]]:
    """Time one kind of work. Returns the libraries and their images/s."""
    timed = [Timed(command, setup, work, BATCH_SIZE.value) for command in commands]
    take_turns(timed, rounds=ROUNDS.value, seconds=SECONDS.value)
    found = [one.result() for one in timed]
    return [one["worker"] for one in found], [BATCH_SIZE.value / one["seconds"] for one in found]


if __name__ == "__main__":
    cli.run(main)
