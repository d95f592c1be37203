"""Test claims of Salimans & Ho (2022) on other data: what a network should predict, and what a ladder costs.

For every network output and loss weight of the paper's table 1, or for others, a base model is trained and distilled,
with several seeds. Undistilled samples, by DDIM and by ancestral sampling, are compared with the students' (figure 4).

index.html                  the page
claims.json                 its numbers; claims.md has the tables
outputs.png                 the first metric of the students by sampling steps, for every output and weight
samplers.png                students and undistilled samplers, for the output and weight of the base config
samples.png                 the same noise through the last student of every output and weight
<output>_<weight>/seed_<k>  the base model, the ladder and evaluation.json
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from ..config import resolve, rung_config
from ..data import Source
from ..errors import DivergedError, RunError
from ..evaluation.measure import Evaluator
from ..evaluation.metrics import Criterion
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation, load_samples
from ..methods import ladder_rungs
from ..report.html_page import Picture, Table, render_page
from ..report.plots import STEPS_LABEL, Column, metric_panel, row_labels, save_columns, save_curves
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, write_atomic
from ..training.ladder import run_ladder, student_folder
from ..training.loop import train
from .seeds import SEED_OFFSET, evaluate_seed, mean_and_range, mean_curve, values_by_steps

OUTPUTS = ("eps", "x", "v", "both")  # network outputs of the paper's table 1
WEIGHTS = ("snr", "snr_trunc", "v_mse")  # loss weights of the paper's table 1
OTHER_OUTPUTS = ("flow", "edm")  # of flow matching and EDM
# All loss weights that can be compared, with their titles.
WEIGHT_TITLES = {
    "snr": "SNR",
    "snr_trunc": "truncated SNR",
    "v_mse": "SNR + 1",
    "flow_mse": "u-MSE",
    "edm_mse": "F-MSE",
}
FEW_STEPS = 4  # the paper distills to this number of steps "without losing much"


class Variant(NamedTuple):
    """A network output and a loss weight.

    Attributes:
      output: one of `OUTPUTS` or `OTHER_OUTPUTS`.
      weight: one of `WEIGHT_TITLES`.
    """

    output: str
    weight: str

    @property
    def title(self) -> str:
        """The variant's name in tables."""
        return f"{self.output}, {WEIGHT_TITLES[self.weight]}"

    @property
    def name(self) -> str:
        """The variant's name in paths and in claims.json."""
        return "_".join(self)

    def folder(self, workdir: epath.Path, seed: int) -> epath.Path:
        """The folder for the runs of a seed."""
        return workdir / self.name / f"seed_{seed}"


Results = Mapping[Variant, Mapping[int, Evaluation]]  # by seed


def variant_configs(
    base: ConfigDict, ladder: ConfigDict, variant: Variant, folder: epath.Path, seed: int
) -> tuple[ConfigDict, ConfigDict]:
    """Make the resolved configs of a variant's base model and of its ladder, whose teacher is the base model.

    Args:
      base: config of base models.
      ladder: config of the ladder; only its `distillation` and `train` sections and its dropout are used.
      variant: the network output and loss weight of both.
      folder: the base model's run is in its folder `base`.
      seed: number of the repetition, which changes the seed of both configs.
    """
    base = base.copy_and_resolve_references()
    with base.unlocked():
        base.model.mean_type = variant.output
        base.model.mean_loss_weight_type = variant.weight
        base.seed += SEED_OFFSET * seed
    students = base.copy_and_resolve_references()
    with students.unlocked():
        students.train = ladder.train
        students.distillation = ladder.distillation.copy_and_resolve_references()
        if "dropout" in ladder.model.args:
            students.model.args.dropout = ladder.model.args.dropout
        students.distillation.teacher_checkpoint_path = str(folder / "base")
    return resolve(base), resolve(students)


