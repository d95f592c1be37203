"""One student of the embedded example by multistep consistency distillation, of end_num_steps=4 steps.

178,721 parameters; 960 updates, as much work as all students of `digits_distill.py`. Pixel-space Frechet distance of
2,000 samples to all digits: 0.41 at 4 steps; with end_num_steps 2 and 1, 0.46 and 1.4. Easy consistency tuning, that is
end_num_steps=1, consistency.kind='training' and consistency.times='tuning', is better at 1 step, 1.0; sampled in 2 with
sampler='renoise' it has 0.54.
"""

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
    config.distillation.consistency.norm = "squared"  # so short a training gets further with it than with the norm
    config.train.learning_rate = 1e-3
    config.train.ema_decay = 0.98  # what is sampled: a slow average, of a training that is short
    config.train.log_loss_every_steps = 40
    return config
