"""Print how much a student's targets change if its teacher is held and evaluated in bfloat16.

    python scripts/benchmarks/teacher_dtype.py --checkpoint=runs/digits/base

For halvings to several numbers of steps, the table has the root mean square of the change, as a share of the target's
own: of the target in x, and of the target in v. The targets are those of progressive distillation, for the model's
dataset at all times of the student.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_distillation import cli, interop
from diffusion_distillation.data import load_source
from diffusion_distillation.diffusion import Denoiser, q_sample
from diffusion_distillation.distillation import two_step_target
from diffusion_distillation.latents import from_uint8
from diffusion_distillation.networks.model import condition_of, make_model, train_schedule
from diffusion_distillation.shapes import Array, Params

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The teacher.", required=True)
STEPS = flags.DEFINE_list("steps", ["512", "64", "8", "1"], "Sampling steps of the students.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 512, "Images to compute targets for.", lower_bound=1)
PROCESSES = cli.ProcessFlags()


def main() -> None:
    PROCESSES.start(NUM_IMAGES.value, "bfloat16")
    params, metadata = interop.load(CHECKPOINT.value)
    config = metadata.config
    source = load_source(config.dataset.name, **config.dataset.args)
    examples = source[np.arange(NUM_IMAGES.value) % len(source)]
    x = from_uint8(examples["image"])
    labels = None if source.num_classes == 1 else jnp.asarray(examples["label"])
    takes_weights = config.model.args.get("guidance_range") is not None
    weights = jnp.full(len(x), config.model.eval_guidance) if takes_weights else None
    condition = condition_of(labels, weights)
    eps = jax.random.normal(jax.random.key(0), x.shape)
    schedule = train_schedule(config.model)

    def teacher(dtype: str, params: Params) -> Denoiser:
        section = config.model.copy_and_resolve_references()
        with section.unlocked():
            section.dtype = dtype
        model = make_model(section, source.image_shape, source.num_classes)
        return model.denoiser(jax.tree.map(lambda leaf: leaf.astype(dtype), params), condition)

    @jax.jit
    def changes(params: Params, num_steps: Array) -> tuple[Array, Array]:
        i = jnp.arange(len(x)) % num_steps
        z = q_sample(x, eps, schedule(schedule.grid_time(i, num_steps)))
        exact, rounded = (
            two_step_target(teacher(dtype, params), z, i, num_steps, schedule) for dtype in ("float32", "bfloat16")
        )
        return tuple(
            jnp.sqrt(jnp.mean(jnp.square(b - a)) / jnp.mean(jnp.square(a)))
            for a, b in ((exact.x, rounded.x), (exact.v, rounded.v))
        )

    print("| student's steps | change of x | change of v |\n| --- | --- | --- |")
    for num_steps in map(int, STEPS.value):
        of_x, of_v = changes(params, jnp.asarray(num_steps))
        print(f"| {num_steps} | {of_x:.2%} | {of_v:.2%} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
