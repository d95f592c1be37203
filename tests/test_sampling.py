import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st

from diffusion_distillation.diffusion import Prediction, make_denoiser, per_example
from diffusion_distillation.sampling import (
    addim,
    addim_step,
    ancestral,
    ancestral_step,
    ddim,
    ddim_step,
    dpmpp_2m,
    heun,
    renoise,
    renoise_step,
    stochastic,
    stochastic_step,
)
from diffusion_distillation.schedules import get_logsnr_schedule

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (8, 4, 4, 1)
Z = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def gaussian_denoiser(schedule, std=0.5, mean=0.2):
    """The exact denoiser of data that is Gaussian in every pixel."""

    def model_fn(z, logsnr):
        z = z.astype(logsnr.dtype)
        alpha2, sigma2 = (per_example(jax.nn.sigmoid(signed), z) for signed in (logsnr, -logsnr))
        return mean + jnp.sqrt(alpha2) * std**2 * (z - jnp.sqrt(alpha2) * mean) / (alpha2 * std**2 + sigma2)

    return make_denoiser(model_fn, "x")


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("mean_type", ["x", "v", "eps"])
def test_ddim_matches_the_published_samples(golden, golden_denoiser, cosine, mean_type, clip):
    d = golden("sampling_uncond")
    denoise = golden_denoiser(mean_type, clip_x=clip == "clip")
    draw = jax.jit(lambda z, num_steps: ddim(denoise, z, cosine, num_steps))
    # x from eps divides by alpha = 4.5e-5 at t = 1, which the published code has to 5e-4 (see test_schedules).
    tolerance = 1e-3 if (mean_type, clip) == ("eps", "noclip") else 1e-4
    for num_steps in (1, 2, 4, 8):
        x, expected = draw(d["init_z"], num_steps), d[f"ddim_{mean_type}_{num_steps}_{clip}"]
        assert np.linalg.norm(x - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["cosine", "nichol_dhariwal"])
def test_samplers_reach_the_mean_and_deviation_of_the_data(name):
    """Data are Gaussian, so the exact denoiser is known."""
    schedule = get_logsnr_schedule(name)
    denoise = gaussian_denoiser(schedule)
    z = jax.random.normal(jax.random.key(0), (4000, 2, 2, 1))
    for x in (
        ddim(denoise, z, schedule, 128),
        ddim(denoise, z, schedule, 128, eta=0.5, key=jax.random.key(1)),
        ancestral(jax.random.key(1), denoise, z, schedule, 512, "fixed_small"),
        ancestral(jax.random.key(1), denoise, z, schedule, 512, "fixed_medium:0.5"),
        ancestral(jax.random.key(1), denoise, z, schedule, 512),
        addim(denoise, z, schedule, 512),
        heun(denoise, z, schedule, 32),
        dpmpp_2m(denoise, z, schedule, 32),
        stochastic(jax.random.key(1), denoise, z, schedule, 512),
    ):
        np.testing.assert_allclose(x.mean(), 0.2, atol=0.015)
        np.testing.assert_allclose(x.std(), 0.5, atol=0.015)


def test_a_ddim_step_is_the_textbooks(cosine):
    """cos(d) z - sin(d) v = alpha_s x + sigma_s eps."""
    denoise = gaussian_denoiser(cosine)
    prediction = denoise(Z, cosine(0.75))
    alpha, sigma = np.cos(cosine.angle(0.5)), np.sin(cosine.angle(0.5))
    expected = alpha * prediction.x + sigma * prediction.eps
    np.testing.assert_allclose(ddim_step(prediction, Z, cosine, 0.75, 0.25), expected, atol=1e-6)


@pytest.mark.parametrize("t", [0.25, 0.75, 1.0])
def test_eta_one_is_ancestral_with_small_variance(cosine, t):
    prediction = gaussian_denoiser(cosine)(Z, cosine(t))
    key = jax.random.key(0)
    expected = ancestral_step(key, prediction, Z, cosine, t, 0.25, "fixed_small")
    np.testing.assert_allclose(ddim_step(prediction, Z, cosine, t, 0.25, eta=1.0, key=key), expected, atol=2e-5)


