import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion_distillation.diffusion import alpha_sigma
from diffusion_distillation.networks.embedding import LOGSNR_INPUT_TYPES, embedded_time
from diffusion_distillation.schedules import get_logsnr_schedule, time_of

pytestmark = pytest.mark.usefixtures("strict")

ORACLES = {"cosine": oracle.cosine_angle, "nichol_dhariwal": oracle.nichol_dhariwal_angle}
names = pytest.mark.parametrize("name", ORACLES)

# The arguments of more schedules, their angles, and by how much rounding t to float32 changes an angle.
OTHERS = {
    "flow": (dict(name="flow"), oracle.flow_angle, 1),
    "shifted flow": (dict(name="flow", shift=3.0), functools.partial(oracle.flow_angle, shift=3.0), 1),
    "flow by mu": (dict(name="flow", mu=-0.7), functools.partial(oracle.flow_angle, shift=np.exp(-0.7)), 1),
    "karras": (dict(name="karras"), oracle.karras_angle, 7),
    "karras to 0": (
        dict(name="karras", sigma_min=0.0, sigma_max=10.0, rho=3.0),
        functools.partial(oracle.karras_angle, sigma_max=10.0, rho=3.0),
        3,
    ),
}
others = pytest.mark.parametrize("name", OTHERS)


