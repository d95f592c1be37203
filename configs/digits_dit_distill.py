"""Ladder of the built-in example with a diffusion transformer: the model of `digits_dit_base.py`, 64 steps to 1.

328,260 parameters; the updates of `digits_distill.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_dit_base.py")))
    config.distillation.start_num_steps = 64
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 120
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = 1e-3
    config.train.log_loss_every_steps = 40
    return config