def reproduce_claims(
    base: ConfigDict,
    ladder: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    evaluators: Sequence[Evaluator],
    reference: Reference,
    *,
    outputs: Sequence[str] = OUTPUTS,
    weights: Sequence[str] = WEIGHTS,
    seeds: int = 3,
) -> dict[Variant, dict[int, Evaluation]]:
    """Train, distill and measure every variant, and write the page. Finished parts are kept.

    Args:
      base: config of the base models, resolved; each variant sets its output and weight.
      ladder: config of the students; only its `distillation` and `train` sections and its dropout are used.
      workdir: for the runs and the page.
      source: the training data.
      evaluators: the features and metrics to measure samples by.
      reference: the images to compare samples with.
      outputs: network outputs, of `OUTPUTS` and `OTHER_OUTPUTS`.
      weights: loss weights, of `WEIGHT_TITLES`.
      seeds: repetitions with different seeds, at least 1.

    Returns:
      The evaluation of each variant by seed, without trainings that diverged.

    Raises:
      InputError: for a config that cannot be run.
      RunError: if every training diverged.
    """
    workdir = as_path(workdir)
    variants = [Variant(output, weight) for output in outputs for weight in weights]
    configs = {
        (variant, seed): variant_configs(base, ladder, variant, variant.folder(workdir, seed), seed)
        for variant in variants
        for seed in range(seeds)
    }
    base_variant = Variant(base.model.mean_type, base.model.mean_loss_weight_type)
    results: dict[Variant, dict[int, Evaluation]] = {variant: {} for variant in variants}
    for (variant, seed), (of_base, of_ladder) in configs.items():
        folder = variant.folder(workdir, seed)
        multihost.print_on_main(f"claims  {variant.title}, seed {seed}")
        try:
            train(of_base, folder / "base", source)
            run_ladder(of_ladder, folder / "ladder", source)
        except DivergedError as error:
            multihost.print_on_main(f"claims  {variant.title}, seed {seed}: {error}")
            continue
        entries = _entries(of_ladder, folder, all_steps=variant == base_variant)
        results[variant][seed] = evaluate_seed(of_ladder, entries, evaluators, reference, folder, seed)
    if not any(results.values()):
        raise RunError("Every training diverged. Try a smaller --config.train.learning_rate with another --workdir.")
    if multihost.is_main():
        _write(*configs[variants[0], 0], workdir, results, seeds, base_variant)
    return results


def _steps(ladder: ConfigDict) -> tuple[int, list[int]]:
    """Sampling steps of a ladder's teacher and of its students."""
    rungs = ladder_rungs(ladder)
    return rungs[0].teacher_num_steps, [rung.num_steps for rung in rungs]


def _few(steps: Sequence[int]) -> list[int]:
    """The students' steps that tables show: the last ones, at least one."""
    return [n for n in steps if n <= max(FEW_STEPS, steps[-1])]


def _entries(ladder: ConfigDict, folder: epath.Path, *, all_steps: bool) -> dict[Entry, epath.Path]:
    """The rows of a variant: the undistilled base model by both samplers, and the students."""
    teacher_steps, student_steps = _steps(ladder)
    undistilled = [teacher_steps, *(student_steps if all_steps else _few(student_steps))]
    entries = {Entry("teacher", sampler, n): folder / "base" for sampler in ("ddim", "ancestral") for n in undistilled}
    return entries | {Entry("student", "ddim", n): student_folder(folder / "ladder", n) for n in student_steps}


def _write(
    base: ConfigDict, ladder: ConfigDict, workdir: epath.Path, results: Results, seeds: int, base_variant: Variant
) -> None:
    """Write claims.json, claims.md, the pictures and the page."""
    teacher_steps, student_steps = _steps(ladder)
    first = next(evaluation for by_seed in results.values() for evaluation in by_seed.values())
    criteria = first.criteria
    kinds = _kinds(teacher_steps, _few(student_steps))
    content = _json_content(base, ladder, results, seeds, criteria, kinds.values())
    write_atomic(workdir / "claims.json", json.dumps(content, indent=2) + "\n")
    shown = [_quality_table(criterion, results, seeds, kinds) for criterion in criteria]
    shown.append(_cost_table(base, ladder))
    write_atomic(workdir / "claims.md", "\n".join(table.markdown() for table in shown))
    pictures = [
        _output_curves(workdir, results, criteria[0]),
        *_sampler_curves(workdir, list(results.get(base_variant, {}).values()), base_variant, criteria[0]),
        _samples(workdir, results, student_steps[-1]),
    ]
    dataset, _ = first.settings["reference"]
    title = f"{dataset}: outputs and weights, distilled from {teacher_steps} steps to {student_steps[-1]}"
    configs = {"Base model": base.to_json(indent=2), "Ladder": ladder.to_json(indent=2)}
    write_atomic(workdir / "index.html", render_page(title, describe_environment(), shown, pictures, configs))


def _kinds(teacher_steps: int, student_steps: Sequence[int]) -> dict[str, Entry]:
    """The columns of the tables: the undistilled model with many steps, with few, and the students with few."""
    return {
        f"DDIM, {teacher_steps} steps": Entry("teacher", "ddim", teacher_steps),
        f"ancestral, {teacher_steps}": Entry("teacher", "ancestral", teacher_steps),
        **{f"DDIM, {n}": Entry("teacher", "ddim", n) for n in student_steps},
        **{f"student, {n}": Entry("student", "ddim", n) for n in student_steps},
    }


def _values(by_seed: Mapping[int, Evaluation], criterion: Criterion, entry: Entry) -> list[float]:
    return values_by_steps(by_seed.values(), criterion, entry.model, entry.sampler).get(entry.num_steps, [])


def _ladder_updates(ladder: ConfigDict) -> int:
    return sum(rung_config(ladder, rung).train.num_train_steps for rung in ladder_rungs(ladder))


