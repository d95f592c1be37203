"""Ladder of the embedded example by TRACT, 64 to 8 and on to 1."""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_base.py")))
    config.distillation.method = "tract"
    config.distillation.rungs = (64, 8, 1)
    config.distillation.steps_per_iter = 480
    config.train.learning_rate = 1e-3
    config.train.ema_decay = 0.98
    config.train.log_loss_every_steps = 40
    return config
