"""Noise schedules: how much signal and how much noise z holds at time t.

The process is variance preserving, z = alpha x + sigma eps with alpha = cos(phi) and sigma = sin(phi). Time runs from
t = 0 (data) to t = 1 (noise). A schedule computes

* `schedule(t)`, the log signal-to-noise ratio log(alpha^2 / sigma^2), which conditions the network;
* `schedule.angle(t)`, the angle phi;
* `schedule.angle_step(t, dt)`, the angle phi(t) - phi(t - dt) by which a DDIM step turns z;
* `schedule.grid_time(i, num_steps)` and `schedule.grid_step(i, num_steps)`, the time at which a sampler's step i starts
  and the length of this step.

`angle_step` is a function of its own because subtracting two angles in float32 keeps four of seven digits at 8192
steps.

Times are scalars or `[batch]`, and results are shaped as their arguments. Times are computed in at least float32:
bfloat16 cannot tell neighboring steps apart.
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
from .shapes import Array, Count, ScalarOrBatch, StepIndex, at_least_float32

MAX_STEPS = 2**20  # the most steps of a discrete schedule
SPACINGS = ("trailing", "leading", "linspace")  # of the steps of a discrete schedule


@runtime_checkable
class Schedule(Protocol):
    """The interface of noise schedules. Subclass it and define the first three methods to use a schedule of your own.

    >>> class Linear(Schedule):  # phi = t pi / 2
    ...     def __call__(self, t):
    ...         return -2 * jnp.log(jnp.tan(self.angle(t)))
    ...     def angle(self, t):
    ...         return 0.5 * jnp.pi * jnp.clip(t, 1e-4, 1 - 1e-4)
    ...     def angle_step(self, t, dt):
    ...         return jnp.where(t <= dt, self.angle(t), 0.5 * jnp.pi * dt)
    >>> Linear().grid_time(jnp.arange(4), 4)
    Array([0.25, 0.5 , 0.75, 1.  ], dtype=float32)
    """

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians: alpha = cos(phi), sigma = sin(phi)."""

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the angle phi(t) - phi(t - dt) in radians of a step from t to t - dt.

        A step that ends at time 0 turns all the way to phi = 0, not to the schedule's smallest angle, so that it ends
        on the predicted x. This covers both special cases of the published code: a sampler's last step returns x, and
        the distillation target at the last step is the teacher's x.
        """

    def grid_time(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the time at which step i of a `num_steps`-step sampler starts: (i + 1) / num_steps.

        Args:
          i: index of the step, from num_steps - 1 (the first, at t = 1) to 0 (the last); a scalar or `[batch]`.
          num_steps: sampling steps; may be traced.
          dtype: of the time; default float32, whatever `jax_enable_x64` is.
        """
        # XLA rewrites `a / b` as `a * (1 / b)` in some programs. Written so, all programs round alike.
        return (jnp.asarray(i) + 1).astype(dtype) * (1 / jnp.asarray(num_steps, dtype))

    def grid_step(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the length of step i of a `num_steps`-step sampler in time: 1 / num_steps.

        Args:
          i: index of the step, from num_steps - 1 (the first) to 0 (the last, which ends at t = 0).
          num_steps: sampling steps; may be traced.
          dtype: of the length; default float32.
        """
        return jnp.broadcast_to(1 / jnp.asarray(num_steps, dtype), jnp.shape(i))

    @property
    def grids_nest(self) -> bool:
        """Whether the grid of k N steps contains the grid of N steps, as halving the steps of a student requires."""
        return True


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine schedule between two log-SNRs: logsnr(t) = -2 log tan(a t + b) (Salimans & Ho 2022, appendix C).

    The angle a t + b is linear in time.

    Attributes:
      logsnr_min: log-SNR at t = 1; default -20.
      logsnr_max: log-SNR at t = 0, above logsnr_min; default 20.

    Raises:
      InputError: if logsnr_min is not below logsnr_max.

    >>> schedule = Cosine()
    >>> [round(logsnr, 2) for logsnr in schedule(jnp.array([0.0, 0.25, 1.0])).tolist()]
    [20.0, 1.76, -20.0]
    >>> schedule.angle_step(t=0.5, dt=0.25)  # pi / 8
    Array(0.392..., dtype=float32...)
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise InputError(
                f"The 'cosine' schedule needs logsnr_min < logsnr_max; "
                f"got logsnr_min={self.logsnr_min}, logsnr_max={self.logsnr_max}."
            )

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""
        t = _as_time(t)
        # A tangent near pi/2 keeps few digits. Past the middle, measure the angle from pi/2 instead.
        is_early = t <= 0.5
        from_data = self._slope * jnp.where(is_early, t, 0.5) + _angle_of(self.logsnr_max)
        from_noise = self._slope * (1 - jnp.where(is_early, 0.5, t)) + _angle_of(-self.logsnr_min)
        return 2 * jnp.where(is_early, -jnp.log(jnp.tan(from_data)), jnp.log(jnp.tan(from_noise)))

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians."""
        return self._slope * _as_time(t) + _angle_of(self.logsnr_max)

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the slope times dt; see `Schedule.angle_step`."""
        return jnp.where(t <= dt, self.angle(t), self._slope * _as_time(dt))

    @property
    def _slope(self) -> float:
        return _angle_of(self.logsnr_min) - _angle_of(self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class NicholDhariwal(Schedule):
    """Cosine schedule of Nichol & Dhariwal (2021, equation 17) in continuous time.

    alpha(t)^2 = cos^2(c) / cos^2(b) with c = a t + b, a = (pi/2) / (1 + s) and b = a s.

    With 1000 discrete steps, the paper's bound beta <= 0.999 changes the last step alone and leaves
    alpha(1)^2 = 0.001 alpha(0.999)^2, a log-SNR of -19.8. Here alpha stops decreasing at this value. The log-SNR is at
    most 20, which it reaches below t = 1e-7.

    Attributes:
      offset: the paper's s, at least 0; default 0.008.

    Raises:
      InputError: if offset is negative.

    >>> [round(logsnr, 2) for logsnr in NicholDhariwal()(jnp.array([0.0, 0.25, 1.0])).tolist()]
    [20.0, 1.71, -19.84]
    """

    offset: float = 0.008

    def __post_init__(self):
        if not self.offset >= 0:
            raise InputError(f"The 'nichol_dhariwal' schedule needs offset >= 0; got offset={self.offset}.")

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""
        alpha, sigma = self._alpha_sigma(_as_time(t))
        return 2 * jnp.log(alpha / sigma)

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians."""
        alpha, sigma = self._alpha_sigma(_as_time(t))
        return jnp.arctan2(sigma, alpha)

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the angle from t to t - dt in radians; see `Schedule.angle_step`."""
        t = _as_time(t)
        dt = _as_time(dt)
        s = bounded(t - dt, 0.0, math.inf)
        alpha_t, sigma_t = self._alpha_sigma(t)
        alpha_s, sigma_s = self._alpha_sigma(s)
        cos_t, sin_t = self._cos_sin(t)
        cos_s, sin_s = self._cos_sin(s)
        # sin(phi_t - phi_s) = (sin^2 phi_t - sin^2 phi_s) / sin(phi_t + phi_s), and the squares differ by
        # (cos^2 c_s - cos^2 c_t) / cos^2 b = sin(c_t - c_s) sin(c_t + c_s) / cos^2 b. Write out the sines of sums:
        # all their terms are positive, while the sine of a float32 sum next to pi has few digits.
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
        """Return cos(c) and sin(c), cos(c) as sin(pi/2 - c) = sin(a (1 - t)), which keeps its digits next to t = 1."""
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
        """The value of 1 - t from which beta's bound stops alpha: there cos(c)^2 = 0.001 cos(c(0.999))^2."""
        return math.asin(math.sqrt(0.001) * math.sin(0.001 * self._a)) / self._a


@dataclasses.dataclass(frozen=True)
class Discrete(Schedule):
    """Schedule of networks that were trained at T discrete times, by their betas (Ho et al. 2020).

    Step i of the training, 0 <= i < T, is time (i + 1) / T. There alpha^2 is the product of 1 - beta up to step i, with
    betas and products rounded to float32 as in diffusers. Between these times the log-SNR is linear in time; from the
    first of them to t = 0 it rises to 20. A time within float32's rounding of one of the T times counts as that time.
    At each of the T times, the derivative is taken in the piece that follows; at t = 1, in the last piece.

    Attributes:
      betas: 'linear', 'scaled_linear' (linear in the square root) or 'sigmoid', from beta_start to beta_end;
        'squaredcos_cap_v2', Nichol & Dhariwal's cosine with betas of at most 0.999; or T numbers between 0 and 1.
        Default 'linear'.
      num_steps: T, if betas is a name; default 1000.
      beta_start: the first beta; default 0.0001.
      beta_end: the last beta; default 0.02.
      spacing: the training steps at which a sampler of N steps starts its steps (Lin et al. 2023, table 2): 'trailing',
        every (T / N)th from T - 1 down, which are the times (i + 1) / N; 'leading', every (T // N)th from 0 up; or
        'linspace', N evenly spaced ones from T - 1 down to 0. Only the grids of 'trailing' nest. Default 'trailing'.
      steps_offset: for 'leading', the training step to count from instead of 0; default 0.
      skip_last: for 'leading' and 'linspace', use the grid of N + 1 steps without the start of its last step, as
        DPM-Solver does in diffusers; default False.

    Raises:
      InputError: for unknown betas, betas that leave no signal or add no noise in float32, or a grid that is unknown or
        out of range.

    >>> schedule = Discrete()
    >>> schedule.step(schedule(jnp.array([0.001, 0.5, 1.0]))).round()
    Array([  0., 499., 999.], dtype=float32)
    """

    betas: str | Sequence[float] = "linear"
    num_steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    spacing: str = "trailing"
    steps_offset: int = 0
    skip_last: bool = False

    def __post_init__(self):
        if not isinstance(self.betas, str):
            object.__setattr__(self, "betas", tuple(self.betas))
            object.__setattr__(self, "num_steps", len(self.betas))
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise InputError(f"The 'discrete' schedule needs 1 to {MAX_STEPS:,} steps; got num_steps={self.num_steps}.")
        products = self.alphas_cumprod
        if not (products[-1] > 0 and products[0] < 1 and np.all(np.diff(products) < 0)):  # True for NaN too
            raise InputError(
                f"The 'discrete' schedule with betas={str(self.betas)[:50]}, num_steps={self.num_steps}, beta_start="
                f"{self.beta_start}, beta_end={self.beta_end} has steps that leave no signal or add no noise in "
                "float32: betas must be above 0 and below 1."
            )
        if self.spacing not in SPACINGS:
            raise InputError(f"The 'discrete' schedule has no spacing={self.spacing!r}; choose one of {SPACINGS}.")
        if not 0 <= self.steps_offset < self.num_steps:
            raise InputError(
                f"steps_offset={self.steps_offset} of the 'discrete' schedule must be from 0 to {self.num_steps - 1}."
            )

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha^2 at each of the T times, `[T]`, float32."""
        return np.cumprod((1 - _betas(self)).astype(np.float64)).astype(np.float32)

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""
        t = _as_time(t)
        return self._logsnr(*self._cell(t))

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians."""
        return jnp.arctan(jnp.exp(-0.5 * self(t)))

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the angle from t to t - dt in radians; see `Schedule.angle_step`."""
        t = _as_time(t)
        dt = _as_time(dt)
        cell_t, part_t = self._cell(t)
        cell_s, part_s = self._before(cell_t, part_t, dt)
        # tan(phi_t - phi_s) = sinh((logsnr_s - logsnr_t) / 4) / cosh((logsnr_s + logsnr_t) / 4)
        high, low = self._knots(t.dtype)
        slopes = self._slopes(t.dtype)
        slope_t = slopes[cell_t]
        slope_s = slopes[cell_s]
        decrease = (high[cell_s] - high[cell_t]) + (low[cell_s] - low[cell_t])
        # Within one cell, subtract the parts before multiplying, which keeps the digits of a short step.
        decrease += jnp.where(cell_t == cell_s, slope_t * (part_s - part_t), slope_s * part_s - slope_t * part_t)
        both = self._logsnr(cell_s, part_s) + self._logsnr(cell_t, part_t)
        step = jnp.arctan(jnp.sinh(0.25 * decrease) / jnp.cosh(0.25 * both))
        return jnp.where(t <= dt, self.angle(t), step)

    def grid_time(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the time at which step i of a `num_steps`-step sampler starts; see `Schedule.grid_time`."""
        if self.grids_nest:
            return super().grid_time(i, num_steps, dtype)
        return self._start(i, num_steps, dtype) * (1 / jnp.asarray(self.num_steps, dtype))

    def grid_step(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the length of step i of a `num_steps`-step sampler in time; see `Schedule.grid_step`."""
        if self.grids_nest:
            return super().grid_step(i, num_steps, dtype)
        i = jnp.asarray(i)
        end = jnp.where(i > 0, self._start(i - 1, num_steps, dtype), 0)
        return (self._start(i, num_steps, dtype) - end) * (1 / jnp.asarray(self.num_steps, dtype))

    @property
    def grids_nest(self) -> bool:
        """Whether the grid of k N steps contains the grid of N steps: only with spacing='trailing'."""
        return self.spacing == "trailing"

    def _start(self, i: StepIndex, num_steps: Count, dtype: Any) -> Array:
        """The training step at which step i of a sampler starts, counted from 1."""
        i = (jnp.asarray(i) + int(self.skip_last)).astype(dtype)
        count = jnp.asarray(num_steps) + int(self.skip_last)
        if self.spacing == "linspace":
            every = (self.num_steps - 1) / jnp.maximum(count - 1, 1).astype(dtype)
            return self.num_steps - (count.astype(dtype) - 1 - i) * every
        every = (self.num_steps // count).astype(dtype)
        every = jnp.where(every > 0, every, self.num_steps / count.astype(dtype))  # for more steps than there are
        return jnp.minimum(self.steps_offset + 1 + i * every, self.num_steps)

    def step(self, logsnr: ScalarOrBatch) -> Array:
        """Return the training step that has this log-SNR, from -1 at t = 0 to T - 1; fractional between the steps.

        Args:
          logsnr: log-SNR, a scalar or `[batch]`.
        """
        logsnr = _as_time(logsnr)
        knots, _ = self._knots(logsnr.dtype)
        logsnr = bounded(logsnr, self._logsnrs[-1].item(), self._logsnrs[0].item())
        return jnp.interp(-logsnr, -knots, np.arange(-1, self.num_steps, dtype=logsnr.dtype))

    def _cell(self, t: Array) -> tuple[Array, Array]:
        """Split T t into an integer and a fraction in [0, 1)."""
        # Multiply the first 11 bits of t and the rest one by one, which is exact to the last digit of t.
        first = jnp.round(t * 2048) / 2048
        whole = jnp.round(self.num_steps * first)
        rest = (self.num_steps * first - whole) + self.num_steps * (t - first)
        return self._normal(whole, rest)

    def _before(self, cell: Array, part: Array, dt: Array) -> tuple[Array, Array]:
        """Split T (t - dt) in the same way, given the parts of T t."""
        steps = self.num_steps * dt
        whole = jnp.round(steps)
        return self._normal(cell.astype(part.dtype) - whole, part - (steps - whole))

    def _normal(self, whole: Array, rest: Array) -> tuple[Array, Array]:
        nearest = jnp.round(rest)
        zero = rest - jax.lax.stop_gradient(rest)  # 0, with the derivative of `rest`
        is_near = jnp.abs(rest - nearest) <= 2 * self.num_steps * jnp.finfo(rest.dtype).eps
        rest = jnp.where(is_near, nearest + zero, rest)
        cell = jnp.clip(whole + jnp.floor(rest), 0, self.num_steps - 1)
        return cell.astype(jnp.int32), bounded((whole - cell) + rest, 0.0, 1.0)

    def _logsnr(self, cell: Array, part: Array) -> Array:
        return self._knots(part.dtype)[0][cell] + part * self._slopes(part.dtype)[cell]

    def _knots(self, dtype) -> tuple[Array, Array]:
        """Return the log-SNR at t = 0, 1 / T, ..., 1, rounded to `dtype`, and the rounding errors."""
        high = self._logsnrs.astype(dtype)
        return jnp.asarray(high), jnp.asarray((self._logsnrs - high).astype(dtype))

    def _slopes(self, dtype) -> Array:
        return jnp.asarray(np.diff(self._logsnrs).astype(dtype))

    @functools.cached_property
    def _logsnrs(self) -> np.ndarray:
        products = self.alphas_cumprod.astype(np.float64)
        return np.concatenate([[20.0], np.log(products) - np.log1p(-products)])


class _EvenStarts(Schedule):
    """A schedule whose grids may start their steps at N evenly spaced times, from 1 to a time independent of N."""

    def grid_time(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the time at which step i of a `num_steps`-step sampler starts; see `Schedule.grid_time`."""
        if self.grids_nest:
            return super().grid_time(i, num_steps, dtype)
        done = (jnp.asarray(num_steps) - 1 - jnp.asarray(i)).astype(dtype)
        return 1 - done * self._spacing(num_steps, dtype)

    def grid_step(self, i: StepIndex, num_steps: Count, dtype: Any = jnp.float32) -> Array:
        """Return the length of step i of a `num_steps`-step sampler in time; see `Schedule.grid_step`."""
        if self.grids_nest:
            return super().grid_step(i, num_steps, dtype)
        return jnp.where(jnp.asarray(i) > 0, self._spacing(num_steps, dtype), self.grid_time(i, num_steps, dtype))

    def _spacing(self, num_steps: Count, dtype: Any) -> Array:
        """The time between the starts of two steps, if the grids do not nest."""
        raise NotImplementedError


def _evenly(last_start: float, num_steps: Count, dtype: Any) -> Array:
    """The time between two of `num_steps` starts from 1 to last_start."""
    return (1 - last_start) / jnp.maximum(jnp.asarray(num_steps, dtype) - 1, 1)


@dataclasses.dataclass(frozen=True)
class Flow(_EvenStarts):
    """Schedule of flow matching: tan(phi) = shift t / (1 - t) (Liu et al. 2023; Lipman et al. 2023).

    Without a shift, z sqrt(t^2 + (1 - t)^2) = (1 - t) x + t eps, a straight line from data to noise. A shift replaces t
    by shift t / (1 + (shift - 1) t), which spends more steps on noisy images (Esser et al. 2024, section 5.3.2). The
    angle covers 0 to pi/2, so z is pure noise at t = 1. Within 2e-9 of the ends, the log-SNR is clamped: to 40 and -40
    without a shift.

    Attributes:
      shift: factor of tan(phi), above 0; default 1.
      mu: logarithm of the shift, as in Flux; set at most one of the two.
      last_start: the time at which the last step of a sampler starts. The N starts are then evenly spaced from 1 to
        this time, as diffusers' `FlowMatchEulerDiscreteScheduler` spaces them, and such grids do not nest. Default:
        None, a grid of the times (i + 1) / N.

    Raises:
      InputError: if an attribute is out of its range, or both shift and mu are set.

    >>> schedule = Flow(shift=3.0)
    >>> [round(logsnr, 2) for logsnr in schedule(jnp.array([0.25, 0.5, 0.75])).tolist()]  # -2 log(3 t / (1 - t))
    [0.0, -2.2, -4.39]
    """

    shift: float = 1.0
    mu: float | None = None
    last_start: float | None = None

    def __post_init__(self):
        if self.mu is not None and self.shift != 1:
            raise InputError(
                f"The 'flow' schedule needs shift or mu = log(shift); got shift={self.shift}, mu={self.mu}."
            )
        if not 1e-4 <= self._shift <= 1e4:
            name, value = ("shift", self.shift) if self.mu is None else ("exp(mu)", f"exp({self.mu})")
            raise InputError(f"The 'flow' schedule needs {name} between 0.0001 and 10000; got {value}.")
        if self.last_start is not None and not 0 < self.last_start < 1:
            raise InputError(f"The 'flow' schedule needs last_start between 0 and 1; got {self.last_start}.")

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""
        t = _as_time(t)
        data = bounded(1 - t, _LEAST_SHARE, 1.0)
        noise = bounded(t, _LEAST_SHARE, 1.0)
        return 2 * (jnp.log(data) - jnp.log(noise)) - 2 * math.log(self._shift)

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians."""
        t = _as_time(t)
        return jnp.arctan2(self._shift * t, 1 - t)

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the angle from t to t - dt in radians; see `Schedule.angle_step`."""
        t = _as_time(t)
        dt = _as_time(dt)
        s = bounded(t - dt, 0.0, math.inf)
        # tan(phi_t - phi_s) by the tangents' difference, shift (t (1 - s) - s (1 - t)) = shift dt.
        step = jnp.arctan2(self._shift * dt, (1 - t) * (1 - s) + self._shift**2 * t * s)
        return jnp.where(t <= dt, self.angle(t), step)

    @property
    def grids_nest(self) -> bool:
        """Whether the grid of k N steps contains the grid of N steps: only without last_start."""
        return self.last_start is None

    def _spacing(self, num_steps: Count, dtype: Any) -> Array:
        return _evenly(self.last_start, num_steps, dtype)

    @property
    def _shift(self) -> float:
        if self.mu is None:
            return self.shift
        return math.exp(self.mu) if abs(self.mu) < 100 else math.inf


_LEAST_SHARE = math.exp(-20)  # of data or noise in z, for a finite log-SNR


@dataclasses.dataclass(frozen=True)
class Karras(_EvenStarts):
    """Schedule of EDM: tan(phi) = sigma_max t^rho (Karras et al. 2022, equation 5).

    EDM's sigma is tan(phi). The grid of N steps starts at the N values of sigma whose roots sigma^(1 / rho) are evenly
    spaced from sigma_max to sigma_min. The last step goes from sigma_min to the data. These grids do not nest. With
    sigma_min = 0, the N + 1 ends of the steps are evenly spaced from sigma_max to 0: such grids nest, as ladders need.

    Attributes:
      sigma_min: the noise at the start of a sampler's last step; default 0.002.
      sigma_max: the noise at t = 1; default 80.
      rho: how much shorter the steps are near the data; default 7.
      num_scales: steps of the grid in training, for published consistency models (Song et al. 2023). A sampler of N
        steps uses every (num_scales // N)th of these times, from sigma_max. With N above num_scales, it has a grid of
        its own. Default: None, a grid of its own for each N.

    Raises:
      InputError: unless 0 <= sigma_min < sigma_max, sigma_max is finite and rho is at least 1.

    >>> schedule = Karras()
    >>> t = schedule.grid_time(jnp.arange(3), 3)
    >>> [round(sigma, 3) for sigma in jnp.tan(schedule.angle(t)).tolist()]
    [0.002, 2.515, 80.0]
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    num_scales: int | None = None

    def __post_init__(self):
        if not (0 <= self.sigma_min < self.sigma_max <= 1e6 and 1 <= self.rho <= 100):
            raise InputError(
                f"The 'karras' schedule needs 0 <= sigma_min < sigma_max <= 1e6 and 1 <= rho <= 100; got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, rho={self.rho}."
            )
        if self.num_scales is not None and (self.num_scales < 2 or self.sigma_min == 0):
            raise InputError(
                f"num_scales={self.num_scales} of the 'karras' schedule must be at least 2, and needs sigma_min above "
                f"0; got sigma_min={self.sigma_min}."
            )

    def __call__(self, t: ScalarOrBatch) -> Array:
        """Return the log signal-to-noise ratio at time t."""
        least = math.exp((math.log(_LEAST_SHARE) - math.log(self.sigma_max)) / self.rho)  # log-SNR 40
        return -2 * math.log(self.sigma_max) - 2 * self.rho * jnp.log(bounded(_as_time(t), least, math.inf))

    def angle(self, t: ScalarOrBatch) -> Array:
        """Return the angle phi at time t in radians."""
        return jnp.arctan(self._sigma(_as_time(t)))

    def angle_step(self, t: ScalarOrBatch, dt: ScalarOrBatch) -> Array:
        """Return the angle from t to t - dt in radians; see `Schedule.angle_step`."""
        t = _as_time(t)
        dt = _as_time(dt)
        ends_at_0 = t <= dt
        part = jnp.where(ends_at_0, 0.5, dt / jnp.where(ends_at_0, 1, t))
        sigma_t = self._sigma(t)
        difference = -sigma_t * jnp.expm1(self.rho * jnp.log1p(-part))
        step = jnp.arctan(difference / (1 + sigma_t * (sigma_t - difference)))
        return jnp.where(ends_at_0, self.angle(t), step)

    @property
    def grids_nest(self) -> bool:
        """Whether the grid of k N steps contains the grid of N steps: only with sigma_min = 0."""
        return self.sigma_min == 0

    def _sigma(self, t: Array) -> Array:
        return self.sigma_max * t**self.rho

    def _spacing(self, num_steps: Count, dtype: Any) -> Array:
        last_start = (self.sigma_min / self.sigma_max) ** (1 / self.rho)
        own = _evenly(last_start, num_steps, dtype)
        if self.num_scales is None:
            return own
        stride = (self.num_scales // jnp.asarray(num_steps)).astype(dtype)
        return jnp.where(stride > 0, stride * _evenly(last_start, self.num_scales, dtype), own)


def _betas(schedule: Discrete) -> np.ndarray:
    """Compute the betas in float32, in the steps in which diffusers rounds."""
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
            raise InputError(f"The 'discrete' schedule has no betas={name!r}; choose one of {names}, or pass numbers.")
    return np.array(schedule.betas, np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Compute `torch.linspace` in float32, which counts from both ends to the middle."""
    first = np.float32(start)
    last = np.float32(end)
    i = np.arange(count)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


SCHEDULES = {
    "cosine": Cosine,
    "nichol_dhariwal": NicholDhariwal,
    "discrete": Discrete,
    "flow": Flow,
    "karras": Karras,
}
# The attributes that make the grids of a schedule nest, for schedules whose grids may not.
NESTED_BY = {"discrete": "spacing='trailing'", "flow": "last_start=None", "karras": "sigma_min=0.0, num_scales=None"}


def get_logsnr_schedule(name: str, **kwargs: Any) -> Schedule:
    """Make the schedule with this name.

    Args:
      name: 'cosine', 'nichol_dhariwal', 'discrete', 'flow' or 'karras'.
      **kwargs: attributes of `Cosine`, `NicholDhariwal`, `Discrete`, `Flow` or `Karras`.

    Returns:
      A `Schedule`: a function from t in [0, 1] to log(alpha^2 / sigma^2).

    Raises:
      InputError: for an unknown name or attribute, or an attribute of another type or out of its range.

    >>> get_logsnr_schedule("cosine", logsnr_min=-10.0)
    Cosine(logsnr_min=-10.0, logsnr_max=20.0)
    """
    if name not in SCHEDULES:
        raise InputError(f"Unknown logsnr schedule {name!r}; choose one of {sorted(SCHEDULES)}.")
    allowed = [field.name for field in dataclasses.fields(SCHEDULES[name])]
    if unknown := sorted(set(kwargs) - set(allowed)):
        raise InputError(f"The {name!r} schedule has no {', '.join(map(repr, unknown))}; it takes {allowed}.")
    check_arguments(SCHEDULES[name], kwargs)
    return SCHEDULES[name](**kwargs)


def time_of(schedule: Schedule, logsnr: ScalarOrBatch) -> Array:
    """Invert a schedule: return the time at which it has this log-SNR, by bisection.

    Args:
      schedule: a schedule that decreases.
      logsnr: log-SNR, a scalar or `[batch]`.

    Returns:
      The time, differentiable in logsnr: 0 for a log-SNR above the schedule's range, 1 for one below.

    >>> time_of(Cosine(), Cosine()(0.3)).round(6)
    Array(0.3, dtype=float32...)
    """

    @jax.custom_jvp
    def bisect(logsnr):
        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            is_early = schedule(middle) > logsnr
            return jnp.where(is_early, middle, low), jnp.where(is_early, high, middle)

        _, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(logsnr), jnp.ones_like(logsnr)))
        return jnp.where(logsnr >= schedule(jnp.zeros_like(logsnr)), 0, high)

    @bisect.defjvp
    def derivative(primals, tangents):
        t = bisect(*primals)
        logsnr_t, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
        rounding = 4 * jnp.finfo(t.dtype).eps * (jnp.abs(slope) + jnp.abs(logsnr_t))
        is_inside = jnp.abs(logsnr_t - primals[0]) <= rounding  # otherwise t is an end of the range
        return t, jnp.where(is_inside, tangents[0] / slope, 0)

    return bisect(_as_time(logsnr))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def bounded(x: ScalarOrBatch, low: float, high: float) -> Array:
    """Clip as `jnp.clip` does, with derivative 1 at a bound, up to rounding. `jnp.clip` has 1/2 there.

    >>> jax.grad(bounded)(1.0, 0.0, 1.0)
    Array(1., dtype=float32...)
    """
    return jnp.clip(x, low, high)


@bounded.defjvp
def _bounded_jvp(low, high, primals, tangents):
    [x] = primals
    [dx] = tangents
    clipped = jnp.clip(x, low, high)
    return clipped, jnp.where(jnp.abs(x - clipped) <= 4 * jnp.finfo(x.dtype).eps * jnp.abs(clipped), dx, 0)


def _angle_of(logsnr: float) -> float:
    return math.atan(math.exp(-0.5 * logsnr))


def _as_time(t: ScalarOrBatch) -> Array:
    """Convert a time to at least float32: bfloat16 cannot tell neighboring steps apart."""
    t = jnp.asarray(t)
    return t.astype(at_least_float32(t.dtype))
