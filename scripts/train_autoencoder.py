r"""Train a small autoencoder of small images, and write it in the format of diffusers.

    diffusion_distillation train_autoencoder --config=letters_autoencoder --workdir=runs/letters/autoencoder
    diffusion_distillation encode_data --config=letters_base --autoencoder=runs/letters/autoencoder/vae \
        --out=runs/letters/latents

The loss is the L1 of the images and the KL of the latents, and nothing else, which suffices for small images. Use a
published autoencoder for large ones. The folder vae in the workdir has the AutoencoderKL; its scaling_factor is 1 over
the standard deviation of its latents. reconstructions.png has rows of images, each above a row of their
reconstructions. The same command resumes an interrupted run.
"""

import jax
import numpy as np
from absl import flags

from diffusion_distillation import cli
from diffusion_distillation import config as cfg
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop.diffusers import autoencoder
from diffusion_distillation.latents import from_uint8, to_uint8
from diffusion_distillation.networks.autoencoder import make_functions
from diffusion_distillation.report.grids import save_grid
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.autoencoder import NAME, make_autoencoder, measure, train_autoencoder

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, created if it is missing.", required=True)
CHANGE = flags.DEFINE_bool("change", False, "Resume a run whose config differs.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "The dtype of the stored parameters.")
PROCESSES = cli.ProcessFlags()
flags.mark_flag_as_required("config")


def main() -> None:
    config = cfg.resolve(CONFIG.value)
    if config.model.name != NAME:
        raise InputError(f"config.model.name={config.model.name!r} is no autoencoder; it must be {NAME!r}.")
    workdir = as_path(WORKDIR.value)
    PROCESSES.start(config.train.batch_size, config.model.dtype)
    source = load_source(config.dataset.name, **config.dataset.args)
    params = train_autoencoder(config, workdir, source, change=CHANGE.value)
    if not multihost.is_main():
        return
    network, _ = make_autoencoder(config.model, source.image_shape)
    encode, decode = make_functions(network.clone(dtype=None), params)
    measured = measure(encode, decode, source)
    folder = workdir / "vae"
    scale = 1 / measured["std"]
    autoencoder.write(folder, network, params, scale=scale, image_shape=source.image_shape, dtype=DTYPE.value)
    images = source[np.arange(min(16, len(source)))]["image"]
    decoded = to_uint8(jax.device_get(decode(encode(from_uint8(images))[0])))
    save_grid(np.concatenate([images, decoded]), workdir / "reconstructions.png", columns=len(images))
    print(f"Peak signal-to-noise ratio of reconstructions: {measured['psnr']:.1f} dB")
    following = cli.command("encode_data", **cli.config_arguments(), autoencoder=folder, out=workdir / "latents")
    cli.saved(f"the autoencoder to {folder}, and reconstructions to {workdir / 'reconstructions.png'}", following)


if __name__ == "__main__":
    cli.run(main)