def _json_content(
    base: ConfigDict,
    ladder: ConfigDict,
    results: Results,
    seeds: int,
    criteria: Sequence[Criterion],
    entries: Collection[Entry],
) -> dict[str, Any]:
    return {
        "seeds": seeds,
        "num_samples": base.eval.num_samples,
        "updates": {"base": base.train.num_train_steps, "ladder": _ladder_updates(ladder)},
        "pairs": {
            variant.name: {
                entry.name: {criterion.name: _values(by_seed, criterion, entry) for criterion in criteria}
                for entry in entries
            }
            for variant, by_seed in results.items()
        },
    }


def _quality_table(criterion: Criterion, results: Results, seeds: int, kinds: Mapping[str, Entry]) -> Table:
    rows = []
    for variant, by_seed in results.items():
        values = [_values(by_seed, criterion, entry) for entry in kinds.values()]
        diverged = seeds - len(by_seed)
        cells = [mean_and_range(of_seeds) if of_seeds else "" for of_seeds in values]
        rows.append([variant.title, *cells, str(diverged) if diverged else ""])
    caption = (
        f"{criterion.title} of the undistilled base model and of the students, by sampler and sampling steps: mean ± "
        "half the range over seeds"
    )
    return Table(caption, ["output, weight", *kinds, "diverged"], rows)


def _cost_table(base: ConfigDict, ladder: ConfigDict) -> Table:
    updates = _ladder_updates(ladder)
    num_students = len(_steps(ladder)[1])
    students = "1 student" if num_students == 1 else f"{num_students} students"
    rows = [
        ["base model", f"{base.train.num_train_steps:,}", f"{base.train.num_train_steps * base.train.batch_size:,}"],
        [students, f"{updates:,}", f"{updates * ladder.train.batch_size:,}"],
    ]
    return Table("Training cost of the base model and of the whole ladder", ["", "updates", "examples"], rows)


def _output_curves(workdir: epath.Path, results: Results, criterion: Criterion) -> Picture:
    """One panel for each weight, with one curve for each output."""
    panels = []
    for weight in dict.fromkeys(variant.weight for variant in results):
        curves = [
            mean_curve(variant.output, "student", values_by_steps(by_seed.values(), criterion, "student"), color)
            for color, (variant, by_seed) in enumerate(
                (variant, by_seed) for variant, by_seed in results.items() if variant.weight == weight and by_seed
            )
        ]
        panels.append(metric_panel(criterion, curves)._replace(title=f"{criterion.title}; {WEIGHT_TITLES[weight]}"))
    path = workdir / "outputs.png"
    save_curves(panels, STEPS_LABEL, path)
    caption = (
        "Students by sampling steps: one plot per loss weight, one curve per network output (x, eps, v, or both x and "
        "eps), with means and ranges over seeds. Outputs that distill badly get worse towards few steps."
    )
    return Picture("What a network should predict", caption, path)


def _sampler_curves(
    workdir: epath.Path, evaluations: Sequence[Evaluation], variant: Variant, criterion: Criterion
) -> list[Picture]:
    """Students and undistilled samplers of a variant; empty if it was not trained."""
    if not evaluations:
        return []
    ddim = values_by_steps(evaluations, criterion, "teacher", "ddim")
    ancestral = values_by_steps(evaluations, criterion, "teacher", "ancestral")
    students = values_by_steps(evaluations, criterion, "student")
    curves = [
        mean_curve("undistilled, DDIM", "teacher", ddim, 0),
        mean_curve("undistilled, ancestral", "teacher", ancestral, 1, dotted=True),
        mean_curve("distilled", "student", students, 0),
    ]
    path = workdir / "samplers.png"
    save_curves([metric_panel(criterion, curves)], STEPS_LABEL, path)
    caption = (
        f"The paper's figure 4 for the base model that predicts {variant.title}: means and ranges over seeds. "
        "Distillation keeps with few steps what DDIM and ancestral sampling lose."
    )
    return [Picture("Distilled, deterministic and stochastic samplers", caption, path)]


def _samples(workdir: epath.Path, results: Results, num_steps: int) -> Picture:
    entry = Entry("student", "ddim", num_steps)
    columns = []
    for variant, by_seed in results.items():
        if by_seed:
            images = load_samples(variant.folder(workdir, min(by_seed)) / "samples", entry)
            weight = WEIGHT_TITLES[variant.weight].replace(" + ", "+").replace(" ", "\n")
            columns.append(Column(f"{variant.output}\n{weight}", images, "student"))
    path = workdir / "samples.png"
    save_columns(columns, row_labels(len(columns[0].images)), path)
    caption = (
        "Each row starts from the same noise. Columns: the students, by network output and loss weight. Columns that "
        "differ much from the others, or that have flaws, belong to outputs and weights that distill badly."
    )
    return Picture(f"The same noise in {entry.steps}", caption, path)
