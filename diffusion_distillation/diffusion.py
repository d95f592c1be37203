"""The diffusion process, and the one place where a network's raw output becomes a prediction.

Notation follows Salimans & Ho (2022): z = alpha x + sigma eps with alpha^2 + sigma^2 = 1,
logsnr = log(alpha^2 / sigma^2), v = alpha eps - sigma x. With alpha = cos(phi) and sigma = sin(phi), the pairs (x, eps)
and (z, v) are one vector in two frames that are turned against each other by phi.

Flow matching and EDM are this process with z rescaled: the t of flow matching is sigma / (alpha + sigma), the sigma of
EDM is tan(phi).

`make_denoiser` turns a network into a function `denoise(z, logsnr) -> Prediction(x, eps, v)`. Samplers, losses and
distillation call that function and never ask what the network was trained to output.

Shapes: x, z, eps and v are `[batch, height, width, channels]`; logsnr is a scalar, for all examples alike, or
`[batch]`. The functions work under `jax.jit`, `vmap`, `grad` and `pmap`, and on any float dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from .errors import InputError
from .shapes import Array, DataArray, ScalarOrBatch, mixed_precision

MEAN_TYPES = ("eps", "x", "v", "both", "flow", "edm", "consistency")


class Prediction(NamedTuple):
    """What a denoiser predicts for a noisy z, in all three parameterizations.

    Given z, any one of the three determines the other two. Each is shaped as z.

    Attributes:
      x: the clean image.
      eps: the noise.
      v: alpha eps - sigma x, the direction in which z turns as noise is added.
    """

    x: DataArray
    eps: DataArray
    v: DataArray


Denoiser = Callable[[DataArray, ScalarOrBatch], Prediction]


def alpha_sigma(logsnr: ScalarOrBatch) -> tuple[Array, Array]:
    """Return the signal scale alpha = sqrt(sigmoid(logsnr)) and the noise scale sigma = sqrt(sigmoid(-logsnr)).

    Both are shaped as logsnr.

    >>> alpha, sigma = alpha_sigma(jnp.array([0.0, 2.0]))
    >>> alpha.round(4), sigma.round(4)
    (Array([0.7071, 0.9385], dtype=float32), Array([0.7071, 0.3453], dtype=float32))
    """
    return jnp.sqrt(sigmoid(logsnr)), jnp.sqrt(sigmoid(-logsnr))


@jax.custom_jvp
def sigmoid(x: ScalarOrBatch) -> Array:
    """Compute JAX's logistic function, with a derivative that is exact even where the function rounds to 1.

    >>> f"{jax.grad(sigmoid)(20.0):.4g}"
    '2.061e-09'
    """
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _sigmoid_jvp(primals, tangents):
    [x] = primals
    [dx] = tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@mixed_precision
def q_sample(x: DataArray, eps: DataArray, logsnr: ScalarOrBatch) -> DataArray:
    """Add noise to clean images: z = alpha x + sigma eps (Salimans & Ho 2022, equation 1).

    z is a sample of q(z_t | x) if eps is standard normal.

    Args:
      x: clean images, `[batch, height, width, channels]`.
      eps: noise, shaped as x.
      logsnr: log-SNR of z, a scalar or `[batch]`.

    Returns:
      z, in the shape and dtype of x.

    Raises:
      InputError: if the shapes do not fit each other.

    >>> x, eps = jnp.zeros((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1))
    >>> q_sample(x, eps, jnp.array([-2.0, 2.0]))[:, 0, 0, 0].round(4)  # sigma of each
    Array([0.9385, 0.3453], dtype=float32)
    """
    if x.shape != eps.shape:
        raise InputError(f"x of shape {x.shape} and eps of shape {eps.shape} must have the same shape.")
    alpha, sigma = alpha_sigma(per_example(logsnr, x))
    return (alpha * x + sigma * eps).astype(x.dtype)


@mixed_precision
def posterior(
    z_t: DataArray, x: DataArray, logsnr_t: ScalarOrBatch, logsnr_s: ScalarOrBatch, variance: str
) -> tuple[DataArray, Array]:
    """Return mean and log-variance of q(z_s | z_t, x) for s < t (Salimans & Ho 2022, equation 3).

    With r = SNR(t) / SNR(s), the mean is r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x.

    Args:
      z_t: noisy images at time t, `[batch, height, width, channels]`.
      x: clean images, known or predicted, shaped as z_t.
      logsnr_t: log-SNR of z_t, a scalar or `[batch]`.
      logsnr_s: log-SNR at the earlier time s, above logsnr_t; a scalar or `[batch]`.
      variance: 'small' for (1 - r) sigma_s^2, the variance if x is certain; 'large' for (1 - r) sigma_t^2, its upper
        bound; 'medium:f' for their geometric mean with weight f of 'large', 0 <= f <= 1.

    Returns:
      The mean, shaped as z_t, and the log-variance, which broadcasts against the mean.

    Raises:
      InputError: for another `variance`, or a logsnr that is neither a scalar nor `[batch]`.

    >>> z_t, x = jnp.ones((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1))
    >>> mean, logvar = posterior(z_t, x, logsnr_t=-1.0, logsnr_s=1.0, variance="small")
    >>> mean.shape, round(float(jnp.exp(logvar)), 4)  # (1 - exp(-2)) sigmoid(-1)
    ((1, 8, 8, 1), 0.2325)
    """
    weight_large = {"small": 0.0, "large": 1.0}.get(variance)
    if weight_large is None:
        weight_large = medium_fraction(variance)
    logsnr_t = per_example(logsnr_t, z_t)
    logsnr_s = per_example(logsnr_s, z_t)
    alpha_t, _ = alpha_sigma(logsnr_t)
    alpha_s, _ = alpha_sigma(logsnr_s)
    r = jnp.exp(logsnr_t - logsnr_s)
    # 1 - r by expm1, and its logarithm by log1mexp, keep their digits at neighboring times.
    mean = r * (alpha_s / alpha_t) * z_t - jnp.expm1(logsnr_t - logsnr_s) * alpha_s * x
    log_sigma2 = weight_large * jax.nn.log_sigmoid(-logsnr_t) + (1 - weight_large) * jax.nn.log_sigmoid(-logsnr_s)
    return mean.astype(z_t.dtype), log1mexp(logsnr_s - logsnr_t) + log_sigma2


def make_denoiser(
    model_fn: Callable[[DataArray, Array], DataArray],
    mean_type: str,
    *,
    clip_x: bool = False,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
) -> Denoiser:
    """Turn a network into a denoiser.

    Networks of flow matching and EDM see z in the scale that they were trained with. Everything else is the same.

    Args:
      model_fn: `model_fn(z, logsnr)` returns the network's raw output. z, `[batch, height, width, channels]`, is in the
        scale that `scale_input` documents for this `mean_type`; logsnr is always `[batch]`. The output is shaped as z;
        if `mean_type` is 'both', with twice the channels.
      mean_type: what the network outputs:

        * 'eps', 'x' or 'v';
        * 'both': an x and an eps stacked along the channels in this order, which are combined to
          x = sigma^2 x_head + alpha^2 x_from_eps (Salimans & Ho 2022, section 4);
        * 'flow': the velocity u = eps - x of flow matching (Liu et al. 2023). Its z is (1 - t) x + t eps with
          t = sigma / (alpha + sigma). For networks that output x - eps, negate the output;
        * 'edm': the F of EDM, x = c_skip x_edm + c_out F, with x_edm = z / alpha (Karras et al. 2022, table 1);
        * 'consistency': the same with the c_skip and c_out of consistency models, whose x is x_edm where
          sigma / alpha = sigma_min (Song et al. 2023, appendix C).
      clip_x: whether to clip the predicted x to [-1, 1], and to compute eps and v from the clipped x; default False.
      sigma_data: standard deviation of the data, for 'edm' and 'consistency'; default 0.5.
      sigma_min: least noise, for 'consistency'; default 0.002.

    Returns:
      `denoise(z, logsnr) -> Prediction`, in the shape and dtype of z. logsnr may be a scalar or `[batch]`.

    Raises:
      InputError: for another `mean_type`; from `denoise`, if logsnr is neither a scalar nor `[batch]`, or the network's
        output does not have the expected shape.

    >>> denoise = make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    >>> prediction = denoise(jnp.ones((2, 8, 8, 1)), 0.0)
    >>> prediction.x.shape, round(float(prediction.x[0, 0, 0, 0]), 4)  # alpha z - sigma v
    ((2, 8, 8, 1), 0.3536)
    """
    if mean_type not in MEAN_TYPES:
        raise InputError(f"Unknown mean_type {mean_type!r}; choose one of {list(MEAN_TYPES)}.")

    def denoise(z: DataArray, logsnr: ScalarOrBatch) -> Prediction:
        logsnr_per_example = per_example(logsnr, z)
        network_input = scale_input(z, logsnr_per_example, mean_type, sigma_data=sigma_data)
        output = model_fn(network_input, jnp.broadcast_to(jnp.asarray(logsnr), z.shape[:-3]))
        channels = z.shape[-1] * (2 if mean_type == "both" else 1)
        if output.shape != (*z.shape[:-1], channels):
            raise InputError(
                f"mean_type {mean_type!r} on images of shape {z.shape} needs a network output of {channels} channels; "
                f"the network gave shape {output.shape}. Set its out_ch to {channels}."
            )
        prediction = interpret(output, z, logsnr_per_example, mean_type, sigma_data=sigma_data, sigma_min=sigma_min)
        if clip_x:
            prediction = predict(z, logsnr_per_example, x=jnp.clip(prediction.x, -1, 1))
        return Prediction(*(part.astype(z.dtype) for part in prediction))

    return denoise


@mixed_precision
def scale_input(z: DataArray, logsnr: Array, mean_type: str, *, sigma_data: float = 0.5) -> DataArray:
    """Scale z to what a network with this `mean_type` was trained on.

    Args:
      z: noisy images, `[batch, height, width, channels]`.
      logsnr: log-SNR of z, which must broadcast against z; see `per_example`.
      mean_type: with 'flow', z / (alpha + sigma), which is (1 - t) x + t eps. With 'edm' and 'consistency',
        z / sqrt(sigma^2 + sigma_data^2 alpha^2), which is c_in x_edm. With all others, z.
      sigma_data: standard deviation of the data; default 0.5.

    >>> scale_input(jnp.ones((1, 1, 1, 1)), jnp.float32(0.0), "flow").round(4)  # alpha = sigma = sqrt(1 / 2)
    Array([[[[0.7071]]]], dtype=float32)
    """
    alpha, sigma = alpha_sigma(logsnr)
    if mean_type == "flow":
        return (z / (alpha + sigma)).astype(z.dtype)
    if mean_type in ("edm", "consistency"):
        return (z * _edm_scale(alpha, sigma, sigma_data)).astype(z.dtype)
    return z


def _edm_scale(alpha: Array, sigma: Array, sigma_data: float) -> Array:
    """1 / sqrt(sigma^2 + sigma_data^2 alpha^2), EDM's c_in / alpha."""
    return jax.lax.rsqrt(jnp.square(sigma) + sigma_data**2 * jnp.square(alpha))


