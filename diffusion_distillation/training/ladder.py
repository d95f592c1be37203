"""The ladder: student after student, each the teacher of the next."""

import datetime
import functools
import logging
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Metadata, check_path, load, newest_step, params_hash
from ..config import resolve, rung_config
from ..data import Source
from ..errors import InputError, RunError
from ..methods import Rung, evaluations_of_update, ladder_rungs, make_method
from ..networks.model import Network, make_network
from ..runtime import multihost
from ..runtime.console import safe_output
from ..runtime.files import as_path
from ..runtime.multihost import print_on_main
from ..shapes import Params
from .checks import check_processes, check_same_model
from .loop import OnEval, train
from .monitor import OnMetrics
from .prepare import LoadModel, inputs_of
from .runs import locked, open_run, read_config, read_inputs, record_environment
from .step import Teacher


def student_folder(workdir: epath.Path, num_steps: int) -> epath.Path:
    """Where a ladder keeps the student with this number of sampling steps."""
    return workdir / f"steps_{num_steps:04d}"


def run_ladder(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    *,
    on_eval: OnEval | None = None,
    on_metrics: OnMetrics | None = None,
    change: bool = False,
    load_model: LoadModel = load,
    report_evaluations: int = 0,
) -> None:
    """Trains every student of the method's ladder, each the teacher of the next (Salimans & Ho 2022, algorithm 2).

    A student starts from its teacher's parameters, with a fresh optimizer. Those that are done are kept and one that
    was interrupted goes on.

    Args:
      config: resolved, with a `distillation` section.
      workdir: the ladder's folder; each student gets `steps_<number of steps>` in it.
      source: the images.
      on_eval: see `loop.train`.
      on_metrics: see `loop.train`; the values also have the student's `num_steps`.
      change: continue a ladder that has another config, other data or another teacher. Finished students stay as they
        are; the change applies to the student in training and to later ones.
      load_model: gives the parameters and the metadata at teacher_checkpoint_path; by default those of a run.
      report_evaluations: network evaluations of a report that follows, for the estimate of how long all takes.

    Raises:
      InputError: if there is no checkpoint at teacher_checkpoint_path, or its model is not one that students of this
        config can start from; and as `loop.train`.
    """
    rungs, workdir = ladder_rungs(config), as_path(workdir)
    check_path(workdir)
    params, network = load_teacher(config, source, load_model)
    with safe_output(), locked(workdir):
        open_run(workdir, config, change, inputs_of(source, params))
        record_environment(workdir)
        stages = {rung.num_steps: rung_config(config, rung) for rung in rungs}
        plan = Plan(workdir, stages, on_metrics, report_evaluations)
        for rung in rungs:
            folder = student_folder(workdir, rung.num_steps)
            of_rung = finished_config(folder) or plan.stages[rung.num_steps]
            hooks = dict(on_eval=on_eval, on_metrics=functools.partial(plan.watch, rung.num_steps))
            open_run(folder, of_rung, change=True)  # the ladder's config was checked, for its students too
            _warn_of_another_teacher(folder, params)
            train(of_rung, folder, source, teacher=Teacher(params, rung, network), change=change, **hooks)
            network = None  # from here on teachers have the network of their students
            params, student = load(folder)  # not what the devices hold: their memory is free again
            if student.step < of_rung.train.num_train_steps:
                raise RunError(f"{folder}: its last checkpoint cannot be read; run the same command again to resume.")


def _warn_of_another_teacher(folder: epath.Path, teacher: Params) -> None:
    """Warn of a finished student whose teacher has changed since. `train` refuses to resume an unfinished one."""
    recorded = read_inputs(folder).get("teacher") if multihost.is_main() else None
    if recorded is not None and recorded != (now := params_hash(teacher)):
        logging.warning("%s was distilled from another teacher (fingerprint %s, now %s).", folder, recorded, now)


def load_teacher(config: ConfigDict, source: Source, load_model: LoadModel = load) -> tuple[Params, Network | None]:
    """Load the parameters of a ladder's teacher, and its network if that differs from its students'.

    Arguments and errors are those of `run_ladder`; nothing is written or compiled.
    """
    check_processes(config, source)
    params, metadata = load_model(config.distillation.teacher_checkpoint_path)
    check_teacher(config, ladder_rungs(config)[0], source, metadata)
    if multihost.is_main() and 0 < metadata.step < metadata.config.train.num_train_steps:
        logging.warning(
            "The teacher %s is not finished: it has done %s of %s training steps.",
            config.distillation.teacher_checkpoint_path,
            f"{metadata.step:,}",
            f"{metadata.config.train.num_train_steps:,}",
        )  # fmt: skip
    return params, network_of_teacher(config, metadata)


