"""A tiny autoencoder in a folder of diffusers, and models of its latents: 8x8 with 4 channels, of 16x16 images."""

import dataclasses
import json

import numpy as np
import safetensors.numpy
from peers import seeded

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import Metadata
from diffusion_distillation.data import ArraySource
from diffusion_distillation.interop import diffusers
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.networks.model import make_network
from helpers.models import random_params
from helpers.runs import ROOT

DESCRIBED = json.loads((ROOT / "tests" / "golden" / "autoencoder.json").read_text())
IMAGE_SHAPE = (16, 16, 3)
SHAPE = (8, 8, 4)


def write_autoencoder(folder, **changes):
    """Write the autoencoder with changes to its config. Returns its path and what is known of it."""
    folder.mkdir(parents=True, exist_ok=True)
    described = DESCRIBED["sd1"]
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1"} | described["config"] | changes
    (folder / diffusers.autoencoder.CONFIG).write_text(json.dumps(config))
    safetensors.numpy.save_file(seeded.unet_weights(described["shapes"]), folder / diffusers.WEIGHTS)
    _, _, info = autoencoder.load(folder)
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


class LatentSource:
    """The latents of bright columns and their mirror images, as `data.latents` reads them from a folder."""

    num_classes = 3
    class_names = ("red", "green", "blue")
    image_shape = IMAGE_SHAPE

    def __init__(self, path, info, parts=2):
        self.autoencoder, self.autoencoder_path = info, path
        self.images = dict(name="helpers.latent_models:columns", args={})
        self.fingerprint = f"columns {info.fingerprint} {parts}"
        encode, _, _ = autoencoder.load(path)
        images = columns()[np.arange(24)]["image"] / np.float32(127.5) - 1
        moments = [encode(part) for part in (images, images[:, :, ::-1])[:parts]]
        self._mean, self._std = (np.stack(part, axis=1).astype(np.float16) for part in zip(*moments, strict=True))

    def __len__(self):
        return len(self._mean)

    def __getitem__(self, indices):
        return {"mean": self._mean[indices], "std": self._std[indices], "label": np.int32(indices % 3)}


def columns():
    """24 images with a bright column in one of three colors."""
    images = np.zeros((24, *IMAGE_SHAPE), np.uint8)
    for number in range(24):
        images[number, :, number % 16, number % 3] = 255
    return ArraySource(images, np.arange(24) % 3, 3, LatentSource.class_names)


def without_autoencoder(metadata):
    """The metadata of the same model as one of pixels."""
    return dataclasses.replace(metadata, image_shape=SHAPE, autoencoder=None, autoencoder_path=None)
