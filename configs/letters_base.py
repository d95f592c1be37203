"""Coloured letters with classes, to be guided: 10,400 images of 32x32, in the typefaces that come with matplotlib.

1,195,843 parameters; `mnist_base.py` on other data. Two CPU cores: TIME

    python scripts/train.py --config=configs/letters_base.py --workdir=runs/letters/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("mnist_base.py"))
    config.dataset.name = "letters"
    config.model.args.attn_resolutions = (8,)
    return config
