import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.diffusion import make_denoiser
from diffusion_distillation.distillation import two_stage_target, two_step_target
from diffusion_distillation.sampling import Solver, ddim_step

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (8, 4, 4, 1)


@pytest.fixture(scope="module")
def compiled_target(cosine):
    """One program for every number of steps: the target of a teacher that predicts v1 and then v2."""

    @jax.jit
    def target(z, v1, v2, i, num_steps):
        predictions = iter((v1, v2))
        return two_step_target(make_denoiser(lambda z, logsnr: next(predictions), "v"), z, i, num_steps, cosine)

    return target


@pytest.mark.parametrize("num_steps", [2**k for k in range(14)])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_two_step_target_matches_float64(compiled_target, num_steps, seed):
    """Within 1e-6 relative of algorithm 2 in float64, for any z and predictions, at up to 8192 steps."""
    rng = np.random.default_rng(seed)
    z, v1, v2 = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    i = rng.integers(0, num_steps, SHAPE[0])
    i[0] = 0
    target = compiled_target(z, v1, v2, i, num_steps)

    t = (i + 1) / num_steps
    x = oracle.two_step_target_x(*(a.astype(np.float64) for a in (z, v1, v2)), t, num_steps, oracle.cosine_angle)
    phi = oracle.cosine_angle(t)[:, None, None, None]
    v = (np.cos(phi) * z - x) / np.sin(phi)
    for got, expected in ((target.x, x), (target.v, v), (target.eps, np.sin(phi) * z + np.cos(phi) * v)):
        for of_example, oracle_of_example in zip(got, expected, strict=True):
            error = np.linalg.norm(of_example - oracle_of_example) / np.linalg.norm(oracle_of_example)
            assert error < 1e-6


def test_a_student_that_hits_its_target_makes_two_teacher_steps_in_one(cosine):
    teacher = make_denoiser(lambda z, logsnr: jnp.tanh(2 * z) * 0.7, "x")

    @jax.jit
    def one_and_two_steps(z, i, num_steps):
        t, half = (i + 1) / num_steps, 0.5 / num_steps
        z_mid = ddim_step(teacher(z, cosine(t)), z, cosine, t, half)
        z_s = ddim_step(teacher(z_mid, cosine(t - half)), z_mid, cosine, t - half, half)
        return ddim_step(two_step_target(teacher, z, i, num_steps, cosine), z, cosine, t, 2 * half), z_s

    for num_steps in (1, 2, 4, 64, 1024, 8192):
        rng = np.random.default_rng(num_steps)
        z, i = rng.standard_normal(SHAPE).astype(np.float32), rng.integers(0, num_steps, SHAPE[0])
        i[0] = 0
        np.testing.assert_allclose(*one_and_two_steps(z, i, num_steps), atol=2e-6)


def test_the_target_of_the_last_step_is_the_teachers_x(cosine):
    z = jnp.ones(SHAPE)
    outputs = iter((0.3 * z, -0.2 * z))
    target = two_step_target(make_denoiser(lambda z, logsnr: next(outputs), "x"), z, 0, 4, cosine)
    np.testing.assert_allclose(target.x, -0.2 * z, atol=1e-6)


def test_the_target_works_under_jit_vmap_pmap_and_grad(cosine):
    """The number of steps may be traced, and gradients flow through the teacher."""
    z, i = jnp.linspace(-1, 1, 128).reshape(SHAPE), jnp.arange(8)

    def target(scale, z, i, num_steps):
        return two_step_target(make_denoiser(lambda z, logsnr: scale * z, "v"), z, i, num_steps, cosine).x

    plain = target(0.5, z, i, 8)
    np.testing.assert_allclose(jax.jit(target)(0.5, z, i, 8), plain, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(target, (None, 0, 0, None))(0.5, z, i, 8), plain, atol=1e-6)
    devices = z.reshape(4, 2, *SHAPE[1:]), i.reshape(4, 2)
    mapped = jax.pmap(target, in_axes=(None, 0, 0, None))(0.5, *devices, 8)
    np.testing.assert_allclose(mapped.reshape(SHAPE), plain, atol=1e-6)
    gradient = jax.grad(lambda scale: target(scale, z, i, 8).sum())(0.5)
    numeric = (target(0.51, z, i, 8).sum() - target(0.49, z, i, 8).sum()) / 0.02
    np.testing.assert_allclose(gradient, numeric, rtol=1e-2)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_two_stage_target_matches_float64(cosine, seed):
    """The target's single step ends where the two stages do, of any lengths, with a solver's v in the first."""
    rng = np.random.default_rng(seed)
    z, v1, v2, offset = rng.standard_normal((4, *SHAPE)).astype(np.float32)
    t = rng.integers(2, 65, SHAPE[0]) / 64
    dt1 = rng.integers(1, 64 * t) / 64
    dt2 = rng.uniform(0, t - dt1)
    dt2[:2] = 0, (t - dt1)[1]

    predictions = iter((v1, v2))
    denoise = make_denoiser(lambda z, logsnr: next(predictions), "v")
    solver = Solver(title="", velocity=lambda prediction, denoise, z, memory, **step: (prediction.v + offset, memory))
    times = (a.astype(np.float32) for a in (t, dt1, dt2))
    target = two_stage_target(denoise, denoise, z, *times, cosine, solver=solver)

    ends = [oracle.cosine_angle(t - down) for down in (0, dt1, dt1 + dt2)]
    ends[2] = np.where(np.isclose(dt1 + dt2, t), 0, ends[2])
    phi, phi_mid, phi_end = (angle[:, None, None, None] for angle in ends)
    z_mid = np.cos(phi - phi_mid) * z - np.sin(phi - phi_mid) * (v1 + offset)
    z_end = np.cos(phi_mid - phi_end) * z_mid - np.sin(phi_mid - phi_end) * v2
    v = (np.cos(phi - phi_end) * z - z_end) / np.sin(phi - phi_end)
    np.testing.assert_allclose(target.v, v, rtol=1e-4, atol=2e-5)


def test_a_second_stage_of_no_length_leaves_the_first_alone(cosine):
    z, v1, v2 = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    predictions = iter((v1, v2))
    denoise = make_denoiser(lambda z, logsnr: next(predictions), "v")
    t = jnp.array([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])
    target = two_stage_target(denoise, denoise, z, t, 0.125, 0.0, cosine)
    np.testing.assert_allclose(target.v, v1, atol=1e-6)
