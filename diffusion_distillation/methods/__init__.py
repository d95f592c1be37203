"""Methods: what a student (or a base model) learns, one per file.

To add a method, write a file with a function `make(config, schedule, *, option=default)`, and add it to `METHODS`. To
use a function of your own without changing this package, set distillation.method='package.module:function'. The
keyword-only arguments of the function are options: the config and the command line set them as distillation.args.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import InputError
from ..registry import look_up
from ..schedules import get_logsnr_schedule
from . import base, consistency, guidance, progressive, tract
from .method import Denoisers as Denoisers
from .method import Method as Method
from .method import Rung as Rung
from .method import Times as Times
from .method import evaluations_of_update as evaluations_of_update
from .method import with_checks
from .rungs import descending_rungs


class Entry(NamedTuple):
    """An entry of `METHODS`.

    Attributes:
      make: `make(config, schedule, **options)`, which returns the `Method`. Its keyword-only arguments are the fields
        of distillation.args.
      rungs: `rungs(distillation)`, which returns the rungs of a ladder from a config's `distillation` section.
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
    """Make the method of a config: base training, or the method of a ladder's distillation.method.

    Args:
      config: a resolved config.

    Returns:
      The method, with the rungs of `ladder_rungs(config)`.

    Raises:
      InputError: if the method is unknown, cannot be imported, does not return a `Method`, or rejects the config.
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
    if config.distillation.method not in METHODS:
        method = with_checks(method, config.distillation.method)
    method = method._replace(rungs=_select_rungs(config, method.rungs))
    return method if config.distillation.teacher_guidance is None else _with_guided_teacher(method)


def ladder_rungs(config: Any) -> tuple[Rung, ...]:
    """Return the rungs of a ladder, from the first to the last.

    The rungs of a method in `METHODS` follow from the `distillation` section. A function of your own is called: it may
    set the rungs of the `Method` that it returns, and `descending_rungs` of the section are the default.

    Args:
      config: a resolved config with a `distillation` section.

    Raises:
      InputError: for rungs that do not fit the method; for a function of your own, see also `make_method`.
    """
    if config.distillation.method not in METHODS:
        return make_method(config).rungs
    return _select_rungs(config)


def find_method(config: Any) -> Callable[..., Method]:
    """Return the function that makes the method of a config.

    Args:
      config: a config, which need not be resolved.

    Raises:
      InputError: for an unknown name.
    """
    if "distillation" not in config:
        return base.make
    known = {name: entry.make for name, entry in METHODS.items()}
    return look_up(config.distillation.method, known, "distillation.method")


def _with_guided_teacher(method: Method) -> Method:
    """Count two evaluations per call of the first teacher, with and without the label. Later ones are not guided."""

    def target_calls(rung):
        return method.target_calls(rung) + (method.teacher_calls(rung) if rung == method.rungs[0] else 0)

    return method._replace(target_calls=target_calls)


def _select_rungs(config: Any, method_rungs: tuple[Rung, ...] = ()) -> tuple[Rung, ...]:
    """The rungs of a ladder, checked. A function of the user's own may have set them as `method_rungs`."""
    name = config.distillation.method
    if name in METHODS:
        rungs = METHODS[name].rungs(config.distillation)
    else:
        rungs = method_rungs or descending_rungs(config.distillation)
    num_steps = [rung.num_steps for rung in rungs]
    if len(set(num_steps)) < len(num_steps):
        raise InputError(f"method={name!r} has two students with the same number of sampling steps: {num_steps}.")
    return rungs
