"""Progressive distillation: one step of a student does two of its teacher (Salimans & Ho 2022, section 3)."""

import jax.numpy as jnp

from .diffusion import Denoiser, Prediction, per_example, predict
from .errors import InputError
from .sampling import ddim_step
from .schedules import Schedule
from .shapes import Count, Images, Steps


def two_step_target(teacher: Denoiser, z_t: Images, i: Steps, num_steps: Count, schedule: Schedule) -> Prediction:
    """What a student of `num_steps` steps must predict at z_t for its DDIM step to land where two of its teacher's do.

    With d1, d2 the angles of the teacher's half-steps and v1, v2 its predictions at z_t and in the middle, two
    rotations make one (algorithm 2 of the paper, without the cancellation in its quotient):

        v = ( sin(d1) (cos(d2) v1 - sin(d2) z_t) + sin(d2) v2 ) / sin(d1 + d2)

    Args:
      teacher: the teacher's denoiser, without dropout and without clipping.
      z_t: noisy images at times t = (i + 1) / num_steps.
      i: index of the student's step, from 0 to num_steps - 1, one for each example or one for all.
      num_steps: the student's number of steps; it may be traced.
      schedule: the noise schedule.

    Returns:
      The target, stacked as a denoiser's prediction. Where i = 0 the student's step ends at t = 0 and its target x is
      the teacher's second predicted x.
    """
    time_type = jnp.promote_types(z_t.dtype, jnp.float32)
    half = 0.5 / jnp.asarray(num_steps, time_type)
    t = (jnp.asarray(i) + 1) * (2 * half)

    first = teacher(z_t, schedule(t))
    z_mid = ddim_step(first, z_t, schedule, t, half)
    second = teacher(z_mid, schedule(t - half))

    d1 = per_example(schedule.angle_step(t, half), z_t)
    d2 = per_example(schedule.angle_step(t - half, half), z_t)
    v = (jnp.sin(d1) * (jnp.cos(d2) * first.v - jnp.sin(d2) * z_t) + jnp.sin(d2) * second.v) / jnp.sin(d1 + d2)
    target = predict(z_t, per_example(schedule(t), z_t), v=v)
    return Prediction(*(part.astype(z_t.dtype) for part in target))


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
