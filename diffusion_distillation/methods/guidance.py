"""Distilled guidance: what took two evaluations takes one, at any weight (Meng et al. 2023, arXiv 2210.03142, stage 1).

The student is told the weight of guidance and learns what its teacher says so guided. It keeps its teacher's number of
steps; the other methods then make them fewer, with teachers and students that take the weight alike (stage 2).
"""

from typing import Any

from ..errors import InputError
from ..losses import discrete_steps, training_loss
from ..schedules import Schedule
from .method import Method, Rung, Times


def rungs(distillation: Any) -> tuple[Rung, ...]:
    """One student, with distillation.end_num_steps sampling steps like its teacher.

    Raises:
      InputError: if the `distillation` section describes another ladder.
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
    """Distillation of guidance, at the times of the student's sampling steps.

    The weights are uniform in model.args.guidance_range, 0 to 4 in the paper, whose loss weight is
    model.mean_loss_weight_type='snr_trunc'.

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
        return denoisers.teacher(z, schedule(times.t))  # guided by the weight, as it does not take it itself

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type, schedule(times.t))

    return Method(times, target, loss, target_calls=lambda rung: 2)
