r"""Multistep consistency distillation for ImageNet, 64x64: the model of `imagenet64_base.py`, to 8 sampling steps.

295,905,222 parameters; 200,000 updates of 2,048 images. Grid, loss weight, norm and adjusted teacher follow Heek et al.
(2024); the number of updates, the learning rate and the EMA are our choice. For another number of sampling steps, set
--config.distillation.end_num_steps.
FID with 1 / 2 / 4 / 8 / 16 steps (Heek et al. 2024, with another network): 4.3 / 2.0 / 1.7 / 1.6 / 1.5.

    diffusion_distillation distill --config=imagenet64_consistency \
        --config.distillation.teacher_checkpoint_path=runs/imagenet64/base --workdir=runs/imagenet64/consistency
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("imagenet64_base.py")))
    config.distillation.method = "consistency"
    config.distillation.teacher_step = "addim"
    config.distillation.end_num_steps = 8
    config.distillation.steps_per_iter = 200_000
    config.train.learning_rate = 1e-4
    config.train.ema_decay = 0.9999
    return config
