"""Base training: a network learns to denoise data (Salimans & Ho 2022, algorithm 1)."""

from typing import Any

from ..losses import continuous_times, data_target, discrete_steps, training_loss
from ..schedules import Schedule
from .method import Method, Times


def make(config: Any, schedule: Schedule) -> Method:
    """Make the method of base models: the target is the data.

    Args:
      config: resolved. With model.train_num_steps = 0, training times are uniform in (0, 1). With N, they are the times
        of an N-step sampler.
      schedule: the training schedule.
    """
    num_steps = config.model.train_num_steps

    def times(keys, update, rung):
        if not num_steps:
            return Times(continuous_times(keys))
        return Times(schedule.grid_time(discrete_steps(keys, num_steps), num_steps))

    def target(denoisers, x, eps, z, times):
        return data_target(x, eps, schedule(times.t))

    def loss(prediction, target, times):
        return training_loss(prediction, target, config.model.mean_loss_weight_type, schedule(times.t))

    return Method(times, target, loss)
