"""Progressive distillation: a step of the student does several of its teacher (Salimans & Ho 2022, algorithm 2)."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int

from ..distillation import several_step_target
from ..losses import discrete_steps, training_loss
from ..schedules import Schedule
from ..shapes import Array
from .method import Method, Rung
from .rungs import descending_rungs, teacher_displacement


class StepTimes(NamedTuple):
    """Step i of the student's, and its time t."""

    t: Float[Array, "batch"]
    i: Int[Array, "batch"]
    rung: Rung


def make(config: Any, schedule: Schedule) -> Method:
    """Halvings from distillation.start_num_steps to end_num_steps, or the rungs of distillation.rungs."""
    rungs = descending_rungs(config.distillation)
    displacement = teacher_displacement(config.distillation, rungs)
    factors = {above // below for above, below in rungs}
    factor = factors.pop() if len(factors) == 1 else None  # of every rung, if they are alike: not traced

    def times(keys, update, rung):
        i = discrete_steps(keys, rung.num_steps)
        return StepTimes(schedule.grid_time(i, rung.num_steps), i, rung)

    def target(denoisers, x, eps, z, times):
        above, below = times.rung
        count = factor or above // below
        beside = displacement and displacement(times.rung)
        return several_step_target(denoisers.teacher, z, times.i, below, count, schedule, displacement=beside)

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type, schedule(times.t))

    return Method(times, target, loss, target_calls=lambda rung: rung.teacher_num_steps // rung.num_steps)
