"""The ladder: halving after halving, each student the teacher of the next."""

from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Metadata, load
from ..config import stage
from ..data import Source
from ..distillation import halvings
from ..errors import InputError
from ..files import as_path
from .loop import OnEval, train
from .runs import locked, open_run
from .step import Teacher


def student_folder(workdir: epath.Path, num_steps: int) -> epath.Path:
    """Where a ladder keeps the student with this number of sampling steps."""
    return workdir / f"steps_{num_steps:04d}"


def run_ladder(config: ConfigDict, workdir: epath.PathLike, source: Source, *, on_eval: OnEval | None = None) -> None:
    """Runs every halving from start_num_steps to end_num_steps (Salimans & Ho 2022, algorithm 2).

    A student starts from its teacher's parameters, with a fresh optimizer. Halvings that are done are kept and one that
    was interrupted goes on.

    Args:
      config: resolved, with a `distillation` section.
      workdir: the ladder's folder; each student gets `steps_<number of steps>` in it.
      source: the images.
      on_eval: see `loop.train`.

    Raises:
      InputError: if there is no checkpoint at teacher_checkpoint_path, or its model is not one that students of this
        config can start from; and as `loop.train`.
    """
    workdir = as_path(workdir)
    params, metadata = load(config.distillation.teacher_checkpoint_path)
    check_teacher(config, source, metadata)
    with locked(workdir):
        open_run(workdir, config)
        for num_steps in halvings(config.distillation.start_num_steps, config.distillation.end_num_steps):
            teacher, folder = Teacher(params, num_steps), student_folder(workdir, num_steps)
            params = train(stage(config, num_steps), folder, source, teacher=teacher, on_eval=on_eval)


def check_teacher(config: ConfigDict, source: Source, teacher: Metadata) -> None:
    """Raises an InputError that names the difference, if students of this config cannot start from the teacher."""
    path = config.distillation.teacher_checkpoint_path
    described = {
        f"config.model.args.{name}": (teacher.config.model.args[name], config.model.args[name])
        for name in config.model.args
        if name not in ("dropout", "remat")  # they are not in the parameters, and teachers and students often differ
    }
    described |= {
        "config.model.mean_type": (teacher.config.model.mean_type, config.model.mean_type),
        "the image shape": (teacher.image_shape, tuple(source.image_shape)),
        "the number of classes": (teacher.num_classes, source.num_classes),
    }
    differences = [
        f"{name} is {of_teacher!r} in the teacher and {of_student!r} here"
        for name, (of_teacher, of_student) in described.items()
        if of_teacher != of_student
    ]
    if differences:
        raise InputError(f"No student can start from the teacher {path!r}: {'; '.join(differences)}.")
    trained_for = teacher.num_steps or teacher.config.model.train_num_steps
    if trained_for not in (0, config.distillation.start_num_steps):
        raise InputError(
            f"The teacher {path!r} was trained for {trained_for} sampling steps: set "
            f"config.distillation.start_num_steps={trained_for} (it is {config.distillation.start_num_steps})."
        )
