"""Noise schedules: how much of the signal is left at time t.

The process is variance preserving, z = alpha x + sigma eps with alpha = cos(phi) and sigma = sin(phi). Time runs from
t = 0 (data) to t = 1 (noise). A schedule knows three things about it:

* `schedule(t)`, the log signal-to-noise ratio log(alpha^2 / sigma^2), which conditions the network;
* `schedule.angle(t)`, the angle phi;
* `schedule.angle_step(t, dt)`, the angle phi(t) - phi(t - dt) by which a DDIM step turns z.

The last is not left to a subtraction: in float32, at 8192 steps, that would keep four of the seven digits.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError
from .registry import check_arguments
from .shapes import Array, Times, at_least_float32

MOST_STEPS = 2**20  # of a discrete schedule


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
        early = t <= 0.5
        from_data = self._slope * jnp.where(early, t, 0.5) + _angle_of(self.logsnr_max)
        from_noise = self._slope * (1 - jnp.where(early, 0.5, t)) + _angle_of(-self.logsnr_min)
        return 2 * jnp.where(early, -jnp.log(jnp.tan(from_data)), jnp.log(jnp.tan(from_noise)))

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

    Raises:
      InputError: if offset is negative.
    """

    offset: float = 0.008

    def __post_init__(self):
        if not self.offset >= 0:
            raise InputError(f"The 'nichol_dhariwal' schedule needs offset >= 0; got offset={self.offset}.")

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
        s = bounded(t - dt, 0.0, math.inf)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._alpha_sigma(t), self._alpha_sigma(s)
        (cos_t, sin_t), (cos_s, sin_s) = self._cos_sin(t), self._cos_sin(s)
        # sin(phi_t - phi_s) = (sin^2 phi_t - sin^2 phi_s) / sin(phi_t + phi_s), and the squares differ by
        # (cos^2 c_s - cos^2 c_t) / cos^2 b = sin(c_t - c_s) sin(c_t + c_s) / cos^2 b. The sines of sums are written
        # out: all their terms are positive, where the sine of a float32 sum next to pi has few digits.
        difference = bounded(dt - jnp.maximum(self._rest - (1 - t), 0), 0.0, math.inf)
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


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The schedule of networks that were trained at T discrete times (Ho et al. 2020), by its betas.

    Step i of theirs, 0 <= i < T, is time (i + 1) / T here, where alpha^2 is the product of 1 - beta up to step i, with
    betas and products rounded to float32 as diffusers has them. Between these times the log-SNR is linear in time, and
    so decreases everywhere; from the first of them to t = 0 it rises to 20. A time within float32's rounding of one
    of the T times counts as that time. The derivative there is that of the piece that begins at this time; at t = 1, it
    is that of the last piece.

    Attributes:
      betas: 'linear', 'scaled_linear' (of the root), 'sigmoid', from beta_start to beta_end; 'squaredcos_cap_v2',
        Nichol & Dhariwal's cosine with betas of 0.999 at most; or T numbers between 0 and 1.
      num_steps: T, where betas is a name.
      beta_start: the first beta.
      beta_end: the last.

    Raises:
      InputError: for other betas, or such as leave no signal or take no step in float32.
    """

    betas: str | Sequence[float] = "linear"
    num_steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02

    def __post_init__(self):
        if not isinstance(self.betas, str):
            object.__setattr__(self, "betas", tuple(self.betas))
            object.__setattr__(self, "num_steps", len(self.betas))
        if not 1 <= self.num_steps <= MOST_STEPS:
            raise InputError(
                f"The 'discrete' schedule needs 1 to {MOST_STEPS:,} steps; got num_steps={self.num_steps}."
            )
        products = self.alphas_cumprod
        if not (products[-1] > 0 and products[0] < 1 and np.all(np.diff(products) < 0)):  # nor with NaN
            raise InputError(
                f"The 'discrete' schedule with betas={str(self.betas)[:50]}, num_steps={self.num_steps}, beta_start="
                f"{self.beta_start}, beta_end={self.beta_end} has steps that leave no signal, or add no noise, in "
                "float32: betas must be above 0 and below 1."
            )

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha^2 at each of the T times, float32."""
        return np.cumprod((1 - _betas(self)).astype(np.float64)).astype(np.float32)

    def __call__(self, t: Times) -> Array:
        """See `Schedule`."""
        t = _as_time(t)
        return self._logsnr(*self._cell(t))

    def angle(self, t: Times) -> Array:
        """See `Schedule`."""
        return jnp.arctan(jnp.exp(-0.5 * self(t)))

    def angle_step(self, t: Times, dt: Times) -> Array:
        """See `Schedule`."""
        t, dt = _as_time(t), _as_time(dt)
        cell_t, part_t = self._cell(t)
        cell_s, part_s = self._before(cell_t, part_t, dt)
        # tan(phi_t - phi_s) = sinh((logsnr_s - logsnr_t) / 4) / cosh((logsnr_s + logsnr_t) / 4)
        high, low = self._knots(t.dtype)
        slope_t, slope_s = (self._slopes(t.dtype)[cell] for cell in (cell_t, cell_s))
        decrease = (high[cell_s] - high[cell_t]) + (low[cell_s] - low[cell_t])
        # within a cell, of the difference of the parts alone
        decrease += jnp.where(cell_t == cell_s, slope_t * (part_s - part_t), slope_s * part_s - slope_t * part_t)
        both = self._logsnr(cell_s, part_s) + self._logsnr(cell_t, part_t)
        step = jnp.arctan(jnp.sinh(0.25 * decrease) / jnp.cosh(0.25 * both))
        return jnp.where(t <= dt, self.angle(t), step)

    def step(self, logsnr: Times) -> Array:
        """The number of their step with this log-SNR, an integer at their times; from -1 at t = 0 to T - 1."""
        logsnr = _as_time(logsnr)
        knots, _ = self._knots(logsnr.dtype)
        logsnr = bounded(logsnr, self._logsnrs[-1].item(), self._logsnrs[0].item())
        return jnp.interp(-logsnr, -knots, np.arange(-1, self.num_steps, dtype=logsnr.dtype))

    def _cell(self, t: Array) -> tuple[Array, Array]:
        """Between which times t lies: T t as an integer and a part, in [0, 1)."""
        # T t to the last digit of t, by its first 11 bits and the rest
        first = jnp.round(t * 2048) / 2048
        whole = jnp.round(self.num_steps * first)
        rest = (self.num_steps * first - whole) + self.num_steps * (t - first)
        return self._normal(whole, rest)

    def _before(self, cell: Array, part: Array, dt: Array) -> tuple[Array, Array]:
        """The same of t - dt, from that of t."""
        steps = self.num_steps * dt
        whole = jnp.round(steps)
        return self._normal(cell.astype(part.dtype) - whole, part - (steps - whole))

    def _normal(self, whole: Array, rest: Array) -> tuple[Array, Array]:
        nearest, moved = jnp.round(rest), rest - jax.lax.stop_gradient(rest)  # moved is 0, with the derivative of rest
        near = jnp.abs(rest - nearest) <= 2 * self.num_steps * jnp.finfo(rest.dtype).eps
        rest = jnp.where(near, nearest + moved, rest)
        cell = jnp.clip(whole + jnp.floor(rest), 0, self.num_steps - 1)
        return cell.astype(jnp.int32), bounded((whole - cell) + rest, 0.0, 1.0)

    def _logsnr(self, cell: Array, part: Array) -> Array:
        return self._knots(part.dtype)[0][cell] + part * self._slopes(part.dtype)[cell]

    def _knots(self, dtype) -> tuple[Array, Array]:
        """Log-SNR at t = 0, 1 / T, ..., 1: rounded, and what rounding took."""
        high = self._logsnrs.astype(dtype)
        return jnp.asarray(high), jnp.asarray((self._logsnrs - high).astype(dtype))

    def _slopes(self, dtype) -> Array:
        return jnp.asarray(np.diff(self._logsnrs).astype(dtype))

    @functools.cached_property
    def _logsnrs(self) -> np.ndarray:
        products = self.alphas_cumprod.astype(np.float64)
        return np.concatenate([[20.0], np.log(products) - np.log1p(-products)])


