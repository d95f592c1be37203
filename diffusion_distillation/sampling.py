"""Samplers: from noise to images by calling a denoiser a few times.

A sampler starts from standard normal z at t = 1, takes `num_steps` steps of length 1 / num_steps, and returns the x
that is predicted in the last one. The public functions are

* `ddim`, deterministic unless `eta` is above 0, and the sampler that students are made for;
* `addim`, DDIM adjusted for the variance that it loses;
* `heun`, of second order, with two network evaluations per step;
* `dpmpp_2m`, of second order, with one;
* `ancestral`, the DDPM sampler;
* `renoise`, for consistency models: predict x, add noise, predict x again;
* `stochastic`, steps of twice the length, half undone by noise.

Each is `sample`, the one loop, with a `Sampler` of the registry `SAMPLERS`. To add a sampler, write its step and add
one line to `SAMPLERS`; configs, flags, pipelines, reports and exports then know it. A function like those above and a
line in this list are optional. A scheduler of diffusers that uses it needs a reader, in
`interop/diffusers/scheduler.py`.

The deterministic ones are DDIM steps, rotations of z, with a v of their own: a `Solver` of the registry `SOLVERS`
computes this v. To add a solver, write its velocity and add one line to `SOLVERS`; it is then a sampler too, and a way
for teachers to step (`distillation.teacher_step`). A solver returns a v and cannot correct z. A method that corrects z,
as UniPC does, is a `Sampler`.

z may have any float dtype. `num_steps` may be traced: one compiled program then serves every number of steps. With
`trajectory=True` (and a Python integer `num_steps`) samplers return `(x, xs)`, where `xs[k]` is the x predicted in step
k, `[num_steps, batch, height, width, channels]`. A denoiser is called with a scalar logsnr.

Step functions are pure: z at time t and a prediction there give z at time t - dt. t and dt are scalars or `[batch]`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .diffusion import Denoiser, Prediction, alpha_sigma, medium_fraction, per_example, posterior
from .errors import InputError
from .keys import fold_in, normal
from .schedules import Schedule, bounded
from .shapes import Array, Count, DataArray, Keys, ScalarOrBatch, Trajectory, at_least_float32, mixed_precision


@mixed_precision
def rotate(z: DataArray, v: DataArray, angle: ScalarOrBatch) -> DataArray:
    """Turn z by an angle towards the data: cos(angle) z - sin(angle) v, in the dtype of z.

    Args:
      z: noisy images, `[batch, height, width, channels]`.
      v: shaped as z.
      angle: a scalar or `[batch]`.

    >>> rotate(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)), jnp.pi / 6).round(4)
    Array([[[[0.366]]]], dtype=float32)
    """
    d = per_example(angle, z)
    return (jnp.cos(d) * z - jnp.sin(d) * v).astype(z.dtype)


@mixed_precision
def ddim_step(
    prediction: Prediction,
    z: DataArray,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
    *,
    eta: float = 0.0,
    key: Keys | None = None,
) -> DataArray:
    """Take one DDIM step from t to t - dt: a rotation of z (Salimans & Ho 2022, appendix D).

    With d the angle between the two times, z_s = cos(d) z - sin(d) v = alpha_s x + sigma_s eps. With eta > 0, part of
    sigma_s eps is replaced by fresh noise (Song et al. 2021, equation 12); eta = 1 is `ancestral_step` with
    'fixed_small'.

    Args:
      prediction: the denoiser's prediction for z.
      z: noisy images at time t, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      t: time, in (0, 1]; a scalar or `[batch]`.
      dt: length of the step, at most t; a scalar or `[batch]`.
      eta: share of fresh noise, from 0 to 1; default 0.
      key: random key, one for all examples or one each; needed if eta is not 0.

    Returns:
      z at time t - dt; where that is 0, the predicted x.

    Raises:
      InputError: if eta is not 0 and there is no key.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> prediction = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")(z, schedule(0.25))
    >>> ddim_step(prediction, z, schedule, t=0.25, dt=0.25)[0, 0, 0]  # ends at t = 0, on x
    Array([0.5...], dtype=float32)
    """
    angle = schedule.angle_step(t, dt)
    d = per_example(angle, z)
    z_s = jnp.cos(d) * z - jnp.sin(d) * prediction.v
    if eta != 0:
        if key is None:
            raise InputError(f"A DDIM step with eta={eta} adds fresh noise: pass a key, or set eta=0.")
        log_r = per_example(schedule(t) - schedule(bounded(t - dt, 0.0, math.inf)), z)  # r = SNR(t) / SNR(s)
        share_kept = jnp.sqrt((1 - eta**2) + eta**2 * jnp.exp(log_r))
        share_fresh = eta * jnp.sqrt(-jnp.expm1(log_r))
        sigma_s = per_example(jnp.sin(schedule.angle(t) - angle), z)
        z_s += sigma_s * ((share_kept - 1) * prediction.eps + share_fresh * normal(key, z))
    return z_s.astype(z.dtype)


@mixed_precision
def ancestral_step(
    key: Keys,
    prediction: Prediction,
    z: DataArray,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
    logvar_type: str = "fixed_large",
) -> DataArray:
    """Take one ancestral (DDPM) step from t to t - dt: a sample of q(z_s | z_t, x) at the predicted x.

    Args:
      key: random key, one for all examples or one each.
      prediction: the denoiser's prediction for z.
      z: noisy images at time t, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      t: time, in (0, 1]; a scalar or `[batch]`.
      dt: length of the step, at most t; a scalar or `[batch]`.
      logvar_type: 'fixed_small', 'fixed_large' (default) or 'fixed_medium:f', the variances of `diffusion.posterior`.

    Returns:
      z at time t - dt; where that is 0, the predicted x.

    Raises:
      InputError: for another `logvar_type`.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> prediction = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")(z, schedule(0.5))
    >>> ancestral_step(jax.random.key(0), prediction, z, schedule, t=0.5, dt=0.25).shape
    (1, 8, 8, 1)
    """
    mean, logvar = posterior(z, prediction.x, schedule(t), schedule(t - dt), posterior_variance(logvar_type))
    z_s = mean + jnp.exp(0.5 * logvar) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_s).astype(z.dtype)


@mixed_precision
def addim_displacement(
    prediction: Prediction, phi: ScalarOrBatch, d: ScalarOrBatch, variance: ScalarOrBatch = 0.1
) -> Float[Array, "*batch"]:
    """Return the aDDIM correction: how much eps to add to a DDIM step (Heek et al. 2024, algorithm 3).

    A step towards the mean of x loses the variance of x around its mean. The adjusted step has a longer eps instead. It
    ends at alpha_s x + (sigma_s + k) eps with

        k = sqrt( sin(phi - d)^2 + (D / |eps|^2) (sin(d) / sin(phi))^2 x_var ) - sin(phi - d),

    where D is the number of pixels times channels, |eps| the norm of an example, and x_var = variance / (2 + SNR). The
    correction is for denoisers that predict means; distilled students do not.

    Args:
      prediction: the denoiser's prediction at angle phi.
      phi: the angle at the start of the step, above 0; a scalar or `[batch]`.
      d: the angle of the step, from 0 to phi; a scalar or `[batch]`.
      variance: default 0.1, as in the paper.

    Returns:
      k of each example, `[batch]`; 0 where the step ends at angle 0, on the predicted x, and where eps is 0.

    >>> x, eps = jnp.zeros((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1))
    >>> addim_displacement(Prediction(x, eps, v=eps), phi=1.2, d=jnp.array([0.4, 1.2])).round(4)
    Array([0.0056, 0.    ], dtype=float32)
    """
    phi = jnp.asarray(phi)
    d = jnp.asarray(d)
    eps2 = jnp.mean(jnp.square(prediction.eps), axis=(-3, -2, -1))  # |eps|^2 / D
    lost = variance / (2 + 1 / jnp.square(jnp.tan(phi))) * jnp.square(jnp.sin(d) / jnp.sin(phi))
    has_direction = eps2 > jnp.finfo(eps2.dtype).tiny  # an eps of length 0 cannot be scaled
    lost = jnp.where(has_direction, lost / jnp.where(has_direction, eps2, 1), 0)
    sigma_s = jnp.sin(phi - d)
    ends_at_0 = phi - d < 1e-6 * phi  # up to rounding; any other step leaves more
    # sqrt(sigma_s^2 + lost) - sigma_s, without its cancellation.
    return jnp.where(ends_at_0, 0.0, lost / (jnp.sqrt(jnp.square(sigma_s) + lost) + sigma_s))


@mixed_precision
def addim_step(
    prediction: Prediction, z: DataArray, schedule: Schedule, t: ScalarOrBatch, dt: ScalarOrBatch
) -> DataArray:
    """Take one adjusted DDIM step from t to t - dt: DDIM plus `addim_displacement` (Heek et al. 2024, algorithm 3).

    Args:
      prediction: the denoiser's prediction for z.
      z: noisy images at time t, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      t: time, in (0, 1]; a scalar or `[batch]`.
      dt: length of the step, at most t; a scalar or `[batch]`.

    Returns:
      z at time t - dt; where that is 0, the predicted x.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> prediction = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")(z, schedule(0.5))
    >>> z_s = addim_step(prediction, z, schedule, t=0.5, dt=0.25)
    >>> bool((z_s > ddim_step(prediction, z, schedule, t=0.5, dt=0.25)).all())  # the predicted eps is positive
    True
    """
    k = addim_displacement(prediction, schedule.angle(t), schedule.angle_step(t, dt))
    return (ddim_step(prediction, z, schedule, t, dt) + per_example(k, z) * prediction.eps).astype(z.dtype)


@mixed_precision
def renoise_step(
    key: Keys,
    prediction: Prediction,
    z: DataArray,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
    *,
    sigma_min: float = 0.0,
) -> DataArray:
    """Take one step of a consistency model: its x, with fresh noise for t - dt (Song et al. 2023, algorithm 1).

    Args:
      key: random key, one for all examples or one each.
      prediction: the denoiser's prediction for z.
      z: noisy images at time t, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      t: time, in (0, 1]; a scalar or `[batch]`.
      dt: length of the step, at most t; a scalar or `[batch]`.
      sigma_min: the noise that x has already, as sigma / alpha: that of mean_type 'consistency'; default 0.

    Returns:
      z at time t - dt; where that is 0, the predicted x.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> prediction = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")(z, schedule(0.25))
    >>> renoise_step(jax.random.key(0), prediction, z, schedule, t=0.25, dt=0.25)[0, 0, 0]
    Array([0.5], dtype=float32)
    """
    phi_s = per_example(schedule.angle(t) - schedule.angle_step(t, dt), z)
    z_s = jnp.cos(phi_s) * prediction.x + _added_noise(math.atan(sigma_min), phi_s) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_s).astype(z.dtype)


@mixed_precision
def stochastic_step(
    key: Keys, prediction: Prediction, z: DataArray, schedule: Schedule, t: ScalarOrBatch, dt: ScalarOrBatch
) -> DataArray:
    """Take a DDIM step of twice the length, from t to t - 2 dt, then add noise back up to t - dt.

    With m = t - dt and s = t - 2 dt, z_m = (alpha_m / alpha_s) z_s + sqrt(sigma_m^2 - (alpha_m / alpha_s)^2 sigma_s^2)
    eps' (Meng et al. 2023, section 3.3). A DDIM step that would end below t = 0 ends at 0, on the predicted x.

    Args:
      key: random key, one for all examples or one each.
      prediction: the denoiser's prediction for z.
      z: noisy images at time t, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      t: time, in (0, 1]; a scalar or `[batch]`.
      dt: length of the step, at most t; a scalar or `[batch]`.

    Returns:
      z at time t - dt; where that is 0, the predicted x.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> prediction = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")(z, schedule(0.25))
    >>> stochastic_step(jax.random.key(0), prediction, z, schedule, t=0.25, dt=0.25)[0, 0, 0]
    Array([0.5], dtype=float32)
    """
    m = bounded(t - dt, 0.0, math.inf)
    s = bounded(t - 2 * dt, 0.0, math.inf)
    phi_m = schedule.angle(t) - schedule.angle_step(t, t - m)
    phi_s = schedule.angle(t) - schedule.angle_step(t, t - s)
    z_s = ddim_step(prediction, z, schedule, t, t - s)
    sigma_added = _added_noise(phi_s, phi_m)
    z_m = per_example(jnp.cos(phi_m) / jnp.cos(phi_s), z) * z_s + per_example(sigma_added, z) * normal(key, z)
    return jnp.where(per_example(t <= dt, z), prediction.x, z_m).astype(z.dtype)


def _added_noise(phi_s: ScalarOrBatch, phi_m: Array) -> Array:
    """The scale of the noise that takes z from angle phi_s up to phi_m, where z is scaled by cos(phi_m) / cos(phi_s).

    Its square is (sin^2 phi_m - sin^2 phi_s) / cos^2 phi_s; it is 0 if phi_m is below phi_s.
    """
    square = jnp.sin(phi_m - phi_s) * jnp.sin(phi_m + phi_s)  # the difference of the squares
    # `where` twice, because the gradient of the root is infinite at 0.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0) / jnp.cos(phi_s)


Memory = Any  # a tree of arrays that one step leaves to the next
Velocity = Callable[..., tuple[DataArray, Memory]]
Step = Callable[..., tuple[DataArray, DataArray, Memory]]


def no_memory(z: DataArray) -> Memory:
    """Return the memory of solvers and samplers whose steps know nothing of the previous one.

    >>> no_memory(jnp.ones((1, 8, 8, 1)))
    ()
    """
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """A deterministic solver of the sampling ODE, as a correction of DDIM.

    The solver's step from t to t - dt is the DDIM step with another v: z_s = cos(d) z - sin(d) v, where d is the angle
    between the two times. A step that ends at t = 0 has the predicted v, so that it ends on the predicted x.

    Attributes:
      title: name in tables and plots.
      velocity: `velocity(prediction, denoise, z, memory, *, schedule, t, dt) -> (v, memory)`, the v of the step.
        `prediction` is the denoiser's at (z, t). t and dt are scalars or `[batch]`.
      start_memory: `start_memory(z)` returns the memory before the first step; default `no_memory`.
      evaluations: network evaluations per step, the prediction included; default 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * jnp.tanh(z), "x")
    >>> v, _ = SOLVERS["heun"].velocity(denoise(z, schedule(0.5)), denoise, z, (), schedule=schedule, t=0.5, dt=0.25)
    >>> v.shape
    (1, 8, 8, 1)
    """

    title: str
    velocity: Velocity
    start_memory: Callable[[DataArray], Memory] = no_memory
    evaluations: int = 1

    @property
    def is_multistep(self) -> bool:
        """Whether a step uses the previous one. Alone, the step of a multistep solver is a DDIM step."""
        return self.start_memory is not no_memory


def ddim_velocity(
    prediction: Prediction,
    denoise: Denoiser,
    z: DataArray,
    memory: Memory,
    *,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
) -> tuple[DataArray, Memory]:
    """Return the predicted v; see `Solver.velocity` for the arguments.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    >>> v, _ = ddim_velocity(denoise(z, schedule(0.5)), denoise, z, (), schedule=schedule, t=0.5, dt=0.25)
    >>> v[0, 0, 0]
    Array([0.5], dtype=float32)
    """
    return prediction.v, memory


@mixed_precision
def addim_velocity(
    prediction: Prediction,
    denoise: Denoiser,
    z: DataArray,
    memory: Memory,
    *,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
    variance: ScalarOrBatch = 0.1,
) -> tuple[DataArray, Memory]:
    """Return the v of an adjusted DDIM step, v - k eps / sin(d) with k the `addim_displacement`.

    Args: see `Solver.velocity`, and `addim_displacement` for `variance`.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    >>> v, _ = addim_velocity(denoise(z, schedule(0.5)), denoise, z, (), schedule=schedule, t=0.5, dt=0.25)
    >>> bool((v < 0.5).all())  # a longer eps, which is positive here
    True
    """
    d = schedule.angle_step(t, dt)
    k = addim_displacement(prediction, schedule.angle(t), d, variance)
    slope = k / jnp.maximum(jnp.sin(d), jnp.finfo(k.dtype).tiny)  # k is of second order in d
    return prediction.v - per_example(slope, z) * prediction.eps, memory


@mixed_precision
def heun_velocity(
    prediction: Prediction,
    denoise: Denoiser,
    z: DataArray,
    memory: Memory,
    *,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
) -> tuple[DataArray, Memory]:
    """Return the v of a step of Heun's method in EDM's coordinates (Karras et al. 2022, algorithm 1, without churn).

    There z / alpha is integrated over tan(phi), and its slope is eps. A step takes the mean of the slopes at its start
    and where the DDIM step ends. With w = sin(d) / cos(phi), the share of the slope in the step,

        v = v1 / 2 + [ (cos(d) + w sin(phi)) (v2 - sin(d) z) - w sin(phi - d) v1 ] / 2.

    A DDIM step is taken instead (1) to t = 0, as in the paper, and (2) if w is above `MAX_SLOPE`: then z is almost pure
    noise and EDM's sigma = tan(phi) falls to less than a sixth. Over so long a step in sigma, the mean of the slopes is
    worse than the first one. The second case is the first step on the 'cosine' and 'flow' schedules, where sigma is
    22026 and infinite, and on EDM's own grid in up to 4 steps.

    Args: see `Solver.velocity`.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    >>> v, _ = heun_velocity(denoise(z, schedule(0.5)), denoise, z, (), schedule=schedule, t=0.5, dt=0.25)
    >>> v.shape, bool((v == 0.5).any())  # not the predicted v, 0.5
    ((1, 8, 8, 1), False)
    """
    t = jnp.asarray(t)
    s = bounded(t - dt, 0.0, math.inf)
    d = schedule.angle_step(t, dt)
    alpha, sigma = alpha_sigma(schedule(t))
    w = jnp.sin(d) / alpha
    applies = (t > dt) & (w <= MAX_SLOPE)
    w = jnp.where(applies, w, 0)

    v1 = prediction.v
    v2 = denoise(rotate(z, v1, d), schedule(s)).v
    of_v2 = per_example(jnp.cos(d) + w * sigma, z)
    of_v1 = per_example(w * jnp.sin(schedule.angle(t) - d), z)
    mean = 0.5 * (v1 + of_v2 * (v2 - per_example(jnp.sin(d), z) * z) - of_v1 * v1)
    return jnp.where(per_example(applies, z), mean, v1), memory


MAX_SLOPE = 5.0  # the largest w of a Heun step


@mixed_precision
def dpmpp_2m_velocity(
    prediction: Prediction,
    denoise: Denoiser,
    z: DataArray,
    memory: Memory,
    *,
    schedule: Schedule,
    t: ScalarOrBatch,
    dt: ScalarOrBatch,
) -> tuple[DataArray, Memory]:
    """Return the v of a step of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    The step is a DDIM step with an x extrapolated from the previous step's, x + h / (2 h_before) (x - x_before), where
    h is half of the increase of the log-SNR. At the same z, x and v are linear in each other, and so

        v = v1 + h / (2 h_before) (v1 - v_before),

    where v_before belongs to x_before at the present z. In the first step and in the one that ends at t = 0, v is v1.

    Args: see `Solver.velocity`. `memory` is `(v_before, h_before)`; h_before has one value per example, `[batch]`.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    >>> memory = dpmpp_2m_memory(z)
    >>> v, memory = dpmpp_2m_velocity(denoise(z, schedule(0.5)), denoise, z, memory, schedule=schedule, t=0.5, dt=0.25)
    >>> v[0, 0, 0]  # the first step is a DDIM step
    Array([0.5], dtype=float32)
    """
    t = jnp.asarray(t)
    v_before, h_before = memory
    logsnr_s = schedule(bounded(t - dt, 0.0, math.inf))
    h = jnp.broadcast_to(0.5 * (logsnr_s - schedule(t)), h_before.shape).astype(h_before.dtype)
    share = per_example(jnp.where(t > dt, h / (2 * h_before), 0), z)
    offset = share * (prediction.v - v_before)

    # The v of x at the next z, (alpha_s z_s - x) / sigma_s, written without the difference, which amplifies rounding.
    d = schedule.angle_step(t, dt)
    sin_d = per_example(jnp.sin(d), z)
    cot_s = per_example(jnp.exp(0.5 * logsnr_s), z)
    v_s = per_example(jnp.cos(d), z) * prediction.v + sin_d * z - cot_s * sin_d * offset
    return prediction.v + offset, (v_s.astype(v_before.dtype), h)


def dpmpp_2m_memory(z: DataArray) -> Memory:
    """Return the memory before the first step: one of infinite length, from which nothing is extrapolated.

    >>> dpmpp_2m_memory(jnp.ones((2, 8, 8, 1)))[1]
    Array([inf, inf], dtype=float32)
    """
    dtype = at_least_float32(z.dtype)
    return jnp.zeros(z.shape, dtype), jnp.full(z.shape[:-3], jnp.inf, dtype)


SOLVERS = {
    "ddim": Solver(title="DDIM", velocity=ddim_velocity),
    "addim": Solver(title="aDDIM", velocity=addim_velocity),
    "heun": Solver(title="Heun", velocity=heun_velocity, evaluations=2),
    "dpmpp_2m": Solver(title="DPM-Solver++(2M)", velocity=dpmpp_2m_velocity, start_memory=dpmpp_2m_memory),
}


def get_solver(solver: str | Solver) -> Solver:
    """Return the solver with this name, or a solver of your own as it is.

    Raises:
      InputError: for an unknown name.

    >>> get_solver("heun").evaluations
    2
    """
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        raise InputError(f"Unknown solver {solver!r}; choose one of {list(SOLVERS)}.")
    return SOLVERS[solver]


def single_evaluation(step: Callable[..., DataArray]) -> Step:
    """Make a `Sampler.step` from a function of one prediction, such as `ddim_step`.

    Args:
      step: `step(*, prediction, z, schedule, t, dt, key, **options) -> z`; `key` is omitted if there is none.

    Returns:
      A step that calls the denoiser once, at (z, t), and leaves no memory.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")
    >>> step = single_evaluation(ddim_step)
    >>> z_s, x, _ = step(denoise, z, (), schedule=schedule, t=0.25, dt=0.25, key=None)
    >>> x[0, 0, 0]
    Array([0.5], dtype=float32)
    """

    def evaluate_and_step(denoise, z, memory, *, schedule, t, dt, key, **options):
        prediction = denoise(z, schedule(t))
        if key is not None:
            options["key"] = key
        return step(prediction=prediction, z=z, schedule=schedule, t=t, dt=dt, **options), prediction.x, memory

    return evaluate_and_step


def rotation(solver: Solver) -> Step:
    """Make a `Sampler.step` from a solver.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule, z = schedules.get_logsnr_schedule("cosine"), jnp.ones((1, 8, 8, 1))
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * z, "x")
    >>> z_s, x, _ = rotation(SOLVERS["heun"])(denoise, z, (), schedule=schedule, t=0.25, dt=0.25, key=None)
    >>> x[0, 0, 0]
    Array([0.5], dtype=float32)
    """

    @mixed_precision
    def predict_and_rotate(denoise, z, memory, *, schedule, t, dt, key):
        prediction = denoise(z, schedule(t))
        v, memory = solver.velocity(prediction, denoise, z, memory, schedule=schedule, t=t, dt=dt)
        return rotate(z, v, schedule.angle_step(t, dt)), prediction.x, memory

    return predict_and_rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler: its step, and what pipelines, reports and exports need to know of it.

    Attributes:
      title: name in tables and plots.
      step: `step(denoise, z, memory, *, schedule, t, dt, key, **options) -> (z, x, memory)`, from t to t - dt, both
        scalars. It may call `denoise` more than once, as Heun's method does. `x` is the predicted clean image, for
        trajectories. `memory` is what a step leaves to the next one, such as the previous x in a multistep method.
        `key` is None if `needs_key` is False.
      start_memory: `start_memory(z)` returns the memory before the first step; default `no_memory`.
      evaluations: network evaluations per step; default 1.
      options: keyword arguments of `step` that callers may set, among 'eta', 'logvar_type' and 'sigma_min'; default
        none.
      deterministic: whether the starting noise alone determines the sample, if eta is 0; default False.
      jumps: how many steps of the grid one prediction may cover: an N-step student is sampled in N j steps, with j in
        jumps. None: in any number, as consistency models are. Empty: the sampler is for undistilled models only, since
        a student's DDIM steps need no correction. Default (1,).
    """

    title: str
    step: Step
    start_memory: Callable[[DataArray], Memory] = no_memory
    evaluations: int = 1
    options: tuple[str, ...] = ()
    deterministic: bool = False
    jumps: tuple[int, ...] | None = (1,)

    def needs_key(self, eta: float = 0.0) -> bool:
        """Return whether fresh noise is added at every step.

        >>> SAMPLERS["ddim"].needs_key(), SAMPLERS["ddim"].needs_key(eta=0.5)
        (False, True)
        """
        return not self.deterministic or eta != 0

    def suits(self, student_num_steps: int, num_steps: int) -> bool:
        """Return whether `num_steps` steps have a length that a `student_num_steps`-step student was distilled for.

        >>> SAMPLERS["ddim"].suits(4, num_steps=8), SAMPLERS["stochastic"].suits(4, num_steps=8)
        (False, True)
        """
        return self.jumps is None or student_num_steps in [num_steps // jump for jump in self.jumps]


def _solver_sampler(solver: Solver) -> Sampler:
    return Sampler(
        title=solver.title,
        step=rotation(solver),
        start_memory=solver.start_memory,
        evaluations=solver.evaluations,
        deterministic=True,
        jumps=(),
    )


SAMPLERS = {name: _solver_sampler(solver) for name, solver in SOLVERS.items()} | {
    "ddim": Sampler(title="DDIM", step=single_evaluation(ddim_step), options=("eta",), deterministic=True),
    "ancestral": Sampler(title="ancestral", step=single_evaluation(ancestral_step), options=("logvar_type",)),
    "renoise": Sampler(title="re-noising", step=single_evaluation(renoise_step), options=("sigma_min",), jumps=None),
    "stochastic": Sampler(title="stochastic", step=single_evaluation(stochastic_step), jumps=(1, 2)),
}
SAMPLER_ALIASES = {"noisy": "ancestral"}  # names in the published configs


def sampler_name(name: str) -> str:
    """Return the name in `SAMPLERS` of a sampler that may have its published name, 'noisy' for 'ancestral'.

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
    z: DataArray,
    schedule: Schedule,
    num_steps: Count,
    *,
    key: Keys | None = None,
    start: Float[Array, ""] | float = 1.0,
    trajectory: bool = False,
    **options: Any,
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with any sampler.

    Args:
      sampler: a name in `SAMPLERS`, or a `Sampler` of your own.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; may be traced, unless `trajectory` is set.
      key: random key for the noise of the steps; deterministic samplers ignore it. With one key per example, a sample
        does not depend on the rest of its batch.
      start: time of the first step, in (0, 1]; default 1. See `ddim`.
      trajectory: also return the predicted x of every step; default False.
      **options: keyword arguments of the sampler's step; see `Sampler.options`.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for an unknown sampler, a `num_steps` below 1, or a missing key.

    >>> from diffusion_distillation import diffusion, schedules
    >>> schedule = schedules.get_logsnr_schedule("cosine")
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: 0.5 * jnp.tanh(z), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> x, xs = sample("stochastic", denoise, z, schedule, 4, key=jax.random.key(1), trajectory=True)
    >>> x.shape, xs.shape
    ((2, 8, 8, 1), (4, 2, 8, 8, 1))
    """
    if isinstance(sampler, str):
        sampler = SAMPLERS[sampler_name(sampler)]
    eta = options.get("eta", 0.0)
    check_num_steps(num_steps)
    check_key(sampler, key, eta)
    if not sampler.needs_key(eta):
        key = None
    time_type = at_least_float32(z.dtype)

    def step(carry, i):
        z, memory = carry
        t = schedule.grid_time(i, num_steps, time_type) - (1 - start)
        dt = schedule.grid_step(i, num_steps, time_type)
        step_key = None if key is None else fold_in(key, i)
        z, x, memory = sampler.step(denoise, z, memory, schedule=schedule, t=t, dt=dt, key=step_key, **options)
        return (z, memory), x

    # Step num_steps - 1 comes first, step 0 last.
    carry = (z, sampler.start_memory(z))
    if trajectory:
        (x, _), xs = jax.lax.scan(step, carry, jnp.arange(num_steps)[::-1])
        return x, xs
    x, _ = jax.lax.fori_loop(0, num_steps, lambda k, carry: step(carry, jnp.asarray(num_steps - 1 - k))[0], carry)
    return x


def ddim(
    denoise: Denoiser,
    z: DataArray,
    schedule: Schedule,
    num_steps: Count,
    *,
    eta: float = 0.0,
    key: Keys | None = None,
    start: Float[Array, ""] | float = 1.0,
    trajectory: bool = False,
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with DDIM, deterministically unless eta > 0 (Song et al. 2021).

    Args:
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      eta: share of fresh noise at every step, from 0 to 1; default 0. See `ddim_step`.
      key: random key, needed if eta is not 0. With one key per example, a sample does not depend on the rest of its
        batch.
      start: time of the first step, in (0, 1]; default 1. z is plain noise whatever the start. Steps are 1 / num_steps
        long, and the last one ends at t = 0. For a schedule of T discrete times, diffusers' 'leading' spacing starts at
        1 - 1 / num_steps + 1 / T, and its 'trailing' spacing at 1, if num_steps divides T.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1, or eta without a key.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> ddim(denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=4)[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("ddim", denoise, z, schedule, num_steps, key=key, start=start, trajectory=trajectory, eta=eta)


def ancestral(
    key: Keys,
    denoise: Denoiser,
    z: DataArray,
    schedule: Schedule,
    num_steps: Count,
    logvar_type: str = "fixed_large",
    *,
    trajectory: bool = False,
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with the ancestral sampler of DDPM, which adds fresh noise at every step (Ho et al. 2020).

    Args:
      key: random key. With one key per example, a sample does not depend on the rest of its batch.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      logvar_type: variance of a step: 'fixed_small', 'fixed_large' (default) or 'fixed_medium:f'; see `ancestral_step`.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1 or an unknown `logvar_type`.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> ancestral(jax.random.key(1), denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=4)[:, 0, 0, 0]
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("ancestral", denoise, z, schedule, num_steps, key=key, trajectory=trajectory, logvar_type=logvar_type)


def addim(
    denoise: Denoiser, z: DataArray, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with adjusted DDIM, which is deterministic and for undistilled models (Heek et al. 2024, algorithm 3).

    Args:
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> addim(denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=4)[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("addim", denoise, z, schedule, num_steps, trajectory=trajectory)


def heun(
    denoise: Denoiser, z: DataArray, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with Heun's method, which is deterministic and of second order (Karras et al. 2022, algorithm 1).

    It is for undistilled models. See `heun_velocity`.

    Args:
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called twice per step.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> heun(denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=4)[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("heun", denoise, z, schedule, num_steps, trajectory=trajectory)


def dpmpp_2m(
    denoise: Denoiser, z: DataArray, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with DPM-Solver++(2M), which is deterministic and of second order (Lu et al. 2022, algorithm 2).

    It is for undistilled models. See `dpmpp_2m_velocity`.

    Args:
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> dpmpp_2m(denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=4)[:, 0, 0, 0].round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("dpmpp_2m", denoise, z, schedule, num_steps, trajectory=trajectory)


def renoise(
    key: Keys,
    denoise: Denoiser,
    z: DataArray,
    schedule: Schedule,
    num_steps: Count,
    *,
    sigma_min: float = 0.0,
    trajectory: bool = False,
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample a consistency model in several steps: predict x, add noise, predict x again (Song et al. 2023).

    This is for consistency models of one group. Sample a model of G groups with `ddim` in G steps.

    Args:
      key: random key. With one key per example, a sample does not depend on the rest of its batch.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      sigma_min: `sigma_min` of the denoiser, if its mean_type is 'consistency'; default 0.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> renoise(jax.random.key(1), denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=2)[:, 0, 0, 0]
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("renoise", denoise, z, schedule, num_steps, key=key, trajectory=trajectory, sigma_min=sigma_min)


def stochastic(
    key: Keys, denoise: Denoiser, z: DataArray, schedule: Schedule, num_steps: Count, *, trajectory: bool = False
) -> DataArray | tuple[DataArray, Trajectory]:
    """Sample with steps of twice the length, half undone by noise (Meng et al. 2023, section 3.3).

    Sample an N-step student in N or 2 N steps. With 2 N, each prediction covers 1 / N, as the student has learned.

    Args:
      key: random key. With one key per example, a sample does not depend on the rest of its batch.
      denoise: from `diffusion.make_denoiser`.
      z: standard normal noise, `[batch, height, width, channels]`.
      schedule: the noise schedule.
      num_steps: sampling steps, at least 1; the denoiser is called once per step.
      trajectory: also return the predicted x of every step; default False.

    Returns:
      Images x, unclipped; with `trajectory`, `(x, xs)`.

    Raises:
      InputError: for a `num_steps` below 1.

    >>> from diffusion_distillation import diffusion, schedules
    >>> denoise = diffusion.make_denoiser(lambda z, logsnr: jnp.full_like(z, 0.5), "x")
    >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> stochastic(jax.random.key(1), denoise, z, schedules.get_logsnr_schedule("cosine"), num_steps=8)[:, 0, 0, 0]
    Array([0.5, 0.5], dtype=float32)
    """
    return sample("stochastic", denoise, z, schedule, num_steps, key=key, trajectory=trajectory)


def check_key(sampler: Sampler, key: Keys | None, eta: float = 0.0) -> None:
    """Raise an InputError if a sampler that adds noise at every step has no key.

    >>> check_key(SAMPLERS["ancestral"], None)
    Traceback (most recent call last):
    diffusion_distillation.errors.InputError: The ancestral sampler adds fresh noise at every step. Pass a key, ...
    """
    if key is None and sampler.needs_key(eta):
        name = f"{sampler.title} with eta={eta}" if eta else f"The {sampler.title} sampler"
        raise InputError(f"{name} adds fresh noise at every step. Pass a key, such as key=jax.random.key(0).")


def check_num_steps(num_steps: Count) -> None:
    """Raise an InputError unless the number of sampling steps is an integer of at least 1. Traced numbers pass.

    >>> check_num_steps(0)
    Traceback (most recent call last):
    diffusion_distillation.errors.InputError: num_steps=0 must be an integer of at least 1.
    """
    if isinstance(num_steps, jax.core.Tracer):
        return
    if not jnp.issubdtype(jnp.result_type(num_steps), jnp.integer) or num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be an integer of at least 1.")


def posterior_variance(logvar_type: str) -> str:
    """Return the `variance` of `diffusion.posterior` for a config's logvar_type.

    Args:
      logvar_type: 'fixed_small', 'fixed_large', or 'fixed_medium:f' with 0 <= f <= 1.

    Raises:
      InputError: for another `logvar_type`.

    >>> posterior_variance("fixed_medium:0.5")
    'medium:0.5'
    """
    fixed, _, variance = logvar_type.partition("_")
    if fixed != "fixed" or variance.partition(":")[0] not in ("small", "large", "medium"):
        raise InputError(
            f"Unknown logvar_type {logvar_type!r}; choose 'fixed_small', 'fixed_large', or 'fixed_medium:f' "
            "with 0 <= f <= 1."
        )
    if variance not in ("small", "large"):
        medium_fraction(variance)
    return variance
