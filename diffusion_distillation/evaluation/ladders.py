"""What of a ladder is measured: its teacher, undistilled and by ancestral sampling too, and its students."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import newest_step, params_hash
from ..config import rung_config
from ..data import Source
from ..errors import InputError
from ..interop import load, local_path
from ..keys import seed_key
from ..methods import ladder_rungs
from ..runtime import multihost
from ..training.ladder import finished_config, student_folder
from ..training.runs import read_inputs
from .measure import Evaluator, generated_samples, make_evaluators
from .reference import Reference, dataset_reference
from .results import Entry, Evaluation, evaluate, pipeline_loader


def config_evaluators(config: ConfigDict, source: Source, num_samples: int) -> list[Evaluator]:
    """What a config measures by, config.eval.features and metrics, against its dataset.

    Raises:
      InputError: if it cannot, as where a file of weights is not there; better before the training than after.
    """
    wanted, reference = config.eval, dataset_reference(source, config.dataset)
    return make_evaluators(wanted.features, wanted.metrics, num_samples, source, reference, wanted.inception)


def ladder_runs(config: ConfigDict, workdir: epath.Path) -> dict[Entry, epath.Path]:
    """The rows of a ladder's evaluation and the runs that they are of; config is the ladder's, resolved."""
    teacher = local_path(config.distillation.teacher_checkpoint_path)
    ancestral = sorted(config.eval.ancestral_num_steps, reverse=True)
    by_ddim = sorted({*config.eval.teacher_num_steps, *ancestral}, reverse=True)
    students = [rung.num_steps for rung in ladder_rungs(config)]
    return {
        **{Entry("teacher", "ddim", num_steps): teacher for num_steps in by_ddim},
        **{Entry("teacher", "ancestral", num_steps): teacher for num_steps in ancestral},
        **{Entry("student", "ddim", num_steps): student_folder(workdir, num_steps) for num_steps in students},
    }


def report_nfe(config: ConfigDict, workdir: epath.Path) -> int:
    """The network evaluations that `evaluate_ladder` takes; config is the ladder's, resolved."""
    return config.eval.num_samples * sum(entry.num_steps for entry in ladder_runs(config, workdir))


def check_finished(config: ConfigDict, workdir: epath.Path) -> None:
    """Raises an InputError that names a student that is missing, or that has not had all its updates."""
    for rung in ladder_rungs(config):
        folder = student_folder(workdir, rung.num_steps)
        if finished_config(folder) is None:
            step = multihost.on_main(lambda folder=folder: newest_step(folder)) or 0
            wanted = rung_config(config, rung).train.num_train_steps
            raise InputError(
                f"The {rung.num_steps}-step student in {str(workdir)!r} has done {step:,} of {wanted:,} updates. Run "
                "scripts/distill.py to its end first."
            )


def check_teacher_unchanged(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise an InputError if the model at teacher_checkpoint_path is not the one that the students learned from."""
    teacher = config.distillation.teacher_checkpoint_path
    recorded = multihost.on_main(lambda: read_inputs(workdir)).get("teacher")
    if recorded is not None and (found := params_hash(load(teacher, config)[0])) != recorded:
        raise InputError(
            f"The teacher {teacher!r} changed after the students in {str(workdir)!r} were distilled from it "
            f"(fingerprint {recorded} then, {found} now). Restore the old teacher, distill into another --workdir, or "
            "run scripts/distill.py with --change to keep these students beside the new teacher."
        )


def evaluate_ladder(
    config: ConfigDict,
    workdir: epath.Path,
    evaluators: list[Evaluator],
    reference: Reference,
    path: epath.Path,
    **options: Any,
) -> Evaluation:
    """Measures a finished ladder by the settings of its config's `eval` section, or by others.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      evaluators: what samples are measured by.
      reference: what they are judged against.
      path: of the evaluation.json.
      **options: see `evaluate_runs`.
    """
    check_teacher_unchanged(config, workdir)
    return evaluate_runs(config, ladder_runs(config, workdir), evaluators, reference, path, **options)


def evaluate_runs(
    config: ConfigDict,
    runs: Mapping[Entry, epath.Path],
    evaluators: Sequence[Evaluator],
    reference: Reference,
    path: epath.Path,
    *,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    batch_size: int | None = None,
    guidance: float | None = None,
    **options: Any,
) -> Evaluation:
    """Measures runs by the settings of a config's `eval` section, or by others.

    Args:
      config: resolved.
      runs: what is measured, and the run that it is of.
      evaluators: what samples are measured by.
      reference: what they are judged against.
      path: of the evaluation.json.
      about: what shapes the numbers besides, of JSON's types.
      seed: of the noise, which is the same for every row.
      num_samples: of each row; by default config.eval.num_samples.
      batch_size: the most images drawn at a time; by default config.eval.batch_size.
      guidance: the weight that all samples are guided by; by default config.model.eval_guidance.
      **options: repeats, shown and say of `evaluate`.
    """
    open_pipeline = pipeline_loader(config)
    guidance = config.model.eval_guidance if guidance is None else guidance
    num_samples = num_samples or config.eval.num_samples
    shared = dict(batch_size=min(batch_size or config.eval.batch_size, num_samples), guidance=guidance)

    def draw(entry, first):
        settings = dict(num_steps=entry.num_steps, sampler=entry.sampler, first=first, **shared)
        return generated_samples(open_pipeline(runs[entry]), seed_key(seed), **settings)

    about = {**(about or {}), "seed": seed, "clip": config.model.eval_clip_denoised}
    if guidance:
        about["guidance"] = guidance
    return evaluate(runs, draw, evaluators, reference, path, about=about, num_samples=num_samples, **options)
