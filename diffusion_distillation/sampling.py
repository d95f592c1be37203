"""Samplers: from noise to images in `num_steps` calls of a denoiser.

A sampler starts from standard normal z at t = 1 and steps by dt = 1 / num_steps; the step that ends at t = 0 returns
the predicted x. `num_steps` may be a traced integer: one compiled program then serves every number of steps. With
`trajectory=True` the samplers return `(x, xs)`, where `xs[k]`, `[num_steps, batch, height, width, channels]`, is the x
predicted at step k; this needs `num_steps` to be a Python integer.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .diffusion import Denoiser, Prediction, medium_fraction, per_example, posterior
from .errors import InputError
from .keys import fold_in, normal
from .schedules import Schedule, bounded
from .shapes import Array, Count, Images, Keys, Times, Trajectory, at_least_float32, mixing_types

SAMPLER_TITLES = {
    "ddim": "DDIM",
    "noisy": "ancestral",
    "addim": "aDDIM",
    "renoise": "re-noising",
    "stochastic": "stochastic",
}
SAMPLERS = tuple(SAMPLER_TITLES)
DETERMINISTIC = ("ddim", "addim")  # unless DDIM's eta is above 0


@mixing_types
def ddim_step(
    prediction: Prediction,
    z: Images,
    schedule: Schedule,
    t: Times,
    dt: Times,
    *,
    eta: float = 0.0,
    key: Keys | None = None,
) -> Images:
    """One DDIM step from t to t - dt: a rotation of z (Salimans & Ho 2022, appendix D).

    cos(d) z - sin(d) v = alpha_s x + sigma_s eps, with d the angle between the two times. With eta > 0 a part of
    sigma_s eps is drawn anew (Song et al. 2021, equation 12): eta = 1 is `ancestral_step` with 'fixed_small'.

    Args:
      prediction: what the denoiser says of z.
      z: noisy images at time t.
      schedule: the noise schedule.
      t: time, in (0, 1].
      dt: length of the step, at most t.
      eta: share of fresh noise, from 0 to 1.
      key: needed when eta is not 0.

    Returns:
      z at time t - dt; the predicted x where that is 0.

    Raises:
      InputError: if eta is not 0 and there is no key.
    """
    angle = schedule.angle_step(t, dt)
    turn = per_example(angle, z)
    z_s = jnp.cos(turn) * z - jnp.sin(turn) * prediction.v
    if eta != 0:
        if key is None:
            raise InputError(f"DDIM with eta={eta} draws fresh noise: give it a key, or set eta=0.")
        log_r = per_example(schedule(t) - schedule(bounded(t - dt, 0.0, math.inf)), z)  # r = SNR(t) / SNR(s)
        kept = jnp.sqrt((1 - eta**2) + eta**2 * jnp.exp(log_r))
        fresh = eta * jnp.sqrt(-jnp.expm1(log_r))
        sigma_s = per_example(jnp.sin(schedule.angle(t) - angle), z)
        z_s += sigma_s * ((kept - 1) * prediction.eps + fresh * normal(key, z))
    return z_s.astype(z.dtype)


@mixing_types
def ancestral_step(
    key: Keys,
    prediction: Prediction,
    z: Images,
    schedule: Schedule,
    t: Times,
    dt: Times,
    logvar_type: str = "fixed_large",
) -> Images:
    """One ancestral (DDPM) step from t to t - dt: a draw from q(z_s | z_t, x) at the predicted x.

    Args:
      key: for the noise.
      prediction: what the denoiser says of z.
      z: noisy images at time t.
      schedule: the noise schedule.
      t: time, in (0, 1].
      dt: length of the step, at most t.
      logvar_type: 'fixed_small', 'fixed_large' or 'fixed_medium:f'; see `diffusion.posterior`.

    Returns:
      z at time t - dt; the predicted x where that is 0.

    Raises:
      InputError: for another `logvar_type`.
    """
    mean, logvar = posterior(z, prediction.x, schedule(t), schedule(t - dt), posterior_variance(logvar_type))
    z_s = mean + jnp.exp(0.5 * logvar) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_s).astype(z.dtype)


@mixing_types
def addim_displacement(prediction: Prediction, phi: Times, d: Times, variance: float = 0.1) -> Float[Array, "*batch"]:
    """How far beside a DDIM step the adjusted one ends, along the predicted eps (Heek et al. 2024, algorithm 3).

    A step to the mean of x loses the variance that x has around it. The adjusted step has a longer eps instead of it,

        k = sqrt( sin(phi - d)^2 + (D / |eps|^2) (sin(d) / sin(phi))^2 x_var ) - sin(phi - d),

    with D the number of pixels and channels, |eps| the norm of an example and x_var = variance / (2 + SNR). It is for a
    denoiser that predicts means; students that were distilled do not.

    Args:
      prediction: what the denoiser says at angle phi.
      phi: the angle that the step begins at, above 0.
      d: its angle, from 0 to phi.
      variance: the paper's 0.1.

    Returns:
      k of each example; 0 where the step ends at angle 0, which is the predicted x, and where eps is 0.
    """
    phi, d = jnp.asarray(phi), jnp.asarray(d)
    eps2 = jnp.mean(jnp.square(prediction.eps), axis=(-3, -2, -1))  # |eps|^2 / D
    lost = variance / (2 + 1 / jnp.square(jnp.tan(phi))) * jnp.square(jnp.sin(d) / jnp.sin(phi))
    has_direction = eps2 > jnp.finfo(eps2.dtype).tiny  # an eps of length 0 cannot be scaled
    lost = jnp.where(has_direction, lost / jnp.where(has_direction, eps2, 1), 0)
    sigma_s = jnp.sin(phi - d)
    ends = phi - d < 1e-6 * phi  # rounded; a step that ends elsewhere leaves more
    # sqrt(sigma_s^2 + lost) - sigma_s without its cancellation
    return jnp.where(ends, 0.0, lost / (jnp.sqrt(jnp.square(sigma_s) + lost) + sigma_s))


@mixing_types
def addim_step(prediction: Prediction, z: Images, schedule: Schedule, t: Times, dt: Times) -> Images:
    """One step of the adjusted DDIM sampler from t to t - dt (Heek et al. 2024, algorithm 3), see `addim_displacement`.

    Arguments and result are those of `ddim_step`.
    """
    k = addim_displacement(prediction, schedule.angle(t), schedule.angle_step(t, dt))
    return (ddim_step(prediction, z, schedule, t, dt) + per_example(k, z) * prediction.eps).astype(z.dtype)


@mixing_types
def renoise_step(key: Keys, prediction: Prediction, z: Images, schedule: Schedule, t: Times, dt: Times) -> Images:
    """One step of a consistency model: its x, with fresh noise for t - dt (Song et al. 2023, algorithm 1).

    Arguments and result are those of `ancestral_step`.
    """
    phi_s = per_example(schedule.angle(t) - schedule.angle_step(t, dt), z)
    z_s = jnp.cos(phi_s) * prediction.x + jnp.sin(phi_s) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_s).astype(z.dtype)


@mixing_types
def stochastic_step(key: Keys, prediction: Prediction, z: Images, schedule: Schedule, t: Times, dt: Times) -> Images:
    """A DDIM step of twice the length, from t to t - 2 dt, and from there by noise back up to t - dt.

    Meng et al. (2023, section 3.3): z_m = (alpha_m / alpha_s) z_s + sqrt(sigma_m^2 - (alpha_m / alpha_s)^2 sigma_s^2)
    eps'. A step that would end below t = 0 ends there, which is the predicted x.

    Arguments and result are those of `ancestral_step`.
    """
    m, s = (bounded(t - length, 0.0, math.inf) for length in (dt, 2 * dt))
    z_s = ddim_step(prediction, z, schedule, t, t - s)
    phi_m, phi_s = (schedule.angle(t) - schedule.angle_step(t, t - end) for end in (m, s))
    square = jnp.sin(phi_m - phi_s) * jnp.sin(phi_m + phi_s)
    # Use `where` twice: the gradient of the root is infinite at 0.
    added = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0) / jnp.cos(phi_s)
    z_m = per_example(jnp.cos(phi_m) / jnp.cos(phi_s), z) * z_s + per_example(added, z) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_m).astype(z.dtype)


def ddim(
    denoise: Denoiser,
    z: Images,
    schedule: Schedule,
    num_steps: Count,
    *,
    eta: float = 0.0,
    key: Keys | None = None,
    start: Float[Array, ""] | float = 1.0,
    trajectory: bool = False,
) -> Images | tuple[Images, Trajectory]:
    """Samples with DDIM, deterministically unless eta > 0.

    Args:
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise.
      schedule: the noise schedule.
      num_steps: calls of the denoiser.
      eta: share of fresh noise at every step, see `ddim_step`.
      key: needed when eta is not 0. With one key an example, its sample does not depend on the rest of the batch.
      start: the time at which the steps start, though from noise as at t = 1; they are 1 / num_steps long, and the last
        ends at t = 0. diffusers' 'leading' steps of a schedule of T times start at 1 - 1 / num_steps + 1 / T, and its
        'trailing' ones at 1, where num_steps divides T.
      trajectory: return every predicted x too.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a num_steps below 1, or eta without a key.
    """

    def step(i, prediction, z, t, dt):
        step_key = None if key is None else fold_in(key, i)
        return ddim_step(prediction, z, schedule, t, dt, eta=eta, key=step_key)

    return _sample(step, denoise, z, schedule, num_steps, trajectory, start)


def ancestral(
    key: Keys,
    denoise: Denoiser,
    z: Images,
    schedule: Schedule,
    num_steps: Count,
    logvar_type: str = "fixed_large",
    *,
    trajectory: bool = False,
) -> Images | tuple[Images, Trajectory]:
    """Samples with the ancestral (DDPM) sampler, which draws fresh noise at every step.

    Args:
      key: for the noise of the steps. With one key an example, its sample does not depend on the rest of the batch.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise.
      schedule: the noise schedule.
      num_steps: calls of the denoiser.
      logvar_type: the variance of a step, see `ancestral_step`.
      trajectory: return every predicted x too.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a num_steps below 1 or an unknown logvar_type.
    """

    def step(i, prediction, z, t, dt):
        return ancestral_step(fold_in(key, i), prediction, z, schedule, t, dt, logvar_type)

    return _sample(step, denoise, z, schedule, num_steps, trajectory)


def addim(
    denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples with the adjusted DDIM sampler (Heek et al. 2024, algorithm 3): deterministic, for undistilled models.

    Arguments, result and errors are those of `ddim`.
    """

    def step(i, prediction, z, t, dt):
        return addim_step(prediction, z, schedule, t, dt)

    return _sample(step, denoise, z, schedule, num_steps, trajectory)


