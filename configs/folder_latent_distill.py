r"""A ladder for your own images in latents: the model of `folder_latent_base.py`, from 256 sampling steps to 1.

32,474,512 parameters; 8 students: 10,000 updates each, 20,000 for 2 steps and for 1 step. Cost: 0.39 EFLOP, 65 minutes
on one GPU at 100 TFLOP/s (calculated, not timed).
FID: the ladder's report compares its models with your images.

    diffusion_distillation distill --config=folder_latent_distill --config.dataset.args.path=runs/my_latents \
        --config.distillation.teacher_checkpoint_path=runs/mine_latent/base --workdir=runs/mine_latent/ladder

Repeat the flags that set `dataset` and `model` fields of the base model.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("folder_latent_base.py")))
    config.distillation.start_num_steps = 256
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 10_000
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = 1e-4
    return config
