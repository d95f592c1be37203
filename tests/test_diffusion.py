import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_distillation.diffusion import MEAN_TYPES, alpha_sigma, log1mexp, make_denoiser, posterior, q_sample
from diffusion_distillation.shapes import at_least_float32

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (3, 4, 4, 2)
logsnrs = st.floats(-20, 20, width=32)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mean_type", ["x", "v", "eps"])
@pytest.mark.parametrize("logvar_type", ["small", "large", "medium:0.3"])
def test_posterior_golden(golden, golden_denoiser, cosine, mean_type, logvar_type):
    d = golden("sampling_uncond")
    z = d["init_z"]
    x = golden_denoiser(mean_type, clip_x=True)(z, cosine(0.75)).x
    mean, logvar = posterior(z, x, cosine(0.75), cosine(0.5), logvar_type)
    name = f"ancestral_{mean_type}_fixed_{logvar_type}"
    np.testing.assert_allclose(mean, d[f"{name}_mean"], atol=1e-4)
    np.testing.assert_allclose(
        logvar, np.broadcast_to(d[f"{name}_logvar"], z.shape)[:1, :1, :1, :1].squeeze(), rtol=1e-5
    )
    np.testing.assert_allclose(jnp.exp(0.5 * logvar), d[f"{name}_std"].flat[0], rtol=1e-5)


@settings(max_examples=15)
@given(logsnr_t=logsnrs, gap=st.floats(2**-12, 20, width=32))
def test_posterior_against_float64(logsnr_t, gap):
    """Bayes' rule for Gaussians, q(z_s | z_t, x) from q(z_s | x) and q(z_t | z_s); the gap may be tiny."""
    logsnr_s = np.float32(logsnr_t + gap)
    x, z_t = normal(0), normal(1)
    a_t, a_s = (1 / (1 + np.exp(-np.float64(v))) for v in (logsnr_t, logsnr_s))  # alpha^2
    s_t, s_s = (1 / (1 + np.exp(np.float64(v))) for v in (logsnr_t, logsnr_s))  # sigma^2
    ratio = a_t / a_s
    s_ts = s_t * -np.expm1(np.float64(logsnr_t) - np.float64(logsnr_s))  # sigma^2 of q(z_t | z_s)
    variance = s_ts * s_s / s_t
    mean = variance * (np.sqrt(ratio) / s_ts * z_t + np.sqrt(a_s) / s_s * x)
    got, logvar = posterior(z_t, x, np.float32(logsnr_t), logsnr_s, "small")
    np.testing.assert_allclose(got, mean, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(logvar, np.log(variance), rtol=1e-5, atol=1e-5)
    _, large = posterior(z_t, x, np.float32(logsnr_t), logsnr_s, "large")
    np.testing.assert_allclose(large, np.log(s_ts), rtol=1e-5, atol=1e-5)
    _, mixed = posterior(z_t, x, np.float32(logsnr_t), logsnr_s, "medium:0.25")
    np.testing.assert_allclose(mixed, 0.25 * large + 0.75 * logvar, rtol=1e-5, atol=1e-5)


@given(x=st.floats(2**-40, 100, width=32))
def test_log1mexp(x):
    np.testing.assert_allclose(log1mexp(jnp.float32(x)), np.log(-np.expm1(-np.float64(x))), rtol=1e-4, atol=1e-12)
    # d/dx log(1 - exp(-x)) = 1 / (exp(x) - 1), finite for every x > 0
    np.testing.assert_allclose(jax.grad(log1mexp)(jnp.float32(x)), 1 / np.expm1(np.float64(x)), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@given(logsnr=st.floats(-8, 8, width=32))
def test_a_perfect_network_is_read_back(mean_type, logsnr):
    """Whatever a network outputs, if it is right the prediction is the x, eps and v that z was made of."""
    x, eps = normal(0), normal(1)
    z = q_sample(x, eps, logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    v = alpha * eps - sigma * x
    output = {"x": x, "eps": eps, "v": v, "both": jnp.concatenate([x, eps], axis=-1)}[mean_type]
    prediction = make_denoiser(lambda z, logsnr: jnp.asarray(output), mean_type)(z, logsnr)
    for got, expected in zip(prediction, (x, eps, v), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-4)  # x from eps divides by alpha, 0.018 at the least


def test_both_mixes_its_heads():
    """Salimans & Ho, section 4: x = sigma^2 x_head + alpha^2 (z - sigma eps_head) / alpha."""
    z, x_head, eps_head, logsnr = normal(0), normal(1), normal(2), np.float32(0.7)
    alpha, sigma = alpha_sigma(logsnr)
    denoise = make_denoiser(lambda z, logsnr: jnp.concatenate([x_head, eps_head], axis=-1), "both")
    expected = sigma**2 * x_head + alpha**2 * (z - sigma * eps_head) / alpha
    np.testing.assert_allclose(denoise(z, logsnr).x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean_type", ["eps", "x", "v"])
def test_clipping_moves_the_whole_prediction(mean_type):
    z, logsnr = normal(0), jnp.array([-3.0, 0.0, 2.0])
    clipped = make_denoiser(lambda z, logsnr: 3 * z, mean_type, clip_x=True)(z, logsnr)
    alpha, sigma = (value[:, None, None, None] for value in alpha_sigma(logsnr))
    assert np.abs(clipped.x).max() <= 1
    np.testing.assert_allclose(alpha * clipped.x + sigma * clipped.eps, z, atol=1e-5)
    np.testing.assert_allclose(alpha * clipped.eps - sigma * clipped.x, clipped.v, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        z, logsnr = jnp.ones(SHAPE, dtype), jnp.zeros(3, at_least_float32(dtype))
        assert q_sample(z, z, logsnr).dtype == dtype
        assert posterior(z, z, logsnr, logsnr + 1, "large")[0].dtype == dtype
        assert {part.dtype for part in make_denoiser(lambda z, _: z, "v")(z, logsnr)} == {jnp.dtype(dtype)}


def test_vmap_over_examples():
    z, logsnr = normal(0), jnp.array([-3.0, 0.0, 2.0])
    denoise = make_denoiser(lambda z, logsnr: jnp.tanh(z), "v")
    for whole, mapped in zip(denoise(z, logsnr), jax.vmap(denoise)(z, logsnr), strict=True):
        np.testing.assert_allclose(whole, mapped, rtol=1e-6)


def test_errors():
    z = normal(0)
    with pytest.raises(ValueError, match=r"mean_type 'epsilon'; choose one of \['eps', 'x', 'v', 'both'\]"):
        make_denoiser(lambda z, logsnr: z, "epsilon")
    with pytest.raises(ValueError, match="needs a network output of 4 channels"):
        make_denoiser(lambda z, logsnr: z, "both")(z, 0.0)
    for variance in ("tiny", "medium", "medium:2", "medium:x", "large:0.3"):
        with pytest.raises(ValueError, match=f"variance '{variance}'; choose 'small', 'large', or 'medium:f'"):
            posterior(z, z, 0.0, 1.0, variance)
