"""Progressive distillation: a step of the student does two of its teacher (Salimans & Ho 2022, algorithm 2)."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int

from ..distillation import two_step_target
from ..errors import InputError
from ..losses import discrete_steps, training_loss
from ..schedules import Schedule
from ..shapes import Array, Count
from .method import Method, Rung


class StepTimes(NamedTuple):
    """Step i of num_steps, and its time t = (i + 1) / num_steps."""

    t: Float[Array, "batch"]
    i: Int[Array, "batch"]
    num_steps: Count


def make(config: Any, schedule: Schedule) -> Method:
    """Halvings from distillation.start_num_steps to end_num_steps."""

    def times(keys, update, rung):
        i = discrete_steps(keys, rung.num_steps)
        return StepTimes((i + 1) / rung.num_steps, i, rung.num_steps)

    def target(denoisers, x, eps, z, times):
        return two_step_target(denoisers.teacher, z, times.i, times.num_steps, schedule)

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type)

    students = halvings(config.distillation.start_num_steps, config.distillation.end_num_steps)
    return Method(times, target, loss, tuple(Rung(2 * num_steps, num_steps) for num_steps in students))


def halvings(start_num_steps: int, end_num_steps: int) -> list[int]:
    """The students' numbers of steps, from start_num_steps / 2 down to end_num_steps.

    Raises:
      InputError: if start_num_steps is not end_num_steps times a power of two, two at least.
    """
    students = []
    num_steps = start_num_steps
    while num_steps > end_num_steps >= 1 and num_steps % 2 == 0:
        num_steps //= 2
        students.append(num_steps)
    if not students or students[-1] != end_num_steps:
        raise InputError(
            f"start_num_steps={start_num_steps} must be end_num_steps={end_num_steps} times a power of "
            f"two (2, 4, 8, ...), so that every student takes half the steps of its teacher."
        )
    return students
