"""The claims of Salimans & Ho (2022) on other data: what a network should predict, and what a ladder costs.

For every output of the network and every weight of the loss (table 1) a base model is trained and distilled, several
times; its samples by DDIM and by the ancestral sampler, undistilled, stand beside its students' (figure 4).

index.html       the page
claims.json      its numbers, claims.md its tables
outputs.png      the first metric of each pair's students by sampling steps
samplers.png     distilled, deterministic and stochastic samplers, of the base config's own pair
samples.png      the same noise through the student of fewest steps of every pair
<output>_<weight>/seed_<k>    the base model, the ladder and evaluation.json
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from ..config import resolve, stage
from ..data import Source
from ..diffusion import MEAN_TYPES
from ..errors import DivergedError, RunError
from ..evaluation.measure import Yardstick
from ..evaluation.reference import Reference
from ..evaluation.results import Entry, Evaluation, load_samples
from ..methods import make_method
from ..report.html_page import Picture, Table, page
from ..report.plots import Column, panel_of, row_labels, save_columns, save_curves
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, write_atomic
from ..training.ladder import run_ladder, student_folder
from ..training.loop import train
from .seeds import by_steps, line, measure, spread

WEIGHTS = {"snr": "SNR", "snr_trunc": "truncated SNR", "v_mse": "SNR + 1"}  # of the paper's table 1
FEW = 4  # sampling steps that the paper comes down to "without losing much"


class Pair(NamedTuple):
    """An output of the network and a weight of the loss."""

    output: str
    weight: str

    @property
    def title(self) -> str:
        """As it stands in tables."""
        return f"{self.output}, {WEIGHTS[self.weight]}"

    @property
    def name(self) -> str:
        """As it is in paths and in claims.json."""
        return "_".join(self)

    def folder(self, workdir: epath.Path, seed: int) -> epath.Path:
        """Of what is made with a seed."""
        return workdir / self.name / f"seed_{seed}"


def pair_configs(
    base: ConfigDict, ladder: ConfigDict, pair: Pair, folder: epath.Path, seed: int
) -> tuple[ConfigDict, ConfigDict]:
    """The resolved configs of a pair's base model and of its ladder, both of which will be in the folder."""
    base = base.copy_and_resolve_references()
    with base.unlocked():
        base.model.mean_type, base.model.mean_loss_weight_type = pair
        base.seed += 10_000 * seed
    students = base.copy_and_resolve_references()
    with students.unlocked():
        students.train, students.distillation = ladder.train, ladder.distillation.copy_and_resolve_references()
        if "dropout" in ladder.model.args:
            students.model.args.dropout = ladder.model.args.dropout
        students.distillation.teacher_checkpoint_path = str(folder / "base")
    return resolve(base), resolve(students)


def show_claims(
    base: ConfigDict,
    ladder: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    yardsticks: Sequence[Yardstick],
    reference: Reference,
    *,
    outputs: Sequence[str] = MEAN_TYPES,
    weights: Sequence[str] = tuple(WEIGHTS),
    seeds: int = 3,
) -> dict[Pair, dict[int, Evaluation]]:
    """Trains, distills and measures every pair, and writes the page. What is done already is kept.

    Args:
      base: of base models, resolved but for what a pair sets.
      ladder: of their students; of it count the sections `distillation`, `train` and the dropout.
      workdir: for the runs and the page.
      source: the images.
      yardsticks: what samples are measured by.
      reference: what they are judged against.
      outputs: of the network, of `diffusion.MEAN_TYPES`.
      weights: of the loss, of WEIGHTS.
      seeds: how many times all is done, from other seeds.

    Returns:
      What was measured of each pair, by the seed; trainings that diverged are missing.

    Raises:
      InputError: for a config that cannot be run.
      RunError: if every training diverged.
    """
    workdir = as_path(workdir)
    pairs = [Pair(output, weight) for output in outputs for weight in weights]
    configs = {
        (pair, seed): pair_configs(base, ladder, pair, pair.folder(workdir, seed), seed)
        for pair in pairs
        for seed in range(seeds)
    }
    found: dict[Pair, dict[int, Evaluation]] = {pair: {} for pair in pairs}
    for (pair, seed), (of_base, of_ladder) in configs.items():
        folder = pair.folder(workdir, seed)
        multihost.print_on_main(f"claims  {pair.title}, seed {seed}")
        try:
            train(of_base, folder / "base", source)
            run_ladder(of_ladder, folder / "ladder", source)
        except DivergedError as error:
            multihost.print_on_main(f"claims  {pair.title}, seed {seed}: {error}")
            continue
        students = [rung.num_steps for rung in make_method(of_ladder).rungs]
        start = make_method(of_ladder).rungs[0].teacher_num_steps
        entries = {
            Entry("teacher", sampler, n): folder / "base"
            for sampler in ("ddim", "noisy")
            for n in (start, *(n for n in students if n <= max(FEW, students[-1]) or pair == _own(base)))
        }
        entries |= {Entry("student", "ddim", n): student_folder(folder / "ladder", n) for n in students}
        found[pair][seed] = measure(of_ladder, entries, yardsticks, reference, folder, seed)
    if not any(found.values()):
        raise RunError("Every training diverged. Try a smaller config.train.learning_rate, in another --workdir.")
    if multihost.is_main():
        _write(configs[pairs[0], 0], workdir, found, seeds, _own(base))
        multihost.print_on_main(f"claims  {workdir / 'index.html'}")
    return found


