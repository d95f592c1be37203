"""The report of a ladder: what its students generate, how good it is, and how fast.

report/index.html        the page, which needs none of the other files
report/evaluation.json   the table; evaluation.md and evaluation.tex have it too
report/samples/          the first samples of each row of the table
report/samples.png       the same noise through the teacher and every student
report/distances.png     the first metric by sampling steps
report/metrics.png       the other metrics by sampling steps, if there are any
report/speed.png         the first metric by seconds per image
report/samplers.png      DDIM and ancestral sampling of the teacher
report/trajectories.png  the predicted image at each step, from the same noise
report/nearest.png       the dataset's images that are nearest to samples
report/classes.png       samples by class, if the models have classes
report/guidance.png      samples by guidance weight, if the students take it
report/training.png      the training losses of all models
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..errors import InputError
from ..evaluation import tables
from ..evaluation.evaluate import PipelineLoader, pipeline_loader
from ..evaluation.ladders import evaluate_ladder, ladder_runs, teacher_guidance
from ..evaluation.measure import Evaluator
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, read_evaluation
from ..interop import local_path
from ..keys import seed_key
from ..methods import ladder_rungs
from ..pipeline import Pipeline
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, write_atomic
from ..training.runs import locked, read_metrics
from . import pictures
from .html_page import Picture, Table, render_page
from .pictures import SAMPLES_FOLDER, LadderReport
from .plots import Points

EVALUATION_FILE = "evaluation.json"
# What reports on one page must have in common, and the flag of the command report that sets it.
SHARED_SETTINGS = {"features": "--features", "wanted": "--metrics", "num_samples": "--num_samples"}
TEACHER_STEPS = 16  # of the teacher's trajectory; fewer if the report samples the teacher with fewer
NUM_TRAJECTORIES = 2  # noise images whose trajectories are shown
NUM_WEIGHTS = 3  # guidance weights, equally spaced over the range of the models
NUM_GUIDED = 10  # samples with each guidance weight


def write_report(
    config: ConfigDict, workdir: epath.PathLike, evaluators: Sequence[Evaluator], reference: Reference
) -> None:
    """Measure a finished ladder and write its report. Rows that an earlier report measured are kept.

    All processes generate samples; only the main process reads the data and writes files.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      evaluators: what samples are measured by, from `evaluation.ladders.evaluators_and_reference`.
      reference: the images to compare samples with, from the same function.

    Raises:
      InputError: if another process works in the ladder's folder.
    """
    workdir = as_path(workdir)
    with locked(workdir):
        rows = len(ladder_runs(config, workdir))
        multihost.print_on_main(
            f"report  {workdir}: measuring {rows} models and samplers with {config.eval.num_samples:,} samples each"
        )
        _write_report(config, workdir, evaluators, reference)


def _write_report(
    config: ConfigDict, workdir: epath.Path, evaluators: Sequence[Evaluator], reference: Reference
) -> None:
    folder = workdir / "report"
    teacher = local_path(config.distillation.teacher_checkpoint_path)
    open_pipeline = pipeline_loader(config, teacher=teacher)

    # Sample and measure, in all processes.
    evaluation = evaluate_ladder(
        config, workdir, evaluators, reference, folder / EVALUATION_FILE,
        open_pipeline=open_pipeline, samples_folder=folder / SAMPLES_FOLDER,
        log=lambda line: multihost.print_on_main(f"report  {line}"),
    )  # fmt: skip
    trajectories = sample_trajectories(config, workdir, open_pipeline)
    guided = sample_guidance_weights(config, workdir, open_pipeline)
    class_labels = _class_labels(open_pipeline(teacher))
    if not multihost.is_main():
        return

    # Write the tables.
    published = tables.published_fids(config)
    write_atomic(folder / "evaluation.md", tables.markdown(evaluation, published))
    write_atomic(folder / "evaluation.tex", tables.latex(evaluation, published))

    # Save the pictures, and the page that shows them.
    ladder = LadderReport(workdir.name, workdir, config, evaluation, class_labels)
    sections = [
        pictures.same_noise(ladder, folder),
        *pictures.quality_curves([ladder], folder),
        *pictures.ancestral_samples(ladder, folder),
        pictures.predicted_images(trajectories, folder),
        *pictures.samples_by_class(ladder, folder),
        *pictures.samples_by_guidance(guided, ladder.class_labels, folder),
        pictures.nearest_images(ladder, reference.images, evaluators[0], folder),
        *pictures.training_losses(_losses([ladder]), folder),
    ]
    rungs = ladder_rungs(config)
    title = f"{_data_name(config, reference)}: {rungs[0].teacher_num_steps} sampling steps become {rungs[-1].num_steps}"
    _write_page(title, [ladder], sections, folder)


def _data_name(config: ConfigDict, reference: Reference) -> str:
    """The name of the reference images. A folder of images goes by the folder's name."""
    is_folder = config.dataset.name == reference.name == "ImageFolder"
    return PurePath(config.dataset.args.path).name if is_folder else reference.name


