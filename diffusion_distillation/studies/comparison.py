"""A comparison of distillation methods at equal cost, from one teacher.

Every method gets the same number of network evaluations (NFE) for its training. A forward pass counts as one
evaluation, a forward and backward pass as three. A ladder's students share the evaluations of its method; a method that
needs one ladder per number of steps divides them equally among its ladders.

index.html        the page
comparison.json   its numbers; comparison.md has the tables
distances.png     the first metric by sampling steps; metrics.png has the other metrics
cost.png          the first metric by the evaluations that trained a student and the students before it
samples.png       the same noise through the students of every method
<method>/seed_<k> the method's ladders with their students, and evaluation.json
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params, load
from ..config import resolve, rung_config
from ..data import Source
from ..errors import InputError, did_you_mean
from ..evaluation.measure import Evaluator
from ..evaluation.metrics import Criterion
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation, load_samples
from ..interop import local_path
from ..methods import evaluations_of_update, ladder_rungs, make_method
from ..report.html_page import Picture, Table, render_page
from ..report.plots import STEPS_LABEL, Column, Panel, metric_panel, row_labels, save_columns, save_curves
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, paths_below, write_atomic
from ..training.ladder import run_ladder, student_folder
from ..training.prepare import LoadModel
from ..training.runs import read_metrics
from ..training.step import init_state
from .seeds import SEED_OFFSET, evaluate_seed, mean_and_range, mean_curve, values_by_steps

AVERAGING = 20  # a sampled average has a time constant of 1/20 of a student's updates


class Recipe(NamedTuple):
    """How a method trains students.

    Attributes:
      ladders: for each ladder of the method, fields of config.distillation.
      averaged: sample the moving average of the student's parameters, as the method requires.
      sampler: of the students, a name of `sampling.SAMPLERS`.
    """

    ladders: Sequence[Mapping[str, Any]]
    averaged: bool = False
    sampler: str = "ddim"


class MethodResult(NamedTuple):
    """The quality and the cost of a method's students.

    Attributes:
      evaluations: the measured students, one evaluation for each seed.
      nfe: network evaluations that trained a student and the students before it, by its sampling steps.
      nfe_per_example: network evaluations per example of an update, by the student's sampling steps.
      seconds_per_update: the median of all updates.
      copies: training memory of student, optimizer, averages and teacher, in copies of the parameters.
    """

    evaluations: Sequence[Evaluation]
    nfe: Mapping[int, int]
    nfe_per_example: Mapping[int, int]
    seconds_per_update: float
    copies: float


def recipes(teacher_steps: int, steps: Sequence[int]) -> dict[str, Recipe]:
    """The methods that can be compared, by name.

    `halvings` halves the steps down to the last student. `strides` is progressive distillation with only the students
    of `steps`, so the first stride is long. `tract_two_phases` trains only the first and the last student.

    Args:
      teacher_steps: sampling steps of the teacher.
      steps: sampling steps of the students, from most to fewest.

    >>> list(recipes(64, (8, 4)))
    ['halvings', 'strides', 'strides_addim', 'tract', 'consistency_distillation', 'consistency_training', ...]
    """

    def consistency(end: int, **options: Any) -> dict[str, Any]:
        options |= dict(first_grid=max(end, teacher_steps // 4), norm="squared")
        return dict(method="consistency", start_num_steps=teacher_steps, end_num_steps=end, args=options)

    rungs = (teacher_steps, *steps)
    two_phases = (teacher_steps, steps[0], steps[-1])
    tuning = consistency(1, kind="training", times="tuning")
    methods = {
        "halvings": Recipe([dict(start_num_steps=teacher_steps, end_num_steps=steps[-1])]),
        "strides": Recipe([dict(rungs=rungs)]),
        "strides_addim": Recipe([dict(rungs=rungs, teacher_step="addim")]),
        "tract": Recipe([dict(method="tract", rungs=rungs)], averaged=True),
        "tract_two_phases": Recipe([dict(method="tract", rungs=two_phases)], averaged=True),
        "consistency_distillation": Recipe([consistency(end) for end in steps], averaged=True),
        "consistency_training": Recipe([consistency(end, kind="training") for end in steps], averaged=True),
        "consistency_tuning": Recipe([tuning], averaged=True, sampler="renoise"),
    }
    if len(steps) < 3:
        del methods["tract_two_phases"]  # the same as tract
    return methods


def ladder_nfe(config: ConfigDict) -> dict[int, int]:
    """Count the network evaluations that train each student of a ladder.

    Args:
      config: of the ladder, resolved.

    Returns:
      Evaluations by the student's sampling steps.
    """
    method = make_method(config)
    nfe = {}
    for rung in method.rungs:
        train = rung_config(config, rung).train
        nfe[rung.num_steps] = train.num_train_steps * train.batch_size * evaluations_of_update(method, rung)
    return nfe


def ladder_configs(config: ConfigDict, recipe: Recipe, budget: int, seed: int) -> list[ConfigDict]:
    """Make the configs of a method's ladders, which together take `budget` network evaluations.

    The last two students of a ladder with several students get twice as many updates as the others, as in the paper.

    Args:
      config: of a ladder, resolved; its teacher, data, network and training are kept.
      recipe: of the method, from `recipes`.
      budget: network evaluations of all ladders together.
      seed: number of the repetition, which changes the config's seed.

    Returns:
      A resolved config for each ladder.
    """
    configs = []
    for fields in recipe.ladders:
        ladder = _with_distillation(config, fields, seed)
        method = make_method(ladder)
        weights = {rung: 2 if len(method.rungs) > 1 and rung.num_steps <= 2 else 1 for rung in method.rungs}
        nfe = sum(weight * evaluations_of_update(method, rung) for rung, weight in weights.items())
        updates = max(1, round(budget / len(recipe.ladders) / nfe / ladder.train.batch_size))
        with ladder.unlocked():
            ladder.distillation.steps_per_iter = updates
            ladder.distillation.stages = {
                str(rung.num_steps): {"updates_factor": float(weight)} for rung, weight in weights.items() if weight > 1
            }
            if ladder.distillation.method == "consistency":
                ladder.distillation.args.grid_updates = updates
            ladder.train.ema_decay = max(0.0, 1 - AVERAGING / updates) if recipe.averaged else 0.0
        configs.append(resolve(ladder))
    return configs


def compare_methods(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    evaluators: Sequence[Evaluator],
    reference: Reference,
    *,
    steps: Sequence[int] = (8, 4, 2, 1),
    seeds: int = 3,
    budget: int | None = None,
    methods: Sequence[str] = (),
    load_model: LoadModel = load,
) -> dict[str, MethodResult]:
    """Distill by every method, measure the students, and write the page. Finished parts are kept.

    Args:
      config: of a ladder, resolved. Its rungs determine the teacher's steps. All methods share its teacher, data,
        network and training.
      workdir: for the ladders and the page.
      source: the training data.
      evaluators: the features and metrics to measure samples by.
      reference: the images to compare samples with.
      steps: sampling steps of the students, from most to fewest; each divides the one before it, and the first divides
        the teacher's.
      seeds: repetitions with different seeds, at least 1.
      budget: network evaluations for each method. Default: as many as the config's ladder takes.
      methods: names of `recipes`; by default all.
      load_model: see `training.ladder.run_ladder`.

    Returns:
      The result of each method, by name.

    Raises:
      InputError: for an unknown method, or steps that do not divide each other.
    """
    workdir = as_path(workdir)
    budget = budget or sum(ladder_nfe(config).values())
    teacher_steps = ladder_rungs(config)[0].teacher_num_steps
    for more, fewer in itertools.pairwise((teacher_steps, *steps)):
        if not 1 <= fewer < more or more % fewer:
            raise InputError(
                f"The students' sampling steps {tuple(steps)} must get fewer, each dividing the one before it, and the "
                f"first must divide the teacher's {teacher_steps}. Change --steps, or the teacher's steps by "
                "config.distillation.start_num_steps or rungs."
            )
    chosen = _choose(recipes(teacher_steps, steps), methods)

    # Check all configs before the first training starts.
    configs = {
        (name, seed): ladder_configs(config, recipe, budget, seed)
        for name, recipe in chosen.items()
        for seed in range(seeds)
    }

    # Measure the teacher.
    teacher = local_path(config.distillation.teacher_checkpoint_path)
    entries = {Entry("teacher", "ddim", n): teacher for n in (teacher_steps, *steps)}
    of_teacher = [
        evaluate_seed(config, entries, evaluators, reference, workdir / "teacher" / f"seed_{seed}", seed)
        for seed in range(seeds)
    ]

    # Train and measure the students of each method.
    results = {}
    for name, recipe in chosen.items():
        evaluations = []
        for seed in range(seeds):
            folder = workdir / name / f"seed_{seed}"
            multihost.print_on_main(f"comparison  {name}, seed {seed}")
            students = _train_students(configs[name, seed], folder, source, load_model)
            entries = _student_entries(students, recipe.sampler, steps)
            evaluations.append(evaluate_seed(config, entries, evaluators, reference, folder, seed))
        results[name] = _result(evaluations, configs[name, 0], source, workdir / name)

    if multihost.is_main():
        _write(config, workdir, budget, of_teacher, results, steps)
    return results


def _with_distillation(config: ConfigDict, fields: Mapping[str, Any], seed: int) -> ConfigDict:
    """A ladder's config with the given fields of config.distillation, 1 update per student, and a repetition's seed."""
    defaults = dict(
        method="progressive", args={}, start_num_steps=None, end_num_steps=1, rungs=(), teacher_step="ddim", stages={}
    )
    fields = defaults | fields
    ladder = config.copy_and_resolve_references()
    if fields["method"] == ladder.distillation.method:
        fields["args"] = {**ladder.distillation.args, **fields["args"]}
    with ladder.unlocked():
        for name, value in fields.items():
            ladder.distillation[name] = ConfigDict(value) if isinstance(value, dict) else value
        ladder.distillation.steps_per_iter = 1
        ladder.seed += SEED_OFFSET * seed
    return resolve(ladder)


def _choose(known: Mapping[str, Recipe], names: Sequence[str]) -> dict[str, Recipe]:
    for name in names:
        if name not in known:
            raise InputError(f"Unknown method {name!r}; choose from {list(known)}.{did_you_mean(name, known)}")
    return {name: known[name] for name in names or known}


def _train_students(
    configs: Sequence[ConfigDict], folder: epath.Path, source: Source, load_model: LoadModel
) -> dict[int, epath.Path]:
    """Run the ladders of a method. Returns the folders of their students by sampling steps."""
    students = {}
    for config in configs:
        rungs = [rung.num_steps for rung in ladder_rungs(config)]
        ladder = folder / f"to_{rungs[-1]:04d}"
        run_ladder(config, ladder, source, load_model=load_model)
        students |= {n: student_folder(ladder, n) for n in rungs}
    return students


def _student_entries(students: Mapping[int, epath.Path], sampler: str, steps: Sequence[int]) -> dict[Entry, epath.Path]:
    """The rows to measure. With 'renoise', the method's only student samples with every number of steps."""
    if sampler == "renoise":
        [student] = students.values()
        return {Entry("student", sampler, n): student for n in steps}
    return {Entry("student", sampler, n): students[n] for n in steps if n in students}


