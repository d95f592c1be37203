"""Evaluating a ladder: its students, and its teacher undistilled, by DDIM and by ancestral sampling."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import newest_step, params_hash
from ..config import rung_config
from ..data import Source, load_source
from ..errors import InputError
from ..interop import local_path
from ..keys import seed_key
from ..methods import ladder_rungs
from ..runtime import multihost
from ..training.ladder import finished_config, student_folder
from ..training.runs import read_inputs
from .evaluate import PipelineLoader, evaluate, pipeline_loader
from .measure import Evaluator, make_evaluators
from .metrics import METRICS
from .reference import Reference, dataset_reference, reference_images
from .results import Entry, Evaluation
from .samples import generated_samples

# The default sampling steps of a ladder's teacher. Numbers above the ladder's start are skipped, since they cost most.
TEACHER_NUM_STEPS = (256, 64, 16)


def evaluators_and_reference(
    config: ConfigDict, source: Source | None, num_samples: int
) -> tuple[list[Evaluator], Reference]:
    """Make what a config asks for: `config.eval.features` and `metrics`, and the images to compare samples with.

    Call it before training, so that a missing file or an impossible metric is found at once.

    Args:
      config: resolved.
      source: the training data, images or latents; None to load the images alone.
      num_samples: how many samples are to be measured.

    Raises:
      InputError: see `make_evaluators`; or if a metric needs labels, and `config.eval.dataset` has other classes than
        the training data.
    """
    images, name = reference_images(config, source)
    if config.eval.dataset:
        _check_classes(config, images, source)
    reference = dataset_reference(images, name)
    settings = config.eval
    evaluators = make_evaluators(
        settings.features, settings.metrics, num_samples, images, reference, weights=settings.inception
    )
    return evaluators, reference


def _check_classes(config: ConfigDict, images: Source, source: Source | None) -> None:
    """Check that the images to compare with have the labels of the training data, if a metric needs labels."""
    labeled = [name for name in config.eval.metrics if name in METRICS and "labels" in METRICS[name].sample_fields]
    if not labeled:
        return
    source = source or load_source(config.dataset.name, **config.dataset.args)
    here, there = (
        getattr(data, "class_names", None) or [str(number) for number in range(data.num_classes)]
        for data in (images, source)
    )
    if [*here] != [*there]:
        raise InputError(
            f"Metric {labeled[0]!r} compares labels, and config.eval.dataset has other classes, {_first(here)}, than "
            f"the training data, {_first(there)}. Give a dataset with the same classes, or drop the metric from "
            "config.eval.metrics."
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def ladder_runs(config: ConfigDict, workdir: epath.Path) -> dict[Entry, epath.Path]:
    """Return the rows of a ladder's evaluation, each with the folder of its model.

    Args:
      config: the ladder's, resolved.
      workdir: the ladder's folder.
    """
    teacher = local_path(config.distillation.teacher_checkpoint_path)
    rungs = ladder_rungs(config)
    student_steps = [rung.num_steps for rung in rungs]
    start = rungs[0].teacher_num_steps
    usual_steps = [num_steps for num_steps in TEACHER_NUM_STEPS if num_steps <= start]
    ancestral_steps = config.eval.ancestral_num_steps
    if ancestral_steps is None:
        ancestral_steps = usual_steps
    ddim_steps = config.eval.teacher_num_steps
    if ddim_steps is None:
        few_steps = [num_steps for num_steps in student_steps if num_steps <= min(TEACHER_NUM_STEPS)]
        ddim_steps = [min(start, max(TEACHER_NUM_STEPS)), *usual_steps, *few_steps]
    ancestral_steps = sorted(ancestral_steps, reverse=True)
    ddim_steps = sorted({*ddim_steps, *ancestral_steps}, reverse=True)
    return {
        **{Entry("teacher", "ddim", num_steps): teacher for num_steps in ddim_steps},
        **{Entry("teacher", "ancestral", num_steps): teacher for num_steps in ancestral_steps},
        **{Entry("student", "ddim", num_steps): student_folder(workdir, num_steps) for num_steps in student_steps},
    }


def other_runs(
    paths: Sequence[str], num_steps: Sequence[int], image_shape: tuple[int, int, int], open_pipeline: PipelineLoader
) -> dict[Entry, epath.Path]:
    """Return rows of other models for a ladder's evaluation, each with the folder of its model.

    Each model is named after its folder, and sampled with its own sampler.

    Args:
      paths: of the models.
      num_steps: sampling steps of each model; empty for its own.
      image_shape: (height, width, channels) of the ladder's images.
      open_pipeline: from `pipeline_loader`.

    Raises:
      InputError: if a model makes images of another shape, or if a name is not unique.
    """
    runs: dict[Entry, epath.Path] = {}
    names = {"teacher", "student", "samples"}
    for path in paths:
        folder = local_path(path)
        pipeline = open_pipeline(folder)
        if pipeline.image_shape != image_shape:
            raise InputError(f"{path!r} makes images of shape {pipeline.image_shape}; the ladder's are {image_shape}.")
        if folder.name in names:
            raise InputError(
                f"{path!r} would be the second model named {folder.name!r} in the table. Rename its folder."
            )
        names.add(folder.name)
        defaults = pipeline.defaults
        entries = [Entry(folder.name, defaults.sampler, steps) for steps in num_steps or (defaults.num_steps,)]
        runs |= dict.fromkeys(entries, folder)
    return runs


def report_nfe(config: ConfigDict, workdir: epath.Path) -> int:
    """Return the number of network evaluations that `evaluate_ladder` takes.

    Args:
      config: the ladder's, resolved.
      workdir: the ladder's folder.
    """
    return config.eval.num_samples * sum(entry.num_steps for entry in ladder_runs(config, workdir))


def check_finished(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise an InputError that names the first student that is missing or unfinished."""
    for rung in ladder_rungs(config):
        folder = student_folder(workdir, rung.num_steps)
        if finished_config(folder) is None:
            step = multihost.on_main(lambda folder=folder: newest_step(folder)) or 0
            num_updates = rung_config(config, rung).train.num_train_steps
            raise InputError(
                f"The {rung.num_steps}-step student in {str(workdir)!r} has done {step:,} of {num_updates:,} updates. "
                "Run the command distill to its end first."
            )


