"""The pictures of a ladder's report: each function saves one PNG file in a folder and returns it with its caption."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ..data import Source
from ..evaluation.dataset_features import nearest_neighbors
from ..evaluation.measure import Evaluator
from ..evaluation.metrics import Criterion, format_number
from ..evaluation.results import Entry, Evaluation, Row, load_samples
from ..sampling import SAMPLERS
from .html_page import Picture
from .plots import (
    STEPS_LABEL,
    Column,
    Curve,
    Panel,
    Points,
    metric_panel,
    row_labels,
    save_columns,
    save_curves,
    save_losses,
)

SAMPLES_FOLDER = "samples"  # of a report, for the first samples of each row
NUM_SAMPLES = 10  # samples beside their nearest images
NUM_NEIGHBORS = 3  # nearest images of each
NUM_CLASSES = 10  # classes with a column each

Images = UInt8[np.ndarray, "n height width channels"]


class LadderReport(NamedTuple):
    """What the pictures of a ladder are made from.

    Attributes:
      name: the ladder's name on a page with several ladders.
      workdir: the ladder's folder.
      config: the ladder's config, resolved.
      evaluation: the rows of its report.
      class_labels: a label for each class; empty if there are no classes or their names are unknown.
    """

    name: str
    workdir: epath.Path
    config: ConfigDict
    evaluation: Evaluation
    class_labels: Sequence[str] = ()

    @property
    def criterion(self) -> Criterion:
        """The first criterion, whose values stand above image columns."""
        return self.evaluation.criteria[0]

    def entries(self, model: str, sampler: str = "ddim") -> list[Entry]:
        """The rows of a model and a sampler, from most to fewest steps."""
        entries = [row.entry for row in self.evaluation.rows]
        return [entry for entry in entries if (entry.model, entry.sampler) == (model, sampler)]

    def samples(self, entry: Entry) -> Images:
        """The first samples of a row."""
        return load_samples(self.workdir / "report" / SAMPLES_FOLDER, entry)

    def column(self, entry: Entry, name: str) -> Column:
        """The first samples of a row, headed by a name, the number of steps and the first criterion's value."""
        return Column(f"{name}\n{entry.steps}\n{self.value(entry)}", self.samples(entry), entry.model)

    def value(self, entry: Entry) -> str:
        """The first criterion of a row, rounded."""
        [row] = [row for row in self.evaluation.rows if row.entry == entry]
        return format_number(row.values[self.criterion].value)


def same_noise(ladder: LadderReport, folder: epath.Path) -> Picture:
    """The same noise through the teacher, the undistilled teacher with few steps, and every student."""
    teacher = ladder.entries("teacher")
    few_steps = [entry for entry in teacher[1:] if entry.num_steps <= 8]
    students = ladder.entries("student")
    columns = [ladder.column(entry, entry.model) for entry in [*teacher[:1], *few_steps, *students]]
    path = folder / "samples.png"
    _save_same_noise(columns, ladder.class_labels, path)
    caption = (
        f"Each row starts from the same noise. Columns: the teacher with {teacher[0].steps}, the undistilled teacher "
        f"with few steps, and the students. The number in each heading is the {ladder.criterion.title}. Good students "
        "look like the first column."
    )
    return Picture("The same noise through every sampler", caption, path)


def students_side_by_side(ladders: Sequence[LadderReport], folder: epath.Path) -> Picture:
    """The same noise through the last students of several ladders."""
    columns = [
        ladder.column(entry, ladder.name.replace("/", "/\n"))
        for ladder in ladders
        for entry in ladder.entries("student")[-4:]
    ]
    path = folder / "samples.png"
    _save_same_noise(columns, (), path)
    caption = (
        "Each row starts from the same noise. Columns: the last students of each ladder. The number in each heading is "
        f"the {ladders[0].criterion.title}. With equal steps, the better ladder looks more like data."
    )
    return Picture("The same noise through the students", caption, path)