@pytest.mark.parametrize("logvar_type", ["fixed_small", "fixed_large"])
def test_the_last_ancestral_step_returns_x(cosine, logvar_type):
    prediction = Prediction(*jax.random.normal(jax.random.key(0), (3, *SHAPE)))
    step = ancestral_step(jax.random.key(0), prediction, Z, cosine, 0.25, 0.25, logvar_type)
    np.testing.assert_array_equal(step, prediction.x)


@pytest.mark.parametrize("sampler", ["ddim", "eta", "ancestral", "addim", "heun", "dpmpp_2m", "renoise", "stochastic"])
def test_a_trajectory_has_every_predicted_x(cosine, sampler):
    """The last one is the sample."""
    draw = samplers(cosine)[sampler]
    x, xs = draw(Z, 5, trajectory=True)
    assert xs.shape == (5, *SHAPE)
    np.testing.assert_allclose(x, draw(Z, 5), atol=1e-6)
    np.testing.assert_allclose(xs[-1], x, atol=1e-6)
    np.testing.assert_allclose(xs[0], gaussian_denoiser(cosine)(Z, cosine(1.0)).x, atol=1e-6)


def samplers(schedule, key=None):
    denoise, key = gaussian_denoiser(schedule), jax.random.key(3) if key is None else key

    def by_ancestral(z, num_steps, **kwargs):
        return ancestral(key, denoise, z, schedule, num_steps, **kwargs)

    return {
        "ddim": lambda z, num_steps, **kwargs: ddim(denoise, z, schedule, num_steps, **kwargs),
        "eta": lambda z, num_steps, **kwargs: ddim(denoise, z, schedule, num_steps, eta=0.5, key=key, **kwargs),
        "ancestral": by_ancestral,
        "addim": lambda z, num_steps, **kwargs: addim(denoise, z, schedule, num_steps, **kwargs),
        "heun": lambda z, num_steps, **kwargs: heun(denoise, z, schedule, num_steps, **kwargs),
        "dpmpp_2m": lambda z, num_steps, **kwargs: dpmpp_2m(denoise, z, schedule, num_steps, **kwargs),
        "renoise": lambda z, num_steps, **kwargs: renoise(key, denoise, z, schedule, num_steps, **kwargs),
        "stochastic": lambda z, num_steps, **kwargs: stochastic(key, denoise, z, schedule, num_steps, **kwargs),
    }


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "addim", "heun", "dpmpp_2m", "renoise", "stochastic"])
def test_samplers_work_under_jit_grad_pmap_and_export(cosine, sampler):
    draw = samplers(cosine)[sampler]
    plain = draw(Z, 6)
    np.testing.assert_allclose(jax.jit(draw)(Z, 6), plain, atol=1e-6)  # a traced number of steps
    gradient = jax.grad(lambda z: draw(z, 6).sum())(Z)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    shards = Z.reshape(4, 2, *SHAPE[1:])
    whole = samplers(cosine, jax.random.split(jax.random.key(3), 2))[sampler]
    for shard, mapped in zip(shards, jax.pmap(lambda z: whole(z, 6))(shards), strict=True):
        np.testing.assert_allclose(mapped, whole(shard, 6), atol=1e-6)
    exported = jax.export.export(jax.jit(functools.partial(draw, num_steps=6)))(jax.ShapeDtypeStruct(SHAPE, np.float32))
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(Z), plain, atol=1e-6)


def test_ddim_works_under_vmap(cosine):
    draw = samplers(cosine)["ddim"]
    np.testing.assert_allclose(jax.vmap(lambda z: draw(z, 6))(Z), draw(Z, 6), atol=1e-6)


