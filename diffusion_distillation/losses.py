"""Training losses: a prediction against a target at random times, weighted by the signal-to-noise ratio.

Base training and distillation differ in the target alone: the data themselves (`data_target`), or where several steps
of a teacher end (`distillation.two_step_target`). The weights are those of Salimans & Ho (2022), section 4, of flow
matching (Liu et al. 2023) and of EDM (Karras et al. 2022).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from .diffusion import Prediction, alpha_sigma, per_example
from .errors import InputError
from .schedules import Schedule, time_of
from .shapes import Array, Count, DataArray, ScalarOrBatch

WEIGHT_TYPES = ("constant", "snr", "snr_trunc", "v_mse", "flow_mse", "edm_mse")


def training_loss(
    prediction: Prediction,
    target: Prediction,
    weight_type: str,
    logsnr: ScalarOrBatch | None = None,
    *,
    sigma_data: float = 0.5,
) -> Float[Array, "*batch"]:
    """Compute the weighted squared error of each example, as a mean over pixels and channels.

    Args:
      prediction: the network's prediction for z, `[batch, height, width, channels]` each.
      target: the prediction that the network should make for the same z, in the same shapes.
      weight_type: 'constant' for the error of x; 'snr' for the error of eps, which is SNR times the error of x;
        'snr_trunc' for the larger of the two, weight max(SNR, 1) (equation 9); 'v_mse' for the error of v, weight
        SNR + 1 (equation 10); 'flow_mse' for the error of flow matching's u = eps - x; 'edm_mse' for the error of EDM's
        F, weight (s^2 + sigma_data^2) / (s sigma_data)^2 with s = sigma / alpha (Karras et al. 2022, table 1).
      logsnr: log-SNR of z, a scalar or `[batch]`; for 'flow_mse' and 'edm_mse'.
      sigma_data: standard deviation of the data, for 'edm_mse'; default 0.5.

    Returns:
      One loss per example, `[batch]`.

    Raises:
      InputError: for another `weight_type`, or a missing logsnr.

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
    if weight_type in ("flow_mse", "edm_mse"):
        if logsnr is None:
            raise InputError(f"mean_loss_weight_type {weight_type!r} needs the log-SNR of z: pass logsnr.")
        alpha, sigma = alpha_sigma(logsnr)
        if weight_type == "flow_mse":
            return mse("v") * jnp.square(alpha + sigma)  # u = (alpha + sigma) v + (sigma - alpha) z
        return mse("v") * (jnp.square(sigma / sigma_data) + jnp.square(alpha))
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


def logit_normal_times(keys: Key[Array, "batch"], mean: float = 0.0, std: float = 1.0) -> Float[Array, "batch"]:
    """Sample training times whose logit log(t / (1 - t)) is normal (Esser et al. 2024, equation 19).

    Args:
      keys: one key per example.
      mean: mean of the logit; default 0.
      std: standard deviation of the logit; default 1.

    >>> t = logit_normal_times(jax.random.split(jax.random.key(0), 1000))
    >>> round(float(jnp.mean((t > 0.27) & (t < 0.73))), 1)  # one standard deviation
    0.7
    """
    return jax.nn.sigmoid(mean + std * _normals(keys))


def log_normal_times(
    keys: Key[Array, "batch"], schedule: Schedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, "batch"]:
    """Sample training times at which log(sigma / alpha) is normal (Karras et al. 2022, table 1).

    Args:
      keys: one key per example.
      schedule: the noise schedule. Noise outside of its range becomes that at the nearest end.
      mean: mean of log(sigma / alpha); default -1.2, as in EDM.
      std: standard deviation of log(sigma / alpha); default 1.2, as in EDM.

    >>> from diffusion_distillation import schedules
    >>> keys, schedule = jax.random.split(jax.random.key(0), 1000), schedules.get_logsnr_schedule("karras")
    >>> logsnr = schedule(log_normal_times(keys, schedule))
    >>> round(float(jnp.mean((logsnr > 0) & (logsnr < 4.8))), 1)  # one standard deviation, -2 (mean - std, mean + std)
    0.7
    """
    return time_of(schedule, -2 * (mean + std * _normals(keys)))


def _normals(keys: Key[Array, "batch"]) -> Float[Array, "batch"]:
    return jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)


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