def _own(base: ConfigDict) -> Pair:
    return Pair(base.model.mean_type, base.model.mean_loss_weight_type)


def _write(configs, workdir, found, seeds, own) -> None:
    base, ladder = configs
    first = next(evaluation for of_pair in found.values() for evaluation in of_pair.values())
    criteria = first.criteria
    rungs = make_method(ladder).rungs
    start, students = rungs[0].teacher_num_steps, [rung.num_steps for rung in rungs]
    shown = [n for n in students if n <= max(FEW, students[-1])]
    updates = sum(stage(ladder, n).train.num_train_steps for n in students)
    kinds = {
        f"DDIM, {start} steps": ("teacher", "ddim", start),
        f"ancestral, {start}": ("teacher", "noisy", start),
        **{f"DDIM, {n}": ("teacher", "ddim", n) for n in shown},
        **{f"student, {n}": ("student", "ddim", n) for n in shown},
    }

    def values(of_pair, criterion, model, sampler, num_steps):
        return by_steps(of_pair.values(), criterion, model, sampler).get(num_steps, [])

    def cells(of_pair, criterion):
        of_kinds, diverged = [values(of_pair, criterion, *kind) for kind in kinds.values()], seeds - len(of_pair)
        return [spread(of) if of else "" for of in of_kinds] + [str(diverged) if diverged else ""]

    def table(criterion):
        caption = f"{criterion.title}: base model, undistilled, and students; ± half the range of the seeds"
        rows = [[pair.title, *cells(of_pair, criterion)] for pair, of_pair in found.items()]
        return Table(caption, ["output, weight", *kinds, "diverged"], rows)

    made = [table(criterion) for criterion in criteria]
    cost = Table(
        "What the whole ladder costs",
        ["", "updates", "examples"],
        [
            [
                "base model",
                f"{base.train.num_train_steps:,}",
                f"{base.train.num_train_steps * base.train.batch_size:,}",
            ],
            [f"{len(rungs)} students", f"{updates:,}", f"{updates * ladder.train.batch_size:,}"],
        ],
    )
    written = {
        "seeds": seeds,
        "num_samples": base.eval.num_samples,
        "updates": {"base": base.train.num_train_steps, "ladder": updates},
        "pairs": {
            pair.name: {
                "_".join(map(str, kind)): {of.name: values(of_pair, of, *kind) for of in criteria}
                for kind in kinds.values()
            }
            for pair, of_pair in found.items()
        },
    }
    write_atomic(workdir / "claims.json", json.dumps(written, indent=2) + "\n")
    write_atomic(workdir / "claims.md", "\n".join(table.markdown() for table in [*made, cost]))
    pictures = [
        _outputs(workdir, found, criteria[0]),
        *_samplers(workdir, [*found.get(own, {}).values()], own, criteria[0]),
        _samples(workdir, found, students[-1]),
    ]
    text = page(
        f"{base.dataset.name}: outputs and weights, distilled from {start} steps to {students[-1]}",
        describe_environment(),
        [*made, cost],
        pictures,
        {"Base model": base.to_json(indent=2), "Ladder": ladder.to_json(indent=2)},
    )
    write_atomic(workdir / "index.html", text)


def _outputs(workdir, found, criterion) -> Picture:
    """A panel for each weight, a line for each output."""
    panels = []
    for weight in dict.fromkeys(pair.weight for pair in found):
        of_weight = {pair.output: of for pair, of in found.items() if pair.weight == weight and of}
        lines = [
            line(output, "student", by_steps(of.values(), criterion, "student"), number)
            for number, (output, of) in enumerate(of_weight.items())
        ]
        panels.append(panel_of(criterion, lines)._replace(title=f"{criterion.title}; {WEIGHTS[weight]}"))
    save_curves(panels, "sampling steps", workdir / "outputs.png")
    text = (
        "Students of base models that predict x, eps, v or x and eps both, by the weight of the loss; means and ranges."
    )
    return Picture("What a network should predict", text, workdir / "outputs.png")


def _samplers(workdir, found, own, criterion) -> list[Picture]:
    if not found:
        return []
    lines = [
        line("undistilled, DDIM", "teacher", by_steps(found, criterion, "teacher", "ddim"), 0),
        line("undistilled, ancestral", "teacher", by_steps(found, criterion, "teacher", "noisy"), 1, dotted=True),
        line("distilled", "student", by_steps(found, criterion, "student"), 0),
    ]
    save_curves([panel_of(criterion, lines)], "sampling steps", workdir / "samplers.png")
    text = f"The paper's figure 4, of the base model that predicts {own.title}; means and ranges."
    return [Picture("Distilled, deterministic and stochastic", text, workdir / "samplers.png")]


def _samples(workdir, found, fewest) -> Picture:
    columns, entry = [], Entry("student", "ddim", fewest)
    for pair, of_pair in found.items():
        if of_pair:
            images = load_samples(pair.folder(workdir, min(of_pair)) / "samples", entry)
            weight = WEIGHTS[pair.weight].replace(" + ", "+").replace(" ", "\n")
            columns.append(Column(f"{pair.output}\n{weight}", images, "student"))
    save_columns(columns, row_labels(columns[0].images), workdir / "samples.png")
    text = "Each row starts from one noise image. Columns: the students, by network output and loss weight."
    return Picture(f"The same noise in {entry.steps}", text, workdir / "samples.png")
