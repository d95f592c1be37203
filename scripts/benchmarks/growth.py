"""Time how the cost of a sample grows with batch size, resolution, width and steps, and save docs/growth.png.

    python scripts/benchmarks/growth.py --out=docs/growth.png

One quantity at a time is varied from a 1-step sample of a batch of 16 32x32 images, with the U-Net of
configs/cifar_base.py with 64 channels and two blocks per level. A point is the fastest of --turns turns of at least
--seconds each, after compilation. The script prints the figures, and the slope of the second half of each curve: the
power with which the time grows.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from diffusion_distillation import cli
from diffusion_distillation.diffusion import make_denoiser
from diffusion_distillation.networks.unet import UNet
from diffusion_distillation.runtime.cpu import set_cpu_flags
from diffusion_distillation.runtime.devices import data_mesh, describe_devices, enable_compilation_cache
from diffusion_distillation.runtime.files import as_path, save_atomic
from diffusion_distillation.sampling import ddim
from diffusion_distillation.schedules import get_logsnr_schedule

OUT = flags.DEFINE_string("out", "docs/growth.png", "The PNG file to save.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the activations.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each point.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 0.5, "Shortest length of a turn.", lower_bound=0)

BASE = {"batch": 16, "side": 32, "width": 64, "steps": 1}
GROWTH = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "side": (8, 16, 32, 64),
    "width": (32, 64, 96, 128),
    "steps": (1, 4, 16, 64, 256),
}
TITLES = {"batch": "batch size", "side": "resolution", "width": "channels", "steps": "sampling steps"}
SCHEDULE = get_logsnr_schedule("cosine", logsnr_min=-20.0, logsnr_max=20.0)


def main() -> None:
    set_cpu_flags(DTYPE.value)
    enable_compilation_cache()
    print(f"{describe_devices(data_mesh())}, {DTYPE.value}; ms per image")
    found = {}
    for what, values in GROWTH.items():
        found[what] = [1000 * seconds_per_image(**{**BASE, what: value}) for value in values]
        shown = "  ".join(f"{value}: {ms:.2f}" for value, ms in zip(values, found[what], strict=True))
        print(f"{TITLES[what]:15} {shown}  slope {slope(values, found[what]):.2f}", flush=True)
    save_plots(found)


def seconds_per_image(batch: int, side: int, width: int, steps: int) -> float:
    """The time of a sample divided by its batch size."""
    network = UNet(
        num_classes=1, ch=width, emb_ch=4 * width, out_ch=3, ch_mult=(1, 1, 1), num_res_blocks=2,
        attn_resolutions=(8, 16), num_heads=1, dropout=0.0, logsnr_input_type="inv_cos", resblock_resample=True,
        dtype=None if DTYPE.value == "float32" else jnp.bfloat16,
    )  # fmt: skip
    z = np.random.default_rng(0).standard_normal((batch, side, side, 3), np.float32)
    params = jax.jit(network.init)(jax.random.key(0), z, 0.0)
    sample = jax.jit(functools.partial(sample_images, network))
    jax.block_until_ready(sample(params, z, steps))
    return min(turn(lambda: sample(params, z, steps)) for _ in range(TURNS.value)) / batch


def sample_images(network: UNet, params: Any, z: jax.Array, steps: jax.Array) -> jax.Array:
    """Sample by DDIM, as `Pipeline` does."""
    denoise = make_denoiser(lambda z, logsnr: network.apply(params, z, jnp.broadcast_to(logsnr, len(z))), "x")
    return ddim(denoise, z, SCHEDULE, steps)


def turn(call: Callable[[], jax.Array]) -> float:
    """Call again and again for the length of a turn. Returns the mean seconds per call."""
    calls, begun = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - begun < SECONDS.value:
        jax.block_until_ready(call())
        calls += 1
    return (time.perf_counter() - begun) / calls


def slope(values: tuple[int, ...], found: list[float]) -> float:
    """The slope of the second half of a curve on logarithmic axes."""
    middle = len(values) // 2
    return math.log(found[-1] / found[middle]) / math.log(values[-1] / values[middle])


def save_plots(found: dict[str, list[float]]) -> None:
    """Save four plots with logarithmic axes, each with its slope."""
    figure = Figure(figsize=(12, 3.2), dpi=130, layout="constrained")
    for axis, (what, milliseconds) in zip(figure.subplots(1, 4, sharey=True), found.items(), strict=True):
        values = GROWTH[what]
        axis.plot(values, milliseconds, marker="o", color="#4c5c73")
        axis.set(xscale="log", yscale="log", xlabel=TITLES[what])
        axis.set_xticks(values, map(str, values), fontsize=8)
        axis.minorticks_off()
        axis.set_title(f"slope at the end: {slope(values, milliseconds):.2f}", fontsize=9)
        axis.grid(color="#e5e7ea")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms per image")
    save_atomic(as_path(OUT.value), functools.partial(figure.savefig, format="png"))


if __name__ == "__main__":
    cli.run(main)