@mixed_precision
def interpret(
    output: Float[Array, "*batch height width channels_out"],
    z: DataArray,
    logsnr: Array,
    mean_type: str,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
) -> Prediction:
    """Turn a network's raw output into a prediction.

    Args:
      output: the raw output for `scale_input(z, ...)`, `[batch, height, width, channels]`; with 'both', it has twice
        the channels of z.
      z: noisy images, `[batch, height, width, channels]`.
      logsnr: log-SNR of z, which must broadcast against z; see `per_example`.
      mean_type: see `make_denoiser`.
      sigma_data: see `make_denoiser`.
      sigma_min: see `make_denoiser`.

    >>> z, u = jnp.full((1, 1, 1, 1), 0.8), jnp.full((1, 1, 1, 1), 0.6)
    >>> round(interpret(u, z, jnp.float32(0.0), "flow").x.item(), 4)  # z / sqrt(2) - u / 2
    0.2657
    """
    alpha, sigma = alpha_sigma(logsnr)
    if mean_type == "both":
        x_head, eps_head = jnp.split(output, 2, axis=-1)
        x = sigma**2 * x_head + alpha * (z - sigma * eps_head)  # alpha^2 x_from_eps, without dividing by alpha
        return predict(z, logsnr, x=x)
    if mean_type == "flow":
        return predict(z, logsnr, v=(output - (sigma - alpha) * z) / (alpha + sigma))
    if mean_type == "edm":
        # v = (alpha z - x) / sigma, from x = c_skip x_edm + c_out F, with sigma divided out.
        scale = _edm_scale(alpha, sigma, sigma_data)
        v = (1 - sigma_data**2) * alpha * sigma * jnp.square(scale) * z - sigma_data * scale * output
        return predict(z, logsnr, v=v)
    if mean_type == "consistency":
        # x = c_skip x_edm + c_out F. With s = sigma / alpha, c_skip = sd^2 / ((s - sigma_min)^2 + sd^2) and
        # c_out = (s - sigma_min) sd / sqrt(s^2 + sd^2), both here without dividing by alpha.
        above = sigma - sigma_min * alpha
        skip = sigma_data**2 * alpha / (jnp.square(above) + sigma_data**2 * jnp.square(alpha))
        x = skip * z + above * sigma_data * _edm_scale(alpha, sigma, sigma_data) * output
        return predict(z, logsnr, x=x)
    return predict(z, logsnr, **{mean_type: output})


