"""Measures samples: Fréchet distance (FID with Inception), KID, Inception Score, precision, recall and others.

    python scripts/evaluate.py --checkpoint=runs/digits/ladder/steps_0004 --features=classifier --out=evaluation.json
    python scripts/evaluate.py --checkpoint=runs/digits/ladder --features=classifier --out=ladder.json
    python scripts/evaluate.py --samples=samples/ --reference=cifar10.npz --features=inception --out=evaluation.json

--checkpoint is a run, a student or a whole ladder. --samples is images that anyone made: a folder of images, an .npy of
uint8 images, or an .npz with `images` or `arr_0`. They are compared with --reference, which takes the same kinds or an
.npz with published `mu` and `sigma`; the default is the dataset of the checkpoint's config. evaluation.json has the
values under `metrics`. evaluation.md and evaluation.tex beside it have them as a table, with the published values if
the config is one of the paper's. Run the same command again to resume an interrupted evaluation.

An FID is the Fréchet distance with Inception's features and 50,000 samples: use --features=inception, whose weights
scripts/convert_inception.py makes. With other features, the distance is named after them, such as frechet_pixels.
"""

from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffusion_distillation import cli, interop
from diffusion_distillation.checkpoints import newest_step, params_hash
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import tables
from diffusion_distillation.evaluation.ladders import check_finished, evaluate_ladder, ladder_runs
from diffusion_distillation.evaluation.measure import generated_samples, make_evaluators, stored_samples
from diffusion_distillation.evaluation.metrics import METRICS, required_fields
from diffusion_distillation.evaluation.reference import (
    Reference,
    convert_channels,
    dataset_reference,
    load_reference,
    save_statistics,
)
from diffusion_distillation.evaluation.results import Entry, Evaluation, evaluate
from diffusion_distillation.interop.archive import is_archive
from diffusion_distillation.keys import MOST_SEED, seed_key
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.report import sample_folder
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path, read_json, write_atomic
from diffusion_distillation.training.runs import read_config

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, a student or a ladder, or another model's path.")
CONFIG = cli.define_config()
SAMPLES = flags.DEFINE_string("samples", None, "Images made by someone else: a folder, an .npz or an .npy.")
REFERENCE = flags.DEFINE_string(
    "reference", None, "A folder of images, an .npz or an .npy; by default the dataset of the checkpoint's config."
)
FEATURES = flags.DEFINE_list(
    "features", ["pixels"], "pixels, classifier, inception or package.module:function; several with commas between."
)
WANTED = flags.DEFINE_list("metrics", ["frechet"], f"Some of {', '.join(METRICS)}; 'all' for all that need no classes.")
OUT = flags.DEFINE_string("out", None, "The evaluation.json.", required=True)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", None, "Of each model; by default 50,000, or all.", lower_bound=2)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps; by default the model's own.", lower_bound=1)
SAMPLER = cli.define_sampler()
SEED = flags.DEFINE_integer("seed", 0, "The seed of the noise.", lower_bound=0, upper_bound=MOST_SEED)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "How many to draw at a time.", lower_bound=1)
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Weight of guidance; by default the config's model.eval_guidance. See `Pipeline.sample`."
)
REPEATS = flags.DEFINE_integer("repeats", 1, "Sets of samples; the best value and the spread are given.", lower_bound=1)
KEEP = flags.DEFINE_string("keep", None, "A folder that the samples of a run are kept in, a PNG file each.")
SAVE_REFERENCE = flags.DEFINE_string("save_reference", None, "An .npz for mu and sigma of the reference.")
INCEPTION = flags.DEFINE_string("inception", None, "The file of Inception's weights, where it is not in its place.")
PROCESSES = cli.ProcessFlags()

NUM_IMAGES = 50_000  # as for published FIDs


def main() -> None:
    """Runs the script."""
    if (CHECKPOINT.value is None) == (SAMPLES.value is None):
        raise InputError("Give either --checkpoint or --samples.")
    out = as_path(OUT.value)
    if out.suffix != ".json":
        raise InputError(f"--out={OUT.value} must end in .json.")
    if SAVE_REFERENCE.value is not None and (
        len(FEATURES.value) > 1 or not {"frechet", "fid", "all"} & {*WANTED.value}
    ):
        raise InputError("--save_reference needs one kind of --features, and frechet among --metrics.")
    PROCESSES.start(BATCH_SIZE.value, "float32" if CHECKPOINT.value is None else cli.dtype_of(CHECKPOINT.value))
    if SAMPLES.value is not None:
        found, config = of_samples(out)
    elif is_ladder():
        found, config = of_ladder(out)
    else:
        found, config = of_run(out)
    if multihost.is_main():
        published = tables.published(config)
        write_atomic(out.with_suffix(".md"), tables.markdown(found, published))
        write_atomic(out.with_suffix(".tex"), tables.latex(found, published))
        print(tables.markdown(found, published), end="")
    model = CHECKPOINT.value is not None and not is_ladder()
    following = cli.command("export", checkpoint=CHECKPOINT.value, out=out.with_suffix("")) if model else ""
    cli.saved(f"the evaluation to {out}, and as tables to {out.stem}.md and {out.stem}.tex beside it", following)


