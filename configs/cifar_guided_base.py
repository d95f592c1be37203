"""A teacher for CIFAR-10 that can be guided: that of `cifar_base.py`, with classes.

60,015,363 parameters. A tenth of the images come without their class, as in Ho & Salimans (2022); all else is the
unguided model's, and nothing was trained or tuned here.

    python scripts/prepare_data.py --dataset=cifar10
    python scripts/train.py --config=configs/cifar_guided_base.py --workdir=runs/cifar_guided/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("cifar_base.py"))
    config.dataset.args.class_conditional = True
    config.train.label_dropout = 0.1
    return config