def test_the_cosine_schedule_matches_the_published_one(golden, cosine):
    d = golden("schedule")
    # At t = 1 the published code takes a tangent next to pi/2 in float32 and gets -20.0011 and -9.99998.
    np.testing.assert_allclose(cosine(d["t"])[:-1], d["logsnr"][:-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(cosine(d["t"])[-1], d["logsnr"][-1], rtol=1e-4)
    narrow = get_logsnr_schedule("cosine", logsnr_min=-10.0, logsnr_max=10.0)
    np.testing.assert_allclose(narrow(d["t"]), d["logsnr_m10_10"], rtol=5e-6, atol=1e-6)


def test_schedules_have_their_logsnr_at_both_ends(cosine):
    np.testing.assert_allclose(cosine(jnp.array([0.0, 0.5, 1.0])), [20, 0, -20], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(get_logsnr_schedule("nichol_dhariwal")(jnp.array([0.0, 1.0])), [20, -19.8359], rtol=1e-5)


@names
@given(t=st.floats(2**-10, 1, width=32))
def test_logsnr_matches_float64(name, t):
    expected = oracle.logsnr(ORACLES[name](t))
    np.testing.assert_allclose(get_logsnr_schedule(name)(jnp.float32(t)), expected, rtol=2e-5, atol=2e-5)


def step_angles(name, t, s):
    """Angles in float64. A step that ends at time 0 ends at phi = 0."""
    angle = ORACLES[name]
    return angle(t) - np.where(s > 0, angle(s), 0)


@names
def test_angles_of_short_steps_do_not_cancel(name):
    """In every step of samplers with 1 to 8192 steps, six digits are right. Subtracting float32 angles keeps four."""
    num_steps = np.concatenate([np.full(2**k, 2**k) for k in range(14)])
    i = np.concatenate([np.arange(2**k) for k in range(14)])
    step = get_logsnr_schedule(name).angle_step(jnp.float32((i + 1) / num_steps), jnp.float32(1 / num_steps))
    np.testing.assert_allclose(step, step_angles(name, (i + 1) / num_steps, i / num_steps), rtol=5e-7)


@others
@given(t=st.floats(2**-10, 1 - 2**-10, width=32))
def test_logsnr_and_angle_of_flow_and_karras_match_float64(name, t):
    args, angle, lost = OTHERS[name]
    schedule = get_logsnr_schedule(**args)
    np.testing.assert_allclose(schedule(np.float32(t)), np.minimum(oracle.logsnr(angle(t)), 40), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(schedule.angle(np.float32(t)), angle(t), rtol=3e-7 * lost)


@others
def test_angle_steps_of_flow_and_karras_do_not_cancel(name):
    args, angle, lost = OTHERS[name]
    num_steps = np.concatenate([np.full(2**k, 2**k) for k in range(14)])
    i = np.concatenate([np.arange(2**k) for k in range(14)])
    t, dt = np.float32((i + 1) / num_steps), np.float32(1 / num_steps)
    step = get_logsnr_schedule(**args).angle_step(t, dt)
    np.testing.assert_allclose(step, angle((i + 1) / num_steps) - angle(i / num_steps), rtol=3e-7 * lost + 2e-7)


def test_flow_starts_at_pure_noise():
    flow = get_logsnr_schedule("flow")
    assert flow.angle(1.0) == np.float32(np.pi / 2)
    np.testing.assert_allclose(flow(jnp.array([0.0, 1.0])), [40, -40], rtol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(-0.5 * flow(jnp.array([0.001, 0.5, 1.0]))), [0.001, 0.5, 1], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 18, 1000])
def test_the_karras_grid_has_edms_noise_levels(num_steps):
    """Each step ends where the next one starts."""
    schedule = get_logsnr_schedule("karras")
    i = np.arange(num_steps)[::-1]
    t, dt = schedule.grid_time(i, num_steps), schedule.grid_step(i, num_steps)
    sigmas = oracle.karras_sigmas(num_steps)
    np.testing.assert_allclose(jnp.tan(schedule.angle(t)), sigmas[:-1], rtol=2e-5)
    steps = np.arctan(sigmas[:-1]) - np.arctan(sigmas[1:])
    np.testing.assert_allclose(schedule.angle_step(t, dt), steps, rtol=1e-3 if num_steps == 1000 else 2e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 40])
def test_the_karras_grid_has_the_noise_levels_of_published_consistency_models(num_steps):
    """Steps start at every (40 // N)th level of a 40-step grid, from sigma_max. The last step ends at the data."""
    schedule = get_logsnr_schedule("karras", num_scales=40)
    i = np.arange(num_steps)[::-1]
    t, dt = schedule.grid_time(i, num_steps), schedule.grid_step(i, num_steps)
    expected = oracle.karras_sigmas(40)[np.arange(num_steps) * (40 // num_steps)]
    np.testing.assert_allclose(jnp.tan(schedule.angle(t)), expected, rtol=2e-5)
    np.testing.assert_allclose(t - dt, np.append(t[1:], 0), atol=1e-6)


GRIDS = {
    "flow": dict(name="flow", last_start=0.02),
    "karras": dict(name="karras"),
    "karras, few scales": dict(name="karras", num_scales=18),
    "leading": dict(name="discrete", spacing="leading", steps_offset=1),
    "linspace": dict(name="discrete", spacing="linspace", num_steps=500),
    "linspace, skip_last": dict(name="discrete", spacing="linspace", skip_last=True),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 7, 20, 1001])
def test_steps_of_other_grids_end_where_the_next_ones_start(name, num_steps):
    """The last step ends at 0. There may be more steps than the grid has times."""
    schedule = get_logsnr_schedule(**GRIDS[name])
    i = np.arange(num_steps)[::-1]
    t, dt = (np.asarray(grid(i, num_steps)) for grid in (schedule.grid_time, schedule.grid_step))
    np.testing.assert_allclose(t - dt, np.append(t[1:], 0), atol=2e-7)
    assert t[0] <= 1 and np.all(np.diff(t) <= 0) and t[-1] == dt[-1] > 0 and not schedule.grids_nest
    traced = jax.jit(lambda i, num_steps: (schedule.grid_time(i, num_steps), schedule.grid_step(i, num_steps)))
    for one, many in zip(traced(i[0], num_steps), (t[0], dt[0]), strict=True):
        np.testing.assert_allclose(one, many, atol=2e-7)


def test_timestep_spacings_are_those_of_diffusers():
    """Lin et al. (2023), table 2, by the number of the training step; DPM-Solver drops the last of one step more."""

    def steps(num_steps, **args):
        schedule = get_logsnr_schedule("discrete", **args)
        return np.round(1000 * np.float64(schedule.grid_time(np.arange(num_steps)[::-1], num_steps)) - 1, 3).tolist()

    assert steps(5) == [999, 799, 599, 399, 199]
    assert steps(5, spacing="leading", steps_offset=1) == [801, 601, 401, 201, 1]
    assert steps(4, spacing="linspace") == [999, 666, 333, 0]
    assert steps(3, spacing="linspace", skip_last=True) == [999, 666, 333]
    assert steps(4, spacing="leading", skip_last=True) == [800, 600, 400, 200]


def test_grids_nest_unless_the_last_step_differs():
    assert get_logsnr_schedule("flow").grids_nest and get_logsnr_schedule("karras", sigma_min=0.0).grids_nest
    assert not get_logsnr_schedule("karras").grids_nest


@names
@given(t=st.floats(2**-9, 1, width=32), part=st.floats(2**-7, 1, width=32))
@example(t=1.0, part=1.0)
@example(t=1.0, part=2**-15)  # later than the last time at which the angle of 'nichol_dhariwal' changes
def test_angles_of_steps_of_any_length_match_float64(name, t, part):
    dt = np.float32(t * part)
    step = get_logsnr_schedule(name).angle_step(np.float32(t), dt)
    np.testing.assert_allclose(step, step_angles(name, t, np.maximum(t - np.float64(dt), 0)), rtol=1e-6, atol=1e-9)


@names
def test_logsnr_decreases_with_a_finite_gradient(name):
    schedule = get_logsnr_schedule(name)
    t = jnp.linspace(0, 1, 1001)
    assert np.all(np.diff(schedule(t)) <= 0)
    assert np.all(np.isfinite(jax.vmap(jax.grad(schedule))(t)))


@names
def test_times_may_be_bfloat16_or_float64(name):
    schedule = get_logsnr_schedule(name)
    assert schedule(jnp.bfloat16(0.5)).dtype == jnp.float32
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 99, dtype=jnp.float64)
        np.testing.assert_allclose(schedule(t), oracle.logsnr(ORACLES[name](np.asarray(t))), rtol=1e-9, atol=1e-9)


DISCRETE = {
    "linear": dict(),
    "scaled_linear": dict(num_steps=500, beta_end=0.012),
    "sigmoid": dict(num_steps=100, beta_end=0.1),
    "squaredcos_cap_v2": dict(),
}
discrete = pytest.mark.parametrize("betas", DISCRETE)


def discrete_logsnr(schedule, t):
    """In float64, linear between the times (i + 1) / T, and 20 at t = 0."""
    products = schedule.alphas_cumprod.astype(np.float64)
    return np.interp(schedule.num_steps * t, np.arange(len(products) + 1), [20, *-np.log(1 / products - 1)])


@discrete
def test_products_of_discrete_betas_equal_their_definitions(betas):
    """From their definitions (Ho et al. 2020; Nichol & Dhariwal 2021), to float32's rounding of every beta."""
    schedule = get_logsnr_schedule("discrete", betas=betas, **DISCRETE[betas])
    count, start, end = schedule.num_steps, schedule.beta_start, schedule.beta_end
    alpha2 = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = {
        "linear": np.linspace(start, end, count),
        "scaled_linear": np.linspace(start**0.5, end**0.5, count) ** 2,
        "sigmoid": start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
        "squaredcos_cap_v2": np.minimum(1 - alpha2[1:] / alpha2[:-1], 0.999),
    }[betas]
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - expected), rtol=3e-5)
    given = get_logsnr_schedule("discrete", betas=np.float32(expected).tolist())
    np.testing.assert_allclose(given.alphas_cumprod, schedule.alphas_cumprod, rtol=3e-5)


