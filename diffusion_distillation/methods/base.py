"""Base training: a network learns to denoise data (Salimans & Ho 2022, algorithm 1)."""

import functools
import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Key

from ..errors import InputError
from ..losses import continuous_times, data_target, discrete_steps, log_normal_times, logit_normal_times
from ..registry import check_arguments, signature
from ..schedules import Schedule
from ..shapes import Array
from .method import Method, Times, weighted_error


def _uniform_times(keys: Key[Array, "batch"], schedule: Schedule) -> Float[Array, "batch"]:
    return continuous_times(keys)


def _logit_normal_times(
    keys: Key[Array, "batch"], schedule: Schedule, mean: float = 0.0, std: float = 1.0
) -> Float[Array, "batch"]:
    """Sample times t.

    Args:
      keys: one per example.
      schedule: not used.
      mean: mean of log(t / (1 - t)).
      std: standard deviation of log(t / (1 - t)).
    """
    return logit_normal_times(keys, mean, std)


# Distributions of the training times by name; the arguments after `schedule` are options in model.train_times.
TRAINING_TIMES = {"uniform": _uniform_times, "logit_normal": _logit_normal_times, "log_normal": log_normal_times}


def training_times(name: str, **options: Any) -> Callable[[Key[Array, "batch"], Schedule], Float[Array, "batch"]]:
    """Make the function `sample(keys, schedule)` that samples the training times of base models.

    Args:
      name: 'uniform' in (0, 1); 'logit_normal' with options mean and std (`losses.logit_normal_times`); or
        'log_normal', EDM's distribution of the noise, with options mean and std (`losses.log_normal_times`).
      **options: the options; see there for the defaults.

    Raises:
      InputError: for an unknown name or option, or an std that is not above 0.

    >>> import jax
    >>> from diffusion_distillation import schedules
    >>> schedule = schedules.get_logsnr_schedule("flow")
    >>> sample = training_times("logit_normal", mean=-0.5)
    >>> sample(jax.random.split(jax.random.key(0), 3), schedule).shape
    (3,)
    """
    if name not in TRAINING_TIMES:
        raise InputError(f"Unknown times {name!r}; choose one of {list(TRAINING_TIMES)}.")
    allowed = list(signature(TRAINING_TIMES[name]).parameters)[2:]
    if unknown := sorted(set(options) - set(allowed)):
        raise InputError(f"The {name!r} times have no {', '.join(map(repr, unknown))}; they take {allowed}.")
    check_arguments(TRAINING_TIMES[name], options)
    if not 0 < options.get("std", 1.0) < math.inf or not math.isfinite(options.get("mean", 0.0)):
        raise InputError(f"The {name!r} times need a finite mean and an std above 0; got {options}.")
    return functools.partial(TRAINING_TIMES[name], **options)


def make(config: Any, schedule: Schedule) -> Method:
    """Make the method of base models: the target is the data.

    Args:
      config: resolved. With model.train_num_steps = 0, training times have the distribution of model.train_times. With
        N, they are uniform among the times of an N-step sampler.
      schedule: the training schedule.
    """
    num_steps = config.model.train_num_steps
    sample_times = training_times(**config.model.train_times)

    def times(keys, update, rung):
        if not num_steps:
            return Times(sample_times(keys, schedule))
        return Times(schedule.grid_time(discrete_steps(keys, num_steps), num_steps))

    def target(denoisers, x, eps, z, times):
        return data_target(x, eps, schedule(times.t))

    return Method(times, target, weighted_error(config, schedule))
