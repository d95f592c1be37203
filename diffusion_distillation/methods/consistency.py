"""Consistency models: one step from anywhere in a group of grid steps down to where the group starts.

The student's prediction at t should agree with its own prediction one step further down. That step is the teacher's
(distillation) or follows from the data (training). With one group, the student is a consistency model (Song et al.
2023, arXiv 2303.01469). With several, it is a multistep one (Heek et al. 2024, arXiv 2403.06807, algorithms 1 and 2),
which DDIM samples in as many steps.
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
from .rungs import GroupTimes, group_times, teacher_displacement


class WeightedTimes(NamedTuple):
    """The times of each example and its loss weight.

    Attributes:
      group: where the example is in its group.
      weight: the weight of its loss.
    """

    group: GroupTimes
    weight: Float[Array, "batch"]

    @property
    def t(self) -> Float[Array, "batch"]:
        """The time of each example."""
        return self.group.t


def rungs(distillation: Any) -> tuple[Rung, ...]:
    """One student with distillation.end_num_steps steps, its groups, on a grid that grows to start_num_steps steps.

    Without start_num_steps, the grid grows to distillation.args.last_grid.

    Raises:
      InputError: if distillation.rungs is set, or if the last grid is not a multiple of the number of groups.
    """
    groups = distillation.end_num_steps
    grid = distillation.start_num_steps or distillation.args.last_grid
    if distillation.rungs:
        raise InputError(f"rungs={distillation.rungs}: method='consistency' trains one student; unset rungs (None).")
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
    """Consistency distillation, consistency training, or easy consistency tuning.

    Args:
      config: of the ladder or of its student.
      schedule: the training schedule.
      kind: what takes the first step: the teacher ('distillation') or the data ('training').
      times: 'grid' for Heek et al.'s growing grid, with loss weight SNR + 1; 'tuning' for easy consistency tuning (Geng
        et al. 2024, arXiv 2406.14548), with weight 1 / (tau - r).
      first_grid: steps of the grid in the beginning; at least the number of groups.
      last_grid: steps of the grid after `grid_updates` updates, unless distillation.start_num_steps is set.
      grid_updates: updates in which the grid grows; at least 1.
      tau_mean: mean of log tan(angle) in tuning.
      tau_std: its standard deviation; not negative.
      tuning_phases: phases of the tuning, of equal length. Each halves the distance between the two times.
      norm: of the error of x: 'huber' for sqrt(|.|^2 + huber^2) - huber, 'norm' for |.|, 'squared' for its square.
      huber: the constant of the Huber norm. By default 1e-4; in tuning, 0.00054 times the root of the number of values.

    Raises:
      InputError: for options outside their ranges, or that do not go together.
    """
    [rung] = rungs(config.distillation)
    groups = rung.num_steps
    if not groups <= first_grid <= rung.teacher_num_steps:
        raise InputError(
            f"args.first_grid={first_grid} must be between end_num_steps={groups} (the groups) and "
            f"{rung.teacher_num_steps}, the last grid."
        )
    if times == "tuning" and groups != 1:
        raise InputError(f"args.times='tuning' is for one group: end_num_steps={groups} must be 1.")
    if kind == "training" and config.distillation.teacher_step != "ddim":
        raise InputError("args.kind='training' evaluates no teacher: set teacher_step='ddim'.")
    if grid_updates < 1 or tuning_phases < 1:
        raise InputError(f"args.grid_updates={grid_updates} and args.tuning_phases={tuning_phases} must be at least 1.")
    if not tau_std >= 0 or not (huber is None or huber >= 0):
        raise InputError(f"args.tau_std={tau_std} and args.huber={huber} must not be negative.")

    displacement = teacher_displacement(config.distillation, (rung,))
    if times == "tuning":
        sample_times = tuning_times(schedule, tau_mean, tau_std, tuning_phases, config.train.num_train_steps)
    else:
        sample_times = grid_times(schedule, first_grid, grid_updates)

    def target(denoisers, x, eps, z, sampled):
        def data(z, logsnr):
            return data_target(x, eps, logsnr)

        t, first, rest, rung = sampled.group
        teacher = data if kind == "training" else denoisers.teacher
        adjusted = displacement and (displacement(rung), None)
        return two_stage_target(teacher, denoisers.student, z, t, first, rest, schedule, displacement=adjusted)

    def loss(prediction, target, sampled):
        scale = {"huber": huber, "norm": 0.0, "squared": None}[norm]
        if norm == "huber" and huber is None:
            num_values = math.prod(prediction.v.shape[-3:])
            scale = 0.00054 * math.sqrt(num_values) if times == "tuning" else 1e-4
        sigma = jnp.sin(schedule.angle(sampled.t))
        return sampled.weight * distance(prediction, target, sigma, scale)

    calls = 1 if kind == "training" else 2
    return Method(sample_times, target, loss, target_calls=lambda rung: calls)


def grid_times(schedule: Schedule, first_grid: int, grid_updates: int) -> Callable[..., WeightedTimes]:
    """Heek et al.'s times: uniform on a grid that grows with the updates, with loss weight SNR + 1."""

    def sample_times(keys, update, rung):
        size = grid_size(update / grid_updates, first_grid, rung)
        group = group_times(keys, size, rung.num_steps, rung, schedule)
        return WeightedTimes(group, 1 / jnp.square(jnp.sin(schedule.angle(group.t))))

    return sample_times


