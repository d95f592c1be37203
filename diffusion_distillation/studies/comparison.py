"""Methods compared at equal cost: from one teacher, each with as many evaluations of networks as any other.

A forward pass counts as one evaluation, a forward and backward pass as three. A ladder's students share its method's
evaluations; where every number of steps has a student of its own, each gets an equal part.

index.html        the page
comparison.json   its numbers
distances.png     the first metric against number of steps, metrics.png the others
cost.png          the first metric against the evaluations that a student took, with all that came before it
samples.png       the same noise through the students of every method
<method>/seed_<k> its ladders, their students, and evaluation.json
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params, load
from ..config import resolve, stage
from ..data import Source
from ..errors import InputError, did_you_mean
from ..evaluation.measure import Yardstick
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation, load_samples
from ..interop import local_path
from ..methods import evaluations_of_update, make_method
from ..report.html_page import Picture, Table, page
from ..report.plots import Column, panel_of, row_labels, save_columns, save_curves
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, paths_below, write_atomic
from ..training.ladder import run_ladder, student_folder
from ..training.loop import Load
from ..training.runs import read_metrics
from ..training.step import init_state
from .seeds import by_steps, line, measure, spread

AVERAGED = 20  # an average that is sampled is over the last twentieth of the updates, about


class Recipe(NamedTuple):
    """How a method gives students.

    Attributes:
      ladders: the fields of config.distillation of each ladder.
      averaged: whether an average of the student is sampled, as these methods need.
      sampler: of the students.
    """

    ladders: Sequence[Mapping[str, Any]]
    averaged: bool = False
    sampler: str = "ddim"


def recipes(start: int, steps: Sequence[int]) -> dict[str, Recipe]:
    """The methods that are compared, from a teacher of `start` steps to students of these numbers, the largest first.

    Strides are progressive distillation by these numbers alone, the first of them a long one; two phases go by the
    first of them to the last.
    """

    def consistency(end, **options):
        options |= dict(first_grid=max(end, start // 4), norm="squared")
        return dict(method="consistency", start_num_steps=start, end_num_steps=end, consistency=options)

    rungs = (start, *steps)
    found = {
        "halvings": Recipe([dict(start_num_steps=start, end_num_steps=steps[-1])]),
        "strides": Recipe([dict(rungs=rungs)]),
        "strides_addim": Recipe([dict(rungs=rungs, teacher_step="addim")]),
        "tract": Recipe([dict(method="tract", rungs=rungs)], averaged=True),
        "tract_two_phases": Recipe([dict(method="tract", rungs=(start, steps[0], steps[-1]))], averaged=True),
        "consistency_distillation": Recipe([consistency(end) for end in steps], averaged=True),
        "consistency_training": Recipe([consistency(end, kind="training") for end in steps], averaged=True),
        "consistency_tuning": Recipe(
            [consistency(1, kind="training", times="tuning")], averaged=True, sampler="renoise"
        ),
    }
    if len(steps) < 3:
        del found["tract_two_phases"]  # it would be tract once more
    return found


def cost_of(config: ConfigDict) -> dict[int, int]:
    """The evaluations of networks that each student of a ladder takes, by its number of steps; config is resolved."""
    method, costs = make_method(config), {}
    for rung in method.rungs:
        train = stage(config, rung.num_steps).train
        costs[rung.num_steps] = train.num_train_steps * train.batch_size * evaluations_of_update(method, rung)
    return costs


def ladder_configs(config: ConfigDict, recipe: Recipe, budget: int, seed: int) -> list[ConfigDict]:
    """The resolved configs of a method's ladders, which take this many evaluations together.

    The last two students of a ladder of several get twice as many updates as the others, as in the paper.
    """
    made = []
    for fields in recipe.ladders:
        fields = {**dict(start_num_steps=None, end_num_steps=1, rungs=(), teacher_step="ddim", stages={}), **fields}
        ladder = config.copy_and_resolve_references()
        with ladder.unlocked():
            fields["consistency"] = {**ladder.distillation.consistency.to_dict(), **fields.get("consistency", {})}
            for name, value in {**fields, "method": fields.get("method", "progressive")}.items():
                ladder.distillation[name] = ConfigDict(value) if isinstance(value, dict) else value
            ladder.distillation.steps_per_iter = 1
            ladder.seed += 10_000 * seed
        method = make_method(resolve(ladder))
        weights = {rung: 2 if len(method.rungs) > 1 and rung.num_steps <= 2 else 1 for rung in method.rungs}
        of_one = sum(weight * evaluations_of_update(method, rung) for rung, weight in weights.items())
        updates = max(1, round(budget / len(recipe.ladders) / of_one / ladder.train.batch_size))
        ladder.distillation.steps_per_iter = updates
        ladder.distillation.stages = {
            str(rung.num_steps): {"updates_factor": float(weight)} for rung, weight in weights.items() if weight > 1
        }
        ladder.distillation.consistency.grid_updates = updates
        ladder.train.ema_decay = max(0.0, 1 - AVERAGED / updates) if recipe.averaged else 0.0
        made.append(resolve(ladder))
    return made


class Compared(NamedTuple):
    """A method that was compared.

    Attributes:
      found: the rows of each seed.
      costs: the evaluations that a student took, with those of the students before it, by its number of steps.
      of_update: evaluations for each example of an update, by the student's number of steps.
      seconds: of an update, the median of all.
      copies: of the parameters, that training holds: with the optimizer's, averages and the teacher.
    """

    found: list[Evaluation]
    costs: dict[int, int]
    of_update: dict[int, int]
    seconds: float
    copies: float


def compare(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    yardsticks: Sequence[Yardstick],
    reference: Reference,
    *,
    steps: Sequence[int] = (8, 4, 2, 1),
    seeds: int = 3,
    budget: int | None = None,
    methods: Sequence[str] = (),
    load_model: Load = load,
) -> dict[str, Compared]:
    """Distills by every method, measures the students, and writes the page. What is done already is kept.

    Args:
      config: of a ladder, resolved: its teacher, data, network and training; its rungs give the teacher's steps.
      workdir: for the ladders and the page.
      source: the images.
      yardsticks: what samples are measured by.
      reference: what they are judged against.
      steps: of the students, the largest first; each divides the one before it, and the first the teacher's.
      seeds: how many times all is done, from other seeds.
      budget: evaluations of networks for each method; by default those of the config's own ladder.
      methods: names of `recipes`; by default all.
      load_model: see `training.ladder.run_ladder`.

    Raises:
      InputError: for a method that is not known, or steps that do not divide each other.
    """
    workdir, budget = as_path(workdir), budget or sum(cost_of(config).values())
    start = make_method(config).rungs[0].teacher_num_steps
    known = recipes(start, steps)
    for name in methods:
        if name not in known:
            raise InputError(f"Unknown method {name!r}; choose from {list(known)}.{did_you_mean(name, known)}")
    plans = {
        (name, seed): ladder_configs(config, known[name], budget, seed)
        for name in methods or known
        for seed in range(seeds)
    }  # all of them, and so checked, before the first is begun
    teacher = local_path(config.distillation.teacher_checkpoint_path)
    entries = {Entry("teacher", "ddim", n): teacher for n in (start, *steps)}
    of_teacher = [
        measure(config, entries, yardsticks, reference, workdir / "teacher" / f"seed_{seed}", seed)
        for seed in range(seeds)
    ]
    compared = {}
    for name in methods or known:
        found = []
        for seed in range(seeds):
            folder = workdir / name / f"seed_{seed}"
            multihost.print_on_main(f"comparison  {name}, seed {seed}")
            runs = {}
            for of_ladder in plans[name, seed]:
                students = [rung.num_steps for rung in make_method(of_ladder).rungs]
                ladder = folder / f"to_{students[-1]:04d}"
                run_ladder(of_ladder, ladder, source, load_model=load_model)
                runs |= {n: student_folder(ladder, n) for n in students if n in steps}
            sampler = known[name].sampler
            shown = steps if sampler == "renoise" else [n for n in steps if n in runs]
            entries = {Entry("student", sampler, n): runs.get(n, next(iter(runs.values()))) for n in shown}
            found.append(measure(config, entries, yardsticks, reference, folder, seed))
        compared[name] = _compared(found, plans[name, 0], source, workdir / name)
    if multihost.is_main():
        _write(config, workdir, budget, of_teacher, compared, steps)
        multihost.print_on_main(f"comparison  {workdir / 'index.html'}")
    return compared


def _compared(found, ladders, source, folder) -> Compared:
    """What the ladders of a method cost; `ladders` are the configs of the first seed."""
    costs, of_update, seconds = {}, {}, []
    for config in ladders:
        method, so_far = make_method(config), 0
        for rung in method.rungs:
            so_far += cost_of(config)[rung.num_steps]
            costs[rung.num_steps] = so_far
            of_update[rung.num_steps] = evaluations_of_update(method, rung)
    for path in paths_below(folder, "seed_", "to_", "steps_"):
        seconds += [config.train.batch_size / line["images_per_sec"] for line in read_metrics(path)]
    params = abstract_params(Metadata(ladders[0], source.image_shape, source.num_classes, num_steps=0))
    of_last = stage(ladders[0], make_method(ladders[0]).rungs[-1].num_steps)
    held = jax.eval_shape(functools.partial(init_state, of_last), params)
    copies = 1 + _size(held) / _size(params)  # and the teacher
    return Compared(found, costs, of_update, float(np.median(seconds)), copies)


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _write(config, workdir, budget, of_teacher, compared, steps) -> None:
    start = of_teacher[0].rows[0].entry.num_steps
    criteria = of_teacher[0].criteria
    written = {
        "budget": budget,
        "seeds": len(of_teacher),
        "num_samples": config.eval.num_samples,
        "teacher": {criterion.name: by_steps(of_teacher, criterion) for criterion in criteria},
        "methods": {
            name: {
                "metrics": {criterion.name: by_steps(of.found, criterion) for criterion in criteria},
                "evaluations": of.costs,
                "evaluations_of_an_update": of.of_update,
                "seconds_of_an_update": of.seconds,
                "copies_of_the_parameters": of.copies,
            }
            for name, of in compared.items()
        },
    }
    write_atomic(workdir / "comparison.json", json.dumps(written, indent=2) + "\n")

    def table(criterion):
        rows = [
            [method, *(spread(values[n]) if n in values else "" for n in steps)]
            for method, values in {
                "teacher, undistilled": by_steps(of_teacher, criterion),
                **{method: by_steps(of.found, criterion) for method, of in compared.items()},
            }.items()
        ]
        of_start = spread(by_steps(of_teacher, criterion)[start])
        caption = (
            f"{criterion.title} by sampling steps, ± half the range of the seeds; the teacher's at {start} is "
            f"{of_start}"
        )
        return Table(caption, ["method", *map(str, steps)], rows)

    of_costs = Table(
        "What training costs",
        ["method", "evaluations an example of an update", "ms an update", "copies of the parameters"],
        [
            [name, _range(of.of_update.values()), f"{1000 * of.seconds:.0f}", f"{of.copies:.1f}"]
            for name, of in compared.items()
        ],
    )
    shown = [table(criterion) for criterion in criteria]
    write_atomic(workdir / "comparison.md", "\n".join(table.markdown() for table in [*shown, of_costs]))
    pictures = [
        *_curves(workdir, of_teacher, compared, criteria, config.eval.num_samples),
        *_cost(workdir, compared, criteria[0]),
        *_samples(workdir, of_teacher, compared, start, steps),
    ]
    title = f"{config.dataset.name}: {len(compared)} methods, {budget:,} evaluations each"
    text = page(
        title, describe_environment(), [*shown, of_costs], pictures, {"Configuration": config.to_json(indent=2)}
    )
    write_atomic(workdir / "index.html", text)


def _range(values: Any) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _curves(workdir, of_teacher, compared, criteria, num_samples) -> list[Picture]:
    def panel(criterion):
        of_methods = {
            "teacher, undistilled": ("teacher", of_teacher),
            **{method: ("student", of.found) for method, of in compared.items()},
        }
        lines = []
        for number, (label, (model, found)) in enumerate(of_methods.items()):
            lines.append(line(label, model, by_steps(found, criterion), max(number - 1, 0)))
        return panel_of(criterion, lines)

    (first, *others), seeds = criteria, len(of_teacher)
    save_curves([panel(first)], "sampling steps", workdir / "distances.png")
    text = f"Of {num_samples:,} samples each; means, and the range, of {seeds} seed{'s' if seeds > 1 else ''}."
    pictures = [Picture("Quality against number of steps", text, workdir / "distances.png")]
    if others:
        save_curves([panel(criterion) for criterion in others], "sampling steps", workdir / "metrics.png")
        pictures.append(Picture("Other metrics", "Of the same samples.", workdir / "metrics.png"))
    return pictures


def _cost(workdir, compared, first) -> list[Picture]:
    lines = []
    for number, (name, of) in enumerate(compared.items()):
        values = by_steps(of.found, first)
        by_cost = {of.costs[n]: values[n] for n in values if n in of.costs}
        lines.append(line(name, "student", by_cost, number))
    path = workdir / "cost.png"
    save_curves([panel_of(first, lines)], "evaluations of networks", path)
    text = (
        "A point is a student, by the evaluations that it took, with those of the students before it; in a ladder, "
        "fewer steps are further to the right."
    )
    return [Picture("Quality against the cost of training", text, path)]


def _samples(workdir, of_teacher, compared, start, steps) -> list[Picture]:
    fewest, path = [n for n in steps if n <= 4][-2:], workdir / "samples.png"

    def images(folder, entry):
        return load_samples(folder / "seed_0" / "samples", entry)

    of_start = images(workdir / "teacher", of_teacher[0].rows[0].entry)
    columns = [Column(f"teacher\n{start} steps", of_start, "teacher")]
    for name, of in compared.items():
        shown = [row.entry for row in of.found[0].rows if row.entry.num_steps in fewest]
        heading = name.replace("_", "\n")
        columns += [Column(f"{heading}\n{entry.steps}", images(workdir / name, entry), "student") for entry in shown]
    save_columns(columns, row_labels(of_start), path)
    text = "Each row starts from one noise image. Columns: the teacher, then the students of each method."
    return [Picture("The same noise through the students of every method", text, path)]
