"""Base training: its times, and its losses in other parameterizations."""

import jax
import numpy as np
import pytest
from helpers.steps import AFFINE, SOURCE, make_config, run

from diffusion_distillation import config as cfg
from diffusion_distillation.data import read_batches
from diffusion_distillation.losses import continuous_times, log_normal_times, logit_normal_times
from diffusion_distillation.methods import make_method
from diffusion_distillation.schedules import get_logsnr_schedule


def config_with(**model):
    """The config of a base model with these fields of its `model` section."""
    config = make_config().copy_and_resolve_references()
    with config.unlocked():
        config.model.update(model)
    return cfg.resolve(config)


KARRAS = dict(name="karras")
TIMES = {
    "uniform": (dict(), continuous_times),
    "logit_normal": (dict(mean=-0.5), lambda keys: logit_normal_times(keys, -0.5, 1.0)),
    "log_normal": (dict(std=2.0), lambda keys: log_normal_times(keys, get_logsnr_schedule(**KARRAS), -1.2, 2.0)),
}


@pytest.mark.parametrize("name", TIMES)
def test_training_times_have_the_distribution_of_the_config(name):
    options, expected = TIMES[name]
    config = config_with(train_logsnr_schedule=KARRAS, train_times=dict(name=name, **options))
    keys = jax.random.split(jax.random.key(0), 100)
    np.testing.assert_array_equal(make_method(config).times(keys, 0, None).t, expected(keys))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            dict(name="normal"),
            r"model.train_times: Unknown times 'normal'; choose one of \['uniform', 'logit_normal', ",
        ),
        (dict(name="uniform", mean=0.0), r"The 'uniform' times have no 'mean'; they take \[\]"),
        (dict(name="log_normal", std=0.0), "need a finite mean and an std above 0; got {'std': 0.0}"),
        (dict(name="log_normal", std="1"), "std='1' must be a number"),
    ],
)
def test_training_times_that_do_not_exist_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        config_with(train_times=times)


@pytest.mark.parametrize(("mean_type", "weight"), [("edm", "edm_mse"), ("flow", "flow_mse")])
def test_the_loss_of_a_network_without_output_is_the_size_of_what_it_should_output(mean_type, weight):
    """EDM's F or the velocity u, by the formulas of the papers in float64."""
    sigma_data = 0.3
    fields = dict(mean_type=mean_type, mean_loss_weight_type=weight, sigma_data=sigma_data)
    config = config_with(**fields, train_logsnr_schedule=dict(name="cosine", logsnr_min=-8.0, logsnr_max=8.0))
    silent = jax.tree.map(np.zeros_like, AFFINE)
    _, [loss] = run(config, 1, params=silent)

    data_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 4))(np.arange(16))
    x = next(read_batches(SOURCE, 0, range(1), 16))["image"].astype(np.float64) / 127.5 - 1
    eps = np.float64(jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 1]))
    t = np.float64(make_method(config).times(keys[:, 2], 0, None).t)
    logsnr = np.float64(get_logsnr_schedule(**config.model.train_logsnr_schedule)(np.float32(t)))
    s = np.exp(-0.5 * logsnr).reshape(-1, 1, 1, 1)  # EDM's sigma
    c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / np.sqrt(s**2 + sigma_data**2)
    expected = {"edm": (x - c_skip * (x + s * eps)) / c_out, "flow": eps - x}[mean_type]
    np.testing.assert_allclose(loss, np.mean(expected**2), rtol=1e-4)
