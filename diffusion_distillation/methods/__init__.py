"""Methods: what a student (or a base model) learns, each in a file of its own.

Adding one is such a file and a line in `METHODS`; one of your own needs no line, only its 'package.module:function' in
config.distillation.method.
"""

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..registry import look_up
from ..schedules import get_logsnr_schedule
from . import consistency, diffusion, guidance, progressive, tract
from .method import Denoisers as Denoisers
from .method import Method as Method
from .method import Rung as Rung
from .method import Times as Times
from .method import evaluations_of_update as evaluations_of_update

METHODS = {
    "progressive": progressive.make,
    "guidance": guidance.make,
    "tract": tract.make,
    "consistency": consistency.make,
}


def make_method(config: Any) -> Method:
    """The method of a config: base training, or for a ladder what config.distillation.method names.

    Args:
      config: resolved, or on its way there: `model` and `distillation` are read.

    Raises:
      InputError: for a method that is unknown, cannot be imported, does not return a `Method` with rungs, or has other
        wishes about the config.
    """
    schedule = get_logsnr_schedule(**config.model.train_logsnr_schedule)
    method = find_method(config)(config, schedule)
    if "distillation" not in config:
        return method
    name = config.distillation.method
    if not isinstance(method, Method) or not method.rungs:
        raise InputError(
            f"config.distillation.method={name!r} must be a function that returns a diffusion_distillation.methods."
            f"Method with one rung or more; it returned {method!r:.200}."
        )
    students = [rung.num_steps for rung in method.rungs]
    if len(set(students)) < len(students):
        raise InputError(f"config.distillation.method={name!r} has two students of as many steps: {students}.")
    return method


def find_method(config: Any) -> Callable[..., Method]:
    """The function that makes the method of a config; raises an InputError for an unknown name."""
    if "distillation" not in config:
        return diffusion.make
    return look_up(config.distillation.method, METHODS, "distillation.method")