def _result(
    evaluations: Sequence[Evaluation], configs: Sequence[ConfigDict], source: Source, folder: epath.Path
) -> MethodResult:
    """The quality and the cost of a method's students. `configs` has the method's ladders for the first seed."""
    nfe = {}
    nfe_per_example = {}
    for config in configs:
        method = make_method(config)
        total = 0
        for rung in method.rungs:
            total += ladder_nfe(config)[rung.num_steps]
            nfe[rung.num_steps] = total
            nfe_per_example[rung.num_steps] = evaluations_of_update(method, rung)
    seconds = [
        configs[-1].train.batch_size / line["images_per_sec"]
        for run in paths_below(folder, "seed_", "to_", "steps_")
        for line in read_metrics(run)
    ]
    return MethodResult(
        evaluations=evaluations,
        nfe=nfe,
        nfe_per_example=nfe_per_example,
        seconds_per_update=float(np.median(seconds)),
        copies=_copies(configs[0], source),
    )


def _copies(config: ConfigDict, source: Source) -> float:
    """The memory of training a ladder's last student, in copies of the parameters."""
    metadata = Metadata(config=config, image_shape=source.image_shape, num_classes=source.num_classes, num_steps=0)
    params = abstract_params(metadata)
    last = rung_config(config, ladder_rungs(config)[-1])
    state = jax.eval_shape(functools.partial(init_state, last, make_method(last)), params)
    return 1 + _bytes(state) / _bytes(params)  # 1 for the teacher


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _write(
    config: ConfigDict,
    workdir: epath.Path,
    budget: int,
    of_teacher: Sequence[Evaluation],
    results: Mapping[str, MethodResult],
    steps: Sequence[int],
) -> None:
    """Write comparison.json, comparison.md, the pictures and the page."""
    criteria = of_teacher[0].criteria
    content = _json_content(config, budget, of_teacher, results)
    write_atomic(workdir / "comparison.json", json.dumps(content, indent=2) + "\n")
    shown = [_quality_table(criterion, of_teacher, results, steps) for criterion in criteria]
    shown.append(_cost_table(results))
    write_atomic(workdir / "comparison.md", "\n".join(table.markdown() for table in shown))
    pictures = [
        *_quality_curves(workdir, of_teacher, results, criteria, config.eval.num_samples),
        *_cost_curves(workdir, results, criteria[0]),
        _samples(workdir, of_teacher, results, steps),
    ]
    dataset, _ = of_teacher[0].settings["reference"]
    title = f"{dataset}: {len(results)} methods, {budget:,} network evaluations each"
    configs = {"Configuration": config.to_json(indent=2)}
    write_atomic(workdir / "index.html", render_page(title, describe_environment(), shown, pictures, configs))


