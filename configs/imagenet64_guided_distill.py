r"""Stage 2 of Meng et al. (2023) for ImageNet, 64x64: from 1024 sampling steps to 1.

296,644,038 parameters; the first teacher is the student of `imagenet64_guided_student.py`. 10 students, trained as in
`imagenet64_distill.py`. Teachers and students take a guidance weight. The settings are not tuned.

    diffusion_distillation distill --config=imagenet64_guided_distill \
        --config.distillation.teacher_checkpoint_path=runs/imagenet64_guided/student/steps_1024 \
        --workdir=runs/imagenet64_guided/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load, paper_ladder


def get_config() -> ConfigDict:
    student = load(Path(__file__).with_name("imagenet64_guided_student.py"))
    return paper_ladder(student, start_num_steps=1024, learning_rate=1e-4)