def write_joint_report(ladders: Sequence[tuple[epath.PathLike, ConfigDict]], folder: epath.PathLike) -> None:
    """Write one page with the reports of several ladders side by side.

    Args:
      ladders: the folder and the resolved config of each ladder.
      folder: for index.html and its pictures.

    Raises:
      InputError: if a ladder has no report, or if the reports differ in the data or in `SHARED_SETTINGS`.
    """
    folder = as_path(folder)
    reports = [_read_report(as_path(path), config) for path, config in ladders]
    for other in reports[1:]:
        _check_comparable(reports[0], other)
    reports = [
        ladder._replace(name=name)
        for ladder, name in zip(reports, _unique_names([ladder.workdir for ladder in reports]), strict=True)
    ]
    sections = [
        pictures.students_side_by_side(reports, folder),
        *pictures.quality_curves(reports, folder),
        *pictures.training_losses(_losses(reports), folder),
    ]
    _write_page(" and ".join(ladder.name for ladder in reports), reports, sections, folder)


def _unique_names(paths: Sequence[epath.Path]) -> list[str]:
    """The last parts of paths: as few as tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths)):
        shortened = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(shortened)) == len(paths):
            return shortened
    return [str(path) for path in paths]


def sample_trajectories(
    config: ConfigDict, workdir: epath.Path, open_pipeline: PipelineLoader
) -> dict[str, np.ndarray]:
    """The predicted images at every step of the teacher and of the students with 8 to 2 steps, from the same noise.

    Every process must call it.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      open_pipeline: loads models.

    Returns:
      uint8 images `[num_steps, n, height, width, channels]`, by the model's title.
    """
    runs = ladder_runs(config, workdir)
    teacher = next(iter(runs))
    students = [entry for entry in runs if entry.model == "student" and 2 <= entry.num_steps <= 8]
    trajectories = {}
    most = min(TEACHER_STEPS, teacher.num_steps)
    for entry, num_steps in [(teacher, most), *((student, student.num_steps) for student in students)]:
        pipeline = open_pipeline(runs[entry])
        trajectories[f"{entry.model}, {num_steps} steps"] = pipeline.trajectory(
            seed_key(0), NUM_TRAJECTORIES, num_steps=num_steps, sampler="ddim", **teacher_guidance(config, entry)
        )
    return trajectories


def sample_guidance_weights(
    config: ConfigDict, workdir: epath.Path, open_pipeline: PipelineLoader
) -> dict[Entry, dict[float, np.ndarray]]:
    """Samples of the teacher and of the last student with several guidance weights, from the same noise.

    Every process must call it.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      open_pipeline: loads models.

    Returns:
      uint8 images by weight, for both models; empty if the students do not take a guidance weight.
    """
    allowed = config.model.args.get("guidance_range")
    if allowed is None:
        return {}
    runs = ladder_runs(config, workdir)
    teacher, *_, last = runs
    samples = {}
    for entry in (teacher, last):
        pipeline = open_pipeline(runs[entry])
        samples[entry] = {
            weight: pipeline.sample(seed_key(0), NUM_GUIDED, guidance=weight, num_steps=entry.num_steps)
            for weight in np.linspace(*allowed, NUM_WEIGHTS).tolist()
        }
    return samples


def _read_report(workdir: epath.Path, config: ConfigDict) -> LadderReport:
    evaluation = read_evaluation(workdir / "report" / EVALUATION_FILE)
    if evaluation is None:
        raise InputError(
            f"{str(workdir)!r} has no readable report/{EVALUATION_FILE}. To write it, run: "
            f"diffusion_distillation report --workdir={workdir}"
        )
    return LadderReport(workdir.name, workdir, config, evaluation)


def _check_comparable(first: LadderReport, other: LadderReport) -> None:
    settings = first.evaluation.settings
    other_settings = other.evaluation.settings
    if other_settings["reference"] != settings["reference"]:
        raise InputError(
            f"{str(first.workdir)!r} and {str(other.workdir)!r} were compared with different data, so one page cannot "
            "show both. Give ladders of the same dataset."
        )
    for name, flag in SHARED_SETTINGS.items():
        if other_settings[name] != settings[name]:
            raise InputError(
                f"The reports differ in {flag[2:]}: {settings[name]} in {str(first.workdir)!r}, {other_settings[name]} "
                f"in {str(other.workdir)!r}. Measure both alike: diffusion_distillation report "
                f"--workdir={other.workdir} {flag}=..."
            )


def _class_labels(pipeline: Pipeline) -> Sequence[str]:
    if pipeline.num_classes == 1:
        return ()
    names = pipeline.class_names or map(str, range(pipeline.num_classes))
    return [f"class {name}" if name.isdecimal() else name for name in names]


def _losses(ladders: Sequence[LadderReport]) -> dict[str, Points]:
    """The (update, loss) pairs of each model that has logged any, by its label."""
    losses: dict[str, Points] = {}
    for ladder in ladders:
        for entry, run in ladder_runs(ladder.config, ladder.workdir).items():
            label = "base model" if entry.model == "teacher" else entry.steps
            if len(ladders) > 1:
                label = f"{ladder.name}, {label}"
            if label not in losses and (lines := read_metrics(run)):
                losses[label] = [(line["step"], line["loss"]) for line in lines]
    return losses


def _write_page(title: str, ladders: Sequence[LadderReport], sections: Sequence[Picture], folder: epath.Path) -> None:
    """Write index.html, for one ladder or several."""
    several = len(ladders) > 1
    measurements: list[Table] = []
    configs: dict[str, str] = {}
    for ladder in ladders:
        header, *rows = tables.table_rows(ladder.evaluation, tables.published_fids(ladder.config))
        measurements.append(Table(ladder.name if several else "", header, rows))
        configs[f"Configuration of {ladder.name}" if several else "Configuration"] = ladder.config.to_json(indent=2)
    text = render_page(
        title, describe_environment(), [_by_steps(ladders)], sections, configs,
        summary=" ".join(f"{ladder.name}: {_summary(ladder)}" if several else _summary(ladder) for ladder in ladders),
        measurements=measurements,
    )  # fmt: skip
    write_atomic(folder / "index.html", text)


def _by_steps(ladders: Sequence[LadderReport]) -> Table:
    """The first criterion of teachers and students, by sampling steps with DDIM."""
    models = [(ladder, model) for ladder in ladders for model in ("teacher", "student")]
    values = {
        (ladder.name, model): {entry.num_steps: ladder.value(entry) for entry in ladder.entries(model)}
        for ladder, model in models
    }
    steps = sorted({num_steps for by_steps in values.values() for num_steps in by_steps}, reverse=True)
    rows = []
    for (name, model), by_steps in values.items():
        title = "teacher, undistilled" if model == "teacher" else "students"
        title = f"{name}: {title}" if len(ladders) > 1 else title
        rows.append([title, *(by_steps.get(num_steps, "") for num_steps in steps)])
    return Table(f"{ladders[0].criterion.title} by sampling steps", ["", *map(str, steps)], rows)


def _summary(ladder: LadderReport) -> str:
    """The last student beside its undistilled teacher with as few steps and with most steps."""
    student, teachers = ladder.entries("student")[-1], ladder.entries("teacher")
    shown = {entry.num_steps: entry for entry in teachers if entry.num_steps == student.num_steps}
    shown |= {entry.num_steps: entry for entry in teachers[:1]}
    without = " and ".join(f"{ladder.value(entry)} in {entry.steps}" for entry in shown.values())
    return (
        f"In {student.steps}, the student has {ladder.criterion.title} {ladder.value(student)}. Without distillation, "
        f"its teacher has {without}."
    )
