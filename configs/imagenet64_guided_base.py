"""A base model for ImageNet, 64x64, that can be guided: the model of `imagenet64_base.py`.

295,905,222 parameters. A tenth of the images are trained without their label, as in Ho & Salimans (2022). All other
settings are those of `imagenet64_base.py`; they are not tuned.

    diffusion_distillation prepare_data --dataset=imagenet2012
    diffusion_distillation train --config=imagenet64_guided_base --workdir=runs/imagenet64_guided/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("imagenet64_base.py"))
    config.train.label_dropout = 0.1
    return config