def _betas(schedule: Discrete) -> np.ndarray:
    """In float32, by float32 arithmetic as far as it is theirs."""
    num_steps, start, end = schedule.num_steps, schedule.beta_start, schedule.beta_end
    match schedule.betas:
        case "linear":
            return _linspace(start, end, num_steps)
        case "scaled_linear":
            return _linspace(start**0.5, end**0.5, num_steps) ** 2
        case "sigmoid":
            rising = 1 / (1 + np.exp(-_linspace(-6.0, 6.0, num_steps).astype(np.float64)))
            return rising.astype(np.float32) * np.float32(end - start) + np.float32(start)
        case "squaredcos_cap_v2":
            product = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - product[1:] / product[:-1], 0.999).astype(np.float32)
        case str(name):
            names = ["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"]
            raise InputError(f"The 'discrete' schedule has no betas={name!r}; choose one of {names}, or give numbers.")
    return np.array(schedule.betas, np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """From both ends to the middle, as PyTorch does it in float32."""
    first, last, i = np.float32(start), np.float32(end), np.arange(count)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


SCHEDULES = {"cosine": Cosine, "nichol_dhariwal": NicholDhariwal, "discrete": Discrete}


def get_logsnr_schedule(name: str, **kwargs: Any) -> Schedule:
    """The schedule called `name`, as configs spell it: `get_logsnr_schedule('cosine', logsnr_min=-20, logsnr_max=20)`.

    Args:
      name: 'cosine', 'nichol_dhariwal' or 'discrete'.
      **kwargs: the schedule's attributes, see `Cosine`, `NicholDhariwal` and `Discrete`.

    Returns:
      A `Schedule`; called with t in [0, 1] it gives log(alpha^2 / sigma^2).

    Raises:
      InputError: for an unknown name or attribute, or an attribute of another type or out of its range.
    """
    if name not in SCHEDULES:
        raise InputError(f"Unknown logsnr schedule {name!r}; choose one of {sorted(SCHEDULES)}.")
    allowed = [field.name for field in dataclasses.fields(SCHEDULES[name])]
    if unknown := sorted(set(kwargs) - set(allowed)):
        raise InputError(f"The {name!r} schedule has no {', '.join(map(repr, unknown))}; it takes {allowed}.")
    check_arguments(SCHEDULES[name], kwargs)
    return SCHEDULES[name](**kwargs)


def time_of(schedule: Schedule, logsnr: Times) -> Array:
    """The time at which a schedule has this log signal-to-noise ratio, by bisection; 0 or 1 where it never has."""

    @jax.custom_jvp
    def bisect(logsnr):
        def halve(_, bounds):
            below, above = bounds
            middle = 0.5 * (below + above)
            earlier = schedule(middle) > logsnr
            return jnp.where(earlier, middle, below), jnp.where(earlier, above, middle)

        _, above = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(logsnr), jnp.ones_like(logsnr)))
        return jnp.where(logsnr >= schedule(jnp.zeros_like(logsnr)), 0, above)

    @bisect.defjvp
    def derivative(primals, tangents):
        t = bisect(*primals)
        found, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
        rounding = 4 * jnp.finfo(t.dtype).eps * (jnp.abs(slope) + jnp.abs(found))
        has_it = jnp.abs(found - primals[0]) <= rounding  # else t is at an end
        return t, jnp.where(has_it, tangents[0] / slope, 0)

    return bisect(_as_time(logsnr))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def bounded(x: Times, low: float, high: float) -> Array:
    """`jnp.clip`, but its derivative at the bounds and within rounding of them is 1, as inside. JAX has 1/2 there."""
    return jnp.clip(x, low, high)


@bounded.defjvp
def _derivative(low, high, primals, tangents):
    [x], [dx] = primals, tangents
    held = jnp.clip(x, low, high)
    return held, jnp.where(jnp.abs(x - held) <= 4 * jnp.finfo(x.dtype).eps * jnp.abs(held), dx, 0)


def _angle_of(logsnr: float) -> float:
    return math.atan(math.exp(-0.5 * logsnr))


def _as_time(t: Times) -> Array:
    """Time in at least float32: bfloat16 cannot tell neighbouring steps apart."""
    t = jnp.asarray(t)
    return t.astype(at_least_float32(t.dtype))
