"""Run diffusers if it is installed (make peer), and compare our models with its results."""

import atexit
import functools
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distillation import sampling
from diffusion_distillation.networks.model import eval_schedule, make_model, make_network
from helpers.runs import ROOT, read_until

PEER = ROOT / ".venv-peer" / "bin" / "python"
needs_peer = pytest.mark.skipif(not PEER.exists(), reason="needs PyTorch and diffusers: make peer")


@functools.cache
def server():
    """The process that runs the scripts of tests/peers. Each of pytest-xdist's processes has one."""
    command = [str(PEER), str(ROOT / "tests" / "peers" / "serve.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def peer(*flags, script="diffusers_peer"):
    """Run a script of tests/peers."""
    process = server()
    print(json.dumps([script, *map(str, flags)]), file=process.stdin, flush=True)
    error = json.loads(read_until(process.stdout, "answer ").removeprefix("answer "))
    assert not error, error[-2000:]


def diffusers_images(folder, noise):
    """The uint8 images that the pipeline in a folder generates from noise, `[n, height, width, channels]`."""
    given = folder.with_name(f"{folder.name}_noise.npz")
    out = folder.with_name(f"{folder.name}_images.npz")
    np.savez(given, noise=noise)
    peer("pipeline", f"--folder={folder}", f"--noise={given}", f"--out={out}")
    with np.load(out) as drawn:
        return np.round(255 * drawn["images"]).astype(np.uint8)


def network_error(params, metadata, expected):
    """The relative error of the network's outputs, at the times of the expected ones."""
    config = metadata.config.model
    network = make_network(config, metadata.image_shape, metadata.num_classes)
    num_steps = config.eval_sampling_num_steps
    logsnr = eval_schedule(config)((expected["times"] + 1).astype(np.float32) / np.float32(num_steps))
    y = jnp.arange(len(logsnr)) if metadata.num_classes > 1 else None
    with jax.default_matmul_precision("highest"):
        out = jax.jit(network.apply)({"params": params}, expected["x"], logsnr, y)
    return max(map(relative, out, expected["out"]))


def sample_errors(params, metadata, expected):
    """The relative errors of DDIM samples, by their settings: <spacing>_<steps>_<clip or noclip>."""
    names = [name for name in expected if name.startswith(("trailing", "leading"))]
    return {name: relative(_sample(params, metadata, expected["noise"], name), expected[name]) for name in names}


def _sample(params, metadata, noise, name):
    spacing, num_steps, clip = name.split("_")
    num_steps, config = int(num_steps), metadata.config.model
    num_times = config.eval_sampling_num_steps
    start = 1.0 if spacing == "trailing" else 1 - 1 / num_steps + 1 / num_times
    condition = {"y": jnp.arange(len(noise))} if metadata.num_classes > 1 else {}
    model = make_model(config, metadata.image_shape, metadata.num_classes)
    return _compiled(model, eval_schedule(config), clip == "clip")(
        params, noise, condition, jnp.int32(num_steps), jnp.float32(start)
    )


@functools.cache
def _compiled(model, schedule, clip):
    @jax.jit
    def run(params, noise, condition, num_steps, start):
        denoise = model.denoiser(params, condition, clip_x=clip)
        return sampling.ddim(denoise, noise, schedule, num_steps, start=start)

    return run


def relative(got, expected):
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected))
