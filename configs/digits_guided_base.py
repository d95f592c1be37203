"""Base model of the built-in example that can be guided: `digits_base.py` with classes.

180,129 parameters; as many updates as `digits_base.py`, with a tenth of the images without their label. Of 2,000
samples with 64 steps, a classifier recognizes the requested class in 96.7% without guidance, and in 99.9% with guidance
weight 1.

    diffusion_distillation train --config=digits_guided_base --workdir=runs/digits_guided/base
    diffusion_distillation sample --checkpoint=runs/digits_guided/base --guidance=1 --num_steps=64 --out=guided.png
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_base.py"))
    config.dataset.args = ConfigDict(dict(class_conditional=True))
    config.train.label_dropout = 0.1
    config.eval.metrics = ("frechet", "accuracy", "precision", "recall")
    return config
