"""A base model for CIFAR-10 that can be guided: the model of `cifar_base.py`, with classes.

60,015,363 parameters. A tenth of the images are trained without their label, as in Ho & Salimans (2022). All other
settings are those of `cifar_base.py`; they are not tuned.

    diffusion_distillation prepare_data --dataset=cifar10
    diffusion_distillation train --config=cifar_guided_base --workdir=runs/cifar_guided/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("cifar_base.py"))
    config.dataset.args.class_conditional = True
    config.train.label_dropout = 0.1
    return config
