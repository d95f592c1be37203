import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion_distillation.schedules import get_logsnr_schedule

ORACLES = {"cosine": oracle.cosine_angle, "nichol_dhariwal": oracle.nichol_dhariwal_angle}
names = pytest.mark.parametrize("name", ORACLES)
pytestmark = pytest.mark.usefixtures("optimized")


def test_golden(golden, cosine):
    d = golden("schedule")
    # At t = 1 the published code takes a tangent next to pi/2 in float32 and gets -20.0011 and -9.99998.
    np.testing.assert_allclose(cosine(d["t"])[:-1], d["logsnr"][:-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(cosine(d["t"])[-1], d["logsnr"][-1], rtol=1e-4)
    narrow = get_logsnr_schedule("cosine", logsnr_min=-10.0, logsnr_max=10.0)
    np.testing.assert_allclose(narrow(d["t"]), d["logsnr_m10_10"], rtol=5e-6, atol=1e-6)


def test_ends(cosine):
    np.testing.assert_allclose(cosine(jnp.array([0.0, 0.5, 1.0])), [20, 0, -20], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(get_logsnr_schedule("nichol_dhariwal")(jnp.array([0.0, 1.0])), [20, -19.8359], rtol=1e-5)


@names
@given(t=st.floats(2**-10, 1, width=32))
def test_logsnr_against_float64(name, t):
    expected = oracle.logsnr(ORACLES[name](t))
    np.testing.assert_allclose(get_logsnr_schedule(name)(jnp.float32(t)), expected, rtol=2e-5, atol=2e-5)


def step_angles(name, t, s):
    """In float64; a step that ends at time 0 turns all the way to phi = 0."""
    angle = ORACLES[name]
    return angle(t) - np.where(s > 0, angle(s), 0)


@names
def test_angle_step_does_not_cancel(name):
    """Every step of every sampler of 1 to 8192 steps: where subtracting float32 angles keeps four digits, here six."""
    num_steps = np.concatenate([np.full(2**k, 2**k) for k in range(14)])
    i = np.concatenate([np.arange(2**k) for k in range(14)])
    step = get_logsnr_schedule(name).angle_step(jnp.float32((i + 1) / num_steps), jnp.float32(1 / num_steps))
    np.testing.assert_allclose(step, step_angles(name, (i + 1) / num_steps, i / num_steps), rtol=5e-7)


@names
@given(t=st.floats(2**-9, 1, width=32), part=st.floats(2**-7, 1, width=32))
@example(t=1.0, part=1.0)
@example(t=1.0, part=2**-15)  # past the last time at which 'nichol_dhariwal' turns
def test_angle_step_of_any_length(name, t, part):
    dt = np.float32(t * part)
    step = get_logsnr_schedule(name).angle_step(np.float32(t), dt)
    np.testing.assert_allclose(step, step_angles(name, t, np.maximum(t - np.float64(dt), 0)), rtol=1e-6, atol=1e-9)


@names
def test_decreases_with_finite_gradient(name):
    schedule = get_logsnr_schedule(name)
    t = jnp.linspace(0, 1, 1001)
    assert np.all(np.diff(schedule(t)) <= 0)
    assert np.all(np.isfinite(jax.vmap(jax.grad(schedule))(t)))


@names
def test_time_in_bfloat16_and_float64(name):
    schedule = get_logsnr_schedule(name)
    assert schedule(jnp.bfloat16(0.5)).dtype == jnp.float32
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 99, dtype=jnp.float64)
        np.testing.assert_allclose(schedule(t), oracle.logsnr(ORACLES[name](np.asarray(t))), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (dict(name="cosin"), r"'cosin'; choose one of \['cosine', 'discrete', 'nichol_dhariwal'\]"),
        (dict(name="cosine", logsnr_mn=-20), "'logsnr_mn'; it takes"),
        (dict(name="cosine", logsnr_min=20.0, logsnr_max=-20.0), "logsnr_min < logsnr_max"),
    ],
)
def test_errors(args, message):
    with pytest.raises(ValueError, match=message):
        get_logsnr_schedule(**args)
