"""Methods: what a student (or a base model) learns. Each has a file of its own.

To add one, write such a file and add a line to `METHODS`. A method of your own needs no line: name its function in the
config, `distillation.method='package.module:function'`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import InputError
from ..registry import look_up
from ..schedules import get_logsnr_schedule
from . import consistency, diffusion, guidance, progressive, tract
from .method import Denoisers as Denoisers
from .method import Method as Method
from .method import Rung as Rung
from .method import Times as Times
from .method import evaluations_of_update as evaluations_of_update
from .rungs import descending_rungs


class Entry(NamedTuple):
    """A method as `METHODS` lists it.

    Attributes:
      make: `make(config, schedule, **options)`, which returns the `Method`. Its keyword-only arguments are the fields
        of `distillation.args`.
      rungs: `rungs(distillation)`, the rungs of a ladder, from the config's `distillation` section.
    """

    make: Callable[..., Method]
    rungs: Callable[[Any], tuple[Rung, ...]] = descending_rungs


METHODS = {
    "progressive": Entry(progressive.make),
    "guidance": Entry(guidance.make, guidance.rungs),
    "tract": Entry(tract.make),
    "consistency": Entry(consistency.make, consistency.rungs),
}


def make_method(config: Any) -> Method:
    """The method of a config: base training, or for a ladder what config.distillation.method names.

    Args:
      config: resolved.

    Returns:
      The method, with the rungs of `ladder_rungs(config)`.

    Raises:
      InputError: for a method that is unknown, cannot be imported, does not return a `Method`, or does not accept the
        config.
    """
    make = find_method(config)
    schedule = get_logsnr_schedule(**config.model.train_logsnr_schedule)
    if "distillation" not in config:
        return make(config, schedule)
    method = make(config, schedule, **config.distillation.args)
    if not isinstance(method, Method):
        raise InputError(
            f"method={config.distillation.method!r} must be a function that returns a diffusion_distillation.methods."
            f"Method; it returned {method!r:.200}."
        )
    return method._replace(rungs=_rungs(config, method.rungs))


def ladder_rungs(config: Any) -> tuple[Rung, ...]:
    """The rungs of a ladder, from the first to the last.

    Args:
      config: resolved, with a `distillation` section. Only a function of your own is called, which may set the rungs of
        the `Method` that it returns; for all other methods, the rungs follow from the section alone.

    Raises:
      InputError: for rungs that do not fit the method, or as `make_method`.
    """
    if config.distillation.method not in METHODS:
        return make_method(config).rungs
    return _rungs(config)


def find_method(config: Any) -> Callable[..., Method]:
    """The function that makes the method of a config.

    Raises:
      InputError: for an unknown name.
    """
    if "distillation" not in config:
        return diffusion.make
    known = {name: entry.make for name, entry in METHODS.items()}
    return look_up(config.distillation.method, known, "distillation.method")


def _rungs(config: Any, of_method: tuple[Rung, ...] = ()) -> tuple[Rung, ...]:
    """The rungs of a ladder; of a function of the user's own, those of its method, if it has any."""
    name = config.distillation.method
    if name in METHODS:
        rungs = METHODS[name].rungs(config.distillation)
    else:
        rungs = of_method or descending_rungs(config.distillation)
    students = [rung.num_steps for rung in rungs]
    if len(set(students)) < len(students):
        raise InputError(f"method={name!r} has two students with the same number of steps: {students}.")
    return rungs
