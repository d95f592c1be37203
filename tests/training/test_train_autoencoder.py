"""Training of small autoencoders: the loss falls, an interrupted run resumes to the same bits, the folder loads."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers.runs import call, steps_saved

from diffusion_distillation import config as cfg
from diffusion_distillation import latents
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import DivergedError, InputError
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.training import autoencoder as training
from diffusion_distillation.training.autoencoder import autoencoder_loss, make_autoencoder, train_autoencoder
from diffusion_distillation.training.monitor import Monitor

SOURCE = load_source("letters", num_images=64, image_size=8)


def make_config(**args):
    config = cfg.load("letters_autoencoder")
    config.dataset.args = dict(num_images=64, image_size=8)
    config.model.args.update(channels=(4, 4), norm_groups=1, latent_channels=2)
    config.model.args.update(args)
    config.train.update(num_train_steps=12, batch_size=16, learning_rate_warmup_steps=0, log_loss_every_steps=4)
    return cfg.resolve(config)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_training_resumes_to_the_same_parameters(tmp_path, monkeypatch):
    config = make_config()
    whole = train_autoencoder(config, tmp_path / "whole", SOURCE)
    first, *_, last = metrics_of(tmp_path / "whole")
    assert last["loss"] < 0.9 * first["loss"] and last["l1"] + 1e-3 * last["kl"] == pytest.approx(last["loss"])

    def interrupt(monitor, call, metrics):
        if call.start == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return add(monitor, call, metrics)

    add = Monitor.add
    monkeypatch.setattr(Monitor, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(config, tmp_path / "resumed", SOURCE)
    assert steps_saved(tmp_path / "resumed") == [5]
    resumed = train_autoencoder(config, tmp_path / "resumed", SOURCE)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert [line["step"] for line in metrics_of(tmp_path / "resumed")] == [4, 8, 12]


def test_an_autoencoder_whose_last_updates_were_not_finite_is_not_returned(tmp_path, monkeypatch):
    config = make_config()
    metrics = {name: np.float32(np.nan) for name in ("loss", "l1", "kl", "gradient_norm", "learning_rate")}

    def update(state, key, images):
        return state._replace(step=state.step + 1), metrics

    monkeypatch.setattr(training, "make_update", lambda *_: update)
    with pytest.raises(DivergedError, match="the last updates were not finite"):
        train_autoencoder(config, tmp_path, SOURCE)


def test_the_loss_is_l1_and_kl():
    network, _ = make_autoencoder(make_config().model, SOURCE.image_shape)
    images = latents.from_uint8(SOURCE[np.arange(4)]["image"])
    params = jax.jit(network.init)(jax.random.key(0), images)["params"]
    keys = jax.random.split(jax.random.key(1), 4)
    loss, parts = autoencoder_loss(network, params, images, keys, 0.5)
    encode, decode = autoencoder.make_functions(network, params)
    mean, std = map(np.asarray, encode(images))
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    l1 = np.abs(decode(mean + std * noise) - images).mean()
    kl = ((mean**2 + std**2 - 1) / 2 - np.log(std)).sum() / images.size
    assert float(parts["l1"]) == pytest.approx(float(l1), rel=1e-4)
    assert float(parts["kl"]) == pytest.approx(float(kl), rel=1e-4)
    assert float(loss) == pytest.approx(float(l1 + 0.5 * kl), rel=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (dict(chanels=(4,)), r"Unknown field config.model.args.chanels. Did you mean 'channels'"),
        (dict(norm_groups=3), r"channels=\(4, 4\) must be multiples of norm_groups=3"),
    ],
)
def test_options_that_cannot_work_are_refused(args, message):
    with pytest.raises(InputError, match=message):
        make_autoencoder(make_config(**args).model, SOURCE.image_shape)


def test_the_script_writes_a_folder_that_loads_with_latents_of_unit_variance(tmp_path):
    flags = ["num_images=64", "image_size=8"]
    options = ["channels=(4,4)", "norm_groups=1", "latent_channels=2"]
    training = ["num_train_steps=12", "batch_size=16", "learning_rate_warmup_steps=0"]
    printed = call(
        "train_autoencoder",
        "--config=letters_autoencoder",
        *(f"--config.dataset.args.{flag}" for flag in flags),
        *(f"--config.model.args.{option}" for option in options),
        *(f"--config.train.{field}" for field in training),
        f"--workdir={tmp_path}",
    )
    assert "step 12/12" in printed and "Peak signal-to-noise ratio" in printed
    encode, decode, info = autoencoder.load(tmp_path / "vae")
    images = latents.from_uint8(SOURCE[np.arange(64)]["image"])
    space = latents.latent_space(encode, decode, info, SOURCE.image_shape)
    mean, std = encode(images)
    x = space.sample(mean, std, jax.random.normal(jax.random.key(0), mean.shape))
    assert np.std(x) == pytest.approx(1, abs=0.05)
    assert (tmp_path / "reconstructions.png").exists()


def test_other_configs_are_refused(tmp_path):
    printed = call("train_autoencoder", "--config=digits_base", f"--workdir={tmp_path}", fails=True)
    assert "config.model.name='unet_iddpm' is no autoencoder" in printed
