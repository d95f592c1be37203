"""What networks are conditioned on: log-SNR, a class and a guidance weight. How they enter, and their checks."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..diffusion import sigmoid
from ..errors import InputError
from ..schedules import Discrete, Schedule, bounded
from ..shapes import Array

NO_CLASS = -1  # the label that asks for the unconditional prediction

LogsnrInputType = Literal["inv_cos", "sigmoid", "linear", "flow_time", "data_time", "c_noise", "step"]
LOGSNR_INPUT_TYPES = get_args(LogsnrInputType)


def embedded_time(
    logsnr: Float[Array, "*batch"],
    kind: str,
    *,
    scale: float = 1000.0,
    scale_range: tuple[float, float] = (-10.0, 10.0),
    schedule: Discrete | None = None,
) -> Float[Array, "*batch"]:
    """Return the number whose sinusoids tell a network the log-SNR.

    Args:
      logsnr: log-SNR.
      kind: one of LOGSNR_INPUT_TYPES:

        * 'inv_cos': atan(exp(-logsnr / 2)) / (pi/2), which is the time of the cosine schedule (Salimans & Ho 2022);
        * 'sigmoid': sigmoid(logsnr), which is alpha^2;
        * 'linear': `scale_range`, mapped to [0, 1];
        * 'flow_time': the time t of flow matching, sigma / (alpha + sigma), from 0 for data to 1 for noise;
        * 'data_time': 1 - t, from 0 for noise to 1 for data;
        * 'c_noise': EDM's log(sigma / alpha) / 4 (Karras et al. 2022, table 1). Consistency models have the same number
          times 1000, the 250 log(sigma) of their code;
        * 'step': the training step that has this log-SNR on `schedule`, from -1 to num_steps - 1.
      scale: factor of the number, except for 'step'; default 1000.
      scale_range: the smallest and the largest log-SNR, for 'linear'.
      schedule: the discrete schedule of training, for 'step'.

    >>> [round(time, 2) for time in embedded_time(jnp.array([-40.0, 0.0, 40.0]), "flow_time").tolist()]
    [1000.0, 500.0, 0.0]
    """
    match kind:
        case "step":
            return schedule.step(logsnr)
        case "inv_cos":
            number = jnp.arctan(jnp.exp(-0.5 * bounded(logsnr, -20.0, 20.0))) / (0.5 * jnp.pi)
        case "sigmoid":
            number = sigmoid(logsnr)
        case "linear":
            low, high = scale_range
            number = (logsnr - low) / (high - low)
        case "flow_time":
            number = sigmoid(-0.5 * logsnr)
        case "data_time":
            number = sigmoid(0.5 * logsnr)
        case "c_noise":
            number = -0.125 * logsnr
    return scale * number


def embedded_guidance(
    guidance: Float[Array, "batch"], guidance_range: tuple[float, float], dtype: Any
) -> Float[Array, "batch"]:
    """Return the number from 0 to 1000 whose sinusoids tell a network its guidance weight (Meng et al. 2023).

    Args:
      guidance: guidance weights.
      guidance_range: the smallest and the largest weight.
      dtype: of the result.

    >>> embedded_guidance(jnp.array([0.0, 1.0, 4.0]), (0.0, 4.0), jnp.float32)
    Array([   0.,  250., 1000.], dtype=float32)
    """
    low, high = guidance_range
    return 1000 * (guidance.astype(dtype) - low) / (high - low)


def sinusoidal_embedding(time: Float[Array, "batch"], width: int, freq_shift: int = 1) -> Float[Array, "batch width"]:
    """Return sines and cosines of `time` at width / 2 frequencies, from 1 down to 1 / 10000 (Vaswani et al. 2017).

    Args:
      time: usually from 0 to 1000.
      width: an even number.
      freq_shift: 1 if the last frequency is 1 / 10000, 0 if the one after it would be.

    >>> sinusoidal_embedding(jnp.zeros(2), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) / (half - freq_shift) * jnp.arange(half, dtype=time.dtype))
    phases = time[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


def check_logsnr_input(kind: str, scale: float, scale_range: Sequence[Any], schedule: Schedule | None) -> None:
    """Raise an InputError unless these are valid arguments of `embedded_time`.

    >>> check_logsnr_input("inv_cos", 1000.0, (-10.0, 10.0), None)
    """
    if kind not in LOGSNR_INPUT_TYPES:
        raise InputError(f"Unknown logsnr_input_type {kind!r}; choose one of {list(LOGSNR_INPUT_TYPES)}.")
    if not scale > 0:
        raise InputError(f"time_scale={scale} must be more than 0.")
    if not is_interval(scale_range):
        raise InputError(f"logsnr_scale_range={scale_range} must be two numbers, the smaller first.")
    if kind == "step" and not isinstance(schedule, Discrete):
        raise InputError(
            "logsnr_input_type='step' needs the 'discrete' schedule that the network was trained with: set "
            "model.train_logsnr_schedule to it."
        )


def check_guidance_range(weights: Sequence[Any]) -> None:
    """Raise an InputError unless these are the smallest and the largest guidance weight of a network.

    >>> check_guidance_range((0.0, 4.0))
    """
    if not is_interval(weights) or weights[0] < 0:
        raise InputError(
            f"guidance_range={weights} must be the smallest weight, at least 0, and the largest, such as (0.0, 4.0)."
        )


def check_guidance_input(weights: Sequence[Any] | None, num_classes: int) -> None:
    """Raise an InputError unless a network of this many classes can take guidance weights in this range.

    Args:
      weights: the network's guidance_range; None for a network without this input.
      num_classes: 1 for an unconditional network.

    >>> check_guidance_input((0.0, 4.0), num_classes=10)
    """
    if weights is None:
        return
    check_guidance_range(weights)
    if num_classes == 1:
        raise InputError(
            f"guidance_range={weights} is for networks with classes: set the dataset's class_conditional=True."
        )


def check_condition(
    batch: Any, y: Any, guidance: Any, *, num_classes: int, guidance_range: tuple[float, float] | None
) -> None:
    """Raise an InputError unless a network takes these labels and guidance weights.

    Args:
      batch: the number of images, which is symbolic in an export.
      y: their labels, or None. Labels that are traced are not checked.
      guidance: their guidance weights, or None.
      num_classes: of the network; 1 for an unconditional one.
      guidance_range: of the network; None if it takes no weights.

    >>> check_condition(2, np.array([0, NO_CLASS]), None, num_classes=10, guidance_range=None)
    """
    if num_classes > 1 and y is None:
        raise InputError(f"A network of {num_classes} classes needs labels y, integers of shape [{batch}].")
    if num_classes > 1 and not isinstance(y, jax.core.Tracer):
        y = np.asarray(y)
        if not np.issubdtype(y.dtype, np.integer) or np.any((y < NO_CLASS) | (y >= num_classes)):
            raise InputError(
                f"labels must be integers from 0 to {num_classes - 1}, or -1 for none; got "
                f"{np.array2string(y, threshold=20, separator=', ')}."
            )
    if (guidance_range is None) != (guidance is None):
        raise InputError(
            f"guidance={guidance} does not fit a network with guidance_range={guidance_range}: pass weights if and "
            "only if it has a range."
        )


def is_interval(ends: Sequence[Any]) -> bool:
    """Whether these are two numbers, the smaller one first.

    >>> is_interval((0.0, 4.0)), is_interval((4.0, 0.0))
    (True, False)
    """
    return len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and ends[0] < ends[1]
