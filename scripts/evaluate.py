r"""Evaluate samples: Fréchet distance (FID with Inception features), KID, Inception Score, precision, recall and more.

    diffusion_distillation evaluate --checkpoint=runs/digits/ladder/steps_0004 --features=classifier \
        --out=runs/evaluation.json
    diffusion_distillation evaluate --checkpoint=runs/digits/ladder --features=classifier --out=runs/ladder.json
    diffusion_distillation evaluate --samples=samples/ --reference=cifar10.npz --features=inception \
        --out=runs/evaluation.json

--checkpoint is a run, a student, or a ladder, which is evaluated with its teacher and all students. --others adds
other models to a ladder's table. --samples is a set of images from anywhere: a folder of images, an .npy of uint8
images, or an .npz with `images` or `arr_0`. --reference takes the same kinds, or an .npz with published `mu` and
`sigma`; by default, the dataset of its config.

--sampler=ddim,heun --num_steps=4,8 evaluates a single model with each of these samplers and numbers of steps, and saves
evaluation.png, the metrics by network evaluations per sample.

The script prints a table, and saves it as evaluation.md and evaluation.tex. evaluation.json has the values under
`metrics`. For the paper's configs, the table has the published values too. An interrupted evaluation resumes.

An FID is the Fréchet distance with Inception features and 50,000 samples: use --features=inception, after
convert_inception has made the weights. With other features, the distance is named after them, such as
frechet_pixels.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffusion_distillation import cli, interop
from diffusion_distillation.checkpoints import newest_step, warn_if_unfinished
from diffusion_distillation.config import model_of
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import tables
from diffusion_distillation.evaluation.evaluate import evaluate, pipeline_loader
from diffusion_distillation.evaluation.ladders import check_finished, evaluate_ladder, other_runs
from diffusion_distillation.evaluation.measure import Evaluator, make_evaluators
from diffusion_distillation.evaluation.metrics import METRICS
from diffusion_distillation.evaluation.reference import (
    Reference,
    convert_channels,
    dataset_reference,
    load_reference,
    reference_images,
    save_statistics,
)
from diffusion_distillation.evaluation.results import Entry, Evaluation
from diffusion_distillation.evaluation.samples import SampleSet, generated_samples, stored_samples
from diffusion_distillation.interop.archive import is_archive
from diffusion_distillation.keys import MAX_SEED, seed_key
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.report import sample_folder
from diffusion_distillation.report.pictures import nfe_panels
from diffusion_distillation.report.plots import NFE_LABEL, save_curves
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path, read_json, write_atomic
from diffusion_distillation.training.runs import read_config

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, a student or a ladder, or the path of another model.")
CONFIG = cli.define_config()
SAMPLES = flags.DEFINE_string("samples", None, "Images to evaluate: a folder, an .npz or an .npy.")
REFERENCE = flags.DEFINE_string(
    "reference", None, "A folder of images, an .npz or an .npy; by default the dataset of the checkpoint's config."
)
FEATURES = flags.DEFINE_list(
    "features", ["pixels"], "pixels, classifier, inception or package.module:function; several separated by commas."
)
METRIC_NAMES = flags.DEFINE_list(
    "metrics", ["frechet"], f"Some of {', '.join(METRICS)}; 'all' for all that need no class labels."
)
OUT = flags.DEFINE_string("out", None, "The JSON file to save.", required=True)
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Samples of each model; by default 50,000, or all of --samples.", lower_bound=2
)
NUM_STEPS = flags.DEFINE_list(
    "num_steps", None, "Sampling steps, or several numbers separated by commas; by default the model's own."
)
SAMPLERS = cli.define_samplers()
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=MAX_SEED)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images to sample at a time.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance weight; by default the config's model.eval_guidance.")
GUIDANCE_INTERVAL = cli.define_guidance_interval()
REPEATS = flags.DEFINE_integer(
    "repeats", 1, "Sets of samples; the table has the best value and the spread.", lower_bound=1
)
OTHERS = flags.DEFINE_list(
    "others", [], "Other models for a ladder's table, such as published ones, each with its own sampler."
)
OTHERS_NUM_STEPS = flags.DEFINE_list("others_num_steps", None, "Sampling steps of --others; by default each one's own.")
KEEP = flags.DEFINE_string("keep", None, "A folder to save a run's samples in, one PNG file per image.")
SAVE_REFERENCE = flags.DEFINE_string("save_reference", None, "An .npz to save mu and sigma of the reference in.")
INCEPTION = flags.DEFINE_string("inception", None, "The file of Inception's weights, if it is not in the cache folder.")
PROCESSES = cli.ProcessFlags()

DEFAULT_SAMPLES = 50_000  # as for published FIDs


def main() -> None:
    out = as_path(OUT.value)
    check_flags(out)
    dtype = "float32" if CHECKPOINT.value is None else cli.dtype_of(CHECKPOINT.value)
    PROCESSES.start(BATCH_SIZE.value, dtype, training=False)
    if OTHERS.value and (CHECKPOINT.value is None or not is_ladder()):
        raise InputError(f"--others={','.join(OTHERS.value)} needs a ladder's folder as --checkpoint.")
    if OTHERS_NUM_STEPS.value is not None and not OTHERS.value:
        raise InputError(
            f"--others_num_steps={','.join(OTHERS_NUM_STEPS.value)} is for --others. Omit it, or set --others."
        )
    following = []
    if SAMPLES.value is not None:
        evaluation, config = evaluate_samples(out)
    elif is_ladder():
        evaluation, config = evaluate_whole_ladder(out)
    else:
        evaluation, config = evaluate_run(out)
        options = dict(checkpoint=CHECKPOINT.value, **cli.config_arguments(), out=out.with_suffix(""))
        following = [cli.command("export", **options)]
    if multihost.is_main():
        published = tables.published_fids(config)
        write_atomic(out.with_suffix(".md"), tables.markdown(evaluation, published))
        write_atomic(out.with_suffix(".tex"), tables.latex(evaluation, published))
        print(tables.markdown(evaluation, published), end="")
    cli.saved(f"the evaluation to {out}, and its table to {out.with_suffix('.md')} and .tex", *following)


def check_flags(out: epath.Path) -> None:
    """Raise an InputError for flags that contradict each other."""
    if (CHECKPOINT.value is None) == (SAMPLES.value is None):
        raise InputError("Give either --checkpoint or --samples.")
    if out.suffix != ".json":
        raise InputError(f"--out={OUT.value} must end in .json.")
    has_frechet = bool({"frechet", "fid", "all"} & {*METRIC_NAMES.value})
    if SAVE_REFERENCE.value is not None and (len(FEATURES.value) > 1 or not has_frechet):
        raise InputError("--save_reference needs one kind of --features, and frechet among --metrics.")


def evaluate_samples(out: epath.Path) -> tuple[Evaluation, None]:
    """Evaluate the images of --samples."""
    for flag in (NUM_STEPS, SAMPLERS, GUIDANCE, GUIDANCE_INTERVAL, KEEP):
        if flag.value is not None:
            raise InputError(f"--{flag.name} needs a --checkpoint to sample from; --samples has its images already.")
    if REPEATS.value > 1:
        raise InputError(f"--repeats={REPEATS.value} needs a --checkpoint to sample from; --samples is a single set.")
    config = None if CONFIG.value is None else model_of(CONFIG.value)
    if REFERENCE.value is None and config is None:
        raise InputError("--samples needs a --reference to compare with, or a --config that names a dataset.")
    samples = load_reference(SAMPLES.value)
    if samples.images is None:
        raise InputError(f"--samples={SAMPLES.value} has statistics but no images. Give images.")
    num_samples = min(NUM_SAMPLES.value or len(samples.images), len(samples.images))
    evaluators, reference = evaluators_of_flags(config, num_samples, samples.images.image_shape[2])
    if reference.images is not None:
        samples = convert_channels(samples, reference.images.image_shape[2])
    sample_set = stored_samples(samples.images)
    settings = {"samples": SAMPLES.value, "content": samples.content}
    evaluation = evaluate(
        {Entry("samples"): None}, lambda entry, first: sample_set, evaluators, reference, out,
        settings=settings, num_samples=num_samples,
    )  # fmt: skip
    return evaluation, None


def evaluate_run(out: epath.Path) -> tuple[Evaluation, ConfigDict]:
    """Evaluate the samples of a single model, with each of the samplers and numbers of steps."""
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value, shard=None)
    warn_if_unfinished(CHECKPOINT.value, metadata)
    pipeline = Pipeline(params, metadata)
    config = metadata.config
    model = "student" if pipeline.distilled_for else "teacher"
    entries = [
        Entry(model, sampler, num_steps)
        for sampler in SAMPLERS.value or [config.sampler]
        for num_steps in numbers_of_steps(NUM_STEPS) or [pipeline.num_steps]
    ]
    if KEEP.value is not None and len(entries) > 1:
        raise InputError(f"--keep={KEEP.value} holds one set of samples. Give one --sampler and one --num_steps.")
    num_samples = NUM_SAMPLES.value or DEFAULT_SAMPLES

    # What the samples depend on.
    options: dict[str, Any] = dict(batch_size=min(BATCH_SIZE.value, num_samples))
    identity = interop.sampled_model(CHECKPOINT.value, params, metadata)
    settings = {"checkpoint": CHECKPOINT.value, **identity, "seed": SEED.value}
    settings["clip"] = config.model.eval_clip_denoised
    weight = config.model.eval_guidance if GUIDANCE.value is None else GUIDANCE.value
    if weight:
        options["guidance"] = weight
        settings["guidance"] = weight
    interval = GUIDANCE_INTERVAL.value or config.model.eval_guidance_interval
    if weight and interval:
        options["guidance_interval"] = interval
        settings["guidance_interval"] = list(interval)

    # Sample, measure, and keep the samples if --keep is set.
    keep = None
    if KEEP.value is not None:
        settings["keep"] = KEEP.value
        kept = {**settings, **entries[0]._asdict()}
        keep = sample_keeper(as_path(KEEP.value), kept, num_samples)

    def samples_from(entry: Entry, first: int) -> SampleSet:
        samples = generated_samples(
            pipeline, seed_key(SEED.value), first=first, num_steps=entry.num_steps, sampler=entry.sampler, **options
        )
        if keep is None:
            return samples
        return samples._replace(save=lambda indices, images: keep(first + indices, images))

    evaluators, reference = evaluators_of_flags(config, num_samples, pipeline.image_shape[2])
    evaluation = evaluate(
        dict.fromkeys(entries, interop.local_path(CHECKPOINT.value)), samples_from, evaluators, reference, out,
        settings=settings, num_samples=num_samples, repeats=REPEATS.value,
    )  # fmt: skip
    if keep is not None:
        check_kept(as_path(KEEP.value), kept, num_samples * REPEATS.value, out)
    if len(entries) > 1 and multihost.is_main():
        save_curves(nfe_panels(evaluation), NFE_LABEL, out.with_suffix(".png"))
    return evaluation, config


def evaluate_whole_ladder(out: epath.Path) -> tuple[Evaluation, ConfigDict]:
    """Evaluate a ladder's teacher and all its students."""
    for flag in (NUM_STEPS, SAMPLERS, KEEP):
        if flag.value is not None:
            raise InputError(
                f"--{flag.name} needs a single model, but {CHECKPOINT.value!r} is a ladder. Give a student's folder."
            )
    workdir = as_path(CHECKPOINT.value)
    config = read_config(workdir)
    check_finished(config, workdir)
    num_samples = NUM_SAMPLES.value or DEFAULT_SAMPLES
    open_pipeline = pipeline_loader(config)
    teacher = open_pipeline(interop.local_path(config.distillation.teacher_checkpoint_path))
    others = other_runs(OTHERS.value, numbers_of_steps(OTHERS_NUM_STEPS), teacher.image_shape, open_pipeline)
    evaluators, reference = evaluators_of_flags(config, num_samples, teacher.image_shape[2])
    evaluation = evaluate_ladder(
        config, workdir, evaluators, reference, out, others=others, open_pipeline=open_pipeline, seed=SEED.value,
        num_samples=num_samples, batch_size=BATCH_SIZE.value, guidance=GUIDANCE.value,
        guidance_interval=GUIDANCE_INTERVAL.value, repeats=REPEATS.value,
    )  # fmt: skip
    return evaluation, config


