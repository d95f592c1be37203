"""Base model of the embedded example that can be guided: `digits_base.py` with classes, a tenth of them left out.

Figures follow.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_base.py"))
    config.dataset.args = ConfigDict(dict(class_conditional=True))
    config.train.label_dropout = 0.1
    config.eval.metrics = ("fid", "accuracy", "precision", "recall")
    return config