@pytest.mark.parametrize("sampler", ["eta", "ancestral", "renoise", "stochastic"])
def test_an_example_with_its_own_key_does_not_depend_on_its_batch(cosine, sampler):
    keys = jax.random.split(jax.random.key(0), 8)
    whole = samplers(cosine, keys)[sampler](Z, 4)
    np.testing.assert_allclose(samplers(cosine, keys[2:5])[sampler](Z[2:5], 4), whole[2:5], atol=1e-6)
    assert np.abs(whole[0] - samplers(cosine, keys[::-1])[sampler](Z, 4)[0]).max() > 0.01


def test_raw_and_typed_keys_give_the_same_samples(cosine):
    raw, typed = jax.random.PRNGKey(0), jax.random.key(0)
    np.testing.assert_array_equal(*(samplers(cosine, key)["ancestral"](Z, 3) for key in (raw, typed)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float64, 1e-5)])
def test_samples_have_the_dtype_of_the_noise(cosine, dtype, tolerance):
    expected = {name: draw(Z, 16) for name, draw in samplers(cosine).items() if name == "ddim"}
    with jax.enable_x64(dtype == jnp.float64):
        for name, draw in samplers(cosine).items():
            x = draw(jnp.asarray(Z, dtype), 16)
            assert x.dtype == dtype
            if name in expected:
                np.testing.assert_allclose(np.asarray(x, np.float64), expected[name], atol=tolerance)


def test_bad_arguments_are_refused(cosine):
    denoise = gaussian_denoiser(cosine)
    for num_steps in (0, np.int64(0), jnp.int32(-1)):
        with pytest.raises(ValueError, match=f"num_steps={num_steps} must be an integer of at least 1"):
            ddim(denoise, Z, cosine, num_steps)
    with pytest.raises(ValueError, match=r"eta=0.5 adds fresh noise at every step. Pass a key"):
        ddim(denoise, Z, cosine, 2, eta=0.5)
    for logvar_type in ("large", "fixed_tiny", "fixed_medium:3"):
        with pytest.raises(ValueError, match="choose"):
            ancestral(jax.random.key(0), denoise, Z, cosine, 2, logvar_type)


@pytest.fixture(scope="module")
def adjusted(cosine):
    """One program for every number of steps."""
    return jax.jit(lambda z, v, t, dt: addim_step(make_denoiser(lambda *_: v, "v")(z, cosine(t)), z, cosine, t, dt))


@pytest.mark.parametrize("num_steps", [1, 2, 8, 64, 1024, 8192])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_addim_step_matches_float64(adjusted, num_steps, seed):
    """The oracle is algorithm 3 with the norms and quotients of the paper."""
    rng = np.random.default_rng(seed)
    z, v = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    i = rng.integers(0, num_steps, SHAPE[0])
    i[:2] = 0, num_steps - 1
    t, dt = (i + 1) / num_steps, 1 / num_steps
    found = adjusted(z, v, t.astype(np.float32), np.float32(dt))
    phi_t, phi_s = oracle.cosine_angle(t), oracle.cosine_angle(t - dt)
    x = np.cos(phi_t)[:, None, None, None] * z - np.sin(phi_t)[:, None, None, None] * v.astype(np.float64)
    expected = oracle.adjusted_step(z.astype(np.float64), x, phi_t, phi_s, i > 0)
    error = np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() < 1e-6
    np.testing.assert_allclose(found[0], x[0], atol=1e-6)  # a step that ends at 0 returns x


def test_addim_restores_variance_that_few_ddim_steps_lose(cosine):
    denoise = gaussian_denoiser(cosine)
    z = jax.random.normal(jax.random.key(0), (4000, 2, 2, 1))
    assert ddim(denoise, z, cosine, 4).std() < addim(denoise, z, cosine, 4).std() < 0.5


