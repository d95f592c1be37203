r"""Easy consistency tuning for CIFAR-10: the model of `cifar_base.py` becomes a consistency model.

60,004,099 parameters; 400,000 updates of 128 images. Times, loss weight, norm and batch size follow Geng et al. (2024);
the learning rate and the EMA are our choice. To sample in 2 steps, use --num_steps=2 --sampler=renoise.

FID (Geng et al. 2024):

    updates    100,000    200,000    400,000
    1 step     4.54       3.86       3.60
    2 steps    2.20       2.15       2.11

    diffusion_distillation distill --config=cifar_consistency \
        --config.distillation.teacher_checkpoint_path=runs/cifar/base --workdir=runs/cifar/consistency
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("cifar_base.py")))
    config.distillation.method = "consistency"
    config.distillation.steps_per_iter = 400_000
    config.distillation.args.kind = "training"
    config.distillation.args.times = "tuning"
    config.train.learning_rate = 1e-4
    config.train.learning_rate_anneal_type = "none"
    config.train.ema_decay = 0.9999
    return config