def of_samples(out: epath.Path) -> tuple[Evaluation, None]:
    """Measures images that are there already."""
    for flag in (NUM_STEPS, SAMPLER, GUIDANCE, KEEP):
        if flag.value is not None:
            raise InputError(f"--{flag.name} is for a --checkpoint: --samples are there already.")
    if REPEATS.value > 1:
        raise InputError("--repeats is for a --checkpoint: --samples are one set.")
    config = None if CONFIG.value is None else resolve(CONFIG.value)
    if REFERENCE.value is None and config is None:
        raise InputError("--samples need a --reference to be judged against, or a --config that names a dataset.")
    given = load_reference(SAMPLES.value)
    if given.images is None:
        raise InputError(f"--samples={SAMPLES.value} has statistics alone, and no images.")
    num_samples = min(NUM_SAMPLES.value or len(given.images), len(given.images))
    measured_by = evaluators_of(config, num_samples, given.images.image_shape[2])
    if (against := measured_by[1].images) is not None:
        given = convert_channels(given, against.image_shape[2])
    draw, about = stored_samples(given.images), {"samples": SAMPLES.value, "content": given.content}
    return judge({Entry("samples"): None}, lambda entry, first: draw, measured_by, out, about, num_samples, 1), None


def of_run(out: epath.Path) -> tuple[Evaluation, ConfigDict]:
    """Measures the samples of a run."""
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value)
    pipeline, config = Pipeline(params, metadata, NUM_STEPS.value), metadata.config
    model = "student" if pipeline.distilled_for else "teacher"
    entry = Entry(model, SAMPLER.value or config.sampler, pipeline.num_steps)
    num_samples = NUM_SAMPLES.value or NUM_IMAGES
    settings = dict(batch_size=min(BATCH_SIZE.value, num_samples), num_steps=entry.num_steps, sampler=entry.sampler)

    about = {"checkpoint": CHECKPOINT.value, "parameters": params_hash(params), "seed": SEED.value}
    about["clip"] = config.model.eval_clip_denoised
    if guidance := guidance_of(config):
        settings["guidance"] = about["guidance"] = guidance
    if KEEP.value is not None:
        about["keep"] = KEEP.value
        kept = as_path(KEEP.value)
        sample_folder.missing_indices(kept, {**about, **entry._asdict()}, num_samples)  # or it is of other samples
        if multihost.is_main():
            sample_folder.create(kept, {**about, **entry._asdict()})

    def draw(entry, first):
        drawn = generated_samples(pipeline, seed_key(SEED.value), first=first, **settings)
        if KEEP.value is None:
            return drawn
        return drawn._replace(keep=lambda index, images: sample_folder.save_images(kept, first + index, images))

    measured_by = evaluators_of(config, num_samples, pipeline.image_shape[2])
    run = {entry: interop.local_path(CHECKPOINT.value)}
    return judge(run, draw, measured_by, out, about, num_samples, REPEATS.value), config


def guidance_of(config: ConfigDict) -> float:
    """The weight of guidance that is asked for."""
    return config.model.eval_guidance if GUIDANCE.value is None else GUIDANCE.value


def is_ladder() -> bool:
    """Whether the checkpoint is a ladder's folder."""
    path = interop.local_path(CHECKPOINT.value)
    if newest_step(path) is not None or not (path / "config.json").exists() or is_archive(path):
        return False
    return "distillation" in read_json(path / "config.json")


def of_ladder(out: epath.Path) -> tuple[Evaluation, ConfigDict]:
    """Measures a teacher and all its students."""
    for flag in (NUM_STEPS, SAMPLER, KEEP):
        if flag.value is not None:
            raise InputError(f"--{flag.name} is for a single run; {CHECKPOINT.value!r} is a ladder.")
    workdir = as_path(CHECKPOINT.value)
    config = read_config(workdir)
    check_finished(config, workdir)
    options = dict(seed=SEED.value, num_samples=NUM_SAMPLES.value or NUM_IMAGES, repeats=REPEATS.value)
    options["guidance"] = guidance_of(config)
    options["batch_size"] = BATCH_SIZE.value
    _, metadata = interop.load(next(iter(ladder_runs(config, workdir).values())), config)
    evaluators, reference = evaluators_of(config, options["num_samples"], metadata.image_shape[2])
    return evaluate_ladder(config, workdir, evaluators, reference, out, **options), config


def judge(runs, draw, measured_by, out, about, num_samples, repeats) -> Evaluation:
    """`evaluate`; `measured_by` is of `evaluators_of`."""
    evaluators, reference = measured_by
    settings: dict[str, Any] = dict(about=about, num_samples=num_samples, repeats=repeats)
    return evaluate(runs, draw, evaluators, reference, out, **settings)


def evaluators_of(config: ConfigDict | None, num_samples: int, channels: int) -> tuple[list, Reference]:
    """What the flags ask to measure, and the reference. `channels` is the samples' number of channels."""
    needs_data = config is not None and (REFERENCE.value is None or "classifier" in FEATURES.value)
    source = load_source(config.dataset.name, **config.dataset.args) if needs_data else None
    if REFERENCE.value is None:
        reference = dataset_reference(source, config.dataset)
    else:
        reference = load_reference(REFERENCE.value)
    reference = convert_channels(reference, channels)
    in_color = reference.images is not None and reference.images.image_shape[2] > channels
    if in_color and CHECKPOINT.value is not None and set(FEATURES.value) != {"inception"}:
        raise InputError(
            f"--reference={REFERENCE.value} has color images, but the model makes gray ones. Give gray images, or "
            "--features=inception."
        )
    every = [name for name in METRICS if "labels" not in required_fields([name])]
    metrics = every if WANTED.value == ["all"] else WANTED.value
    evaluators = make_evaluators(FEATURES.value, metrics, num_samples, source, reference, INCEPTION.value)
    if SAVE_REFERENCE.value is not None and multihost.is_main():
        save_statistics(SAVE_REFERENCE.value, evaluators[0].reference().statistics, evaluators[0].extractor)
    return evaluators, reference


if __name__ == "__main__":
    cli.run(main)
