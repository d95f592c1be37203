"""Distillation targets: one step of a student does what several steps of a teacher do (Salimans & Ho 2022, section 3).

A DDIM step is a rotation: z(phi - d) = cos(d) z - sin(d) v. Several rotations make one, so there is one v whose single
step from z_t ends where several steps end. That v, with its x and eps, is the target. The step of another solver is a
rotation with another v (`sampling.Solver`), so a teacher may step by any of them.

* `two_step_target`: two steps of one teacher, as in progressive distillation.
* `several_step_target`: any number of steps of one teacher.
* `two_stage_target`: two steps of any lengths with two denoisers. TRACT and consistency models are cases of it.

Targets are computed in at least float32 and returned in the dtype of z. Times are scalars or `[batch]`.
"""

import jax
import jax.numpy as jnp

from .diffusion import Denoiser, Prediction, per_example, predict
from .sampling import Solver, check_num_steps, get_solver, rotate
from .schedules import Schedule
from .shapes import Count, DataArray, ScalarOrBatch, StepIndex, at_least_float32, mixed_precision


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
    solver: str | Solver = "ddim",
) -> Prediction:
    """Return the prediction at z_t whose one DDIM step ends where two steps end, one per denoiser.

    The `first` denoiser steps from t to t - dt1, the `second` from there to t - dt1 - dt2. With the angles d1, d2 of
    the two steps, the solver's v1 of the first and the prediction v2 at the start of the second,

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
      solver: of the first step, a name in `sampling.SOLVERS` or a `Solver`; default 'ddim', whose v1 is the predicted
        one. The second step is a DDIM step.

    Returns:
      The target, shaped as z_t. Where the second step ends at t = 0, its x is the x that `second` predicts.

    Raises:
      InputError: for an unknown solver.

    >>> from diffusion_distillation import diffusion, schedules
    >>> teacher = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z_t, schedule = jnp.ones((1, 8, 8, 1)), schedules.get_logsnr_schedule("cosine")
    >>> two_stage_target(teacher, teacher, z_t, 0.5, 0.125, 0.25, schedule).x[0, 0, 0].round(4)
    Array([0.5], dtype=float32)
    """
    solver = get_solver(solver)
    t = jnp.asarray(t)
    t_mid = t - dt1
    d1 = schedule.angle_step(t, dt1)
    d2 = jnp.where(jnp.asarray(dt2) > 0, schedule.angle_step(t_mid, dt2), 0)  # dt2 = 0: angle_step would end at phi = 0
    angle1 = per_example(d1, z_t)
    angle2 = per_example(d2, z_t)

    memory = solver.start_memory(z_t)
    v1, _ = solver.velocity(first(z_t, schedule(t)), first, z_t, memory, schedule=schedule, t=t, dt=dt1)
    v2 = second(rotate(z_t, v1, d1), schedule(t_mid)).v

    numerator = jnp.sin(angle1) * (jnp.cos(angle2) * v1 - jnp.sin(angle2) * z_t) + jnp.sin(angle2) * v2
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
    solver: str | Solver = "ddim",
) -> Prediction:
    """Return the prediction at z_t whose one DDIM step ends where `count` steps of the teacher end.

    The formula of `two_stage_target` is applied step by step. Let v be the target of the first j steps, D their angle
    in all, and d and v_j the angle and the solver's v of the next step. Then

        v <- ( sin(D) (cos(d) v - sin(d) z_t) + sin(d) v_j ) / sin(D + d).

    Args:
      teacher: the teacher's denoiser, without dropout and without clipping.
      z_t: noisy images at times `schedule.grid_time(i, num_steps)`, `[batch, height, width, channels]`.
      i: index of the student's step, from 0 to num_steps - 1; a scalar or `[batch]`.
      num_steps: sampling steps of the student; may be traced.
      count: teacher steps per student step, at least 1; may be traced. The teacher is compiled once, whatever `count`.
      schedule: the noise schedule.
      solver: of the teacher's steps, a name in `sampling.SOLVERS` or a `Solver`; default 'ddim'. A multistep solver
        starts anew with every student step: its first step is a DDIM step.

    Returns:
      The target, shaped as z_t. At i = 0 its x is the x that the teacher predicts in its last step. With `count` 2 and
      DDIM, it is that of `two_step_target`.

    Raises:
      InputError: if `num_steps` is below 1, or for an unknown solver.

    >>> from diffusion_distillation import diffusion, schedules
    >>> teacher = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z_t, schedule = jnp.ones((2, 8, 8, 1)), schedules.get_logsnr_schedule("cosine")
    >>> several_step_target(teacher, z_t, jnp.array([0, 3]), 4, count=8, schedule=schedule).x[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    check_num_steps(num_steps)
    solver = get_solver(solver)
    time_type = at_least_float32(z_t.dtype)
    teacher_num_steps = jnp.asarray(num_steps) * count
    dt = 1 / teacher_num_steps.astype(time_type)
    last = (jnp.asarray(i) + 1) * count - 1  # the teacher step where the student's step starts; integer, so that 0 is 0
    t_start = schedule.grid_time(last, teacher_num_steps, time_type)

    def step(j, carry):
        z, v, memory = carry
        t = schedule.grid_time(last - j, teacher_num_steps, time_type)
        v_j, memory = solver.velocity(teacher(z, schedule(t)), teacher, z, memory, schedule=schedule, t=t, dt=dt)
        d = schedule.angle_step(t, dt)
        angle = per_example(d, z_t)
        angle_before = per_example(jnp.where(j > 0, schedule.angle_step(t_start, j * dt), 0), z_t)
        numerator = jnp.sin(angle_before) * (jnp.cos(angle) * v - jnp.sin(angle) * z_t) + jnp.sin(angle) * v_j
        return rotate(z, v_j, d), numerator / jnp.sin(angle_before + angle), memory

    start = (z_t, jnp.zeros(z_t.shape, time_type), solver.start_memory(z_t))
    _, v, _ = jax.lax.fori_loop(0, count, step, start)
    target = predict(z_t, per_example(schedule(t_start), z_t), v=v)
    return Prediction(*(part.astype(z_t.dtype) for part in target))
