"""One student of the embedded example by multistep consistency distillation, of 4 steps."""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_base.py")))
    config.distillation.method = "consistency"
    config.distillation.start_num_steps = 64
    config.distillation.end_num_steps = 4
    config.distillation.steps_per_iter = 960
    config.distillation.consistency.first_grid = 16
    config.distillation.consistency.grid_updates = 960
    config.train.learning_rate = 1e-3
    config.train.ema_decay = 0.98
    config.train.log_loss_every_steps = 40
    return config
