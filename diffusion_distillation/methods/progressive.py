"""Progressive distillation: one student step does several teacher steps (Salimans & Ho 2022, algorithm 2)."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int

from ..distillation import several_step_target
from ..losses import discrete_steps
from ..schedules import Schedule
from ..shapes import Array
from .method import Method, Rung, weighted_error
from .rungs import descending_rungs, teacher_solver


class StepTimes(NamedTuple):
    """Training times at the student's sampling steps.

    Attributes:
      t: the time of each example.
      i: the index of the student's step at this time.
      rung: the student's rung.
    """

    t: Float[Array, "batch"]
    i: Int[Array, "batch"]
    rung: Rung


def make(config: Any, schedule: Schedule) -> Method:
    """Make the method, for rungs that halve the steps or for those of distillation.rungs.

    Args:
      config: the config of the ladder or of one of its students, resolved.
      schedule: the training schedule.
    """
    rungs = descending_rungs(config.distillation)
    teacher = teacher_solver(config.distillation, rungs)
    factors = {teacher_num_steps // num_steps for teacher_num_steps, num_steps in rungs}
    factor = factors.pop() if len(factors) == 1 else None  # if all rungs have the same factor, it need not be traced

    def times(keys, update, rung):
        i = discrete_steps(keys, rung.num_steps)
        return StepTimes(schedule.grid_time(i, rung.num_steps), i, rung)

    def target(denoisers, x, eps, z, times):
        teacher_num_steps, num_steps = times.rung
        count = factor or teacher_num_steps // num_steps
        solver = teacher.of(times.rung)
        return several_step_target(denoisers.teacher, z, times.i, num_steps, count, schedule, solver=solver)

    def calls(rung):
        return rung.teacher_num_steps // rung.num_steps * teacher.evaluations(rung)

    return Method(times, target, weighted_error(config, schedule), target_calls=calls, teacher_calls=calls)
