"""The diffusion process, and the one place where a network's raw output becomes a prediction.

Everything above this module speaks of a `denoise(z, logsnr) -> Prediction(x, eps, v)` and never asks what the network
was trained to output. Notation follows Salimans & Ho (2022): z = alpha x + sigma eps, alpha^2 + sigma^2 = 1,
logsnr = log(alpha^2 / sigma^2), v = alpha eps - sigma x. With alpha = cos(phi) and sigma = sin(phi), (x, eps) and
(z, v) are one vector in two frames turned by phi against each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .errors import InputError
from .shapes import Array, Images, Times, mixing_types

MEAN_TYPES = ("eps", "x", "v", "both")


class Prediction(NamedTuple):
    """One belief about a noisy image z, in the three forms the field uses; each `[batch, height, width, channels]`.

    Attributes:
      x: the clean image.
      eps: the noise.
      v: alpha eps - sigma x, the direction in which z turns as noise is added.
    """

    x: Images
    eps: Images
    v: Images


Denoiser = Callable[[Images, Times], Prediction]


def alpha_sigma(logsnr: Times) -> tuple[Array, Array]:
    """Signal and noise scales: alpha = sqrt(sigmoid(logsnr)), sigma = sqrt(sigmoid(-logsnr)), shaped as logsnr."""
    return jnp.sqrt(sigmoid(logsnr)), jnp.sqrt(sigmoid(-logsnr))


@jax.custom_jvp
def sigmoid(x: Times) -> Array:
    """JAX's logistic function, with a derivative that is exact even where the function rounds to 1."""
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _derivative(primals, tangents):
    [x], [dx] = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@mixing_types
def q_sample(x: Images, eps: Images, logsnr: Times) -> Images:
    """A noisy image z = alpha x + sigma eps, drawn from q(z_t | x) when eps is standard normal (equation 1)."""
    alpha, sigma = alpha_sigma(per_example(logsnr, x))
    return (alpha * x + sigma * eps).astype(x.dtype)


@mixing_types
def posterior(z_t: Images, x: Images, logsnr_t: Times, logsnr_s: Times, variance: str) -> tuple[Images, Array]:
    """Mean and log-variance of q(z_s | z_t, x) for s < t (Salimans & Ho 2022, equation 3).

    With r = SNR(t) / SNR(s): mean = r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x.

    Args:
      z_t: noisy images at time t.
      x: clean images, known or predicted.
      logsnr_t: log-SNR of z_t.
      logsnr_s: log-SNR at the earlier time s, so logsnr_s > logsnr_t.
      variance: 'small' for (1 - r) sigma_s^2, the posterior's own when x is certain; 'large' for (1 - r) sigma_t^2, its
        upper bound; 'medium:f' for their geometric mix with a fraction f, 0 <= f <= 1, of the large one.

    Returns:
      The mean, shaped as z_t, and the log-variance, which broadcasts against it.

    Raises:
      InputError: for another `variance`.
    """
    large = {"small": 0.0, "large": 1.0}.get(variance)
    if large is None:
        large = medium_fraction(variance)
    dtype = z_t.dtype
    logsnr_t, logsnr_s = per_example(logsnr_t, z_t), per_example(logsnr_s, z_t)
    alpha_t, _ = alpha_sigma(logsnr_t)
    alpha_s, _ = alpha_sigma(logsnr_s)
    r = jnp.exp(logsnr_t - logsnr_s)
    mean = r * (alpha_s / alpha_t) * z_t - jnp.expm1(logsnr_t - logsnr_s) * alpha_s * x
    log_sigma2 = large * jax.nn.log_sigmoid(-logsnr_t) + (1 - large) * jax.nn.log_sigmoid(-logsnr_s)
    return mean.astype(dtype), log1mexp(logsnr_s - logsnr_t) + log_sigma2


def make_denoiser(model_fn: Callable[[Images, Times], Images], mean_type: str, *, clip_x: bool = False) -> Denoiser:
    """Turns a network into a denoiser.

    Args:
      model_fn: `model_fn(z, logsnr)` gives the network's raw output, `[batch, height, width, channels]`, with twice the
        channels of z where `mean_type` is 'both'.
      mean_type: what that output is: 'eps', 'x', 'v', or 'both', an x and an eps along the channels, in that order,
        mixed as x = sigma^2 x_head + alpha^2 x_from_eps (section 4).
      clip_x: clip the predicted x to [-1, 1], and read eps and v off the clipped one.

    Returns:
      `denoise(z, logsnr) -> Prediction`, in the dtype of z.

    Raises:
      InputError: for another `mean_type`; from `denoise`, if the network's output does not have the shape it calls for.
    """
    if mean_type not in MEAN_TYPES:
        raise InputError(f"Unknown mean_type {mean_type!r}; choose one of {list(MEAN_TYPES)}.")

    def denoise(z: Images, logsnr: Times) -> Prediction:
        output = model_fn(z, logsnr)
        channels = z.shape[-1] * (2 if mean_type == "both" else 1)
        if output.shape != (*z.shape[:-1], channels):
            raise InputError(
                f"mean_type {mean_type!r} on images of shape {z.shape} needs a network output of {channels} channels; "
                f"the network gave shape {output.shape}. Set its out_ch to {channels}."
            )
        prediction = predict(z, per_example(logsnr, z), **{mean_type: output})
        if clip_x:
            prediction = predict(z, per_example(logsnr, z), x=jnp.clip(prediction.x, -1, 1))
        return Prediction(*(part.astype(z.dtype) for part in prediction))

    return denoise


@mixing_types
def predict(z, logsnr, *, x=None, eps=None, v=None, both=None) -> Prediction:
    """Completes whichever one of x, eps, v (or `both`, x and eps stacked in the channels) is given."""
    alpha, sigma = alpha_sigma(logsnr)
    if v is not None:
        return Prediction(x=alpha * z - sigma * v, eps=sigma * z + alpha * v, v=v)
    if both is not None:
        x_head, eps_head = jnp.split(both, 2, axis=-1)
        x = sigma**2 * x_head + alpha * (z - sigma * eps_head)  # alpha^2 x_from_eps, without dividing by alpha
    # Of `a / b` with b a number XLA makes `a * (1 / b)` in one program and not in another that does the same.
    if eps is not None:
        x = (z - sigma * eps) * (1 / alpha)
    else:
        eps = (z - alpha * x) * (1 / sigma)
    return Prediction(x=x, eps=eps, v=alpha * eps - sigma * x)


def log1mexp(x: Times) -> Array:
    """log(1 - exp(-x)) for x > 0, exact at both ends, with a finite gradient (Maechler 2012)."""
    x = jnp.asarray(x)
    small = x < 0.693
    # Each branch sees only arguments that suit it: `where` alone would still pass on the other's infinite gradient.
    return jnp.where(
        small,
        jnp.log(-jnp.expm1(-jnp.where(small, x, 0.5))),
        jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x))),
    )


def per_example(value: ArrayLike, like: Array) -> Array:
    """Appends axes to a scalar or `[batch]` value so that it broadcasts against `like`, `[batch, ...]`."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def medium_fraction(variance: str) -> float:
    """The f of the variance 'medium:f'. Raises an InputError for any other variance."""
    kind, _, fraction = variance.partition(":")
    try:
        fraction = float(fraction)
    except ValueError:
        fraction = -1.0
    if kind != "medium" or not 0 <= fraction <= 1:
        raise InputError(f"Unknown variance {variance!r}; choose 'small', 'large', or 'medium:f' with 0 <= f <= 1.")
    return fraction
