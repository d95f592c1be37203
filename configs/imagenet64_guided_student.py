r"""Stage 1 of Meng et al. (2023) for ImageNet, 64x64: a student that takes a guidance weight.

296,644,038 parameters; the teacher is the model of `imagenet64_guided_base.py`. Guidance weights are from 0 to 4, as in
the paper, at the times of 1024 sampling steps. The number of updates and the learning rate are those of one student of
`imagenet64_distill.py`; they are not tuned.

    diffusion_distillation distill --config=imagenet64_guided_student \
        --config.distillation.teacher_checkpoint_path=runs/imagenet64_guided/base \
        --workdir=runs/imagenet64_guided/student
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("imagenet64_guided_base.py")))
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.method = "guidance"
    config.distillation.end_num_steps = 1024
    config.train.learning_rate = 1e-4
    return config
