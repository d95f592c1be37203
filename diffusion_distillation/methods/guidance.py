"""Distilled guidance: what took two evaluations takes one, at any weight (Meng et al. 2023, arXiv 2210.03142, stage 1).

The student is told the weight of guidance and learns what its teacher says so guided. It keeps its teacher's number of
steps; the other methods then make them fewer, with teachers and students that take the weight alike (stage 2).
"""

from typing import Any

from ..errors import InputError
from ..losses import discrete_steps, training_loss
from ..schedules import Schedule
from .method import Method, Rung, Times


def make(config: Any, schedule: Schedule) -> Method:
    """One student of distillation.end_num_steps steps, at whose times it learns.

    The weights are uniform in model.args.guidance_range, for which the paper has 0 to 4; its weight of the loss is
    mean_loss_weight_type='snr_trunc'.
    """
    distillation, num_steps = config.distillation, config.distillation.end_num_steps
    if config.model.args.get("guidance_range") is None:
        raise InputError(
            "method='guidance' makes students that take weights: set model.args.guidance_range=(0.0, 4.0)."
        )
    if distillation.rungs or distillation.start_num_steps not in (None, num_steps) or num_steps < 1:
        raise InputError(
            f"method='guidance' has one student, of as many steps as its teacher: set end_num_steps={num_steps} to "
            f"them, from 1 on, and leave start_num_steps={distillation.start_num_steps} and rungs={distillation.rungs} "
            "out."
        )

    def times(keys, update, rung):
        return Times((discrete_steps(keys, rung.num_steps) + 1) / rung.num_steps)

    def target(denoisers, x, eps, z, times):
        return denoisers.teacher(z, schedule(times.t))  # guided by the weight, as it does not take it itself

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type)

    return Method(times, target, loss, (Rung(num_steps, num_steps),), target_calls=lambda rung: 2)
