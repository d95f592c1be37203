"""Guidance distillation: a student takes the guidance weight as an input (Meng et al. 2023, arXiv 2210.03142, stage 1).

The student learns what its guided teacher predicts, in one network evaluation instead of two. It keeps its teacher's
number of sampling steps. Other methods then reduce the steps, with teachers and students that both take the weight
(stage 2).
"""

from typing import Any

from ..errors import InputError
from ..losses import discrete_steps
from ..schedules import Schedule
from .method import Method, Rung, Times, weighted_error


def rungs(distillation: Any) -> tuple[Rung, ...]:
    """Return the only rung: one student with distillation.end_num_steps sampling steps, like its teacher.

    Args:
      distillation: the `distillation` section of a config.

    Raises:
      InputError: if the section describes another ladder.
    """
    num_steps = distillation.end_num_steps
    if distillation.rungs or distillation.start_num_steps not in (None, num_steps) or num_steps < 1:
        raise InputError(
            f"method='guidance' trains one student with as many steps as its teacher: set end_num_steps={num_steps} to "
            f"that number, at least 1, and unset start_num_steps={distillation.start_num_steps} (None) and "
            f"rungs={distillation.rungs} (None)."
        )
    return (Rung(num_steps, num_steps),)


def make(config: Any, schedule: Schedule) -> Method:
    """Make the method, which trains at the times of the student's sampling steps.

    The paper trains with guidance weights in model.args.guidance_range=(0.0, 4.0), where the training step samples them
    uniformly, and with the loss weight model.mean_loss_weight_type='snr_trunc'.

    Args:
      config: the config of the ladder or of its student, resolved.
      schedule: the training schedule.

    Raises:
      InputError: if model.args.guidance_range is not set.
    """
    if config.model.args.get("guidance_range") is None:
        raise InputError(
            "method='guidance' trains students that take a guidance weight: set model.args.guidance_range=(0.0, 4.0)."
        )

    def times(keys, update, rung):
        return Times(schedule.grid_time(discrete_steps(keys, rung.num_steps), rung.num_steps))

    def target(denoisers, x, eps, z, times):
        return denoisers.teacher(z, schedule(times.t))  # the training step guides a teacher that takes no weight

    return Method(times, target, weighted_error(config, schedule), target_calls=lambda rung: 2)
