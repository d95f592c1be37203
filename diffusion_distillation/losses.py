"""Training losses: at random times, a prediction against a target, weighted by the signal-to-noise ratio.

Base training and distillation differ only in the target: the data itself (`data_target`), or a teacher's two steps
(`distillation.two_step_target`). The weights are those of Salimans & Ho (2022), section 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from .diffusion import Prediction, alpha_sigma, per_example
from .errors import InputError
from .shapes import Array, Count, Images, Times

WEIGHT_TYPES = ("constant", "snr", "snr_trunc", "v_mse")


def training_loss(prediction: Prediction, target: Prediction, weight_type: str) -> Float[Array, "*batch"]:
    """The weighted mean squared error of each example, a mean over pixels and channels.

    Args:
      prediction: what the network says of z.
      target: what it should say of the same z.
      weight_type: 'constant' for the error of x; 'snr' for that of eps, SNR times as much; 'snr_trunc' for the larger
        of the two (equation 9); 'v_mse' for that of v, SNR + 1 times as much (equation 10).

    Raises:
      InputError: for another `weight_type`.
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


def data_target(x: Images, eps: Images, logsnr: Times) -> Prediction:
    """The target of base training: the x and eps that z was made of."""
    alpha, sigma = alpha_sigma(per_example(logsnr, x))
    return Prediction(x=x, eps=eps, v=(alpha * eps - sigma * x).astype(x.dtype))


def continuous_times(keys: Key[Array, "batch"]) -> Float[Array, "batch"]:
    """Training times for continuous time: uniform in (0, 1), one for each key."""
    tiny = jnp.finfo(jnp.float32).tiny
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, tiny))(keys)


def discrete_steps(keys: Key[Array, "batch"], num_steps: Count) -> Int[Array, "batch"]:
    """Training times for a sampler of num_steps steps: i uniform below num_steps, for t = (i + 1) / num_steps.

    `num_steps` may be traced.
    """
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps, jnp.int32))(keys)
