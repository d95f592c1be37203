r"""The seed project's ladder: the model of `cars64_base.py`, from 256 sampling steps to 2.

44,173,827 parameters; 7 students of 10,000 updates each, at a tenth of the base model's learning rate. Cost: 0.6 EFLOP,
1.6 hours on one GPU at 100 TFLOP/s (calculated, not timed).
FID: not published.

    diffusion_distillation distill --config=cars64_distill --config.dataset.args.path=stanford_cars \
        --config.distillation.teacher_checkpoint_path=runs/cars64/base --workdir=runs/cars64/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("cars64_base.py")))
    config.distillation.start_num_steps = 256
    config.distillation.end_num_steps = 2
    config.distillation.steps_per_iter = 10_000
    config.train.learning_rate = 1e-4
    return config
