r"""Stage 1 of Meng et al. (2023) for CIFAR-10: a student of `cifar_guided_base.py` that takes a guidance weight.

61,328,131 parameters; guidance weights from 0 to 4, as in the paper, at the times of 1024 sampling steps. The number of
updates and the learning rate are those of one student of `cifar_distill.py`; they are not tuned.

    diffusion_distillation distill --config=cifar_guided_student \
        --config.distillation.teacher_checkpoint_path=runs/cifar_guided/base --workdir=runs/cifar_guided/student
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("cifar_guided_base.py")))
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.method = "guidance"
    config.distillation.end_num_steps = 1024
    config.train.learning_rate = 5e-5
    return config
