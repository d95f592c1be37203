r"""Stage 1 of the built-in example: a student of `digits_guided_base.py` that takes a guidance weight from 0 to 4.

200,865 parameters; 600 updates at the times of 64 sampling steps. The student needs one network evaluation per guided
step, its teacher two. With 2,000 samples:

    guidance weight                   0        1        3
    recognized, student               98.7%    99.9%    100%    (share of samples classified as the requested class)
    recognized, teacher               96.7%    99.9%    100%
    Fréchet distance, student         5.0      16       50      (classifier features, to all digits)
    Fréchet distance, teacher         5.2      15       43

    diffusion_distillation distill --config=digits_guided_student \
        --config.distillation.teacher_checkpoint_path=runs/digits_guided/base --workdir=runs/digits_guided/student
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_guided_base.py")))
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.method = "guidance"
    config.distillation.end_num_steps = 64
    config.distillation.steps_per_iter = 600
    config.train.learning_rate = 1e-3
    config.train.log_loss_every_steps = 40
    config.eval.teacher_num_steps = (256, 64)
    config.eval.ancestral_num_steps = (64,)
    return config
