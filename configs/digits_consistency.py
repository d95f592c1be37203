"""One student of the embedded example by multistep consistency distillation, of end_num_steps=4 steps.

178,721 parameters; 960 updates, as much work as all students of `digits_distill.py`. Pixel-space Frechet distance of
2,000 samples to all digits: 0.41 at 4 steps, 0.46 for end_num_steps=2, 1.4 for 1. That last one learns better in so
short a training by consistency.norm='squared': 0.63, and 0.50 in 2 steps of sampler='renoise'. With consistency.kind=
'training', 0.31 at 4 steps: it goes on learning from the data. Easy consistency tuning, that with end_num_steps=1 and
consistency.times='tuning', has 1.0, and 0.54 in 2 steps.
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
    config.distillation.args.first_grid = 16
    config.distillation.args.grid_updates = 960
    config.train.learning_rate = 1e-3
    config.train.ema_decay = 0.98  # what is sampled: a slow average, of a training that is short
    config.train.log_loss_every_steps = 40
    return config
