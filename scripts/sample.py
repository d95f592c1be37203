"""Draws images from a checkpoint.

    python scripts/sample.py --checkpoint=runs/digits/ladder/steps_0004 --num_samples=64 --seed=0 --out=samples.png

`--out=samples.npz` writes an array instead of a picture. `--trajectory=steps.png` also draws the image that the model
predicts at every step, from noise on the left to the sample on the right. Several processes draw together when each is
started with --coordinator, --num_processes and --process_id, as for training; the first writes the files.
"""

import io

import jax
import numpy as np
from absl import flags

from diffusion_distillation import cli, from_checkpoint, multihost
from diffusion_distillation.errors import InputError
from diffusion_distillation.files import as_path, write_whole
from diffusion_distillation.report.grids import save_grid
from diffusion_distillation.sampling import SAMPLERS

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The folder of a run.", required=True)
OUT = flags.DEFINE_string(
    "out", None, "Where the images go: a .png grid, or a .npz with uint8 'images'.", required=True
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many images.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same images.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps; by default the model's own.", lower_bound=1)
SAMPLER = flags.DEFINE_enum("sampler", None, SAMPLERS, "By default the config's; 'noisy' is ancestral (DDPM) sampling.")
LABELS = flags.DEFINE_list("labels", None, "Classes, of a class-conditional model, repeated in turn: --labels=3,7.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "How many to draw at a time.", lower_bound=1)
TRAJECTORY = flags.DEFINE_string("trajectory", None, "Where a picture of every step of the first 8 samples goes.")
PROCESSES = cli.ProcessFlags()


def main() -> None:
    """Runs the script."""
    out, trajectory = as_path(OUT.value), TRAJECTORY.value and as_path(TRAJECTORY.value)
    if out.suffix not in (".png", ".npz"):
        raise InputError(f"--out={OUT.value} must end in .png or .npz.")
    PROCESSES.start(min(NUM_SAMPLES.value, BATCH_SIZE.value))
    pipeline = from_checkpoint(CHECKPOINT.value, NUM_STEPS.value)
    key, num_samples = jax.random.key(SEED.value), NUM_SAMPLES.value
    labels = None if LABELS.value is None else np.resize(parse_labels(LABELS.value), num_samples)
    images = pipeline.sample(key, num_samples, labels, sampler=SAMPLER.value, batch_size=BATCH_SIZE.value)
    if TRAJECTORY.value is not None:
        shown = min(8, num_samples)
        steps = pipeline.trajectory(key, shown, None if labels is None else labels[:shown], sampler=SAMPLER.value)
    if not multihost.is_main():
        return
    if out.suffix == ".png":
        save_grid(images, out)
    else:
        content = io.BytesIO()
        np.savez_compressed(content, images=images)
        write_whole(out, content.getvalue())
    print(f"{out}: {len(images)} images in {pipeline.num_steps} steps each")
    if TRAJECTORY.value is not None:
        save_grid(steps.swapaxes(0, 1).reshape(-1, *pipeline.image_shape), trajectory, columns=len(steps))
        print(f"{TRAJECTORY.value}: the way of {shown} of them")


def parse_labels(labels: list[str]) -> np.ndarray:
    """The labels as integers; raises an InputError for what is not one."""
    try:
        return np.array(labels, np.int32)
    except ValueError:
        raise InputError(f"--labels={','.join(labels)} must be integers, such as --labels=3,7.") from None


if __name__ == "__main__":
    cli.run(main)
