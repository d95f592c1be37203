import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_distillation.diffusion import MEAN_TYPES, alpha_sigma, log1mexp, make_denoiser, posterior, q_sample
from diffusion_distillation.schedules import get_logsnr_schedule
from diffusion_distillation.shapes import at_least_float32

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (3, 4, 4, 2)
logsnrs = st.floats(-20, 20, width=32)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mean_type", ["x", "v", "eps"])
@pytest.mark.parametrize("logvar_type", ["small", "large", "medium:0.3"])
def test_the_posterior_matches_the_published_one(golden, golden_denoiser, cosine, mean_type, logvar_type):
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
def test_the_posterior_is_bayes_rule_in_float64(logsnr_t, gap):
    """q(z_s | z_t, x) follows from q(z_s | x) and q(z_t | z_s), however close s and t are."""
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
def test_log1mexp_and_its_gradient_match_float64(x):
    np.testing.assert_allclose(log1mexp(jnp.float32(x)), np.log(-np.expm1(-np.float64(x))), rtol=1e-4, atol=1e-12)
    # d/dx log(1 - exp(-x)) = 1 / (exp(x) - 1), finite for every x > 0
    np.testing.assert_allclose(jax.grad(log1mexp)(jnp.float32(x)), 1 / np.expm1(np.float64(x)), rtol=1e-4, atol=1e-12)


def perfect_f(x, eps, logsnr, sigma_min, sd=0.5):
    """The F of x = c_skip x_edm + c_out F in float64 (Karras et al. 2022, table 1; Song et al. 2023, appendix C)."""
    sigma = np.exp(-0.5 * np.float64(logsnr))
    c_skip = sd**2 / ((sigma - sigma_min) ** 2 + sd**2)
    c_out = (sigma - sigma_min) * sd / np.sqrt(sigma**2 + sd**2)
    return ((x - c_skip * (x + sigma * eps.astype(np.float64))) / c_out).astype(np.float32)


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@given(logsnr=st.floats(-8, 8, width=32))
def test_a_perfect_network_predicts_what_z_was_made_of(mean_type, logsnr):
    """Its output is x, eps, v, or both x and eps."""
    x, eps = normal(0), normal(1)
    z = q_sample(x, eps, logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    v = alpha * eps - sigma * x
    outputs = {"x": x, "eps": eps, "v": v, "both": jnp.concatenate([x, eps], axis=-1), "flow": eps - x}
    outputs["edm"], outputs["consistency"] = (perfect_f(x, eps, logsnr, sigma_min) for sigma_min in (0.0, 0.002))
    prediction = make_denoiser(lambda z, logsnr: jnp.asarray(outputs[mean_type]), mean_type)(z, logsnr)
    for got, expected in zip(prediction, (x, eps, v), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-4)  # x from eps divides by alpha, 0.018 at the least


@pytest.mark.parametrize("t", [1.0, 0.5, 0.001])
def test_networks_get_z_in_the_scale_of_their_mean_type(t):
    """Flow matching's z is (1 - t) x + t eps, and EDM's is c_in (x + s eps), s = t / (1 - t)."""
    x, eps = np.float64(normal(0)), np.float64(normal(1))
    z = (((1 - t) * x + t * eps) / np.hypot(1 - t, t)).astype(np.float32)
    logsnr = get_logsnr_schedule("flow")(t)
    seen = {}
    for mean_type in MEAN_TYPES[:3] + MEAN_TYPES[4:]:
        make_denoiser(lambda z, logsnr, mean_type=mean_type: seen.setdefault(mean_type, z), mean_type)(z, logsnr)
    np.testing.assert_allclose(seen["flow"], (1 - t) * x + t * eps, atol=1e-6)
    c_in_x_edm = ((1 - t) * x + t * eps) / np.hypot(0.5 * (1 - t), t)  # c_in = 1 / sqrt(s^2 + 0.5^2)
    for mean_type in ("edm", "consistency"):
        np.testing.assert_allclose(seen[mean_type], c_in_x_edm, rtol=1e-5, atol=1e-6)
    for mean_type in ("x", "eps", "v"):
        np.testing.assert_array_equal(seen[mean_type], z)


def test_flow_predictions_are_regular_at_both_ends():
    """x = z - u at t = 1, and eps = x + u at t = 0."""
    z, u = normal(0), normal(1)
    logsnr = get_logsnr_schedule("flow")(jnp.array([1.0, 1.0, 0.0]))
    prediction = make_denoiser(lambda z, logsnr: jnp.asarray(u), "flow")(z, logsnr)
    np.testing.assert_allclose(prediction.x, np.concatenate([(z - u)[:2], z[2:]]), atol=1e-6)
    np.testing.assert_allclose(prediction.eps, np.concatenate([z[:2], (z + u)[2:]]), atol=1e-6)


def test_a_consistency_model_returns_its_input_at_the_least_noise():
    z, logsnr = normal(0), np.float32(-2 * np.log(0.002))
    denoise = make_denoiser(lambda z, logsnr: 10 * z, "consistency")
    np.testing.assert_allclose(denoise(z, logsnr).x, z * np.sqrt(1 + 0.002**2), rtol=1e-5)


def test_a_network_with_both_heads_mixes_them_by_alpha_and_sigma():
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
def test_results_have_the_dtype_of_z(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        z, logsnr = jnp.ones(SHAPE, dtype), jnp.zeros(3, at_least_float32(dtype))
        assert q_sample(z, z, logsnr).dtype == dtype
        assert posterior(z, z, logsnr, logsnr + 1, "large")[0].dtype == dtype
        assert {part.dtype for part in make_denoiser(lambda z, _: z, "v")(z, logsnr)} == {jnp.dtype(dtype)}
        assert {part.dtype for part in make_denoiser(lambda z, _: z, "edm")(z, logsnr)} == {jnp.dtype(dtype)}


def test_a_denoiser_works_under_vmap():
    z, logsnr = normal(0), jnp.array([-3.0, 0.0, 2.0])
    denoise = make_denoiser(lambda z, logsnr: jnp.tanh(z), "v")
    for whole, mapped in zip(denoise(z, logsnr), jax.vmap(denoise)(z, logsnr), strict=True):
        np.testing.assert_allclose(whole, mapped, rtol=1e-6)


def test_bad_arguments_are_refused():
    z = normal(0)
    with pytest.raises(ValueError, match=r"mean_type 'epsilon'; choose one of \['eps', 'x', 'v', 'both', 'flow', "):
        make_denoiser(lambda z, logsnr: z, "epsilon")
    with pytest.raises(ValueError, match="needs a network output of 4 channels"):
        make_denoiser(lambda z, logsnr: z, "both")(z, 0.0)
    for variance in ("tiny", "medium", "medium:2", "medium:x", "large:0.3"):
        with pytest.raises(ValueError, match=f"variance '{variance}'; choose 'small', 'large', or 'medium:f'"):
            posterior(z, z, 0.0, 1.0, variance)
