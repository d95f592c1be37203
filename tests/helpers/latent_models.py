"""A tiny autoencoder in a folder of diffusers, and models of its latents: 8x8 with 4 channels, of 16x16 images."""

import dataclasses

import numpy as np

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import Metadata
from diffusion_distillation.data import ArraySource, load_source
from diffusion_distillation.data.encode import describe, encode_dataset
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.networks.model import make_network
from diffusion_distillation.runtime.files import as_path
from helpers.autoencoders import write_golden
from helpers.models import random_params

IMAGE_SHAPE = (16, 16, 3)
SHAPE = (8, 8, 4)


def write_autoencoder(folder, **changes):
    """Write the autoencoder with changes to its config. Returns its path and what is known of it."""
    _, _, info = autoencoder.load(write_golden(folder, **changes))
    return str(folder), info


def make_config(**model):
    """The config of a model of latents with a network that compiles in no time."""
    config = cfg.defaults()
    config.dataset.name = "Latents"
    config.model.name, config.model.args = "helpers.own_parts:affine", dict(width=32)
    fields = dict(mean_type="v", eval_sampling_num_steps=4, eval_clip_denoised=False)
    config.model.update(fields | model)
    config.train.update(batch_size=16, learning_rate=1e-3)
    return cfg.resolve(config)


def make_model(path, info, num_classes=3, **model):
    """Random parameters and metadata of a model of the autoencoder's latents."""
    config = make_config(**model)
    params = random_params(make_network(config.model, SHAPE, num_classes), num_classes, SHAPE)
    metadata = Metadata(
        config=config,
        image_shape=IMAGE_SHAPE,
        num_classes=num_classes,
        num_steps=0,
        autoencoder=info,
        autoencoder_path=path,
    )
    return params, metadata


def encoded_columns(folder, mirror=True):
    """The source of latents of `columns`, in a folder that has the autoencoder too."""
    path, info = write_autoencoder(folder / "kl")
    encode, _, _ = autoencoder.load(path)
    dataset = dict(name="helpers.latent_models:columns", args={})
    latents = as_path(folder / f"latents_{mirror}")
    manifest = describe(columns(), dataset, info, autoencoder_path=path, mirror=mirror)
    encode_dataset(columns(), encode, manifest, latents, batch_size=8)
    return load_source("Latents", path=str(latents))


def columns():
    """24 images with a bright column in one of three colors."""
    images = np.zeros((24, *IMAGE_SHAPE), np.uint8)
    for number in range(24):
        images[number, :, number % 16, number % 3] = 255
    return ArraySource(images, np.arange(24) % 3, 3, ("red", "green", "blue"))


def without_autoencoder(metadata):
    """The metadata of the same model as one of pixels."""
    return dataclasses.replace(metadata, image_shape=SHAPE, autoencoder=None, autoencoder_path=None)
