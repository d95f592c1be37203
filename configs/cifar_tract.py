r"""TRACT for CIFAR-10 in two phases: the model of `cifar_base.py`, from 1024 sampling steps to 32 and then to 1.

60,004,099 parameters; 187,500 updates of 256 images per phase, 96 million images in all. Rungs, learning rate, batch
size and self-teacher decay follow Berthelot et al. (2023); the EMA decay is our choice.
FID at 1 step (Berthelot et al. 2023): 5.02, and 4.45 after 256 million images.

    diffusion_distillation distill --config=cifar_tract \
        --config.distillation.teacher_checkpoint_path=runs/cifar/base --workdir=runs/cifar/tract
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("cifar_base.py")))
    config.distillation.method = "tract"
    config.distillation.rungs = (1024, 32, 1)
    config.distillation.steps_per_iter = 187_500
    config.train.batch_size = 256
    config.train.learning_rate = 2e-4
    config.train.learning_rate_anneal_type = "none"
    config.train.ema_decay = 0.9999
    return config