def test_renoising_samples_the_forward_process(cosine):
    """It adds noise to the predicted x up to the next time. The last step returns x."""
    prediction = gaussian_denoiser(cosine)(jnp.ones((20_000, 2, 2, 1)), cosine(0.75))
    z = renoise_step(jax.random.key(0), prediction, prediction.x, cosine, 0.75, 0.25)
    alpha, sigma = oracle.alpha_sigma(oracle.cosine_angle(0.5))
    np.testing.assert_allclose(z.mean(), alpha * prediction.x.mean(), atol=0.01)
    np.testing.assert_allclose(z.std(), sigma, atol=0.01)
    last = renoise_step(jax.random.key(0), prediction, prediction.x, cosine, 0.25, 0.25)
    np.testing.assert_array_equal(last, prediction.x)


def test_renoising_a_consistency_model_adds_less_noise(cosine):
    """Its x has the noise sigma_min (Song et al. 2023, algorithm 1): x + sqrt(sigma^2 - sigma_min^2) n."""
    prediction = gaussian_denoiser(cosine)(Z, cosine(0.75))
    z = renoise_step(jax.random.key(0), prediction, Z, cosine, 0.75, 0.25, sigma_min=0.9)
    alpha, sigma = oracle.alpha_sigma(oracle.cosine_angle(0.5))
    noise = np.float64(jax.random.normal(jax.random.key(0), SHAPE))
    expected = alpha * (np.float64(prediction.x) + np.sqrt((sigma / alpha) ** 2 - 0.9**2) * noise)
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 64, 1024])
def test_the_stochastic_step_matches_float64(cosine, num_steps):
    """A DDIM step of 2 / N, then noise up to t - 1 / N, as in Meng et al. (2023)."""
    i = np.array([0, min(1, num_steps - 1), num_steps - 1])
    t = (i + 1) / num_steps
    v = np.random.default_rng(1).standard_normal((3, *SHAPE[1:])).astype(np.float32)
    prediction = make_denoiser(lambda *_: v, "v")(Z[:3], cosine(t.astype(np.float32)))
    keys = jax.random.split(jax.random.key(0), 3)
    step = jax.jit(lambda z, t, dt: stochastic_step(keys, prediction, z, cosine, t, dt))
    found = step(Z[:3], t.astype(np.float32), np.float32(1 / num_steps))
    noise = np.stack([jax.random.normal(key, SHAPE[1:]) for key in keys]).astype(np.float64)

    def scales(t):
        angle = oracle.cosine_angle(np.maximum(t, 0))[:, None, None, None]
        return np.cos(angle), np.sin(angle)

    (a_t, s_t), (a_m, s_m), (a_s, s_s) = (scales(t - n / num_steps) for n in (0, 1, 2))
    z = Z[:3].astype(np.float64)
    x = a_t * z - s_t * v
    eps = (z - a_t * x) / s_t
    at_s = np.reshape(i <= 1, (3, 1, 1, 1))  # a step cannot end below time 0
    z_s = np.where(at_s, x, a_s * x + s_s * eps)
    z_m = a_m / a_s * z_s + np.sqrt(s_m**2 - (a_m / a_s) ** 2 * s_s**2) * noise
    expected = np.where(np.reshape(i == 0, (3, 1, 1, 1)), x, z_m)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_addim_step_without_predicted_noise_is_the_ddim_step(cosine):
    """If the predicted eps is 0, the correction has no direction."""
    nothing = Prediction(Z, jnp.zeros_like(Z), jnp.zeros_like(Z))
    np.testing.assert_array_equal(addim_step(nothing, Z, cosine, 0.5, 0.25), ddim_step(nothing, Z, cosine, 0.5, 0.25))


def test_derivatives_of_the_last_step_are_finite(cosine):
    prediction, keys = gaussian_denoiser(cosine)(Z, cosine(0.25)), jax.random.split(jax.random.key(0), 8)
    for step in (
        lambda t, dt: ddim_step(prediction, Z, cosine, t, dt, eta=0.5, key=keys),
        lambda t, dt: stochastic_step(keys, prediction, Z, cosine, t, dt),
    ):
        assert np.all(np.isfinite(jax.grad(lambda t, dt, step=step: step(t, dt).sum(), (0, 1))(0.25, 0.25)))
