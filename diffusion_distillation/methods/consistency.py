"""Consistency models: one step leads from any time in a group of grid steps to the end of the group.

The student's prediction at t should agree with its own prediction one grid step later. That grid step is taken with the
teacher (consistency distillation) or with the data (consistency training). With one group, the student is a consistency
model (Song et al. 2023, arXiv 2303.01469). With several groups, it is a multistep consistency model (Heek et al. 2024,
arXiv 2403.06807, algorithms 1 and 2), which you sample with DDIM and one step per group.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ..diffusion import Prediction
from ..distillation import two_stage_target
from ..errors import InputError
from ..losses import data_target
from ..schedules import Schedule, time_of
from ..shapes import Array, Count
from .method import Method, Rung
from .rungs import GroupTimes, group_times, teacher_solver


class WeightedTimes(NamedTuple):
    """Training times with loss weights.

    Attributes:
      group: the time of each example and its steps to the end of its group.
      weight: the loss weight of each example.
    """

    group: GroupTimes
    weight: Float[Array, "batch"]

    @property
    def t(self) -> Float[Array, "batch"]:
        """The time of each example."""
        return self.group.t


def rungs(distillation: Any) -> tuple[Rung, ...]:
    """Return the only rung: one student with distillation.end_num_steps groups, each one sampling step.

    The grid grows to distillation.start_num_steps steps, or to distillation.args.last_grid if that is None.

    Args:
      distillation: the `distillation` section of a config.

    Raises:
      InputError: if distillation.rungs is set, or if the last grid is not a multiple of the number of groups.
    """
    groups = distillation.end_num_steps
    grid = distillation.start_num_steps or distillation.args.last_grid
    if distillation.rungs:
        raise InputError(f"rungs={distillation.rungs}: method='consistency' trains one student. Unset rungs (None).")
    if not 1 <= groups <= grid or grid % groups:
        raise InputError(
            f"start_num_steps={grid} (the last grid, by default args.last_grid) must be a multiple of "
            f"end_num_steps={groups} (the groups), which must be at least 1."
        )
    return (Rung(grid, groups),)


def make(
    config: Any,
    schedule: Schedule,
    *,
    kind: Literal["distillation", "training"] = "distillation",
    times: Literal["grid", "tuning"] = "grid",
    first_grid: int = 64,
    last_grid: int = 1280,
    grid_updates: int = 100_000,
    tau_mean: float = -1.1,
    tau_std: float = 2.0,
    tuning_phases: int = 8,
    norm: Literal["huber", "norm", "squared"] = "huber",
    huber: float | None = None,
) -> Method:
    """Make consistency distillation, consistency training or easy consistency tuning.

    Args:
      config: the config of the ladder or of its student, resolved.
      schedule: the training schedule.
      kind: what the first step is taken with, the teacher ('distillation') or the data ('training').
      times: 'grid' for Heek et al.'s growing grid, with loss weight SNR + 1; 'tuning' for easy consistency tuning (Geng
        et al. 2024, arXiv 2406.14548), with loss weight 1 / (tau - r).
      first_grid: steps of the grid at the start of training; at least the number of groups.
      last_grid: steps of the grid after `grid_updates` updates, unless distillation.start_num_steps is set.
      grid_updates: updates until the grid has its full size; at least 1.
      tau_mean: in tuning, mean of log tau = log tan(angle).
      tau_std: in tuning, standard deviation of log tau; not negative.
      tuning_phases: phases of the tuning, of equal length; at least 1. Each halves the distance between the two times.
      norm: norm of the error of x: 'huber' for sqrt(|.|^2 + huber^2) - huber, 'norm' for |.|, 'squared' for the mean
        square.
      huber: the constant of the Huber norm; not negative. By default 1e-4; in tuning, 0.00054 times the square root of
        the number of values per image.

    Raises:
      InputError: for options outside their ranges, or that do not fit each other.
    """
    [rung] = rungs(config.distillation)
    groups = rung.num_steps
    if not groups <= first_grid <= rung.teacher_num_steps:
        raise InputError(
            f"args.first_grid={first_grid} must be between end_num_steps={groups} (the groups) and "
            f"{rung.teacher_num_steps}, the last grid."
        )
    if times == "tuning" and groups != 1:
        raise InputError(f"args.times='tuning' needs one group: end_num_steps={groups} must be 1.")
    if kind == "training" and config.distillation.teacher_step != "ddim":
        raise InputError("args.kind='training' does not evaluate the teacher: set teacher_step='ddim'.")
    if grid_updates < 1 or tuning_phases < 1:
        raise InputError(f"args.grid_updates={grid_updates} and args.tuning_phases={tuning_phases} must be at least 1.")
    if not tau_std >= 0 or not (huber is None or huber >= 0):
        raise InputError(f"args.tau_std={tau_std} and args.huber={huber} must not be negative.")

    solver = teacher_solver(config.distillation, (rung,), single_steps=True)
    if times == "tuning":
        sample_times = tuning_times(schedule, tau_mean, tau_std, tuning_phases, config.train.num_train_steps)
    else:
        sample_times = grid_times(schedule, first_grid, grid_updates)

    def target(denoisers, x, eps, z, sampled):
        def data(z, logsnr):
            return data_target(x, eps, logsnr)

        t, dt1, dt2, rung = sampled.group
        first = data if kind == "training" else denoisers.teacher
        return two_stage_target(first, denoisers.student, z, t, dt1, dt2, schedule, solver=solver.of(rung))

    def loss(prediction, target, sampled):
        scale = {"huber": huber, "norm": 0.0, "squared": None}[norm]
        if norm == "huber" and huber is None:
            num_values = math.prod(prediction.v.shape[-3:])
            scale = 0.00054 * math.sqrt(num_values) if times == "tuning" else 1e-4
        sigma = jnp.sin(schedule.angle(sampled.t))
        return sampled.weight * distance(prediction, target, sigma, scale)

    def teacher_calls(rung):
        return solver.evaluations(rung) if kind == "distillation" else 0

    return Method(
        sample_times,
        target,
        loss,
        target_calls=lambda rung: 1 + teacher_calls(rung),
        teacher_calls=teacher_calls,
    )


def grid_times(schedule: Schedule, first_grid: int, grid_updates: int) -> Callable[..., WeightedTimes]:
    """Return the `times` of a method: uniform on a grid that grows during training, with loss weight SNR + 1.

    Args:
      schedule: the training schedule.
      first_grid: steps of the grid at the start of training. The rung's teacher_num_steps is its full size.
      grid_updates: updates until the grid has its full size.
    """

    def sample_times(keys, update, rung):
        size = grid_size(update / grid_updates, first_grid, rung)
        group = group_times(keys, size, rung.num_steps, rung, schedule)
        return WeightedTimes(group, 1 / jnp.square(jnp.sin(schedule.angle(group.t))))

    return sample_times


def tuning_times(
    schedule: Schedule, tau_mean: float, tau_std: float, phases: int, num_train_steps: int
) -> Callable[..., WeightedTimes]:
    """Return the `times` of easy consistency tuning: tau = tan(angle) is log-normal, the loss weight is 1 / (tau - r).

    The first step leads from tau to r = tau (1 - `pair_distance`), the second from r to 0.

    Args:
      schedule: the training schedule.
      tau_mean: mean of log tau.
      tau_std: standard deviation of log tau.
      phases: phases of the tuning, of equal length.
      num_train_steps: updates of the training.
    """

    def sample_times(keys, update, rung):
        normal = jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)
        tau = jnp.exp(tau_mean + tau_std * normal)
        relative = pair_distance(tau, update * phases // num_train_steps)
        t, r = (time_of(schedule, -2 * jnp.log(jnp.maximum(tan, 1e-12))) for tan in (tau, tau * (1 - relative)))
        ends_at_0 = (relative == 1) | (r == 0)
        dt1 = jnp.where(ends_at_0, t, t - r)
        dt2 = jnp.where(ends_at_0, jnp.zeros_like(t), 1)
        return WeightedTimes(GroupTimes(t, dt1, dt2, rung), 1 / (tau * relative))

    return sample_times


def grid_size(progress: Array | float, first: int, rung: Rung) -> Count:
    """Return the steps of the growing grid, a multiple of the number of groups: N(i) of Heek et al. (2024).

    Args:
      progress: updates done divided by the updates until the grid has its full size; may be above 1.
      first: the size at progress 0. From progress 1 on, the size is rung.teacher_num_steps.
      rung: the student's rung, with rung.num_steps groups.

    >>> [int(grid_size(progress, 64, Rung(1280, 8))) for progress in (0.0, 0.5, 1.0)]
    [64, 288, 1280]
    """
    log_first, log_last = (jnp.log(jnp.asarray(size, jnp.float32)) for size in (first, rung.teacher_num_steps))
    size = jnp.exp(log_first + jnp.minimum(progress, 1) * (log_last - log_first))
    return jnp.round(size / jnp.asarray(rung.num_steps, jnp.float32)).astype(jnp.int32) * rung.num_steps


def pair_distance(tau: Float[Array, "batch"], phase: Count) -> Float[Array, "batch"]:
    """Return (tau - r) / tau of easy consistency tuning (Geng et al. 2024).

    It is 2^-(phase + 1) (1 + 8 sigmoid(-tau)), at most 1.

    Args:
      tau: tan(angle) where the first step starts.
      phase: the phase of the tuning, from 0.

    >>> [round(float(part), 4) for part in pair_distance(jnp.array([0.1, 10.0]), phase=3)]
    [0.3, 0.0625]
    """
    return jnp.minimum(0.5 ** jnp.asarray(phase + 1, jnp.float32) * (1 + 8 * jax.nn.sigmoid(-tau)), 1)


def distance(
    prediction: Prediction, target: Prediction, sigma: Float[Array, "batch"], scale: float | None
) -> Float[Array, "batch"]:
    """Return the pseudo-Huber distance of two predictions of x, sqrt(|x - x*|^2 + scale^2) - scale, per example.

    It is computed from |x - x*| = sigma |v - v*|, which avoids the cancellation in x - x*.

    Args:
      prediction: the student's prediction.
      target: what the student should predict.
      sigma: the noise level of z.
      scale: 0 for the norm |x - x*|; None for the mean squared error.

    >>> ones = jnp.ones((2, 8, 8, 1))
    >>> prediction, target = Prediction(x=ones, eps=ones, v=ones), Prediction(x=ones, eps=ones, v=3 * ones)
    >>> distance(prediction, target, sigma=jnp.array([0.5, 1.0]), scale=0.0)
    Array([ 8., 16.], dtype=float32)
    """
    squares = jnp.square(sigma) * jnp.sum(jnp.square(prediction.v - target.v), axis=(-3, -2, -1))
    if scale is None:
        return squares / math.prod(prediction.v.shape[-3:])
    # Where the two are equal, the square root would make the gradient of the norm NaN; this makes it 0.
    root = jnp.sqrt(jnp.where(squares > 0, squares + scale**2, 1))
    return squares / (root + scale)