@mixed_precision
def predict(
    z: DataArray,
    logsnr: Array,
    *,
    x: DataArray | None = None,
    eps: DataArray | None = None,
    v: DataArray | None = None,
) -> Prediction:
    """Complete a prediction from one of its parts.

    Args:
      z: noisy images, `[batch, height, width, channels]`.
      logsnr: log-SNR of z, which must broadcast against z; see `per_example`.
      x: the predicted clean images.
      eps: the predicted noise.
      v: the predicted v. Exactly one of the three must be set.

    >>> predict(jnp.ones((1, 1, 1, 1)), jnp.float32(0.0), x=jnp.zeros((1, 1, 1, 1))).eps.round(4)  # z / sigma
    Array([[[[1.4142]]]], dtype=float32)
    """
    alpha, sigma = alpha_sigma(logsnr)
    if v is not None:
        return Prediction(x=alpha * z - sigma * v, eps=sigma * z + alpha * v, v=v)
    # XLA rewrites `a / b` as `a * (1 / b)` in some programs. Written so, all programs round alike.
    if eps is not None:
        x = (z - sigma * eps) * (1 / alpha)
    else:
        eps = (z - alpha * x) * (1 / sigma)
    return Prediction(x=x, eps=eps, v=alpha * eps - sigma * x)