def renoise(
    key: Keys, denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples a consistency model of one group in several steps: x, then noise, then x again (Song et al. 2023).

    A multistep one, of several groups, is sampled by `ddim` in as many steps.

    Arguments, result and errors are those of `ancestral`.
    """

    def step(i, prediction, z, t, dt):
        return renoise_step(fold_in(key, i), prediction, z, schedule, t, dt)

    return _sample(step, denoise, z, schedule, num_steps, trajectory)


def stochastic(
    key: Keys, denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples with steps of twice the length, half undone by noise (Meng et al. 2023, section 3.3).

    A student of N steps is drawn so in N steps, or in 2 N, whose length is the one that it has learned.

    Arguments, result and errors are those of `ancestral`.
    """

    def step(i, prediction, z, t, dt):
        return stochastic_step(fold_in(key, i), prediction, z, schedule, t, dt)

    return _sample(step, denoise, z, schedule, num_steps, trajectory)


def _sample(
    step: Callable,
    denoise: Denoiser,
    z: Images,
    schedule: Schedule,
    num_steps: Count,
    trajectory: bool,
    start: Float[Array, ""] | float = 1.0,
) -> Images | tuple[Images, Trajectory]:
    check_num_steps(num_steps)
    time_type = at_least_float32(z.dtype)
    dt = 1 / jnp.asarray(num_steps, time_type)

    def one_step(z, i):
        t = (i + 1).astype(time_type) * dt - (1 - start)
        prediction = denoise(z, schedule(t))
        return step(i, prediction, z, t, dt), prediction.x

    if trajectory:
        return jax.lax.scan(one_step, z, jnp.arange(num_steps)[::-1])
    return jax.lax.fori_loop(0, num_steps, lambda k, z: one_step(z, jnp.asarray(num_steps - 1 - k))[0], z)


def check_num_steps(num_steps: Count) -> None:
    """Raise an InputError unless the number of sampling steps is an integer of 1 or more. Traced numbers pass."""
    if isinstance(num_steps, jax.core.Tracer):
        return
    if not jnp.issubdtype(jnp.result_type(num_steps), jnp.integer) or num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be an integer of at least 1.")


def posterior_variance(logvar_type: str) -> str:
    """The `variance` of `diffusion.posterior` that a config's logvar_type ('fixed_small', ...) stands for."""
    fixed, _, variance = logvar_type.partition("_")
    if fixed != "fixed" or variance.partition(":")[0] not in ("small", "large", "medium"):
        raise InputError(
            f"Unknown logvar_type {logvar_type!r}; choose 'fixed_small', 'fixed_large', or 'fixed_medium:f' "
            "with 0 <= f <= 1."
        )
    if variance not in ("small", "large"):
        medium_fraction(variance)
    return variance