def _json_content(
    config: ConfigDict, budget: int, of_teacher: Sequence[Evaluation], results: Mapping[str, MethodResult]
) -> dict[str, Any]:
    criteria = of_teacher[0].criteria
    return {
        "budget": budget,
        "seeds": len(of_teacher),
        "num_samples": config.eval.num_samples,
        "teacher": {criterion.name: values_by_steps(of_teacher, criterion) for criterion in criteria},
        "methods": {
            name: {
                "metrics": {criterion.name: values_by_steps(result.evaluations, criterion) for criterion in criteria},
                "evaluations": result.nfe,
                "evaluations_of_an_update": result.nfe_per_example,
                "seconds_of_an_update": result.seconds_per_update,
                "copies_of_the_parameters": result.copies,
            }
            for name, result in results.items()
        },
    }


def _quality_table(
    criterion: Criterion,
    of_teacher: Sequence[Evaluation],
    results: Mapping[str, MethodResult],
    steps: Sequence[int],
) -> Table:
    values = {"teacher, undistilled": values_by_steps(of_teacher, criterion)}
    values |= {name: values_by_steps(result.evaluations, criterion) for name, result in results.items()}
    rows = [
        [name, *(mean_and_range(by_steps[n]) if n in by_steps else "" for n in steps)]
        for name, by_steps in values.items()
    ]
    teacher_steps = of_teacher[0].rows[0].entry.num_steps
    teacher = mean_and_range(values["teacher, undistilled"][teacher_steps])
    caption = (
        f"{criterion.title} by sampling steps: mean ± half the range over seeds. The teacher with {teacher_steps} "
        f"steps has {teacher}."
    )
    return Table(caption, ["method", *map(str, steps)], rows)


