import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from diffusion_distillation.diffusion import Prediction, alpha_sigma, q_sample
from diffusion_distillation.distillation import two_step_target
from diffusion_distillation.losses import (
    WEIGHT_TYPES,
    continuous_times,
    data_target,
    discrete_steps,
    log_normal_times,
    logit_normal_times,
    training_loss,
)
from diffusion_distillation.schedules import get_logsnr_schedule

pytestmark = pytest.mark.usefixtures("strict")

CASES = ["continuous", *(f"{kind}_{n}" for kind in ("discrete", "distill") for n in (1, 4, 16))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean_type", ["x", "v", "eps"])
def test_losses_match_the_published_ones(golden, golden_denoiser, cosine, mean_type, case):
    d = golden("losses_uncond")
    x, eps = d["x"], d["eps"]
    kind, _, num_steps = case.partition("_")
    i = d[f"i_{num_steps}"] if num_steps else None
    t = (i + 1) / np.float32(num_steps) if num_steps else d["u_continuous"]
    logsnr = cosine(t)
    z = q_sample(x, eps, logsnr)
    if kind == "distill":
        target = two_step_target(golden_denoiser(mean_type, of_teacher=True), z, i, int(num_steps), cosine)
    else:
        target = data_target(x, eps, logsnr)
    prediction = golden_denoiser(mean_type)(z, logsnr)
    for weight_type in ("constant", "snr", "snr_trunc", "v_mse"):
        loss = training_loss(prediction, target, weight_type)
        expected = d[f"loss_{mean_type}_{weight_type}_{case}"]
        # At t = 1 the published logsnr is off by 1e-3 (see test_schedules), and with it alpha^2 = 2e-9, by which x read
        # from eps is divided, and with which the error of eps read from x or v is weighted.
        np.testing.assert_allclose(loss[t < 1], expected[t < 1], rtol=1e-4)
        np.testing.assert_allclose(loss[t == 1], expected[t == 1], rtol=2e-3)


def test_weights_are_functions_of_snr():
    """Salimans & Ho (2022), section 4; flow matching; and Karras et al. (2022)."""
    rng = np.random.default_rng(0)
    z, x, other = rng.standard_normal((3, 5, 4, 4, 2)).astype(np.float32)
    logsnr = np.linspace(-4, 4, 5, dtype=np.float32)
    alpha, sigma = (value[:, None, None, None] for value in alpha_sigma(logsnr))

    def prediction(x):
        eps = (z - alpha * x) / sigma
        return Prediction(x, eps, alpha * eps - sigma * x)

    snr, mse = np.exp(logsnr), np.square(x - other).mean(axis=(1, 2, 3))
    weights = {"constant": np.ones(5), "snr": snr, "snr_trunc": np.maximum(snr, 1), "v_mse": snr + 1}
    weights["flow_mse"] = (1 + np.exp(0.5 * logsnr)) ** 2  # 1 / t^2, as x - x* = -t (u - u*)
    edm_sigma, sigma_data = np.exp(-0.5 * logsnr), 0.3
    weights["edm_mse"] = (edm_sigma**2 + sigma_data**2) / (edm_sigma * sigma_data) ** 2  # 1 / c_out^2
    assert set(weights) == set(WEIGHT_TYPES)
    for weight_type, weight in weights.items():
        loss = training_loss(prediction(other), prediction(x), weight_type, logsnr, sigma_data=sigma_data)
        np.testing.assert_allclose(loss, weight * mse, rtol=1e-4)


def test_times_are_uniform_and_depend_on_their_own_key():
    keys = jax.random.split(jax.random.key(0), 4000)
    t = continuous_times(keys)
    assert 0 < t.min() < 0.01 and 0.99 < t.max() < 1 and abs(t.mean() - 0.5) < 0.02
    i = jax.jit(discrete_steps)(keys, 8)
    np.testing.assert_allclose(np.bincount(i, minlength=8) / 4000, 1 / 8, atol=0.02)
    assert np.array_equal(i[:10], discrete_steps(keys[:10], 8))


def test_logits_and_noise_of_training_times_are_normal():
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = scipy.special.logit(np.float64(logit_normal_times(keys, -0.5, 2.0)))
    assert scipy.stats.kstest(logits, scipy.stats.norm(-0.5, 2.0).cdf).pvalue > 0.01
    schedule = get_logsnr_schedule("karras")
    log_sigma = -0.5 * schedule(log_normal_times(keys, schedule))
    assert scipy.stats.kstest(np.float64(log_sigma), scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_weights_that_depend_on_the_noise_need_logsnr():
    prediction = Prediction(*[jnp.zeros((1, 2, 2, 1))] * 3)
    for weight_type in ("flow_mse", "edm_mse"):
        with pytest.raises(ValueError, match=f"{weight_type!r} needs the log-SNR of z: pass logsnr"):
            training_loss(prediction, prediction, weight_type)


def test_an_unknown_weight_is_refused():
    prediction = Prediction(*[jnp.zeros((1, 2, 2, 1))] * 3)
    allowed = re.escape("['constant', 'snr', 'snr_trunc', 'v_mse', 'flow_mse', 'edm_mse']")
    with pytest.raises(ValueError, match=f"mean_loss_weight_type 'snr_truncated'; choose one of {allowed}"):
        training_loss(prediction, prediction, "snr_truncated")