def finished_config(folder: epath.Path) -> ConfigDict | None:
    """The config of a finished student, from which the ladder's config may differ by now; None for other students.

    Also None for a student whose config.json was deleted, which then counts as one of the ladder's config.
    """

    def read() -> dict[str, Any] | None:
        step = newest_step(folder)
        config = None if step is None or not (folder / "config.json").exists() else read_config(folder)
        return config.to_dict() if config and step >= config.train.num_train_steps else None

    config = multihost.on_main(read)
    return config and resolve(ConfigDict(config))


def _rounded(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))


class Plan:
    """What a ladder is going to do, said before it begins; and the time that it takes, once its speed is known.

    Attributes:
      stages: the config of each student, by its number of sampling steps.

    Args:
      workdir: the ladder's folder.
      stages: see above.
      on_metrics: see `run_ladder`.
      report_evaluations: see `run_ladder`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        stages: Mapping[int, ConfigDict],
        on_metrics: OnMetrics | None,
        report_evaluations: int = 0,
    ):
        self.stages, self._name, self._on_metrics, self._timed = stages, workdir.name, on_metrics, set()
        method, self._report_evaluations = make_method(next(iter(stages.values()))), report_evaluations
        self._per_update = {int(rung.num_steps): evaluations_of_update(method, rung) for rung in method.rungs}
        self._images = {n: config.train.num_train_steps * config.train.batch_size for n, config in stages.items()}
        updates = sum(config.train.num_train_steps for config in stages.values())
        print_on_main(
            f"{workdir}: {len(stages)} student(s), {updates:,} updates, {sum(self._images.values()):,} examples"
        )
        for num_steps, config in stages.items():
            print_on_main(
                f"  {student_folder(workdir, num_steps).name}  {config.train.num_train_steps:>9,} updates"
                f"  {self._images[num_steps]:>13,} examples"
            )

    def watch(self, num_steps: int, step: int, values: Mapping[str, float]) -> None:
        """Passes a student's metrics on; with its first ones it says how long all that is left takes."""
        if num_steps not in self._timed:
            self._timed.add(num_steps)
            students = list(self._images)
            later = sum(self._images[student] for student in students[students.index(num_steps) + 1 :])
            left = self._images[num_steps] - step * self.stages[num_steps].train.batch_size + later
            if left:
                rate = values["images_per_sec"]
                report = self._report_evaluations / (rate * self._per_update[num_steps])
                then = f", then up to {_rounded(report)} for the report" if report else ""
                print_on_main(f"{self._name}: about {_rounded(left / rate)} of training left{then}")
        if self._on_metrics is not None:
            self._on_metrics(step, {**values, "num_steps": num_steps})


def network_of_teacher(config: ConfigDict, teacher: Metadata) -> Network | None:
    """The network of a ladder's first teacher; None where it is that of the students.

    Raises:
      InputError: if students of this config are to take weights of guidance, and the teacher cannot be guided.
    """
    if (weights := config.model.args.get("guidance_range")) == teacher.config.model.args.get("guidance_range"):
        return None
    if not teacher.config.train.label_dropout:
        raise InputError(
            f"The teacher {config.distillation.teacher_checkpoint_path!r} cannot be guided, as students of "
            f"config.model.args.guidance_range={weights} need it: it always had labels in training. Train one with "
            "config.train.label_dropout=0.1."
        )
    return make_network(teacher.config.model, teacher.image_shape, teacher.num_classes)


def check_teacher(config: ConfigDict, first: Rung, source: Source, teacher: Metadata) -> None:
    """Raises an InputError that names the difference, if students of this config cannot start from the teacher.

    Args:
      config: of the ladder, resolved.
      first: its first student's rung.
      source: the images.
      teacher: what is known of the teacher.
    """
    path = config.distillation.teacher_checkpoint_path
    student = Metadata(
        config=config,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        num_steps=int(first.num_steps),
    )
    check_same_model(f"No student can start from the teacher {path!r}", "in the teacher", teacher, student)
    trained_for = teacher.num_steps or teacher.config.model.train_num_steps
    if trained_for not in (0, first.teacher_num_steps):
        field = "rungs[0]" if config.distillation.rungs else "start_num_steps"
        raise InputError(
            f"The teacher {path!r} was trained for {trained_for} sampling steps: set "
            f"config.distillation.{field}={trained_for} (it is {first.teacher_num_steps})."
        )
