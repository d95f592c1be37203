r"""A base model of colored letters in the latents of the pretrained autoencoder: a diffusion transformer, 8x8x4.

1,871,120 parameters; `letters_base.py` with another network and 10,000 updates. Training takes 17
minutes on two CPU cores, at 620 images/s (JAX 0.12).

    diffusion_distillation encode_data --config=letters_base --autoencoder=letters_autoencoder \
        --out=runs/letters_latent/data
    diffusion_distillation train --config=letters_latent_base --workdir=runs/letters_latent/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import defaults, load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("letters_base.py"))
    config.dataset.name = "Latents"
    config.dataset.args = ConfigDict(dict(path="runs/letters_latent/data"))
    config.model.name = "dit"
    config.model.args = defaults("dit").model.args
    config.model.args.update(patch_size=2, hidden_size=128, depth=6, num_heads=4)
    config.model.eval_clip_denoised = False
    config.train.num_train_steps = 10_000
    return config