def check_teacher_unchanged(config: ConfigDict, workdir: epath.Path, open_pipeline: PipelineLoader) -> None:
    """Raise an InputError if the model at teacher_checkpoint_path is not the one that the students learned from.

    Args:
      config: the ladder's, resolved.
      workdir: the ladder's folder.
      open_pipeline: from `pipeline_loader(config)`.
    """
    teacher = config.distillation.teacher_checkpoint_path
    recorded = multihost.on_main(lambda: read_inputs(workdir)).get("teacher")
    if recorded is None:
        return
    current = params_hash(open_pipeline(local_path(teacher)).params)
    if current != recorded:
        raise InputError(
            f"The teacher {teacher!r} changed after the students in {str(workdir)!r} were distilled from it "
            f"(fingerprint {recorded} then, {current} now). Restore the old teacher, distill into another --workdir, "
            "or run the command distill with --change to keep these students beside the new teacher."
        )


def evaluate_ladder(
    config: ConfigDict,
    workdir: epath.Path,
    evaluators: list[Evaluator],
    reference: Reference,
    path: epath.Path,
    *,
    others: Mapping[Entry, epath.Path] | None = None,
    open_pipeline: PipelineLoader | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a finished ladder.

    Args:
      config: the ladder's, resolved.
      workdir: the ladder's folder.
      evaluators: the metrics to compute.
      reference: what samples are compared with.
      path: the evaluation.json.
      others: from `other_runs`, the last rows; default none.
      open_pipeline: see `evaluate_runs`.
      **options: of `evaluate_runs`.

    Raises:
      InputError: if the teacher changed after the students were distilled from it.
    """
    open_pipeline = open_pipeline or pipeline_loader(config)
    check_teacher_unchanged(config, workdir, open_pipeline)
    runs = {**ladder_runs(config, workdir), **(others or {})}
    return evaluate_runs(config, runs, evaluators, reference, path, open_pipeline=open_pipeline, **options)


def teacher_guidance(config: ConfigDict, entry: Entry) -> dict[str, Any]:
    """Return the options with which a ladder's teacher is sampled as its students saw it, guided at one weight.

    Args:
      config: resolved.
      entry: a row. The options are empty for students, and without distillation.teacher_guidance.
    """
    distillation = config.get("distillation")
    if entry.model != "teacher" or distillation is None or distillation.teacher_guidance is None:
        return {}
    interval = distillation.teacher_guidance_interval or (-math.inf, math.inf)  # not that of the teacher's own config
    return {"guidance": distillation.teacher_guidance, "guidance_interval": interval}


def evaluate_runs(
    config: ConfigDict,
    runs: Mapping[Entry, epath.Path],
    evaluators: Sequence[Evaluator],
    reference: Reference,
    path: epath.Path,
    *,
    open_pipeline: PipelineLoader | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    batch_size: int | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    repeats: int = 1,
    samples_folder: epath.Path | None = None,
    log: Callable[[str], Any] = multihost.print_on_main,
) -> Evaluation:
    """Measure models, by default with the settings of a config's `eval` section.

    Args:
      config: resolved.
      runs: the rows, each with the folder of its model.
      evaluators: the metrics to compute.
      reference: what samples are compared with.
      path: the evaluation.json.
      open_pipeline: loads models; by default `pipeline_loader(config)`. Pass one that has the teacher already.
      seed: of the noise, which all rows share.
      num_samples: samples per row; by default config.eval.num_samples.
      batch_size: the largest number of samples generated at a time; by default config.eval.batch_size.
      guidance: the guidance weight of the teacher's and the students' samples; by default config.model.eval_guidance,
        and `teacher_guidance` for the rows of a ladder's teacher. Other models have their own.
      guidance_interval: the smallest and the largest log-SNR at which it acts; by default the models' own.
      repeats: see `evaluate`.
      samples_folder: see `evaluate`.
      log: see `evaluate`.
    """
    open_pipeline = open_pipeline or pipeline_loader(config)
    num_samples = num_samples or config.eval.num_samples
    batch_size = min(batch_size or config.eval.batch_size, num_samples)
    weight = config.model.eval_guidance if guidance is None else guidance

    def make_samples(entry, first):
        options = {}
        if entry.model in ("teacher", "student"):
            options = {"guidance": weight, "guidance_interval": guidance_interval}
        if guidance is None:
            options |= teacher_guidance(config, entry)
        return generated_samples(
            open_pipeline(runs[entry]),
            seed_key(seed),
            batch_size=batch_size,
            first=first,
            num_steps=entry.num_steps,
            sampler=entry.sampler,
            **options,
        )

    settings: dict[str, Any] = {"seed": seed, "clip": config.model.eval_clip_denoised}
    if weight:
        settings["guidance"] = weight
    if guidance_interval is not None:
        settings["guidance_interval"] = list(guidance_interval)
    if guidance is None and (options := teacher_guidance(config, Entry("teacher"))):
        settings["teacher_guidance"] = options
    return evaluate(
        runs,
        make_samples,
        evaluators,
        reference,
        path,
        settings=settings,
        num_samples=num_samples,
        repeats=repeats,
        samples_folder=samples_folder,
        log=log,
    )
