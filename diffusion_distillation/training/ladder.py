"""Train a ladder: a sequence of students, each the teacher of the next."""

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
from ..errors import RunError
from ..methods import Rung, evaluations_of_update, make_method
from ..runtime import multihost
from ..runtime.console import safe_output
from ..runtime.files import as_path
from ..runtime.multihost import print_on_main
from ..shapes import Params
from .loop import OnEval, train
from .monitor import OnMetrics
from .prepare import LoadModel, inputs_of
from .runs import locked, open_run, read_config, read_inputs, record_environment
from .teacher import load_teacher, student_as_teacher


def student_folder(workdir: epath.Path, num_steps: int) -> epath.Path:
    """The folder of the student with this number of sampling steps in a ladder's folder.

    >>> student_folder(epath.Path("runs/digits/ladder"), 4).name
    'steps_0004'
    """
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
    """Train every student of a ladder, each the teacher of the next (Salimans & Ho 2022, algorithm 2).

    A student starts from its teacher's parameters, as far as its network has them, with a new optimizer state. Calling
    this function again keeps the finished students and resumes the unfinished one.

    Args:
      config: resolved, with a `distillation` section.
      workdir: the ladder's folder; each student gets `steps_<number of steps>` in it.
      source: the training images.
      on_eval: called as `on_eval(params, metadata, workdir)` with each student's folder; see `loop.train`.
      on_metrics: called as `on_metrics(step, values)` in the main process; the values also have the student's
        `num_steps`.
      change: continue a ladder that has another config, other data or another teacher. Finished students stay as they
        are; the change applies to the unfinished student and to later ones.
      load_model: returns the parameters and the metadata at `distillation.teacher_checkpoint_path`; by default a run's.
      report_evaluations: network evaluations of the report that follows, for the estimate of the time left.

    Raises:
      InputError: if there is no model at `distillation.teacher_checkpoint_path`, or if students of this config cannot
        learn from it; and for the reasons of `loop.train`.
      RunError: if a student's last checkpoint cannot be read.
      KeyboardInterrupt: after SIGINT, once the state is saved. A second SIGINT raises it at once.
      SystemExit: after SIGTERM, likewise, with the status 128 + SIGTERM.
    """
    workdir = as_path(workdir)
    check_path(workdir)
    teacher = load_teacher(config, source, load_model)
    with safe_output(), locked(workdir):
        open_run(workdir, config, change, inputs_of(source, teacher.params))
        record_environment(workdir)
        plan = Plan(config, workdir, on_metrics, report_evaluations)
        plan.print()
        for rung in plan.rungs:
            folder = student_folder(workdir, rung.num_steps)
            student_config = finished_config(folder) or plan.configs[rung.num_steps]
            open_run(folder, student_config, change=True)  # changes were checked for the whole ladder
            _warn_of_another_teacher(folder, teacher.params)
            train(
                student_config,
                folder,
                source,
                teacher=teacher.replace(rung=rung),
                on_eval=on_eval,
                on_metrics=functools.partial(plan.watch, rung),
                change=change,
            )
            # The student becomes the teacher. Its parameters are read from disk, so the devices' memory is free.
            teacher = student_as_teacher(*_load_student(folder, student_config), config, rung)


def finished_config(folder: epath.Path) -> ConfigDict | None:
    """The config of a finished student, which may differ from the ladder's; None for a student that is not finished.

    It is also None for a student whose config.json is missing. Such a student is treated as one of the ladder's config.
    """

    def read() -> dict[str, Any] | None:
        step = newest_step(folder)
        if step is None or not (folder / "config.json").exists():
            return None
        config = read_config(folder)
        return config.to_dict() if step >= config.train.num_train_steps else None

    config = multihost.on_main(read)
    return config and resolve(ConfigDict(config))


def _warn_of_another_teacher(folder: epath.Path, teacher: Params) -> None:
    """Warn of a finished student whose teacher has changed since. `train` refuses to resume an unfinished one."""
    recorded = multihost.on_main(lambda: read_inputs(folder).get("teacher"))  # every process has a part of the teacher
    if recorded is not None and recorded != (now := params_hash(teacher)):
        logging.warning("%s was distilled from another teacher (fingerprint %s, now %s).", folder, recorded, now)


def _load_student(folder: epath.Path, config: ConfigDict) -> tuple[Params, Metadata]:
    """Load a student that has just been trained."""
    params, metadata = load(folder, shard=config.train.shard)
    if metadata.step < config.train.num_train_steps:
        raise RunError(f"{folder}: its last checkpoint cannot be read. Run the same command again to resume.")
    return params, metadata


class Plan:
    """The students of a ladder, and estimates of the time left.

    Attributes:
      rungs: the ladder's rungs, from the first to the last.
      configs: the config of each student, by its number of sampling steps.

    Args:
      config: of the ladder, resolved.
      workdir: the ladder's folder.
      on_metrics: `watch` passes each student's metrics to it.
      report_evaluations: network evaluations of the report that follows.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        on_metrics: OnMetrics | None = None,
        report_evaluations: int = 0,
    ):
        method = make_method(config)
        self.rungs = method.rungs
        self.configs = {rung.num_steps: rung_config(config, rung) for rung in self.rungs}
        self._workdir = workdir
        self._on_metrics = on_metrics
        self._report_evaluations = report_evaluations
        self._evaluations_of_update = {rung.num_steps: evaluations_of_update(method, rung) for rung in self.rungs}
        self._images = {
            num_steps: config.train.num_train_steps * config.train.batch_size
            for num_steps, config in self.configs.items()
        }
        self._watched: set[int] = set()  # students whose speed is known

    def print(self) -> None:
        """Print the updates and examples of each student."""
        count = len(self.rungs)
        updates = sum(config.train.num_train_steps for config in self.configs.values())
        examples = sum(self._images.values())
        print_on_main(
            f"{self._workdir}: {count} student{'s' * (count != 1)}, {updates:,} updates, {examples:,} examples"
        )
        for num_steps, config in self.configs.items():
            print_on_main(
                f"  {student_folder(self._workdir, num_steps).name}  {config.train.num_train_steps:>9,} updates"
                f"  {self._images[num_steps]:>13,} examples"
            )

    def watch(self, rung: Rung, step: int, values: Mapping[str, float]) -> None:
        """Pass on a student's metrics. With its first metrics, print an estimate of the time left."""
        if rung.num_steps not in self._watched:
            self._watched.add(rung.num_steps)
            self._print_estimate(rung, step, values["images_per_sec"])
        if self._on_metrics is not None:
            self._on_metrics(step, {**values, "num_steps": rung.num_steps})

    def _print_estimate(self, rung: Rung, step: int, images_per_sec: float) -> None:
        remaining = self.rungs[self.rungs.index(rung) :]
        done = step * self.configs[rung.num_steps].train.batch_size
        left = sum(self._images[other.num_steps] for other in remaining) - done
        if not left:
            return
        evaluations_per_sec = images_per_sec * self._evaluations_of_update[rung.num_steps]
        report = self._report_evaluations / evaluations_per_sec
        then = f", then up to {_rounded(report)} for the report" if report else ""
        print_on_main(f"{self._workdir.name}: about {_rounded(left / images_per_sec)} of training left{then}")


def _rounded(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