def _cost_table(results: Mapping[str, MethodResult]) -> Table:
    rows = [
        [
            name,
            _range(result.nfe_per_example.values()),
            f"{1000 * result.seconds_per_update:.0f}",
            f"{result.copies:.1f}",
        ]
        for name, result in results.items()
    ]
    header = ["method", "network evaluations per example and update", "ms per update", "copies of the parameters"]
    return Table("Training cost", header, rows)


def _range(values: Iterable[int]) -> str:
    values = list(values)
    low = min(values)
    high = max(values)
    return str(low) if low == high else f"{low} to {high}"


def _quality_curves(
    workdir: epath.Path,
    of_teacher: Sequence[Evaluation],
    results: Mapping[str, MethodResult],
    criteria: Sequence[Criterion],
    num_samples: int,
) -> list[Picture]:
    def panel(criterion: Criterion) -> Panel:
        teacher = mean_curve("teacher, undistilled", "teacher", values_by_steps(of_teacher, criterion), 0)
        students = [
            mean_curve(name, "student", values_by_steps(result.evaluations, criterion), color)
            for color, (name, result) in enumerate(results.items())
        ]
        return metric_panel(criterion, [teacher, *students])

    first, *others = criteria
    save_curves([panel(first)], STEPS_LABEL, workdir / "distances.png")
    seeds = "1 seed" if len(of_teacher) == 1 else f"{len(of_teacher)} seeds: means and ranges"
    caption = (
        f"Each curve is a method; each point has {num_samples:,} samples with {seeds}. All methods were trained "
        "with the same number of network evaluations."
    )
    pictures = [Picture("Quality by sampling steps", caption, workdir / "distances.png")]
    if others:
        save_curves([panel(criterion) for criterion in others], STEPS_LABEL, workdir / "metrics.png")
        pictures.append(
            Picture("Other metrics", "The same samples, evaluated by the other metrics.", workdir / "metrics.png")
        )
    return pictures


