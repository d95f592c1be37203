"""Small autoencoders, in the format of diffusers."""

import json

import safetensors.numpy
from peers import seeded

from diffusion_distillation.interop import diffusers
from helpers.runs import ROOT

GOLDEN = json.loads((ROOT / "tests" / "golden" / "autoencoder.json").read_text())


def write_golden(folder, name="sd1", **changes):
    """Write an autoencoder with golden numbers, with changes to its config. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    described = GOLDEN[name]
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1"} | described["config"] | changes
    (folder / diffusers.autoencoder.CONFIG).write_text(json.dumps(config))
    safetensors.numpy.save_file(seeded.unet_weights(described["shapes"]), folder / diffusers.WEIGHTS)
    return folder
