"""A base model of colored letters that can be guided: 10,400 images of 32x32, in matplotlib's typefaces.

1,195,843 parameters; `mnist_base.py` with other data and 8,000 updates. After 2,000 updates, the colors are right and
the letters are not. Two CPU cores take 45 minutes, at 190 images/s (JAX 0.12).

    diffusion_distillation train --config=letters_base --workdir=runs/letters/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("mnist_base.py"))
    config.dataset.name = "letters"
    config.model.args.attn_resolutions = (8,)
    config.train.num_train_steps = 8_000
    return config
