"""Print how much memory training takes per device, as a table in gigabytes (1e9 bytes).

    python scripts/benchmarks/memory.py
    python scripts/benchmarks/memory.py --step

By default, the table has the training state of the paper's configs and of DiT-XL/2 on 1, 8 and 64 devices with
config.train.shard='all', which divides everything among the devices; with 'none', every device holds what 1 device
holds. It counts parameters, gradients, Adam's two moments, and the average (base models) or the teacher (students).
Nothing is allocated.

With --step, the table has a whole distillation step of DiT-XL/2 with 32 latents of 32x32x4 per device, as XLA allocates
it on CPU devices: the state, and what the step needs besides. It compiles the step for each row, which takes minutes.
Accelerators need less: XLA's CPU backend computes products of bfloat16 in float32, gathers several layers at once, and
reduces all gradients at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from diffusion_distillation import cli
from diffusion_distillation.config import defaults, load, resolve
from diffusion_distillation.keys import seed_key
from diffusion_distillation.methods import Rung, make_method
from diffusion_distillation.networks.model import init_params, make_model, make_network
from diffusion_distillation.runtime.devices import AXIS
from diffusion_distillation.training.dry_run import bytes_held
from diffusion_distillation.training.runner import Runner
from diffusion_distillation.training.step import Teacher, TrainState, init_state

CONFIGS = {"cifar": (32, 1), "imagenet64": (64, 1000), "bedroom128": (128, 1), "church128": (128, 1)}
DEVICES = (1, 8, 64)
LATENTS = (32, 32, 4)  # of images of 256x256
LATENTS_PER_DEVICE = 32

STEP = flags.DEFINE_bool("step", False, "Print the memory of compiled steps of DiT-XL/2 instead.")
DEPTH = flags.DEFINE_integer("depth", 28, "Blocks of the transformer of --step.", lower_bound=1)


def main() -> None:
    if STEP.value:
        jax.config.update("jax_num_cpu_devices", max(DEVICES))
        print_table("step of DiT-XL/2", ("devices", "state", "step"), step_rows())
    else:
        names = (f"{count} device{'s' * (count != 1)}" for count in DEVICES)
        print_table("config", tuple(names), state_rows())


def print_table(first: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print a Markdown table, row by row."""
    print(f"| {first} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def state_rows() -> Iterator[tuple[str, list[str]]]:
    """The bytes of each config's training state on each number of devices."""
    for name, (size, num_classes) in CONFIGS.items():
        for kind in ("base", "distill"):
            config = load(Path(__file__).parents[2] / "configs" / f"{name}_{kind}.py")
            if kind == "distill":
                config.distillation.teacher_checkpoint_path = "not read"
            state = training_state(resolve(config), (size, size, 3), num_classes)
            yield f"`{name}_{kind}`", [gigabytes(bytes_per_device(*state, count)) for count in DEVICES]
    state = training_state(dit_config(), LATENTS, 1000)
    yield "DiT-XL/2, distillation", [gigabytes(bytes_per_device(*state, count)) for count in DEVICES]


def step_rows() -> Iterator[tuple[str, list[str]]]:
    """The bytes of a distillation step on each number of devices, with more and more that saves memory."""
    options: dict[str, object] = {"dtype": "bfloat16"}
    for added, devices in (
        ({}, 1),
        ({"remat": True}, 1),
        ({"teacher_dtype": "bfloat16"}, 1),
        ({"shard": "all"}, 8),
        ({}, 64),
    ):
        options |= added
        config = dit_config(depth=DEPTH.value, batch_size=LATENTS_PER_DEVICE * devices, **options)
        state, step = step_bytes(config, devices)
        name = ", ".join(f"`{field}={value}`" for field, value in options.items())
        yield name, [str(devices), gigabytes(state), gigabytes(step)]


def dit_config(
    *,
    depth: int = 28,
    batch_size: int = 256,
    dtype: str = "float32",
    remat: bool = False,
    teacher_dtype: str = "float32",
    shard: str = "none",
) -> ConfigDict:
    """The config of a ladder of DiT-XL/2 (Peebles & Xie 2023, table 1)."""
    config = defaults("dit")
    config.dataset.name = "not read"
    config.model.args.update(patch_size=2, hidden_size=1152, depth=depth, num_heads=16, remat=remat)
    config.model.update(mean_type="eps", dtype=dtype)
    config.train.update(batch_size=batch_size, learning_rate=1e-4, ema_decay=0.0, shard=shard)
    config.distillation = dict(teacher_checkpoint_path="not read", start_num_steps=64, teacher_dtype=teacher_dtype)
    return resolve(config)


def step_bytes(config: ConfigDict, num_devices: int) -> tuple[int, int]:
    """Bytes per device of the training state without gradients, and of a whole training step, as XLA allocates it."""
    state, teacher = training_state(config, LATENTS, 1000)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
    runner = Runner(config, make_method(config), make_model(config.model, LATENTS, 1000), mesh, scan=False)
    size = config.train.batch_size
    batch = {"image": np.zeros((size, *LATENTS), np.uint8), "label": np.zeros(size, np.int32)}
    memory = runner.lower(state, seed_key(0), teacher, [batch]).compile().memory_analysis()
    held = memory.argument_size_in_bytes
    return held, held + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def training_state(
    config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[TrainState, Teacher | None]:
    """The shapes of a training state and of its teacher, if there is one."""
    network = make_network(config.model, image_shape, num_classes)
    params = jax.eval_shape(lambda: init_params(network, jax.random.key(0), image_shape, num_classes))
    state = jax.eval_shape(lambda params: init_state(config, make_method(config), params), params)
    if "distillation" not in config:
        return state, None
    dtype = config.distillation.teacher_dtype
    return state, Teacher(params, Rung(np.int32(2), np.int32(1)), dtype=None if dtype == "float32" else dtype)


def bytes_per_device(state: TrainState, teacher: Teacher | None, num_devices: int) -> int:
    """Bytes that training holds on each of `num_devices` devices, without activations and the batch."""
    mesh = AbstractMesh((num_devices,), (AXIS,))
    return bytes_held(state, teacher, mesh, "all")


if __name__ == "__main__":
    cli.run(main)
