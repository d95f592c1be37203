"""Distillation targets: one step of a student does what several steps of a teacher do (Salimans & Ho 2022, section 3).

A DDIM step is a rotation: z(phi - d) = cos(d) z - sin(d) v. Several rotations make one, so there is one v whose single
step from z_t ends where several steps end. That v, with its x and eps, is the target.

* `two_step_target`: two steps of one teacher, as in progressive distillation.
* `several_step_target`: any number of steps of one teacher.
* `two_stage_target`: two steps of any lengths with two denoisers. TRACT and consistency models are cases of it.

Targets are computed in at least float32 and returned in the dtype of z. Times are scalars or `[batch]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .diffusion import Denoiser, Prediction, per_example, predict
from .sampling import check_num_steps, ddim_step
from .schedules import Schedule
from .shapes import Array, Count, DataArray, ScalarOrBatch, StepIndex, at_least_float32, mixed_precision

Displacement = Callable[[Prediction, ScalarOrBatch, ScalarOrBatch], Array]


@mixed_precision
def two_stage_target(
    first: Denoiser,
    second: Denoiser,
    z_t: DataArray,
    t: ScalarOrBatch,
    dt1: ScalarOrBatch,
    dt2: ScalarOrBatch,
    schedule: Schedule,
    *,
    displacement: Displacement | tuple[Displacement | None, Displacement | None] | None = None,
) -> Prediction:
    """Return the prediction at z_t whose one DDIM step ends where two steps end, one per denoiser.

    The `first` denoiser steps from t to t - dt1, the `second` from there to t - dt1 - dt2. With the angles d1, d2 of
    the two steps and the predictions v1, v2 at their starts,

        v = ( sin(d1) (cos(d2) v1 - sin(d2) z_t) + sin(d2) v2 ) / sin(d1 + d2).

    This is the paper's algorithm 2, without the cancellation in its quotient. Methods differ in who predicts v1 and v2
    (a teacher, the data, the student or its average) and in the lengths of the steps.

    Args:
      first: denoiser of the first step.
      second: denoiser of the second step.
      z_t: noisy images at time t, `[batch, height, width, channels]`.
      t: start of the first step, in (0, 1]; a scalar or `[batch]`.
      dt1: length of the first step, above 0 and at most t; a scalar or `[batch]`.
      dt2: length of the second step; a scalar or `[batch]`. With 0 there is no second step, and the target is v1. A
        step longer than the time left ends at t = 0: to end there whatever the rounding, pass 1.
      schedule: the noise schedule.
      displacement: k(prediction, phi, d), how much of the predicted eps is added to a DDIM step of angle d from angle
        phi, `[batch]`, such as `sampling.addim_displacement` (Heek et al. 2024, algorithm 3). The numerator above is
        then reduced by cos(d2) k1 eps1 + k2 eps2. One function for both steps, or a pair; None, the default, for none.

    Returns:
      The target, shaped as z_t. Where the second step ends at t = 0, its x is the x that `second` predicts.

    >>> from diffusion_distillation import diffusion, schedules
    >>> teacher = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z_t, schedule = jnp.ones((1, 8, 8, 1)), schedules.get_logsnr_schedule("cosine")
    >>> two_stage_target(teacher, teacher, z_t, 0.5, 0.125, 0.25, schedule).x[0, 0, 0].round(4)
    Array([0.5], dtype=float32)
    """
    k1, k2 = displacement if isinstance(displacement, tuple) else (displacement, displacement)
    t = jnp.asarray(t)
    t_mid = t - dt1
    d1 = schedule.angle_step(t, dt1)
    d2 = jnp.where(jnp.asarray(dt2) > 0, schedule.angle_step(t_mid, dt2), 0)  # dt2 = 0: angle_step would end at phi = 0
    angle1 = per_example(d1, z_t)
    angle2 = per_example(d2, z_t)

    # The first step: z_mid = cos(d1) z_t - sin(d1) v1 + k1 eps1.
    prediction1 = first(z_t, schedule(t))
    z_mid = ddim_step(prediction1, z_t, schedule, t, dt1)
    if k1 is not None:
        offset1 = per_example(k1(prediction1, schedule.angle(t), d1), z_t) * prediction1.eps
        z_mid = (z_mid + offset1).astype(z_t.dtype)

    # The second prediction.
    prediction2 = second(z_mid, schedule(t_mid))

    # sin(d1) (cos(d2) v1 - sin(d2) z_t) + sin(d2) v2 - cos(d2) k1 eps1 - k2 eps2
    numerator = jnp.sin(angle1) * (jnp.cos(angle2) * prediction1.v - jnp.sin(angle2) * z_t)
    numerator += jnp.sin(angle2) * prediction2.v
    if k1 is not None:
        numerator -= jnp.cos(angle2) * offset1
    if k2 is not None:
        numerator -= per_example(k2(prediction2, schedule.angle(t_mid), d2), z_t) * prediction2.eps
    target = predict(z_t, per_example(schedule(t), z_t), v=numerator / jnp.sin(angle1 + angle2))
    return Prediction(*(part.astype(z_t.dtype) for part in target))


@mixed_precision
def two_step_target(
    teacher: Denoiser, z_t: DataArray, i: StepIndex, num_steps: Count, schedule: Schedule
) -> Prediction:
    """Return the prediction at z_t whose one DDIM step ends where two steps of half the length end.

    This is `two_stage_target` with the teacher in both steps (Salimans & Ho 2022, algorithm 2).

    Args:
      teacher: the teacher's denoiser, without dropout and without clipping.
      z_t: noisy images at times `schedule.grid_time(i, num_steps)`, `[batch, height, width, channels]`.
      i: index of the student's step, from 0 to num_steps - 1; a scalar or `[batch]`.
      num_steps: sampling steps of the student; may be traced.
      schedule: the noise schedule.

    Returns:
      The target, shaped as z_t. At i = 0, where the student's step ends at t = 0, its x is the x of the teacher's
      second prediction.

    Raises:
      InputError: if `num_steps` is below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> teacher = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z_t, schedule = jnp.ones((2, 8, 8, 1)), schedules.get_logsnr_schedule("cosine")
    >>> two_step_target(teacher, z_t, jnp.array([0, 3]), 4, schedule).x[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    check_num_steps(num_steps)
    time_type = at_least_float32(z_t.dtype)
    t = schedule.grid_time(i, num_steps, time_type)
    half = 0.5 * schedule.grid_step(i, num_steps, time_type)
    return two_stage_target(teacher, teacher, z_t, t, half, half, schedule)


@mixed_precision
def several_step_target(
    teacher: Denoiser,
    z_t: DataArray,
    i: StepIndex,
    num_steps: Count,
    count: Count,
    schedule: Schedule,
    *,
    displacement: Displacement | None = None,
) -> Prediction:
    """Return the prediction at z_t whose one DDIM step ends where `count` steps of the teacher end.

    The formula of `two_stage_target` is applied step by step. Let v be the target of the first j steps, D their angle
    in all, and d, v_j and eps_j the angle and the prediction of the next step. Then

        v <- ( sin(D) (cos(d) v - sin(d) z_t) + sin(d) v_j - k eps_j ) / sin(D + d).

    Args:
      teacher: the teacher's denoiser, without dropout and without clipping.
      z_t: noisy images at times `schedule.grid_time(i, num_steps)`, `[batch, height, width, channels]`.
      i: index of the student's step, from 0 to num_steps - 1; a scalar or `[batch]`.
      num_steps: sampling steps of the student; may be traced.
      count: teacher steps per student step, at least 1; may be traced. The teacher is compiled once, whatever `count`.
      schedule: the noise schedule.
      displacement: k(prediction, phi, d), for every step; see `two_stage_target`. Default none.

    Returns:
      The target, shaped as z_t. At i = 0 its x is the x of the teacher's last prediction. With `count` 2 it is that of
      `two_step_target`.

    Raises:
      InputError: if `num_steps` is below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> teacher = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z_t, schedule = jnp.ones((2, 8, 8, 1)), schedules.get_logsnr_schedule("cosine")
    >>> several_step_target(teacher, z_t, jnp.array([0, 3]), 4, count=8, schedule=schedule).x[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    check_num_steps(num_steps)
    time_type = at_least_float32(z_t.dtype)
    teacher_num_steps = jnp.asarray(num_steps) * count
    dt = 1 / teacher_num_steps.astype(time_type)
    last = (jnp.asarray(i) + 1) * count - 1  # the teacher step where the student's step starts; integer, so that 0 is 0
    t_start = schedule.grid_time(last, teacher_num_steps, time_type)

    def step(j, carry):
        z, v = carry
        t = schedule.grid_time(last - j, teacher_num_steps, time_type)
        prediction = teacher(z, schedule(t))
        d = schedule.angle_step(t, dt)
        angle = per_example(d, z_t)
        angle_before = per_example(jnp.where(j > 0, schedule.angle_step(t_start, j * dt), 0), z_t)
        numerator = jnp.sin(angle_before) * (jnp.cos(angle) * v - jnp.sin(angle) * z_t) + jnp.sin(angle) * prediction.v
        z = ddim_step(prediction, z, schedule, t, dt)
        if displacement is not None:
            offset = per_example(displacement(prediction, schedule.angle(t), d), z_t) * prediction.eps
            numerator -= offset
            z = (z + offset).astype(z.dtype)
        return z, numerator / jnp.sin(angle_before + angle)

    _, v = jax.lax.fori_loop(0, count, step, (z_t, jnp.zeros(z_t.shape, time_type)))
    target = predict(z_t, per_example(schedule(t_start), z_t), v=v)
    return Prediction(*(part.astype(z_t.dtype) for part in target))
