"""The report of a ladder: what its students draw, and how good that is.

report/index.html       the page, which needs none of the other files
report/evaluation.json  the table; .md and .tex have it too
report/samples/         the first samples of each of its rows
report/samples.png      the same noise through the teacher and every student
report/distances.png    the first metric against number of steps
report/metrics.png      the others, where there are others
report/speed.png        the first metric against seconds an image
report/samplers.png     DDIM against ancestral sampling of the teacher
report/trajectories.png what is predicted at every step, from the same noise
report/nearest.png      the dataset's images that are nearest to samples
report/classes.png      samples by class, where the models have classes
report/guidance.png     samples by the weight of guidance, where the students take it
report/training.png     the losses of all stages
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..data import Source
from ..errors import InputError
from ..evaluation import tables
from ..evaluation.ladders import evaluate_ladder, ladder_runs
from ..evaluation.measure import Yardstick
from ..evaluation.metrics import Criterion
from ..evaluation.reference import nearest, of_dataset
from ..evaluation.results import Entry, Evaluation, load_samples, open_once, read
from ..keys import seed_key
from ..methods import make_method
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, write_atomic
from ..training.runs import locked, read_metrics
from .html_page import Picture, Table, page
from .plots import Column, Line, Panel, panel_of, row_labels, save_columns, save_curves, save_losses

FILE = "evaluation.json"
# What reports must agree in to share a page, and the flag of scripts/report.py that sets it.
ALIKE = {"features": "--features", "wanted": "--metrics", "num_samples": "--num_samples"}
TRAJECTORIES = 2  # samples whose way is shown
WEIGHTS, SHOWN = 3, 10  # weights of guidance, and samples at each
NEAREST, NEIGHBOURS = 10, 3  # samples and images of the dataset that are shown beside each


class Ladder(NamedTuple):
    """A ladder that was measured.

    Attributes:
      name: as it is called on a page with others.
      workdir: its folder.
      config: its own, resolved.
      found: the rows of its report.
      classes: the label of each class in pictures; empty if there are no classes or they are not known.
    """

    name: str
    workdir: epath.Path
    config: ConfigDict
    found: Evaluation
    classes: Sequence[str] = ()

    @property
    def criterion(self) -> Criterion:
        """The first criterion, which the headings of pictures show."""
        return self.found.criteria[0]


def write_report(config: ConfigDict, workdir: epath.PathLike, source: Source, yardsticks: Sequence[Yardstick]) -> None:
    """Measures a finished ladder and writes its report. What an earlier call has measured is kept.

    All processes draw; the main one alone looks at the data and writes.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      source: the images to compare with.
      yardsticks: from `evaluation.ladder.config_yardsticks`.

    Raises:
      InputError: if another process works in the ladder's folder.
    """
    workdir = as_path(workdir)
    with locked(workdir):
        rows, num_samples = len(ladder_runs(config, workdir)), config.eval.num_samples
        multihost.print_on_main(
            f"report  {workdir}: measuring {rows} models and samplers with {num_samples:,} samples each"
        )
        _write_report(config, workdir, source, yardsticks)


def _write_report(config: ConfigDict, workdir: epath.Path, source: Source, yardsticks: Sequence[Yardstick]) -> None:
    folder, reference = workdir / "report", of_dataset(source, config.dataset)
    found = evaluate_ladder(
        config, workdir, yardsticks, reference, folder / FILE,
        shown=folder / "samples", say=lambda line: multihost.print_on_main(f"report  {line}"),
    )  # fmt: skip
    ways, by_weight = _ways(config, workdir), _by_weight(config, workdir)
    if not multihost.is_main():
        return
    classes = _class_labels(source)
    ladder = Ladder(workdir.name, workdir, config, found, classes)
    published = tables.published(config)
    write_atomic(folder / "evaluation.md", tables.markdown(found, published))
    write_atomic(folder / "evaluation.tex", tables.latex(found, published))
    pictures = [
        *_samples(ladder, folder),
        *_curves([ladder], folder),
        *_samplers(ladder, folder),
        *_trajectories(ways, folder),
        *_classes(ladder, folder),
        *_guidance(by_weight, classes, folder),
        *_nearest(ladder, source, yardsticks[0], folder),
        *_training([ladder], folder),
    ]
    rungs = make_method(config).rungs
    title = f"{config.dataset.name}: {rungs[0].teacher_num_steps} sampling steps become {rungs[-1].num_steps}"
    write_atomic(folder / "index.html", _page(title, [ladder], pictures))
    multihost.print_on_main(f"report  {folder / 'index.html'}")


def write_comparison(ladders: Sequence[tuple[epath.PathLike, ConfigDict]], folder: epath.PathLike) -> None:
    """A page with several ladders, each with its report, side by side.

    Args:
      ladders: the folder and the resolved config of each.
      folder: for index.html and its pictures.

    Raises:
      InputError: for a ladder without a report, or reports that were not measured alike.
    """
    folder, shown = as_path(folder), []
    for path, config in ladders:
        workdir = as_path(path)
        found = read(workdir / "report" / FILE)
        if found is None:
            raise InputError(
                f"{str(workdir)!r} has no readable report/{FILE}. Run scripts/report.py --workdir={path} to make it."
            )
        shown.append(Ladder(workdir.name, workdir, config, found))
    first, *others = shown
    for other in others:
        if other.found.about["reference"] != first.found.about["reference"]:
            raise InputError(
                f"{str(first.workdir)!r} and {str(other.workdir)!r} were measured against different data: their "
                "numbers cannot share a page."
            )
        for name, flag in ALIKE.items():
            of_first, of_other = first.found.about[name], other.found.about[name]
            if of_first != of_other:
                raise InputError(
                    f"The reports differ in {flag[2:]}: {of_first} in {str(first.workdir)!r}, {of_other} in "
                    f"{str(other.workdir)!r}. Measure one like the other: scripts/report.py --workdir={other.workdir} "
                    f"{flag}=..."
                )
    if len({ladder.name for ladder in shown}) < len(shown):
        shown = [ladder._replace(name="/".join(ladder.workdir.parts[-2:])) for ladder in shown]
    pictures = [*_side_by_side(shown, folder), *_curves(shown, folder), *_training(shown, folder)]
    write_atomic(folder / "index.html", _page(" and ".join(ladder.name for ladder in shown), shown, pictures))
    multihost.print_on_main(f"report  {folder / 'index.html'}")


def _class_labels(source: Source) -> Sequence[str]:
    if source.num_classes == 1:
        return ()
    names = getattr(source, "class_names", None) or map(str, range(source.num_classes))
    return [f"class {name}" if name.isdecimal() else name for name in names]


def _first_samples(ladder: Ladder, entry: Entry) -> np.ndarray:
    return load_samples(ladder.workdir / "report" / "samples", entry)


def _column(ladder: Ladder, entry: Entry, name: str) -> Column:
    """The first samples of a row under the value of the first criterion."""
    [row] = [row for row in ladder.found.rows if row.entry == entry]
    value = f"{row.values[ladder.criterion].value:.2f}"
    return Column(f"{name}\n{entry.steps}\n{value}", _first_samples(ladder, entry), entry.model)


def _save_alike(columns: Sequence[Column], classes: Sequence[str], path: epath.Path) -> None:
    """Columns whose rows start from the same noise."""
    save_columns(columns, row_labels(columns[0].images, classes), path)


def _entries(ladder: Ladder, model: str, sampler: str = "ddim") -> list[Entry]:
    entries = [row.entry for row in ladder.found.rows]
    return [entry for entry in entries if (entry.model, entry.sampler) == (model, sampler)]


def _samples(ladder: Ladder, folder: epath.Path) -> list[Picture]:
    of_teacher, of_students = _entries(ladder, "teacher"), _entries(ladder, "student")
    few = [entry for entry in of_teacher[1:] if entry.num_steps <= 8]
    path = folder / "samples.png"
    columns = [_column(ladder, entry, entry.model) for entry in [*of_teacher[:1], *few, *of_students]]
    _save_alike(columns, ladder.classes, path)
    text = (
        f"Each row starts from one noise image. Columns: the teacher with {of_teacher[0].steps}, the undistilled "
        f"teacher with few, and the students. The number in each heading is the {ladder.criterion.title}. Good "
        "students look like the first column."
    )
    return [Picture("The same noise through every sampler", text, path)]


def _side_by_side(ladders: Sequence[Ladder], folder: epath.Path) -> list[Picture]:
    columns = [
        _column(ladder, entry, ladder.name.replace("/", "/\n"))
        for ladder in ladders
        for entry in _entries(ladder, "student")[-4:]
    ]
    _save_alike(columns, (), folder / "samples.png")
    text = (
        "Each row starts from one noise image. Columns: the last students of each ladder. The number in each heading "
        f"is the {ladders[0].criterion.title}."
    )
    return [Picture("The same noise through the students", text, folder / "samples.png")]


def _samplers(ladder: Ladder, folder: epath.Path) -> list[Picture]:
    ancestral = {entry.num_steps: entry for entry in _entries(ladder, "teacher", "noisy")}
    pairs = [
        (entry, ancestral[entry.num_steps]) for entry in _entries(ladder, "teacher") if entry.num_steps in ancestral
    ]
    if not pairs:
        return []
    path = folder / "samplers.png"
    columns = [
        _column(ladder, entry, name) for pair in pairs for entry, name in zip(pair, ("DDIM", "ancestral"), strict=True)
    ]
    _save_alike(columns, ladder.classes, path)
    text = (
        "Each row starts from one noise image. Columns: the undistilled teacher by both samplers. The number in each "
        f"heading is the {ladder.criterion.title}."
    )
    return [Picture("DDIM against ancestral sampling of the teacher", text, path)]


def _curves(ladders: Sequence[Ladder], folder: epath.Path) -> list[Picture]:
    """Quality against steps and against time."""
    rows = [row for ladder in ladders for row in ladder.found.rows]
    first, *others = [of for of in ladders[0].found.criteria if all(of in row.values for row in rows)]

    def lines(criterion: Criterion, x: Callable) -> list[Line]:
        found = []
        for number, ladder in enumerate(ladders):
            for model, title in (("teacher", "teacher"), ("student", "students")):
                for sampler, suffix in (("ddim", ""), ("noisy", ", ancestral")):
                    rows = [row for row in ladder.found.rows if row.entry[:2] == (model, sampler)]
                    if rows:
                        label = title + suffix if len(ladders) == 1 else f"{ladder.name}: {title}{suffix}"
                        points = sorted((x(row), row.values[criterion].value) for row in rows)
                        found.append(Line(label, model, number, bool(suffix), points))
        return found

    def by_steps(criterion: Criterion) -> Panel:
        level = ladders[0].found.floors.get(criterion.name)
        return panel_of(criterion, lines(criterion, lambda row: row.entry.num_steps), level)

    about = ladders[0].found.about
    text = f"{about['num_samples']:,} samples each, against {about['reference'][0]}."
    if ladders[0].found.floors:
        text += " The dashed line is the distance of two random halves of the data from each other."
    pictures = [Picture("Quality against number of steps", text, folder / "distances.png")]
    save_curves([by_steps(first)], "sampling steps", folder / "distances.png")
    if others:
        save_curves([by_steps(criterion) for criterion in others], "sampling steps", folder / "metrics.png")
        pictures.append(Picture("Other metrics", "Of the same samples.", folder / "metrics.png"))
    by_time = panel_of(first, lines(first, lambda row: 1 / row.images_per_sec))
    save_curves([by_time], "seconds per image", folder / "speed.png")
    text = "On all devices, without compilation."
    return [*pictures, Picture("Quality against time", text, folder / "speed.png")]


def _ways(config: ConfigDict, workdir: epath.Path) -> dict[str, np.ndarray]:
    """The x predicted at every step: of the teacher at 16 steps, and of the students of 8 to 2. All processes draw."""
    runs = ladder_runs(config, workdir)
    students = [entry for entry in runs if entry.model == "student" and 2 <= entry.num_steps <= 8]
    teacher = next(iter(runs))
    entries = [teacher._replace(num_steps=16), *students]
    open_pipeline, ways = open_once(config), {}
    for entry in entries:
        pipeline = open_pipeline(runs[teacher if entry.model == "teacher" else entry])
        steps = pipeline.trajectory(seed_key(0), TRAJECTORIES, num_steps=entry.num_steps, sampler="ddim")
        ways[f"{entry.model}, {entry.num_steps} steps"] = steps
    return ways


def _by_weight(config: ConfigDict, workdir: epath.Path) -> dict[Entry, dict[float, np.ndarray]]:
    """Samples of the teacher and the last student at weights of guidance; none where they take none. All draw."""
    if (allowed := config.model.args.get("guidance_range")) is None:
        return {}
    runs, drawn = ladder_runs(config, workdir), {}
    first, *_, last = runs
    for entry in (first, last):
        pipeline = open_once(config)(runs[entry])
        drawn[entry] = {
            weight: pipeline.sample(seed_key(0), SHOWN, guidance=weight, num_steps=entry.num_steps)
            for weight in np.linspace(*allowed, WEIGHTS).tolist()
        }
    return drawn


def _guidance(
    drawn: Mapping[Entry, Mapping[float, np.ndarray]], classes: Sequence[str], folder: epath.Path
) -> list[Picture]:
    if not drawn:
        return []
    columns = [
        Column(f"{entry.model}\n{entry.steps}\nw = {weight:g}", images, entry.model)
        for entry, by_weight in drawn.items()
        for weight, images in by_weight.items()
    ]
    _save_alike(columns, classes, folder / "guidance.png")
    text = (
        "Each row starts from one noise image. Columns: the teacher and the last student by guidance weight w, which "
        "the student takes in one network evaluation per step."
    )
    return [Picture("Guidance weights", text, folder / "guidance.png")]


def _trajectories(ways: Mapping[str, np.ndarray], folder: epath.Path) -> list[Picture]:
    path, most = folder / "trajectories.png", max(len(steps) for steps in ways.values())
    whole = [steps[np.arange(most) * len(steps) // most] for steps in ways.values()]  # each repeated over its step
    rows = [of_way[:, sample] for sample in range(TRAJECTORIES) for of_way in whole]
    columns = [Column(f"t = {1 - step / most:.2f}", np.stack([row[step] for row in rows])) for step in range(most)]
    labels = [f"{way}\nnoise {sample}" for sample in range(TRAJECTORIES) for way in ways]
    save_columns(columns, labels, path)
    text = (
        f"Rows: {TRAJECTORIES} samples by each model. Columns: the final image as the model predicts it at time t, "
        "from noise (t = 1) to data. A student's prediction is repeated over the length of its step."
    )
    return [Picture("What is predicted at each step", text, path)]


def _classes(ladder: Ladder, folder: epath.Path) -> list[Picture]:
    if not ladder.classes:
        return []
    path, last = folder / "classes.png", _entries(ladder, "student")[-1]
    images = _first_samples(ladder, last)  # of classes 0, 1, 2, ... in turn
    rows = max(1, len(images) // len(ladder.classes))
    columns = [
        Column(title, images[number :: len(ladder.classes)])
        for number, title in enumerate(ladder.classes[: min(10, len(images))])
    ]
    save_columns(columns, [f"sample {row}" for row in range(rows)], path)
    return [Picture("Classes", f"Rows: samples of the {last.title}. Columns: the classes.", path)]


def _nearest(ladder: Ladder, source: Source, yardstick: Yardstick, folder: epath.Path) -> list[Picture]:
    path, last = folder / "nearest.png", _entries(ladder, "student")[-1]
    images = _first_samples(ladder, last)[:NEAREST]
    there = nearest(images, source, yardstick.extractor, NEIGHBOURS)
    columns = [Column(f"nearest\n{rank + 1}", there[:, rank]) for rank in range(there.shape[1])]
    _save_alike([Column("sample", images, "student"), *columns], ladder.classes, path)
    text = (
        f"Rows: samples of the {last.title}. Columns: the sample, and the images of the dataset that are nearest to it "
        f"in {yardstick.name}. A model that has memorized the data draws these images again."
    )
    return [Picture("The nearest images of the dataset", text, path)]


def _training(ladders: Sequence[Ladder], folder: epath.Path) -> list[Picture]:
    losses = {}
    for ladder in ladders:
        for entry, run in ladder_runs(ladder.config, ladder.workdir).items():
            stage = "base model" if entry.model == "teacher" else entry.steps
            stage = stage if len(ladders) == 1 else f"{ladder.name}, {stage}"
            if stage not in losses and (lines := read_metrics(run)):
                losses[stage] = [(line["step"], line["loss"]) for line in lines]
    if not losses:
        return []
    save_losses(losses, folder / "training.png")
    return [Picture("Training", "The loss of every stage, by its updates.", folder / "training.png")]


def _page(title: str, ladders: Sequence[Ladder], pictures: Sequence[Picture]) -> str:
    """index.html, of one ladder or several."""
    several = len(ladders) > 1
    of_ladders = [(ladder, *tables.table(ladder.found, tables.published(ladder.config))) for ladder in ladders]
    shown = [Table(ladder.name if several else "", head, rows) for ladder, head, *rows in of_ladders]
    configs = {
        f"Configuration of {ladder.name}" if several else "Configuration": ladder.config.to_json(indent=2)
        for ladder in ladders
    }
    return page(title, describe_environment(), shown, pictures, configs)
