"""Running averages of the parameters: the one to sample with, and the one that a method's target may read."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from ..shapes import Array, Count, Params


def update_average(average: Params, params: Params, decay: Array) -> Params:
    """Return `decay * average + (1 - decay) * params`."""
    return optax.incremental_update(params, average, 1 - decay)


def corrected_decay(decay: float, update: Count) -> Array:
    """The decay that makes a running average weigh n parameters by decay^(n-1), ..., decay, 1, normalized.

    The weights sum to 1 from the first update on, which replaces the initial parameters.

    Args:
      decay: below 1.
      update: the number of updates before this one.

    >>> [round(float(corrected_decay(0.5, update)), 3) for update in (0, 1, 2, 50)]
    [0.0, 0.333, 0.429, 0.5]
    """
    decay = jnp.float32(decay)
    return decay * (1 - decay**update) / (1 - decay ** (update + 1))


def averaging_decay(train: Any) -> Callable[[Array], Array] | None:
    """The decay of the average to sample with, as a function of the number of updates before this one.

    The first update replaces the average by the new parameters, so the initial ones leave no trace in it. Skipped
    updates do not count.

    Args:
      train: the `train` section of a resolved config. `ema_decay` takes precedence; without it, `avg_type` 'ema' is an
        exponential average over about `avg_steps` updates, and 'aa' an arithmetic mean that restarts every `avg_steps`.

    Returns:
      None if the config keeps no average.
    """
    if train.ema_decay is None and train.avg_type == "aa":

        def arithmetic(update):
            since_restart = update % train.avg_steps
            return since_restart / (since_restart + 1)

        return arithmetic
    decay = exponential_decay(train)
    return (lambda update: jnp.where(update == 0, 0.0, jnp.float32(decay))) if decay else None


def exponential_decay(train: Any) -> float:
    """The decay of the exponential average to sample with; 0 if the config keeps none."""
    if train.ema_decay is not None:
        return train.ema_decay
    return 1 - 1 / train.avg_steps if train.avg_type == "ema" else 0.0