def quality_curves(ladders: Sequence[LadderReport], folder: epath.Path) -> list[Picture]:
    """The metrics by sampling steps, and the first of them by sampling time."""
    rows = [row for ladder in ladders for row in ladder.evaluation.rows]
    shared = [criterion for criterion in ladders[0].evaluation.criteria if all(criterion in row.values for row in rows)]
    first, *others = shared
    baselines = ladders[0].evaluation.baselines

    def by_steps(criterion: Criterion) -> Panel:
        curves = _curves(ladders, criterion, lambda row: row.entry.num_steps)
        return metric_panel(criterion, curves, baselines.get(criterion.name))

    settings = ladders[0].evaluation.settings
    caption = f"{settings['num_samples']:,} samples each, compared with {settings['reference'][0]}."
    if first.name in baselines:
        caption += " The dashed line is the distance between two random halves of the data."
    caption += " Distillation pays where the students are better than the teacher with equally few steps."
    pictures = [Picture("Quality by sampling steps", caption, folder / "distances.png")]
    save_curves([by_steps(first)], STEPS_LABEL, folder / "distances.png")
    if others:
        save_curves([by_steps(criterion) for criterion in others], STEPS_LABEL, folder / "metrics.png")
        pictures.append(Picture("Other metrics", "The same samples by the other metrics.", folder / "metrics.png"))
    by_time = metric_panel(first, _curves(ladders, first, lambda row: 1 / row.images_per_sec))
    save_curves([by_time], "seconds per image", folder / "speed.png")
    caption = (
        "Sampling time is that of all devices together, without compilation. Good students reach the teacher's quality "
        "in less time."
    )
    return [*pictures, Picture("Quality by sampling time", caption, folder / "speed.png")]


def nfe_panels(evaluation: Evaluation) -> list[Panel]:
    """The metrics of one model by network evaluations per sample (`plots.NFE_LABEL`), one curve per sampler.

    Args:
      evaluation: rows of one model.
    """
    samplers = list(dict.fromkeys(row.entry.sampler for row in evaluation.rows))

    def curve(criterion: Criterion, color: int, sampler: str) -> Curve:
        rows = [row for row in evaluation.rows if row.entry.sampler == sampler]
        points = sorted((row.entry.nfe, row.values[criterion].value) for row in rows)
        return Curve(SAMPLERS[sampler].title, rows[0].entry.model, color, points)

    return [
        metric_panel(criterion, [curve(criterion, color, sampler) for color, sampler in enumerate(samplers)])
        for criterion in evaluation.criteria
    ]


def ancestral_samples(ladder: LadderReport, folder: epath.Path) -> list[Picture]:
    """The same noise through the undistilled teacher by DDIM and by ancestral sampling; empty without the latter."""
    ancestral = {entry.num_steps: entry for entry in ladder.entries("teacher", "ancestral")}
    ddim = [entry for entry in ladder.entries("teacher") if entry.num_steps in ancestral]
    if not ddim:
        return []
    columns = []
    for entry in ddim:
        columns.append(ladder.column(entry, "DDIM"))
        columns.append(ladder.column(ancestral[entry.num_steps], "ancestral"))
    path = folder / "samplers.png"
    _save_same_noise(columns, ladder.class_labels, path)
    caption = (
        "Each row starts from the same noise. Columns: the undistilled teacher by both samplers. The number in each "
        f"heading is the {ladder.criterion.title}. With few steps, ancestral sampling is usually the worse of the two."
    )
    return [Picture("DDIM and ancestral sampling of the teacher", caption, path)]


