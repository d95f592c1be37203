"""Training losses: a prediction against a target at random times, weighted by the signal-to-noise ratio.

Base training and distillation differ in the target alone: the data themselves (`data_target`), or where several steps
of a teacher end (`distillation.two_step_target`). The weights are those of Salimans & Ho (2022), section 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from .diffusion import Prediction, alpha_sigma, per_example
from .errors import InputError
from .shapes import Array, Count, DataArray, ScalarOrBatch

WEIGHT_TYPES = ("constant", "snr", "snr_trunc", "v_mse")


def training_loss(prediction: Prediction, target: Prediction, weight_type: str) -> Float[Array, "*batch"]:
    """Compute the weighted squared error of each example, as a mean over pixels and channels.

    Args:
      prediction: the network's prediction for z, `[batch, height, width, channels]` each.
      target: the prediction that the network should make for the same z, in the same shapes.
      weight_type: 'constant' for the error of x; 'snr' for the error of eps, which is SNR times the error of x;
        'snr_trunc' for the larger of the two, weight max(SNR, 1) (equation 9); 'v_mse' for the error of v, weight
        SNR + 1 (equation 10).

    Returns:
      One loss per example, `[batch]`.

    Raises:
      InputError: for another `weight_type`.

    >>> x, eps, logsnr = jnp.zeros((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1)), jnp.array([0.0, 2.0])
    >>> target = data_target(x, eps, logsnr)
    >>> training_loss(target._replace(x=x + 0.5), target, "constant")
    Array([0.25, 0.25], dtype=float32)
    """

    def mse(name):
        return jnp.mean(jnp.square(getattr(prediction, name) - getattr(target, name)), axis=(-3, -2, -1))

    if weight_type == "constant":
        return mse("x")
    if weight_type == "snr":
        return mse("eps")
    if weight_type == "snr_trunc":
        return jnp.maximum(mse("x"), mse("eps"))
    if weight_type == "v_mse":
        return mse("v")
    raise InputError(f"Unknown mean_loss_weight_type {weight_type!r}; choose one of {list(WEIGHT_TYPES)}.")


def data_target(x: DataArray, eps: DataArray, logsnr: ScalarOrBatch) -> Prediction:
    """Return the target of base training: the x and eps that z was made of, and their v.

    Args:
      x: clean images, `[batch, height, width, channels]`.
      eps: the noise in z, shaped as x.
      logsnr: log-SNR of z, a scalar or `[batch]`.

    >>> x, eps = jnp.zeros((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1))
    >>> data_target(x, eps, logsnr=0.0).v[0, 0, 0].round(4)  # alpha eps - sigma x
    Array([0.7071], dtype=float32)
    """
    alpha, sigma = alpha_sigma(per_example(logsnr, x))
    return Prediction(x=x, eps=eps, v=(alpha * eps - sigma * x).astype(x.dtype))


def continuous_times(keys: Key[Array, "batch"]) -> Float[Array, "batch"]:
    """Sample training times for continuous time, uniform in (0, 1).

    Args:
      keys: one key per example.

    >>> continuous_times(jax.random.split(jax.random.key(0), 3)).shape
    (3,)
    """
    tiny = jnp.finfo(jnp.float32).tiny
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, tiny))(keys)


def discrete_steps(keys: Key[Array, "batch"], num_steps: Count) -> Int[Array, "batch"]:
    """Sample the steps of a `num_steps`-step sampler to train at, uniform from 0 to num_steps - 1.

    The time of step i is `schedule.grid_time(i, num_steps)`.

    Args:
      keys: one key per example.
      num_steps: sampling steps; may be traced.

    >>> i = discrete_steps(jax.random.split(jax.random.key(0), 100), 4)
    >>> int(i.min()), int(i.max())
    (0, 3)
    """
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps, jnp.int32))(keys)