def tuning_times(
    schedule: Schedule, tau_mean: float, tau_std: float, phases: int, num_train_steps: int
) -> Callable[..., WeightedTimes]:
    """Times of easy consistency tuning, tau = tan(angle) log-normal, with loss weight 1 / (tau - r).

    The second time is r = tau (1 - `pair_distance`).
    """

    def sample_times(keys, update, rung):
        normal = jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)
        tau = jnp.exp(tau_mean + tau_std * normal)
        part = pair_distance(tau, update * phases // num_train_steps)
        t, r = (time_of(schedule, -2 * jnp.log(jnp.maximum(tan, 1e-12))) for tan in (tau, tau * (1 - part)))
        to_zero = (part == 1) | (r == 0)
        first = jnp.where(to_zero, t, t - r)
        rest = jnp.where(to_zero, jnp.zeros_like(t), 1)
        return WeightedTimes(GroupTimes(t, first, rest, rung), 1 / (tau * part))

    return sample_times


def grid_size(progress: Array | float, first: int, rung: Rung) -> Count:
    """N(i) of Heek et al. (2024): the steps of the grid, a multiple of the number of groups.

    Args:
      progress: updates done, as a share of those in which the grid grows.
      first: the size at progress 0. At progress 1 and after, it is rung.teacher_num_steps.
      rung: the student's; it has rung.num_steps groups.

    >>> [int(grid_size(progress, 64, Rung(1280, 8))) for progress in (0.0, 0.5, 1.0)]
    [64, 288, 1280]
    """
    first, last = (jnp.log(jnp.asarray(size, jnp.float32)) for size in (first, rung.teacher_num_steps))
    size = jnp.exp(first + jnp.minimum(progress, 1) * (last - first))
    return jnp.round(size / jnp.asarray(rung.num_steps, jnp.float32)).astype(jnp.int32) * rung.num_steps


def pair_distance(tau: Float[Array, "batch"], phase: Count) -> Float[Array, "batch"]:
    """(tau - r) / tau of easy consistency tuning (Geng et al. 2024), 2^-(phase + 1) (1 + 8 sigmoid(-tau)) up to 1."""
    return jnp.minimum(0.5 ** jnp.asarray(phase + 1, jnp.float32) * (1 + 8 * jax.nn.sigmoid(-tau)), 1)


def distance(
    prediction: Prediction, target: Prediction, sigma: Float[Array, "batch"], scale: float | None
) -> Float[Array, "batch"]:
    """The pseudo-Huber distance of two predictions of x, sqrt(|x - x*|^2 + scale^2) - scale, of each example.

    It is computed from |x - x*| = sigma |v - v*|, which avoids the cancellation in x - x*.

    Args:
      prediction: the student's.
      target: what it should predict.
      sigma: of the noisy image.
      scale: 0 for the norm itself; None for the mean of the squared error instead.
    """
    squares = jnp.square(sigma) * jnp.sum(jnp.square(prediction.v - target.v), axis=(-3, -2, -1))
    if scale is None:
        return squares / math.prod(prediction.v.shape[-3:])
    # Written so that the gradient of the norm is 0, and not NaN, where the two are equal.
    root = jnp.sqrt(jnp.where(squares > 0, squares + scale**2, 1))
    return squares / (root + scale)