def numbers_of_steps(flag: flags.FlagHolder) -> list[int]:
    """The numbers in --num_steps or --others_num_steps; empty for the models' own."""
    numbers = flag.value or []
    if not all(number.isdecimal() and int(number) >= 1 for number in numbers):
        raise InputError(f"--{flag.name}={','.join(numbers)} must be integers of at least 1, such as 1,2.")
    return [int(number) for number in numbers]


def is_ladder() -> bool:
    """Whether --checkpoint is a ladder's folder."""
    path = interop.local_path(CHECKPOINT.value)
    if newest_step(path) is not None or not (path / "config.json").exists() or is_archive(path):
        return False
    return "distillation" in read_json(path / "config.json")


def sample_keeper(
    folder: epath.Path, settings: Mapping[str, Any], num_samples: int
) -> Callable[[np.ndarray, np.ndarray], None]:
    """Prepare a folder for samples. Returns a function that saves images by their indices."""
    sample_folder.missing_indices(folder, settings, num_samples)  # refuses a folder with other settings
    if multihost.is_main():
        sample_folder.create(folder, settings)
    return functools.partial(sample_folder.save_images, folder)


def check_kept(folder: epath.Path, settings: Mapping[str, Any], num_samples: int, out: epath.Path) -> None:
    """Raise an InputError if a folder lacks samples, because they were measured before it was lost."""
    missing = sample_folder.missing_indices(folder, settings, num_samples)
    if len(missing):
        raise InputError(
            f"--keep={folder} lacks {len(missing):,} of {num_samples:,} samples, which were measured before and not "
            f"sampled again. To sample them, remove {out}, or generate them with the command sample."
        )