@discrete
def test_the_discrete_schedule_matches_float64(betas):
    """Steps of samplers start at the times of the schedule or between them."""
    schedule = get_logsnr_schedule("discrete", betas=betas, **DISCRETE[betas])
    for num_steps in (1, 64, schedule.num_steps):
        i = np.arange(num_steps)
        dt = np.float32(1) / np.float32(num_steps)
        t, s = (i + 1) / num_steps, i / num_steps
        logsnr = schedule(np.float32(i + 1) * dt)
        np.testing.assert_allclose(logsnr, discrete_logsnr(schedule, t), rtol=1e-6, atol=1e-6)
        angle_t, angle_s = (np.arctan(np.exp(-0.5 * discrete_logsnr(schedule, u))) for u in (t, s))
        step = schedule.angle_step(np.float32(i + 1) * dt, dt)
        np.testing.assert_allclose(step, angle_t - np.where(i > 0, angle_s, 0), rtol=2e-6)
        np.testing.assert_allclose(schedule.angle(np.float32(t)), angle_t, rtol=2e-6)
        if schedule.num_steps % num_steps == 0:
            number = jax.jit(lambda t: schedule.step(schedule(t)))(np.float32(i + 1) * dt)
            np.testing.assert_array_equal(number, (i + 1) * (schedule.num_steps // num_steps) - 1)
    t = jnp.linspace(0, 1, 1003)
    assert np.all(np.diff(schedule(t)) <= 0)
    assert np.all(np.isfinite(jax.vmap(jax.grad(schedule))(t)))
    np.testing.assert_allclose(schedule.step(schedule(t)), schedule.num_steps * t - 1, atol=2e-2)


def test_the_discrete_schedule_computes_in_float64():
    with jax.enable_x64(True):
        schedule, t = get_logsnr_schedule("discrete"), np.linspace(0.01, 0.99, 137)
        np.testing.assert_allclose(schedule(t), discrete_logsnr(schedule, t), rtol=1e-12)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (dict(name="cosin"), r"'cosin'; choose one of \['cosine', 'discrete', 'flow', 'karras', 'nichol_dhariwal'\]"),
        (dict(name="cosine", logsnr_mn=-20), "'logsnr_mn'; it takes"),
        (dict(name="discrete", betas="quadratic"), "no betas='quadratic'; choose one of"),
        (dict(name="discrete", num_steps=0), "needs 1 to 1,048,576 steps; got num_steps=0"),
        (dict(name="discrete", num_steps=10**9), "needs 1 to 1,048,576 steps; got num_steps=1000000000"),
        (dict(name="discrete", betas=(0.1, 0.0)), "must be above 0 and below 1"),
        (dict(name="discrete", betas=(0.1, 1.0)), "must be above 0 and below 1"),
        (dict(name="discrete", betas=(float("nan"),)), "must be above 0 and below 1"),
        (dict(name="cosine", logsnr_min=20.0, logsnr_max=-20.0), "logsnr_min < logsnr_max"),
        (dict(name="flow", shift=0.0), "needs shift between 0.0001 and 10000; got 0.0"),
        (dict(name="flow", mu=1e9), r"needs exp\(mu\) between .* got exp\(1000000000.0\)"),
        (dict(name="flow", shift=2.0, mu=1.0), "needs shift or mu"),
        (dict(name="flow", last_start=1.0), "needs last_start between 0 and 1; got 1.0"),
        (
            dict(name="discrete", spacing="even"),
            r"no spacing='even'; choose one of \('trailing', 'leading', 'linspace'",
        ),
        (dict(name="discrete", steps_offset=1000), "steps_offset=1000 .* must be from 0 to 999"),
        (dict(name="karras", sigma_min=3.0, sigma_max=2.0), "0 <= sigma_min < sigma_max"),
        (dict(name="karras", sigma_min=0.0, num_scales=40), "needs sigma_min above 0"),
    ],
)
def test_bad_arguments_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        get_logsnr_schedule(**args)


