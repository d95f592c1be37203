"""Samplers: from noise to images in `num_steps` calls of a denoiser.

A sampler starts from standard normal z at t = 1 and steps by dt = 1 / num_steps; the step that ends at t = 0 returns
the predicted x. `num_steps` may be a traced integer: one compiled program then serves every number of steps. With
`trajectory=True` the samplers return `(x, xs)`, where `xs[k]`, `[num_steps, batch, height, width, channels]`, is the x
predicted at step k; this needs `num_steps` to be a Python integer.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .diffusion import Denoiser, Prediction, medium_fraction, per_example, posterior
from .errors import InputError
from .keys import fold_in, normal
from .schedules import Schedule, bounded
from .shapes import Array, Count, Images, Keys, Times, Trajectory, at_least_float32, mixing_types


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler: its step, and what its callers need to know of it.

    Attributes:
      title: name in tables and plots.
      step: `step(denoise, z, memory, *, schedule, t, dt, key, **options) -> (z, x, memory)`, from t to t - dt. It calls
        `denoise` as often as it needs to. `x` is the predicted clean image, for trajectories. `memory` is whatever a
        step leaves to the next one, such as the previous x of a multistep method. `key` is None for a deterministic
        sampler. `single_evaluation` makes such a step from a function of one prediction.
      start_memory: `start_memory(z)`, the memory before the first step; default none.
      options: names of the keyword arguments of `step` that users may set: 'eta', 'logvar_type'.
      deterministic: whether the starting noise alone determines the sample (if `options` has eta, while it is 0);
        default False.
      jumps: how many grid steps one step's prediction is used for. A student of N steps can be sampled in jump * N
        steps. None if a prediction serves from any time, as in consistency models. Default (1,).
    """

    title: str
    step: Callable[..., tuple[Images, Images, Any]]
    start_memory: Callable[[Images], Any] = lambda z: ()
    options: tuple[str, ...] = ()
    deterministic: bool = False
    jumps: tuple[int, ...] | None = (1,)

    def needs_key(self, eta: float = 0.0) -> bool:
        """Whether the sampler adds fresh noise at every step."""
        return not self.deterministic or eta != 0

    def suits(self, student_num_steps: int, num_steps: int) -> bool:
        """Whether a student that was distilled for one number of steps can be sampled in another."""
        return self.jumps is None or student_num_steps in [num_steps // jump for jump in self.jumps]


def single_evaluation(step: Callable[..., Images]) -> Callable[..., tuple[Images, Images, Any]]:
    """The `Sampler.step` of a function `step(*, prediction, z, schedule, t, dt, key, **options) -> z`.

    The denoiser is called once, at (z, t), and there is no memory. `key` is passed if there is one.
    """

    def evaluate_and_step(denoise, z, memory, *, schedule, t, dt, key, **options):
        prediction = denoise(z, schedule(t))
        if key is not None:
            options["key"] = key
        return step(prediction=prediction, z=z, schedule=schedule, t=t, dt=dt, **options), prediction.x, memory

    return evaluate_and_step


SAMPLERS = {
    "ddim": Sampler(title="DDIM", step=single_evaluation(ddim_step), options=("eta",), deterministic=True),
    "ancestral": Sampler(title="ancestral", step=single_evaluation(ancestral_step), options=("logvar_type",)),
    "addim": Sampler(title="aDDIM", step=single_evaluation(addim_step), deterministic=True),
    "renoise": Sampler(title="re-noising", step=single_evaluation(renoise_step), jumps=None),
    "stochastic": Sampler(title="stochastic", step=single_evaluation(stochastic_step), jumps=(1, 2)),
}
SAMPLER_ALIASES = {"noisy": "ancestral"}  # of the published configs


def sampler_name(name: str) -> str:
    """The name in `SAMPLERS` of a sampler, which may have its published name, 'noisy' for 'ancestral'.

    Raises:
      InputError: for an unknown sampler.

    >>> sampler_name("noisy")
    'ancestral'
    """
    name = SAMPLER_ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise InputError(f"Unknown sampler {name!r}; choose one of {list(SAMPLERS)}.")
    return name


def sample(
    sampler: str | Sampler,
    denoise: Denoiser,
    z: Images,
    schedule: Schedule,
    num_steps: Count,
    *,
    key: Keys | None = None,
    start: Float[Array, ""] | float = 1.0,
    trajectory: bool = False,
    **options: Any,
) -> Images | tuple[Images, Trajectory]:
    """Sample with any sampler.

    Args:
      sampler: a name in `SAMPLERS`, or a `Sampler` of your own.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; may be traced, unless `trajectory`.
      key: for the noise of the steps, ignored by deterministic samplers. With one key per example, a sample does not
        depend on the rest of its batch.
      start: time of the first step; see `ddim`.
      trajectory: also return the predicted x of every step.
      **options: keyword arguments of the sampler's step, one of its `options` each.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for an unknown sampler, a `num_steps` below 1, or a missing key.
    """
    sampler = SAMPLERS[sampler_name(sampler)] if isinstance(sampler, str) else sampler
    check_num_steps(num_steps)
    check_key(sampler, key, options.get("eta", 0.0))
    if not sampler.needs_key(options.get("eta", 0.0)):
        key = None
    time_type = at_least_float32(z.dtype)
    dt = 1 / jnp.asarray(num_steps, time_type)

    def step(carry, i):
        z, memory = carry
        t = (i + 1).astype(time_type) * dt - (1 - start)
        step_key = None if key is None else fold_in(key, i)
        z, x, memory = sampler.step(denoise, z, memory, schedule=schedule, t=t, dt=dt, key=step_key, **options)
        return (z, memory), x

    first = (z, sampler.start_memory(z))
    if trajectory:
        (x, _), xs = jax.lax.scan(step, first, jnp.arange(num_steps)[::-1])
        return x, xs
    x, _ = jax.lax.fori_loop(0, num_steps, lambda k, carry: step(carry, jnp.asarray(num_steps - 1 - k))[0], first)
    return x


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
    return sample("ddim", denoise, z, schedule, num_steps, key=key, start=start, trajectory=trajectory, eta=eta)


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
    return sample("ancestral", denoise, z, schedule, num_steps, key=key, trajectory=trajectory, logvar_type=logvar_type)


def addim(
    denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples with the adjusted DDIM sampler (Heek et al. 2024, algorithm 3): deterministic, for undistilled models.

    Arguments, result and errors are those of `ddim`.
    """
    return sample("addim", denoise, z, schedule, num_steps, trajectory=trajectory)


def renoise(
    key: Keys, denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples a consistency model of one group in several steps: x, then noise, then x again (Song et al. 2023).

    A multistep one, of several groups, is sampled by `ddim` in as many steps.

    Arguments, result and errors are those of `ancestral`.
    """
    return sample("renoise", denoise, z, schedule, num_steps, key=key, trajectory=trajectory)


def stochastic(
    key: Keys, denoise: Denoiser, z: Images, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> Images | tuple[Images, Trajectory]:
    """Samples with steps of twice the length, half undone by noise (Meng et al. 2023, section 3.3).

    A student of N steps is drawn so in N steps, or in 2 N, whose length is the one that it has learned.

    Arguments, result and errors are those of `ancestral`.
    """
    return sample("stochastic", denoise, z, schedule, num_steps, key=key, trajectory=trajectory)


def check_key(sampler: Sampler, key: Keys | None, eta: float = 0.0) -> None:
    """Raise an InputError if a sampler that adds noise at every step has no key."""
    if key is None and sampler.needs_key(eta):
        name = f"{sampler.title} with eta={eta}" if eta else f"The {sampler.title} sampler"
        raise InputError(f"{name} adds fresh noise at every step. Pass a key, such as key=jax.random.key(0).")


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