def log1mexp(x: ScalarOrBatch) -> Array:
    """Compute log(1 - exp(-x)) for x > 0, exact at both ends and with a finite gradient (Maechler 2012).

    >>> [round(y, 3) for y in log1mexp(jnp.array([1e-6, 1.0])).tolist()]
    [-13.816, -0.459]
    """
    x = jnp.asarray(x)
    is_small = x < 0.693
    # Each branch gets arguments in its own range: `where` alone would pass on the other branch's infinite gradient.
    return jnp.where(
        is_small,
        jnp.log(-jnp.expm1(-jnp.where(is_small, x, 0.5))),
        jnp.log1p(-jnp.exp(-jnp.where(is_small, 1.0, x))),
    )


def per_example(value: ArrayLike, like: Array) -> Array:
    """Append axes to a scalar or `[batch]` value, so that it broadcasts against `[batch, height, width, channels]`.

    Args:
      value: t, logsnr, an angle or a weight.
      like: x, z, eps or v.

    Raises:
      InputError: if `value` is neither a scalar nor `[batch]`.

    >>> per_example(jnp.array([1.0, 2.0]), jnp.zeros((2, 8, 8, 1))).shape
    (2, 1, 1, 1)
    """
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    if value.shape != like.shape[:-3]:
        raise InputError(
            f"A value of shape {value.shape} does not fit an array of shape {like.shape}, [*batch, height, width, "
            f"channels]: pass a scalar, or an array of shape {like.shape[:-3]}."
        )
    return value.reshape(*value.shape, 1, 1, 1)


def medium_fraction(variance: str) -> float:
    """Return the f of the variance 'medium:f', from 0 to 1.

    Raises:
      InputError: for any other `variance`.

    >>> medium_fraction("medium:0.25")
    0.25
    """
    kind, _, text = variance.partition(":")
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if kind != "medium" or not 0 <= fraction <= 1:
        raise InputError(f"Unknown variance {variance!r}; choose 'small', 'large', or 'medium:f' with 0 <= f <= 1.")
    return fraction
