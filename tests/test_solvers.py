"""Solvers: against the papers' algorithms in float64, by their order on a flow that is known, and against diffusers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle
from helpers.diffusers_peer import relative
from peers import seeded

from diffusion_distillation.diffusion import make_denoiser, per_example
from diffusion_distillation.distillation import two_stage_target
from diffusion_distillation.sampling import SAMPLERS, SOLVERS, get_solver, sample
from diffusion_distillation.schedules import get_logsnr_schedule

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (8, 4, 4, 1)
Z = np.random.default_rng(0).standard_normal(SHAPE)
ANGLES = {
    "cosine": oracle.cosine_angle,
    "nichol_dhariwal": oracle.nichol_dhariwal_angle,
    "flow": oracle.flow_angle,
}


def wavy(z, angle, tanh):
    """A v that depends on z and on the angle."""
    return 0.8 * tanh(2 * z) - 0.3 * z * angle


def wavy_denoiser(schedule):
    def model_fn(z, logsnr):
        return wavy(z, per_example(jnp.arctan(jnp.exp(-0.5 * logsnr)), z), jnp.tanh)

    return make_denoiser(model_fn, "v")


def wavy_x(z, angle):
    angle = np.reshape(angle, (-1, 1, 1, 1))
    return np.cos(angle) * z - np.sin(angle) * wavy(z, angle, np.tanh)


@pytest.mark.parametrize("name", ANGLES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 64])
def test_samples_match_float64(solver, name, num_steps):
    schedule = get_logsnr_schedule(name)
    grid = np.arange(num_steps, -1, -1) / num_steps
    angles = [ANGLES[name](t) if t else 0.0 for t in grid]
    if name == "flow":
        angles[0] = np.arctan(np.exp(20))  # the oracle divides by its cosine
    found = sample(solver, wavy_denoiser(schedule), jnp.asarray(Z, jnp.float32), schedule, num_steps)
    assert relative(found, oracle.SOLVERS[solver](wavy_x, Z, angles)) < 1e-5


@pytest.mark.parametrize(
    ("solver", "order", "name"),
    [
        ("ddim", 1, "cosine"),
        ("heun", 2, "cosine"),
        ("heun", 2, "flow"),
        ("heun", 2, "karras"),
        ("dpmpp_2m", 2, "karras"),  # from 'cosine' noise, the first step is too long in log-SNR to extrapolate from
    ],
)
def test_errors_fall_by_the_order_of_the_solver(solver, order, name):
    """For Gaussian data, whose flow is known, twice the steps divide the error by 2 or 4."""
    mean, std = 0.2, 0.5
    with jax.enable_x64(True):
        schedule = get_logsnr_schedule(name)

        def model_fn(z, logsnr):
            angle = per_example(jnp.arctan(jnp.exp(-0.5 * logsnr)), z)
            alpha, sigma = jnp.cos(angle), jnp.sin(angle)
            return mean + alpha * std**2 * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)

        alpha, sigma = oracle.alpha_sigma((ANGLES | {"karras": oracle.karras_angle})[name](1.0))
        exact = mean + std * (Z - alpha * mean) / np.sqrt(alpha**2 * std**2 + sigma**2)
        draw = jax.jit(functools.partial(sample, solver, make_denoiser(model_fn, "x"), schedule=schedule))
        errors = [np.abs(draw(jnp.asarray(Z), num_steps=n) - exact).max() for n in (32, 64, 128)]
    ratios = np.array(errors[:-1]) / errors[1:]
    assert np.all(np.abs(np.log2(ratios) - order) < 0.25), ratios


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_on_the_flow_schedule_is_euler(shift):
    """z_r(r) = z_r(t) - (t - r) u, for any prediction u."""
    grid = np.arange(7, -1, -1) / 7
    times = shift * grid / (1 + (shift - 1) * grid)
    z = Z
    for t, r in itertools.pairwise(times):
        z = z - (t - r) * wavy(z, t, np.tanh)
    with jax.enable_x64(True):
        schedule = get_logsnr_schedule("flow", shift=shift)

        def model_fn(z, logsnr):
            return wavy(z, per_example(jax.nn.sigmoid(-0.5 * logsnr), z), jnp.tanh)

        found = sample("ddim", make_denoiser(model_fn, "flow"), jnp.asarray(Z), schedule, 7)
    np.testing.assert_allclose(found, z, atol=1e-7)  # the log-SNR at t = 1 is -40, where alpha is 2e-9


def test_two_stages_on_the_flow_schedule_are_the_mean_velocity():
    """u = ((t - m) u1 + (m - r) u2) / (t - r)."""
    rng = np.random.default_rng(0)
    u1, u2 = rng.standard_normal((2, *SHAPE))
    r, m, t = np.sort(rng.uniform(0.01, 0.99, (3, len(Z))), axis=0)
    with jax.enable_x64(True):
        schedule = get_logsnr_schedule("flow")
        first, second = (make_denoiser(lambda z, logsnr, u=u: jnp.asarray(u), "flow") for u in (u1, u2))
        target = two_stage_target(first, second, jnp.asarray(Z), t, t - m, m - r, schedule)
    t, m, r = (np.reshape(a, (-1, 1, 1, 1)) for a in (t, m, r))
    u = ((t - m) * u1 + (m - r) * u2) / (t - r)
    z_r = Z * np.hypot(t, 1 - t)
    np.testing.assert_allclose(target.x, z_r - t * u, atol=1e-12)
    np.testing.assert_allclose(target.eps, z_r + (1 - t) * u, atol=1e-12)


def peer_denoiser(mean_type):
    """The denoiser of `seeded.pixel_network`, which takes the share of noise, sigma / (alpha + sigma)."""

    def model_fn(z, logsnr):
        return seeded.pixel_network(z, jax.nn.sigmoid(-0.5 * logsnr)[:, None], jnp.tanh)

    return make_denoiser(model_fn, mean_type)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 12])
def test_flow_matching_samples_match_diffusers(golden, num_steps, shift):
    expected = golden("solvers")
    schedule = get_logsnr_schedule("flow", shift=float(shift))
    found = sample("ddim", peer_denoiser("flow"), expected["noise"], schedule, num_steps)
    assert relative(found, expected[f"flow_{shift}_{num_steps}"]) < 1e-4


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("num_steps", [6, 12])
def test_samples_of_solvers_match_diffusers(golden, solver, num_steps):
    """On the 'karras' schedule, which is use_karras_sigmas in diffusers."""
    expected = golden("solvers")
    sigmas = expected[f"sigmas_{num_steps}"]
    schedule = get_logsnr_schedule("karras", sigma_max=sigmas[0].item(), sigma_min=sigmas[-2].item())
    found = sample(solver, peer_denoiser("eps"), expected["noise"], schedule, num_steps)
    assert relative(found, expected[f"{solver}_{num_steps}"]) < 1e-4


def test_samplers_know_their_cost_and_their_models():
    assert {name: SAMPLERS[name].evaluations for name in SOLVERS} == dict(ddim=1, addim=1, heun=2, dpmpp_2m=1)
    assert [name for name in SOLVERS if SAMPLERS[name].suits(4, num_steps=4)] == ["ddim"]
    with pytest.raises(ValueError, match=r"Unknown solver 'heum'; choose one of \['ddim', 'addim', 'heun'"):
        get_solver("heum")
