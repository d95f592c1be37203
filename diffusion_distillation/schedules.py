"""Noise schedules: how much of the signal is left at time t.

The process is variance preserving, z = alpha x + sigma eps with alpha = cos(phi) and sigma = sin(phi). Time runs from
t = 0 (data) to t = 1 (noise). A schedule knows three things about it:

* `schedule(t)`, the log signal-to-noise ratio log(alpha^2 / sigma^2), which conditions the network;
* `schedule.angle(t)`, the angle phi;
* `schedule.angle_step(t, dt)`, the angle phi(t) - phi(t - dt) by which a DDIM step turns z.

The last is not left to a subtraction: in float32, at 8192 steps, that would keep four of the seven digits.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from .errors import InputError
from .shapes import Array, Times


@runtime_checkable
class Schedule(Protocol):
    """What samplers, losses and distillation ask of a schedule; a class of your own with these three will do."""

    def __call__(self, t: Times) -> Array:
        """Log signal-to-noise ratio at time t, shaped as t."""

    def angle(self, t: Times) -> Array:
        """Angle phi in radians at time t: alpha = cos(phi), sigma = sin(phi)."""

    def angle_step(self, t: Times, dt: Times) -> Array:
        """Angle phi(t) - phi(t - dt) in radians of the step from t to t - dt.

        A step that ends at time 0 turns all the way to phi = 0, not to the schedule's smallest angle, and so lands on
        the predicted x. The published code's two special cases, a sampler's last step that returns x and a
        distillation target that is the teacher's x, are both this one.
        """


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Cosine schedule between two log-SNRs: logsnr(t) = -2 log tan(a t + b) (Salimans & Ho 2022, appendix C).

    The angle a t + b is linear in time. Attributes are the log-SNRs at t = 1 and at t = 0.

    Raises:
      InputError: if logsnr_min is not below logsnr_max.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise InputError(
                f"The 'cosine' schedule needs logsnr_min < logsnr_max; "
                f"got logsnr_min={self.logsnr_min}, logsnr_max={self.logsnr_max}."
            )

    def __call__(self, t: Times) -> Array:
        """See `Schedule`."""
        t = _as_time(t)
        # A tangent near pi/2 keeps few digits, so past the middle the angle is measured from pi/2 instead.
        from_data = self._slope * jnp.minimum(t, 0.5) + _angle_of(self.logsnr_max)
        from_noise = self._slope * (1 - jnp.maximum(t, 0.5)) + _angle_of(-self.logsnr_min)
        return 2 * jnp.where(t <= 0.5, -jnp.log(jnp.tan(from_data)), jnp.log(jnp.tan(from_noise)))

    def angle(self, t: Times) -> Array:
        """See `Schedule`."""
        return self._slope * _as_time(t) + _angle_of(self.logsnr_max)

    def angle_step(self, t: Times, dt: Times) -> Array:
        """See `Schedule`: here the slope times dt."""
        return jnp.where(t <= dt, self.angle(t), self._slope * _as_time(dt))

    @property
    def _slope(self) -> float:
        return _angle_of(self.logsnr_min) - _angle_of(self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class NicholDhariwal:
    """Cosine schedule of Nichol & Dhariwal (2021, equation 17) in continuous time.

    alpha(t)^2 = cos^2(c) / cos^2(b) with c = a t + b, a = (pi/2) / (1 + s) and b = a s; the attribute `offset` is s.

    Over 1000 discrete steps their bound beta <= 0.999 acts on the last alone and leaves
    alpha(1)^2 = 0.001 alpha(0.999)^2, a log-SNR of -19.8; here alpha stops where it gets there. At t = 0, where no
    noise is left, the log-SNR is held at 20 (this acts below t = 1e-7).
    """

    offset: float = 0.008

    def __call__(self, t: Times) -> Array:
        """See `Schedule`."""
        alpha, sigma = self._alpha_sigma(_as_time(t))
        return 2 * jnp.log(alpha / sigma)

    def angle(self, t: Times) -> Array:
        """See `Schedule`."""
        alpha, sigma = self._alpha_sigma(_as_time(t))
        return jnp.arctan2(sigma, alpha)

    def angle_step(self, t: Times, dt: Times) -> Array:
        """See `Schedule`."""
        t, dt = _as_time(t), _as_time(dt)
        s = jnp.maximum(t - dt, 0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._alpha_sigma(t), self._alpha_sigma(s)
        (cos_t, sin_t), (cos_s, sin_s) = self._cos_sin(t), self._cos_sin(s)
        # sin(phi_t - phi_s) = (sin^2 phi_t - sin^2 phi_s) / sin(phi_t + phi_s), and the squares differ by
        # (cos^2 c_s - cos^2 c_t) / cos^2 b = sin(c_t - c_s) sin(c_t + c_s) / cos^2 b. The sines of sums are written
        # out: all their terms are positive, where the sine of a float32 sum next to pi has few digits.
        difference = jnp.maximum(dt - jnp.maximum(self._rest - (1 - t), 0), 0)
        squares = jnp.sin(self._a * difference) * (sin_t * cos_s + cos_t * sin_s) / math.cos(self._b) ** 2
        sin = squares / (sigma_t * alpha_s + alpha_t * sigma_s)
        cos = alpha_t * alpha_s + sigma_t * sigma_s
        return jnp.where(t <= dt, self.angle(t), jnp.arctan2(sin, cos))

    def _alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        alpha = self._cos_sin(t)[0] / math.cos(self._b)
        # sigma^2 = 1 - cos^2 c / cos^2 b = sin(c - b) sin(c + b) / cos^2 b
        turned = self._a * jnp.minimum(t, 1 - self._rest)
        sigma2 = jnp.sin(turned) * jnp.sin(turned + 2 * self._b) / math.cos(self._b) ** 2
        return alpha, jnp.sqrt(jnp.maximum(sigma2, math.exp(-20)))

    def _cos_sin(self, t: Array) -> tuple[Array, Array]:
        """cos(c) and sin(c); cos(c) as sin(pi/2 - c) = sin(a (1 - t)), which keeps its digits next to t = 1."""
        cos = jnp.sin(self._a * jnp.maximum(1 - t, self._rest))
        return cos, jnp.sin(self._a * jnp.minimum(t, 1 - self._rest) + self._b)

    @property
    def _a(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _b(self) -> float:
        return self._a * self.offset

    @property
    def _rest(self) -> float:
        """The time left where beta's bound stops alpha: there cos(c)^2 = 0.001 cos(c(0.999))^2."""
        return math.asin(math.sqrt(0.001) * math.sin(0.001 * self._a)) / self._a


