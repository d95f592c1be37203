"""Ladder of the embedded example: the digits model of `digits_base.py`, from 64 sampling steps to 1."""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_base.py")))
    config.distillation.start_num_steps = 64
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 150
    config.distillation.stages = {"2": {"steps_per_iter": 300}, "1": {"steps_per_iter": 300}}
    config.train.learning_rate = 1e-3
    config.train.log_loss_every_steps = 50
    config.train.eval_every_steps = 150
    return config
