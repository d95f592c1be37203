"""Consistency models: one step from anywhere in a group of grid steps down to where the group starts.

The student should say at t what it says itself a step further down, where the teacher takes that step (distillation) or
the data do (training). With one group it is a consistency model (Song et al. 2023, arXiv 2303.01469), with several a
multistep one (Heek et al. 2024, arXiv 2403.06807, algorithms 1 and 2), which DDIM samples in as many steps.
"""

import math
from typing import Any, NamedTuple

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
    """Where the two stages are, and the weight of the loss there."""

    stages: GroupTimes
    weight: Float[Array, "batch"]

    @property
    def t(self) -> Float[Array, "batch"]:
        """The time of each example."""
        return self.stages.t


def make(config: Any, schedule: Schedule) -> Method:
    """One student of distillation.end_num_steps steps, its groups; start_num_steps is the grid's last size."""
    distillation, options = config.distillation, config.distillation.consistency
    groups, grid = distillation.end_num_steps, distillation.start_num_steps or options.last_grid
    _check(distillation, groups, grid)
    rungs, training = (Rung(grid, groups),), options.kind == "training"
    displacement = teacher_displacement(distillation, rungs)

    def grid_times(keys, update, rung):
        size = grid_size(update / options.grid_updates, options.first_grid, rung)
        stages = group_times(keys, size, rung.num_steps, rung)
        return WeightedTimes(stages, 1 / jnp.square(jnp.sin(schedule.angle(stages.t))))  # SNR + 1

    def tuning_times(keys, update, rung):
        draws = jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)
        tau = jnp.exp(options.tau_mean + options.tau_std * draws)
        part = pair_distance(tau, update * options.tuning_stages // config.train.num_train_steps)
        t, r = (time_of(schedule, -2 * jnp.log(jnp.maximum(of, 1e-12))) for of in (tau, tau * (1 - part)))
        ends = (part == 1) | (r == 0)
        stages = GroupTimes(t, jnp.where(ends, t, t - r), jnp.where(ends, jnp.zeros_like(t), 1), rung)
        return WeightedTimes(stages, 1 / (tau * part))

    def target(denoisers, x, eps, z, times):
        def data(z, logsnr):
            return data_target(x, eps, logsnr)

        t, first, rest, rung = times.stages
        beside = displacement and (displacement(rung), None)
        one = data if training else denoisers.teacher
        return two_stage_target(one, denoisers.student, z, t, first, rest, schedule, displacement=beside)

    def loss(prediction, target, times):
        num_values = math.prod(prediction.v.shape[-3:])
        default = 0.00054 * math.sqrt(num_values) if options.times == "tuning" else 1e-4
        scale = {"huber": default if options.huber is None else options.huber, "norm": 0.0, "squared": None}
        sigma = jnp.sin(schedule.angle(times.t))
        return times.weight * distance(prediction, target, sigma, scale[options.norm])

    times, calls = tuning_times if options.times == "tuning" else grid_times, 1 if training else 2
    return Method(times, target, loss, rungs, target_calls=lambda rung: calls)


def grid_size(progress: Array | float, first: int, rung: Rung) -> Count:
    """N(i) of Heek et al. (2024), from `first` to rung.teacher_num_steps as progress goes to 1, in whole groups."""
    first, last = (jnp.log(jnp.asarray(size, jnp.float32)) for size in (first, rung.teacher_num_steps))
    size = jnp.exp(first + jnp.minimum(progress, 1) * (last - first))
    return jnp.round(size / jnp.asarray(rung.num_steps, jnp.float32)).astype(jnp.int32) * rung.num_steps


def pair_distance(tau: Float[Array, "batch"], stage: Count) -> Float[Array, "batch"]:
    """(tau - r) / tau of easy consistency tuning (Geng et al. 2024), 2^-(stage + 1) (1 + 8 sigmoid(-tau)) up to 1."""
    return jnp.minimum(0.5 ** jnp.asarray(stage + 1, jnp.float32) * (1 + 8 * jax.nn.sigmoid(-tau)), 1)


def distance(
    prediction: Prediction, target: Prediction, sigma: Float[Array, "batch"], scale: float | None
) -> Float[Array, "batch"]:
    """How far the two x are apart: sqrt(|x - x*|^2 + scale^2) - scale, the norm itself where scale is 0.

    With scale None their squared error instead, a mean. It is sigma |v - v*|, without the cancellation of x - x*.
    """
    squares = jnp.square(sigma) * jnp.sum(jnp.square(prediction.v - target.v), axis=(-3, -2, -1))
    if scale is None:
        return squares / math.prod(prediction.v.shape[-3:])
    # so written, the gradient of the norm is 0, and not NaN, where they are equal
    root = jnp.sqrt(jnp.where(squares > 0, squares + scale**2, 1))
    return squares / (root + scale)


def _check(distillation: Any, groups: int, grid: int) -> None:
    options = distillation.consistency
    if distillation.rungs:
        raise InputError(f"rungs={distillation.rungs} does not go with method='consistency', which has one student.")
    if groups < 1 or not groups <= options.first_grid <= grid or grid % groups:
        raise InputError(
            f"end_num_steps={groups} (the groups), consistency.first_grid={options.first_grid} and start_num_steps="
            f"{grid} (the last grid) must not fall, and the last must be a multiple of the first."
        )
    if options.times == "tuning" and groups != 1:
        raise InputError(f"consistency.times='tuning' is for one group: end_num_steps={groups} must be 1.")
    if options.kind == "training" and distillation.teacher_step != "ddim":
        raise InputError("consistency.kind='training' asks no teacher: set teacher_step='ddim'.")
    if options.grid_updates < 1 or options.tuning_stages < 1:
        raise InputError("consistency.grid_updates and consistency.tuning_stages must be at least 1.")