def _cost_curves(workdir: epath.Path, results: Mapping[str, MethodResult], criterion: Criterion) -> list[Picture]:
    """Quality by cost; empty without a student that samples with the number of steps that it was trained for."""
    curves = []
    for color, (name, result) in enumerate(results.items()):
        values = values_by_steps(result.evaluations, criterion)
        by_nfe = {result.nfe[n]: values[n] for n in values if n in result.nfe}
        if by_nfe:
            curves.append(mean_curve(name, "student", by_nfe, color))
    if not curves:
        return []
    path = workdir / "cost.png"
    save_curves([metric_panel(criterion, curves)], "network evaluations of training", path)
    caption = (
        "Each point is a student, by the network evaluations that trained it and the students before it. Within a "
        "ladder, students with fewer steps are further to the right."
    )
    return [Picture("Quality by training cost", caption, path)]


def _samples(
    workdir: epath.Path, of_teacher: Sequence[Evaluation], results: Mapping[str, MethodResult], steps: Sequence[int]
) -> Picture:
    fewest = [n for n in steps if n <= 4][-2:]
    teacher = of_teacher[0].rows[0].entry

    def images(folder: epath.Path, entry: Entry) -> np.ndarray:
        return load_samples(folder / "seed_0" / "samples", entry)

    of_start = images(workdir / "teacher", teacher)
    columns = [Column(f"teacher\n{teacher.steps}", of_start, "teacher")]
    for name, result in results.items():
        heading = name.replace("_", "\n")
        entries = [row.entry for row in result.evaluations[0].rows if row.entry.num_steps in fewest]
        columns += [Column(f"{heading}\n{entry.steps}", images(workdir / name, entry), "student") for entry in entries]
    path = workdir / "samples.png"
    save_columns(columns, row_labels(len(of_start)), path)
    caption = (
        "Each row starts from the same noise. Columns: the teacher, then the students of each method. Good students "
        "look like the first column."
    )
    return Picture("The same noise through the students of every method", caption, path)