def predicted_images(trajectories: Mapping[str, UInt8[np.ndarray, "..."]], folder: epath.Path) -> Picture:
    """The image that each model predicts at each of its steps.

    Args:
      trajectories: predictions `[num_steps, n, height, width, channels]` of each model from the same n noise images,
        by the model's title.
      folder: for the PNG file.
    """
    num_samples = len(next(iter(trajectories.values()))[0])
    num_columns = max(len(steps) for steps in trajectories.values())
    stretched = {  # a prediction fills the columns of its step
        title: steps[np.arange(num_columns) * len(steps) // num_columns] for title, steps in trajectories.items()
    }
    rows = {
        f"{title}\nnoise {sample}": steps[:, sample]
        for sample in range(num_samples)
        for title, steps in stretched.items()
    }
    columns = [
        Column(f"t = {1 - step / num_columns:.2f}", np.stack([row[step] for row in rows.values()]))
        for step in range(num_columns)
    ]
    path = folder / "trajectories.png"
    save_columns(columns, list(rows), path)
    caption = (
        f"Rows: {num_samples} noise images through each model. Columns: the final image as the model predicts it at "
        "time t, from noise (t = 1) to data. A student takes fewer, longer steps, so each of its predictions fills "
        "several columns."
    )
    return Picture("The predicted image at each step", caption, path)


def samples_by_class(ladder: LadderReport, folder: epath.Path) -> list[Picture]:
    """Samples of the last student by class; empty if the models have no classes."""
    if not ladder.class_labels:
        return []
    student = ladder.entries("student")[-1]
    images = ladder.samples(student)  # of classes 0, 1, 2, ..., 0, 1, ...
    num_classes = len(ladder.class_labels)
    columns = [
        Column(label, images[number::num_classes])
        for number, label in enumerate(ladder.class_labels[: min(NUM_CLASSES, len(images))])
    ]
    path = folder / "classes.png"
    save_columns(columns, [f"sample {row}" for row in range(max(1, len(images) // num_classes))], path)
    caption = f"Rows: samples of the {student.title}. Columns: the classes. Each image should show its column's class."
    return [Picture("Classes", caption, path)]


def samples_by_guidance(
    samples: Mapping[Entry, Mapping[float, Images]], class_labels: Sequence[str], folder: epath.Path
) -> list[Picture]:
    """The same noise with several guidance weights; empty if the models take none.

    Args:
      samples: for each model, its samples by guidance weight.
      class_labels: a label for each class.
      folder: for the PNG file.
    """
    if not samples:
        return []
    columns = [
        Column(f"{entry.model}\n{entry.steps}\nw = {weight:g}", images, entry.model)
        for entry, by_weight in samples.items()
        for weight, images in by_weight.items()
    ]
    path = folder / "guidance.png"
    _save_same_noise(columns, class_labels, path)
    caption = (
        "Each row starts from the same noise. Columns: the teacher and the last student by guidance weight w. The "
        "student takes w as an input, so that guidance costs no second network evaluation. Larger weights make images "
        "more typical of their class and less diverse."
    )
    return [Picture("Guidance weights", caption, path)]


def nearest_images(ladder: LadderReport, source: Source, evaluator: Evaluator, folder: epath.Path) -> Picture:
    """Samples of the last student beside the images of the dataset that are nearest to them in the features."""
    student = ladder.entries("student")[-1]
    samples = ladder.samples(student)[:NUM_SAMPLES]
    neighbors = nearest_neighbors(samples, source, evaluator.extractor, NUM_NEIGHBORS)
    columns = [Column(f"nearest\n{rank + 1}", neighbors[:, rank]) for rank in range(neighbors.shape[1])]
    path = folder / "nearest.png"
    _save_same_noise([Column("sample", samples, "student"), *columns], ladder.class_labels, path)
    caption = (
        f"Rows: samples of the {student.title}. Columns: the sample, and the dataset's images nearest to it by "
        f"{evaluator.features}. A sample that equals its nearest image is a sign of memorized data."
    )
    return Picture("Nearest images of the dataset", caption, path)


def training_losses(losses: Mapping[str, Points], folder: epath.Path) -> list[Picture]:
    """The training loss of each model by update; empty if there are no losses."""
    if not losses:
        return []
    path = folder / "training.png"
    save_losses(losses, path)
    caption = (
        "The loss of each model by optimizer update. Losses of different students are not comparable: each has targets "
        "of its own. Every curve should fall and level off."
    )
    return [Picture("Training losses", caption, path)]


def _save_same_noise(columns: Sequence[Column], class_labels: Sequence[str], path: epath.Path) -> None:
    save_columns(columns, row_labels(len(columns[0].images), class_labels), path)


def _curves(ladders: Sequence[LadderReport], criterion: Criterion, x_of: Callable[[Row], float]) -> list[Curve]:
    """One curve for each ladder, model and sampler that has rows."""
    curves = []
    for color, ladder in enumerate(ladders):
        for model, title in (("teacher", "teacher"), ("student", "students")):
            for sampler, suffix in (("ddim", ""), ("ancestral", ", ancestral")):
                rows = [row for row in ladder.evaluation.rows if row.entry[:2] == (model, sampler)]
                if not rows:
                    continue
                curves.append(
                    Curve(
                        label=title + suffix if len(ladders) == 1 else f"{ladder.name}: {title}{suffix}",
                        model=model,
                        color=color,
                        points=sorted((x_of(row), row.values[criterion].value) for row in rows),
                        dotted=sampler == "ancestral",
                    )
                )
    return curves
