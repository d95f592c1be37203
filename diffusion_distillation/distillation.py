"""The targets of distillation: one step of a student does what two stages do (Salimans & Ho 2022, section 3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .diffusion import Denoiser, Prediction, per_example, predict
from .sampling import check_num_steps, ddim_step
from .schedules import Schedule
from .shapes import Array, Count, Images, Steps, Times, at_least_float32, mixing_types

Displacement = Callable[[Prediction, Times, Times], Array]


@mixing_types
def two_stage_target(
    first: Denoiser,
    second: Denoiser,
    z_t: Images,
    t: Times,
    dt1: Times,
    dt2: Times,
    schedule: Schedule,
    *,
    displacement: Displacement | tuple[Displacement | None, Displacement | None] | None = None,
) -> Prediction:
    """What a student must predict at z_t for one DDIM step of it to land where two stages do.

    From time t a step of dt1 with the `first` denoiser, from there a step of dt2 with the `second`. With d1, d2 the
    angles of the two and v1, v2 the predictions at z_t and in between, two rotations make one:

        v = ( sin(d1) (cos(d2) v1 - sin(d2) z_t) + sin(d2) v2 ) / sin(d1 + d2)

    This is the paper's algorithm 2 without the cancellation in its quotient. The methods of the family differ in who
    gives v1 and v2 (a teacher, the data, the student itself or its average) and in the length of the stages.

    Args:
      first: denoiser of the first stage.
      second: denoiser of the second stage.
      z_t: noisy images at times t.
      t: time of each.
      dt1: length of the first stage, above 0 and at most t.
      dt2: length of the second; 0 where there is none, and the target is then v1. One that is longer than what is left
        ends at t = 0: where it should, 1 is safe from rounding.
      schedule: the noise schedule.
      displacement: k(prediction, phi, d), how far along the predicted eps a step of angle d from angle phi ends beside
        the DDIM step, `[batch]`; as `sampling.addim_displacement` (Heek et al. 2024, algorithm 3). The terms
        cos(d2) k1 eps1 and k2 eps2 are then subtracted above. One for both stages, or one for each, None for none.

    Returns:
      The target, stacked as a denoiser's prediction. Where the stages end at t = 0, its x is the second's predicted x.
    """
    t, between = jnp.asarray(t), jnp.asarray(t) - dt1
    d1 = schedule.angle_step(t, dt1)
    d2 = jnp.where(jnp.asarray(dt2) > 0, schedule.angle_step(between, dt2), 0)  # at time 0 the schedule turns to 0
    turn1, turn2 = per_example(d1, z_t), per_example(d2, z_t)

    k1, k2 = displacement if isinstance(displacement, tuple) else (displacement, displacement)
    one = first(z_t, schedule(t))
    z_mid = ddim_step(one, z_t, schedule, t, dt1)
    if k1 is not None:
        beside1 = per_example(k1(one, schedule.angle(t), d1), z_t) * one.eps
        z_mid = (z_mid + beside1).astype(z_t.dtype)
    two = second(z_mid, schedule(between))

    sines = jnp.sin(turn1) * (jnp.cos(turn2) * one.v - jnp.sin(turn2) * z_t) + jnp.sin(turn2) * two.v
    if k1 is not None:
        sines -= jnp.cos(turn2) * beside1
    if k2 is not None:
        sines -= per_example(k2(two, schedule.angle(between), d2), z_t) * two.eps
    target = predict(z_t, per_example(schedule(t), z_t), v=sines / jnp.sin(turn1 + turn2))
    return Prediction(*(part.astype(z_t.dtype) for part in target))


@mixing_types
def two_step_target(teacher: Denoiser, z_t: Images, i: Steps, num_steps: Count, schedule: Schedule) -> Prediction:
    """What a student of `num_steps` steps must predict at z_t for its DDIM step to land where two of its teacher's do.

    `two_stage_target` with two stages of the teacher, half a step of the student each.

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
    check_num_steps(num_steps)
    half = 0.5 / jnp.asarray(num_steps, at_least_float32(z_t.dtype))
    t = (jnp.asarray(i) + 1) * (2 * half)
    return two_stage_target(teacher, teacher, z_t, t, half, half, schedule)


@mixing_types
def several_step_target(
    teacher: Denoiser,
    z_t: Images,
    i: Steps,
    num_steps: Count,
    count: Count,
    schedule: Schedule,
    *,
    displacement: Displacement | None = None,
) -> Prediction:
    """What a student must predict at z_t for one DDIM step of it to land where `count` of its teacher's do.

    `two_stage_target` again and again: the v of j steps, of the angle D in all, and a step of d with v_j are

        v <- ( sin(D) (cos(d) v - sin(d) z_t) + sin(d) v_j - k eps_j ) / sin(D + d)

    Args:
      teacher: the teacher's denoiser, without dropout and without clipping.
      z_t: noisy images at times t = (i + 1) / num_steps.
      i: index of the student's step, from 0 to num_steps - 1, one for each example or one for all.
      num_steps: the student's number of steps; it may be traced.
      count: the teacher's steps in one of the student's; it may be traced. However many, the teacher is compiled once
        (on CPU, by JAX before 0.12, the loop is unrolled by two where count is not traced, for speed).
      schedule: the noise schedule.
      displacement: of each step, see `two_stage_target`.

    Returns:
      As `two_step_target`, which is the case of two steps.
    """
    check_num_steps(num_steps)
    time_type = at_least_float32(z_t.dtype)
    grid = jnp.asarray(num_steps) * count
    dt = 1 / grid.astype(time_type)
    start = (jnp.asarray(i) + 1) * count  # in steps of the teacher, so that the last one ends at 0 exactly
    first = start / grid.astype(time_type)

    def step(j, carry):
        z, v = carry
        t = (start - j) / grid.astype(time_type)
        prediction = teacher(z, schedule(t))
        d = schedule.angle_step(t, dt)
        before = jnp.where(j > 0, schedule.angle_step(first, j * dt), 0)
        turn, before = per_example(d, z_t), per_example(before, z_t)
        sines = jnp.sin(before) * (jnp.cos(turn) * v - jnp.sin(turn) * z_t) + jnp.sin(turn) * prediction.v
        z = ddim_step(prediction, z, schedule, t, dt)
        if displacement is not None:
            beside = per_example(displacement(prediction, schedule.angle(t), d), z_t) * prediction.eps
            sines, z = sines - beside, (z + beside).astype(z.dtype)
        return z, sines / jnp.sin(before + turn)

    # where JAX before 0.12 computes a training step on CPU, with a loop in it the step takes a tenth longer
    slow = jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12)
    unroll = 2 if slow and isinstance(count, int) else None
    _, v = jax.lax.fori_loop(0, count, step, (z_t, jnp.zeros(z_t.shape, time_type)), unroll=unroll)
    target = predict(z_t, per_example(schedule(first), z_t), v=v)
    return Prediction(*(part.astype(z_t.dtype) for part in target))
