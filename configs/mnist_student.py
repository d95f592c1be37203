from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("mnist_base.py")))
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.method = "guidance"
    config.distillation.end_num_steps = 64
    config.distillation.steps_per_iter = 600
    config.train.learning_rate = 5e-4
    config.train.log_loss_every_steps = 50
    config.eval.num_samples = 1000
    config.eval.teacher_num_steps = (64,)
    config.eval.ancestral_num_steps = ()
    return config