SCHEDULES = {"cosine": Cosine, "nichol_dhariwal": NicholDhariwal}


def get_logsnr_schedule(name: str, **kwargs) -> Schedule:
    """The schedule called `name`, as configs spell it: `get_logsnr_schedule('cosine', logsnr_min=-20, logsnr_max=20)`.

    Args:
      name: 'cosine' or 'nichol_dhariwal'.
      **kwargs: the schedule's attributes, see `Cosine` and `NicholDhariwal`.

    Returns:
      A `Schedule`; called with t in [0, 1] it gives log(alpha^2 / sigma^2).

    Raises:
      InputError: for an unknown name or attribute.
    """
    if name not in SCHEDULES:
        raise InputError(f"Unknown logsnr schedule {name!r}; choose one of {sorted(SCHEDULES)}.")
    allowed = [field.name for field in dataclasses.fields(SCHEDULES[name])]
    if unknown := sorted(set(kwargs) - set(allowed)):
        raise InputError(f"The {name!r} schedule has no {', '.join(map(repr, unknown))}; it takes {allowed}.")
    return SCHEDULES[name](**kwargs)


def time_of(schedule: Schedule, logsnr: Times) -> Array:
    """The time at which a schedule has this log signal-to-noise ratio, by bisection; 0 or 1 where it never has."""
    logsnr = _as_time(logsnr)
    below, above = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)

    def halve(_, bounds):
        below, above = bounds
        middle = 0.5 * (below + above)
        earlier = schedule(middle) > logsnr
        return jnp.where(earlier, middle, below), jnp.where(earlier, above, middle)

    below, above = jax.lax.fori_loop(0, 40, halve, (below, above))
    return jnp.where(logsnr >= schedule(jnp.zeros_like(logsnr)), 0, above)


def _angle_of(logsnr: float) -> float:
    return math.atan(math.exp(-0.5 * logsnr))


def _as_time(t: Times) -> Array:
    """Time in at least float32: bfloat16 cannot tell neighbouring steps apart."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))
