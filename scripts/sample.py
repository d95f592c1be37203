"""Draws images from a checkpoint.

    python scripts/sample.py --checkpoint=runs/digits/ladder/steps_0004 --num_samples=64 --seed=0 --out=samples.png

`--out=samples.npz` writes an array instead of a picture, and `--out=samples/` a PNG file for each image, as tools that
compute FIDs read them; the same command again draws those that are not there yet. `--trajectory=steps.png` also draws
the image that the model predicts at every step, from noise on the left to the sample on the right. Several processes
draw together when each is started with --coordinator, --num_processes and --process_id, as for training; the first
writes the files.

--checkpoint may also be an archive that scripts/export.py wrote; a checkpoint in the format of the paper's code, with
the --config of its model; or a URL of one of these.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from diffusion_distillation import cli, interop
from diffusion_distillation.checkpoints import params_hash
from diffusion_distillation.errors import InputError, did_you_mean
from diffusion_distillation.keys import MOST_SEED, seed_key
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.report import sample_folder
from diffusion_distillation.report.grids import save_grid
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path, save_atomic
from diffusion_distillation.shapes import Params

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The folder of a run, or another model's path.", required=True)
CONFIG = cli.define_config()
OUT = flags.DEFINE_string(
    "out",
    None,
    "Where the images go: a .png grid, a .npz with 'images', or a folder, which ends in / or has no suffix.",
    required=True,
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many images.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same images.", lower_bound=0, upper_bound=MOST_SEED)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps; by default the model's own.", lower_bound=1)
SAMPLER = cli.define_sampler()
ETA = flags.DEFINE_float("eta", 0.0, "Share of fresh noise at every step of 'ddim'.", lower_bound=0.0, upper_bound=1.0)
CLIP = flags.DEFINE_boolean(
    "clip", None, "Clip the x predicted at every step to [-1, 1]; by default as the config has."
)
FLOAT = flags.DEFINE_boolean("float", False, "In a .npz: float32 images in [-1, 1], not uint8.")
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Weight of guidance, 0 for the label alone; by default as the config has. See `Pipeline.sample`."
)
LABELS = flags.DEFINE_list(
    "labels", None, "Classes of a class-conditional model, by name or number, repeated in turn: --labels=3,7,cats."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "How many to draw at a time.", lower_bound=1)
TRAJECTORY = flags.DEFINE_string("trajectory", None, "Where a picture of every step of the first 8 samples goes.")
PROCESSES = cli.ProcessFlags()


def main() -> None:
    """Runs the script."""
    out = as_path(OUT.value)
    to_folder = out.is_dir() or not out.suffix or OUT.value.endswith("/")
    if not to_folder and out.suffix not in (".png", ".npz"):
        raise InputError(f"--out={OUT.value} must end in .png or .npz, or in / for a folder.")
    if FLOAT.value and (to_folder or out.suffix != ".npz"):
        raise InputError(f"--float is for a .npz, and --out={OUT.value} is none: PNG files hold uint8. Leave one out.")
    PROCESSES.start(min(NUM_SAMPLES.value, BATCH_SIZE.value), cli.dtype_of(CHECKPOINT.value))
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value)
    pipeline = Pipeline(params, metadata, NUM_STEPS.value)
    key, num_samples = seed_key(SEED.value), NUM_SAMPLES.value
    classes = None if LABELS.value is None else parse_labels(LABELS.value, metadata.class_names or ())
    options = dict(sampler=SAMPLER.value, eta=ETA.value, clip=CLIP.value, guidance=GUIDANCE.value)

    def labels(index):
        return None if classes is None else classes[index % len(classes)]

    if to_folder:
        settings = settings_of(params, metadata.config, pipeline.num_steps, classes)
        index = sample_folder.missing_indices(out, settings, num_samples)
    else:
        index = np.arange(num_samples)
    batches = pipeline.stream(key, index, labels(index), batch_size=BATCH_SIZE.value, **options)
    if to_folder:
        about = {"checkpoint": CHECKPOINT.value, "step": metadata.step, **settings}
        write_folder(out, about, index, batches)
    else:
        write_file(out, batches)
    if TRAJECTORY.value is not None:
        shown = min(8, num_samples)
        steps = pipeline.trajectory(key, shown, labels(np.arange(shown)), **options)
        if multihost.is_main():
            pictures = steps.swapaxes(0, 1).reshape(-1, *pipeline.image_shape)
            save_grid(pictures, as_path(TRAJECTORY.value), columns=len(steps))
        cli.saved(f"the sampling trajectories of {cli.counted(shown, 'image')} to {TRAJECTORY.value}")
    there = f"; {num_samples - len(index):,} of them were there already" if len(index) < num_samples else ""
    cli.saved(
        f"{cli.counted(num_samples, 'image')}, {cli.counted(pipeline.num_steps, 'step')} each, to {OUT.value}{there}",
        cli.command("evaluate", checkpoint=CHECKPOINT.value, out="evaluation.json"),
    )


def write_file(out: epath.Path, batches: Iterable[np.ndarray]) -> None:
    """Writes a grid or an array of all images."""
    images = np.concatenate([np.clip(x, -1, 1) if FLOAT.value else to_uint8(x) for x in batches])
    if not multihost.is_main():
        return
    if out.suffix == ".png":
        save_grid(images, out)
    else:
        save_atomic(out, lambda file: np.savez_compressed(file, images=images))


def write_folder(out: epath.Path, about: dict[str, Any], index: np.ndarray, batches: Iterable[np.ndarray]) -> None:
    """Writes the images of these numbers to a folder, batch after batch."""
    if multihost.is_main():
        sample_folder.create(out, about)
    total, done, quiet = NUM_SAMPLES.value, 0, None if multihost.is_main() else True  # None: unless on a terminal
    with tqdm(total=total, initial=total - len(index), unit=" images", disable=quiet) as bar:
        for x in batches:
            if multihost.is_main():
                sample_folder.save_images(out, index[done : done + len(x)], to_uint8(x))
            done += len(x)
            bar.update(len(x))


def settings_of(params: Params, config: ConfigDict, num_steps: int, classes: np.ndarray | None) -> dict[str, Any]:
    """What shapes a sample: the parameters, the seed and the options, whether given or left to the config."""
    return {
        "parameters": params_hash(params),
        "seed": SEED.value,
        "num_steps": num_steps,
        "sampler": SAMPLER.value or config.sampler,
        "eta": ETA.value,
        "clip": config.model.eval_clip_denoised if CLIP.value is None else CLIP.value,
        "labels": None if classes is None else [str(number) for number in classes],
        **guidance_of(config),
    }


def guidance_of(config: ConfigDict) -> dict[str, float]:
    """The weight of guidance; nothing where there is none, as in folders from before there could be."""
    weight = config.model.eval_guidance if GUIDANCE.value is None else GUIDANCE.value
    return {"guidance": weight} if weight else {}


def parse_labels(labels: list[str], class_names: Sequence[str]) -> np.ndarray:
    """The class numbers of labels that are names or numbers. Raises an InputError for any other label.

    Names go first, since reports show classes by their names: folders named 1, 2 and 10 are the classes "1", "10", "2".
    """

    def number_of(label: str) -> int:
        if label in class_names:
            return class_names.index(label)
        with contextlib.suppress(ValueError, OverflowError):
            return int(np.int32(label))
        of_names = f", or class names.{did_you_mean(label, class_names)}" if class_names else "."
        raise InputError(f"--labels={','.join(labels)} must be class numbers, such as --labels=3,7{of_names}")

    return np.array([number_of(label) for label in labels or [""]], np.int32)


if __name__ == "__main__":
    cli.run(main)
