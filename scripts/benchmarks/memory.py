"""Print how much memory the training state takes per device, as a table in gigabytes (1e9 bytes).

    python scripts/benchmarks/memory.py

The table has the paper's configs on 1, 8 and 64 devices with config.train.shard='all', which divides everything
among the devices; with 'none', every device holds what 1 device holds. The table counts parameters, gradients, Adam's
two moments, and the average (base models) or the teacher (students). Activations come on top: a smaller
config.train.microbatch_size or config.model.args.remat=True reduces them. Nothing is allocated.
"""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from diffusion_distillation import cli
from diffusion_distillation.config import load, resolve
from diffusion_distillation.methods import Rung, make_method
from diffusion_distillation.networks.model import init_params, make_network
from diffusion_distillation.runtime.devices import AXIS
from diffusion_distillation.training.dry_run import bytes_held
from diffusion_distillation.training.step import Teacher, TrainState, init_state

CONFIGS = {"cifar": (32, 1), "imagenet64": (64, 1000), "bedroom128": (128, 1), "church128": (128, 1)}
DEVICES = (1, 8, 64)


def main() -> None:
    print(f"| config | {' | '.join(f'{count} devices' for count in DEVICES).replace('1 devices', '1 device')} |")
    print(f"|{'---|' * (1 + len(DEVICES))}")
    for name, (size, num_classes) in CONFIGS.items():
        for kind in ("base", "distill"):
            config = load(Path(__file__).parents[2] / "configs" / f"{name}_{kind}.py")
            if kind == "distill":
                config.distillation.teacher_checkpoint_path = "not read"
            state = training_state(resolve(config), (size, size, 3), num_classes)
            counts = [bytes_per_device(*state, count) for count in DEVICES]
            print(f"| `{name}_{kind}` | {' | '.join(f'{count / 1e9:.2f} GB' for count in counts)} |")


def training_state(
    config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[TrainState, Teacher | None]:
    """The shapes of a training state and of its teacher, if there is one."""
    network = make_network(config.model, image_shape, num_classes)
    params = jax.eval_shape(lambda: init_params(network, jax.random.key(0), image_shape, num_classes))
    state = jax.eval_shape(lambda params: init_state(config, make_method(config), params), params)
    return state, Teacher(params, Rung(np.int32(2), np.int32(1))) if "distillation" in config else None


def bytes_per_device(state: TrainState, teacher: Teacher | None, num_devices: int) -> int:
    """Bytes that training holds on each of `num_devices` devices, without activations and the batch."""
    mesh = AbstractMesh((num_devices,), (AXIS,))
    return bytes_held(state, teacher, mesh, "all")


if __name__ == "__main__":
    cli.run(main)