def evaluators_of_flags(
    config: ConfigDict | None, num_samples: int, channels: int
) -> tuple[list[Evaluator], Reference]:
    """Make what the flags ask for.

    Args:
      config: resolved; it names the dataset for the reference and for the classifier. None without a config.
      num_samples: of each model.
      channels: of the samples.
    """
    needs_data = config is not None and (REFERENCE.value is None or "classifier" in FEATURES.value)
    source, name = reference_images(config) if needs_data else (None, "")
    reference = dataset_reference(source, name) if REFERENCE.value is None else load_reference(REFERENCE.value)
    reference = convert_channels(reference, channels)
    has_color = reference.images is not None and reference.images.image_shape[2] > channels
    if has_color and CHECKPOINT.value is not None and set(FEATURES.value) != {"inception"}:
        raise InputError(
            f"--reference={REFERENCE.value} has color images, but the model makes gray ones. Give gray images, or "
            "--features=inception."
        )
    unlabeled = [name for name in METRICS if "labels" not in METRICS[name].sample_fields]
    metrics = unlabeled if METRIC_NAMES.value == ["all"] else METRIC_NAMES.value
    evaluators = make_evaluators(FEATURES.value, metrics, num_samples, source, reference, INCEPTION.value)
    if SAVE_REFERENCE.value is not None and multihost.is_main():
        save_statistics(SAVE_REFERENCE.value, evaluators[0].reference().statistics, evaluators[0].extractor)
    return evaluators, reference


if __name__ == "__main__":
    cli.run(main)