EVERY = {
    "cosine": dict(),
    "nichol_dhariwal": dict(),
    **{betas: dict(name="discrete", betas=betas, **kwargs) for betas, kwargs in DISCRETE.items()},
    **{name: args for name, (args, *_) in OTHERS.items()},
}


def float64_difference(function, t, forward):
    """The difference quotient of the function in float64, central unless t is an end."""
    below, above = np.where((t == 0) | (forward & (t < 1)), 0, 1e-9), np.where(t == 1, 0, 1e-9)
    with jax.enable_x64(True):
        return np.asarray(function(t + above) - function(t - below)) / ((t + above) - (t - below))


@pytest.mark.parametrize("name", EVERY)
def test_derivatives_by_time_match_float64_differences(name):
    """At the ends, half way and on grids; for 'discrete', where its pieces begin."""
    schedule = get_logsnr_schedule(**{"name": name, **EVERY[name]})
    of_its_own = name in DISCRETE
    grids = (1, 2, schedule.num_steps) if of_its_own else (1, 2, 64, 1000, 8192)
    t = np.unique(np.concatenate([np.arange(n + 1) / n for n in grids]))
    functions = {"logsnr": schedule, "angle": schedule.angle}
    functions["sigma"] = lambda t: alpha_sigma(schedule(t))[1]
    for kind in LOGSNR_INPUT_TYPES if of_its_own else LOGSNR_INPUT_TYPES[:-1]:
        own = schedule if kind == "step" else None
        functions[kind] = lambda t, kind=kind, own=own: embedded_time(schedule(t), kind, schedule=own)
    for what, function in functions.items():
        expected = float64_difference(function, t if of_its_own else np.float64(np.float32(t)), of_its_own)
        found = jax.vmap(jax.grad(function))(np.float32(t))
        atol = 1e-3 if what in ("sigmoid", "flow_time", "data_time") else 1e-6  # of the quotient, where they are 1000
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=atol, err_msg=what)
    if not of_its_own:
        inside = (t < 1) & (schedule(np.float32(t)) < 40)  # further towards the data, 'karras' stays at 40
        back = jax.vmap(jax.grad(lambda t: time_of(schedule, schedule(t))))(np.float32(t[inside]))
        np.testing.assert_allclose(back, 1, rtol=1e-3)
        inside = np.float32([0.1, 0.5, 0.9])
        by_length = jax.vmap(jax.grad(lambda dt, t: schedule.angle_step(t, dt)))(np.zeros(3, np.float32), inside)
        np.testing.assert_allclose(by_length, jax.vmap(jax.grad(schedule.angle))(inside), rtol=1e-4)
