"""Measure what saving in the background costs: the time of a training step, with and without a save in progress.

    python scripts/benchmarks/checkpoints.py --workdir=runs/benchmark_checkpoints

The script trains configs/cifar_base.py with fewer channels on random images, and saves as scripts/train.py does. The
state (parameters, average, Adam's moments) takes about 100 MB in 1,820 arrays. The cost of a save includes the call
that starts it. Steps with and without a save take turns, so that other load affects both alike. On a CPU, the steps
keep all cores busy, so a save slows them by all the CPU time that it takes.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.checkpoints import Checkpoints, Metadata
from diffusion_distillation.config import load, resolve
from diffusion_distillation.data import ArraySource, read_batches
from diffusion_distillation.methods import make_method
from diffusion_distillation.networks.model import init_params, make_model
from diffusion_distillation.runtime.cpu import use_all_cpu_cores
from diffusion_distillation.runtime.devices import data_mesh
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runner import Runner
from diffusion_distillation.training.step import init_state

WORKDIR = flags.DEFINE_string("workdir", None, "A new folder, on the disk to measure.", required=True)
SAVES = flags.DEFINE_integer("saves", 4, "Checkpoints to save.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 96, "Channels of the U-Net; 32 to try this script.", lower_bound=32)
BLOCKS = flags.DEFINE_integer("blocks", 3, "Residual blocks per level; 0 to try this script.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per training step.", lower_bound=1)


def main() -> None:
    workdir = as_path(WORKDIR.value)
    config = load(Path(__file__).parents[2] / "configs" / "cifar_base.py")
    config.model.args.update(ch=WIDTH.value, emb_ch=WIDTH.value, num_res_blocks=BLOCKS.value)
    config.train.batch_size = BATCH_SIZE.value
    config = resolve(config)
    use_all_cpu_cores(config.train.batch_size)
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), np.uint8)
    source = ArraySource(images, np.zeros(len(images)), 1)
    model = make_model(config.model, source.image_shape, source.num_classes)
    method = make_method(config)
    runner = Runner(config, method, model, data_mesh())
    params = init_params(model.network, jax.random.key(0), source.image_shape, source.num_classes)
    state = init_state(config, method, params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    state, _ = runner.place(state, None)
    metadata = Metadata(config=config, image_shape=source.image_shape, num_classes=source.num_classes, num_steps=0)
    batches = read_batches(source, 0, range(10**6), config.train.batch_size)

    def step(state):
        state, metrics = runner.steps(state, jax.random.key(0), None, [next(batches)])
        jax.block_until_ready(metrics)
        return state

    workdir.mkdir(parents=True)
    with Checkpoints(workdir) as checkpoints:
        state = step(step(state))
        checkpoints.save(runner.collect(state), metadata)  # the first one compiles
        checkpoints.wait()
        undisturbed, saving, calls = [], [], []
        for _ in range(SAVES.value):
            state, start = step(state), time.perf_counter()
            checkpoints.save(runner.collect(state), metadata)
            calls.append(time.perf_counter() - start)
            count = 0
            while checkpoints.is_saving():
                state, count = step(state), count + 1
            saving.append((time.perf_counter() - start) / count)
            start = time.perf_counter()
            for _ in range(count):
                state = step(state)
            undisturbed.append((time.perf_counter() - start) / count)
            print(f"{count} steps: {undisturbed[-1]:.3f} s each, {saving[-1]:.3f} s while saving", flush=True)
    batches.close()
    usual, slowed = np.median(undisturbed), np.median(saving)
    print(
        f"A state of {size / 1e6:.0f} MB: {usual:.3f} s per step, {slowed:.3f} s during a save "
        f"({slowed / usual - 1:+.1%}); the call that starts a save returns after {np.median(calls):.3f} s."
    )


if __name__ == "__main__":
    cli.run(main)
