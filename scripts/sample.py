"""Sample images from a checkpoint.

    diffusion_distillation sample --checkpoint=runs/digits/ladder/steps_0004 --num_samples=64 --seed=0 --out=samples.png

--out ends in .png for one picture with all images in a grid, in .npz for an array, or in / for a folder with one PNG
file per image, as tools that compute FIDs read them. The same command run again adds the images that a folder lacks.
--trajectory=steps.png also saves the image that the model predicts at each step, from noise on the left to the sample
on the right.

--checkpoint is a run, a model that the command export wrote, a checkpoint of the paper's code (give the --config of its
model), or the URL of one of these. To sample with several processes, start each with --coordinator, --num_processes and
--process_id, as for training; the first one writes the files.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from diffusion_distillation import cli, interop
from diffusion_distillation.checkpoints import Metadata, warn_if_unfinished
from diffusion_distillation.errors import InputError, did_you_mean
from diffusion_distillation.keys import MAX_SEED, seed_key
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.report import sample_folder
from diffusion_distillation.report.grids import save_grid
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path, save_atomic
from diffusion_distillation.sampling import SAMPLERS
from diffusion_distillation.shapes import Params

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or the path of another model.", required=True)
CONFIG = cli.define_config()
OUT = flags.DEFINE_string(
    "out",
    None,
    "Where to save the images: a .png (a grid), a .npz (the array 'images'), or a folder (ends in / or has no suffix).",
    required=True,
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "Number of images.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the noise; the same seed gives the same images.", lower_bound=0, upper_bound=MAX_SEED
)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps; by default the model's own.", lower_bound=1)
SAMPLER = cli.define_sampler()
ETA = flags.DEFINE_float(
    "eta", 0.0, "Fresh noise at each step of 'ddim': 0 is deterministic, 1 is ancestral.", lower_bound=0, upper_bound=1
)
CLIP = flags.DEFINE_boolean("clip", None, "Clip the predicted x to [-1, 1] at each step; by default as in the config.")
FLOAT = flags.DEFINE_boolean("float", False, "Save float32 images in [-1, 1] to a .npz instead of uint8 images.")
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Guidance weight; 0 uses the label without guidance. By default the config's."
)
GUIDANCE_INTERVAL = cli.define_guidance_interval()
LABELS = flags.DEFINE_list(
    "labels", None, "Classes to sample, by name or number, in turn: --labels=3,7,cats. By default all classes."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images to sample at a time.", lower_bound=1)
TRAJECTORY = flags.DEFINE_string("trajectory", None, "A .png for the predicted images at each step of 8 samples.")
PROCESSES = cli.ProcessFlags()


def main() -> None:
    out = as_path(OUT.value)
    to_folder = out.is_dir() or not out.suffix or OUT.value.endswith("/")
    check_out(out, to_folder)
    PROCESSES.start(min(NUM_SAMPLES.value, BATCH_SIZE.value), cli.dtype_of(CHECKPOINT.value), training=False)
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value, shard=None)
    warn_if_unfinished(CHECKPOINT.value, metadata)
    pipeline = Pipeline(params, metadata, NUM_STEPS.value)
    key = seed_key(SEED.value)
    classes = None if LABELS.value is None else class_numbers(LABELS.value, metadata.class_names or ())
    options = dict(
        sampler=SAMPLER.value,
        eta=ETA.value,
        clip=CLIP.value,
        guidance=GUIDANCE.value,
        guidance_interval=GUIDANCE_INTERVAL.value,
    )

    def labels(indices: np.ndarray) -> np.ndarray | None:
        return None if classes is None else classes[indices % len(classes)]

    # Sample and save the images.
    steps = cli.counted(pipeline.num_steps, "step")
    sampler = SAMPLERS[SAMPLER.value or metadata.config.sampler].title
    indices = np.arange(NUM_SAMPLES.value)
    if to_folder:
        settings = sample_settings(params, metadata, pipeline.num_steps, classes)
        indices = sample_folder.missing_indices(out, settings, NUM_SAMPLES.value)
    if len(indices):
        multihost.print_on_main(f"Sampling {cli.counted(len(indices), 'image')} with {sampler}, {steps} each.")
    batches = pipeline.stream(key, indices, labels(indices), batch_size=BATCH_SIZE.value, **options)
    if to_folder:
        about = {"checkpoint": CHECKPOINT.value, "step": metadata.step, **settings}
        save_folder(out, about, indices, map(pipeline.to_uint8, batches))
    elif FLOAT.value:
        save_file(out, (np.clip(pipeline.decode(x), -1, 1) for x in batches))
    else:
        save_file(out, map(pipeline.to_uint8, batches))

    # Save the trajectories.
    if TRAJECTORY.value is not None:
        shown = np.arange(min(8, NUM_SAMPLES.value))
        predicted = pipeline.trajectory(key, len(shown), labels(shown), **options)
        if multihost.is_main():
            images = predicted.swapaxes(0, 1).reshape(-1, *pipeline.image_shape)
            save_grid(images, as_path(TRAJECTORY.value), columns=len(predicted))
        cli.saved(f"the sampling trajectories of {cli.counted(len(shown), 'image')} to {TRAJECTORY.value}")

    num_kept = NUM_SAMPLES.value - len(indices)
    kept = f"; {num_kept:,} of them existed already" if num_kept else ""
    images = cli.counted(NUM_SAMPLES.value, "image")
    # The folder of a diffusers model does not name its data.
    data = {"reference": "my_images"} if metadata.config.dataset.name == "unknown" else {}
    following = cli.command(
        "evaluate", checkpoint=CHECKPOINT.value, **cli.config_arguments(), **data, out="runs/evaluation.json"
    )
    cli.saved(f"{images}, {steps} each, to {OUT.value}{kept}", following)


def check_out(out: epath.Path, to_folder: bool) -> None:
    """Raise an InputError if --out has another suffix, or if it cannot hold what --float asks for."""
    if not to_folder and out.suffix not in (".png", ".npz"):
        raise InputError(f"--out={OUT.value} must end in .png or .npz, or in / for a folder.")
    if FLOAT.value and (to_folder or out.suffix != ".npz"):
        raise InputError(
            f"--float needs an --out that ends in .npz: --out={OUT.value} holds PNG images, which are uint8."
        )


def save_file(out: epath.Path, batches: Iterable[np.ndarray]) -> None:
    """Save all images as a grid or as an array."""
    images = np.concatenate(list(batches))
    if not multihost.is_main():
        return
    if out.suffix == ".png":
        save_grid(images, out)
    else:
        save_atomic(out, lambda file: np.savez_compressed(file, images=images))


def save_folder(
    out: epath.Path, settings: Mapping[str, Any], indices: np.ndarray, batches: Iterable[np.ndarray]
) -> None:
    """Save the images with these indices to a folder, batch by batch, with a progress bar on a terminal."""
    if multihost.is_main():
        sample_folder.create(out, settings)
    total = NUM_SAMPLES.value
    done = 0
    hidden = None if multihost.is_main() else True  # None shows it on terminals
    with tqdm(total=total, initial=total - len(indices), unit=" images", disable=hidden) as bar:
        for images in batches:
            if multihost.is_main():
                sample_folder.save_images(out, indices[done : done + len(images)], images)
            done += len(images)
            bar.update(len(images))


def sample_settings(params: Params, metadata: Metadata, num_steps: int, classes: np.ndarray | None) -> dict[str, Any]:
    """What a sample depends on: model, seed and options, set by flags or else by the config."""
    config = metadata.config
    settings = {
        **interop.sampled_model(CHECKPOINT.value, params, metadata),
        "seed": SEED.value,
        "num_steps": num_steps,
        "sampler": SAMPLER.value or config.sampler,
        "eta": ETA.value,
        "clip": config.model.eval_clip_denoised if CLIP.value is None else CLIP.value,
        "labels": None if classes is None else [str(number) for number in classes],
    }
    weight = config.model.eval_guidance if GUIDANCE.value is None else GUIDANCE.value
    if weight:  # folders of unguided samples have no such field
        settings["guidance"] = weight
    interval = GUIDANCE_INTERVAL.value or config.model.eval_guidance_interval
    if weight and interval:
        settings["guidance_interval"] = list(interval)
    return settings


def class_numbers(labels: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Convert labels, which are names or numbers of classes, to numbers.

    A name takes precedence, since reports show classes by name: folders named 1, 2 and 10 are the classes "1", "10" and
    "2", with the numbers 0, 1 and 2. A class may have several names, as in "tench, Tinca tinca".

    Raises:
      InputError: for any other label.
    """
    numbers: dict[str, int] = {}
    for names in (lambda name: [name], lambda name: map(str.strip, name.split(","))):
        for class_number, name in enumerate(class_names):
            for one in names(name):
                numbers.setdefault(one, class_number)

    def number(label: str) -> int:
        if label in numbers:
            return numbers[label]
        with contextlib.suppress(ValueError, OverflowError):
            return int(np.int32(label))
        names = f", or class names.{did_you_mean(label, numbers)}" if class_names else "."
        raise InputError(f"--labels={','.join(labels)} must be class numbers, such as --labels=3,7{names}")

    return np.array([number(label) for label in labels or [""]], np.int32)


if __name__ == "__main__":
    cli.run(main)
